"""Distances equal their definition, and layouts on a plane are seeded and keep clusters apart."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.cytoimagenet.feature_space import cosine_distances, umap_points
from cem_assets.errors import DataError

# Distances


def by_pairs(features: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """Compute the distances of all pairs one by one, which is slow."""
    rows = []
    for label in sorted(set(labels)):
        within, between = [], []
        for i, j in ((i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j and labels[i] == label):
            cosine = features[i] @ features[j] / (np.linalg.norm(features[i]) * np.linalg.norm(features[j]))
            (within if labels[j] == label else between).append(1 - cosine)
        rows.append(
            (label, labels.count(label), np.mean(within) if within else np.nan, np.mean(between) if between else np.nan)
        )
    return pd.DataFrame(rows, columns=["label", "num_images", "within", "between"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=24), st.integers(1, 6), st.integers(0, 10_000))
def test_distances_equal_the_mean_over_all_pairs(labels, width, seed):
    features = np.random.default_rng(seed).normal(0.4, 1, (len(labels), width)).astype(np.float32)
    found, expected = cosine_distances(features, labels), by_pairs(features.astype(np.float64), labels)
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=0, atol=1e-9, check_dtype=False)


def test_distances_of_equal_opposite_and_orthogonal_features():
    features = np.array([[2.0, 0], [5, 0], [0, 1], [0, -1]])
    found = cosine_distances(features, ["same", "same", "opposite", "opposite"])
    assert found.to_dict("list") == {
        "label": ["opposite", "same"],
        "num_images": [2, 2],
        "within": [2.0, 0.0],
        "between": [1.0, 1.0],
    }


def test_single_images_and_single_classes_have_no_distance():
    alone = cosine_distances(np.ones((3, 2)), ["a", "a", "b"])
    assert np.isnan(alone["within"][1]) and alone["within"][0] == pytest.approx(0, abs=1e-12)
    assert np.isnan(cosine_distances(np.ones((2, 2)), ["a", "a"])["between"][0])
    assert cosine_distances(np.empty((0, 4)), []).shape == (0, 4)


def test_a_hundred_thousand_features_are_no_hindrance():
    features = np.random.default_rng(0).normal(size=(100_000, 8)).astype(np.float32)
    found = cosine_distances(features, [f"{n % 50}" for n in range(100_000)])
    assert len(found) == 50 and np.allclose(found["between"], 1, atol=0.02)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_features_without_a_direction_are_named(bad):
    features = np.ones((4, 3))
    features[2] = bad
    with pytest.raises(DataError, match="1 of 4 feature vectors.*first in row 2"):
        cosine_distances(features, ["a"] * 4)


def test_features_and_labels_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="for 2 labels"):
        cosine_distances(np.ones((3, 2)), ["a", "b"])


# Layouts


def clusters(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    which = np.arange(3 * num) % 3
    return generator.normal(0, 0.3, (3 * num, 16)) + np.eye(3, 16)[which] * 3, which


def test_umap_is_seeded_keeps_clusters_apart_and_touches_no_global_generator():
    features, which = clusters(20, 0)
    np.random.seed(5)  # noqa: NPY002
    first = umap_points(features, 3)
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(99)  # noqa: NPY002
    second = umap_points(features, 3)
    np.random.seed(5)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    assert first.dtype == np.float32 and first.shape == (60, 2) and np.array_equal(first, second)
    assert not np.array_equal(first, umap_points(features, 4))
    apart = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (which[apart.argmin(axis=1)] == which).mean() > 0.95


@pytest.mark.parametrize("num", [10, 11])
def test_umap_of_the_fewest_images(num):
    features, _ = clusters(4, 1)
    points = umap_points(features[:num], 0)
    assert points.shape == (num, 2) and np.isfinite(points).all()


@pytest.mark.parametrize("num", [0, 1, 2, 3, 9])
def test_few_images_are_laid_out_by_their_principal_components(num):
    features, _ = clusters(3, 2)
    features = features[:num]
    points = umap_points(features, 0)
    assert points.shape == (num, 2) and points.dtype == np.float32
    if num > 2:
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        values, vectors = np.linalg.eigh(np.cov(units.T))  # the definition
        expected = (units - units.mean(axis=0)) @ vectors[:, np.argsort(values)[::-1][:2]]
        assert np.allclose(np.abs(points), np.abs(expected), atol=1e-5)
        assert (points[np.abs(points).argmax(axis=0), [0, 1]] > 0).all()


def test_features_that_cannot_be_laid_out_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4,\); expected \(n, d\)"):
        umap_points(np.ones(4), 0)
    with pytest.raises(DataError, match=r"expected \(n, d\) with finite numbers"):
        umap_points(np.array([[1.0, np.nan]]), 0)
