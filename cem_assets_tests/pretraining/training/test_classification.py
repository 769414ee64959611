"""Scores of a classifier, compared with slow references written from the definition, and the scoring of a network."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.pixels.batch import Batch
from cem_assets.pretraining.methods.params import params_for
from cem_assets.pretraining.methods.supervised import Supervised
from cem_assets.pretraining.training.classification import (
    ClassificationResult,
    ClassificationScores,
    evaluate_classifier,
)
from cem_assets.pretraining.views.augmentations import normalised
from cem_assets_tests.pretraining.batches import gratings
from cem_assets_tests.pretraining.training.classified import score_classification

CPU = torch.device("cpu")
CATEGORIES = ("compound", "gene", "organism")


def named(num: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(f"class {n}" for n in range(num)), tuple(CATEGORIES[n % 3] for n in range(num))


def scored(logits: list[list[float]], labels: list[int]) -> ClassificationResult:
    return score_classification(np.array(logits, np.float32), np.array(labels), *named(len(logits[0])))


def same(left: ClassificationResult, right: ClassificationResult) -> bool:
    return left.to_json() == right.to_json() and np.array_equal(left.confusion, right.confusion)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 9), st.booleans())
def test_scores_equal_a_slow_count(seed, num, num_classes, has_ties):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, (num, num_classes)).astype(np.float32)
    if has_ties:
        logits = np.round(logits / 3)
    labels = generator.integers(0, num_classes, num)
    classes, categories = named(num_classes)
    result = score_classification(logits, labels, classes, categories)
    losses, right, top5, confusion = [], [], [], {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(num_classes), key=lambda n: (-row[n], n))
        right.append(ranked[0] == label)
        top5.append(label in ranked[:5])
        losses.append(-math.log(math.exp(row[label]) / sum(math.exp(score) for score in row)))
        confusion[label, ranked[0]] = confusion.get((label, ranked[0]), 0) + 1
    assert (result.num_images, result.top1, result.top5) == (num, sum(right) / num, sum(top5) / num)
    assert result.loss == pytest.approx(sum(losses) / num, rel=1e-9)
    assert {pair: int(result.confusion[pair]) for pair in zip(*np.nonzero(result.confusion), strict=True)} == confusion
    for n in range(num_classes):
        of_class = [place for place in range(num) if labels[place] == n]
        assert result.class_num_images[n] == len(of_class)
        for shares, hits in ((result.class_top1, right), (result.class_top5, top5)):
            expected = sum(hits[place] for place in of_class) / len(of_class) if of_class else math.nan
            assert shares[n] == pytest.approx(expected, nan_ok=True)
    assert list(result.per_category) == sorted(set(categories))
    for category, (accuracy, num_images) in result.per_category.items():
        of_category = [place for place in range(num) if categories[labels[place]] == category]
        assert num_images == len(of_category)
        expected = sum(right[place] for place in of_category) / len(of_category) if of_category else math.nan
        assert accuracy == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.lists(st.integers(0, 60), max_size=5))
def test_neither_batches_nor_order_change_a_bit(seed, num, cuts):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(num, 7)).astype(np.float32), generator.integers(0, 7, num)
    whole = score_classification(logits, labels, *named(7))
    order = generator.permutation(num)
    scores = ClassificationScores(*named(7))
    for rows in np.split(order, sorted(min(cut, num) for cut in cuts)):
        scores.add(logits[rows], labels[rows])
    assert same(scores.result(), whole)


def test_more_images_than_are_scored_at_once_are_all_counted():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(5000, 3)).astype(np.float32), generator.integers(0, 3, 5000)
    result = score_classification(logits, labels, *named(3))
    assert result.num_images == result.confusion.sum() == 5000
    assert result.top1 == np.mean(logits.argmax(axis=1) == labels)


@pytest.mark.parametrize(
    ("logits", "label", "is_top1", "is_top5"),
    [
        ([0, 0, 0, 0, 0, 0, 0], 0, True, True),  # all alike: the lower number first
        ([0, 0, 0, 0, 0, 0, 0], 1, False, True),
        ([0, 0, 0, 0, 0, 0, 0], 4, False, True),
        ([0, 0, 0, 0, 0, 0, 0], 5, False, False),
        ([1, 2, 3, 4, 5, 6, 7], 2, False, True),
        ([1, 2, 3, 4, 5, 6, 7], 1, False, False),
        ([7, 6, 5, 4, 3, 3, 1], 4, False, True),
        ([7, 6, 5, 4, 3, 3, 1], 5, False, False),
    ],
)
def test_equal_scores_rank_by_class_number(logits, label, is_top1, is_top5):
    result = scored([logits], [label])
    assert (result.top1, result.top5) == (float(is_top1), float(is_top5))


def test_extreme_scores_have_an_exact_loss():
    assert scored([[1e30, 0]], [0]).loss == 0
    assert scored([[1000, 0]], [1]).loss == 1000
    assert scored([[0] * 8], [3]).loss == pytest.approx(math.log(8))


def test_a_result_stays_as_it_was_when_more_is_added():
    scores = ClassificationScores(*named(2))
    scores.add(np.array([[1, 0]], np.float32), np.array([0]))
    first = scores.result()
    scores.add(np.array([[1, 0]], np.float32), np.array([1]))
    assert first.confusion.tolist() == [[1, 0], [0, 0]] and first.top1 == 1
    assert scores.result().confusion.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 4)), np.zeros(2, np.int64), r"shape \(2, 4\) and labels \(2,\), expected \(n, 3\)"),
        (np.zeros((2, 3)), np.zeros(1, np.int64), r"shape \(2, 3\) and labels \(1,\)"),
        (np.zeros(3), np.zeros(3, np.int64), r"shape \(3,\)"),
        (np.zeros((1, 3)), np.zeros(1), "labels are float64, expected integers"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels are 0 to 3, expected 0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "labels are -1 to 0"),
        (np.array([[0, 0, np.nan], [0, 0, 0]]), np.array([0, 0]), "1 of 2 images are not finite"),
        (np.array([[0, 0, np.inf], [0, 0, 0]]), np.array([0, 9]), "labels are 0 to 9"),
        (np.array([[0, 0, np.inf], [0, 0, 0]]), np.array([0, 1]), "scores of 1 of 2 images are not finite"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_whole(logits, labels, message):
    scores = ClassificationScores(*named(3))
    scores.add(np.eye(3, dtype=np.float32), np.arange(3))
    before = scores.result()
    with pytest.raises(ValueError, match=message):
        scores.add(logits.astype(np.float32), labels)
    assert same(scores.result(), before)


@pytest.mark.parametrize(
    ("classes", "categories", "message"),
    [
        (("a",), ("x",), r"1 class\(es\), expected 2"),
        (("a", "b", "a"), ("x",) * 3, "a named more than once"),
        (("a", "b"), ("x",), "1 categories for 2 classes"),
    ],
)
def test_classes_that_make_no_sense_are_refused(classes, categories, message):
    with pytest.raises(ValueError, match=message):
        ClassificationScores(classes, categories)


def test_scores_of_nothing_are_refused():
    scores = ClassificationScores(*named(3))
    scores.add(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="no image was scored"):
        scores.result()


def test_json_holds_everything_and_no_nan():
    logits = np.zeros((4, 4), np.float32)
    logits[np.arange(4), [0, 1, 1, 0]] = 1
    result = score_classification(logits, np.array([0, 0, 1, 1]), *named(4))
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["per_class"][3] == {
        "label": "class 3", "category": "compound", "num_images": 0, "top1": None, "top5": None,
    }  # fmt: skip
    assert found["per_category"] == {
        "compound": {"num_images": 2, "top1": 0.5},
        "gene": {"num_images": 2, "top1": 0.5},
        "organism": {"num_images": 0, "top1": None},
    }
    assert found["confusion"] == [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert (found["num_images"], found["top1"], found["top5"]) == (4, 0.5, 1.0) and found["loss"] == result.loss


def stream(images: np.ndarray, labels: np.ndarray, size: int) -> Iterator[Batch]:
    for number, start in enumerate(range(0, len(labels), size)):
        rows = np.arange(start, min(start + size, len(labels)))
        yield Batch(number, rows, images[rows], labels[rows])


def example(size_px: int = 32) -> tuple[Supervised, np.ndarray, np.ndarray]:
    method = Supervised(params_for("supervised", "smoke", dropout=0.5), "resnet18", 100, 6)
    labels = np.arange(10) % 6
    return method, gratings(labels, size_px, np.random.default_rng(0)), labels


def test_a_network_is_scored_in_evaluation_mode_and_left_as_it_was():
    method, images, labels = example()
    method.backbone.eval()  # a mixture of modes must come back as it was
    modes, state = [module.training for module in method.modules()], {k: v.clone() for k, v in method.state_dict().items()}
    found = evaluate_classifier(method, stream(images, labels, 4), *named(6), (0.4, 0.2), CPU)
    assert [module.training for module in method.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert not torch.is_inference_mode_enabled()
    method.eval()
    with torch.no_grad():
        logits = method.logits(normalised(torch.from_numpy(images), 0.4, 0.2)).numpy()
    expected = score_classification(logits, labels, *named(6))
    assert np.array_equal(found.confusion, expected.confusion) and found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_the_mode_comes_back_after_an_error_too():
    method, images, labels = example()
    with pytest.raises(ValueError, match="labels are 0 to 6, expected 0 to 5"):
        evaluate_classifier(method, stream(images, np.arange(10) % 7, 10), *named(6), (0.4, 0.2), CPU)
    assert all(module.training for module in method.modules())
    with pytest.raises(ValueError, match="5 classes were named; expected 6"):
        evaluate_classifier(method, stream(images, labels, 10), *named(5), (0.4, 0.2), CPU)


def test_larger_images_are_shown_whole_at_the_size_of_the_views():
    method, images, labels = example(size_px=64)
    seen = []
    method.backbone.register_forward_hook(lambda _, inputs, outputs: seen.append(inputs[0].clone()))
    evaluate_classifier(method, stream(images, labels, 10), *named(6), (0.4, 0.2), CPU)
    averaged = images.reshape(10, 32, 2, 32, 2).astype(np.float64).mean(axis=(2, 4))
    expected = (averaged[:, None] / 255 - 0.4) / 0.2
    assert seen[0].shape == (10, 1, 32, 32) and np.allclose(seen[0].numpy(), expected, atol=1e-4)


def test_half_precision_is_close():
    method, images, labels = example()
    exact = evaluate_classifier(method, stream(images, labels, 10), *named(6), (0.4, 0.2), CPU)
    rounded = evaluate_classifier(method, stream(images, labels, 10), *named(6), (0.4, 0.2), CPU, torch.bfloat16)
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05) and rounded.loss != exact.loss
