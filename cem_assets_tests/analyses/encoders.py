"""Small encoders and images for the tests of analyses."""

import numpy as np
import torch
from torch import nn

from cem_assets.encoders import build_encoder
from cem_assets_tests.datasets import cells

NORMS = (0.5, 0.25)


def random_resnet(in_channels: int = 1) -> nn.Module:
    """Build a resnet18 with the random weights of one seed, in training mode as it is made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build_encoder("resnet18", in_channels)


def tiny_images(num: int, side_px: int = 32) -> np.ndarray:
    """Return uint8 (num, side, side) with structure; no two are alike."""
    return np.stack([cells((side_px, side_px), seed) for seed in range(num)])


class FourQuadrants(nn.Module):
    """Gives the mean of each quadrant of an image: what it answers to is known without computing."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pool(pixels[:, :1]).flatten(1)
