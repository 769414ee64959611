"""The peer of the input pipeline: PIL and torchvision transforms of one image at a time, in torch's DataLoader.

It prepares images as the pretraining scripts of volume-em/cem-dataset do. The distributions are those of
`cem_assets.pretraining.views.augmentations`, but worker processes draw and apply them image by image and also put batches
together. It is faster than those scripts would be: images stay gray (there they are made RGB for the colour jitter), and
workers find the compressed images in memory instead of opening files.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cem_assets.pretraining.methods.params import ViewSpec
from cem_assets.pretraining.views.view_parameters import AugmentationParams


class PerImageViews:
    """Makes the views of one gray PIL image. Draws come from torch's global generator, which DataLoader seeds."""

    def __init__(self, specs: Sequence[ViewSpec], params: AugmentationParams, mean: float, std: float) -> None:
        self.transforms = [_view(spec, params, mean, std) for spec in specs for _ in range(spec.num)]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """Return float32 (1, size_px, size_px) tensors, all views of the first spec, then of the next."""
        return [transform(image) for transform in self.transforms]


class CellsOfShards(Dataset):
    """Patches of Parquet shards as (views, label), rows numbered through the shards in order."""

    def __init__(self, shards: Sequence[Path], views: PerImageViews) -> None:
        tables = [pq.read_table(shard, columns=["dataset", "image"]) for shard in shards]
        names = [name for table in tables for name in table["dataset"].to_pylist()]
        classes = sorted(set(names))
        self.labels = [classes.index(name) for name in names]
        self.cells = [cell for table in tables for cell in table["image"].combine_chunks().field("bytes").to_pylist()]
        self.views = views

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int) -> tuple[list[Tensor], int]:
        return self.views(Image.open(io.BytesIO(self.cells[row])).convert("L")), self.labels[row]


def per_image_loader(
    dataset: CellsOfShards, rows: Sequence[int], batch_size: int, num_workers: int, *, is_pinned: bool = False
) -> DataLoader:
    """Load batches ([views (n, 1, s, s)], labels (n,)) of the rows in the order given. An incomplete last batch is left out."""
    # The workers are seeded from a generator of their own, so that other draws do not change theirs.
    seeds = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset, batch_size, sampler=rows, num_workers=num_workers, drop_last=True, pin_memory=is_pinned, generator=seeds
    )


def _view(spec: ViewSpec, params: AugmentationParams, mean: float, std: float) -> transforms.Compose:
    rotation = transforms.RandomRotation(180) if params.fill == "zeros" else MirroredRotation()
    crop = transforms.RandomResizedCrop(spec.size_px, spec.scale, params.aspect_ratio)
    if spec.scale == (1.0, 1.0):
        crop = transforms.Resize((spec.size_px, spec.size_px))
    steps = [transforms.RandomApply([rotation], params.rotation_share), crop]
    if params.brightness or params.contrast:
        steps.append(transforms.ColorJitter(params.brightness, params.contrast))
    if params.blur_share:
        steps.append(transforms.RandomApply([Blur(params.blur_sigma_px)], params.blur_share))
    if params.flip_share:
        steps += [transforms.RandomHorizontalFlip(params.flip_share), transforms.RandomVerticalFlip(params.flip_share)]
    steps.append(transforms.ToTensor())
    if params.noise_share:
        steps.append(transforms.RandomApply([Noise(params.noise_variance)], params.noise_share))
    return transforms.Compose([*steps, transforms.Normalize([mean], [std])])


class MirroredRotation(torch.nn.Module):
    """Turns a square PIL image by a random angle, and fills what lies beyond its border with its mirror image."""

    def forward(self, image: Image.Image) -> Image.Image:
        margin = math.ceil(max(image.size) * (math.sqrt(2) - 1) / 2) + 1
        padded = Image.fromarray(np.pad(np.asarray(image), margin, mode="symmetric"))
        turned = padded.rotate(_between((-180.0, 180.0)), Image.Resampling.BILINEAR)
        return turned.crop((margin, margin, margin + image.width, margin + image.height))


class Blur(torch.nn.Module):
    """Blurs a PIL image by a deviation drawn from a range."""

    def __init__(self, sigma_px: tuple[float, float]) -> None:
        super().__init__()
        self.sigma_px = sigma_px

    def forward(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(_between(self.sigma_px)))


class Noise(torch.nn.Module):
    """Adds Gaussian noise to a tensor of 0..1, of a variance drawn log-uniformly from a range."""

    def __init__(self, variance: tuple[float, float]) -> None:
        super().__init__()
        self.bounds = (math.log(variance[0]), math.log(variance[1]))

    def forward(self, view: Tensor) -> Tensor:
        return (view + torch.randn_like(view) * math.sqrt(math.exp(_between(self.bounds)))).clamp_(0.0, 1.0)


def _between(bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(torch.rand(()))
