"""Small encoders and images for the tests of analyses."""

import numpy as np
import torch
from torch import nn

from cem_assets.encoders import build_encoder
from cem_assets_tests.datasets import cells

NORMS = (0.5, 0.25)


def random_resnet(in_channels: int = 1) -> nn.Module:
    """Build a resnet18 with the random weights of one seed, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build_encoder("resnet18", in_channels)


def tiny_images(num: int, side_px: int = 32) -> np.ndarray:
    """Draw distinct images with structure, uint8 (num, side, side)."""
    return np.stack([cells((side_px, side_px), seed) for seed in range(num)])


class FourQuadrants(nn.Module):
    """Returns the mean of each quadrant of an image, so that its results are known in advance."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pool(pixels[:, :1]).flatten(1)
