"""Prepared segmentation benchmarks in the store: images and masks, read lazily.

`benchmarks/data/<name>/` holds `index.json`, Parquet files with 2D items (columns `image` and `mask`, as HF datasets reads
them), and volumes as pairs of uint8 OME-Zarr like those of `cem/volumes`, of which any box can be read.
`cem_assets.benchmarks.data.transfer_sets` describes prepared transfer benchmarks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.benchmarks.data.steps import Item
from cem_assets.cem.volumes.bricks import brick_boxes
from cem_assets.cem.volumes.ome_zarr import (
    StoredVolume,
    VolumeRecord,
    brick_name,
    encode_brick,
    metadata_objects,
    open_volume_array,
)
from cem_assets.errors import DataError
from cem_assets.imaging.intensity import IntensityMapping
from cem_assets.store.assets import BENCHMARK_DATA
from cem_assets.store.commits import Commit
from cem_assets.store.images import decode_image, encode_tiff
from cem_assets.store.manifests import Manifest, require_manifest
from cem_assets.store.parquet import IMAGE, SHARD_BYTES, parquet_bytes, part_name, schema_of
from cem_assets.store.store import Store

INDEX = "index.json"
SPLITS = ("train", "valid", "test")
SCHEMA = schema_of(
    ("name", pa.string()),
    ("split", pa.string()),
    ("part", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("image", IMAGE),
    ("mask", IMAGE),
)
_GROUP_BYTES = 4 << 20
_GROUP_ROWS = 64
"""Row groups are small, because reading one image in random order reads one of them."""
_PLANES = (0, 1, 2)
_SLAB = 16
_UNIT_NM = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class StoredPlane:
    """One 2D image or mask: an array that is read when it is indexed. Picklable.

    Attributes:
        key: Key of its Parquet file.
        group: Number of the row group.
        row: Row in the group.
        column: "image" or "mask".
        shape: (height, width).
    """

    store: Store
    key: str
    group: int
    row: int
    column: str
    shape: tuple[int, int]

    ndim = 2
    dtype = np.dtype(np.uint8)

    def __getitem__(self, box: Any) -> NDArray[np.uint8]:
        cells = _row_group(self.store, self.key, self.group)[self.column]
        found: NDArray[np.uint8] = decode_image(cells[self.row]["bytes"])[box]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy  # the decoded array is always a new one
        return np.asarray(self[...], dtype)


@lru_cache(maxsize=8)
def _row_group(store: Store, key: str, group: int) -> dict[str, list[dict[str, Any]]]:
    with store.open(key) as handle:
        table = pq.ParquetFile(handle).read_row_group(group, columns=["image", "mask"])
    return {name: table[name].to_pylist() for name in ("image", "mask")}


@dataclass(frozen=True)
class PreparedItem:
    """One image or volume of a prepared benchmark. Picklable.

    Attributes:
        name: Unique in its split and part.
        split: "train", "valid" or "test".
        part: In a union, the benchmark that the item came from; otherwise empty.
        shape: (height, width) or (depth, height, width).
        label_counts: Number of pixels of each class.
        folder: Content folder of the partition.
        place: For an image the name of its Parquet file, the row group, and the row in the group. For a volume the path with
            which its two Zarr folders begin, and two zeros.
    """

    name: str
    split: str
    part: str
    shape: tuple[int, ...]
    label_counts: tuple[int, ...]
    store: Store
    folder: str
    place: tuple[str, int, int]

    @property
    def is_volume(self) -> bool:
        return len(self.shape) == 3

    @property
    def image(self) -> Any:
        """The image as a lazily read array of uint8: `shape`, `ndim`, `dtype`, `[box]`, and `numpy.asarray`."""
        return self._array("image")

    @property
    def mask(self) -> Any:
        """The class numbers as an array like `image`."""
        return self._array("mask")

    def _array(self, what: str) -> Any:
        key, group, row = self.place
        if self.is_volume:
            record = _record(self.name, f"{key}_{what}.ome.zarr", (self.shape[0], self.shape[1], self.shape[2]))
            return open_volume_array(StoredVolume(self.store, self.folder, record))
        return StoredPlane(self.store, f"{self.folder}/{key}", group, row, what, (self.shape[0], self.shape[1]))


@dataclass(frozen=True)
class PreparedBenchmark:
    """A prepared segmentation benchmark.

    Attributes:
        classes: Names of the mask values 0, 1, ...
        manifest: Of the partition; scores record `manifest.digest` as their input.
        all_items: All items, in order of split (train, valid, test), part and name.
    """

    name: str
    classes: tuple[str, ...]
    manifest: Manifest
    all_items: tuple[PreparedItem, ...]

    def items(self, split: str, part: str | None = None) -> list[PreparedItem]:
        """List the items of a split, or of one part of it, in order."""
        if split not in SPLITS:
            raise DataError(f"split {split!r} is not known; expected one of {', '.join(SPLITS)}.")
        return [item for item in self.all_items if item.split == split and part in (None, item.part)]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the benchmarks that a union was made of, sorted; ("",) for any other benchmark."""
        return tuple(sorted({item.part for item in self.all_items}))


def open_benchmark(store: Store, name: str, manifest: Manifest | None = None) -> PreparedBenchmark:
    """Open a prepared segmentation benchmark.

    Args:
        manifest: Manifest of `benchmarks/data` to open; None takes the current one.

    Raises:
        FileNotFoundError: The benchmark was not prepared.
        DataError: It is a transfer benchmark.
    """
    manifest = manifest or require_manifest(store, BENCHMARK_DATA, name)
    index = json.loads(store.read(f"{manifest.folder}/{INDEX}"))
    if index["task"] != "segmentation":
        raise DataError(f"benchmark {name!r} is for {index['task']}; open it with transfer_sets.open_transfer.")
    items = tuple(
        PreparedItem(
            name=row["name"],
            split=row["split"],
            part=row["part"],
            shape=tuple(row["shape"]),
            label_counts=tuple(row["label_counts"]),
            store=store,
            folder=manifest.folder,
            place=(row["place"][0], row["place"][1], row["place"][2]),
        )
        for row in index["items"]
    )
    return PreparedBenchmark(name, tuple(index["classes"]), manifest, items)


def _record(name: str, folder: str, shape: tuple[int, int, int]) -> VolumeRecord:
    return VolumeRecord(
        name=name,
        folder=folder,
        shape=shape,
        voxel_size_nm=_UNIT_NM,
        planes=_PLANES,
        intensity=IntensityMapping("identity", "uint8", 0.0, 255.0),
        files=(),
        num_missing=0,
        histogram=(),
        header_voxel_size_nm=None,
        notes=("the voxel size is not known",),
    )


class ItemWriter:
    """Writes prepared items into a commit, one after the other; call `finish` once at the end.

    Items of one split and part must follow each other. The bytes depend only on the items and their order.

    Args:
        num_classes: Values of masks are 0 to num_classes - 1.
    """

    def __init__(self, commit: Commit, num_classes: int) -> None:
        self._commit = commit
        self._num_classes = num_classes
        self._rows: list[dict[str, Any]] = []
        self._names: set[tuple[str, str, str]] = set()
        self._group: list[Item] = []
        self._group_bytes = 0
        self._groups: list[pa.Table] = []
        self._part_bytes = 0
        self._num_parts = 0

    def check(self, item: Item) -> None:
        """Raise a DataError if there is an item of that name in its split and part already."""
        if (item.split, item.part, item.name) in self._names:
            raise DataError(f"{item.name}: {item.split} has an item of that name already; expected each once. Rename one.")

    def add(self, item: Item) -> None:
        """Write one finished item, after `check`."""
        self.check(item)
        self._names.add((item.split, item.part, item.name))
        if item.image.ndim == 3:
            self._add_volume(item)
            return
        self._rows.append(self._described(item, (part_name(self._num_parts), len(self._groups), len(self._group))))
        self._group.append(item)
        self._group_bytes += 2 * item.image.size
        if self._group_bytes >= _GROUP_BYTES or len(self._group) == _GROUP_ROWS:
            self._end_group()
            if self._part_bytes >= SHARD_BYTES:
                self._end_part()

    def _described(self, item: Item, place: tuple[str, int, int]) -> dict[str, Any]:
        counts = np.zeros(self._num_classes, np.int64)
        flat = item.mask.reshape(item.mask.shape[0], -1)
        for start in range(0, len(flat), _SLAB):  # in slabs, because bincount makes a copy of 8 bytes per pixel
            counts += np.bincount(flat[start : start + _SLAB].ravel(), minlength=self._num_classes)
        facts = {"name": item.name, "split": item.split, "part": item.part, "shape": list(item.image.shape)}
        return {**facts, "label_counts": counts.tolist(), "place": list(place)}

    def _add_volume(self, item: Item) -> None:
        depth, height, width = item.image.shape
        stem = f"volumes/{len(self._rows):05d}"
        for what, voxels in (("image", item.image), ("mask", item.mask)):
            record = _record(item.name, f"{stem}_{what}.ome.zarr", (depth, height, width))
            for name, data in metadata_objects(record).items():
                self._commit.write(f"{record.folder}/{name}", data)
            for box in brick_boxes(record.shape, _PLANES):
                data = encode_brick(record.shape, _PLANES, box, voxels[box])
                self._commit.write(f"{record.folder}/{brick_name(record.shape, _PLANES, box)}", data)
        self._rows.append(self._described(item, (stem, 0, 0)))

    def _end_group(self) -> None:
        if not self._group:
            return
        rows = [
            {
                "name": item.name,
                "split": item.split,
                "part": item.part,
                "height": item.image.shape[0],
                "width": item.image.shape[1],
                "image": {"bytes": encode_tiff(item.image), "path": f"{item.name}.tiff"},
                "mask": {"bytes": encode_tiff(item.mask), "path": f"{item.name}.tiff"},
            }
            for item in self._group
        ]
        self._groups.append(pa.Table.from_pylist(rows, schema=SCHEMA))
        self._part_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0

    def _end_part(self) -> None:
        if not self._groups:
            return
        data = parquet_bytes(self._groups, SCHEMA, row_group=0, dictionary=("split", "part"))
        self._commit.write(part_name(self._num_parts), data)
        self._num_parts += 1
        self._groups, self._part_bytes = [], 0

    def finish(self, name: str, classes: tuple[str, ...]) -> dict[str, int]:
        """Write the remaining items and the index.

        Args:
            name: Name of the benchmark.
            classes: Names of the mask values.

        Returns:
            Counts for the manifest: items of each split, volumes, pixels.
        """
        self._end_group()
        self._end_part()
        order = {split: number for number, split in enumerate(SPLITS)}
        self._rows.sort(key=lambda row: (order[row["split"]], row["part"], row["name"]))
        index = {"benchmark": name, "task": "segmentation", "classes": list(classes), "items": self._rows}
        self._commit.write(INDEX, json.dumps(index, indent=1, ensure_ascii=False).encode())
        counts = {split: sum(row["split"] == split for row in self._rows) for split in SPLITS}
        pixels = sum(sum(row["label_counts"]) for row in self._rows)
        return {**counts, "volumes": sum(len(row["shape"]) == 3 for row in self._rows), "pixels": pixels}


def prepared_items(benchmark: PreparedBenchmark, split: str) -> Iterator[Item]:
    """Read the items of a split into memory, one after the other, in the form that steps take."""
    for item in benchmark.items(split):
        yield Item(item.name, item.split, np.asarray(item.image[...]), (np.asarray(item.mask[...]),), item.part)
