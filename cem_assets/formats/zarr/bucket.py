"""Reads Zarr arrays in a bucket: fetches many chunks at a time, and lets tensorstore decode them without the GIL.

The zarr library over s3fs holds the GIL for several milliseconds per chunk. This module is only a faster way to the same
voxels, like `cem_assets.formats.zarr.local` for disks. Whatever does not succeed here (an absent chunk, a shard, a codec that
tensorstore does not know, a server in trouble) is left to the zarr library in `cem_assets.formats.zarr.stores`, which finds
out what is missing and reports it.

Chunks are fetched through our own store and not by tensorstore: its S3 client (seen with 0.1.86) takes neither the credentials
that botocore finds, such as a web identity, nor a timeout or a certificate authority of ours.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import zarr
from cachetools import LRUCache
from numpy.typing import NDArray
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from cem_assets.formats.zarr.local import read_from
from cem_assets.store.store import Store

_NUM_REQUESTS = 16
"""So many requests run at the same time for all threads of this process together."""
_MAX_BOX_BYTES = 128 << 20
"""The decoded chunks under a box may have so many bytes. Larger boxes are read in parts; larger chunks are left to zarr."""

_kept: LRUCache[tuple[str, ...], bytes] = LRUCache(64 << 20, getsizeof=len)
"""The chunks that were fetched last, as stored. Neighbouring boxes often need the same chunk, because it lies in both."""
_kept_lock = Lock()


@dataclass(frozen=True)
class Chunks:
    """The chunks of an array and their names in the array's folder.

    Attributes:
        metadata: The name of the array's metadata file, and its bytes.
        shape: The shape of a chunk.
        num_bytes: The size of a decoded chunk.
        named: Returns the name of the chunk with a given number along each axis.
    """

    metadata: tuple[str, bytes]
    shape: tuple[int, ...]
    num_bytes: int
    named: Callable[[tuple[int, ...]], str]

    def under(self, spans: tuple[slice, ...]) -> list[str]:
        """Return the names of the chunks that a box touches."""
        ranges = [range(span.start // side, -(-span.stop // side)) for span, side in zip(spans, self.shape, strict=True)]
        return [self.named(cell) for cell in itertools.product(*ranges)]


def read_bucket(store: Store, folder: str, spans: tuple[slice, ...], opening: str) -> NDArray[Any] | None:
    """Read a box of an array.

    Args:
        store: A store in a bucket.
        folder: The array's folder in the store.
        spans: The box, one slice for each stored axis.
        opening: A text of its own for each time the array is opened. What was fetched for another opening is not used, because
            the array may have been replaced since.

    Returns:
        The values as stored; None where the zarr library has to read them.
    """
    chunks = _chunks(store, folder, opening)
    if chunks is None:
        return None
    names = chunks.under(spans)
    if len(names) * chunks.num_bytes > _MAX_BOX_BYTES:
        return _read_in_parts(store, folder, chunks, spans, opening)
    found = {chunks.metadata[0]: chunks.metadata[1]}
    for name, data in zip(names, _fetched(store, folder, names, opening), strict=True):
        if data is None:
            return None
        found[name] = data
    return read_from(found, spans)


def _read_in_parts(store: Store, folder: str, chunks: Chunks, spans: tuple[slice, ...], opening: str) -> NDArray[Any] | None:
    """Read a box in two halves that meet between chunks, so that no chunk is fetched for both."""
    first = [span.start // side for span, side in zip(spans, chunks.shape, strict=True)]
    count = [-(-span.stop // side) - low for span, side, low in zip(spans, chunks.shape, first, strict=True)]
    axis = max(range(len(spans)), key=lambda axis: count[axis])
    if count[axis] < 2:
        return None
    middle = (first[axis] + count[axis] // 2) * chunks.shape[axis]
    halves = []
    for span in (slice(spans[axis].start, middle), slice(middle, spans[axis].stop)):
        half = read_bucket(store, folder, (*spans[:axis], span, *spans[axis + 1 :]), opening)
        if half is None:
            return None
        halves.append(half)
    return np.concatenate(halves, axis)


@lru_cache(maxsize=32)
def _chunks(store: Store, folder: str, opening: str) -> Chunks | None:
    """Read the metadata of an array; None where several chunks share an object, as they do in shards."""
    del opening
    for name in ("zarr.json", ".zarray"):
        if (data := store.read_quickly(f"{folder}/{name}")) is not None:
            array: Any = zarr.open_array(MemoryStore({name: cpu.Buffer.from_bytes(data)}), mode="r")
            if array.shards is not None:
                return None
            shape = tuple(int(side) for side in array.chunks)
            return Chunks((name, data), shape, math.prod(shape) * int(array.dtype.itemsize), array.metadata.encode_chunk_key)
    return None


@lru_cache(maxsize=1)
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_REQUESTS, "chunks")


def _fetched(store: Store, folder: str, names: list[str], opening: str) -> Iterator[bytes | None]:
    """Fetch chunks in the given order; None stands for a chunk that is absent or could not be fetched in one request."""

    def fetch(name: str) -> bytes | None:
        place = (store.url, folder, opening, name)
        with _kept_lock:
            data = _kept.get(place)
        if data is None and (data := store.read_quickly(f"{folder}/{name}")) is not None and len(data) <= _kept.maxsize // 4:
            with _kept_lock:
                _kept[place] = data
        return data

    return _requests().map(fetch, names)
