"""IoU, masking and instance matching, compared with slow versions that go pixel by pixel."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cem_assets.benchmarks.segmentation.metrics import (
    count_by_rule,
    count_classes,
    iterations_to_share,
    mask_unlabelled,
    match_instances,
    mean_image_iou,
    mean_over_sets,
)
from cem_assets.benchmarks.segmentation.params import EvaluationRule
from cem_assets.errors import DataError

SHAPES = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(*(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)) for _ in range(2))))


def slow_iou(prediction: np.ndarray, labels: np.ndarray, number: int) -> float:
    mine = {place for place, value in np.ndenumerate(prediction) if value == number}
    known = {place for place, value in np.ndenumerate(labels) if value == number}
    return len(mine & known) / len(mine | known) if mine | known else math.nan


def slow_components(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Find components by flooding from every pixel that is left; neighbours differ by at most one along each axis."""
    left, found = {place for place, value in np.ndenumerate(mask) if value}, []
    while left:
        front = {left.pop()}
        component = set(front)
        while front:
            here = front.pop()
            near = {place for place in left if max(abs(a - b) for a, b in zip(here, place, strict=True)) == 1}
            left -= near
            front |= near
            component |= near
        found.append(component)
    return found


@settings(max_examples=60)
@given(PAIRS)
def test_iou_is_shared_pixels_over_all_pixels_of_a_class(pair):
    found = count_classes(*pair, 4).iou()
    np.testing.assert_allclose(found, [slow_iou(*pair, number) for number in range(4)])


@settings(max_examples=60)
@given(PAIRS)
def test_a_predicted_component_counts_when_it_touches_a_labelled_one(pair):
    prediction, labels = pair
    expected = prediction.copy()
    for number in (1, 3):
        for component in slow_components(prediction == number):
            if not any(labels[place] == number for place in component):
                for place in component:
                    expected[place] = 0
    np.testing.assert_array_equal(match_instances(prediction, labels, (1, 3)), expected)


@settings(max_examples=40)
@given(PAIRS, st.integers(0, 3))
def test_counts_of_parts_add_up_to_those_of_the_whole(pair, cut):
    parts = [count_classes(pair[0][part], pair[1][part], 4) for part in (slice(0, cut), slice(cut, None))]
    np.testing.assert_equal((parts[0] + parts[1]).iou(), count_classes(*pair, 4).iou())


def test_a_component_that_touches_stays_whole_and_a_false_one_goes():
    labels = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.uint8)
    prediction = np.array([[0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], np.uint8)
    kept = match_instances(prediction, labels, (1,))
    assert kept.tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    rule = EvaluationRule("2d", (1,), is_instance_matched=True)
    assert count_by_rule(prediction, labels, 2, rule).iou()[1] == 1 / 4


def test_predictions_count_only_where_something_is_labelled():
    labels, prediction = np.array([[0, 1, 2, 0]], np.uint8), np.array([[2, 2, 2, 1]], np.uint8)
    assert mask_unlabelled(prediction, labels).tolist() == [[0, 2, 2, 0]]
    rule = EvaluationRule("2d", (1, 2), mask_unlabelled=True)
    assert count_by_rule(prediction, labels, 3, rule).iou().tolist() == [1.0, 0.0, 0.5]


def test_an_empty_class_has_no_iou_and_does_not_count_in_the_mean():
    counts = count_classes(np.array([[1, 1, 3]]), np.array([[1, 0, 0]]), 4)
    assert np.isnan(counts.iou()[2])
    assert counts.iou()[3] == 0
    assert counts.mean_iou((1, 2, 3)) == 0.25
    assert math.isnan(counts.mean_iou((2,)))


def test_the_published_mean_is_over_images_and_counts_an_empty_one_as_right():
    empty = count_classes(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), 2)
    half = count_classes(np.ones((4, 4), np.uint8), np.repeat([[1], [0]], 2, 0).repeat(4, 1).astype(np.uint8), 2)
    assert mean_image_iou([empty, half], (1,)) == pytest.approx(0.75, abs=1e-5)
    assert (empty + half).iou()[1] == 0.5
    assert math.isnan(mean_image_iou([], (1,)))


def test_sets_count_alike_and_one_without_a_score_leaves_none():
    assert mean_over_sets({"small": 0.2, "large": 0.8}) == 0.5
    assert math.isnan(mean_over_sets({"small": 0.2, "none": math.nan}))


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), r"shapes are \(2, 2\) and \(2, 3\)"),
        (np.full((2, 2), 2, np.uint8), np.zeros((2, 2), np.uint8), "prediction have values 2 to 2, expected 0 to 1"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), "labels have values 255 to 255"),
        (np.zeros((2, 2), np.float32), np.full((2, 2), -1), "whole numbers; labels have values -1"),
    ],
)
def test_arrays_that_cannot_be_compared_are_refused(prediction, labels, message):
    with pytest.raises(DataError, match=message):
        count_by_rule(prediction, labels, 2, EvaluationRule("2d", (1,)))


@pytest.mark.parametrize(
    ("scores", "share", "expected"),
    [
        ([0.1, 0.5, 0.76, 0.8, 0.79], 0.95, 30),  # 0.76 is 95 % of 0.8
        ([0.1, 0.5, 0.75, 0.8, 0.79], 0.95, 40),
        ([0.8, 0.1, 0.2, 0.1, 0.1], 0.95, 10),
        ([math.nan, 0.5, 0.5, 0.5, 0.5], 1.0, 20),
        ([math.nan] * 5, 0.95, None),
    ],
)
def test_the_first_step_near_the_best_is_found(scores, share, expected):
    assert iterations_to_share([10, 20, 30, 40, 50], scores, share) == expected


def test_steps_that_do_not_increase_are_refused():
    with pytest.raises(ValueError, match="increasing steps"):
        iterations_to_share([10, 10], [0.1, 0.2])
