"""Binning: the choice of factors, and the mean of every block compared with its definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.imaging.binning import bin_any, bin_mean, binned_shape, binned_voxel_size, binning_factors

LARGE = (1000, 1000, 1000)


@pytest.mark.parametrize(
    ("size", "target", "factors"),
    [
        ((8, 8, 8), None, (1, 1, 1)),
        ((8, 8, 8), 8, (1, 1, 1)),
        ((8, 8, 8), 15.9, (1, 1, 1)),
        ((8, 8, 8), 16, (2, 2, 2)),
        ((8, 8, 8), 31, (2, 2, 2)),
        ((40, 4, 4), 10, (1, 2, 2)),
        ((40, 4.6, 4.6), 20, (1, 4, 4)),
        ((2.4, 2.4, 2.4), 4.8, (2, 2, 2)),
        ((0.1, 0.1, 0.1), 0.8, (8, 8, 8)),
        ((1, 2, 4), 4, (4, 2, 1)),
        ((50, 50, 50), 10, (1, 1, 1)),
    ],
)
def test_only_axes_finer_than_the_target_are_binned_and_none_exceeds_it(size, target, factors):
    assert binning_factors(LARGE, size, target) == factors


def test_an_axis_shorter_than_its_factor_is_binned_less_and_time_never():
    assert binning_factors((1, 3, 9), (1, 1, 1), 64) == (1, 2, 8)
    assert binning_factors((100, 100, 100), (1, 1, 1), 4, is_video=True) == (1, 4, 4)
    assert binned_shape((7, 9, 3), (2, 4, 1)) == (3, 2, 3) and binned_voxel_size((8, 4, 2), (1, 2, 4)) == (8, 8, 8)


@given(
    st.tuples(*[st.floats(0.01, 500) for _ in range(3)]),
    st.floats(0.01, 500),
    st.tuples(*[st.integers(1, 300) for _ in range(3)]),
)
def test_factors_are_the_largest_that_stay_below_the_target(size, target, shape):
    for factor, voxel, side in zip(binning_factors(shape, size, target), size, shape, strict=True):
        assert factor.bit_count() == 1 and factor <= side
        assert factor == 1 or factor * voxel <= target * (1 + 1e-6)
        assert 2 * factor > side or 2 * factor * voxel > target * (1 - 1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 4) for _ in range(3)]),
    st.tuples(*[st.sampled_from([1, 2, 4]) for _ in range(3)]),
    st.integers(0, 99),
)
def test_every_voxel_is_the_mean_of_its_block_rounded_half_up(blocks, factors, seed):
    shape = tuple(block * factor for block, factor in zip(blocks, factors, strict=True))
    voxels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    mask = np.random.default_rng(seed).random(shape) < 0.1
    found, found_mask = bin_mean(voxels, factors), bin_any(mask, factors)
    assert found.dtype == np.uint8 and found.shape == found_mask.shape == blocks
    (a, b, c) = factors
    for z, y, x in np.ndindex(*blocks):
        inside = (slice(z * a, z * a + a), slice(y * b, y * b + b), slice(x * c, x * c + c))
        assert found[z, y, x] == math.floor(voxels[inside].astype(float).mean() + 0.5)
        assert found_mask[z, y, x] == mask[inside].any()


def test_ragged_blocks_are_an_error():
    with pytest.raises(ValueError, match="expected multiples"):
        bin_mean(np.zeros((3, 4, 4), np.uint8), (2, 2, 2))
