"""Figures of several weights: they are readable and small, and equal values give equal bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from cem_assets.analyses.datasets.figures import dataset_maps_png, distance_tables_png
from cem_assets.analyses.organelles.figures import organelles_png
from cem_assets.imaging.gallery import MAX_BYTES


def _open(data: bytes) -> np.ndarray:
    assert len(data) <= MAX_BYTES
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_organelles_of_two_weights_with_one_that_lacks_an_organelle() -> None:
    scores = {"a": {"er": (0.4, 0.2), "nuclei $x": (0.6, float("nan"))}, "b": {"er": (0.1, -0.1)}}
    data = organelles_png(scores, "title", "correlation")
    assert _open(data).std() > 10 and data == organelles_png(scores, "title", "correlation")
    assert data != organelles_png({"a": scores["a"]}, "title", "correlation")
    with pytest.raises(ValueError, match="no scores"):
        organelles_png({"a": {}}, "title", "correlation")


@pytest.mark.parametrize("num_datasets", [1, 3, 45])
def test_maps_of_datasets(num_datasets: int) -> None:
    generator = np.random.default_rng(0)
    labels = [f"dataset {n % num_datasets}" for n in range(90)]
    points = {f"weights {n}": generator.normal(size=(90, 2)).astype(np.float32) for n in range(4)}
    data = dataset_maps_png(points, labels, "title")
    _open(data)
    assert data == dataset_maps_png(points, labels, "title")
    with pytest.raises(ValueError, match=r"expected \(89, 2\)"):
        dataset_maps_png(points, labels[1:], "title")


@pytest.mark.parametrize("num", [1, 3, 60])
def test_tables_of_distances(num: int) -> None:
    table = np.random.default_rng(0).random((num, num))
    table[0, 0] = np.nan
    names = [f"dataset {n} of many" for n in range(num)]
    data = distance_tables_png(names, {"a": table, "b": 2 * table}, "distances")
    _open(data)
    assert data == distance_tables_png(names, {"a": table, "b": 2 * table}, "distances")
    with pytest.raises(ValueError, match="a row and column for each"):
        distance_tables_png([*names, "more"], {"a": table}, "t")
