"""One scale of a remote volume: its layout, and the decoder of its chunks. All formats share this."""

import json
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects, check_object_key

Triple = tuple[float, float, float]

MAX_SCALES = 32
NM_PER_UNIT = {
    "nanometer": 1.0, "nm": 1.0, "micrometer": 1e3, "um": 1e3, "µm": 1e3, "micron": 1e3, "millimeter": 1e6, "mm": 1e6,
    "angstrom": 0.1, "meter": 1e9, "m": 1e9,
}  # fmt: skip

_DTYPES = ("uint8", "int8", "uint16", "int16")
_MAX_METADATA_BYTES = 16 << 20
_MAX_CHUNK_BYTES = 256 << 20
_MAX_SIDE = 1 << 26
_MAX_AXES = 8
_FORMATS = {
    "zarr2": ("zarr", ".zarray"),
    "zarr3": ("zarr3", "zarr.json"),
    "n5": ("n5", "attributes.json"),
    "precomputed": ("neuroglancer_precomputed", "info"),
}
"""For each kind the name of tensorstore's driver and of the metadata file that it reads."""


class ChunkDecoder:
    """Decodes single chunks of an array with tensorstore, from memory.

    tensorstore could fetch chunks itself, but its HTTP client (seen with 0.1.86) has no limit for the size of a body or of
    what a compressed body unpacks to, no byte budget, and follows no redirects; and the header of a blosc chunk must be
    checked between fetching and decoding. So `objects` fetches, and tensorstore reads the metadata and decodes.

    Attributes:
        kind: "zarr2", "zarr3", "n5" or "precomputed".
        shape, chunk_shape: Sizes along the stored axes; precomputed volumes have x, y, z and channel.
        origin: The first coordinate along each stored axis.
        dtype: The number type in native byte order.
    """

    def __init__(self, kind: str, metadata: dict[str, Any], what: str, separator: str = "/", prefix: str = "") -> None:
        """Check the metadata of an array by opening it.

        Args:
            kind: One of the kinds above.
            metadata: Those of an unsharded array. A sharded one may be given too, but only to check it.
            what: What is opened, for error texts.
            separator: What stands between the numbers in the name of a chunk.
            prefix: What stands before the numbers.

        Raises:
            DataError: tensorstore does not accept the metadata.
        """
        import tensorstore as ts  # takes long to import, and most runs read no remote volume

        driver, metadata_name = _FORMATS[kind]
        self.kind, self._separator, self._prefix = kind, separator, prefix
        self._folder = f"{metadata['scales'][0]['key']}/" if kind == "precomputed" else ""
        self._turns, self._names = threading.Condition(), set[str]()
        context = ts.Context()  # the memory belongs to this context alone
        memory = {"driver": "memory", "path": "v/"}
        self._memory = ts.KvStore.open(memory, context=context).result()
        self._memory.write(metadata_name, json.dumps(metadata).encode()).result()
        spec: dict[str, Any] = {"driver": driver, "kvstore": memory, "fill_missing_data_reads": False}
        try:
            self._array = ts.open(spec, context=context, open=True, read=True).result()
        except (ValueError, NotImplementedError) as error:
            raise DataError(f"{what}: its metadata cannot be used: {_without_spec(error)}. Check the source.") from error
        self.shape = tuple(int(size) for size in self._array.shape)
        chunk_shape = self._array.chunk_layout.read_chunk.shape or ()
        self.chunk_shape = tuple(int(size or 0) for size in chunk_shape)
        self.origin = tuple(int(start) for start in self._array.domain.inclusive_min)
        self.dtype = np.dtype(self._array.dtype.numpy_dtype)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a whole decoded chunk."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """Return the name of a chunk's object in the folder of its array.

        Args:
            index: The chunk's number along each stored axis, from 0.
        """
        if self.kind == "precomputed":  # names give the first and last coordinates along x, y and z
            sides = zip(index[:3], self.chunk_shape, self.shape, self.origin, strict=False)
            return "_".join(f"{o + i * side}-{o + min((i + 1) * side, size)}" for i, side, size, o in sides)
        return self._prefix + self._separator.join(map(str, index))

    def decode(self, index: tuple[int, ...], data: bytes, part: tuple[slice, ...]) -> NDArray[Any]:
        """Decode a chunk and return a part of it. Safe to use from several threads.

        Args:
            index: The chunk's number along each stored axis, from 0.
            data: The chunk as it is stored.
            part: What to return, in voxels from the begin of the array along the stored axes.

        Raises:
            ValueError: The chunk is damaged.
        """
        name = self._folder + self.chunk_name(index)
        with self._turns:  # two threads must not use the same name at the same time
            self._turns.wait_for(lambda: name not in self._names)
            self._names.add(name)
        try:
            self._memory.write(name, data).result()
            shifted = tuple(slice(s.start + o, s.stop + o) for s, o in zip(part, self.origin, strict=True))
            return np.asarray(self._array[shifted].read().result())
        finally:
            self._memory.write(name, None).result()
            with self._turns:
                self._names.remove(name)
                self._turns.notify_all()


def _without_spec(error: Exception) -> str:
    """Return a text of tensorstore without the specification that it repeats at the end."""
    return str(error).partition(" [tensorstore_spec=")[0][:400]


@dataclass(frozen=True)
class ScaleLayout:
    """How one scale of a volume is stored.

    Attributes:
        path: Its folder below the volume's address, or empty.
        decoder: Decodes its chunks, and knows their shape, type and names. In a sharded scale a chunk is one inside a shard.
        axes: The stored axes of z, y and x. All other axes are read at index 0.
        factor: How many voxels of the finest scale lie along one voxel of this one, (z, y, x).
        voxel_size_nm: (z, y, x), or None where the metadata do not say it.
        is_blosc: Whether chunks are compressed with blosc.
        sharding: The metadata of the shards, or None where every chunk is an object.
    """

    path: str
    decoder: ChunkDecoder
    axes: tuple[int, int, int]
    factor: Triple
    voxel_size_nm: Triple | None
    is_blosc: bool
    sharding: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        return self.decoder.kind

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of the volume along z, y, x."""
        z, y, x = (self.decoder.shape[axis] for axis in self.axes)
        return (z, y, x)

    def object_key(self, name: str) -> str:
        """Return the key of an object in the scale's folder, relative to the volume's address."""
        return check_object_key(f"{self.path}/{name}" if self.path else name)


def checked_layout(layout: ScaleLayout, what: str) -> ScaleLayout:
    """Return a layout, or refuse one that cannot be read in bounded memory.

    Raises:
        DataError: The numbers are not of 8 or 16 bits, or the volume or a chunk is too large.
    """
    decoder = layout.decoder
    sizes = (*decoder.shape, *decoder.chunk_shape)
    if len(decoder.shape) > _MAX_AXES or not all(1 <= size <= _MAX_SIDE for size in sizes):
        raise DataError(
            f"{what} has shape {str(decoder.shape)[:100]} and chunks {str(decoder.chunk_shape)[:100]}; expected at most "
            f"{_MAX_AXES} axes and whole numbers of 1 to {_MAX_SIDE}."
        )
    if decoder.dtype.name not in _DTYPES:
        raise DataError(f"{what} holds {decoder.dtype.name!r}; expected one of {', '.join(_DTYPES)}.")
    if decoder.chunk_bytes > _MAX_CHUNK_BYTES:
        raise DataError(
            f"{what} has chunks of {decoder.chunk_shape}, {decoder.chunk_bytes} bytes; expected at most {_MAX_CHUNK_BYTES}. It "
            "cannot be sampled in bounded memory."
        )
    return layout


def read_json(objects: RemoteObjects, key: str) -> dict[str, Any] | None:
    """Read a JSON object; None where it is absent or where the server refuses it (403).

    Raises:
        DataError: It is not a JSON object, or it is too large.
    """
    answer = objects.get(key, _MAX_METADATA_BYTES)
    if answer.status != "present":
        return None
    try:
        node = json.loads(answer.data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{objects.address}/{key} is no JSON: {error}. Check the address.") from error
    if not isinstance(node, dict):
        raise DataError(f"{objects.address}/{key} holds {type(node).__name__}; expected a JSON object. Check the address.")
    return node


def positive_triple(values: list[Any]) -> Triple | None:
    """Return three sizes as floats; None where one of them is no positive number."""
    if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in values):
        return None
    return (float(values[0]), float(values[1]), float(values[2]))


def size_ratio(numerators: tuple[float, ...], denominators: tuple[float, ...]) -> Triple:
    """Divide two (z, y, x) triples."""
    z, y, x = (a / b for a, b in zip(numerators, denominators, strict=True))
    return (z, y, x)


def shape_ratio(fine: tuple[int, int, int], coarse: tuple[int, int, int]) -> Triple:
    """Estimate the factor of a scale from the two shapes: the nearest whole number along each axis, at least 1."""
    z, y, x = (max(1.0, float(round(ratio))) for ratio in size_ratio(fine, coarse))
    return (z, y, x)
