"""Where a chunk lies: an object of its own, or a span of bytes inside a shard, found through the shard's index.

Zarr v3 `sharding_indexed` and neuroglancer's `neuroglancer_uint64_sharded_v1`. A chunk that a shard's index lists
as empty is as absent as a missing object. Reading and decoding the bytes is `remote_volumes`.
"""

import math
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.sources.volumes.inflation import inflate
from cem_assets.sources.volumes.objects import RemoteObjects, Status
from cem_assets.sources.volumes.scales import ScaleLayout

_MAX_INDEX_BYTES = 32 << 20
_CACHED_INDEXES = 64
_CACHED_BYTES = 64 << 20
_EMPTY = (1 << 64) - 1
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Place:
    """Where the bytes of a chunk are.

    Attributes:
        key: The object.
        span: (start, stop) inside of it; None for the whole object.
        status: "present" unless the shard, or its entry for the chunk, is absent or refused. Whether a whole object is
            there is only known when it is fetched.
    """

    key: str
    span: tuple[int, int] | None = None
    status: Status = "present"


class _Kept:
    """Indexes read before; each is fetched by one thread while others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Any, Future[tuple[Status, NDArray[np.uint64] | None]]] = OrderedDict()

    def get(
        self, key: Any, make: Callable[[], tuple[Status, NDArray[np.uint64] | None]]
    ) -> tuple[Status, NDArray[np.uint64] | None]:
        with self._lock:
            future = self._found.get(key)
            is_mine = future is None
            if future is None:
                future = self._found[key] = Future()
                self._drop_old()
        if is_mine:
            try:
                future.set_result(make())
            except BaseException as error:  # noqa: BLE001  the waiting threads and this one get it from the future
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


class ChunkPlaces:
    """Finds the bytes of chunks of one scale. Safe to use from several threads."""

    def __init__(self, objects: RemoteObjects, layout: ScaleLayout) -> None:
        self._objects, self._layout, self._kept = objects, layout, _Kept()
        if layout.sharding is not None and layout.kind == "zarr3":
            _check_zarr_sharding(layout)
        elif layout.sharding is not None:
            _check_precomputed_sharding(layout)

    def place(self, index: tuple[int, ...]) -> Place:
        """Find a chunk.

        Args:
            index: Its number along each stored axis, from 0.

        Raises:
            DataError: A shard's index is damaged.
            ConnectionError: A shard's index could not be fetched.
        """
        layout = self._layout
        if layout.kind == "precomputed":
            return self._precomputed_place(index)
        if layout.sharding is None:
            return Place(layout.object_key(layout.prefix + layout.separator.join(map(str, index))))
        ratio = _chunks_per_shard(layout)
        shard = tuple(i // n for i, n in zip(index, ratio, strict=True))
        key = layout.object_key(layout.prefix + layout.separator.join(map(str, shard)))
        status, entries = self._kept.get(key, lambda: self._zarr_index(key, ratio))
        if entries is None:
            return Place(key, None, status)
        offset, length = (int(v) for v in entries[tuple(i % n for i, n in zip(index, ratio, strict=True))])
        if offset == _EMPTY and length == _EMPTY:
            return Place(key, None, "absent")
        return _checked_span(key, offset, offset + length)

    def _zarr_index(self, key: str, ratio: tuple[int, ...]) -> tuple[Status, NDArray[np.uint64] | None]:
        sharding = self._layout.sharding or {}
        has_crc = len(sharding["index_codecs"]) == 2
        num_bytes = 16 * math.prod(ratio) + 4 * int(has_crc)
        if sharding.get("index_location", "end") == "start":
            fetched = self._objects.get(key, num_bytes, span=(0, num_bytes))
        else:
            fetched = self._objects.get(key, num_bytes, suffix=num_bytes)
        if fetched.status != "present":
            return fetched.status, None
        data = fetched.data
        if len(data) != num_bytes:
            raise DataError(f"shard {key} has an index of {len(data)} bytes; expected {num_bytes}. The source is damaged.")
        if has_crc and google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise DataError(f"shard {key}: the checksum of its index disagrees. The source is damaged.")
        return "present", np.frombuffer(data, "<u8", 2 * math.prod(ratio)).reshape(*ratio, 2)

    def _precomputed_place(self, index: tuple[int, ...]) -> Place:
        layout = self._layout
        grid = [-(-size // side) for size, side in zip(layout.stored_shape[:3], layout.chunk_shape[:3], strict=True)]
        if layout.sharding is None:
            starts = [i * side for i, side in zip(index[:3], layout.chunk_shape[:3], strict=True)]
            stops = [
                min(a + n, size) for a, n, size in zip(starts, layout.chunk_shape[:3], layout.stored_shape[:3], strict=True)
            ]
            spans = zip(starts, stops, layout.origin[:3], strict=True)
            return Place(layout.object_key("_".join(f"{a + o}-{b + o}" for a, b, o in spans)))
        sharding = layout.sharding
        chunk_id = compressed_morton_code(index[:3], grid)
        shard_bits, minishard_bits = int(sharding["shard_bits"]), int(sharding["minishard_bits"])
        hashed = chunk_id >> int(sharding["preshift_bits"])
        if sharding["hash"] == "murmurhash3_x86_128":
            hashed = murmurhash3_x86_128_low64(hashed.to_bytes(8, "little"))
        minishard = hashed & ((1 << minishard_bits) - 1)
        shard = (hashed >> minishard_bits) & ((1 << shard_bits) - 1)
        key = layout.object_key(f"{shard:0{-(-shard_bits // 4)}x}.shard")
        status, entries = self._kept.get((key, minishard), lambda: self._minishard(key, minishard, minishard_bits))
        if entries is None:
            return Place(key, None, status)
        row = int(np.searchsorted(entries[0], np.uint64(chunk_id)))
        if row == entries.shape[1] or int(entries[0, row]) != chunk_id:
            return Place(key, None, "absent")
        return _checked_span(key, int(entries[1, row]), int(entries[2, row]))

    def _shard_index(self, key: str, minishard_bits: int) -> tuple[Status, NDArray[np.uint64] | None]:
        num_bytes = 16 << minishard_bits
        fetched = self._objects.get(key, num_bytes, span=(0, num_bytes))
        if fetched.status != "present":
            return fetched.status, None
        if len(fetched.data) != num_bytes:
            raise DataError(
                f"shard {key} has an index of {len(fetched.data)} bytes; expected {num_bytes}. The source is damaged."
            )
        return "present", np.frombuffer(fetched.data, "<u8").reshape(-1, 2)

    def _minishard(self, key: str, minishard: int, minishard_bits: int) -> tuple[Status, NDArray[np.uint64] | None]:
        """Read a minishard's index as rows (id, start, stop), ids ascending, bytes counted from the object's begin."""
        status, spans = self._kept.get(key, lambda: self._shard_index(key, minishard_bits))
        if spans is None:
            return status, None
        base = 16 << minishard_bits
        start, stop = (int(v) for v in spans[minishard])
        if start == stop:
            return "present", np.zeros((3, 0), np.uint64)
        place = _checked_span(key, base + start, base + stop)
        fetched = self._objects.get(key, _MAX_INDEX_BYTES, span=place.span)
        if fetched.status != "present":
            return fetched.status, None
        encoding = str((self._layout.sharding or {}).get("minishard_index_encoding", "raw"))
        data = inflate(encoding, fetched.data, _MAX_INDEX_BYTES, f"minishard index in {key}")
        if len(data) % 24:
            raise DataError(f"shard {key} has a minishard index of {len(data)} bytes; expected 24 per chunk. It is damaged.")
        deltas = np.frombuffer(data, "<u8").reshape(3, -1)
        ids = np.cumsum(deltas[0], dtype=np.uint64)
        starts = np.uint64(base) + np.cumsum(deltas[1] + np.concatenate(([np.uint64(0)], deltas[2][:-1])), dtype=np.uint64)
        return "present", np.stack([ids, starts, starts + deltas[2]])


def _checked_span(key: str, start: int, stop: int) -> Place:
    if not 0 <= start < stop <= 1 << 50:
        raise DataError(f"shard {key} lists a chunk at bytes {start} to {stop}; expected a span inside of it. It is damaged.")
    return Place(key, (start, stop))


def _chunks_per_shard(layout: ScaleLayout) -> tuple[int, ...]:
    shard = (layout.sharding or {})["shard_shape"]
    return tuple(a // b for a, b in zip(shard, layout.chunk_shape, strict=True))


def _check_zarr_sharding(layout: ScaleLayout) -> None:
    sharding = layout.sharding or {}
    names = [codec["name"] for codec in sharding["index_codecs"]]
    endian = sharding["index_codecs"][0].get("configuration", {}).get("endian", "little")
    location = sharding.get("index_location", "end")
    if names not in (["bytes"], ["bytes", "crc32c"]) or endian != "little" or location not in ("start", "end"):
        raise DataError(f"shard indexes are encoded as {str(names)[:80]} ({endian}); expected little-endian bytes and crc32c.")
    if 16 * math.prod(_chunks_per_shard(layout)) > _MAX_INDEX_BYTES:
        raise DataError(f"shards of {math.prod(_chunks_per_shard(layout))} chunks have too large an index for bounded memory.")


def _check_precomputed_sharding(layout: ScaleLayout) -> None:
    sharding = layout.sharding or {}
    bits = [sharding.get(name) for name in ("preshift_bits", "minishard_bits", "shard_bits")]
    if sharding.get("@type") != "neuroglancer_uint64_sharded_v1" or not all(type(b) is int and 0 <= b <= 64 for b in bits):
        raise DataError(f"sharding {str(sharding)[:160]} is not known; expected neuroglancer_uint64_sharded_v1.")
    if int(sharding["minishard_bits"]) > 20 or int(sharding["minishard_bits"]) + int(sharding["shard_bits"]) > 64:
        raise DataError(f"shards of 2^{sharding['minishard_bits']} minishards have too large an index for bounded memory.")
    encodings = [sharding.get(name, "raw") for name in ("minishard_index_encoding", "data_encoding")]
    if sharding.get("hash") not in ("identity", "murmurhash3_x86_128") or not set(encodings) <= {"raw", "gzip"}:
        raise DataError(f"sharding {str(sharding)[:160]} has an unknown hash or encoding; expected the format's own.")


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
        raise DataError(f"a chunk number has 8 bytes, found {len(data)}.")
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
