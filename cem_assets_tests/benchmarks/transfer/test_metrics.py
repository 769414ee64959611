"""Accuracies by nearest neighbours are compared with slow definitions in exact fractions."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.benchmarks.transfer import metrics
from cem_assets.benchmarks.transfer.metrics import (
    confidence_interval,
    knn_predictions,
    leave_one_out_knn_predictions,
    not_same_compound_predictions,
)
from cem_assets.benchmarks.transfer.neighbours import nearest_rows


def not_same_compound_accuracy(features, moa, compound, metric="cosine") -> float:
    return not_same_compound_predictions(features, moa, compound, metric).accuracy()


def not_same_compound_or_batch_accuracy(features, moa, compound, batch, metric="cosine", unanswerable="leave_out") -> float:
    return not_same_compound_predictions(features, moa, compound, metric, batch, unanswerable).accuracy()


METRICS = ("cosine", "correlation", "euclidean")


def slow_farness(a, b, metric: str) -> Fraction:
    """Return a number that grows with the distance, in exact arithmetic and without code of the package."""
    a, b = [Fraction(float(x)) for x in a], [Fraction(float(x)) for x in b]
    if metric == "euclidean":
        return sum(((x - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction(0))
    if metric == "correlation":
        a, b = [x - sum(a) / len(a) for x in a], [x - sum(b) / len(b) for x in b]
    dot = sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))
    lengths = sum(x * x for x in a) * sum(x * x for x in b)
    if not lengths:
        return Fraction(0)
    return -(dot * abs(dot)) / lengths  # has the same order as minus the cosine


def slow_nearest(query, rows, metric, k, allowed):
    return sorted((n for n in range(len(rows)) if allowed(n)), key=lambda n: (slow_farness(query, rows[n], metric), n))[:k]


def slow_vote(labels):
    counts = {label: labels.count(label) for label in labels}
    return next((label for label in labels if counts[label] == max(counts.values())), None)


@st.composite
def tables(draw):
    num, width = draw(st.integers(2, 14)), draw(st.integers(1, 4))
    cells = draw(st.lists(st.integers(-3, 3), min_size=num * width, max_size=num * width))
    return np.array(cells, dtype=float).reshape(num, width), draw(st.integers(0, 1 << 20))


@settings(max_examples=80)
@given(tables(), st.sampled_from(METRICS), st.integers(1, 5), st.integers(1, 60))
def test_neighbours_are_those_of_exact_arithmetic_whatever_the_pieces(table, metric, k, piece_cells):
    rows, seed = table
    queries = np.random.default_rng(seed).integers(-3, 4, (5, rows.shape[1])).astype(float)
    found = nearest_rows(queries, rows, k, metric, piece_cells=piece_cells)
    for query, line in zip(queries, found.tolist(), strict=True):
        expected = slow_nearest(query, rows, metric, k, lambda n: True)
        assert line == expected + [-1] * (k - len(expected))


@settings(max_examples=60)
@given(tables(), st.sampled_from(METRICS), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_not_same_compound_equals_its_definition(table, metric, num_compounds, num_moas, has_batches):
    rows, seed = table
    generator = np.random.default_rng(seed)
    compound = generator.integers(0, num_compounds, len(rows)).tolist()
    moa = [f"m{n}" for n in generator.integers(0, num_moas, len(rows))]
    batch = [set(generator.choice(4, generator.integers(1, 3), replace=False).tolist()) for _ in rows] if has_batches else None

    def allowed(a, b):
        return compound[a] != compound[b] and (batch is None or not batch[a] & batch[b])

    nearest = [slow_nearest(rows[a], rows, metric, 1, lambda b, a=a: allowed(a, b)) for a in range(len(rows))]
    expected = [moa[line[0]] if line else None for line in nearest]
    counted = [any(allowed(a, b) and moa[a] == moa[b] for b in range(len(rows))) for a in range(len(rows))]
    if not any(nearest):
        with pytest.raises(ValueError, match="none has a neighbour"):
            not_same_compound_predictions(rows, moa, compound, metric, batch)
        return
    for unanswerable in ("wrong", "leave_out"):
        found = not_same_compound_predictions(rows, moa, compound, metric, batch, unanswerable)
        assert found.predicted.tolist() == expected
        assert found.is_counted.tolist() == (counted if unanswerable == "leave_out" else [True] * len(rows))
    right = sum(a == b for a, b in zip(expected, moa, strict=True))
    if batch is None:
        assert not_same_compound_accuracy(rows, moa, compound, metric) == right / len(rows)
    elif any(counted):
        share = sum(a == b and c for a, b, c in zip(expected, moa, counted, strict=True)) / sum(counted)
        assert not_same_compound_or_batch_accuracy(rows, moa, compound, batch, metric) == share


@settings(max_examples=60)
@given(tables(), st.sampled_from(METRICS), st.integers(1, 7), st.integers(1, 4))
def test_votes_equal_a_slow_search(table, metric, k, num_labels):
    rows, seed = table
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_labels, len(rows)).tolist()
    queries = generator.integers(-3, 4, (4, rows.shape[1])).astype(float)
    expected = [slow_vote([labels[n] for n in slow_nearest(query, rows, metric, k, lambda n: True)]) for query in queries]
    assert knn_predictions(rows, labels, queries, [0] * 4, k, metric).predicted.tolist() == expected
    expected = [
        slow_vote([labels[n] for n in slow_nearest(rows[a], rows, metric, k, lambda n, a=a: n != a)]) for a in range(len(rows))
    ]
    found = leave_one_out_knn_predictions(rows, labels, k, metric)
    assert found.predicted.tolist() == expected
    assert found.accuracy() == np.mean([a == b for a, b in zip(expected, labels, strict=True)])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_large_tables_agree_with_plain_float64_distances(metric, shift):
    from scipy.spatial.distance import cdist

    generator = np.random.default_rng(1)
    bank = (generator.normal(size=(900, 70)) + shift).astype(np.float32).astype(float)
    bank[50] *= 1e3  # one very long row must not blur the rest
    queries = (generator.normal(size=(80, 70)) + shift).astype(np.float32).astype(float)
    if metric == "cosine":  # 1 - cosine would lose digits by cancellation
        units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, bank)]
        distances = cdist(*units, "euclidean")
    else:
        distances = cdist(queries, bank, metric)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :11]
    for piece_cells in (900, 900 * 7, 1 << 24):
        assert np.array_equal(nearest_rows(queries, bank, 11, metric, piece_cells=piece_cells), expected)


@pytest.mark.parametrize("scale", [1e-250, 1e-30, 1.0, 1e30, 1e250])
@pytest.mark.parametrize("metric", METRICS)
def test_very_large_and_very_small_numbers_have_the_same_neighbours(scale, metric):
    rows = np.random.default_rng(0).normal(size=(30, 5))
    expected = nearest_rows(rows, rows, 4, metric)
    assert np.array_equal(nearest_rows(rows * scale, rows * scale, 4, metric), expected)


def test_collapsed_features_tie_and_the_earliest_row_wins():
    rows = np.full((3000, 64), 0.1)
    labels = np.arange(3000)
    for metric in METRICS:
        found = leave_one_out_knn_predictions(rows, labels, 1, metric).predicted.tolist()
        assert found == [1] + [0] * 2999


@pytest.mark.parametrize(
    ("places", "labels", "k", "expected"),
    [
        ([1, 2, 3, 4], "abba", 1, "a"),
        ([1, 2, 3, 4], "abba", 3, "b"),
        ([1, 2, 3, 4], "abba", 4, "a"),  # two votes each, so the nearest of all decides
        ([1, 2, 3, 4, 5], "cbbaa", 5, "b"),  # c is nearest, but not among the tied labels
        ([1, 2], "xy", 20, "x"),  # there are fewer than k
        ([1, 1], "qp", 1, "q"),  # equally near, so the earlier row decides
        ([2, -2, 1], "zyx", 2, "x"),
    ],
)
def test_votes_and_ties(places, labels, k, expected):
    train = np.array(places, dtype=float)[:, None]
    assert knn_predictions(train, list(labels), [[0.0]], [expected], k).predicted.tolist() == [expected]
    assert knn_predictions(train, list(labels), [[0.0]], [expected], k).accuracy() == 1.0


def test_the_compounds_own_treatments_are_no_neighbours():
    rows = np.array([[1, 0], [1, 0.01], [0.9, 0.5], [0, 1]])
    moa, compound = ["a", "a", "b", "b"], ["x", "x", "y", "z"]
    found = not_same_compound_predictions(rows, moa, compound)
    assert found.predicted.tolist() == ["b", "b", "a", "b"]
    assert not_same_compound_accuracy(rows.tolist(), pd.Series(moa, index=[9, 8, 7, 6]), np.array(compound)) == 0.25
    expected = pd.DataFrame([[0, 1], [2, 1]], index=pd.Index(["a", "b"]), columns=pd.Index(["a", "b"]))
    assert found.confusion().to_numpy().tolist() == expected.to_numpy().tolist()
    assert (found.confusion().index.name, found.confusion().columns.name) == ("predicted", "true")


def test_treatments_that_share_any_batch_are_no_neighbours():
    rows = np.array([[0.0], [0.1], [0.2], [5.0]])
    moa, compound = ["a", "b", "a", "b"], ["p", "q", "r", "s"]
    batch = [{1, 2}, {2, 3}, {3}, [4]]
    found = not_same_compound_predictions(rows, moa, compound, "euclidean", batch)
    assert found.predicted.tolist() == ["a", "b", "a", "a"]
    assert found.num_right() == 3 and not_same_compound_or_batch_accuracy(rows, moa, compound, batch, "euclidean") == 0.75


def test_treatments_that_cannot_be_right_are_left_out_of_batch_accuracy_unless_asked():
    rows = np.array([[0.0], [1.0], [2.0], [3.0]])
    moa, compound, batch = ["a", "a", "b", "b"], ["p", "q", "r", "s"], ["one", "one", "two", "three"]
    found = not_same_compound_predictions(rows, moa, compound, "euclidean", batch, "leave_out")
    assert found.is_counted.tolist() == [False, False, True, True]
    assert not_same_compound_or_batch_accuracy(rows, moa, compound, batch, "euclidean") == 0.5
    assert not_same_compound_or_batch_accuracy(rows, moa, compound, batch, "euclidean", "wrong") == 0.25


def test_a_treatment_without_any_neighbour_is_wrong_and_shown():
    found = not_same_compound_predictions([[0], [1], [2]], "aab", "pqr", "euclidean", [(1, 2, 3), 2, 3])
    assert found.predicted.tolist() == [None, "b", "a"] and found.accuracy() == 0
    assert found.confusion().loc[metrics.NO_NEIGHBOUR].tolist() == [1, 0]


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_rows_without_direction_are_equally_far_from_all(metric):
    flat = [0.0, 0.0, 0.0] if metric == "cosine" else [0.1, 0.1, 0.1]
    rows = [flat, flat, [1, 2, 4.0], [-1, -2, -4.0]]
    assert nearest_rows(np.array(rows), np.array(rows), 4, metric).tolist() == [
        [0, 1, 2, 3], [0, 1, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2],
    ]  # fmt: skip


def test_parallel_rows_tie_under_cosine_whatever_their_length():
    generator = np.random.default_rng(0)
    row = generator.normal(size=2560)
    bank = np.stack([row * scale for scale in (3.0, 0.7, 1.0, 1e-3)])
    assert nearest_rows(generator.normal(size=(20, 2560)), bank, 4, "cosine").tolist() == [[0, 1, 2, 3]] * 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: not_same_compound_accuracy([[1], [2]], "ab", "pp"), "no two of the 2 treatments differ in compound"),
        (lambda: not_same_compound_accuracy(np.empty((0, 3)), [], []), "no two of the 0 treatments"),
        (lambda: not_same_compound_accuracy([[1], [2]], "ab", "pq", "manhattan"), "'manhattan'; expected one of cosine"),
        (lambda: not_same_compound_accuracy([[1], [2]], "a", "pq"), "1 values of moa for 2 rows"),
        (lambda: not_same_compound_accuracy([[1], [2]], ["a", None], "pq"), r"moa is missing in 1 rows \(1\)"),
        (lambda: not_same_compound_accuracy([[1], [2]], "ab", ["p", float("nan")]), "compound is missing in 1 rows"),
        (lambda: not_same_compound_accuracy([1, 2], "ab", "pq"), r"shape \(2,\); expected \(n, d\)"),
        (lambda: not_same_compound_accuracy([["x"], ["y"]], "ab", "pq"), "no table of numbers"),
        (lambda: not_same_compound_accuracy([[1, np.nan], [2, 3]], "ab", "pq"), r"1 rows \(0\) and 1 columns \(1\)"),
        (
            lambda: not_same_compound_accuracy(
                pd.DataFrame({"area": [1, 2], "hue": [np.inf, 1]}, index=["u", "v"]), "ab", "pq"
            ),
            r"1 rows \(u\) and 1 columns \(hue\)",
        ),
        (lambda: not_same_compound_or_batch_accuracy([[1], [2]], "ab", "pq", [set(), 1]), "row 0 is in no batch"),
        (lambda: not_same_compound_or_batch_accuracy([[1], [2]], "ab", "pq", [1, 1]), "differ in compound or batch"),
        (lambda: not_same_compound_or_batch_accuracy([[1], [2]], "ab", "pq", [1, 2]), "no sample is counted"),
        (lambda: knn_predictions([[1, 2]], "a", [[1]], "a"), "1 features are compared with 2"),
        (lambda: knn_predictions(np.empty((0, 2)), [], [[1, 2]], "a"), "0 training and 1 test"),
        (lambda: knn_predictions([[1]], "a", [[1]], "a", k=0), "k is 0"),
        (lambda: leave_one_out_knn_predictions([[1]], "a"), "1 samples"),
    ],
)
def test_what_cannot_be_scored_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("p", "n", "expected"), [(0.5, 100, 0.098), (84 / 103, 103, 0.07481), (0, 5, 0), (1, 5, 0)])
def test_interval_is_the_normal_one(p, n, expected):
    assert confidence_interval(p, n) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("p", "n"), [(-0.1, 4), (1.1, 4), (0.5, 0), (float("nan"), 3)])
def test_an_interval_of_nothing_is_refused(p, n):
    with pytest.raises(ValueError, match="expected a share"):
        confidence_interval(p, n)
