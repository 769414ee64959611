"""The Fréchet distance, compared with its definition, also for few rows and many columns."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from cem_assets.analyses.datasets.frechet import frechet_distance


def _sets(n: int, m: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(d, d)) / np.sqrt(d)
    return generator.normal(size=(n, d)), generator.normal(size=(m, d)) @ mixing + generator.normal(size=d)


def _slow(first: np.ndarray, second: np.ndarray, one: np.ndarray, two: np.ndarray) -> float:
    """Compute the definition, with the square root of the product of covariances."""
    difference = first.mean(axis=0) - second.mean(axis=0)
    return float(difference @ difference + np.trace(one + two - 2 * scipy.linalg.sqrtm(one @ two).real))


@given(st.integers(1, 8), st.integers(20, 60), st.integers(20, 60), st.integers(0, 99))
@settings(max_examples=30)
def test_distance_agrees_with_the_definition(d: int, n: int, m: int, seed: int) -> None:
    first, second = _sets(n, m, d, seed)
    found = frechet_distance(first, second, num_bootstrap=0)
    covariances = (np.atleast_2d(np.cov(first.T)), np.atleast_2d(np.cov(second.T)))
    assert found.distance == pytest.approx(_slow(first, second, *covariances), rel=1e-6, abs=1e-6)
    assert found.means_part == pytest.approx(((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum())
    assert np.isnan(found.low) and found.nums == (n, m)


@pytest.mark.parametrize(("n", "m"), [(6, 5), (12, 9), (40, 9), (60, 50)])
def test_shrunk_covariances_agree_with_the_definition_even_with_few_rows(n: int, m: int) -> None:
    first, second = _sets(n, m, 20)
    found = frechet_distance(first, second, "ledoit_wolf", num_bootstrap=0)
    shrunk = []
    for table, weight in zip((first, second), found.shrinkages, strict=True):
        assert 0 < weight <= 1 and weight == pytest.approx(ledoit_wolf(table)[1])
        covariance = np.cov(table.T)
        shrunk.append((1 - weight) * covariance + weight * np.trace(covariance) / 20 * np.eye(20))
    assert found.distance == pytest.approx(_slow(first, second, *shrunk), rel=1e-6)


def test_with_fewer_rows_than_columns_it_is_exact_where_the_root_of_a_product_fails() -> None:
    # With a small ridge the definition can be computed; its limit for a vanishing ridge is the distance.
    first, second = _sets(7, 9, 40)
    ridge = 1e-9 * np.eye(40)
    slow = _slow(first, second, np.cov(first.T) + ridge, np.cov(second.T) + ridge)
    assert frechet_distance(first, second, num_bootstrap=0).distance == pytest.approx(slow, rel=1e-3)


def test_equal_sets_are_at_no_distance_and_a_shift_counts_in_full() -> None:
    for n, d in ((30, 5), (10, 50)):
        first, _ = _sets(n, 5, d)
        assert frechet_distance(first, first, num_bootstrap=0).distance == pytest.approx(0, abs=1e-9)
        shifted = frechet_distance(first, first + 1e4, num_bootstrap=0)
        assert shifted.distance == pytest.approx(d * 1e8) and shifted.means_part == pytest.approx(d * 1e8)
        scaled = frechet_distance(first, 3 * first, num_bootstrap=0)
        assert scaled.distance - scaled.means_part == pytest.approx(4 * np.trace(np.cov(first.T)))


def test_it_is_symmetric_and_does_not_change_when_features_are_rotated() -> None:
    first, second = _sets(30, 20, 12)
    turn = scipy.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    found = frechet_distance(first, second, num_bootstrap=0).distance
    assert frechet_distance(second, first, num_bootstrap=0).distance == pytest.approx(found)
    assert frechet_distance(first @ turn, second @ turn, num_bootstrap=0).distance == pytest.approx(found)


def test_the_interval_takes_off_the_excess_of_small_samples() -> None:
    # For two samples of one distribution the true distance is 0, the measured one is not.
    generator = np.random.default_rng(0)
    found = frechet_distance(generator.normal(size=(100, 8)), generator.normal(size=(100, 8)), num_bootstrap=60)
    assert found.distance > 0.1 and found.bias == pytest.approx(found.distance, rel=0.7)
    assert found.low == 0
    # Here the true distance is (3**2) * 8, from the means, and most intervals contain it.
    num_covered = 0
    for seed in range(20):
        generator = np.random.default_rng((1, seed))
        pair = generator.normal(size=(80, 8)), generator.normal(size=(80, 8)) + 3
        found = frechet_distance(*pair, num_bootstrap=80, seed=seed)
        assert found.low < found.high
        num_covered += found.low <= 72 <= found.high
    assert num_covered >= 16


def test_the_bootstrap_of_few_rows_is_that_of_all_columns() -> None:
    # Wide tables are first reduced to few coordinates, and the same draws must give the same interval.
    first, second = _sets(9, 8, 30)
    thin = frechet_distance(first, second, num_bootstrap=20, seed=4)
    basis = scipy.linalg.qr(np.random.default_rng(2).normal(size=(60, 30)), mode="economic")[0]
    wide = frechet_distance(first @ basis.T, second @ basis.T, num_bootstrap=20, seed=4)
    for name in ("distance", "low", "high", "bias"):
        assert getattr(wide, name) == pytest.approx(getattr(thin, name))
    assert frechet_distance(first, second, num_bootstrap=20, seed=4) == thin
    assert frechet_distance(first, second, num_bootstrap=20, seed=5).high != thin.high


def test_sets_with_no_more_rows_than_columns_are_told_and_shrinking_helps_them() -> None:
    generator = np.random.default_rng(0)
    pair = generator.normal(size=(60, 100)), generator.normal(size=(60, 100)) + 0.3  # truly 9 apart
    plain, shrunk = (frechet_distance(*pair, how, num_bootstrap=20) for how in ("none", "ledoit_wolf"))
    assert plain.is_undersampled and not frechet_distance(*_sets(20, 30, 5), num_bootstrap=0).is_undersampled
    assert plain.low > 20 and shrunk.low < 9 < shrunk.high


def test_features_without_spread_differ_by_their_means() -> None:
    found = frechet_distance(np.ones((4, 3)), np.zeros((5, 3)), "ledoit_wolf", num_bootstrap=5)
    assert (found.distance, found.low, found.high, found.bias) == pytest.approx((3, 3, 3, 0))


def test_all_that_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"first set has shape \(1, 3\).*second set has values.*3 and 4 columns.*confidence 1"):
        frechet_distance(np.zeros((1, 3)), np.full((4, 4), np.nan), confidence=1)
