"""Finer maps of ResNets: their sizes, and unchanged weights."""

import pytest
import torch

from cem_assets.analyses.organelles.correlation import layer_maps
from cem_assets.analyses.organelles.strides import refine_maps
from cem_assets.encoders import build_encoder
from cem_assets_tests.analyses.encoders import NORMS, random_resnet, tiny_images


@pytest.mark.parametrize("downsampling", [4, 8, 16, 32, 0])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_last_stage_is_as_fine_as_asked_for(arch: str, downsampling: int) -> None:
    encoder = build_encoder(arch, 1)
    refine_maps(encoder, downsampling)
    (maps,) = layer_maps(encoder, list(tiny_images(1, 64)), NORMS, "layer4")
    assert maps.shape[1:] == (64 // (downsampling or 32),) * 2


def test_where_no_stride_was_taken_away_maps_are_the_same() -> None:
    plain, refined = random_resnet(), random_resnet()
    refine_maps(refined, 8)
    images = list(tiny_images(1, 64))
    for layer in ("layer1", "layer2"):
        assert (layer_maps(plain, images, NORMS, layer)[0] == layer_maps(refined, images, NORMS, layer)[0]).all()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), refined.parameters(), strict=True))


def test_other_encoders_and_downsamplings_are_refused() -> None:
    with pytest.raises(ValueError, match="EfficientNet; expected 0"):
        refine_maps(build_encoder("efficientnet_b0", 1), 8)
    with pytest.raises(ValueError, match="downsampling is 5"):
        refine_maps(random_resnet(), 5)
