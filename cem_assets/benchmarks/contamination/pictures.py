"""The pictures a contamination check compares: patches of a release's shards, and test images of prepared benchmarks.

Both are split into pieces that one process can read and fingerprint in bounded memory. `PictureIndex` reads a single picture
by its number.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cem_assets.benchmarks.contamination.fingerprints import joined, release_fingerprints, test_image_fingerprints
from cem_assets.benchmarks.contamination.reports import fingerprint_bytes
from cem_assets.benchmarks.data.segmentation_sets import PreparedItem, open_benchmark
from cem_assets.benchmarks.data.steps import AXES
from cem_assets.benchmarks.data.transfer_sets import decode_plane, open_transfer
from cem_assets.cem.releases.stage import LISTING
from cem_assets.cytoimagenet.channels import merge_channels
from cem_assets.store.commits import ContentFolder
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Manifest, ManifestObject, canonical_json
from cem_assets.store.parquet import IMAGE_ROW_GROUP, parquet_file
from cem_assets.store.store import Store

Axes = Mapping[str, Sequence[int]]
"""Axes of (z, y, x) along which volumes are cut for testing, by part of a union; the part is "" for other benchmarks."""

_UNTESTED = ("train", "valid")
_PLANES_TOGETHER = 32
_BATCH_PX = 1 << 27
"""Pixels that are fingerprinted into one table. It takes a few minutes, which is the most that a killed run loses."""
_PLANE_NAMES = {axis: name for name, axis in AXES.items()}
_NAME_COLUMNS = {"cem": ("dataset", "name"), "cytoimagenet": ("label", "filename")}


class Pictures(Protocol):
    """Some pictures that are read together. Picklable.

    Attributes:
        first: Number of the first one, in the release or in the benchmark.
        num: How many there are.
    """

    @property
    def first(self) -> int: ...
    @property
    def num(self) -> int: ...
    def each(self) -> Iterator[NDArray[np.uint8]]:
        """Read them in order, uint8 (height, width)."""
        ...

    def picture(self, place: int) -> NDArray[np.uint8]:
        """Read one of them; `place` counts from 0 in this piece."""
        ...


@dataclass(frozen=True)
class ShardPatches:
    """The patches of one shard of a release.

    Attributes:
        key: Key of the shard in the store.
        sha256: Digest of the shard.
        first: Number of its first row in the release.
        num: Number of its rows.
        columns: Names of the two columns that hold a patch's dataset (or label) and its name.
    """

    store: Store
    key: str
    sha256: str
    first: int
    num: int
    columns: tuple[str, str]

    def each(self) -> Iterator[NDArray[np.uint8]]:
        with self.store.open(self.key) as handle:
            for batch in parquet_file(handle).iter_batches(IMAGE_ROW_GROUP, columns=["image"]):
                for cell in batch.column("image").to_pylist():
                    yield decode_image(cell["bytes"])

    def picture(self, place: int) -> NDArray[np.uint8]:
        row = self.row(place)
        return decode_image(row["image"]["bytes"])

    def row(self, place: int) -> dict[str, Any]:
        """Read one row with all its columns."""
        starts = _group_starts(self.store, self.key)
        group = bisect_right(starts, place) - 1
        return _rows_of_group(self.store, self.key, group)[place - starts[group]]

    def facts(self, place: int) -> dict[str, Any]:
        """Return the dataset (or label), name and dHash of a row."""
        row = self.row(place)
        return {"dataset": row[self.columns[0]], "name": row[self.columns[1]], "dhash": row["dhash"]}


@lru_cache(maxsize=1024)
def _group_starts(store: Store, key: str) -> tuple[int, ...]:
    with store.open(key) as handle:
        footer = parquet_file(handle).metadata
        sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    return tuple(np.cumsum([0, *sizes[:-1]]).tolist())


@lru_cache(maxsize=16)
def _rows_of_group(store: Store, key: str, group: int) -> list[dict[str, Any]]:
    with store.open(key) as handle:
        rows: list[dict[str, Any]] = parquet_file(handle).read_row_group(group).to_pylist()
    return rows


def release_patches(store: Store, dataset: str, release: Manifest) -> list[ShardPatches]:
    """List the shards of a release of "cem" or "cytoimagenet".

    Raises:
        FileNotFoundError: A shard is missing.
    """
    listing = json.loads(store.read(f"{release.folder}/{LISTING}"))
    parts = listing["labels" if dataset == "cytoimagenet" else "datasets"]
    found: list[ShardPatches] = []
    first = 0
    for part in parts:
        for item in part["objects"]:
            key = f"{part['folder']}/{item['name']}"
            with store.open(key) as handle:
                num = int(parquet_file(handle).metadata.num_rows)
            found.append(ShardPatches(store, key, item["sha256"], first, num, _NAME_COLUMNS[dataset]))
            first += num
    return found


@dataclass(frozen=True)
class Planes:
    """A 2D test image, or neighbouring planes of a test volume.

    Attributes:
        axis: Axis of (z, y, x) the planes are cut along; -1 for a 2D image.
        start: Index of the first plane along the axis.
        num: Number of planes.
        first: Number of the first plane among the benchmark's test images.
    """

    item: PreparedItem
    axis: int
    start: int
    num: int
    first: int

    def each(self) -> Iterator[NDArray[np.uint8]]:
        if self.axis < 0:
            yield np.asarray(self.item.image[...])
            return
        slab = np.moveaxis(self._cut(self.start, self.num), self.axis, 0)
        for plane in slab:
            yield np.ascontiguousarray(plane)

    def _cut(self, start: int, num: int) -> NDArray[np.uint8]:
        box = [slice(None)] * 3
        box[self.axis] = slice(start, start + num)
        return np.asarray(self.item.image[tuple(box)])

    def picture(self, place: int) -> NDArray[np.uint8]:
        if self.axis < 0:
            return np.asarray(self.item.image[...])
        return np.ascontiguousarray(np.take(self._cut(self.start + place, 1), 0, self.axis))

    def facts(self, place: int) -> dict[str, str]:
        """Return the part, the item and the plane of a picture."""
        plane = f"{_PLANE_NAMES[self.axis]} {self.start + place}" if self.axis >= 0 else ""
        return {"part": self.item.part, "item": self.item.name, "plane": plane}

    @property
    def num_px(self) -> int:
        """Pixels of all planes."""
        return self.num * int(np.prod([side for axis, side in enumerate(self.item.shape) if axis != self.axis]))


@dataclass(frozen=True)
class MergedImages:
    """Test images of a transfer benchmark: rows of one row group, with their channels merged as in CytoImageNet's crops.

    Attributes:
        key: Key of the Parquet file.
        group: Number of the row group.
        rows: Which rows of the group are test images.
        names: Names of these rows.
        channels: Names of the images' channels.
        first: Number of the first one among the benchmark's test images.
        num_px: Bytes of the row group before compression, which is about its number of pixels.
    """

    store: Store
    key: str
    group: int
    rows: tuple[int, ...]
    names: tuple[str, ...]
    channels: tuple[str, ...]
    first: int
    num_px: int

    @property
    def num(self) -> int:
        return len(self.rows)

    def each(self) -> Iterator[NDArray[np.uint8]]:
        for place in range(self.num):
            yield self.picture(place)

    def picture(self, place: int) -> NDArray[np.uint8]:
        cells = _channel_cells(self.store, self.key, self.group, self.channels)
        return merge_channels([decode_plane(column[self.rows[place]]["bytes"]) for column in cells])

    def facts(self, place: int) -> dict[str, str]:
        """Return the part, the item and the plane of a picture."""
        return {"part": "", "item": self.names[place], "plane": ""}


@lru_cache(maxsize=2)
def _channel_cells(store: Store, key: str, group: int, channels: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    names = [f"image_{channel}" for channel in channels]
    with store.open(key) as handle:
        table = parquet_file(handle).read_row_group(group, columns=names)
    return [table[name].to_pylist() for name in names]


TestPictures = Planes | MergedImages


def list_test_pictures(store: Store, manifest: Manifest, axes: Axes) -> list[TestPictures]:
    """List the test images of a prepared benchmark.

    A segmentation benchmark has those of the split "test", volumes plane by plane. A transfer benchmark has all images outside
    of the splits "train" and "valid". A benchmark that holds features has none.

    Args:
        manifest: Of a partition of `benchmarks/data`.
    """
    name = manifest.inputs.partition
    if manifest.details["task"] == "transfer":
        return _transfer_pictures(store, manifest)
    found: list[TestPictures] = []
    first = 0
    for item in open_benchmark(store, name, manifest).items("test"):
        if not item.is_volume:
            found.append(Planes(item, -1, 0, 1, first))
            first += 1
            continue
        for axis in axes[item.part]:
            for start in range(0, item.shape[axis], _PLANES_TOGETHER):
                num = min(_PLANES_TOGETHER, item.shape[axis] - start)
                found.append(Planes(item, axis, start, num, first))
                first += num
    return found


def _transfer_pictures(store: Store, manifest: Manifest) -> list[TestPictures]:
    channels = open_transfer(store, manifest.inputs.partition, manifest).channels
    found: list[TestPictures] = []
    if not channels:
        return found
    first = 0
    for item in manifest.find(".parquet"):
        key = f"{manifest.folder}/{item.name}"
        with store.open(key) as handle:
            file = parquet_file(handle)
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=["name", "split"]).to_pylist()
                rows = tuple(number for number, row in enumerate(table) if row["split"] not in _UNTESTED)
                if rows:
                    names = tuple(table[number]["name"] for number in rows)
                    size = file.metadata.row_group(group).total_byte_size
                    found.append(MergedImages(store, key, group, rows, names, channels, first, size))
                    first += len(rows)
    return found


@dataclass(frozen=True)
class PictureBatch:
    """Pictures whose fingerprints make one table.

    Attributes:
        name: Name of the table in the report's content folder; it follows from the pictures and from how they are cut.
    """

    name: str
    pieces: tuple[ShardPatches, ...] | tuple[TestPictures, ...]


def release_batches(shards: Sequence[ShardPatches]) -> list[PictureBatch]:
    """Make a batch of each shard that holds patches; a shard that several releases share has the same table in each report."""
    return [PictureBatch(f"_release/{shard.sha256}.parquet", (shard,)) for shard in shards if shard.num]


def benchmark_batches(manifest: Manifest, axes: Axes, pictures: Sequence[TestPictures]) -> list[PictureBatch]:
    """Gather the test images of a benchmark into batches of about 2^27 px."""
    key = hashlib.sha256(canonical_json({"digest": manifest.digest, "axes": axes})).hexdigest()[:16]
    batches: list[PictureBatch] = []
    held: list[TestPictures] = []
    num_px = 0
    for place, piece in enumerate(pictures, 1):
        held.append(piece)
        num_px += piece.num_px
        if num_px >= _BATCH_PX or place == len(pictures):
            name = f"_test/{manifest.inputs.partition}-{key}/part-{len(batches):05d}.parquet"
            batches.append(PictureBatch(name, tuple(held)))
            held, num_px = [], 0
    return batches


@dataclass(frozen=True)
class FingerprintJob:
    """Fingerprints a batch and writes its table; may run in any process."""

    content: ContentFolder

    def __call__(self, batch: PictureBatch) -> ManifestObject:
        found = [
            # The rows of a shard are numbered from 0, because the shard starts at another row in another release.
            release_fingerprints(piece.each())
            if isinstance(piece, ShardPatches)
            else test_image_fingerprints(piece.each(), piece.first)
            for piece in batch.pieces
        ]
        return self.content.write(batch.name, fingerprint_bytes(joined(found)))


class PictureIndex:
    """Finds a picture by its number. Calling it reads the picture, as `contamination.comparison.Reader` does.

    Args:
        pieces: In order of `first`; pieces without pictures are left out.
    """

    def __init__(self, pieces: Sequence[Pictures]) -> None:
        self._pieces = [piece for piece in pieces if piece.num]
        self._firsts = [piece.first for piece in self._pieces]

    def locate(self, number: int) -> tuple[Any, int]:
        """Return the piece that holds a picture, and the picture's place in it."""
        piece = self._pieces[bisect_right(self._firsts, number) - 1]
        return piece, number - piece.first

    def __call__(self, number: int) -> NDArray[np.uint8]:
        piece, place = self.locate(number)
        picture: NDArray[np.uint8] = piece.picture(place)
        return picture
