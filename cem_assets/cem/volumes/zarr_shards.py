"""Encoding and decoding one Zarr v3 shard of uint8 voxels without the zarr library.

The zarr library spends as long on coroutines and copies as on compressing, and holds the GIL meanwhile. Here a shard is
encoded in a loop over chunks that spends its time in libraries that release the GIL, so threads can share the work. The bytes
are the same as `zarr.create_array` writes (the tests compare them), and shards that it wrote can be decoded.
`cem_assets.cem.volumes.ome_zarr` defines which shards a volume has.
"""

import itertools
from functools import lru_cache
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from cem_assets.errors import DataError

Shape = tuple[int, int, int]

ZSTD_LEVEL = 1
"""Level 1 compresses micrographs as well as level 3. Negative levels are 6 times faster but leave noise as it is, see
`docs/store.md`."""
_CHECKSUM_BYTES = 4
_ABSENT = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_ZSTD = Zstd(level=ZSTD_LEVEL)
_unpack: Any = imagecodecs.zstd_decode  # its type stubs do not mention arrays


@lru_cache(maxsize=64)
def chunk_order(grid: Shape) -> tuple[Shape, ...]:
    """List the chunks of a shard in the order in which it stores them: Morton order without the bits that an axis lacks.

    Args:
        grid: Number of chunks of a shard along (z, y, x).

    Source: "compressed Morton code" of neuroglancer's precomputed format, which zarr-python 3 uses.
    """
    bits = [(side - 1).bit_length() for side in grid]

    def code(cell: Shape) -> int:
        value = place = 0
        for bit in range(max(bits)):
            for axis in range(3):
                if bit < bits[axis]:
                    value |= (cell[axis] >> bit & 1) << place
                    place += 1
        return value

    cells = itertools.product(range(grid[0]), range(grid[1]), range(grid[2]))
    return tuple(sorted(cells, key=code))


def _checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CHECKSUM_BYTES, "little")


def _span(cell: Shape, chunk: Shape, inside: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Return the voxels of a chunk that are inside the array, as slices of the shard."""
    z, y, x = (slice(c * side, min((c + 1) * side, end)) for c, side, end in zip(cell, chunk, inside, strict=True))
    return z, y, x


def encode_shard(voxels: NDArray[np.uint8], chunk: Shape, shard: Shape) -> bytes:
    """Encode voxels as one shard: chunks in zstd with a checksum each, then the index of the chunks.

    Args:
        voxels: uint8 (z, y, x), of the shard's shape, or smaller at the end of an array. Chunks that are wholly outside the
            voxels are not written, and partial ones are filled up with zeros.
        chunk: Shape of a chunk.
        shard: Shape of a shard, a multiple of the chunk's.
    """
    z, y, x = (outer // inner for outer, inner in zip(shard, chunk, strict=True))
    index = np.full((z, y, x, 2), _ABSENT, "<u8")
    scratch = np.zeros(chunk, np.uint8)
    pieces: list[bytes] = []
    position = 0
    for cell in chunk_order((z, y, x)):
        part = voxels[_span(cell, chunk, voxels.shape)]
        if not part.size:
            continue
        if part.shape != chunk:
            scratch[:] = 0
        scratch[: part.shape[0], : part.shape[1], : part.shape[2]] = part
        packed = _ZSTD.encode(scratch)
        pieces += (packed, _checksum(packed))
        index[cell] = position, len(packed) + _CHECKSUM_BYTES
        position += len(packed) + _CHECKSUM_BYTES
    footer = index.tobytes()
    return b"".join((*pieces, footer, _checksum(footer)))


def decode_shard(data: bytes, chunk: Shape, shard: Shape, shape: Shape) -> NDArray[np.uint8]:
    """Decode one shard.

    Args:
        chunk: Shape of a chunk.
        shard: Shape of a shard.
        shape: Size (z, y, x) of the part of the shard that is inside the array.

    Returns:
        uint8 of that shape, C-contiguous.

    Raises:
        DataError: A checksum is wrong, a chunk is absent, or the bytes are not a shard of this shape.
    """
    z, y, x = (outer // inner for outer, inner in zip(shard, chunk, strict=True))
    num_bytes = z * y * x * 16
    view = np.frombuffer(data, np.uint8)
    footer = view[-num_bytes - _CHECKSUM_BYTES : -_CHECKSUM_BYTES]
    if len(data) < num_bytes + _CHECKSUM_BYTES:
        raise DataError(f"it has {len(data)} bytes, but its index alone takes {num_bytes + _CHECKSUM_BYTES}")
    if _checksum(footer) != data[-_CHECKSUM_BYTES:]:
        raise DataError("the checksum of its index is wrong")
    index = np.frombuffer(footer, "<u8").reshape(z, y, x, 2).tolist()
    out = np.empty(shape, np.uint8)
    flat = np.empty(chunk[0] * chunk[1] * chunk[2], np.uint8)
    scratch = flat.reshape(chunk)
    for cell in chunk_order((z, y, x)):
        span = _span(cell, chunk, shape)
        if any(part.start >= part.stop for part in span):
            continue
        start, length = index[cell[0]][cell[1]][cell[2]]
        if start == int(_ABSENT) or length <= _CHECKSUM_BYTES or start + length > len(data):
            raise DataError(f"its chunk {cell} is absent, or its place is outside of the shard")
        packed = view[start : start + length - _CHECKSUM_BYTES]
        if _checksum(packed) != data[start + length - _CHECKSUM_BYTES : start + length]:
            raise DataError(f"the checksum of its chunk {cell} is wrong")
        try:
            # The buffer has the right size, so a frame that claims to be larger is refused before memory is allocated for it.
            unpacked = _unpack(packed, out=flat)
        except (imagecodecs.ZstdError, ValueError) as error:
            raise DataError(f"its chunk {cell} cannot be unpacked: {error}") from error
        if len(unpacked) != len(flat):
            raise DataError(f"its chunk {cell} has {len(unpacked)} voxels; expected {len(flat)}")
        out[span] = scratch[tuple(slice(part.stop - part.start) for part in span)]
    return out
