"""Nearest neighbours and the spread of features, compared with slow references written from the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cem_assets.pretraining.training.knn import encode_images, feature_std, hold_out, measure_knn, nearest_labels

CPU = torch.device("cpu")


def slow_label(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int) -> int:
    """Compute the labels for one query and one neighbour at a time."""
    similarity = [float(np.dot(row, query) / (np.linalg.norm(row) * np.linalg.norm(query))) for row in bank]
    nearest = sorted(range(len(bank)), key=lambda row: -similarity[row])[:k]
    votes: dict[int, int] = {}
    for row in nearest:
        votes[int(labels[row])] = votes.get(int(labels[row]), 0) + 1
    tied = [label for label, count in votes.items() if count == max(votes.values())]
    return next(int(labels[row]) for row in nearest if labels[row] in tied)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5), st.integers(1, 12))
def test_labels_equal_a_slow_search(seed, num, num_labels, k):
    generator = np.random.default_rng(seed)
    bank, queries = generator.normal(size=(num, 6)), generator.normal(size=(7, 6))
    labels = generator.integers(0, num_labels, num)
    found = nearest_labels(bank.astype(np.float32), labels, queries.astype(np.float32), k)
    assert found.tolist() == [slow_label(bank, labels, query, k) for query in queries]


@pytest.mark.parametrize(
    ("angles", "labels", "k", "expected"),
    [
        ([10, 20, 30, 40], [1, 2, 2, 1], 1, 1),
        ([10, 20, 30, 40], [1, 2, 2, 1], 3, 2),
        ([10, 20, 30, 40], [1, 2, 2, 1], 4, 1),  # two votes each: the nearest of all decides
        ([10, 20, 30, 40, 50], [3, 2, 2, 1, 1], 5, 2),  # 3 is nearest but not among the tied
        ([10, 20], [5, 6], 20, 5),  # fewer than k are known
        ([10, 10], [8, 7], 1, 8),  # equally near: the earlier row
    ],
)
def test_votes_and_ties(angles, labels, k, expected):
    radians = np.deg2rad(angles)
    bank = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    assert nearest_labels(bank, np.array(labels), np.array([[1, 0]], np.float32), k).tolist() == [expected]


def test_the_length_of_features_does_not_matter():
    bank = np.array([[1, 0], [0, 100]], np.float32)
    assert nearest_labels(bank, np.array([0, 1]), np.array([[3, 2]], np.float32), 1).tolist() == [0]


def test_accuracy_stands_beside_chance():
    bank = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    queries = np.array([[1, 0], [0, 1], [0.1, 1], [1, 0]], np.float32)
    result = measure_knn(bank, np.array([4, 4, 9]), queries, np.array([4, 9, 4, 4]), k=1)
    assert (result.accuracy, result.chance, result.num_queries) == (0.75, 0.75, 4)


def test_spread_directions_give_one_over_the_root_of_the_dimension_and_collapse_gives_nothing():
    spread = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    assert feature_std(spread) == pytest.approx(1 / 4, rel=0.01)
    assert feature_std(np.outer(np.arange(1, 9), np.arange(1, 5)).astype(np.float32)) == pytest.approx(0, abs=1e-6)
    assert np.isnan(feature_std(np.empty((0, 4), np.float32)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 2, 2), "0 features and k = 20"),
        ((3, 2, 2, 2), "3 features with 2 labels"),
        ((3, 3, 2, 1), "2 held out with 1 labels"),
        ((3, 3, 0, 0), "0 held out"),
    ],
)
def test_numbers_that_do_not_fit_are_told(arguments, message):
    n, n_labels, m, m_labels = arguments
    with pytest.raises(ValueError, match=message):
        measure_knn(
            np.ones((n, 4), np.float32), np.zeros(n_labels, np.int64), np.ones((m, 4), np.float32), np.zeros(m_labels, np.int64)
        )


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0.05, 0.95), st.integers(0, 100))
def test_every_dataset_is_held_out_alike(labels, share, seed):
    labels = np.array(labels, np.int64)
    training, held = hold_out(labels, share, seed)
    assert sorted([*training, *held]) == list(range(len(labels)))
    for label in np.unique(labels):
        size, num_held = int((labels == label).sum()), int((labels[held] == label).sum())
        assert num_held == (0 if size == 1 else min(max(1, round(share * size)), size - 1))
    again = hold_out(labels, share, seed)
    assert np.array_equal(training, again[0]) and np.array_equal(held, again[1])


def test_another_seed_holds_out_others_and_another_dataset_changes_nothing_for_the_first():
    labels = np.zeros(100, np.int64)
    first, other = hold_out(labels, 0.2, 0)[1], hold_out(labels, 0.2, 1)[1]
    assert not np.array_equal(first, other)
    assert np.array_equal(hold_out(np.append(labels, [1] * 50), 0.2, 0)[1][:20], first)
    with pytest.raises(ValueError, match="share is 1.5"):
        hold_out(labels, 1.5, 0)


def test_features_are_those_of_evaluation_mode_on_normalised_pixels():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder[1].eval()  # a mixture of modes must come back as it was
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12), dtype=np.uint8)
    found = encode_images(encoder, images, (0.4, 0.2), CPU, batch_size=2)
    assert [module.training for module in encoder] == [True, False, True, True, True]
    encoder.eval()
    with torch.no_grad():
        expected = encoder((torch.from_numpy(images)[:, None] / 255.0 - 0.4) / 0.2).numpy()
    assert found.shape == (5, 4) and np.allclose(found, expected, atol=1e-6)
    assert not torch.is_inference_mode_enabled()


def test_half_precision_features_are_close_and_an_empty_set_has_none():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12), dtype=np.uint8)
    exact = encode_images(encoder, images, (0.5, 0.25), CPU)
    rounded = encode_images(encoder, images, (0.5, 0.25), CPU, dtype=torch.bfloat16)
    assert rounded.dtype == np.float32 and np.allclose(exact, rounded, atol=0.02) and not np.array_equal(exact, rounded)
    assert len(encode_images(encoder, images[:0], (0.5, 0.25), CPU)) == 0
