"""Occlusion maps, compared with the definition place by place."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.analyses.occlusion.maps import occlusion_map, square_places
from cem_assets.analyses.params import OcclusionParams
from cem_assets_tests.analyses.encoders import NORMS, FourQuadrants, random_resnet, tiny_images


@given(st.integers(1, 60), st.data())
def test_places_cover_every_pixel_and_stay_inside(square_px: int, data: st.DataObject) -> None:
    side_px = data.draw(st.integers(square_px, 200))
    stride_px = data.draw(st.integers(1, square_px))
    places = square_places(side_px, square_px, stride_px)
    assert np.all(np.diff(places) > 0) and np.all(np.diff(places) <= stride_px)
    assert places[0] == 0 and places[-1] == side_px - square_px


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_drops_agree_with_covering_one_place_after_the_other(fill: str) -> None:
    encoder, image = random_resnet(), tiny_images(1, 48)[0][:, :40]
    params = OcclusionParams(square_px=16, stride_px=10, fill=fill, batch_size=3)
    found = occlusion_map(encoder, image, NORMS, params)
    assert found.tops.tolist() == [0, 10, 20, 30, 32] and found.lefts.tolist() == [0, 10, 20, 24]
    encoder.eval()

    def features(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return encoder((torch.from_numpy(pixels)[None, None] - 0.5) / 0.25)[0].numpy().astype(np.float64)

    pixels = (image / 255).astype(np.float32)
    whole = features(pixels)
    touching: list[list[list[float]]] = [[[] for _ in range(40)] for _ in range(48)]
    for row, top in enumerate(found.tops):
        for column, left in enumerate(found.lefts):
            covered = pixels.copy()
            covered[top : top + 16, left : left + 16] = pixels.mean() if fill == "mean" else 0
            answer = features(covered)
            drop = 1 - whole @ answer / np.sqrt((whole @ whole) * (answer @ answer))
            assert found.drops[row, column] == pytest.approx(drop, abs=1e-5)
            for y in range(top, top + 16):
                for x in range(left, left + 16):
                    touching[y][x].append(found.drops[row, column])
    assert np.allclose(found.pixel_drops, [[np.mean(values) for values in row] for row in touching])
    assert found.drops.max() > 1e-3 and encoder.training is False


def test_only_what_the_features_see_drops() -> None:
    image = np.full((32, 32), 128, np.uint8)
    image[:16, :16] = 255
    params = OcclusionParams(square_px=8, stride_px=8, fill="black")
    found = occlusion_map(FourQuadrants(), image, (0.0, 1.0), params)
    bright, gray = found.drops[:2, :2], found.drops[2:, 2:]
    assert bright.min() > gray.max() > 0
    assert np.allclose(bright, bright[0, 0])  # the mean of a quadrant knows no place


def test_an_even_image_covered_with_its_mean_changes_nothing() -> None:
    found = occlusion_map(random_resnet(), np.full((32, 32), 128, np.uint8), NORMS, OcclusionParams(square_px=16, stride_px=16))
    assert found.drops.shape == (2, 2) and np.abs(found.drops).max() < 1e-6


def test_small_images_dead_features_and_wrong_parameters_are_told() -> None:
    with pytest.raises(ValueError, match="two sides of 48 px"):
        occlusion_map(FourQuadrants(), tiny_images(1)[0], NORMS)
    with pytest.raises(ValueError, match="all zero"):
        occlusion_map(FourQuadrants(), np.zeros((32, 32), np.uint8), (0.0, 1.0), OcclusionParams(square_px=16, stride_px=16))
    with pytest.raises(ValueError, match="stride from 1 to the square"):
        OcclusionParams(square_px=8, stride_px=9)
