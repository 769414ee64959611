"""The facts that an exported release tells about itself: datasets, files, and licences by their SPDX names.

`cem_assets.cem.export.export` gathers them from a store. `cem_assets.cem.export.croissant` and
`cem_assets.cem.export.ro_crate` write them in their formats.
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
        folder: The name as a file system accepts it (`cem_assets.cem.export.names`), which is nearly always the name itself.
        licence, citation, source_url, organism, tissue, technique: In the curator's words. All but the first two may be empty.
        digest: Digest of its manifest of filtered patches.
        num_patches: Number of patches in the release.
        num_excluded: Number of patches that the release leaves out.
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
        path: Path relative to the export. It consists of letters, digits and `._~-`, joined by "/", and needs no escapes in a
            URL.
        sha256: Hexadecimal digest of the file's bytes.
    """

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ReleaseFacts:
    """A release.

    Attributes:
        version: Name of the release, such as "v1".
        digest: Digest of its manifest.
        published: The day on which it was made, in ISO 8601.
        pixel_mean, pixel_std: Mean and standard deviation of pixels scaled to 0..1.
        datasets: The datasets, in order of name.
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
        """The title of the release, as its dataset card has it."""
        return f"CEM patches {self.version}"

    @property
    def summary(self) -> str:
        """A description of the release in a few sentences."""
        return (
            f"{self.num_patches:,} informative, deduplicated 2D patches of up to 224 x 224 px (8-bit gray) from "
            f"{len(self.datasets)} electron-microscopy dataset(s), curated as CEM500K and CEM1.5M are. Pixels scaled to 0..1 "
            f"have mean {self.pixel_mean:.5f} and standard deviation {self.pixel_std:.5f}. Every patch has the licence of its "
            "dataset."
        )

    def licences(self) -> list[str]:
        """List the different licences, in order."""
        return sorted({item.licence for item in self.datasets})


def licence_url(licence: str) -> str:
    """Return the URL of the SPDX page of a licence, or an empty text if its words do not name exactly one licence.

    Args:
        licence: A curator's words, such as "CC BY 4.0". Without a version, as in "CC BY", it could be several licences.
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
