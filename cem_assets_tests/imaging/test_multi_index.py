"""Joining buckets, compared with a loop over all pairs; and the guarantee of the cut into bands."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.imaging.multi_index import NONE, NUM_BANDS, bands, choose_bands, first_near, spread_bits

POOL = ThreadPoolExecutor(3)


def changed(hashes: np.ndarray, flips: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    out = hashes.copy()
    for _ in range(flips):
        out ^= np.uint64(1) << generator.integers(0, 64, len(out)).astype(np.uint64)
    return out


@pytest.mark.parametrize("num_bands", NUM_BANDS)
@pytest.mark.parametrize("max_distance", [0, 1, 5, 12, 14])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_first_of_the_block_is_found_for_every_hash(num_bands, max_distance, num_threads):
    block = np.random.default_rng(1).integers(0, 2**64, 300, dtype=np.uint64)
    block = np.concatenate([block, changed(block, 4, 2), block[:50]])  # several hashes of the block are near the same hash
    hashes = np.concatenate([changed(block, flips, flips) for flips in range(0, 17, 2)])
    found = first_near(block, hashes, max_distance, bands(num_bands, max_distance), POOL, num_threads)
    is_near = np.bitwise_count(hashes[:, None] ^ block[None]) <= max_distance
    assert np.array_equal(found, np.where(is_near.any(1), is_near.argmax(1), NONE))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=40), st.sampled_from(NUM_BANDS), st.integers(0, 40))
def test_hashes_within_the_distance_are_near_in_a_band(value, flipped, num_bands, max_distance):
    other = value ^ sum(1 << bit for bit in flipped)
    cut = bands(num_bands, max_distance)
    is_near = any((((value ^ other) >> band.shift) & ((1 << band.width) - 1)).bit_count() <= band.radius for band in cut)
    assert is_near or len(flipped) > max_distance


@pytest.mark.parametrize("num_bands", NUM_BANDS)
def test_radii_are_as_small_as_they_may_be(num_bands):
    cut = bands(num_bands, 12)
    assert sum(band.width for band in cut) == 64 and sum(band.radius + 1 for band in cut) == 13


def test_hashes_that_crowd_into_few_buckets_are_left_to_the_plain_comparison():
    crowded = np.random.default_rng(0).integers(0, 2**16, 2000).astype(np.uint64)
    assert first_near(crowded, crowded, 12, bands(4, 12), POOL, 1) is None


def test_buckets_are_chosen_where_they_pay():
    assert choose_bands(100, 100, 12) is None and choose_bands(10**6, 10**6, 40) is None
    assert len(choose_bands(10**6, 10**6, 12) or ()) == 4 < len(choose_bands(10**4, 10**4, 12) or ())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2))
def test_spread_bits_keep_their_distance(pair):
    first, second = spread_bits(np.array(pair, np.uint64)).tolist()
    assert (first ^ second).bit_count() == (pair[0] ^ pair[1]).bit_count() and first.bit_count() == pair[0].bit_count()


def test_neighbours_in_the_picture_come_into_different_quarters():
    quarter = {}
    for bit in range(64):
        moved = int(spread_bits(np.array([1 << bit], np.uint64))[0]).bit_length() - 1
        quarter[divmod(bit, 8)] = moved // 16
    assert all(quarter[row, column] != quarter[row, column + 1] for row in range(8) for column in range(7))
    assert all(quarter[row, column] != quarter[row + 1, column] for row in range(7) for column in range(8))
