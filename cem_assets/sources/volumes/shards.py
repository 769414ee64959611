"""Finds the bytes of a chunk: either a whole object, or a part of a shard that the shard's index names.

Two kinds of shards are read: Zarr v3 `sharding_indexed` and neuroglancer's `neuroglancer_uint64_sharded_v1`. A chunk that the
index of a shard does not list is absent, just like an object that does not exist.

tensorstore has both kinds as key-value stores, but only over stores that it reads itself, and for the reasons that
`ChunkDecoder` names it must not read foreign servers. It decodes the indexes of Zarr shards; those of neuroglancer, which are
no arrays, are read here.
"""

import math
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.sources.volumes.inflation import inflate
from cem_assets.sources.volumes.objects import ObjectStatus, RemoteObjects
from cem_assets.sources.volumes.scales import ChunkDecoder, ScaleLayout

_MAX_INDEX_BYTES = 32 << 20
_MAX_MINISHARD_BITS = 20
_CACHED_INDEXES = 64
_CACHED_BYTES = 64 << 20
_EMPTY = (1 << 64) - 1
_MASK = (1 << 64) - 1

_Index = tuple[ObjectStatus, NDArray[np.uint64] | None]
"""Whether the shard is there, and its index if so."""


@dataclass(frozen=True)
class ChunkLocation:
    """Where the bytes of a chunk are.

    Attributes:
        key: The object that holds them.
        span: (start, stop) in bytes inside of the object; None for the whole object.
        status: Anything but "present" where the shard or its entry for the chunk is absent or refused. A whole object counts as
            present here; whether it exists shows when it is fetched.
    """

    key: str
    span: tuple[int, int] | None = None
    status: ObjectStatus = "present"


class _IndexCache:
    """Keeps the indexes that were read last. One thread fetches an index, and the others wait for its result or its error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Any, Future[_Index]] = OrderedDict()

    def get(self, key: Any, make: Callable[[], _Index]) -> _Index:
        with self._lock:
            future = self._found.get(key)
            is_mine = future is None
            if future is None:
                future = self._found[key] = Future()
                self._drop_old()
        if is_mine:
            try:
                future.set_result(make())
            except BaseException as error:  # noqa: BLE001  all threads, this one included, get the error from the future
                with self._lock:
                    self._found.pop(key, None)
                future.set_exception(error)
        return future.result()

    def _drop_old(self) -> None:
        def held() -> int:
            done = [f.result()[1] for f in self._found.values() if f.done() and f.exception() is None]
            return sum(index.nbytes for index in done if index is not None)

        while len(self._found) > 1 and (len(self._found) > _CACHED_INDEXES or held() > _CACHED_BYTES):
            self._found.popitem(last=False)


class ChunkFinder:
    """Finds the bytes of chunks of one scale. Safe to use from several threads."""

    def __init__(self, objects: RemoteObjects, layout: ScaleLayout) -> None:
        self._objects, self._layout, self._cache = objects, layout, _IndexCache()
        if layout.sharding is not None and layout.kind == "zarr3":
            sides = zip(layout.sharding["shard_shape"], layout.decoder.chunk_shape, strict=True)
            # tensorstore also accepts sizes that JSON writes as 64.0, but names of objects are made of whole numbers.
            self._chunks_per_shard = tuple(int(shard) // chunk for shard, chunk in sides)
            if 16 * math.prod(self._chunks_per_shard) > _MAX_INDEX_BYTES:
                raise DataError(
                    f"shards of {math.prod(self._chunks_per_shard)} chunks have too large an index for bounded memory."
                )
            self._index_decoder = _index_decoder(layout.sharding["index_codecs"], self._chunks_per_shard)
        elif layout.sharding is not None and layout.sharding["minishard_bits"] > _MAX_MINISHARD_BITS:
            raise DataError(
                f"shards of 2^{layout.sharding['minishard_bits']} minishards have too large an index for bounded memory."
            )

    def find(self, index: tuple[int, ...]) -> ChunkLocation:
        """Find a chunk.

        Args:
            index: Its number along each stored axis, from 0.

        Raises:
            DataError: The index of its shard is damaged.
            ConnectionError: The index of its shard could not be fetched.
        """
        layout = self._layout
        if layout.sharding is None:
            return ChunkLocation(layout.object_key(layout.decoder.chunk_name(index)))
        return self._find_in_zarr(index) if layout.kind == "zarr3" else self._find_in_precomputed(layout.sharding, index)

    def _find_in_zarr(self, index: tuple[int, ...]) -> ChunkLocation:
        pairs = list(zip(index, self._chunks_per_shard, strict=True))
        key = self._layout.object_key(self._layout.decoder.chunk_name(tuple(i // n for i, n in pairs)))
        status, entries = self._cache.get(key, lambda: self._zarr_index(key))
        if entries is None:
            return ChunkLocation(key, None, status)
        offset, num_bytes = (int(v) for v in entries[tuple(i % n for i, n in pairs)])
        if offset == _EMPTY and num_bytes == _EMPTY:
            return ChunkLocation(key, None, "absent")
        return _checked_location(key, offset, offset + num_bytes)

    def _zarr_index(self, key: str) -> _Index:
        """Read the index of a Zarr shard, an array (chunks along each axis, 2) of offsets and sizes in bytes."""
        sharding, decoder = self._layout.sharding or {}, self._index_decoder
        num_bytes = decoder.chunk_bytes + 4 * sum(codec["name"] == "crc32c" for codec in sharding["index_codecs"])
        if sharding.get("index_location", "end") == "start":
            answer = self._objects.get(key, num_bytes, span=(0, num_bytes))
        else:
            answer = self._objects.get(key, num_bytes, suffix=num_bytes)
        if answer.status != "present":
            return answer.status, None
        try:
            whole = tuple(slice(0, size) for size in decoder.shape)
            return "present", decoder.decode((0,) * len(whole), answer.data, whole)
        except ValueError as error:
            raise DataError(f"the index of shard {key} is damaged at the source: {str(error)[:300]}") from error

    def _find_in_precomputed(self, sharding: dict[str, Any], index: tuple[int, ...]) -> ChunkLocation:
        decoder = self._layout.decoder
        grid = [-(-size // side) for size, side in zip(decoder.shape[:3], decoder.chunk_shape[:3], strict=True)]
        chunk_id = compressed_morton_code(index[:3], grid)
        shard_bits, minishard_bits = int(sharding["shard_bits"]), int(sharding["minishard_bits"])
        hashed = chunk_id >> int(sharding["preshift_bits"])
        if sharding["hash"] == "murmurhash3_x86_128":
            hashed = murmurhash3_x86_128_low64(hashed.to_bytes(8, "little"))
        minishard = hashed & ((1 << minishard_bits) - 1)
        shard = (hashed >> minishard_bits) & ((1 << shard_bits) - 1)
        key = self._layout.object_key(f"{shard:0{-(-shard_bits // 4)}x}.shard")
        status, entries = self._cache.get((key, minishard), lambda: self._minishard_index(key, minishard, sharding))
        if entries is None:
            return ChunkLocation(key, None, status)
        row = int(np.searchsorted(entries[0], np.uint64(chunk_id)))
        if row == entries.shape[1] or int(entries[0, row]) != chunk_id:
            return ChunkLocation(key, None, "absent")
        return _checked_location(key, int(entries[1, row]), int(entries[2, row]))

    def _precomputed_index(self, key: str, num_bytes: int) -> _Index:
        """Read the index of a neuroglancer shard, an array (minishards, 2): where the index of each one begins and ends."""
        answer = self._objects.get(key, num_bytes, span=(0, num_bytes))
        if answer.status != "present":
            return answer.status, None
        if len(answer.data) != num_bytes:
            raise DataError(
                f"shard {key} has an index of {len(answer.data)} bytes; expected {num_bytes}. The source is damaged."
            )
        return "present", np.frombuffer(answer.data, "<u8").reshape(-1, 2)

    def _minishard_index(self, key: str, minishard: int, sharding: dict[str, Any]) -> _Index:
        """Read the index of a minishard as rows (id, start, stop): ids ascend, bytes count from the begin of the object."""
        base = 16 << int(sharding["minishard_bits"])
        status, spans = self._cache.get(key, lambda: self._precomputed_index(key, base))
        if spans is None:
            return status, None
        start, stop = (int(v) for v in spans[minishard])
        if start == stop:
            return "present", np.zeros((3, 0), np.uint64)
        location = _checked_location(key, base + start, base + stop)
        answer = self._objects.get(key, _MAX_INDEX_BYTES, span=location.span)
        if answer.status != "present":
            return answer.status, None
        encoding = sharding.get("minishard_index_encoding", "raw")
        data = inflate(encoding, answer.data, _MAX_INDEX_BYTES, f"minishard index in {key}")
        if len(data) % 24:
            raise DataError(f"shard {key} has a minishard index of {len(data)} bytes; expected 24 per chunk. It is damaged.")
        deltas = np.frombuffer(data, "<u8").reshape(3, -1)
        ids = np.cumsum(deltas[0], dtype=np.uint64)
        starts = np.uint64(base) + np.cumsum(deltas[1] + np.concatenate(([np.uint64(0)], deltas[2][:-1])), dtype=np.uint64)
        return "present", np.stack([ids, starts, starts + deltas[2]])


def _index_decoder(codecs: list[dict[str, Any]], chunks_per_shard: tuple[int, ...]) -> ChunkDecoder:
    """Return a decoder of the indexes of Zarr shards, which are arrays with codecs of their own."""
    shape = [*chunks_per_shard, 2]
    metadata = {
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "uint64", "codecs": codecs, "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}}, "chunk_key_encoding": {"name": "default"},
    }  # fmt: skip
    return ChunkDecoder("zarr3", metadata, "the index of shards", prefix="c/")


def _checked_location(key: str, start: int, stop: int) -> ChunkLocation:
    if not 0 <= start < stop <= 1 << 50:
        raise DataError(f"shard {key} lists a chunk at bytes {start} to {stop}; expected a span inside of it. It is damaged.")
    return ChunkLocation(key, (start, stop))


def compressed_morton_code(index: tuple[int, ...], grid: list[int]) -> int:
    """Interleave the bits of a chunk's position, leaving out those that are always zero.

    Args:
        index: Chunk numbers along x, y, z.
        grid: Number of chunks along x, y, z.

    Source: the precomputed format's specification.
    """
    code = out = 0
    for bit in range(max((size - 1).bit_length() for size in grid)):
        for axis in range(3):
            if bit < (grid[axis] - 1).bit_length():
                code |= ((index[axis] >> bit) & 1) << out
                out += 1
    return code & _MASK


def murmurhash3_x86_128_low64(data: bytes) -> int:
    """Return the low 64 bits of MurmurHash3_x86_128, seed 0, of 8 bytes.

    Source: Austin Appleby's public-domain reference; only the tail of 5 to 8 bytes is needed for a 64-bit number.
    """
    if len(data) != 8:
        raise ValueError(f"a chunk number has 8 bytes, found {len(data)}.")
    m32 = 0xFFFFFFFF
    k1, k2 = struct.unpack("<II", data)
    h2 = (_rotated((k2 * 0xAB0E9789) & m32, 16) * 0x38B34AE5) & m32
    h1 = (_rotated((k1 * 0x239B961B) & m32, 15) * 0xAB0E9789) & m32
    h1, h2, h3, h4 = h1 ^ 8, h2 ^ 8, 8, 8
    h1 = (h1 + h2 + h3 + h4) & m32
    h2, h3, h4 = (h2 + h1) & m32, (h3 + h1) & m32, (h4 + h1) & m32
    h1, h2, h3, h4 = (_final_mix(h) for h in (h1, h2, h3, h4))
    h1 = (h1 + h2 + h3 + h4) & m32
    return ((h2 + h1) & m32) << 32 | h1


def _rotated(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & 0xFFFFFFFF


def _final_mix(value: int) -> int:
    value ^= value >> 16
    value = (value * 0x85EBCA6B) & 0xFFFFFFFF
    value ^= value >> 13
    value = (value * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)
