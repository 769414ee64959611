"""Segmentation of real electron microscopy on a CPU: training raises the IoU well above that of the untrained network.

A ResNet18 U-Net with random weights is trained for a few dozen steps on small crops. Each data set is split into images for
training and for testing. The margins in the tests are far below the measured gains, so that other torch builds pass too.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from cem_assets.benchmarks.segmentation.augmentation import CropSampler, ImageAndMask
from cem_assets.benchmarks.segmentation.inference import LabelledImage, Predictor, SegmentationScore, score_images
from cem_assets.benchmarks.segmentation.metrics import count_by_rule, match_instances
from cem_assets.benchmarks.segmentation.model import build_unet
from cem_assets.benchmarks.segmentation.params import EvaluationRule, SegmentationParams
from cem_assets.benchmarks.segmentation.pictures import errors_png
from cem_assets.benchmarks.segmentation.training import train_segmentation

CPU = torch.device("cpu")
SMALL = {"batch_size": 4, "crop_px": 64, "iters": 40, "lr": 0.006, "crop_scale": (0.03, 0.12), "seed": 0}
"""Crops show 44 to 89 px of images of 256 px, so that objects have about the same size as in the test."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are slower on several threads, and with one thread sums do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def shrunken(image: np.ndarray, factor: int) -> np.ndarray:
    """Shrink an image by averaging squares of pixels."""
    height, width = image.shape
    return image.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3)).round().astype(np.uint8)


def train_and_score(
    train: list[ImageAndMask], test: list[LabelledImage], **fields: object
) -> tuple[SegmentationScore, SegmentationScore, Predictor]:
    """Return the scores before and after training, and the predictor."""
    pixels = np.concatenate([image.ravel() for image, _ in train]) / 255
    params = SegmentationParams(**(SMALL | {"mean": pixels.mean(), "std": pixels.std()} | fields))
    model = build_unet("resnet18", params.num_classes, None, "all", seed=params.seed)
    predictor = Predictor(model, params, CPU)
    untrained = score_images(predictor, test)
    results = list(train_segmentation(model, CropSampler(train, params), params, CPU))
    assert results[-1].step == params.iters
    return untrained, score_images(predictor, test), predictor


def test_mitochondria_of_the_fly_nerve_cord_in_2d_and_as_instances(test_data):
    folder = test_data / "em3d_labelled/vnc_sstem_stack1"

    def section(number: int) -> ImageAndMask:
        # The masks have 256 gray levels with soft edges; a level of at least half is mitochondrion.
        mask = shrunken(read(folder / f"mitochondria/{number:02d}.png"), 4) >= 128
        return shrunken(tifffile.imread(folder / f"raw/{number:02d}.tif"), 4), mask.astype(np.uint8)

    test = [LabelledImage(str(number), *section(number)) for number in (16, 19)]
    untrained, trained, predictor = train_and_score(
        [section(number) for number in (0, 4, 8, 12)], test, num_classes=2, class_weights=(0.3, 1.0), foreground_share=0.8
    )
    assert trained.mean_iou > untrained.mean_iou + 0.1
    # Only some instances stay labelled, and the others must not count as wrong.
    image, labels = section(16)
    components, num = ndimage.label(labels, np.ones((3, 3)))
    some = np.where(components <= num // 2, labels, 0).astype(np.uint8)
    prediction = predictor.predict_2d(image)
    plain, matched = (
        count_by_rule(prediction, some, 2, EvaluationRule("2d", (1,), is_matched)).iou()[1] for is_matched in (False, True)
    )
    assert matched > plain
    assert (match_instances(prediction, labels, (1,)) <= prediction).all()
    assert errors_png(image, prediction, labels).startswith(b"\x89PNG")


def test_membranes_of_isbi_2012(test_data):
    folder = test_data / "em2d_labelled/isbi2012_membrane"

    def section(number: int) -> ImageAndMask:
        membrane = shrunken(read(folder / f"label/{number}.png"), 2) < 128
        return shrunken(read(folder / f"image/{number}.png"), 2), membrane.astype(np.uint8)

    test = [LabelledImage(str(number), *section(number)) for number in (24, 29)]
    untrained, trained, _ = train_and_score(
        [section(number) for number in range(0, 20, 4)], test, num_classes=2, class_weights=(0.4, 1.0), crop_scale=(0.1, 0.4)
    )
    assert trained.mean_iou > untrained.mean_iou + 0.1


def test_membranes_of_gala_fibsem_as_stack_and_orthoplane(test_data):
    """The labels are of cell bodies; a voxel is membrane if another body is next to it."""

    def volume(part: str) -> tuple[np.ndarray, np.ndarray]:
        with h5py.File(test_data / f"em3d_labelled/gala_fibsem/{part}-image.h5") as handle:
            image = handle["stack"][:]
        with h5py.File(test_data / f"em3d_labelled/gala_fibsem/{part}-gt.lzf.h5") as handle:
            bodies = handle["stack"][:]
        return image, (ndimage.maximum_filter(bodies, 3) != ndimage.minimum_filter(bodies, 3)).astype(np.uint8)

    image, border = volume("train")
    train = [(image[z], border[z]) for z in range(0, 50, 5)]
    image, border = volume("test")
    image, border = image[:16, :32, :64], border[:16, :32, :64]
    rules = {mode: EvaluationRule(mode, (1,)) for mode in ("stack", "orthoplane")}
    test = [LabelledImage(mode, image, border, mode, rule) for mode, rule in rules.items()]
    untrained, trained, _ = train_and_score(train, test, test_mode="mixed", crop_scale=(0.1, 0.4))
    for mode in rules:
        assert trained.set_iou[mode] > untrained.set_iou[mode] + 0.1


def test_axons_and_myelin_of_axondeepseg_with_masked_scores(test_data):
    """The masks have 256 levels, of which 0, 128 and 255 are background and the two classes; edges are in between."""
    folder = test_data / "em2d_labelled/axondeepseg"

    def picture(part: str, number: int) -> ImageAndMask:
        levels = read(folder / f"{part}/mask_{number}.png")
        return read(folder / f"{part}/image_{number}.png"), np.digitize(levels, (64, 192)).astype(np.uint8)

    train = [picture("Train", number) for number in (0, 1)]
    items = [picture("Validation", number) for number in (0, 1)]
    assert {1, 2} <= set(np.unique(items[0][1]))
    test = [LabelledImage(str(number), *item) for number, item in enumerate(items)]
    untrained, trained, predictor = train_and_score(train, test, num_classes=3, class_weights=(1.0, 1.0, 1.0))
    assert trained.mean_iou > untrained.mean_iou + 0.15
    masked = EvaluationRule("2d", (1, 2), mask_unlabelled=True)
    prediction = predictor.predict_2d(items[0][0])
    counts = count_by_rule(prediction, items[0][1], 3, masked)
    assert counts.predicted[1:].sum() == (prediction[items[0][1] > 0] > 0).sum()
    assert counts.mean_iou((1, 2)) >= count_by_rule(prediction, items[0][1], 3, EvaluationRule("2d", (1, 2))).mean_iou((1, 2))
