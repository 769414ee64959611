"""What an exported release says of itself, as plain facts: datasets, files, licences as SPDX names them.

Written out as Croissant by `cem_assets.cem.export.croissant` and as an RO-Crate by `cem_assets.cem.export.ro_crate`; gathered
from a store
by `cem_assets.cem.export.export`.
"""

import re
from dataclasses import dataclass

METHOD_CITATION = (
    "Conrad, R. and Narayan, K. CEM500K, a large-scale heterogeneous unlabeled cellular electron microscopy image dataset for "
    "deep learning. eLife 10:e65894 (2021). doi:10.7554/eLife.65894"
)
UNKNOWN_AUTHORS = "Authors of the member datasets, who are not recorded by name; see their citations"

_SPDX = (
    "CC0-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-NC-ND-4.0",
    "CC-BY-ND-4.0",
    "PDDL-1.0",
    "ODC-By-1.0",
    "ODbL-1.0",
    "MIT",
    "BSD-3-Clause",
    "Apache-2.0",
)
_BY_WORDS = {name.casefold(): name for name in _SPDX}


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset of a release.

    Attributes:
        name: Its name.
        folder: The name as a file system takes it (`cem_assets.cem.export.names`); nearly always the name itself.
        licence, citation, source_url, organism, tissue, technique: In its curator's words; all but the first two may be empty.
        digest: Of its manifest of filtered patches.
        num_patches: Patches in the release.
        num_excluded: Patches left out of the release.
    """

    name: str
    folder: str
    licence: str
    citation: str
    source_url: str
    organism: str
    tissue: str
    technique: str
    digest: str
    num_patches: int
    num_excluded: int


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export.

    Attributes:
        path: Relative to the export, of letters, digits and `._~-` joined by "/"; needs no escape in a URL.
        num_bytes: Size.
        sha256: Hex digest of its bytes.
    """

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ReleaseFacts:
    """A release.

    Attributes:
        version: Such as "v1".
        digest: Of its manifest.
        published: Day it was made, ISO 8601.
        num_patches: Patches in it.
        pixel_mean, pixel_std: Norms of pixels scaled to 0..1.
        datasets: In order of name.
    """

    version: str
    digest: str
    published: str
    num_patches: int
    pixel_mean: float
    pixel_std: float
    datasets: tuple[DatasetFacts, ...]

    @property
    def title(self) -> str:
        """The name of its dataset card."""
        return f"CEM patches {self.version}"

    @property
    def summary(self) -> str:
        """What it holds, in two sentences."""
        return (
            f"{self.num_patches:,} informative, deduplicated 2D patches of up to 224 x 224 px (8-bit gray) from "
            f"{len(self.datasets)} electron-microscopy dataset(s), curated as CEM500K and CEM1.5M are. Pixels scaled to 0..1 "
            f"have mean {self.pixel_mean:.5f} and standard deviation {self.pixel_std:.5f}. Every patch has the licence of its "
            "dataset."
        )

    def licences(self) -> list[str]:
        """List the licences, each once, in order."""
        return sorted({item.licence for item in self.datasets})


def licence_url(licence: str) -> str:
    """Return the SPDX page of a licence, or nothing where its words name none exactly.

    Args:
        licence: In a curator's words, such as "CC BY 4.0"; without a version ("CC BY") it could be several.
    """
    words = re.sub(r"[\s_-]+", "-", licence.strip()).casefold()
    name = _BY_WORDS.get("cc0-1.0" if words == "cc0" else words)
    return f"https://spdx.org/licenses/{name}" if name else ""


def media_type(path: str) -> str:
    """Return the media type of an exported file by the end of its name."""
    ends = {
        ".csv": "text/csv",
        ".json": "application/json",
        ".md": "text/markdown",
        ".parquet": "application/x-parquet",
        ".tar": "application/x-tar",
        ".tiff": "image/tiff",
    }
    return ends.get(path[path.rfind(".") :] if "." in path else "", "text/plain")
