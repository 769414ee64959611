"""What is done to each image of a batch to make a view: the distributions, and numbers drawn from them.

Drawn on the CPU, so that they are the same on every device. Applying them is `cem_assets.pretraining.views.augmentations`;
which views a method wants is `cem_assets.pretraining.methods.params`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_CROP_ATTEMPTS = 10
"""As torchvision's RandomResizedCrop: so many draws of area and aspect ratio before the centre is taken."""

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentationParams(BaseModel):
    """How views are drawn. The defaults are those of MoCoV2 and SwAV on CEM500K and CEM1.5M.

    Attributes:
        rotation_share: Share of images turned by an angle drawn from all.
        fill: What a turned image has beyond its border: "zeros" as the CEM scripts have it, or the image mirrored.
        aspect_ratio: Smallest and largest ratio of a crop's width to its height, drawn log-uniformly.
        brightness: Factors are drawn from 1 - b to 1 + b.
        contrast: Likewise, around the mean of the view.
        blur_share: Share of images blurred.
        blur_sigma_px: Smallest and largest deviation of the blur.
        flip_share: Share of images mirrored left to right, and, drawn apart, upside down.
        noise_share: Share of images with Gaussian noise.
        noise_variance: Smallest and largest variance of the noise on the scale 0..1, drawn log-uniformly.
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
"""CytoImageNet (arXiv:2111.11646): any rotation with reflection, nothing else. Use it with scale (1, 1)."""


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each image of a batch; tensors of length n on the CPU.

    Attributes:
        angle_deg: float32, counter-clockwise as displayed; 0 leaves the image.
        is_turned: bool, which images are rotated at all.
        top, left, height, width: float32, the crop in the turned image, in px.
        is_flipped_x, is_flipped_y: bool, mirrored left to right and upside down.
        brightness, contrast: float32, factors; 1 changes nothing.
        is_contrast_first: bool, contrast before brightness.
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
        """Return those of the images first..first + num - 1."""
        return ViewParameters(**{name: value[first : first + num] for name, value in vars(self).items()})


def draw_parameters(
    num: int, height: int, width: int, scale: tuple[float, float], params: AugmentationParams, generator: torch.Generator
) -> ViewParameters:
    """Draw what is done to each of `num` images of height x width px, for one view.

    Args:
        num: Images.
        height: Of the images.
        width: Of the images.
        scale: Of the crop's area, as in `ViewSpec`.
        generator: On the CPU. Advances by the same amount whatever is drawn.
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
    """Turn uniform numbers into crops (top, left, height, width), whole px.

    Source: torchvision's RandomResizedCrop.get_params: the first of ten draws that fits inside, else the largest
    crop around the centre with an allowed ratio.
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
