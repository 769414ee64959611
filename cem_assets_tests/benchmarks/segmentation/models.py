"""A small network that replaces a U-Net in tests that run it hundreds of times."""

import torch
from torch import nn

from cem_assets.benchmarks.segmentation.params import SegmentationParams


class TinyNet(nn.Module):
    """Makes logits with a few convolutions. It halves the image once, so a pixel depends on its surroundings and the grid."""

    halo_px = 32

    def __init__(self, num_classes: int = 1, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.down = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            self.drop = nn.Dropout(dropout)
            self.up = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Upsample(scale_factor=2), nn.ReLU())
            self.last = nn.Conv2d(6, num_classes, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(self.drop(self.down(images))))


def tiny_params(**changes: object) -> SegmentationParams:
    values = {"iters": 12, "batch_size": 3, "crop_px": 32, "seed": 5, "mean": 0.5, "std": 0.25}
    return SegmentationParams(**(values | changes))
