"""Standardized volumes: uint8 OME-Zarr 0.5, one shard for each brick, opens in napari and neuroglancer.

Empty chunks are kept when writing, so a chunk that is absent here is an error, never zeros. Voxels that
the source itself never had carry the value 128 and are listed in a `missing` array beside the voxels.
Volumes are written by `cem_assets.cem.volumes.standardize`.
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
from zarr.abc.store import ByteRequest
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from cem_assets.cem.volumes.bricks import CHUNK_SHAPE, FLAT_CHUNK_SHAPE, XY_ONLY, brick_shape
from cem_assets.cem.volumes.zarr_shards import ZSTD_LEVEL, decode_shard, encode_shard
from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box
from cem_assets.imaging.intensity import IntensityMapping
from cem_assets.store.store import Store

MISSING_VALUE = 128
"""Mid gray: a value that is not taken for data, where the source has none."""
_COMPRESSORS = (ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec())
"""What the metadata says of our shards; the checksum turns silent damage into an error."""
_SAFE_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", re.ASCII)


@dataclass(frozen=True)
class VolumeRecord:
    """What is known of a standardized volume; it lies in its Zarr attributes and in the manifest.

    Attributes:
        name: Name of the volume; first part of its patches' names.
        folder: Its folder inside the partition's content.
        shape: (z, y, x) in voxels.
        voxel_size_nm: (z, y, x) in nm, as the curator declares.
        planes: The axes it is cut along.
        intensity: The mapping from source values to uint8.
        files: Source files, relative to the dataset's folder in the inbox.
        num_missing: Voxels that the source does not have.
        histogram: Counts of the values 0..255 over all voxels that are there.
        header_voxel_size_nm: (z, y, x) as the file's header has it, or None; recorded, not used.
        notes: What was recognised or done on the way.
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
        """Return JSON values, lists instead of tuples."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "VolumeRecord":
        """Read what `to_json` wrote."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        values["intensity"] = IntensityMapping(**data["intensity"])
        return cls(**values)


def volume_folder(name: str) -> str:
    """Name the folder of a volume: its own name where that is safe, else a slug with 8 hex digits."""
    if _SAFE_FOLDER.fullmatch(name) and ".." not in name:
        return f"{name}.ome.zarr"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", name, flags=re.ASCII).replace("..", "_").strip("._-")[:60] or "volume"
    return f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.ome.zarr"


def chunk_shape(planes: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the size of a chunk (z, y, x): a part of a brick, small enough to fetch alone."""
    return FLAT_CHUNK_SHAPE if tuple(planes) == XY_ONLY else CHUNK_SHAPE


def _array_in_memory(shape: tuple[int, int, int], planes: tuple[int, ...], path: str = "") -> tuple[Any, Any]:
    memory = MemoryStore()
    array = zarr.create_array(
        memory,
        name=path or None,
        shape=shape,
        chunks=chunk_shape(planes),
        shards=brick_shape(shape, planes),
        dtype="uint8",
        fill_value=0,
        dimension_names=("z", "y", "x"),
        config={"write_empty_chunks": True},
        compressors=_COMPRESSORS,
    )
    return array, memory


def _objects(memory: Any) -> dict[str, bytes]:
    return {key: value.to_bytes() for key, value in memory._store_dict.items()}


def metadata_objects(record: VolumeRecord) -> dict[str, bytes]:
    """Make the metadata of a volume: OME-Zarr group, voxel array, and the mask array where one is needed.

    Args:
        record: The finished record.

    Returns:
        Objects by name inside the volume's folder.
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
    names = ["0", "missing"] if record.num_missing else ["0"]
    for name in names:
        _, memory = _array_in_memory(record.shape, record.planes)
        objects[f"{name}/zarr.json"] = _objects(memory)["zarr.json"]
    return objects


def brick_name(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, array: str = "0") -> str:
    """Name the object that holds a brick, inside the volume's folder."""
    cells = [span.start // step for span, step in zip(box, brick_shape(shape, planes), strict=True)]
    return f"{array}/c/{cells[0]}/{cells[1]}/{cells[2]}"


def encode_brick(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, voxels: NDArray[np.uint8]) -> bytes:
    """Encode one brick as the shard it is in the Zarr array.

    Args:
        shape: Size of the whole volume.
        planes: The axes it is cut along.
        box: One of `cem.volumes.bricks.brick_boxes`.
        voxels: uint8 (z, y, x) of that box.

    Returns:
        The bytes of the shard.
    """
    return encode_shard(voxels, chunk_shape(planes), brick_shape(shape, planes))


def decode_brick(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, data: bytes) -> NDArray[np.uint8]:
    """Decode the shard of one brick.

    Args:
        shape: Size of the whole volume.
        planes: The axes it is cut along.
        box: One of `cem.volumes.bricks.brick_boxes`.
        data: Bytes of the shard.

    Returns:
        uint8 (z, y, x).

    Raises:
        DataError: The bytes are damaged; every chunk carries a checksum.
    """
    z, y, x = (span.stop - span.start for span in box)
    try:
        return decode_shard(data, chunk_shape(planes), brick_shape(shape, planes), (z, y, x))
    except ValueError as error:
        raise DataError(f"the brick at {_corner(box)} is damaged: {error}") from error


def _corner(box: Box) -> str:
    return f"(z, y, x) = ({box[0].start}, {box[1].start}, {box[2].start})"


@dataclass(frozen=True)
class StoredVolume:
    """A standardized volume in the store; the `Readable` of `cem_assets.cem.volumes.bricks`. Picklable.

    Attributes:
        store: Where.
        content: The content folder of its partition.
        record: What is known of it.
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
            FileNotFoundError: The brick is absent; ours never are, so the store lost it.
            DataError: The brick is damaged.
        """
        key = f"{self.folder}/{brick_name(self.shape, self.planes, box)}"
        try:
            data = self.store.read(key)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"volume {self.name!r} lacks its brick at {_corner(box)} ({key}). The store lost it; materialize cem/volumes "
                "again to repair the partition."
            ) from error
        try:
            return decode_brick(self.shape, self.planes, box, data)
        except ValueError as error:
            raise DataError(
                f"volume {self.name!r}: {error} ({key}). Materialize cem/volumes again to repair the partition."
            ) from error

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        """Read which voxels of a brick the source never had; None where it had all."""
        if not self.record.num_missing:
            return None
        key = f"{self.folder}/{brick_name(self.shape, self.planes, box, 'missing')}"
        if self.store.size(key) is None:  # written only for bricks that lack something
            return None
        return np.asarray(decode_brick(self.shape, self.planes, box, self.store.read(key)) != 0)


class _Strict(WrapperStore[Any]):
    """Turns an absent chunk into an error; zarr would hand out fill values."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and "/c/" in f"/{key}" and not key.startswith("missing/"):
            raise FileNotFoundError(
                f"chunk {key} is absent from a standardized volume, which keeps all of its chunks; the store lost it. "
                "Materialize cem/volumes again to repair the partition."
            )
        return found


@lru_cache(maxsize=16)
def open_volume_array(volume: StoredVolume) -> Any:
    """Open a volume's voxels as a `zarr.Array` of uint8 (z, y, x), read-only, absent chunks being errors."""
    if volume.store.is_local:
        inner: Any = LocalStore(volume.store.url_of(volume.folder), read_only=True)
    else:
        inner = FsspecStore.from_url(volume.store.url_of(volume.folder), read_only=True)
    return zarr.open_array(_Strict(inner), path="0", mode="r", zarr_format=3)
