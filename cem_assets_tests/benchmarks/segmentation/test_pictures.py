"""Pictures of errors: their colours and their size."""

import io

import numpy as np
import pytest
from PIL import Image

from cem_assets.benchmarks.segmentation.pictures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    WRONG_CLASS,
    errors_png,
    mark_errors,
)


def test_each_kind_of_pixel_has_its_colour():
    image = np.array([[100, 100, 100, 100, 100, 100]], np.uint8)
    prediction = np.array([[0, 1, 1, 0, 2, 2]], np.uint8)
    labels = np.array([[0, 1, 0, 1, 2, 1]], np.uint8)
    marked = mark_errors(image, prediction, labels, opacity=1.0)
    colours = [(100, 100, 100), TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_POSITIVE, WRONG_CLASS]
    assert [tuple(pixel) for pixel in marked[0].tolist()] == colours
    half = mark_errors(image, prediction, labels)[0, 1]
    assert half.tolist() == [50, 129, 108]  # the mean of gray and colour, rounded half to even


@pytest.mark.parametrize(("size", "side_px", "expected"), [((40, 60), 512, (60, 40)), ((300, 900), 300, (300, 100))])
def test_a_picture_is_at_most_as_large_as_asked(size, side_px, expected):
    mask = np.zeros(size, np.uint8)
    mask[10:20, 10:30] = 1
    picture = Image.open(io.BytesIO(errors_png(np.zeros(size, np.uint8), mask, mask, side_px=side_px)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", expected)


def test_a_noisy_picture_shrinks_until_it_fits():
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)
    data = errors_png(noise, noise % 2, (noise // 2) % 2, max_bytes=50_000)
    assert len(data) <= 50_000
    assert 100 < max(Image.open(io.BytesIO(data)).size) < 400


def test_arrays_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="expected one size"):
        mark_errors(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
