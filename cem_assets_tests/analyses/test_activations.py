"""The output of a layer for images: maps, units, modes and devices."""

import numpy as np
import pytest
import torch
from torch import nn

from cem_assets.analyses.activations import ActivationReader, pixels_of_images
from cem_assets_tests.analyses.encoders import NORMS, random_resnet, tiny_images


def test_features_are_those_of_the_encoder_and_its_mode_comes_back() -> None:
    encoder, images = random_resnet(3), tiny_images(3)
    encoder.layer1.eval()
    with ActivationReader(encoder, NORMS) as reader:
        found = reader.units(pixels_of_images(images))
        assert not encoder.training
    assert encoder.training and not encoder.layer1.training
    assert all(not module._forward_hooks for module in encoder.modules())
    encoder.eval()
    with torch.inference_mode():
        plain = torch.from_numpy(images / np.float32(255.0)).float().unsqueeze(1).repeat(1, 3, 1, 1)
        assert torch.allclose(found, encoder((plain - 0.5) / 0.25), atol=1e-5)


def test_a_layer_is_read_before_the_next_one_changes_it_in_place() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    with ActivationReader(encoder, NORMS, "0") as reader:
        assert bool((reader.maps(pixels_of_images(tiny_images(2))) < 0).any())


def test_units_of_maps_are_their_means() -> None:
    with ActivationReader(random_resnet(), NORMS, "layer2") as reader:
        pixels = pixels_of_images(tiny_images(2))
        maps = reader.maps(pixels)
        assert maps.shape == (2, 128, 4, 4)
        assert torch.allclose(reader.units(pixels), maps.mean(dim=(2, 3)))


def test_one_norm_for_each_channel_of_the_encoder() -> None:
    pixels, encoder = pixels_of_images(tiny_images(2)), random_resnet(3)
    with ActivationReader(encoder, ((0.5,) * 3, (0.25,) * 3)) as each, ActivationReader(encoder, NORMS) as one:
        assert torch.equal(each.units(pixels), one.units(pixels))
    with pytest.raises(ValueError, match="for 1 channels"):
        ActivationReader(random_resnet(), ((0.5,) * 3, (0.25,) * 3))


def test_an_unknown_layer_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no layer 'layer9'.*layer4"):
        ActivationReader(random_resnet(), NORMS, "layer9")


def test_a_layer_that_runs_twice_and_values_that_are_not_finite_are_refused() -> None:
    # The ReLU of a residual block is one module that runs twice.
    with ActivationReader(random_resnet(), NORMS, "layer1.0.relu") as reader, pytest.raises(ValueError, match="ran 2 times"):
        reader.maps(pixels_of_images(tiny_images(1)))
    broken = random_resnet()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with ActivationReader(broken, NORMS) as reader, pytest.raises(ValueError, match="NaN or infinite"):
        reader.units(pixels_of_images(tiny_images(1)))


@pytest.mark.parametrize("images", [np.zeros((2, 4), np.uint8), np.zeros((1, 4, 4), np.float32), np.zeros((0, 4, 4), np.uint8)])
def test_what_is_no_gray_image_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        pixels_of_images(images)
