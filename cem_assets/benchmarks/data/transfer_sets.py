"""Prepared transfer benchmarks in the store: images of several channels with labels, or feature vectors with labels.

`benchmarks/data/<name>/` holds `index.json` and Parquet files. Their columns are those of `METADATA`, then one image column for
each channel (`image_<channel>`, uint8 or uint16 TIFF), or `features`. `cem_assets.benchmarks.data.segmentation_sets` describes
prepared segmentation benchmarks.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cem_assets.benchmarks.data.segmentation_sets import INDEX
from cem_assets.errors import DataError
from cem_assets.store.assets import BENCHMARK_DATA
from cem_assets.store.commits import Commit
from cem_assets.store.images import encode_tiff
from cem_assets.store.manifests import Manifest, require_manifest
from cem_assets.store.parquet import IMAGE, SHARD_BYTES, part_name
from cem_assets.store.store import Store

METADATA: dict[str, pa.DataType] = {
    "name": pa.string(),
    "split": pa.string(),
    "label": pa.string(),
    "compound": pa.string(),
    "concentration": pa.float64(),
    "plate": pa.string(),
    "well": pa.string(),
    "batch": pa.string(),
    "is_control": pa.bool_(),
}
"""Columns that every transfer benchmark has; a text that is not known is empty, and a concentration is NaN."""
FEATURES = "features"
_GROUP_BYTES = 8 << 20
_GROUP_ROWS = 256


def encode_plane(pixels: NDArray[Any]) -> bytes:
    """Encode one channel as an uncompressed TIFF; equal pixels give equal bytes.

    Args:
        pixels: uint8 or uint16 (height, width).
    """
    if pixels.dtype == np.uint8:
        return encode_tiff(pixels)
    sink = io.BytesIO()
    tifffile.imwrite(
        sink,
        pixels.astype(np.uint16, copy=False),
        byteorder="<",
        photometric="minisblack",
        metadata=None,
        software=False,
        rowsperstrip=pixels.shape[0],
    )
    return sink.getvalue()


def decode_plane(data: bytes) -> NDArray[Any]:
    """Decode what `encode_plane` wrote: uint8 or uint16 (height, width)."""
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        pixels = np.asarray(image)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


class TransferWriter:
    """Writes the rows of a transfer benchmark into a commit, one after the other; call `finish` once at the end.

    Args:
        channels: Names of the images' channels; empty for features.
        feature_names: Names of the features; empty for images.
    """

    def __init__(self, commit: Commit, channels: Sequence[str], feature_names: Sequence[str] = ()) -> None:
        self._commit = commit
        self._channels = tuple(channels)
        self._feature_names = tuple(feature_names)
        pixels = [(f"image_{channel}", IMAGE) for channel in channels]
        values = [(FEATURES, pa.list_(pa.float64()))] if feature_names else []
        self._schema = pa.schema([*METADATA.items(), *pixels, *values])
        self._rows: list[dict[str, Any]] = []
        self._row_bytes = 0
        self._groups: list[pa.Table] = []
        self._group_bytes = 0
        self._num_parts = 0
        self._counts: dict[tuple[str, str], int] = {}

    def add(
        self, facts: Mapping[str, Any], planes: Sequence[NDArray[Any]] = (), features: NDArray[np.float64] | None = None
    ) -> None:
        """Write one row.

        Args:
            facts: Values of `METADATA`; missing ones become empty.
            planes: For a benchmark of images, one uint8 or uint16 (height, width) for each channel, in order.
            features: For a benchmark of features, float64 (n,).
        """
        blank = {"name": "", "concentration": float("nan"), "is_control": False}
        row: dict[str, Any] = {key: facts.get(key, blank.get(key, "")) for key in METADATA}
        for channel, plane in zip(self._channels, planes, strict=True):
            row[f"image_{channel}"] = {"bytes": encode_plane(plane), "path": f"{row['name']}_{channel}.tiff"}
            self._row_bytes += plane.nbytes
        if features is not None:
            row[FEATURES] = features
            self._row_bytes += features.nbytes
        key = (row["split"], row["label"])
        self._counts[key] = self._counts.get(key, 0) + 1
        self._rows.append(row)
        if self._row_bytes >= _GROUP_BYTES or len(self._rows) == _GROUP_ROWS:
            self._end_group()
            if self._group_bytes >= SHARD_BYTES:
                self._end_part()

    def _end_group(self) -> None:
        if self._rows:
            self._groups.append(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._group_bytes += self._row_bytes
            self._rows, self._row_bytes = [], 0

    def _end_part(self) -> None:
        if not self._groups:
            return
        sink = io.BytesIO()
        texts = [name for name, kind in METADATA.items() if kind == pa.string()]
        with pq.ParquetWriter(sink, self._schema, compression="zstd", use_dictionary=texts, write_statistics=texts) as writer:
            for group in self._groups:
                writer.write_table(group, row_group_size=max(len(group), 1))
        self._commit.write(part_name(self._num_parts), sink.getvalue())
        self._num_parts += 1
        self._groups, self._group_bytes = [], 0

    def finish(self, name: str) -> dict[str, int]:
        """Write the remaining rows and the index of a benchmark, and return the counts for the manifest."""
        self._end_group()
        self._end_part()
        rows = [{"split": split, "label": label, "rows": count} for (split, label), count in sorted(self._counts.items())]
        index = {
            "benchmark": name,
            "task": "transfer",
            "channels": list(self._channels),
            "feature_names": list(self._feature_names),
            "labels": rows,
        }
        self._commit.write(INDEX, json.dumps(index, indent=1, ensure_ascii=False).encode())
        labels = {label for _, label in self._counts}
        splits = {split for split, _ in self._counts}
        return {"rows": sum(self._counts.values()), "labels": len(labels), "splits": len(splits)}


@dataclass(frozen=True)
class PreparedTransfer:
    """A prepared transfer benchmark.

    Attributes:
        channels: Names of the images' channels; empty for features.
        feature_names: Names of the features; empty for images.
        manifest: Of the partition; scores record `manifest.digest` as their input.
    """

    name: str
    channels: tuple[str, ...]
    feature_names: tuple[str, ...]
    manifest: Manifest
    store: Store

    def table(self) -> pd.DataFrame:
        """Read the metadata of all rows, in order, without pixels or features."""
        pieces: list[pd.DataFrame] = [piece.to_pandas() for piece in self._pieces(list(METADATA))]
        return pd.concat(pieces, ignore_index=True)

    def batches(self, batch_size: int = 64) -> Iterator[tuple[pd.DataFrame, list[tuple[NDArray[Any], ...]]]]:
        """Read images in order, up to `batch_size` rows at a time.

        Yields:
            Metadata of the rows, and for each row its channels, uint8 or uint16 (height, width).

        Raises:
            DataError: The benchmark holds features.
        """
        if not self.channels:
            raise DataError(f"benchmark {self.name!r} holds features, no images; read features().")
        columns = [f"image_{channel}" for channel in self.channels]
        for piece in self._pieces([*METADATA, *columns], batch_size):
            cells = [[decode_plane(cell["bytes"]) for cell in piece[column].to_pylist()] for column in columns]
            yield piece.select(list(METADATA)).to_pandas(), list(zip(*cells, strict=True))

    def features(self) -> tuple[pd.DataFrame, NDArray[np.float64]]:
        """Read metadata and features, float64 (rows, features); NaN where the published table had no number.

        Raises:
            DataError: The benchmark holds images.
        """
        if not self.feature_names:
            raise DataError(f"benchmark {self.name!r} holds images, no features; read batches().")
        pieces = [np.stack(piece[FEATURES].to_numpy()) for piece in self._pieces([FEATURES])]
        return self.table(), np.concatenate(pieces).astype(np.float64)

    def _pieces(self, columns: list[str], batch_rows: int = 4096) -> Iterator[pa.Table]:
        for item in self.manifest.find(".parquet"):
            with self.store.open(f"{self.manifest.folder}/{item.name}") as handle:
                for batch in pq.ParquetFile(handle).iter_batches(batch_rows, columns=columns):
                    yield pa.Table.from_batches([batch])


def open_transfer(store: Store, name: str, manifest: Manifest | None = None) -> PreparedTransfer:
    """Open a prepared transfer benchmark.

    Args:
        manifest: Manifest of `benchmarks/data` to open; None takes the current one.

    Raises:
        FileNotFoundError: The benchmark was not prepared.
        DataError: It is a segmentation benchmark.
    """
    manifest = manifest or require_manifest(store, BENCHMARK_DATA, name)
    index = json.loads(store.read(f"{manifest.folder}/{INDEX}"))
    if index["task"] != "transfer":
        raise DataError(f"benchmark {name!r} is for {index['task']}; open it with segmentation_sets.open_benchmark.")
    return PreparedTransfer(name, tuple(index["channels"]), tuple(index["feature_names"]), manifest, store)
