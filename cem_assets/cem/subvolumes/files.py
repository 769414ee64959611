"""Files of subvolumes: reading boxes out of standardized volumes, and storing them as OME-Zarr 0.5 or ImageJ TIFF.

`cem_assets.cem.subvolumes.places` decides which boxes are cut. Stored arrays have the patch's slicing axis first, so that
somebody who steps through their slices in a viewer sees the patch and its neighbours.
"""

import io
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from cem_assets.cem.subvolumes.places import Subvolume, SubvolumeForm
from cem_assets.cem.volumes.bricks import brick_shape
from cem_assets.cem.volumes.ome_zarr import StoredVolume, open_volume_array
from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box
from cem_assets.store.parquet import schema_of

_WHOLE_CHUNK_VOXELS = 1 << 21
"""A subvolume of up to this size is stored as one chunk, because it is read whole."""
_CHUNK_SIDE = 112
_LAST_OF_ZARR = "zarr.json"

SUBVOLUMES_SCHEMA = schema_of(
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("patch", pa.string()),
    ("volume", pa.string()),
    ("axis", pa.int8()),
    *((f"{side}{end}", pa.int32()) for side in "zyx" for end in (0, 1)),
    *((f"voxel_size_{side}_nm", pa.float64()) for side in "zyx"),
    ("file", pa.string()),
)
"""Columns of the index. The box is in voxels of the volume, with its ends (`z1`, `y1`, `x1`) not included; `file` is a path
inside the content folder."""
SKIPPED_SCHEMA = schema_of(("name", pa.string()), ("reason", pa.string()))


def stored_axes(axis: int) -> tuple[int, int, int]:
    """Return the axes of a stored array, each as a number in (z, y, x): the slicing axis, then rows, then columns."""
    rows, columns = (other for other in range(3) if other != axis)
    return axis, rows, columns


def lacks_voxels(volume: StoredVolume, box: Box) -> bool:
    """Tell whether the source lacks any voxel of a box. The masks of the bricks that the box touches are read."""
    if not volume.record.num_missing:
        return False
    steps = brick_shape(volume.shape, volume.planes)
    starts = [range(span.start // step * step, span.stop, step) for span, step in zip(box, steps, strict=True)]
    for corner in ((z, y, x) for z in starts[0] for y in starts[1] for x in starts[2]):
        brick = tuple(
            slice(start, min(start + step, size)) for start, step, size in zip(corner, steps, volume.shape, strict=True)
        )
        mask = volume.missing((brick[0], brick[1], brick[2]))
        inside = tuple(
            slice(max(span.start - start, 0), max(span.stop - start, 0)) for span, start in zip(box, corner, strict=True)
        )
        if mask is not None and mask[inside].any():
            return True
    return False


def read_box(volume: StoredVolume, subvolume: Subvolume) -> NDArray[np.uint8]:
    """Read the voxels of a subvolume. Only the chunks that its box touches are fetched.

    Returns:
        uint8 (slices, rows, columns).

    Raises:
        FileNotFoundError: The store lost a chunk.
        DataError: A chunk is damaged.
    """
    try:
        voxels = np.asarray(open_volume_array(volume)[subvolume.box])
    except (ValueError, RuntimeError, IndexError) as error:  # what zarr and its codecs raise for damaged shards
        raise DataError(
            f"volume {volume.name!r} is damaged at (z, y, x) = {subvolume.low}: {error}. Materialize cem/volumes again to "
            "repair the partition."
        ) from error
    return np.ascontiguousarray(voxels.transpose(stored_axes(subvolume.axis)))


def file_names(stem: str, form: SubvolumeForm) -> tuple[str, tuple[str, ...]]:
    """Name the file or folder of a subvolume.

    Args:
        stem: A safe file name without a suffix.

    Returns:
        The file or folder that a reader opens, and all its objects in the order in which they are written.
    """
    if form == "tiff":
        return f"{stem}.tiff", (f"{stem}.tiff",)
    folder = f"{stem}.ome.zarr"  # it has one shard, whatever its size
    return folder, tuple(f"{folder}/{name}" for name in ("0/c/0/0/0", "0/zarr.json", _LAST_OF_ZARR))


def encode_subvolume(
    voxels: NDArray[np.uint8], subvolume: Subvolume, voxel_size_nm: tuple[float, float, float], form: SubvolumeForm
) -> list[bytes]:
    """Encode a subvolume. Equal voxels give equal bytes.

    Args:
        voxels: uint8 (slices, rows, columns).
        voxel_size_nm: Voxel size (z, y, x) of the volume in nm.

    Returns:
        The bytes of the objects that `file_names` lists, in the same order.
    """
    order = stored_axes(subvolume.axis)
    scale = [float(voxel_size_nm[axis]) for axis in order]
    if form == "tiff":
        sink = io.BytesIO()
        tifffile.imwrite(
            sink,
            voxels,
            imagej=True,
            byteorder="<",
            photometric="minisblack",
            software=False,
            datetime=False,
            resolution=(1 / scale[2], 1 / scale[1]),
            metadata={"axes": "ZYX", "spacing": scale[0], "unit": "nm"},
        )
        return [sink.getvalue()]
    chunks = _chunks(voxels.shape)
    objects: dict[str, Buffer] = {}
    array = zarr.create_array(
        MemoryStore(objects),
        shape=voxels.shape,
        chunks=chunks,
        shards=tuple(-(-side // chunk) * chunk for side, chunk in zip(voxels.shape, chunks, strict=True)),
        dtype="uint8",
        fill_value=0,
        dimension_names=["zyx"[axis] for axis in order],
        config={"write_empty_chunks": True},
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
    )
    array[:] = voxels
    return [objects["c/0/0/0"].to_bytes(), objects["zarr.json"].to_bytes(), _ome_group(subvolume, order, scale)]


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    if np.prod(shape) <= _WHOLE_CHUNK_VOXELS:
        return tuple(shape)
    return tuple(min(side, _CHUNK_SIDE) for side in shape)


def _ome_group(subvolume: Subvolume, order: tuple[int, int, int], scale: list[float]) -> bytes:
    # With the translation, a viewer shows the subvolume at its place inside the volume.
    offset = [subvolume.low[axis] * size for axis, size in zip(order, scale, strict=True)]
    transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": offset}]
    multiscale = {
        "name": subvolume.name,
        "axes": [{"name": "zyx"[axis], "type": "space", "unit": "nanometer"} for axis in order],
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
    }
    about = {
        "patch": subvolume.patch,
        "volume": subvolume.volume,
        "axis": subvolume.axis,
        "low": list(subvolume.low),
        "high": list(subvolume.high),
    }
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}, "cem_assets": about}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(group, indent=1, ensure_ascii=False).encode()


def decode_subvolume(objects: Mapping[str, bytes], form: SubvolumeForm) -> NDArray[np.uint8]:
    """Decode what `encode_subvolume` made.

    Args:
        objects: Bytes by name, as `file_names` lists them. Whoever reads them compares them with the manifest.

    Returns:
        uint8 (slices, rows, columns).
    """
    if form == "tiff":
        (data,) = objects.values()
        return np.asarray(tifffile.imread(io.BytesIO(data)))
    to_buffer = default_buffer_prototype().buffer.from_bytes
    memory = MemoryStore({name.split("/0/", 1)[1]: to_buffer(data) for name, data in objects.items() if "/0/" in name})
    return np.asarray(zarr.open_array(memory, mode="r", zarr_format=3)[:])
