"""Pictures are small, say what they show, and do not depend on order."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cem_assets.cytoimagenet import pictures
from cem_assets.cytoimagenet.pictures import (
    MAX_ENTRIES,
    class_grid,
    class_map_png,
    label_counts_png,
    scales_and_sources_png,
)
from cem_assets.imaging.gallery import MAX_BYTES


def opened(data: bytes, kind: str = "PNG") -> Image.Image:
    assert len(data) <= MAX_BYTES
    image = Image.open(io.BytesIO(data))
    assert image.format == kind
    return image


def shown(monkeypatch, draw) -> list[str]:
    """Return every text of the figure that is rendered."""
    texts: list[str] = []
    render = pictures.figure_png

    def listening(figure) -> bytes:
        data = render(figure)
        found = [text.get_text() for axes in figure.axes for text in axes.findobj(lambda artist: hasattr(artist, "get_text"))]
        texts[:] = [text for text in found if text]
        return data

    monkeypatch.setattr(pictures, "figure_png", listening)
    draw()
    return texts


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


# Grids


@pytest.mark.parametrize("num", [0, 1, 5, 20, 60])
def test_grids_of_noise_stay_below_the_limit(num):
    image = opened(class_grid([noise(90 + 40 * (n % 4), n) for n in range(num)], [f"class {n}" for n in range(num)]), "JPEG")
    assert image.size[0] <= 1000


def test_small_images_are_enlarged_to_the_tile():
    grid = np.asarray(opened(class_grid([np.zeros((20, 20), np.uint8)], ["dark"]), "JPEG"))
    dark = grid[:140] < 60
    assert dark.any(axis=1).sum() >= 105 and dark.any(axis=0).sum() >= 105


def test_a_caption_is_missing_is_told():
    with pytest.raises(ValueError, match="2 images have 1 captions"):
        class_grid([noise(9), noise(9)], ["a"])


# Counts of labels


def sizes_table(**sizes: list[int]) -> pd.DataFrame:
    rows = [(f"{category} {n}", category, size) for category, each in sizes.items() for n, size in enumerate(each)]
    return pd.DataFrame(rows, columns=["label", "category", "num_images"])


def test_counts_and_threshold_are_written(monkeypatch):
    sizes = sizes_table(compound=[300, 400, 1000], cell_type=[290])
    texts = shown(monkeypatch, lambda: label_counts_png({"cell_type": 1, "compound": 637}, sizes, 287))
    assert {"638 labels", "637", "1", "compound", "cell type", "at least 287"} <= set(texts)


@pytest.mark.parametrize("sizes", [{}, {"gene": [287]}, {"gene": [5, 6]}, {"gene": [287] * 900, "compound": [1000] * 900}])
def test_label_charts_of_few_and_many(sizes):
    counts = {category: len(each) for category, each in sizes.items()}
    first, second = (label_counts_png(counts, sizes_table(**sizes), 287) for _ in range(2))
    assert first == second
    assert opened(first).size == (684, 261)


# Scales and sources


def test_bars_are_as_long_as_their_counts(monkeypatch):
    lengths: dict[tuple[float, float], float] = {}
    render = pictures.figure_png

    def listening(figure) -> bytes:
        for bar in figure.axes[0].patches:
            lengths[round(bar.get_y() + bar.get_height() / 2), bar.get_x()] = bar.get_width()
        return render(figure)

    monkeypatch.setattr(pictures, "figure_png", listening)
    scales_and_sources_png([0.5, 0.5, 1, 0.25, 1], ["a", "a", "a", "b", "b"])
    # By source: a before b; from the whole image down to a quarter.
    assert {key: width for key, width in lengths.items() if width} == {(0, 0): 1, (0, 1): 2, (1, 0): 1, (1, 1): 1}


def test_sources_and_scales_are_named_and_the_rest_is_other(monkeypatch):
    source = [f"source {n}" for n in range(25) for _ in range(30 - n)]
    scaling = [(1.0, 0.5, 0.25, 0.125, 0.0625, 0.3)[n % 6] for n in range(len(source))]
    texts = shown(monkeypatch, lambda: scales_and_sources_png(scaling, source))
    assert {
        "whole",
        "1/2",
        "1/4",
        "1/8",
        "1/16",
        "0.3",
        "source 0",
        "source 18",
        "other (6 sources)",
        "side of the image",
    } <= set(texts)
    assert "source 19" not in texts
    assert f"{len(source):,} crops by source and scale" in texts


def test_twenty_sources_need_no_other(monkeypatch):
    source = [f"source {n:02d}" for n in range(MAX_ENTRIES)]
    texts = shown(monkeypatch, lambda: scales_and_sources_png([0.5] * MAX_ENTRIES, source))
    assert {f"source {n:02d}" for n in range(MAX_ENTRIES)} <= set(texts) and not any("other" in text for text in texts)


def test_titles_that_begin_alike_stay_apart(monkeypatch):
    source = [f"A long title of a collection of images, plate {n}" for n in range(3)]
    texts = shown(monkeypatch, lambda: scales_and_sources_png([1.0] * 3, source))
    assert sum(text.startswith("A long title") and len(text) <= 34 for text in set(texts)) == 3


def test_the_order_of_crops_does_not_matter():
    generator = np.random.default_rng(0)
    scaling, source = generator.choice([1, 0.5, 0.25], 300), generator.choice(["a", "b", "c"], 300)
    order = generator.permutation(300)
    assert scales_and_sources_png(scaling.tolist(), source.tolist()) == scales_and_sources_png(
        scaling[order].tolist(), source[order].tolist()
    )


def test_charts_of_nothing_are_charts():
    opened(scales_and_sources_png([], []))
    opened(class_map_png(np.empty((0, 2)), [], "nothing"))


# Maps


def test_maps_of_many_points_stay_below_the_limit():
    generator = np.random.default_rng(0)
    labels = [f"label {n}" for n in generator.integers(0, 60, 30_000)]
    image = opened(class_map_png(generator.normal(size=(30_000, 2)), labels, "many")).convert("RGB")
    assert image.size == (648, 396)  # in fewer colours, not smaller
    legend = np.asarray(image)[30:280, 560:585].reshape(-1, 3).astype(int)
    vivid = legend[legend.max(axis=1) - legend.min(axis=1) > 60]
    assert len({tuple(colour // 32) for colour in vivid}) >= 10


def test_the_most_frequent_labels_get_a_colour_and_strange_names_are_shown_as_they_are(monkeypatch):
    labels = ["_hidden", "$x_{", "a"] + [f"rare {n:02d}" for n in range(30)] + ["_hidden", "$x_{", "a"]
    texts = shown(monkeypatch, lambda: class_map_png(np.zeros((len(labels), 2)), labels, "cost in $, \\alpha"))
    assert {r"\$x_{", "_hidden", "a", "rare 00", "rare 15", "other (14)", "cost in \\$, \\alpha"} <= set(texts)
    assert "rare 16" not in texts


def test_maps_of_equal_points_are_equal():
    points = np.random.default_rng(1).normal(size=(50, 2))
    labels = [f"{n % 7}" for n in range(50)]
    assert class_map_png(points, labels, "t") == class_map_png(points, labels, "t")


def test_points_scales_and_labels_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
        class_map_png(np.ones((2, 2)), ["a", "b", "c"], "t")
    with pytest.raises(ValueError, match="2 scales for 1 sources"):
        scales_and_sources_png([1, 1], ["a"])
