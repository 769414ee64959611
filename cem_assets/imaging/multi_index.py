"""For each of many hashes, the first hash of a block within a distance: exact, by multi-index hashing, for large blocks.

The 64 bits are cut into bands, and each band gets a radius, so that the sum of (radius + 1) over the bands is the distance plus
one. In at least one band, two hashes within the distance then differ in no more bits than its radius; otherwise they would
differ in more bits than the distance. So only buckets with near keys are compared in each band: for 12 bits in four bands of
radii 3, 2, 2, 2 that is one pair in 60. Both sides are sorted by bucket, and the near buckets of the block are copied side by
side once for all hashes of a bucket. The comparisons then run over arrays that stay in the cache.

Source: the radii follow the "generalized pigeonhole" principle of Norouzi, Punjani and Fleet, Fast exact search in Hamming
space with multi-index hashing (arXiv:1307.2982). Joining bucket with bucket is our addition. `hamming` decides what is
compared with what.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.imaging.bit_counts import num_different
from cem_assets.imaging.compiled import kernel

NUM_BANDS = (4, 5, 6, 7)
"""The numbers of bands to choose from. Few wide bands need the fewest comparisons; many narrow ones the fewest buckets."""
NONE = np.iinfo(np.int32).max
"""Means that no hash of the block is near."""
_TILE = 128
_COPIED, _SORTED = 100, 64
"""The measured costs of visiting a bucket and of sorting a hash by its bucket, in comparisons. Only speed depends on them."""
_MIN_GAIN = 0.6
"""Buckets are used only if they cost less than this share of comparing everything."""

Hashes = NDArray[np.uint64]


@kernel
def _count_keys(hashes: Any, shift: Any, mask: Any, counts: Any) -> None:
    for i in range(hashes.shape[0]):
        counts[(hashes[i] >> shift) & mask] += 1


@kernel
def _sort_by_key(hashes: Any, shift: Any, mask: Any, cursor: Any, out: Any, order: Any) -> None:
    """Sort by counting, stably; `cursor` holds the first place of every key, and is changed."""
    for i in range(hashes.shape[0]):
        key = (hashes[i] >> shift) & mask
        place = cursor[key]
        cursor[key] = place + 1
        out[place] = hashes[i]
        order[place] = i


@kernel
def sizes_within(counts: Any, width: Any, radius: Any) -> Any:
    """Return for every key the sum of the counts of all keys that differ from it in at most `radius` bits."""
    size = counts.shape[0]
    layers = np.zeros((radius + 1, size), np.int64)  # layer d: keys that differ in d of the bits seen so far
    layers[0] = counts
    for bit in range(width):
        for d in range(radius, 0, -1):
            for key in range(size):
                layers[d, key] += layers[d - 1, key ^ (1 << bit)]
    for d in range(1, radius + 1):
        for key in range(size):
            layers[0, key] += layers[d, key]
    return layers[0]


@kernel
def _join_buckets(
    hashes: Any,
    order: Any,
    starts: Any,
    block: Any,
    block_order: Any,
    block_starts: Any,
    changes: Any,
    first_key: Any,
    last_key: Any,
    max_distance: Any,
    near: Any,
    near_order: Any,
    found: Any,
) -> None:
    """Lower `found` of every hash in the buckets first_key..last_key to the first hash of the block within the distance."""
    for key in range(first_key, last_key):
        start, stop = starts[key], starts[key + 1]
        if start == stop:
            continue
        num = 0
        for change in range(changes.shape[0]):
            other = key ^ changes[change]
            low, high = block_starts[other], block_starts[other + 1]
            bucket, bucket_order = block[low:high], block_order[low:high]
            into, into_order = near[num : num + high - low], near_order[num : num + high - low]
            for place in range(bucket.shape[0]):
                into[place] = bucket[place]
                into_order[place] = bucket_order[place]
            num += high - low
        for low in range(0, num, _TILE):
            high = min(low + _TILE, num)
            tile, tile_order = near[low:high], near_order[low:high]
            for i in range(start, stop):
                value = hashes[i]
                is_near = np.uint64(0)
                for j in range(tile.shape[0]):  # from 0 and with no early exit, so the loop vectorizes
                    is_near |= np.uint64(num_different(value, tile[j]) <= max_distance)
                if is_near:
                    first = found[order[i]]
                    for j in range(tile.shape[0]):
                        if tile_order[j] < first and num_different(value, tile[j]) <= max_distance:
                            first = tile_order[j]
                    found[order[i]] = first


@dataclass(frozen=True)
class Band:
    """Some neighbouring bits of a hash, and in how many of them a near hash may differ.

    Attributes:
        shift: The number of bits below the band.
        width: The number of bits in the band.
        radius: The number of bits that may differ.
    """

    shift: int
    width: int
    radius: int

    @property
    def num_near(self) -> int:
        """The number of keys within the radius of a key."""
        return sum(comb(self.width, bits) for bits in range(self.radius + 1))


@lru_cache
def bands(num_bands: int, max_distance: int) -> tuple[Band, ...]:
    """Cut 64 bits into bands so that any two hashes within a distance are near each other in at least one of them.

    Returns:
        Bands of nearly equal width; bands that need no search are left out.
    """
    bounds = np.linspace(0, 64, num_bands + 1).astype(int).tolist()
    widths = [high - low for low, high in pairwise(bounds)]
    # The radii, each plus one, add up to the distance plus one; the widest bands take the larger ones.
    shares = [(max_distance + 1 + number) // num_bands for number in reversed(range(num_bands))]
    by_width = sorted(range(num_bands), key=lambda band: -widths[band])
    cut = [Band(bounds[band], widths[band], share - 1) for band, share in zip(by_width, shares, strict=True)]
    return tuple(band for band in cut if band.radius >= 0)


_GRID = [8 * row + column for low in range(2) for left in range(2) for row in range(low, 8, 2) for column in range(left, 8, 2)]
"""Bits of a difference hash, an 8 x 8 picture, in the order of four grids of every second row and column."""


def spread_bits(hashes: Hashes) -> Hashes:
    """Reorder the bits so that neighbours in the picture, which tend to be equal, are in different bands.

    Distances between the hashes, uint64 (n,), stay the same. The hashes spread over more buckets, which saves a quarter to a
    half of the comparisons on smooth pictures.
    """
    moved = np.zeros(64, np.uint64)
    moved[_GRID] = np.uint64(1) << np.arange(64, dtype=np.uint64)
    values = np.arange(256)
    out = np.zeros(len(hashes), np.uint64)
    for byte in range(8):
        table = np.zeros(256, np.uint64)
        for bit in range(8):
            table[(values >> bit) & 1 == 1] |= moved[8 * byte + bit]
        out |= table[(hashes >> np.uint64(8 * byte)) & np.uint64(255)]
    return out


@lru_cache
def near_keys(width: int, radius: int) -> NDArray[np.int64]:
    """Return, as int64, the bit patterns that change a key to each key within the radius; the first is 0, the key itself."""
    every = np.arange(1 << width, dtype=np.int64)
    return every[np.bitwise_count(every) <= radius]


def choose_bands(num_block: int, num_hashes: int, max_distance: int) -> tuple[Band, ...] | None:
    """Choose the cut with the lowest cost if the bits are independent; None where comparing everything costs less."""
    best, chosen = _MIN_GAIN * num_block * num_hashes, None
    for num_bands in NUM_BANDS:
        cut = bands(num_bands, max_distance)
        cost = 0.0
        for band in cut:
            size = 1 << band.width
            cost += num_block * num_hashes * band.num_near / size + min(num_hashes, size) * band.num_near * _COPIED
            cost += (num_block + num_hashes) * _SORTED
        if cost < best:
            best, chosen = cost, cut
    return chosen


def first_near(
    block: Hashes, hashes: Hashes, max_distance: int, cut: tuple[Band, ...], pool: ThreadPoolExecutor, num_threads: int
) -> NDArray[np.int32] | None:
    """Find for each hash the first hash of a block within a distance.

    It takes 12 bytes of memory for each hash of both arrays, and in each thread 12 bytes for each hash of the near buckets.

    Args:
        block: uint64 (m,), fewer than 2^31 - 1.
        hashes: uint64 (n,).
        max_distance: The largest Hamming distance that counts as near.
        cut: From `choose_bands` or `bands`.
        num_threads: The number of the pool's threads to use; the result does not depend on it.

    Returns:
        int32 (n,): the place in the block, or `NONE`. None if the hashes are in so few buckets that comparing everything is
        faster.
    """
    counted = [(bucket_sizes(block, band), bucket_sizes(hashes, band), band) for band in cut]
    within = [sizes_within(counts, band.width, band.radius) for counts, _, band in counted]
    comparisons = sum(float(near @ counts) for near, (_, counts, _) in zip(within, counted, strict=True))
    if comparisons > _MIN_GAIN * len(block) * len(hashes):
        return None
    found = np.full(len(hashes), NONE, np.int32)
    for near, (block_counts, counts, band) in zip(within, counted, strict=True):
        ours, order, starts = sort_by_bucket(hashes, counts, band)
        theirs = sort_by_bucket(block, block_counts, band)
        changes = near_keys(band.width, band.radius)
        largest = int(near[counts > 0].max(initial=0))
        jobs = []
        for low, high in _pieces(near * counts + (counts > 0) * (len(changes) * _COPIED), num_threads):
            buffers = np.empty(largest, np.uint64), np.empty(largest, np.int32)
            arguments = (ours, order, starts, *theirs, changes, low, high, np.uint64(max_distance), *buffers, found)
            jobs.append(pool.submit(_join_buckets, *arguments))
        for job in jobs:
            job.result()
    return found


def bucket_sizes(hashes: Hashes, band: Band) -> NDArray[np.int64]:
    """Count the hashes with each key of a band, as int64 (2**width,)."""
    counts = np.zeros(1 << band.width, np.int64)
    _count_keys(hashes, np.uint64(band.shift), np.uint64((1 << band.width) - 1), counts)
    return counts


def sort_by_bucket(
    hashes: Hashes, counts: NDArray[np.int64], band: Band
) -> tuple[Hashes, NDArray[np.int32], NDArray[np.int64]]:
    """Return the hashes sorted by key, their original places, and the position at which each key starts."""
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    out, order = np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.int32)
    _sort_by_key(hashes, np.uint64(band.shift), np.uint64((1 << band.width) - 1), starts[:-1].copy(), out, order)
    return out, order, starts


def _pieces(work: NDArray[np.int64], num_threads: int) -> Iterator[tuple[int, int]]:
    """Cut the keys into ranges of about equal work."""
    done = np.cumsum(work)
    if num_threads <= 1:
        yield 0, len(work)
        return
    wanted = done[-1] * np.arange(1, num_threads) // num_threads
    yield from pairwise([0, *np.searchsorted(done, wanted).tolist(), len(work)])
