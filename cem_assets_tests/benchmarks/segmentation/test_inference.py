"""Prediction in all modes, compared with slow loops; slabs, memmaps, Zarr arrays and tiles; scores."""

import math

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cem_assets.benchmarks.segmentation.inference import LabelledImage, Predictor, score_images
from cem_assets.benchmarks.segmentation.metrics import count_classes, mean_image_iou
from cem_assets.benchmarks.segmentation.model import build_unet
from cem_assets.benchmarks.segmentation.params import EvaluationRule
from cem_assets.errors import DataError
from cem_assets_tests.benchmarks.segmentation.models import TinyNet, tiny_params

CPU = torch.device("cpu")
SHAPE = (9, 40, 37)


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def predictor(num_classes: int = 1, slab_px: int = 16, tile_px: int = 4096, **changes: object) -> Predictor:
    return Predictor(
        TinyNet(num_classes, seed=1 if num_classes < 3 else 0),
        tiny_params(num_classes=num_classes, **changes),
        CPU,
        slab_px,
        tile_px,
    )


def mirrored(place: int, size: int) -> int:
    """Mirror a place beyond the end back into the image; a thin volume may be crossed several times."""
    place %= 2 * size - 2
    return min(place, 2 * size - 2 - place)


def slow_probabilities(one: Predictor, image: np.ndarray) -> np.ndarray:
    """Predict a plane by definition: mirror its lower and right border, apply the network, and cut the result."""
    height, width = image.shape
    sides = (-(-height // 32) * 32, -(-width // 32) * 32)
    padded = np.array([[image[mirrored(y, height), mirrored(x, width)] for x in range(sides[1])] for y in range(sides[0])])
    inputs = torch.tensor((padded / 255 - one.params.mean) / one.params.std, dtype=torch.float32)
    with torch.no_grad():
        logits = one.model.eval()(inputs[None, None])[0, :, :height, :width]
    return (torch.sigmoid(logits) if one.params.num_classes == 1 else torch.softmax(logits, 0)).numpy()


def slow_volume(one: Predictor, volume: np.ndarray, axes: tuple[int, ...], rounding: str = "none") -> np.ndarray:
    total = np.zeros((one.params.num_classes, *volume.shape), np.float64 if rounding == "none" else np.int64)
    for axis in axes:
        planes = [slow_probabilities(one, plane) for plane in np.moveaxis(volume, axis, 0)]
        stacked = np.moveaxis(np.stack(planes), 0, axis + 1)
        total += stacked if rounding == "none" else np.floor(stacked * np.float32(255 / len(axes))).astype(np.int64)
    if one.params.num_classes > 1:
        return total.argmax(0)
    return total[0] > (len(axes) * one.params.threshold if rounding == "none" else math.floor(255 * one.params.threshold))


def predict(one: Predictor, volume: np.ndarray, mode: str) -> np.ndarray:
    out = np.full(volume.shape, 99, np.uint8)
    one.predict_volume(volume, mode, out)
    return out


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize(("mode", "axes"), [("stack", (0,)), ("orthoplane", (0, 1, 2))])
@pytest.mark.parametrize("rounding", ["none", "uint8"])
def test_volumes_equal_a_slow_loop_over_planes(num_classes, mode, axes, rounding):
    one = predictor(num_classes, rounding=rounding)
    volume = picture(*SHAPE)
    found, expected = predict(one, volume, mode), slow_volume(one, volume, axes, rounding)
    assert 0.01 < (found > 0).mean() < 0.99  # both classes occur
    assert (found != expected).mean() < 1e-3  # sums in another precision may decide a tie differently


def test_rounding_to_levels_changes_decisions_and_exact_sums_do_not_depend_on_it():
    volume = picture(*SHAPE, seed=3)
    exact = predict(predictor(3), volume, "orthoplane")
    rounded = predict(predictor(3, rounding="uint8"), volume, "orthoplane")
    assert 0 < (exact != rounded).mean() < 0.1


@pytest.mark.parametrize("mode", ["stack", "orthoplane"])
@pytest.mark.parametrize("rounding", ["none", "uint8"])
@pytest.mark.parametrize("slab_px", [1, 4, 7])
def test_slabs_of_any_thickness_give_the_whole_volumes_result(mode, rounding, slab_px):
    volume = picture(*SHAPE)
    whole = predict(predictor(2, slab_px=1000, rounding=rounding), volume, mode)
    np.testing.assert_array_equal(predict(predictor(2, slab_px=slab_px, rounding=rounding), volume, mode), whole)


class Watched:
    """An array that records the size of the largest piece that is read or written at once."""

    def __init__(self, array) -> None:
        self.array, self.largest = array, 0

    @property
    def shape(self):
        return self.array.shape

    def __getitem__(self, key):
        piece = np.asarray(self.array[key])
        self.largest = max(self.largest, piece.size)
        return piece

    def __setitem__(self, key, value):
        self.largest = max(self.largest, np.size(value))
        self.array[key] = value


@pytest.mark.parametrize("mode", ["stack", "orthoplane"])
def test_volumes_on_disk_are_read_and_written_by_slabs(tmp_path, mode):
    one, volume = predictor(2, slab_px=4), picture(18, 40, 37)
    expected = predict(one, volume, mode)
    source = zarr.create_array(tmp_path / "volume.zarr", shape=volume.shape, chunks=(5, 16, 16), dtype="uint8")
    source[...] = volume
    out = np.lib.format.open_memmap(tmp_path / "out.npy", mode="w+", dtype=np.uint8, shape=volume.shape)
    sums = zarr.create_array(
        tmp_path / "sums.zarr", shape=one.scratch_shape(source), chunks=(2, 9, 20, 20), dtype=one.scratch_dtype
    )
    sums[...] = 7  # the previous content must not matter
    watched = [Watched(array) for array in (source, out, sums)]
    seen = []
    one.predict_volume(watched[0], mode, watched[1], watched[2], lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(out, expected)
    slab = 4 * max(40 * 37, 18 * 40, 18 * 37)
    assert watched[0].largest <= slab
    assert watched[1].largest <= slab
    assert watched[2].largest <= 2 * slab
    total = 18 if mode == "stack" else 18 + 40 + 37
    assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("side", [(70, 150), (200, 64), (129, 130)])
def test_tiles_equal_the_whole_plane(side):
    image = picture(*side)
    whole = predictor(3).probabilities(image)
    np.testing.assert_allclose(predictor(3, tile_px=64).probabilities(image), whole, atol=1e-6)


def test_tiles_of_a_unet_equal_the_whole_plane():
    model = build_unet("resnet18", 1, None, seed=1).eval()
    image = picture(32, 1100)
    whole, tiled = (Predictor(model, tiny_params(), CPU, tile_px=size).probabilities(image) for size in (2048, 384))
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    model.halo_px = 32
    narrow = Predictor(model, tiny_params(), CPU, tile_px=384).probabilities(image)
    assert np.abs(narrow - whole).max() > 1e-4  # the margin is needed


@pytest.mark.parametrize("size", [(64, 96), (70, 100), (31, 65), (20, 20)])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_2d_images_are_resized_down_and_back(size, num_classes):
    one, image = predictor(num_classes), picture(*size)
    padded = np.pad(image, ((0, max(0, 32 - size[0])), (0, max(0, 32 - size[1]))), mode="reflect")
    sides = (padded.shape[0] // 32 * 32, padded.shape[1] // 32 * 32)
    small = (
        functional.interpolate(torch.tensor(padded)[None, None].float(), sides, mode="bilinear")[0, 0].round().byte().numpy()
    )
    probabilities = slow_probabilities(one, small)
    classes = probabilities.argmax(0) if num_classes > 1 else probabilities[0] > 0.5
    expected = np.zeros(size, np.uint8)
    for y in range(size[0]):
        for x in range(size[1]):
            nearest = [int((place + 0.5) * new / old) for place, new, old in zip((y, x), sides, padded.shape, strict=True)]
            expected[y, x] = classes[nearest[0], nearest[1]]
    found = one.predict_2d(image)
    assert found.dtype == np.uint8
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_the_threshold_is_of_the_mean_probability(threshold):
    one = predictor(threshold=threshold)
    total = np.array([[3 * threshold - 1e-3, 3 * threshold + 1e-3]], np.float32)
    assert one.classes(total, 3).tolist() == [0, 1]
    level = int(255 * threshold)
    assert one.classes(np.array([[level, level + 1]], np.uint8), 3).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((picture(4, 4), "stack", np.zeros((4, 4), np.uint8)), r"the volume is \(4, 4\)"),
        ((picture(4, 4, 4), "2d", np.zeros((4, 4, 5), np.uint8)), r"mode is '2d'.*the result is \(4, 4, 5\)"),
        ((picture(2, 4, 4), "orthoplane", np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4))), r"scratch is \(2, 4, 4\)"),
        ((picture(2, 4, 4).astype(np.uint16), "stack", np.zeros((2, 4, 4), np.uint8)), "the volume is uint16"),
    ],
)
def test_what_cannot_be_predicted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        predictor().predict_volume(*arguments)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="slab_px is 0 and tile_px 100"):
        predictor(slab_px=0, tile_px=100)


# Scores


def test_a_test_set_is_scored_over_all_its_pixels():
    one = predictor(3)
    images = [picture(64, 64, seed=n) for n in range(3)]
    labels = [picture(64, 64, seed=n + 9) % 3 for n in range(3)]
    score = score_images(one, (LabelledImage(str(n), images[n], labels[n]) for n in range(3)))
    counts = [count_classes(one.predict_2d(image), label, 3) for image, label in zip(images, labels, strict=True)]
    whole = (counts[0] + counts[1] + counts[2]).iou()
    assert score.class_iou == pytest.approx({1: whole[1], 2: whole[2]})
    assert score.mean_iou == pytest.approx(whole[1:].mean())
    assert score.image_iou == pytest.approx(mean_image_iou(counts, (1, 2)))


@settings(max_examples=15)
@given(st.integers(1, 9), st.booleans(), st.booleans())
def test_scores_of_a_volume_do_not_depend_on_slabs(slab_px, is_matched, is_masked):
    one, volume = predictor(2, slab_px=slab_px), picture(*SHAPE)
    labels = (picture(*SHAPE, seed=4) > 240).astype(np.uint8)
    rule = EvaluationRule("stack", (1,), is_matched, is_masked)
    whole = predictor(2, slab_px=1000)
    first, second = (score_images(each, [LabelledImage("v", volume, labels, rule=rule)]) for each in (one, whole))
    assert first.mean_iou == second.mean_iou


def test_mixed_sets_each_have_their_own_rule_and_count_alike():
    one, volume, image = predictor(test_mode="mixed"), picture(*SHAPE), picture(70, 70)
    labels, flat = (picture(*SHAPE, seed=5) > 200).astype(np.uint8), (picture(70, 70, seed=6) > 128).astype(np.uint8)
    rules = {
        "flat": EvaluationRule("2d", (1,), is_instance_matched=True),
        "stack": EvaluationRule("stack", (1,)),
        "ortho": EvaluationRule("orthoplane", (1,)),
    }
    kept = {}
    items = [
        LabelledImage("a", image, flat, "flat", rules["flat"]),
        LabelledImage("b", volume, labels, "stack", rules["stack"], out=np.zeros(SHAPE, np.uint8)),
        LabelledImage("c", volume, labels, "ortho", rules["ortho"]),
    ]
    score = score_images(one, items, lambda item, prediction: kept.setdefault(item.name, prediction))
    alone = {item.test_set: score_images(one, [item]).mean_iou for item in items}
    assert score.set_iou == alone
    assert score.mean_iou == pytest.approx(np.mean(list(alone.values())))
    assert kept["b"] is items[1].out
    np.testing.assert_array_equal(kept["c"], predict(one, volume, "orthoplane"))
    assert len({round(value, 9) for value in alone.values()}) == 3


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no test images"),
        ([LabelledImage("x", picture(9, 9), picture(9, 8))], r"x: the image is \(9, 9\)"),
        ([LabelledImage("x", picture(9, 9, 9), picture(9, 9, 9))], "x: .*expected .h, w. for mode 2d"),
        ([LabelledImage("x", picture(9, 9), np.full((9, 9), 7, np.uint8))], "x: .*labels have values 7 to 7"),
        ([LabelledImage("x", picture(9, 9).astype(np.float32), np.zeros((9, 9), np.uint8))], "x: the image is float32"),
    ],
)
def test_images_that_cannot_be_scored_are_named(items, message):
    with pytest.raises(DataError, match=message):
        score_images(predictor(), items)


def test_a_test_set_has_one_rule():
    items = [
        LabelledImage("x", picture(9, 9), np.zeros((9, 9), np.uint8)),
        LabelledImage("y", picture(9, 9), np.zeros((9, 9), np.uint8), rule=EvaluationRule("2d", (1,), True)),
    ]
    with pytest.raises(ValueError, match="y: test set '' has two rules"):
        score_images(predictor(), items)


def test_a_mistake_of_the_code_is_not_blamed_on_an_image():
    items = [LabelledImage("x", picture(9, 9, 9), picture(9, 9, 9) // 128, rule=EvaluationRule("stack", (1,)), out=np.zeros(3))]
    with pytest.raises(ValueError, match="the volume cannot be predicted") as caught:
        score_images(predictor(), items)
    assert not isinstance(caught.value, DataError)
