"""Hamming distance search over 64-bit hashes: greedy exemplars, and pairs within a radius.

Exact and brute force, in blocks that stay in cache: about seven billion comparisons a second and core,
which is faster than an index for the few hundred thousand exemplars a dataset has. Memory is a few
arrays of the input's length. What a match means (which distance, which order) is decided by the rooms:
see `cem_assets.cem.dedup`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cem_assets.imaging.compiled import kernel

_BLOCK = 512
"""Exemplars compared at a time: 4 KiB of hashes, so the block stays in the first cache level."""
_PARALLEL_FROM = 1 << 16
"""Remaining hashes below which a second thread costs more than it gains."""

_M1, _M2 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_M4, _H1 = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)


@kernel
def _distance(a, b):  # type: ignore[no-untyped-def]
    # The classic parallel bit count; LLVM knows it and emits vector popcounts where the CPU has them.
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & _M1)
    x = (x & _M2) + ((x >> np.uint64(2)) & _M2)
    x = (x + (x >> np.uint64(4))) & _M4
    return (x * _H1) >> np.uint64(56)


@kernel
def _exemplars_within(hashes, radius, exemplar, distance):  # type: ignore[no-untyped-def]
    """Greedy pass over a short list; returns how many of `exemplar` and `distance` it set, all of them."""
    for i in range(hashes.shape[0]):
        exemplar[i] = i
        distance[i] = 0
        for j in range(i):
            if exemplar[j] == j:
                d = _distance(hashes[i], hashes[j])
                if d <= radius:
                    exemplar[i] = j
                    distance[i] = d
                    break


@kernel
def _strike(hashes, places, block, block_places, radius, exemplar, distance):  # type: ignore[no-untyped-def]
    """Record every hash that the block's exemplars stand for; move the rest to the front, in order.

    Returns the number left. `hashes` and `places` are changed in place.
    """
    kept = 0
    for i in range(hashes.shape[0]):
        value = hashes[i]
        is_near = np.uint64(0)
        for j in range(block.shape[0]):  # no early exit, so the loop vectorizes
            is_near |= np.uint64(_distance(value, block[j]) <= radius)
        if is_near:
            for j in range(block.shape[0]):
                d = _distance(value, block[j])
                if d <= radius:
                    exemplar[places[i]] = block_places[j]
                    distance[places[i]] = d
                    break
        else:
            hashes[kept] = value
            places[kept] = places[i]
            kept += 1
    return kept


@kernel
def _near(queries, others, radius, limit, out):  # type: ignore[no-untyped-def]
    """Fill out int64 (limit, 3) with (query, other, distance) up to `limit`; returns the number found."""
    found = 0
    for i in range(queries.shape[0]):
        value = queries[i]
        start = 0
        while start < others.shape[0]:
            stop = min(start + 512, others.shape[0])
            is_near = np.uint64(0)
            for j in range(start, stop):
                is_near |= np.uint64(_distance(value, others[j]) <= radius)
            if is_near:
                for j in range(start, stop):
                    d = _distance(value, others[j])
                    if d <= radius:
                        if found < limit:
                            out[found, 0] = i
                            out[found, 1] = j
                            out[found, 2] = d
                        found += 1
            start = stop
    return found


@dataclass(frozen=True)
class Exemplars:
    """The outcome of a greedy pass, both arrays in the order of the input.

    Attributes:
        exemplar: int64 (n,). Place of the exemplar that stands for each hash; an exemplar names itself.
        distance: uint8 (n,). Hamming distance to it.
    """

    exemplar: NDArray[np.int64]
    distance: NDArray[np.uint8]


def greedy_exemplars(hashes: NDArray[np.uint64], max_distance: int, num_threads: int = 1) -> Exemplars:
    """Visit hashes in order; each one not yet struck becomes an exemplar and strikes all within reach.

    Args:
        hashes: uint64 (n,), in visiting order.
        max_distance: Largest Hamming distance (0..64) at which an exemplar stands for another hash.
        num_threads: Threads to share the comparisons; the result does not depend on it.

    Returns:
        For each hash the first exemplar, in visiting order, within `max_distance`.

    Source: the deduplication of CEM500K (eLife 65894). Same result as its loop over one exemplar at a
    time, computed for blocks of exemplars.
    """
    num = len(hashes)
    exemplar = np.arange(num, dtype=np.int64)
    distance = np.zeros(num, dtype=np.uint8)
    left, places = hashes.astype(np.uint64, copy=True), np.arange(num, dtype=np.int64)
    radius = np.uint64(max_distance)
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        while len(left):
            size = min(_BLOCK, len(left))
            head, head_places = left[:size].copy(), places[:size].copy()
            own, own_distance = np.empty(size, np.int64), np.empty(size, np.uint8)
            _exemplars_within(head, radius, own, own_distance)
            exemplar[head_places] = head_places[own]
            distance[head_places] = own_distance
            is_exemplar = own == np.arange(size)
            block, block_places = head[is_exemplar], head_places[is_exemplar]
            left, places = left[size:], places[size:]
            num_pieces = num_threads if len(left) >= _PARALLEL_FROM else 1
            bounds = np.linspace(0, len(left), num_pieces + 1).astype(int)
            pieces = [(left[a:b], places[a:b]) for a, b in pairwise(bounds)]
            jobs = [
                pool.submit(_strike, values, where, block, block_places, radius, exemplar, distance) for values, where in pieces
            ]
            kept = [job.result() for job in jobs]
            if len(pieces) == 1:
                left, places = left[: kept[0]], places[: kept[0]]
            else:
                left = np.concatenate([values[:k] for (values, _), k in zip(pieces, kept, strict=True)])
                places = np.concatenate([where[:k] for (_, where), k in zip(pieces, kept, strict=True)])
    return Exemplars(exemplar, distance)


def near_pairs(queries: NDArray[np.uint64], others: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[int, int, int]]:
    """Find every pair within a distance between two lists of hashes.

    Args:
        queries: uint64 (n,).
        others: uint64 (m,).
        max_distance: Largest Hamming distance (0..64) that counts as a match.

    Yields:
        (place in queries, place in others, distance), by query, then by other.
    """
    radius = np.uint64(max_distance)
    for start in range(0, len(queries), 4096):
        chunk = queries[start : start + 4096]
        limit = 4096
        while True:
            out = np.empty((limit, 3), np.int64)
            found = _near(chunk, others, radius, limit, out)
            if found <= limit:
                break
            limit = found
        for query, other, distance in out[:found].tolist():
            yield start + query, other, distance


def closest_pair_within(hashes: NDArray[np.uint64], max_distance: int) -> tuple[int, int, int] | None:
    """Look for two hashes no farther apart than `max_distance`.

    Args:
        hashes: uint64 (n,).
        max_distance: Largest Hamming distance that counts.

    Returns:
        (first place, second place, distance) of the first such pair in order, or None.
    """
    for start in range(0, len(hashes), 4096):
        chunk = hashes[start : start + 4096]
        for first, second, distance in near_pairs(chunk, hashes[start:], max_distance):
            if second > first:
                return start + first, start + second, distance
    return None
