"""Near pairs of hashes between groups: exact, and without comparing every hash with every other where the list is long.

The 64 bits are cut into bands as in `multi_index`: in at least one band, the two hashes of a pair within the distance differ in
no more bits than its radius. So hashes are compared with those of near buckets only. A pair that several bands find is taken
from the first of them, which needs no record of the pairs found before. `hamming.near_pairs` finds the pairs between two lists
of which one is short.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.imaging.bit_counts import num_different
from cem_assets.imaging.compiled import kernel
from cem_assets.imaging.multi_index import NONE, Band, bands, bucket_sizes, near_keys, sizes_within, sort_by_bucket, spread_bits

_EACH_WITH_EACH: tuple[Band, ...] = (Band(0, 0, 0),)
"""A cut with one bucket that holds all hashes."""
_NUM_BANDS = (3, 4, 5)
_TILE = 128
_LOOKUP, _SORTED = 200, 64
"""The costs of visiting a bucket for a hash and of sorting a hash by its bucket, in comparisons. Only the speed depends on
them."""
_PIECES_PER_BAND = 64
_FIRST_ROOM = 1 << 12
"""The number of pairs that a piece has room for at first; if there are more, it is repeated with enough room."""


@kernel
def _near_in_buckets(
    hashes: Any,
    order: Any,
    starts: Any,
    changes: Any,
    earlier_mask: Any,
    earlier_radius: Any,
    groups: Any,
    first_key: Any,
    last_key: Any,
    max_distance: Any,
    out: Any,
) -> Any:
    """Fill `out`, int64 (limit, 3), with (place, later place, distance) as far as there is room; return the number found."""
    found = 0
    for key in range(first_key, last_key):
        for i in range(starts[key], starts[key + 1]):
            value, place = hashes[i], order[i]
            for change in range(changes.shape[0]):
                other = key ^ changes[change]
                # Within a bucket, hashes are in order of place.
                begin = i + 1 if other == key else starts[other]
                end = starts[other + 1]
                for low in range(begin, end, _TILE):
                    high = min(low + _TILE, end)
                    tile = hashes[low:high]
                    is_near = np.uint64(0)
                    for j in range(tile.shape[0]):  # from 0 and with no early exit, so the loop vectorizes
                        is_near |= np.uint64(num_different(value, tile[j]) <= max_distance)
                    if not is_near:
                        continue
                    for j in range(tile.shape[0]):
                        distance = num_different(value, tile[j])
                        second = order[low + j]
                        if distance > max_distance or second <= place or groups[second] == groups[place]:
                            continue
                        is_new = True
                        for band in range(earlier_mask.shape[0]):
                            mask = earlier_mask[band]
                            if num_different(value & mask, tile[j] & mask) <= earlier_radius[band]:
                                is_new = False
                        if not is_new:
                            continue
                        if found < out.shape[0]:
                            out[found, 0] = place
                            out[found, 1] = second
                            out[found, 2] = distance
                        found += 1
    return found


def expected_cost(num_hashes: int, cut: tuple[Band, ...]) -> float:
    """Return the cost of a cut, in comparisons, under the assumption that the bits of the hashes are independent."""
    if cut == _EACH_WITH_EACH:
        return float(num_hashes) ** 2 / 2
    return sum(num_hashes * (band.num_near * (num_hashes / (1 << band.width) + _LOOKUP) + _SORTED) for band in cut)


def possible_cuts(max_distance: int) -> list[tuple[Band, ...]]:
    """List the cuts to choose from; the first one compares every hash with every other."""
    return [_EACH_WITH_EACH, *(bands(num_bands, max_distance) for num_bands in _NUM_BANDS)]


def choose_cut(hashes: NDArray[np.uint64], max_distance: int) -> tuple[Band, ...]:
    """Choose the cut with the lowest expected cost, or compare all hashes where these are in too few buckets."""
    chosen = min(possible_cuts(max_distance), key=lambda cut: expected_cost(len(hashes), cut))
    if chosen != _EACH_WITH_EACH:
        comparisons = 0.0
        for band in chosen:
            sizes = bucket_sizes(hashes, band)
            comparisons += float(sizes @ sizes_within(sizes, band.width, band.radius)) / (1 if band.radius else 2)
        if comparisons > expected_cost(len(hashes), _EACH_WITH_EACH):
            return _EACH_WITH_EACH
    return chosen


def pairs_between_groups(
    hashes: NDArray[np.uint64],
    groups: NDArray[np.integer[Any]],
    max_distance: int,
    num_threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, in_all: None,
    cut: tuple[Band, ...] | None = None,
) -> NDArray[np.int64]:
    """Find every pair of hashes within a distance whose groups differ.

    Args:
        hashes: uint64 (n,).
        groups: int32 or int64 (n,), the group of each hash.
        max_distance: The largest Hamming distance (0..64) that counts as near.
        num_threads: Threads that share the buckets; the result does not depend on it.
        cut: From `possible_cuts`; None chooses one. The result does not depend on it.

    Returns:
        int64 (k, 3): place, later place, distance; in order of the first, then of the second. It takes 24 bytes of memory for
        each pair and 20 for each hash.

    Raises:
        DataError: There are 2^31 - 1 hashes or more.
    """
    if len(hashes) >= NONE:
        raise DataError(
            f"there are {len(hashes):,} hashes; expected fewer than {NONE:,} in one list. Make the release of fewer datasets."
        )
    spread = spread_bits(hashes.astype(np.uint64, copy=False))
    chosen = choose_cut(spread, max_distance) if cut is None else cut
    found = [np.empty((0, 3), np.int64)]
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for number, band in enumerate(chosen):
            sizes = bucket_sizes(spread, band)
            ours, order, starts = sort_by_bucket(spread, sizes, band)
            earlier = chosen[:number]
            masks = np.array([((1 << each.width) - 1) << each.shift for each in earlier], np.uint64)
            radii = np.array([each.radius for each in earlier], np.uint64)
            changes = near_keys(band.width, band.radius)

            def near(piece: tuple[int, int], arguments: tuple[Any, ...]) -> NDArray[np.int64]:
                room = _FIRST_ROOM
                while True:
                    out = np.empty((room, 3), np.int64)
                    num = _near_in_buckets(*arguments, *piece, np.uint64(max_distance), out)
                    if num <= room:
                        return out[:num].copy()
                    room = num

            arguments = (ours, order, starts, changes, masks, radii, groups)
            jobs = [pool.submit(near, piece, arguments) for piece in _pieces(sizes, changes)]
            for done, job in enumerate(jobs, 1):
                found.append(job.result())
                progress(number * _PIECES_PER_BAND + done * _PIECES_PER_BAND // len(jobs), len(chosen) * _PIECES_PER_BAND)
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _pieces(sizes: NDArray[np.int64], changes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut the keys into ranges of about equal work, which is estimated from the key's own bucket."""
    work = np.cumsum(sizes * (len(changes) * _LOOKUP + sizes))
    wanted = work[-1] * np.arange(1, _PIECES_PER_BAND) // _PIECES_PER_BAND
    bounds = [0, *np.searchsorted(work, wanted).tolist(), len(sizes)]
    yield from (piece for piece in pairwise(bounds) if piece[0] < piece[1])
