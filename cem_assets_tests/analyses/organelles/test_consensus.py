"""The mean of the best channels, compared with numbers computed by hand and with numpy."""

import numpy as np
import pytest

from cem_assets.analyses.organelles.consensus import measure_consensus
from cem_assets.analyses.organelles.correlation import measure_agreement


def _half(side: int, is_left: bool) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[:, : side // 2] = is_left
    mask[:, side // 2 :] = not is_left
    return mask


def test_a_channel_that_is_the_organelle_is_found_and_gives_a_whole_segmentation() -> None:
    masks = [_half(8, True), _half(8, False)]
    noise = np.random.default_rng(0)
    maps = [np.stack([noise.random((8, 8)), mask, 1.0 - mask, np.ones((8, 8))]).astype(np.float32) for mask in masks]
    correlations = measure_agreement(maps, masks, 0.5).correlations
    found = measure_consensus(maps, masks, correlations, 1)
    assert found.channels.tolist() == [1]
    assert np.allclose(found.correlations, 1) and np.allclose(found.ious, 1) and np.allclose(found.held_out, 1)
    assert all(np.array_equal(one, mask) for one, mask in zip(found.maps, masks, strict=True))


def test_the_mean_is_scaled_correlated_and_cut_as_defined() -> None:
    generator = np.random.default_rng(1)
    masks = [generator.random((6, 10)) > 0.6 for _ in range(3)]
    maps = [generator.normal(size=(7, 6, 10)).astype(np.float32) for _ in masks]
    correlations = measure_agreement(maps, masks, 0.5).correlations
    found = measure_consensus(maps, masks, correlations, 3, 0.4)
    for number, mask in enumerate(masks):
        for chosen, expected in (
            (correlations, found.correlations),
            (np.delete(correlations, number, 0), found.held_out),
        ):
            best = sorted(range(7), key=lambda channel: -chosen.mean(axis=0)[channel])[:3]
            mean = sum(maps[number][channel].astype(np.float64) for channel in best) / 3
            scaled = (mean - mean.min()) / (mean.max() - mean.min())
            assert expected[number] == pytest.approx(np.corrcoef(scaled.ravel(), mask.ravel())[0, 1], abs=1e-6)
            if expected is found.correlations:
                above = scaled > 0.4
                assert found.ious[number] == (above & mask).sum() / (above | mask).sum()


def test_one_image_has_nothing_held_out_and_constant_maps_no_correlation() -> None:
    mask = _half(4, True)
    found = measure_consensus([np.full((2, 4, 4), 3.3, np.float32)], [mask], np.zeros((1, 2)))
    assert found.correlations.tolist() == [0.0] and np.isnan(found.held_out).all() and found.ious.tolist() == [0.0]
    with pytest.raises(ValueError, match="as many of each"):
        measure_consensus([], [], np.zeros((0, 2)))
