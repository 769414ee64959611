"""The first hash of a block within a distance of each of many others, by multi-index hashing: exact, for large blocks.

64 bits are cut into bands, and each band gets a radius so that the radii, each plus one, add up to the distance plus one.
Two hashes within the distance then agree up to its radius in at least one band (else they would differ in more bits than the
distance), so per band only buckets whose keys are that near are compared: for 12 bits in four bands of radii 3, 2, 2, 2 one
pair in 60. Instead of looking up one hash after the other, both sides are sorted by bucket, and the near buckets of the block
are copied side by side once for all hashes of a bucket; the comparisons then run over arrays that stay in cache.

Source: the radii are the "generalized pigeonhole" of Norouzi, Punjani and Fleet, Fast exact search in Hamming space with
multi-index hashing (arXiv:1307.2982); joining bucket with bucket is ours. What to compare with what is `hamming`'s business.
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
"""Ways to cut 64 bits; few wide bands compare least, many narrow ones have the least to visit."""
NONE = np.iinfo(np.int32).max
"""Stands for "no hash of the block is near"."""
_TILE = 128
_COPIED, _SORTED = 100, 64
"""Cost of visiting a bucket and of sorting a hash by its bucket, in comparisons; measured, and only speed depends on it."""
_MIN_GAIN = 0.6
"""Share of all comparisons that must be left for the buckets to be worth it."""

Hashes = NDArray[np.uint64]


@kernel
def _count_keys(hashes: Any, shift: Any, mask: Any, counts: Any) -> None:
    for i in range(hashes.shape[0]):
        counts[(hashes[i] >> shift) & mask] += 1


@kernel
def _sort_by_key(hashes: Any, shift: Any, mask: Any, cursor: Any, out: Any, order: Any) -> None:
    """Counting sort, stable; `cursor` starts as the first place of every key and is used up."""
    for i in range(hashes.shape[0]):
        key = (hashes[i] >> shift) & mask
        place = cursor[key]
        cursor[key] = place + 1
        out[place] = hashes[i]
        order[place] = i


@kernel
def sizes_within(counts: Any, width: Any, radius: Any) -> Any:
    """For every key the sum of counts over the keys that differ from it in at most `radius` bits."""
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
    """Lower `found` of every hash in the buckets first_key..last_key to the first of the block within the distance."""
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
        shift: Bits below the band.
        width: Bits of the band.
        radius: Bits that may differ.
    """

    shift: int
    width: int
    radius: int

    @property
    def num_near(self) -> int:
        """How many keys are within the radius of a key."""
        return sum(comb(self.width, bits) for bits in range(self.radius + 1))


@lru_cache
def bands(num_bands: int, max_distance: int) -> tuple[Band, ...]:
    """Cut 64 bits into bands that any two hashes within a distance share at least one of.

    Args:
        num_bands: How many.
        max_distance: Largest Hamming distance.

    Returns:
        Bands of nearly equal width; those that need not be looked at are left out.
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
    """Reorder the bits so that neighbours in the picture, which tend to be equal, come into different bands.

    Args:
        hashes: uint64 (n,).

    Returns:
        uint64 (n,), as far from each other as before; hashes of pictures fall into more buckets: on smooth pictures
        a quarter to a half of the comparisons are saved.
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
    """Return what changes a key of that width to each of the keys within the radius, itself (0) first: int64."""
    every = np.arange(1 << width, dtype=np.int64)
    return every[np.bitwise_count(every) <= radius]


def choose_bands(num_block: int, num_hashes: int, max_distance: int) -> tuple[Band, ...] | None:
    """Choose the cut for a join by its expected cost, were the bits independent; None where comparing everything is cheaper."""
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
    """Find for each hash the first of a block within a distance.

    Args:
        block: uint64 (m,), fewer than 2^31 - 1.
        hashes: uint64 (n,).
        max_distance: Largest Hamming distance that counts.
        cut: From `choose_bands` or `bands`.
        pool: Runs the pieces.
        num_threads: Threads of it to use; the result does not depend on it.

    Returns:
        int32 (n,): place in the block, or `NONE`. None where the hashes crowd into so few buckets that comparing
        everything is cheaper. Memory: 12 bytes for each hash of both, and 12 for each of the nearest ones and thread.
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
    """Count the hashes of every key of a band: int64 (2**width,)."""
    counts = np.zeros(1 << band.width, np.int64)
    _count_keys(hashes, np.uint64(band.shift), np.uint64((1 << band.width) - 1), counts)
    return counts


def sort_by_bucket(
    hashes: Hashes, counts: NDArray[np.int64], band: Band
) -> tuple[Hashes, NDArray[np.int32], NDArray[np.int64]]:
    """Return hashes by key, their places before, and where every key starts."""
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
