"""Counts of values, compared with numpy's."""

import numpy as np
import pytest

from cem_assets.imaging.value_counts import count_values


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (4,), (7, 5, 3), (64, 65)])
def test_counts_are_those_of_bincount(shape):
    voxels = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    counts = count_values(voxels)
    assert counts.dtype == np.int64 and np.array_equal(counts, np.bincount(voxels.reshape(-1), minlength=256))


def test_any_memory_order_and_both_ends_of_the_range_are_counted():
    voxels = np.zeros((9, 10, 11), np.uint8)
    voxels[4:, 3:, :5] = 255
    assert np.array_equal(count_values(voxels.T), np.bincount(voxels.reshape(-1), minlength=256))
    assert np.array_equal(count_values(voxels[::2, 1:, ::3]), np.bincount(voxels[::2, 1:, ::3].reshape(-1), minlength=256))


def test_other_number_types_are_refused():
    with pytest.raises(ValueError, match="takes uint8 voxels; found uint16"):
        count_values(np.zeros(4, np.uint16))
