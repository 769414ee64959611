"""What the layouts of remote volumes share: one scale, its chunks and their data type."""

import json
import math
from dataclasses import dataclass
from typing import Any

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects, check_object_key

Triple = tuple[float, float, float]


KINDS = ("zarr2", "zarr3", "ome-zarr", "n5", "precomputed", "auto")


DTYPES = ("uint8", "int8", "uint16", "int16")


MAX_METADATA_BYTES = 16 << 20


MAX_CHUNK_BYTES = 256 << 20


MAX_SCALES = 32


_MAX_SIDE = 1 << 26


NM_PER_UNIT = {
    "nanometer": 1.0, "nm": 1.0, "micrometer": 1e3, "um": 1e3, "µm": 1e3, "micron": 1e3, "millimeter": 1e6, "mm": 1e6,
    "angstrom": 0.1, "meter": 1e9, "m": 1e9,
}  # fmt: skip


@dataclass(frozen=True)
class ScaleLayout:
    """One scale of a volume, as stored.

    Attributes:
        kind: "zarr2", "zarr3", "n5" or "precomputed".
        path: Its folder below the volume's address, or empty.
        stored_shape, chunk_shape: In stored order of axes; the chunk is the smallest that can be decoded alone.
        origin: First coordinate along each stored axis.
        axes: For z, y, x in turn the stored axis. All other axes are read at index 0.
        dtype: Native numpy name.
        factor: Voxels of the finest scale along one voxel of this one, (z, y, x).
        voxel_size_nm: (z, y, x), where the metadata say it.
        decoding: Metadata of an unsharded array with the same chunks, for tensorstore.
        compressor: As `bounded_inflation.check_inflation` takes it; "image" for JPEG and PNG.
        separator, prefix: How chunk names are joined, and what stands before them.
        sharding: Metadata of shards, or None.
    """

    kind: str
    path: str
    stored_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    origin: tuple[int, ...]
    axes: tuple[int, int, int]
    dtype: str
    factor: Triple
    voxel_size_nm: Triple | None
    decoding: dict[str, Any]
    compressor: str
    separator: str = "/"
    prefix: str = ""
    sharding: dict[str, Any] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = (self.stored_shape[axis] for axis in self.axes)
        return (z, y, x)

    def object_key(self, name: str) -> str:
        return check_object_key(f"{self.path}/{name}" if self.path else name)


def read_json(objects: RemoteObjects, key: str) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none (or where access to it alone is refused).

    Raises:
        DataError: It is no JSON object, or too large.
    """
    fetched = objects.get(key, MAX_METADATA_BYTES)
    if fetched.status != "present":
        return None
    try:
        node = json.loads(fetched.data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{objects.address}/{key} is no JSON: {error}. Check the address.") from error
    if not isinstance(node, dict):
        raise DataError(f"{objects.address}/{key} holds {type(node).__name__}; expected a JSON object. Check the address.")
    return node


def whole_numbers(values: Any, what: str, low: int = 1, length: int | None = None) -> tuple[int, ...]:
    """Return a list of whole numbers of untrusted JSON as a tuple.

    Raises:
        DataError: It is no list, too long, or a number is out of range.
    """
    is_list = isinstance(values, list) and 1 <= len(values) <= 8 and (length is None or len(values) == length)
    if not is_list or not all(type(v) is int and low <= v <= _MAX_SIDE for v in values):
        raise DataError(f"{what} is {str(values)[:100]}; expected {length or '1 to 8'} whole numbers of {low} to {_MAX_SIDE}.")
    return tuple(values)


def checked_layout(layout: ScaleLayout, where: str) -> ScaleLayout:
    """Return a layout, or refuse types and chunks that cannot be read in bounded memory.

    Raises:
        DataError: The type is not of 8 or 16 bits, or a chunk is too large or of other dimensions.
    """
    if layout.dtype not in DTYPES:
        raise DataError(f"{where} holds {layout.dtype[:40]!r}; expected one of {', '.join(DTYPES)}.")
    if len(layout.chunk_shape) != len(layout.stored_shape):
        raise DataError(f"{where} has chunks {layout.chunk_shape} of an array {layout.stored_shape}; expected as many axes.")
    num_bytes = math.prod(layout.chunk_shape) * int(layout.dtype.lstrip("uint")) // 8
    if num_bytes > MAX_CHUNK_BYTES:
        raise DataError(
            f"{where} has chunks of {layout.chunk_shape}, {num_bytes} bytes; expected at most {MAX_CHUNK_BYTES}. It cannot be "
            "sampled in bounded memory."
        )
    return layout


def positive_triple(values: list[Any]) -> Triple | None:
    """Return three sizes as floats, or None where one is no positive number."""
    if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in values):
        return None
    return (float(values[0]), float(values[1]), float(values[2]))


def shape_ratio(fine: tuple[int, int, int], coarse: tuple[int, int, int]) -> Triple:
    """Guess a scale's factor from sizes: the nearest whole number along each axis."""
    z, y, x = (max(1.0, float(round(a / b))) for a, b in zip(fine, coarse, strict=True))
    return (z, y, x)
