"""Shares of neighbours by dataset, compared with numbers computed by hand and pair by pair."""

import numpy as np
import pytest

from cem_assets.analyses.datasets.neighbourhoods import measure_neighbourhoods


def test_two_bundles_of_directions_by_hand() -> None:
    angles = np.radians([0, 1, 2.5, 90, 91, 92.5])
    features = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1], [5], [9], [1], [2], [7]])
    apart = measure_neighbourhoods(features, list("aaabbb"), 2)
    assert apart.names == ("a", "b") and apart.own == 1.0 and apart.chance == pytest.approx(2 / 5)
    assert np.array_equal(apart.shares, np.eye(2))
    # The nearest neighbours of 0, 1, 2.5 are 1, 0, 1. With labels a, b, a those are b, a, b; the other side is alike.
    mixed = measure_neighbourhoods(features, list("abaaba"), 1)
    assert mixed.own == 0.0 and np.array_equal(mixed.shares, [[0, 1], [1, 0]])


def test_shares_agree_with_counting_pair_by_pair() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(40, 5)), [f"d{n % 3}" for n in range(40)]
    found = measure_neighbourhoods(features, labels, 6)
    counts = np.zeros((3, 3))
    for row in range(40):
        cosines = [
            (-float(features[row] @ other / np.linalg.norm(features[row]) / np.linalg.norm(other)), n)
            for n, other in enumerate(features)
            if n != row
        ]
        for _, n in sorted(cosines)[:6]:
            counts[row % 3, n % 3] += 1
    assert np.allclose(found.shares, counts / counts.sum(axis=1, keepdims=True))


def test_what_does_not_fit_is_told() -> None:
    for features, labels in ((np.ones((1, 2)), ["a"]), (np.ones((3, 2)), ["a"])):
        with pytest.raises(ValueError, match="n labels"):
            measure_neighbourhoods(features, labels)
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure_neighbourhoods(np.full((2, 2), np.nan), ["a", "b"])
