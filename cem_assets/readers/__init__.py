"""Reading what the platform wrote, without Dagster: tables, images, volumes, releases, weights and scores.

Pandas, DuckDB, polars and Hugging Face datasets can read the same data without this package. `content_url` (or `cem-assets
path`) returns the folder that they open.

    >>> from cem_assets import readers
    >>> patches = readers.read_patches("vnc", "filtered")
    >>> for name, image in readers.iter_images("vnc", "deduplicated"):
    ...     ...
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.cem.patches.pixels import open_pixels, pixels_behind
from cem_assets.cem.patches.tables import DUPLICATES_SCHEMA
from cem_assets.cem.volumes.ome_zarr import open_volume_array
from cem_assets.errors import DataError, UnknownNameError
from cem_assets.readers.cytoimagenet import CytoRelease, read_cyto_release, read_labels, read_source_metadata
from cem_assets.readers.scores import read_leaderboard, read_scores
from cem_assets.readers.weights import list_weights, load_weights, read_weights_info
from cem_assets.store.assets import DEDUPLICATED, FILTERED, RELEASES, VOLUMES, asset_of
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Manifest, committed_partitions, current_manifest, require_manifest
from cem_assets.store.parquet import parquet_file, read_parts, read_side_table
from cem_assets.store.store import Store, open_store

__all__ = [
    "CytoRelease",
    "Release",
    "content_url",
    "iter_images",
    "list_datasets",
    "list_releases",
    "list_volumes",
    "list_weights",
    "load_weights",
    "open_volume",
    "read_cyto_release",
    "read_duplicates",
    "read_labels",
    "read_leaderboard",
    "read_patches",
    "read_release",
    "read_scores",
    "read_source_metadata",
    "read_weights_info",
]

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Release:
    """A release.

    Attributes:
        version: Such as "v1".
        digest: Digest of the release's manifest.
        pixel_mean: Mean of all pixels, scaled to 0..1.
        pixel_std: Standard deviation of all pixels, scaled to 0..1.
        card: The dataset card, as Markdown.
        datasets: One row per dataset with the columns dataset, num_patches, licence, citation, organism, tissue, technique,
            folder (URL) and digest.
        shards: URLs of the Parquet files, in order; Hugging Face datasets and DuckDB open them.
    """

    version: str
    digest: str
    num_patches: int
    pixel_mean: float
    pixel_std: float
    card: str
    datasets: pd.DataFrame
    shards: tuple[str, ...]
    _store: Store
    _keys: tuple[str, ...]

    def patches(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Read the rows of the release without pixels.

        Args:
            columns: Names of columns; None takes all except `image`.
        """
        frames = []
        for key in self._keys:
            with self._store.open(key) as handle:
                file = parquet_file(handle)
                wanted = columns or [name for name in file.schema_arrow.names if name != "image"]
                frames.append(file.read(columns=wanted))
        frame: pd.DataFrame = pa.concat_tables(frames).to_pandas()
        return frame

    def iter_images(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Read name and pixels, uint8 (height, width), of each patch, in order of dataset and row."""
        for key in self._keys:
            with self._store.open(key) as handle:
                yield from _images_in(parquet_file(handle))


def list_datasets(root: str | None = None) -> list[str]:
    """List the datasets that were standardized, in order of name.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.
    """
    return committed_partitions(open_store(root), VOLUMES)


def read_patches(dataset: str, stage: str = "filtered", root: str | None = None) -> pd.DataFrame:
    """Read the patches of a dataset at a stage, without pixels.

    Args:
        stage: "raw", "deduplicated", "scores" or "filtered", or the full name of the asset.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        A table with the columns dataset, name, volume, axis (0 xy, 1 xz, 2 yz, -1 for 2D images), index, y0, y1, x0, x1 (px)
        and dhash (uint64); from "deduplicated" on also num_duplicates; from "scores" on also logit and informative
        (probability).

    Raises:
        DataError: The stage is unknown, or has no patches.
        FileNotFoundError: Nothing is committed.
    """
    store, manifest = _table(dataset, stage, root)
    tables = []
    for item in manifest.find(".parquet"):
        with store.open(f"{manifest.folder}/{item.name}") as handle:
            file = parquet_file(handle)
            tables.append(file.read(columns=[name for name in file.schema_arrow.names if name != "image"]))
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame


def read_duplicates(dataset: str, root: str | None = None) -> pd.DataFrame:
    """Read which exemplar was kept in place of each dropped patch of a dataset.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        A table with the columns name, exemplar (the name of a patch) and distance (Hamming distance of 64 bits).
    """
    store = open_store(root)
    manifest = require_manifest(store, DEDUPLICATED, dataset)
    frame: pd.DataFrame = read_side_table(store, manifest, "_duplicates", DUPLICATES_SCHEMA).to_pandas()
    return frame


def iter_images(dataset: str, stage: str = "filtered", root: str | None = None) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Read the pixels of a dataset's patches at any stage, in row order.

    Only "filtered" stores pixels. For the other stages patches are cut again from the standardized volumes, one brick at a
    time.

    Args:
        stage: As for `read_patches`.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Yields:
        The name and the pixels of each patch: uint8 (height, width), with sides of up to 224 px.
    """
    store, manifest = _table(dataset, stage, root)
    if manifest.inputs.asset == FILTERED:
        for item in manifest.find(".parquet"):
            with store.open(f"{manifest.folder}/{item.name}") as handle:
                yield from _images_in(parquet_file(handle))
        return
    pixels = pixels_behind(store, manifest)
    for table in read_parts(store, manifest, None, _BATCH_ROWS):
        yield from zip(table["name"].to_pylist(), pixels.patches(table), strict=True)


def _images_in(file: pq.ParquetFile) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for batch in file.iter_batches(256, columns=["name", "image"]):
        for row in batch.to_pylist():
            yield row["name"], decode_image(row["image"]["bytes"])


def _table(dataset: str, stage: str, root: str | None) -> tuple[Store, Manifest]:
    asset = asset_of(stage)
    if asset == VOLUMES:
        raise DataError('stage "volumes" has no patches; use open_volume(dataset, volume), or stage = "raw".')
    store = open_store(root)
    return store, require_manifest(store, asset, dataset)


def list_volumes(dataset: str, root: str | None = None) -> list[str]:
    """List the volumes of a dataset; a set of 2D images has none.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.
    """
    return [volume.name for volume in open_pixels(open_store(root), dataset).volumes]


def open_volume(dataset: str, volume: str | None = None, root: str | None = None) -> Any:
    """Open a standardized volume.

    Args:
        volume: Name of the volume; None if the dataset has only one.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        A read-only `zarr.Array` of uint8 (z, y, x); slices of it are numpy arrays. Reading a chunk that the store has lost
        raises `FileNotFoundError`; it is never read as zeros.

    Raises:
        UnknownNameError: There is no such volume (this is a `KeyError`); the error lists the volumes of the dataset.
    """
    pixels = open_pixels(open_store(root), dataset)
    if volume is None:
        if len(pixels.volumes) != 1:
            names = ", ".join(item.name for item in pixels.volumes) or "none, it is a set of 2D images"
            raise UnknownNameError(f"dataset {dataset!r} has {len(pixels.volumes)} volumes; name one of: {names}")
        volume = pixels.volumes[0].name
    return open_volume_array(pixels.volume(volume))


def list_releases(root: str | None = None) -> list[str]:
    """List the versions of the releases, oldest first.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.
    """
    store = open_store(root)
    found = [current_manifest(store, RELEASES, version) for version in committed_partitions(store, RELEASES)]
    ordered = sorted((m for m in found if m is not None), key=lambda m: (m.details["sequence"], m.inputs.partition))
    return [manifest.inputs.partition for manifest in ordered]


def read_release(version: str | None = None, root: str | None = None) -> Release:
    """Open a release.

    Args:
        version: Such as "v1"; None takes the newest.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        The release; its patches are read only when you ask for them.

    Raises:
        FileNotFoundError: There is no such release.
    """
    store = open_store(root)
    if version is None:
        versions = list_releases(root)
        if not versions:
            raise FileNotFoundError(f"{store.url} has no release yet; materialize {RELEASES} first.")
        version = versions[-1]
    manifest = require_manifest(store, RELEASES, version)
    listing = json.loads(store.read(f"{manifest.folder}/release.json"))
    keys = tuple(f"{d['folder']}/{item['name']}" for d in listing["datasets"] for item in d["objects"])
    rows = [
        {
            "dataset": item["dataset"],
            "num_patches": item["counts"]["filtered_patches"],
            **{key: item["description"][key] for key in ("licence", "citation", "organism", "tissue", "technique")},
            "folder": store.url_of(item["folder"]),
            "digest": item["digest"],
        }
        for item in listing["datasets"]
    ]
    return Release(
        version=version,
        digest=manifest.digest,
        num_patches=listing["num_patches"],
        pixel_mean=listing["pixel_mean"],
        pixel_std=listing["pixel_std"],
        card=store.read(f"{manifest.folder}/README.md").decode(),
        datasets=pd.DataFrame(rows),
        shards=tuple(store.url_of(key) for key in keys),
        _store=store,
        _keys=keys,
    )


def content_url(asset: str, partition: str = "", root: str | None = None) -> str:
    """Return the folder (URL or path) that holds the current content of an asset's partition.

    Args:
        asset: A stage such as "filtered", or an asset such as "cem/filtered_patches" or "cem/releases".
        partition: Partition key; empty for an asset without partitions.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        The folder that pandas, DuckDB and Hugging Face datasets open.
    """
    store = open_store(root)
    try:
        name = asset_of(asset)
    except DataError:
        name = asset  # not a stage of patches, but releases or any other asset with manifests
    return store.url_of(require_manifest(store, name, partition).folder)
