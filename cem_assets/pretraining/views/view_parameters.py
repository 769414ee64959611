"""Draws the parameters of augmentations for each image of a batch.

They are drawn on the CPU, so that they are the same on every device. `cem_assets.pretraining.views.augmentations` applies
them, and `cem_assets.pretraining.methods.params` describes the views that a method needs.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_CROP_ATTEMPTS = 10
"""Number of draws of area and aspect ratio before the centre is taken, as in torchvision's RandomResizedCrop."""

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentationParams(BaseModel):
    """Distributions from which views are drawn. The defaults are those of MoCo v2 and SwAV on CEM500K and CEM1.5M.

    Attributes:
        rotation_share: Share of images that are rotated, by any angle.
        fill: "zeros" fills a rotated image beyond its border with zeros, as the CEM scripts do; "mirror" mirrors the image.
        aspect_ratio: Smallest and largest ratio of a crop's width to its height, drawn log-uniformly.
        brightness: Factors of the brightness are drawn from 1 - brightness to 1 + brightness.
        contrast: Factors of the contrast around the mean of the view are drawn from 1 - contrast to 1 + contrast.
        blur_share: Share of images that are blurred.
        blur_sigma_px: Smallest and largest standard deviation of the blur.
        flip_share: Share of images mirrored left to right and, drawn independently, upside down.
        noise_share: Share of images with Gaussian noise.
        noise_variance: Smallest and largest variance of the noise on a scale of 0 to 1, drawn log-uniformly.
    """

    model_config = ConfigDict(frozen=True)

    rotation_share: Share = 0.5
    fill: Literal["zeros", "mirror"] = "zeros"
    aspect_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    brightness: Share = 0.4
    contrast: Share = 0.4
    blur_share: Share = 0.5
    blur_sigma_px: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0, le=8)]] = (0.1, 2.0)
    flip_share: Share = 0.5
    noise_share: Share = 0.5
    noise_variance: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0, le=1)]] = (1e-5, 1e-4)


SUPERVISED = AugmentationParams(
    rotation_share=1.0, fill="mirror", brightness=0.0, contrast=0.0, blur_share=0.0, flip_share=0.0, noise_share=0.0
)
"""The augmentation of CytoImageNet (arXiv:2111.11646): rotation by any angle with mirroring. Use it with scale (1, 1)."""


@dataclass(frozen=True)
class ViewParameters:
    """The augmentation of each image of a batch, as tensors of length n on the CPU.

    Attributes:
        angle_deg: float32, the angle of the rotation, counter-clockwise as displayed.
        is_turned: bool, whether the image is rotated.
        top, left, height, width: float32, the crop in the rotated image, in px.
        is_flipped_x, is_flipped_y: bool, whether the image is mirrored left to right, and upside down.
        brightness, contrast: float32, factors; 1 changes nothing.
        is_contrast_first: bool, whether the contrast changes before the brightness.
        blur_sigma_px: float32; 0 for no blur.
        noise_variance: float32; 0 for no noise.
    """

    angle_deg: Tensor
    is_turned: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    is_flipped_x: Tensor
    is_flipped_y: Tensor
    brightness: Tensor
    contrast: Tensor
    is_contrast_first: Tensor
    blur_sigma_px: Tensor
    noise_variance: Tensor

    def take(self, first: int, num: int) -> "ViewParameters":
        """Return the parameters of the images first..first + num - 1."""
        return ViewParameters(**{name: value[first : first + num] for name, value in vars(self).items()})


def draw_parameters(
    num: int, height: int, width: int, scale: tuple[float, float], params: AugmentationParams, generator: torch.Generator
) -> ViewParameters:
    """Draw the parameters of one view for each of `num` images of height x width px.

    Args:
        scale: Smallest and largest share of the image's area that the crop has, as in `ViewSpec`.
        generator: Generator on the CPU; it advances by the same amount whatever is drawn.
    """

    def unit(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def between(bounds: tuple[float, float], values: Tensor) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * values

    is_turned = unit(num) < params.rotation_share
    angle = between((-180.0, 180.0), unit(num)) * is_turned
    top, left, crop_height, crop_width = _draw_crops(unit(num, _CROP_ATTEMPTS), unit(num, _CROP_ATTEMPTS), unit(num),
                                                     unit(num), height, width, scale, params.aspect_ratio)  # fmt: skip
    is_flipped_x, is_flipped_y = unit(num) < params.flip_share, unit(num) < params.flip_share
    brightness = between((1 - params.brightness, 1 + params.brightness), unit(num))
    contrast = between((1 - params.contrast, 1 + params.contrast), unit(num))
    is_contrast_first = unit(num) < 0.5
    is_blurred = unit(num) < params.blur_share
    sigma = between(params.blur_sigma_px, unit(num)) * is_blurred
    is_noisy = unit(num) < params.noise_share
    low, high = (math.log(value) for value in params.noise_variance)
    variance = torch.exp(between((low, high), unit(num))) * is_noisy
    return ViewParameters(angle, is_turned, top, left, crop_height, crop_width, is_flipped_x, is_flipped_y,
                          brightness, contrast, is_contrast_first, sigma, variance)  # fmt: skip


def _draw_crops(
    area: Tensor,
    ratio: Tensor,
    place_y: Tensor,
    place_x: Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn uniform numbers into crops (top, left, height, width) of whole px.

    Source: torchvision's RandomResizedCrop.get_params, which takes the first of ten draws that fits into the image, else the
    largest crop around the centre with an allowed ratio.
    """
    low, high = (math.log(value) for value in aspect_ratio)
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    ratios = torch.exp(low + (high - low) * ratio)
    widths, heights = torch.round(torch.sqrt(areas * ratios)), torch.round(torch.sqrt(areas / ratios))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # the first of equal maxima
    has_one = fits.any(1)
    own_ratio = min(max(width / height, aspect_ratio[0]), aspect_ratio[1])
    whole_width, whole_height = min(width, round(height * own_ratio)), min(height, round(width / own_ratio))
    crop_width = torch.where(has_one, widths.gather(1, first).squeeze(1), float(whole_width))
    crop_height = torch.where(has_one, heights.gather(1, first).squeeze(1), float(whole_height))
    top = torch.where(has_one, torch.floor(place_y * (height - crop_height + 1)), float((height - whole_height) // 2))
    left = torch.where(has_one, torch.floor(place_x * (width - crop_width + 1)), float((width - whole_width) // 2))
    return top, left, crop_height, crop_width
