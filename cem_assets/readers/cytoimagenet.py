"""Reading CytoImageNet without Dagster; `cem_assets.readers` has these functions too."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.store.assets import CYTO_RELEASES, LABEL_TABLE, SOURCE_METADATA
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import committed_partitions, require_manifest
from cem_assets.store.parquet import parquet_file, read_parts
from cem_assets.store.store import Store, open_store


@dataclass(frozen=True)
class CytoRelease:
    """A release of CytoImageNet.

    Attributes:
        version: Such as "v1".
        digest: Digest of the release's manifest.
        card: The dataset card, as Markdown.
        labels: One row per label with the columns key, label, category and num_images.
        shards: URLs of the Parquet files, in order; Hugging Face datasets and DuckDB open them.
    """

    version: str
    digest: str
    num_images: int
    card: str
    labels: pd.DataFrame
    shards: tuple[str, ...]
    _store: Store
    _folder: str
    _keys: tuple[str, ...]

    def metadata(self) -> pd.DataFrame:
        """Read a row for each image, without pixels: the published columns, and split, source, licence, height, width, ..."""
        with self._store.open(f"{self._folder}/metadata.parquet") as handle:
            frame: pd.DataFrame = parquet_file(handle).read().to_pandas()
        return frame

    def iter_images(self) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
        """Read label, file name and pixels, uint8 (height, width), of each image, in order of label."""
        for key in self._keys:
            with self._store.open(key) as handle:
                for batch in parquet_file(handle).iter_batches(64, columns=["label", "filename", "image"]):
                    for row in batch.to_pylist():
                        yield row["label"], row["filename"], decode_image(row["image"]["bytes"])


def read_cyto_release(version: str | None = None, root: str | None = None) -> CytoRelease:
    """Open a release of CytoImageNet.

    Args:
        version: Such as "v1"; None takes the newest.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Raises:
        FileNotFoundError: There is no such release.
    """
    store = open_store(root)
    versions = committed_partitions(store, CYTO_RELEASES)
    if version is None:
        found = [require_manifest(store, CYTO_RELEASES, name) for name in versions]
        if not found:
            raise FileNotFoundError(f"{store.url} has no release of CytoImageNet yet; materialize {CYTO_RELEASES} first.")
        manifest = max(found, key=lambda m: int(m.details["sequence"]))
    else:
        manifest = require_manifest(store, CYTO_RELEASES, version)
    listing = json.loads(store.read(f"{manifest.folder}/release.json"))
    keys = tuple(f"{label['folder']}/{item['name']}" for label in listing["labels"] for item in label["objects"])
    return CytoRelease(
        version=manifest.inputs.partition,
        digest=manifest.digest,
        num_images=listing["num_images"],
        card=store.read(f"{manifest.folder}/README.md").decode(),
        labels=pd.DataFrame([{k: label[k] for k in ("key", "label", "category", "num_images")} for label in listing["labels"]]),
        shards=tuple(store.url_of(key) for key in keys),
        _store=store,
        _folder=manifest.folder,
        _keys=keys,
    )


def read_labels(root: str | None = None) -> pd.DataFrame:
    """Read the current label table: the chosen rows, with label and category.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Raises:
        FileNotFoundError: There is no label table yet.
    """
    store = open_store(root)
    manifest = require_manifest(store, LABEL_TABLE)
    frame: pd.DataFrame = pa.concat_tables(list(read_parts(store, manifest))).to_pandas()
    return frame


def read_source_metadata(source: str, root: str | None = None) -> pd.DataFrame:
    """Read the standard metadata of a microscopy source: one row per image.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        A table with the standard columns, source, licence, and the lists `files` and `sha256`. Several values of a cell are
        joined by "|"; cells without a value are empty.

    Raises:
        FileNotFoundError: Nothing is committed for the source.
    """
    store = open_store(root)
    frame: pd.DataFrame = pa.concat_tables(
        list(read_parts(store, require_manifest(store, SOURCE_METADATA, source)))
    ).to_pandas()
    return frame
