"""Makes augmented views of a batch of gray images, for all images together on the device that trains.

`cem_assets.pretraining.views.view_parameters` draws the parameters of every image (angle, crop, factors, ...); a few batched
operations apply them here. `cem_assets.pretraining.methods.params` describes the views that a method needs.

The distributions are those of the pretraining scripts of volume-em/cem-dataset, which use torchvision on one PIL image at a
time. There are three differences: pixels stay float32 in 0..1 between the steps instead of being rounded to 8 bits; rotation,
crop and flips are one bilinear resampling, so that nothing is interpolated twice (there, rotation takes the nearest pixel);
and the blur is a Gaussian instead of Pillow's three box filters.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cem_assets.pretraining.methods.params import ViewSpec
from cem_assets.pretraining.views.view_parameters import SUPERVISED, AugmentationParams, ViewParameters, draw_parameters

__all__ = ["SUPERVISED", "AugmentationParams", "BatchAugmentation", "normalised"]

_NOISE_BLOCK = 32
"""Number of images whose noise comes from one seed; ranks that share a batch draw whole blocks."""
_BLUR_REACH = 4.0
"""Number of deviations at which the Gaussian is cut, as scipy does by default."""


class BatchAugmentation:
    """Makes the views of a method from batches of images."""

    def __init__(self, specs: tuple[ViewSpec, ...], params: AugmentationParams, mean: float, std: float) -> None:
        """Make an augmentation.

        Args:
            mean: Mean of the pixels, scaled to 0..1.
            std: Standard deviation of the pixels, scaled to 0..1.

        Raises:
            ValueError: There are no views, or the deviation is not positive.
        """
        if not specs or not std > 0:
            raise ValueError(
                f"{len(specs)} kinds of views and std {std} make no augmentation; expected at least one and std > 0."
            )
        self.specs = specs
        self.params = params
        self.mean = mean
        self.std = std

    def __call__(self, images: Tensor, generator_seed: int, first: int = 0, num_all: int | None = None) -> list[Tensor]:
        """Augment a batch.

        Args:
            images: uint8 (n, height, width), on the device.
            generator_seed: Seed of all draws. The parameters are equal on every device. The noise is drawn on the device, so
                it is equal on all devices of one kind.
            first: Number of this batch's first image in the batch of all ranks. The views are then equal to those that one
                rank would make of the whole batch.
            num_all: Number of images in the batch of all ranks; None where this batch is the whole.

        Returns:
            float32 (n, 1, size_px, size_px), normalised: all views of the first spec, then those of the next.
        """
        num, height, width = images.shape
        total = num if num_all is None else num_all
        pixels = images.unsqueeze(1).to(torch.float32).div_(255.0)
        views: list[Tensor] = []
        for spec in self.specs:
            for _ in range(spec.num):
                seed = _derived_seed(generator_seed, len(views))
                generator = torch.Generator().manual_seed(seed)
                drawn = draw_parameters(total, height, width, spec.scale, self.params, generator)
                mine = drawn.take(first, num)
                view = add_noise_(self._without_noise(pixels, mine, spec), drawn.noise_variance, seed, first)
                views.append(view.sub_(self.mean).div_(self.std))
        return views

    def _without_noise(self, pixels: Tensor, drawn: ViewParameters, spec: ViewSpec) -> Tensor:
        # Crops larger than the view are sampled more finely and averaged, which only the tiny views of trials need.
        fine = max(1, math.ceil(math.sqrt(spec.scale[1]) * max(pixels.shape[-2:]) / spec.size_px - 0.5))
        view = resample(pixels, drawn, spec.size_px, self.params.fill == "zeros", fine)
        return blur_(jitter_(view, drawn), drawn.blur_sigma_px)


def normalised(images: Tensor, mean: float, std: float) -> Tensor:
    """Turn images into the input of a network without augmentation, for evaluation.

    Args:
        images: uint8 (n, height, width).
        mean: Mean of the pixels, scaled to 0..1.
        std: Standard deviation of the pixels, scaled to 0..1.

    Returns:
        float32 (n, 1, height, width).
    """
    return images.unsqueeze(1).to(torch.float32).div_(255.0).sub_(mean).div_(std)


def resample(pixels: Tensor, drawn: ViewParameters, size_px: int, is_zero_filled: bool, fine: int = 1) -> Tensor:
    """Rotate, crop and flip images in one bilinear resampling.

    Args:
        pixels: float32 (n, 1, height, width).
        drawn: Parameters of each image.
        size_px: Side of the result.
        is_zero_filled: Whether rotated images have zeros beyond their border; otherwise they are mirrored about it.
        fine: Number of samples for each pixel of the result along each axis, which are averaged.

    Returns:
        float32 (n, 1, size_px, size_px).
    """
    height, width = pixels.shape[-2:]
    radians = torch.deg2rad(drawn.angle_deg.double())
    cos, sin = torch.cos(radians), torch.sin(radians)
    # From the result's coordinates (-1..1 from edge to edge) to px from the centre of the rotated image, ...
    sign_x, sign_y = 1 - 2 * drawn.is_flipped_x.double(), 1 - 2 * drawn.is_flipped_y.double()
    scale_x, scale_y = drawn.width.double() / 2 * sign_x, drawn.height.double() / 2 * sign_y
    shift_x = drawn.left + drawn.width.double() / 2 - width / 2
    shift_y = drawn.top + drawn.height.double() / 2 - height / 2
    # ... from there to px from the centre of the image (y points down), and to its coordinates -1..1.
    row_x = torch.stack([cos * scale_x, -sin * scale_y, cos * shift_x - sin * shift_y], 1) / (width / 2)
    row_y = torch.stack([sin * scale_x, cos * scale_y, sin * shift_x + cos * shift_y], 1) / (height / 2)
    theta = _moved(torch.stack([row_x, row_y], 1).float(), pixels.device)
    side = size_px * fine
    along = (torch.arange(side, device=pixels.device, dtype=torch.float32) * 2 + 1) / side - 1  # centres of pixels
    planes = []
    for axis in range(2):  # what functional.affine_grid does, several times slower
        by_x, by_y, shift = theta[:, axis].unbind(1)
        planes.append(by_x[:, None, None] * along + (by_y[:, None, None] * along[:, None] + shift[:, None, None]))
    # Images that are not rotated are mirrored too: half a pixel beyond the border is the border's pixel again.
    grid = torch.stack(planes, -1)
    out = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if is_zero_filled and bool(drawn.is_turned.any()):
        beyond = torch.maximum(planes[0].abs_(), planes[1].abs_()) > 1 + 1e-5
        out.masked_fill_(beyond.unsqueeze(1), 0.0)
    return out if fine == 1 else functional.avg_pool2d(out, fine)


def jitter_(view: Tensor, drawn: ViewParameters) -> Tensor:
    """Change brightness and contrast in place, in the drawn order, each clipped to 0..1.

    Args:
        view: float32 (n, 1, height, width) of 0..1.
        drawn: Parameters of each image.

    Returns:
        The same tensor; brightness makes b * x of it, contrast c * x + (1 - c) * mean(x).

    Source: torchvision's ColorJitter(brightness, contrast, ...), whose saturation and hue do nothing to gray images.
    """
    swapped = drawn.is_contrast_first
    factors = torch.stack(
        [
            torch.where(swapped, drawn.contrast, drawn.brightness),
            torch.where(swapped, 1 - drawn.contrast, 0.0),  # weight of the mean
            torch.where(swapped, drawn.brightness, drawn.contrast),
            torch.where(swapped, 0.0, 1 - drawn.contrast),
        ]
    )
    if torch.equal(factors[0::2], torch.ones_like(factors[0::2])):
        return view
    moved = _moved(factors, view.device).view(4, -1, 1, 1, 1)
    for factor, of_mean in ((moved[0], moved[1]), (moved[2], moved[3])):
        offset = of_mean * view.mean(dim=(1, 2, 3), keepdim=True)
        view = view.mul_(factor).add_(offset).clamp_(0.0, 1.0)
    return view


def blur_(view: Tensor, sigma_px: Tensor) -> Tensor:
    """Blur the images whose sigma is above 0 in place, each with its own sigma.

    Args:
        view: float32 (n, 1, height, width).
        sigma_px: float32 (n,) on the CPU.

    Returns:
        The same tensor. At the border, images are mirrored without repeating the border's pixels.
    """
    chosen = torch.nonzero(sigma_px > 0).squeeze(1)
    if len(chosen) == 0:
        return view
    sigma = sigma_px[chosen].double()
    radius = min(math.ceil(_BLUR_REACH * float(sigma.max())), min(view.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2)
    weights = torch.where(offsets.abs() <= torch.ceil(_BLUR_REACH * sigma).unsqueeze(1), weights, 0.0)
    taps = _moved((weights / weights.sum(1, keepdim=True)).float(), view.device)
    index = _moved(chosen, view.device)
    # The images become channels of one image, because a grouped convolution has its own kernel for each channel.
    held = view.index_select(0, index).transpose(0, 1)
    for shape, padding in (
        ((-1, 1, 2 * radius + 1, 1), (0, 0, radius, radius)),
        ((-1, 1, 1, 2 * radius + 1), (radius, radius, 0, 0)),
    ):
        held = functional.conv2d(functional.pad(held, padding, mode="reflect"), taps.view(shape), groups=len(chosen))
    return view.index_copy_(0, index, held.transpose(0, 1))


def add_noise_(view: Tensor, variances: Tensor, seed: int, first: int = 0) -> Tensor:
    """Add Gaussian noise in place to the images whose variance is above 0, and clip them to 0..1.

    Args:
        view: float32 (n, 1, height, width) of 0..1.
        variances: float32 (num_all,) on the CPU, of all images of the batch that this view is a part of.
        seed: Seed of the noise.
        first: Number of the view's first image in that batch.

    Returns:
        The same tensor.
    """
    num = len(view)
    generator = torch.Generator(device=view.device)
    for begin in range(first - first % _NOISE_BLOCK, first + num, _NOISE_BLOCK):
        in_block = begin + torch.nonzero(variances[begin : begin + _NOISE_BLOCK] > 0).squeeze(1)
        is_mine = (in_block >= first) & (in_block < first + num)
        if not bool(is_mine.any()):
            continue
        generator.manual_seed(_derived_seed(seed, begin))
        noise = torch.randn((len(in_block), *view.shape[1:]), generator=generator, device=view.device)
        mine = _moved(in_block[is_mine] - first, view.device)
        deviation = _moved(variances[in_block[is_mine]].sqrt(), view.device).view(-1, 1, 1, 1)
        kept = noise if bool(is_mine.all()) else noise.index_select(0, _moved(torch.nonzero(is_mine).squeeze(1), view.device))
        view.index_copy_(0, mine, view.index_select(0, mine).addcmul_(kept, deviation).clamp_(0.0, 1.0))
    return view


def _moved(small: Tensor, device: torch.device) -> Tensor:
    """Send a small tensor to the device without waiting for what the device is doing."""
    return small.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else small.to(device)


def _derived_seed(seed: int, part: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(part,)).generate_state(1, np.uint64)[0] >> np.uint64(1))
