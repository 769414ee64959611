"""The phantom: the same for the same seed, with the ground truth that it claims."""

import numpy as np

from cem_assets.cem.phantom import em_phantom, label_of


def test_equal_seeds_give_equal_phantoms():
    first, second, other = (em_phantom((40, 64, 72), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.voxels, second.voxels) and np.array_equal(first.is_cell, second.is_cell)
    assert not np.array_equal(first.voxels, other.voxels)


def test_resin_is_brighter_and_flatter_than_cells_and_has_its_share():
    phantom = em_phantom((1, 400, 400), 3, resin_share=0.4)
    resin, cell = phantom.voxels[~phantom.is_cell], phantom.voxels[phantom.is_cell]
    assert phantom.voxels.shape == (1, 400, 400)
    assert abs((~phantom.is_cell).mean() - 0.4) < 0.01
    assert resin.mean() > cell.mean() + 20 and resin.std() < 15 < cell.std()


def test_labels_follow_the_share_of_cell():
    for share, label in ((1.0, "good"), (0.5, "good"), (0.3, "none"), (0.1, "bad"), (0.0, "bad")):
        mask = np.zeros((10, 10), bool)
        mask.reshape(-1)[: int(share * 100)] = True
        assert label_of(mask) == label
