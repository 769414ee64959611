"""Exports a release of patches to a folder or bucket prefix that describes itself, for people without a store.

Every export has `release.json`, which says what it is and is written first; the patches in one of three forms; the dataset
card; `datasets.csv`; Croissant and RO-Crate metadata; and `SHA256SUMS`, which is written last. An export that was stopped can
be continued. The forms are in `cem_assets.cem.export.forms`; CytoImageNet's export is in
`cem_assets.cytoimagenet.releases.export`.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cem_assets.cem.export.croissant import croissant_metadata
from cem_assets.cem.export.facts import DatasetFacts, ReleaseFacts, licence_url
from cem_assets.cem.export.folder import CHECKSUMS, MARKER, ExportFolder
from cem_assets.cem.export.forms import (
    METADATA,
    Export,
    ReleasedShards,
    csv_bytes,
    hf_card,
    write_parquet,
    write_tiff_tree,
    write_webdataset,
)
from cem_assets.cem.export.names import plain_name
from cem_assets.cem.export.ro_crate import METADATA_FILE, ro_crate_metadata
from cem_assets.cem.releases.stage import CARD, list_releases
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, no_progress
from cem_assets.store.assets import RELEASES
from cem_assets.store.manifests import Manifest, ManifestObject, require_manifest
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store, open_store

FORMS = ("tiff-tree", "webdataset", "hf")
DATASETS = "datasets.csv"
CROISSANT = "croissant.json"

_WRITERS = {"tiff-tree": write_tiff_tree, "webdataset": write_webdataset, "hf": write_parquet}
_FIXED = (MARKER, CHECKSUMS, METADATA, DATASETS, CROISSANT, METADATA_FILE, CARD, "cross_dataset_duplicates.parquet")
_TAKEN = {"default", "data", *(name.lower() for name in _FIXED)}
"""Names that no dataset's folder may have: those of files beside the folders, and of the HF configuration of all patches."""
_FILES = {
    "tiff-tree": (
        "`metadata.csv` has a row for each image (`file`), which is `{dataset}/{name}.tiff`: uncompressed, single-channel, "
        "uint8."
    ),
    "webdataset": (
        "`patches-*.tar` hold samples of `.tiff` (single-channel, uint8) and `.json`; `metadata.csv` says which tar (`shard`) "
        "has which image (`file`)."
    ),
    "hf": (
        "`data/{dataset}/*.parquet` are read by `datasets.load_dataset`; the column `image` holds TIFF, single-channel, uint8."
    ),
}


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes:
        url: Where the export is.
        version, digest: Version and digest of the release.
        form: "tiff-tree", "webdataset" or "hf".
        num_files, num_bytes: Number and size of all files of the export.
        num_kept: Number of files that were there already.
    """

    url: str
    version: str
    digest: str
    form: str
    num_patches: int
    num_files: int
    num_bytes: int
    num_kept: int


def export_cem(
    store: Store, target: str, version: str = "", form: str = "tiff-tree", progress: Progress = no_progress
) -> ExportSummary:
    """Export a release. The files have the same bytes on every target, however often the export was continued.

    One shard is in memory at a time, and 16 bytes for each patch of a dataset. Files that are there with the right checksum
    are not written again.

    Args:
        target: A local folder or an fsspec URL such as "s3://bucket/prefix". It must be new or empty, or have the beginning of
            the same export.
        version: Version of the release; if it is empty, the newest release is exported.
        form: "tiff-tree" (one folder for each dataset, as CEM500K has on EMPIAR), "webdataset" (tars) or "hf" (Parquet).

    Raises:
        DataError: The form is not known, the target is empty, or something in the store does not match the release.
        FileNotFoundError: There is no such release.
        FileExistsError: The target has another export, or other files.
    """
    if form not in FORMS:
        raise DataError(f"there is no form {form!r} of export; expected one of {', '.join(FORMS)}.")
    if not target.strip():
        raise DataError("the export has no target; expected a folder or a URL such as s3://bucket/prefix.")
    manifest = _release(store, version)
    datasets = _datasets(manifest, form)
    facts = ReleaseFacts(
        version=manifest.inputs.partition,
        digest=manifest.digest,
        published=str(manifest.run["finished"])[:10],
        num_patches=int(manifest.counts["patches"]),
        pixel_mean=manifest.details["pixel_mean"],
        pixel_std=manifest.details["pixel_std"],
        datasets=tuple(item.facts for item in datasets),
    )
    with scratch_folder("export") as scratch:
        mark = {"release": facts.version, "digest": facts.digest, "format": form}
        folder = ExportFolder(open_store(target), scratch, mark)
        files = _WRITERS[form](Export(store, datasets, folder, scratch, facts.num_patches, progress))
        files += [folder.put(item.name, _checked(store, manifest, item)) for item in _side_tables(manifest)]
        files.append(folder.put(DATASETS, _dataset_table(facts)))
        files.append(folder.put(CARD, _card(store, manifest, form, datasets).encode()))
        files.append(folder.put(CROISSANT, _json(croissant_metadata(facts, form, files))))
        folder.put(METADATA_FILE, _json(ro_crate_metadata(facts, form, files)))
        folder.finish()
    return ExportSummary(
        open_store(target).url,
        facts.version,
        facts.digest,
        form,
        facts.num_patches,
        folder.num_files,
        folder.num_bytes,
        folder.num_kept,
    )


def _release(store: Store, version: str) -> Manifest:
    if version:
        return require_manifest(store, RELEASES, version)
    found = list_releases(store)
    if not found:
        raise FileNotFoundError(f"{store.url} has no release yet; materialize {RELEASES} first.")
    return found[-1]


def _datasets(manifest: Manifest, form: str) -> tuple[ReleasedShards, ...]:
    """Return the datasets from the release's manifest, because the listing beside it has no digest."""
    found = []
    for item in manifest.details["contents"]:
        about, counts = item["description"], item["counts"]
        words = {
            name: str(about.get(name, "")) for name in ("licence", "citation", "source_url", "organism", "tissue", "technique")
        }
        facts = DatasetFacts(
            name=item["dataset"],
            folder=plain_name(item["dataset"], _TAKEN),
            digest=item["digest"],
            num_patches=int(counts["filtered_patches"]),
            num_excluded=int(counts.get("excluded_patches", 0)),
            **words,
        )
        found.append(ReleasedShards(facts, item["folder"], tuple(ManifestObject(**part) for part in item["objects"])))
    return tuple(found)


def _side_tables(manifest: Manifest) -> list[ManifestObject]:
    """List the tables that the card of the release names: near copies across datasets, and patches that were left out."""
    return [item for item in manifest.objects if item.name.endswith(".parquet") and not item.name.startswith("patches/")]


def _checked(store: Store, manifest: Manifest, item: ManifestObject) -> bytes:
    data = store.read(f"{manifest.folder}/{item.name}")
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise DataError(
            f"{manifest.folder}/{item.name} is not the file that the release {manifest.inputs.partition} was made with. "
            "Restore it from a copy."
        )
    return data


def _card(store: Store, manifest: Manifest, form: str, datasets: tuple[ReleasedShards, ...]) -> str:
    (item,) = [item for item in manifest.objects if item.name == CARD]
    card = _checked(store, manifest, item).decode()
    if form == "hf":
        card = hf_card(card, [shards.facts.folder for shards in datasets if shards.facts.num_patches])
    return (
        f"{card.rstrip()}\n\n## Files\n\n{_FILES[form]} `datasets.csv` has the licence and citation of each dataset, "
        f"`{CROISSANT}` and `{METADATA_FILE}` describe all of it for programs; `sha256sum --check {CHECKSUMS}` verifies it.\n"
    )


def _dataset_table(facts: ReleaseFacts) -> bytes:
    columns = (
        "dataset", "folder", "num_patches", "num_excluded", "licence", "licence_url", "citation", "source_url", "organism",
        "tissue", "technique", "digest",
    )  # fmt: skip
    return csv_bytes(
        columns,
        (
            (
                d.name, d.folder, d.num_patches, d.num_excluded, d.licence, licence_url(d.licence), d.citation, d.source_url,
                d.organism, d.tissue, d.technique, d.digest,
            )
            for d in facts.datasets
        ),
    )  # fmt: skip


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
