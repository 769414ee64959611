"""Pictures stay small enough for metadata, and have the form they claim."""

import io

import numpy as np
from PIL import Image

from cem_assets.imaging.gallery import MAX_BYTES, Tile, confusion_figure, figure_png, gallery_jpeg, histogram_png, roc_figure


def test_noisy_galleries_stay_below_the_limit():
    generator = np.random.default_rng(0)
    tiles = [Tile(generator.integers(0, 256, (224, 224), dtype=np.uint8), f"{n}") for n in range(24)]
    data = gallery_jpeg([("noise", tiles), ("more noise", tiles), ("and more", tiles)], 200)
    assert len(data) <= MAX_BYTES
    assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_a_gallery_of_nothing_is_still_a_picture():
    assert Image.open(io.BytesIO(gallery_jpeg([("nothing", [])]))).size[0] > 0


def test_charts_are_equal_for_equal_data():
    values = np.random.default_rng(0).normal(size=1000)
    first, second = (histogram_png(values, "t", "x", mark=0.5) for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG") and len(first) < MAX_BYTES


def test_figures_of_a_classifier_can_be_drawn():
    rate = np.linspace(0, 1, 5)
    for figure in (roc_figure(rate, rate, 0.5), confusion_figure(np.array([[3, 1], [0, 4]]), ("bad", "good"))):
        assert figure_png(figure).startswith(b"\x89PNG")
