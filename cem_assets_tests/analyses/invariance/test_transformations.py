"""Transformations of an image: no change at strength zero, the direction, and the seeds of noise."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from cem_assets.analyses.activations import pixels_of_images
from cem_assets.analyses.invariance.transformations import (
    TRANSFORMATIONS,
    add_noise,
    blur,
    brighten,
    change_contrast,
    noise_seeds,
    rotate,
    zoom,
)
from cem_assets_tests.analyses.encoders import tiny_images

PIXELS = pixels_of_images(tiny_images(3, 40))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_identity_changes_nothing_and_all_strengths_stay_in_range(name: str) -> None:
    row, seeds = TRANSFORMATIONS[name], noise_seeds(0, 0, 3)
    assert row.identity in row.strengths
    assert torch.allclose(row.apply(PIXELS, row.identity, seeds), PIXELS, atol=1e-6)
    for strength in row.strengths:
        changed = row.apply(PIXELS, strength, seeds)
        assert changed.shape == PIXELS.shape and changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6
        assert strength == row.identity or not torch.allclose(changed, PIXELS, atol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_an_image_changes_alike_alone_and_in_a_batch(name: str) -> None:
    row = TRANSFORMATIONS[name]
    for strength in row.strengths:
        whole = row.apply(PIXELS, strength, noise_seeds(5, 0, 3))
        assert torch.allclose(row.apply(PIXELS[1:2], strength, noise_seeds(5, 1, 1)), whole[1:2], atol=1e-6)


def test_images_are_never_changed_in_place() -> None:
    before = PIXELS.clone()
    for row in TRANSFORMATIONS.values():
        for strength in row.strengths:
            row.apply(PIXELS, strength, noise_seeds(0, 0, 3))
    assert torch.equal(PIXELS, before)


def test_quarter_turns_are_exact_and_agree_with_the_general_turn() -> None:
    assert torch.equal(rotate(PIXELS, 90), torch.rot90(PIXELS, 1, (-2, -1)))
    assert torch.equal(rotate(PIXELS, -90), torch.rot90(PIXELS, 3, (-2, -1)))
    assert torch.equal(rotate(PIXELS[..., :30], 180), PIXELS[..., :30].flip(-1, -2))
    assert torch.allclose(rotate(PIXELS, 90 + 1e-4), rotate(PIXELS, 90), atol=1e-3)  # the same direction


@pytest.mark.parametrize("angle_deg", [10.0, 45.0, -60.0])
def test_turning_agrees_with_scipy(angle_deg: float) -> None:
    wide = PIXELS[:, :, :26]
    found = rotate(wide, angle_deg)[0, 0].numpy()
    # scipy's "reflect" mirrors about the pixel's edge, as here; its positive angles turn clockwise as displayed.
    slow = scipy.ndimage.rotate(wide[0, 0].numpy(), angle_deg, reshape=False, order=1, mode="reflect")
    assert np.abs(found - slow).max() < 1e-3


@pytest.mark.parametrize("sigma_px", [0.5, 1.5, 4.0])
def test_blur_agrees_with_scipy(sigma_px: float) -> None:
    slow = scipy.ndimage.gaussian_filter(PIXELS[0, 0].numpy().astype(np.float64), sigma_px, mode="nearest")
    assert np.abs(blur(PIXELS, sigma_px)[0, 0].numpy() - slow).max() < 2e-3  # the kernels' reach is rounded differently


def test_noise_has_its_deviation_and_grows_without_being_redrawn() -> None:
    gray = torch.full((2, 1, 64, 64), 0.5)
    weak, strong = (add_noise(gray, deviation, noise_seeds(1, 0, 2)) - 0.5 for deviation in (0.02, 0.04))
    assert torch.allclose(2 * weak, strong, atol=1e-6)
    assert float(weak.std()) == pytest.approx(0.02, rel=0.05)
    assert not torch.allclose(weak[0], weak[1])
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        add_noise(gray, 0.1, [1])


def test_brightness_contrast_and_scale_by_hand() -> None:
    steps = torch.tensor([0.2, 0.4, 0.9]).repeat(3, 1)[None, None]
    assert torch.allclose(brighten(steps, 2.0)[0, 0, 0], torch.tensor([0.4, 0.8, 1.0]))
    assert torch.allclose(change_contrast(steps, 0.5)[0, 0, 0], torch.tensor([0.35, 0.45, 0.7]))
    ramp = torch.arange(8).float().div(10).repeat(8, 1)[None, None]
    middle = 0.35 + (torch.arange(8).float() - 3.5) / 20
    assert torch.allclose(zoom(ramp, 2.0)[0, 0, 0], middle, atol=1e-6)
    # At half the scale, the middle shows the whole image.
    small = zoom(ramp, 0.5)[0, 0, 0]
    assert small[2] < small[3] < small[4] < small[5] and float(small[3] - small[4]) == pytest.approx(-0.2, abs=0.01)
