"""Hamming distance search over 64-bit hashes: greedy exemplars, and pairs within a radius.

The results are exact. In small lists every hash is compared with every other, about seven billion comparisons a second on a
core. Where visiting buckets is less work, greedy exemplars go through `multi_index`. Memory is a few arrays of the length of
the input. Callers decide which distance and which order make a match, such as `cem_assets.cem.patches.dedup`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.imaging.bit_counts import num_different as _distance
from cem_assets.imaging.compiled import kernel
from cem_assets.imaging.multi_index import NONE, choose_bands, first_near, spread_bits

_BLOCK = 512
"""The number of exemplars compared at a time: 4 KiB of hashes, which stay in the first level of the cache."""
_LEAF = 1 << 12
"""Lists up to this length are settled one hash after the other; longer lists are halved."""
_PARALLEL_FROM = 1 << 26
"""With fewer comparisons than this, a second thread costs more time than it saves."""


@kernel
def _settle_in_order(hashes, places, exemplars, exemplar_places, radius, exemplar, distance):  # type: ignore[no-untyped-def]
    """Settle a list one hash after the other; `exemplars` and `exemplar_places` are buffers of the same length."""
    num = 0
    for i in range(hashes.shape[0]):
        value = hashes[i]
        first = num
        for low in range(0, num, _BLOCK):
            high = min(low + _BLOCK, num)
            tile = exemplars[low:high]
            is_near = np.uint64(0)
            for j in range(tile.shape[0]):  # from 0 and with no early exit, so the loop vectorizes
                is_near |= np.uint64(_distance(value, tile[j]) <= radius)
            if is_near:
                first = low
                while _distance(value, exemplars[first]) > radius:
                    first += 1
                break
        if first == num:
            exemplars[num] = value
            exemplar_places[num] = places[i]
            num += 1
        exemplar[places[i]] = exemplar_places[first]
        distance[places[i]] = _distance(value, exemplars[first])


@kernel
def _first_of_block(hashes, block, start, radius, found):  # type: ignore[no-untyped-def]
    """Set `found` of every hash that is still `NONE` to `start` plus the place of the first hash of the block in the radius."""
    for i in range(hashes.shape[0]):
        if found[i] != NONE:
            continue
        value = hashes[i]
        is_near = np.uint64(0)
        for j in range(block.shape[0]):  # no early exit, so the loop vectorizes
            is_near |= np.uint64(_distance(value, block[j]) <= radius)
        if is_near:
            first = 0
            while _distance(value, block[first]) > radius:
                first += 1
            found[i] = start + first


@kernel
def _near(queries, others, radius, limit, out):  # type: ignore[no-untyped-def]
    """Fill `out`, int64 (limit, 3), with (query, other, distance) as far as there is room; return the number found."""
    found = 0
    for i in range(queries.shape[0]):
        value = queries[i]
        start = 0
        while start < others.shape[0]:
            stop = min(start + 512, others.shape[0])
            tile = others[start:stop]
            is_near = np.uint64(0)
            for j in range(tile.shape[0]):  # from 0 and with no early exit, so the loop vectorizes
                is_near |= np.uint64(_distance(value, tile[j]) <= radius)
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
    """The result of a greedy pass; both arrays are in the order of the input.

    Attributes:
        exemplar: int64 (n,), the place of the exemplar that represents each hash. An exemplar represents itself.
        distance: uint8 (n,), the Hamming distance to that exemplar.
    """

    exemplar: NDArray[np.int64]
    distance: NDArray[np.uint8]


def greedy_exemplars(hashes: NDArray[np.uint64], max_distance: int, num_threads: int = 1) -> Exemplars:
    """Choose exemplars: visit the hashes in order, and make each that no earlier exemplar represents an exemplar itself.

    Args:
        hashes: uint64 (n,), in the order of the visit.
        max_distance: The largest Hamming distance (0..64) at which an exemplar represents another hash.
        num_threads: Threads that share the comparisons; the result does not depend on it.

    Returns:
        For each hash the first exemplar, in the order of the visit, within `max_distance`.

    Raises:
        DataError: There are 2^31 - 1 hashes or more.

    Source: the deduplication of CEM500K (eLife 65894). The result is that of its loop over one exemplar at a time. Here the
    first half is settled, its exemplars are compared with the second half, and what they do not represent is settled in turn.
    Beside input and result this takes about 40 bytes of memory for each hash.
    """
    num = len(hashes)
    if num >= NONE:
        raise DataError(
            f"there are {num:,} hashes; expected fewer than {NONE:,} in one list. Deduplicate the dataset in parts."
        )
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        greedy = _Greedy(spread_bits(hashes.astype(np.uint64, copy=False)), max_distance, pool, max(1, num_threads))
        greedy.settle(np.arange(num, dtype=np.int64))
    return Exemplars(greedy.exemplar, greedy.distance)


class _Greedy:
    """A greedy pass over one list by halves, see `greedy_exemplars`."""

    def __init__(self, hashes: NDArray[np.uint64], max_distance: int, pool: ThreadPoolExecutor, num_threads: int) -> None:
        """Take the hashes in the order of the visit; `exemplar` and `distance` hold the result for those that are settled."""
        self.exemplar = np.empty(len(hashes), np.int64)
        self.distance = np.empty(len(hashes), np.uint8)
        self._hashes, self._max_distance = hashes, max_distance
        self._pool, self._num_threads = pool, num_threads

    def settle(self, places: NDArray[np.int64]) -> None:
        """Settle the hashes at ascending places; no exemplar before the first of them may represent any of them."""
        if len(places) <= _LEAF:
            room = np.empty(len(places), np.uint64), np.empty(len(places), np.int64)
            radius = np.uint64(self._max_distance)
            _settle_in_order(self._hashes[places], places, *room, radius, self.exemplar, self.distance)
            return
        half = len(places) // 2
        self.settle(places[:half])
        settled, places = places[:half], places[half:]
        block = settled[self.exemplar[settled] == settled]
        hashes = self._hashes[places]
        found = self._first_within(self._hashes[block], hashes)
        is_left = found == NONE
        struck = places[~is_left]
        self.exemplar[struck] = block[found[~is_left]]
        self.distance[struck] = np.bitwise_count(hashes[~is_left] ^ self._hashes[self.exemplar[struck]])
        self.settle(places[is_left])

    def _first_within(self, block: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return for each hash the place in the block of the first one within the distance, or `NONE`: int32 (n,)."""
        num_threads = self._num_threads if len(block) * len(hashes) >= _PARALLEL_FROM else 1
        cut = choose_bands(len(block), len(hashes), self._max_distance)
        if cut is not None:
            by_index = first_near(block, hashes, self._max_distance, cut, self._pool, num_threads)
            if by_index is not None:
                return by_index
        found = np.full(len(hashes), NONE, np.int32)
        pieces = [slice(low, high) for low, high in pairwise(np.linspace(0, len(hashes), num_threads + 1).astype(int))]
        jobs = [self._pool.submit(self._compare_all, block, hashes[piece], found[piece]) for piece in pieces]
        for job in jobs:
            job.result()
        return found

    def _compare_all(self, block: NDArray[np.uint64], hashes: NDArray[np.uint64], found: NDArray[np.int32]) -> None:
        for start in range(0, len(block), _BLOCK):
            _first_of_block(hashes, block[start : start + _BLOCK], start, np.uint64(self._max_distance), found)


def near_pairs(queries: NDArray[np.uint64], others: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[int, int, int]]:
    """Find every pair within a distance between two lists of hashes.

    Args:
        queries: uint64 (n,).
        others: uint64 (m,).
        max_distance: The largest Hamming distance (0..64) that counts as a match.

    Yields:
        (place in queries, place in others, distance), in order of query, then of other.
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
    """Look for two hashes, uint64 (n,), with a Hamming distance of at most `max_distance`.

    Returns:
        (first place, second place, distance) of the first such pair in order, or None.
    """
    for start in range(0, len(hashes), 4096):
        chunk = hashes[start : start + 4096]
        for first, second, distance in near_pairs(chunk, hashes[start:], max_distance):
            if second > first:
                return start + first, start + second, distance
    return None
