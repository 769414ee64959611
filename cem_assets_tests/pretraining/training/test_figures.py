"""Figures of a run: they are small, equal for equal data, and show the data they describe."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from cem_assets.imaging.gallery import MAX_BYTES
from cem_assets.pretraining.methods.params import params_for
from cem_assets.pretraining.training import figures
from cem_assets.pretraining.training.checkpoints import EpochResult
from cem_assets.pretraining.training.classification import ClassificationResult
from cem_assets.pretraining.training.figures import confusion_png, curves_png, views_png
from cem_assets.pretraining.views.augmentations import AugmentationParams, BatchAugmentation
from cem_assets_tests.pretraining.training.classified import score_classification

CATEGORIES = ("compound", "gene", "organism")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the matplotlib figures from which the PNG bytes are made."""
    found, render = [], figures.figure_png

    def keep(figure: Figure) -> bytes:
        found.append(figure)
        return render(figure)

    monkeypatch.setattr(figures, "figure_png", keep)
    return found


def opened(data: bytes) -> Image.Image:
    assert len(data) <= MAX_BYTES
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "PNG"
    picture.load()
    return picture


def epoch(number: int, **indicators: float) -> EpochResult:
    return EpochResult(number, number * 10, 4.0 / number, 0.1 / number, 100.0, 1.0, 0, indicators)


def classified(num_classes: int, num: int = 600) -> ClassificationResult:
    generator = np.random.default_rng(num_classes)
    logits, labels = generator.normal(size=(num, num_classes)).astype(np.float32), generator.integers(0, num_classes, num)
    logits[np.arange(num), labels] += 2
    categories = [CATEGORIES[n % 3] for n in range(num_classes)]
    return score_classification(logits, labels, [f"a long name of a class, ${n}" for n in range(num_classes)], categories)


def test_every_measure_has_axes_of_its_own(drawn):
    results = [epoch(1, feature_std=0.1), epoch(2, feature_std=0.2, knn_accuracy=0.7), epoch(3, feature_std=0.3, loss=9.0)]
    opened(curves_png(results, "a run of $5 and $6"))
    shown = {axes.get_title(): axes.lines[0].get_xydata().tolist() for axes in drawn[0].axes if axes.get_visible()}
    assert list(shown) == ["loss", "learning rate", "feature std", "knn accuracy", "loss"][: len(shown)]
    assert shown["feature std"] == [[1, 0.1], [2, 0.2], [3, 0.3]]
    assert shown["knn accuracy"] == [[2, 0.7]]
    curves = [axes.lines[0].get_ydata().tolist() for axes in drawn[0].axes if axes.get_title() == "loss"]
    assert curves == [[4.0, 2.0, 4 / 3], [9.0]], "an indicator of the same name is not mixed in"


@pytest.mark.parametrize(
    "results",
    [
        [],
        [epoch(1)],
        [epoch(n, a=math.nan, b=math.inf if n == 2 else 1.0) for n in range(1, 4)],
        [epoch(n, **{f"measure_{k}": math.sin(n * k) for k in range(30)}) for n in range(1, 101)],
    ],
    ids=["none", "one epoch", "not finite", "many measures of a long run"],
)
def test_curves_of_unusual_runs_are_pictures_too(results):
    opened(curves_png(results, "run"))


def test_equal_data_gives_equal_bytes():
    results, result = [epoch(1, top1=0.2), epoch(2, top1=0.4)], classified(7)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40), dtype=np.uint8)
    view = np.random.default_rng(1).normal(size=(2, 1, 32, 32)).astype(np.float32)
    for first, second in (
        (curves_png(results, "run"), curves_png(results, "run")),
        (confusion_png(result), confusion_png(result)),
        (views_png(images, [view], 0.5, 0.2), views_png(images.copy(), [torch.from_numpy(view)], 0.5, 0.2)),
    ):
        assert first == second


def test_views_are_drawn_as_they_were_before_they_were_normalised():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, 112, 112), dtype=np.uint8)
    small = generator.integers(0, 256, (3, 56, 56), dtype=np.uint8)
    views = [torch.from_numpy((array[:, None] / 255.0 - 0.57) / 0.13) for array in (images[:, ::-1].copy(), small)]
    found = np.asarray(opened(views_png(images, views, 0.57, 0.13, num=2)).convert("L")).astype(int)
    assert found.shape == (15 + 4 + 2 * 116, 4 + 3 * 116)
    for row in range(2):
        for column, expected in enumerate((images[row], images[row, ::-1], small[row].repeat(2, 0).repeat(2, 1))):
            top, left = 19 + row * 116, 4 + column * 116
            tile = found[top : top + 112, left : left + 112]
            assert np.abs(tile - expected.astype(int)).max() <= 3, "half of a step between 64 levels of gray"


def test_values_beyond_black_and_white_are_clipped():
    images = np.full((1, 112, 112), 128, np.uint8)
    view = torch.tensor([-9.0, 9.0]).repeat_interleave(56).expand(1, 1, 112, 112)
    found = np.asarray(opened(views_png(images, [view], 0.5, 0.2)).convert("L"))[19:131, 120:232]
    assert (found[:, :56] == 0).all() and (found[:, 56:] == 255).all()


@pytest.mark.parametrize("method", ["moco", "swav", "supervised"])
def test_views_of_real_images_fit(test_data: Path, method):
    files = sorted((test_data / "em2d/cem_dataset_examples").rglob("*.tiff"))
    arrays = [np.asarray(Image.open(file).convert("L")) for file in files]
    images = np.stack([array[:224, :224] for array in arrays if min(array.shape) >= 224][:8])
    params = params_for(method, "paper")
    views = BatchAugmentation(params.crops, AugmentationParams(), params.mean, params.std)(torch.from_numpy(images), 0)
    picture = opened(views_png(images, views, params.mean, params.std))
    assert picture.width / picture.height == pytest.approx((1 + len(views)) / min(6, len(images)), rel=0.1)
    assert np.asarray(picture.convert("L")).std() > 20


def test_views_of_noise_in_any_precision_fit():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 224, 224), generator=generator, dtype=torch.uint8).numpy()
    noise = [torch.randn(6, 1, 224, 224, generator=generator).to(torch.bfloat16).requires_grad_() for _ in range(8)]
    opened(views_png(images, noise, 0.5, 0.25))


@pytest.mark.parametrize(
    ("images", "views", "num", "message"),
    [
        (np.zeros((0, 8, 8), np.uint8), [], 6, r"images have shape \(0, 8, 8\)"),
        (np.zeros((8, 8), np.uint8), [], 6, r"images have shape \(8, 8\)"),
        (np.zeros((1, 8, 8), np.uint8), [], 0, "num is 0"),
        (
            np.zeros((2, 8, 8), np.uint8),
            [np.zeros((1, 1, 8, 8))],
            6,
            r"view 0 has shape \(1, 1, 8, 8\), expected \(2, 1, s, s\)",
        ),
        (
            np.zeros((1, 8, 8), np.uint8),
            [np.zeros((1, 8, 8)), torch.full((1, 1, 8, 8), torch.nan)],
            6,
            r"view 0 has shape \(1, 8, 8\).*; view 1 has values that are not finite",
        ),
    ],
)
def test_views_that_do_not_fit_are_told(images, views, num, message):
    with pytest.raises(ValueError, match=message):
        views_png(images, views, 0.5, 0.2, num)


def test_few_classes_stand_one_by_one_sorted_by_category(drawn):
    result = classified(5)
    opened(confusion_png(result))
    axes = drawn[0].axes[0]
    order = [0, 3, 1, 4, 2]
    matrix = result.confusion[np.ix_(order, order)]
    assert np.allclose(axes.images[0].get_array(), matrix / matrix.sum(axis=1, keepdims=True))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label[-1] for label in labels] == [str(n) for n in order] and all(r"\$" in label for label in labels)
    assert {text.get_text() for text in axes.texts} == {str(count) for count in matrix.ravel().tolist() if count}


def test_many_classes_are_drawn_by_category(drawn):
    result = classified(60, 3000)
    opened(confusion_png(result))
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CATEGORIES)
    expected = np.zeros((3, 3))
    for (true, predicted), count in np.ndenumerate(result.confusion):
        expected[true % 3, predicted % 3] += count
    assert np.allclose(axes.images[0].get_array(), expected / expected.sum(axis=1, keepdims=True))
    assert "by category" in axes.get_title() and f"{result.top1:.1%}" in axes.get_title()


@pytest.mark.parametrize(("num_classes", "max_classes"), [(2, 50), (12, 50), (50, 50), (894, 50), (300, 300)])
def test_confusion_of_any_number_of_classes_fits(num_classes, max_classes):
    opened(confusion_png(classified(num_classes, 2000), max_classes))


def test_a_class_without_images_has_a_white_row(drawn):
    result = score_classification(np.eye(3, dtype=np.float32)[[0, 2]], np.array([0, 0]), "abc", "xxx")
    opened(confusion_png(result))
    assert drawn[0].axes[0].images[0].get_array().tolist() == [[0.5, 0, 0.5], [0, 0, 0], [0, 0, 0]]
