"""Changes of images by a known strength: rotation, blur, noise, brightness, contrast, scale.

Unlike the augmentations of pretraining nothing is drawn: every image is changed by the same strength, so that
answers can be compared strength by strength (`cem_assets.analyses.invariance.rates`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cem_assets.analyses.params import LOWEST_STRENGTHS

_BLUR_REACH = 4.0
"""The Gaussian is cut at so many deviations, as scipy does by default."""


@dataclass(frozen=True)
class Transformation:
    """A way to change images.

    Attributes:
        unit: Unit of the strength, for axes of charts.
        identity: Strength that changes nothing.
        strengths: The strengths that are measured by default.
        lowest: Smallest strength that is allowed.
        apply: Function of float32 (n, 1, height, width) in 0..1, the strength, and the seeds of the noise (one for each image),
            which returns a tensor of the same shape, in 0..1.
    """

    unit: str
    identity: float
    strengths: tuple[float, ...]
    lowest: float
    apply: Callable[[Tensor, float, Sequence[int]], Tensor]


def _sampled(pixels: Tensor, cos: float, sin: float, scale: float) -> Tensor:
    """Resample bilinearly about the centre; what lies beyond the border is the image mirrored."""
    height, width = pixels.shape[-2:]
    # In px from the centre first: a rotation of coordinates scaled to -1..1 would shear images that are not square.
    rows = torch.arange(height, device=pixels.device, dtype=torch.float64) - (height - 1) / 2
    columns = torch.arange(width, device=pixels.device, dtype=torch.float64) - (width - 1) / 2
    x = (cos * columns[None, :] - sin * rows[:, None]) / scale
    y = (sin * columns[None, :] + cos * rows[:, None]) / scale
    grid = torch.stack([x / (width / 2), y / (height / 2)], -1).float().expand(len(pixels), -1, -1, -1)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def rotate(pixels: Tensor, angle_deg: float, seeds: Sequence[int] = ()) -> Tensor:
    """Turn images counter-clockwise about their centre, bilinear, mirrored beyond the border."""
    turn = angle_deg % 360
    if turn % 180 == 0 or (turn % 90 == 0 and pixels.shape[-1] == pixels.shape[-2]):
        return torch.rot90(pixels, round(turn / 90), (-2, -1))  # exactly, without resampling
    return _sampled(pixels, math.cos(math.radians(turn)), math.sin(math.radians(turn)), 1.0)


def blur(pixels: Tensor, sigma_px: float, seeds: Sequence[int] = ()) -> Tensor:
    """Blur with a Gaussian of this deviation, the border's pixels repeated beyond it."""
    if sigma_px <= 0:
        return pixels
    reach = max(1, math.ceil(_BLUR_REACH * sigma_px))
    along = torch.arange(-reach, reach + 1, device=pixels.device, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (along / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).float()
    padded = functional.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def add_noise(pixels: Tensor, deviation: float, seeds: Sequence[int]) -> Tensor:
    """Add Gaussian noise of this deviation (scale 0..1); each image has the noise of its seed at every strength.

    Args:
        pixels: float32 (n, 1, height, width).
        deviation: Deviation of the noise.
        seeds: One for each image.

    Raises:
        ValueError: The number of seeds differs from that of the images.
    """
    if len(seeds) != len(pixels):
        raise ValueError(f"there are {len(seeds)} seeds for {len(pixels)} images; expected one for each")
    # Noise is drawn on the CPU and image by image, so that it is the same on every device and in every batch.
    drawn = [torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return (pixels + deviation * torch.stack(drawn).to(pixels.device)).clamp(0, 1)


def brighten(pixels: Tensor, factor: float, seeds: Sequence[int] = ()) -> Tensor:
    """Multiply by a factor, cut to 0..1."""
    return (pixels * factor).clamp(0, 1)


def change_contrast(pixels: Tensor, factor: float, seeds: Sequence[int] = ()) -> Tensor:
    """Multiply the distance from each image's mean by a factor, cut to 0..1."""
    mean = pixels.mean(dim=(-2, -1), keepdim=True)
    return (mean + factor * (pixels - mean)).clamp(0, 1)


def zoom(pixels: Tensor, factor: float, seeds: Sequence[int] = ()) -> Tensor:
    """Enlarge about the centre by a factor, the size kept: above 1 the border is lost, below 1 it is mirrored.

    Made smaller, images are blurred first by the deviation sqrt(1 / factor**2 - 1) / 2 px against aliasing.
    """
    if factor == 1:
        return pixels
    smooth = blur(pixels, 0.5 * math.sqrt(factor**-2 - 1)) if factor < 1 else pixels
    return _sampled(smooth, 1.0, 0.0, factor)


_FACTORS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)

TRANSFORMATIONS: dict[str, Transformation] = {
    "rotation": Transformation("degrees", 0.0, (0, 10, 20, 30, 45, 60, 90, 135, 180), LOWEST_STRENGTHS["rotation"], rotate),
    "blur": Transformation("sigma in px", 0.0, (0, 0.5, 1, 1.5, 2, 3, 4), LOWEST_STRENGTHS["blur"], blur),
    "noise": Transformation("deviation on 0..1", 0.0, (0, 0.01, 0.02, 0.05, 0.1, 0.2), LOWEST_STRENGTHS["noise"], add_noise),
    "brightness": Transformation("factor", 1.0, _FACTORS, LOWEST_STRENGTHS["brightness"], brighten),
    "contrast": Transformation("factor", 1.0, _FACTORS, LOWEST_STRENGTHS["contrast"], change_contrast),
    "scale": Transformation("factor", 1.0, (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0), LOWEST_STRENGTHS["scale"], zoom),
}
"""All transformations by name, in the order in which charts show them."""


def noise_seeds(seed: int, first: int, num: int) -> list[int]:
    """Derive the seeds of the images first..first + num - 1, each from the seed and its number alone."""
    return [
        int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        for number in range(first, first + num)
    ]
