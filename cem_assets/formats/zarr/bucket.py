"""Zarr arrays in a bucket: chunks fetched many at a time, decoded by tensorstore outside of the interpreter.

The zarr library over s3fs spends several milliseconds of the interpreter's time on every chunk. This is only a quicker way
to the same voxels, as `cem_assets.formats.zarr.local` is on a disk: whatever does not go smoothly here (an absent
chunk, a shard, a codec that tensorstore does not know, a server in trouble) is left to the zarr library in
`cem_assets.formats.zarr.stores`, which finds out what is missing and words the error.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from cem_assets.formats.zarr.local import read_from
from cem_assets.store.store import Store

_NUM_REQUESTS = 16
"""At the same time, of all threads of this process."""
_MAX_BOX_BYTES = 128 << 20
"""Decoded size of the chunks that are held at a time; larger boxes are read in parts, larger chunks left to zarr."""
_KEPT_BYTES = 64 << 20
"""Of fetched chunks, as stored: bricks and chunks do not meet, so neighbouring bricks ask for the same ones."""


@dataclass(frozen=True)
class Chunks:
    """How an array lies in its folder.

    Attributes:
        metadata: File name of its metadata, and the bytes.
        shape: Of a chunk.
        num_bytes: Of a decoded chunk.
        named: Gives a chunk's name for its place in the grid.
    """

    metadata: tuple[str, bytes]
    shape: tuple[int, ...]
    num_bytes: int
    named: Callable[[tuple[int, ...]], str]

    def under(self, spans: tuple[slice, ...]) -> list[str]:
        """Name the chunks that a box touches."""
        ranges = [range(span.start // side, -(-span.stop // side)) for span, side in zip(spans, self.shape, strict=True)]
        return [self.named(cell) for cell in itertools.product(*ranges)]


def read_bucket(store: Store, folder: str, spans: tuple[slice, ...], opening: str) -> NDArray[Any] | None:
    """Read a box of an array.

    Args:
        store: A bucket.
        folder: The array's folder in it.
        spans: The box, one slice for each stored axis.
        opening: Tells this opening of the array from others: what another one fetched may have been replaced.

    Returns:
        The values as stored; None where the zarr library is to read them.
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
    """Read the halves of a box that meet between chunks, so that none is fetched for both."""
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
    """Learn how an array lies in its folder; None where its chunks are no objects of their own."""
    del opening
    for name in ("zarr.json", ".zarray"):
        if (data := store.read_quickly(f"{folder}/{name}")) is not None:
            array: Any = zarr.open_array(MemoryStore({name: cpu.Buffer.from_bytes(data)}), mode="r")
            if array.shards is not None:
                return None
            shape = tuple(int(side) for side in array.chunks)
            return Chunks((name, data), shape, math.prod(shape) * int(array.dtype.itemsize), array.metadata.encode_chunk_key)
    return None


@dataclass
class _Kept:
    """The chunks fetched last."""

    _data: OrderedDict[tuple[str, ...], bytes] = field(default_factory=OrderedDict)
    _num_bytes: int = 0
    _lock: Lock = field(default_factory=Lock)

    def get(self, place: tuple[str, ...]) -> bytes | None:
        with self._lock:
            if place in self._data:
                self._data.move_to_end(place)
            return self._data.get(place)

    def put(self, place: tuple[str, ...], data: bytes) -> None:
        with self._lock:
            if place in self._data or len(data) > _KEPT_BYTES // 4:
                return
            self._data[place] = data
            self._num_bytes += len(data)
            while self._num_bytes > _KEPT_BYTES:
                self._num_bytes -= len(self._data.popitem(last=False)[1])


_kept = _Kept()


@lru_cache(maxsize=1)
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_REQUESTS, "chunks")


def _fetched(store: Store, folder: str, names: list[str], opening: str) -> Iterator[bytes | None]:
    """Fetch chunks, in order; None for one that is absent or cannot be had quickly."""

    def fetch(name: str) -> bytes | None:
        place = (store.url, folder, opening, name)
        if (data := _kept.get(place)) is None:
            data = store.read_quickly(f"{folder}/{name}")
            if data is not None:
                _kept.put(place, data)
        return data

    return _requests().map(fetch, names)
