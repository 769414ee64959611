"""Standardized volumes: uint8 OME-Zarr 0.5 with one shard for each brick, which opens in napari and neuroglancer.

Empty chunks are written too, so a chunk that is absent is an error and never stands for zeros. Voxels that the source itself
never had get the value 128, and a `missing` array beside the voxels marks them. Volumes are written by
`cem_assets.cem.volumes.standardize`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from cem_assets.cem.volumes.bricks import CHUNK_SHAPE, FLAT_CHUNK_SHAPE, XY_ONLY, brick_shape
from cem_assets.cem.volumes.zarr_shards import ZSTD_LEVEL, decode_shard, encode_shard
from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box
from cem_assets.imaging.intensity import IntensityMapping
from cem_assets.store.store import Store

MISSING_VALUE = 128
"""Mid gray, for voxels that the source does not have: nobody mistakes it for data."""
_COMPRESSORS = (ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec())
"""The codecs that the metadata of our shards names. The checksum turns silent damage into an error."""
_SAFE_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", re.ASCII)


@dataclass(frozen=True)
class VolumeRecord:
    """The facts about a standardized volume, which are stored in its Zarr attributes and in the manifest.

    Attributes:
        name: Name of the volume, with which the names of its patches begin.
        folder: The volume's folder inside the partition's content.
        shape: (z, y, x) in voxels.
        voxel_size_nm: (z, y, x) in nm, as the curator declares it.
        planes: The axes that it is cut along.
        intensity: The mapping from source values to uint8.
        files: Source files, relative to the dataset's folder in the inbox.
        num_missing: Number of voxels that the source does not have.
        histogram: Counts of the values 0..255 over all voxels that the source has.
        header_voxel_size_nm: (z, y, x) in nm from the file's header, or None. It is recorded, but not used.
        notes: What was recognised in the source, or done to it.
    """

    name: str
    folder: str
    shape: tuple[int, int, int]
    voxel_size_nm: tuple[float, float, float]
    planes: tuple[int, ...]
    intensity: IntensityMapping
    files: tuple[str, ...]
    num_missing: int
    histogram: tuple[int, ...]
    header_voxel_size_nm: tuple[float, float, float] | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with lists instead of tuples."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "VolumeRecord":
        """Read what `to_json` wrote."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        values["intensity"] = IntensityMapping(**data["intensity"])
        return cls(**values)


def volume_folder(name: str) -> str:
    """Name the folder of a volume: after the volume itself if its name is safe, otherwise by a slug with 8 hex digits."""
    if _SAFE_FOLDER.fullmatch(name) and ".." not in name:
        return f"{name}.ome.zarr"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", name, flags=re.ASCII).replace("..", "_").strip("._-")[:60] or "volume"
    return f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.ome.zarr"


def chunk_shape(planes: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the size of a chunk (z, y, x), the part of a brick that can be fetched alone."""
    return FLAT_CHUNK_SHAPE if tuple(planes) == XY_ONLY else CHUNK_SHAPE


def _array_metadata(shape: tuple[int, int, int], planes: tuple[int, ...]) -> bytes:
    """Make the `zarr.json` of the voxel array, which is also that of the mask array."""
    objects: dict[str, Buffer] = {}
    zarr.create_array(
        MemoryStore(objects),
        shape=shape,
        chunks=chunk_shape(planes),
        shards=brick_shape(shape, planes),
        dtype="uint8",
        fill_value=0,
        dimension_names=("z", "y", "x"),
        config={"write_empty_chunks": True},
        compressors=_COMPRESSORS,
    )
    return objects["zarr.json"].to_bytes()


def metadata_objects(record: VolumeRecord) -> dict[str, bytes]:
    """Make the metadata of a volume: the OME-Zarr group, the voxel array, and the mask array if any voxels are missing.

    Returns:
        Bytes of the objects, by their names inside the volume's folder.
    """
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    scale = {"type": "scale", "scale": list(record.voxel_size_nm)}
    multiscale = {
        "name": record.name,
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {"version": "0.5", "multiscales": [multiscale]},
            "cem_assets": record.to_json(),
        },
    }
    objects = {"zarr.json": json.dumps(group, indent=1, ensure_ascii=False).encode()}
    for name in ("0", "missing") if record.num_missing else ("0",):
        objects[f"{name}/zarr.json"] = _array_metadata(record.shape, record.planes)
    return objects


def brick_name(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, array: str = "0") -> str:
    """Name the object that holds a brick, inside the volume's folder."""
    cells = [span.start // step for span, step in zip(box, brick_shape(shape, planes), strict=True)]
    return f"{array}/c/{cells[0]}/{cells[1]}/{cells[2]}"


def encode_brick(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, voxels: NDArray[np.uint8]) -> bytes:
    """Encode one brick as a shard of the Zarr array.

    Args:
        shape: Size of the whole volume (z, y, x).
        planes: The axes that it is cut along.
        box: One of `cem.volumes.bricks.brick_boxes`.
        voxels: uint8 (z, y, x) of that box.
    """
    return encode_shard(voxels, chunk_shape(planes), brick_shape(shape, planes))


def decode_brick(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, data: bytes) -> NDArray[np.uint8]:
    """Decode the shard of one brick.

    Args:
        shape: Size of the whole volume (z, y, x).
        planes: The axes that it is cut along.
        box: One of `cem.volumes.bricks.brick_boxes`.
        data: Bytes of the shard.

    Returns:
        uint8 (z, y, x).

    Raises:
        DataError: The bytes are damaged; every chunk has a checksum.
    """
    z, y, x = (span.stop - span.start for span in box)
    try:
        return decode_shard(data, chunk_shape(planes), brick_shape(shape, planes), (z, y, x))
    except DataError as error:
        raise DataError(f"the brick at {_corner(box)} is damaged: {error}") from error


def _corner(box: Box) -> str:
    return f"(z, y, x) = ({box[0].start}, {box[1].start}, {box[2].start})"


@dataclass(frozen=True)
class StoredVolume:
    """A standardized volume in the store, a `Readable` of `cem_assets.cem.volumes.bricks`. It can be pickled.

    Attributes:
        content: The content folder of its partition.
    """

    store: Store
    content: str
    record: VolumeRecord

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.record.shape

    @property
    def planes(self) -> tuple[int, ...]:
        return self.record.planes

    @property
    def folder(self) -> str:
        """The Zarr group's key in the store."""
        return f"{self.content}/{self.record.folder}"

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Read one brick.

        Args:
            box: One of `cem.volumes.bricks.brick_boxes`.

        Returns:
            uint8 (z, y, x).

        Raises:
            FileNotFoundError: The brick is absent. All bricks of a standardized volume are written, so the store lost it.
            DataError: The brick is damaged.
        """
        key = f"{self.folder}/{brick_name(self.shape, self.planes, box)}"
        try:
            data = self.store.read(key)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"volume {self.name!r} lacks its brick at {_corner(box)} ({key}). The store lost it. Materialize cem/volumes "
                "again to repair the partition."
            ) from error
        try:
            return decode_brick(self.shape, self.planes, box, data)
        except DataError as error:
            raise DataError(
                f"volume {self.name!r}: {error} ({key}). Materialize cem/volumes again to repair the partition."
            ) from error

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        """Return which voxels of a brick the source never had, bool (z, y, x), or None if it had all of them."""
        if not self.record.num_missing:
            return None
        key = f"{self.folder}/{brick_name(self.shape, self.planes, box, 'missing')}"
        if self.store.size(key) is None:  # a mask is only written for bricks that lack voxels
            return None
        return np.asarray(decode_brick(self.shape, self.planes, box, self.store.read(key)) != 0)


class _Strict(WrapperStore[Any]):
    """Raises an error for an absent chunk, for which zarr would return fill values."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and "/c/" in f"/{key}" and not key.startswith("missing/"):
            raise FileNotFoundError(
                f"chunk {key} is absent from a standardized volume, which has all of its chunks: the store lost it. "
                "Materialize cem/volumes again to repair the partition."
            )
        return found


@lru_cache(maxsize=16)
def open_volume_array(volume: StoredVolume) -> Any:
    """Open a volume's voxels as a read-only `zarr.Array` of uint8 (z, y, x). Reading an absent chunk raises an error."""
    if volume.store.is_local:
        inner: Any = LocalStore(volume.store.url_of(volume.folder), read_only=True)
    else:
        inner = FsspecStore.from_url(volume.store.url_of(volume.folder), read_only=True)
    return zarr.open_array(_Strict(inner), path="0", mode="r", zarr_format=3)
