"""The crops of a gray image: how many there are, where they are, which of them are given up again, and how they are cut.

`cem_assets.cytoimagenet.channels` makes the gray image, and `cem_assets.cytoimagenet.crops.quality` judges the crops.
Every draw depends only on the seed and the image's identity, and not on the label's other images, their order or workers.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cem_assets.cytoimagenet.channels import merge_channels
from cem_assets.errors import DataError

WHOLE = -1
"""The quadrant of a window that is the whole image."""


class CropParams(BaseModel):
    """How images are cropped.

    Attributes:
        seed: Seed of all draws.
        min_crop_px: Smallest side of a crop.
        whole_below_px: Images with a smaller side than this are kept whole.
        max_images: Largest number of crops of a label; if there are more, some are sampled away.
        min_images: Smallest number of crops of a label.
        crop_steps: Pairs of a label's smallest number of images and the number of crops of each of them, from the most images
            down. They belong to the method and cannot be set.
        max_crops: Number of crops of each image of a label that is below the last step: one in each quadrant.
        scales: Side of a crop divided by that of the image. They belong to the method and cannot be set.
    """

    model_config = ConfigDict(frozen=True)

    crop_steps: ClassVar[tuple[tuple[int, int], ...]] = ((1000, 1), (550, 2), (400, 3))
    max_crops: ClassVar[int] = 4
    scales: ClassVar[tuple[float, ...]] = (1 / 2, 1 / 4, 1 / 8, 1 / 16)

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    min_crop_px: Annotated[int, Field(ge=1)] = 70
    whole_below_px: Annotated[int, Field(ge=1)] = 140
    max_images: Annotated[int, Field(ge=1)] = 1000
    min_images: Annotated[int, Field(ge=1)] = 287

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        needed = math.ceil(self.min_crop_px / max(self.scales))
        if self.whole_below_px < needed:
            raise DataError(
                f"whole_below_px = {self.whole_below_px} leaves images without a crop of min_crop_px = {self.min_crop_px}; "
                f"expected whole_below_px >= {needed}"
            )
        if self.max_images < self.min_images:
            raise DataError(f"max_images = {self.max_images}; expected at least min_images = {self.min_images}")
        return self


@dataclass(frozen=True)
class CropWindow:
    """Where a crop lies in its image; bounds are half-open.

    Attributes:
        number: 0, 1, ... in the order in which the windows were drawn.
        quadrant: 0 top left, 1 top right, 2 bottom left, 3 bottom right; `WHOLE` for the whole image.
        scaling: Side of the window divided by the image's side.
        y_min: Pixel of the image, like the other three bounds.
    """

    number: int
    quadrant: int
    scaling: float
    y_min: int
    y_max: int
    x_min: int
    x_max: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The index that takes the window out of an image."""
        return slice(self.y_min, self.y_max), slice(self.x_min, self.x_max)


def crops_per_image(num_images: int, params: CropParams) -> int:
    """Tell how many crops are made of each image of a label.

    Args:
        num_images: Number of images of the label.

    Returns:
        1 for 1,000 images or more, 2 from 550 on, 3 from 400 on, and 4 for fewer.

    Source: CytoImageNet (arXiv:2111.11646), which brings small labels close to 1,000 images in this way.
    """
    if num_images < 1:
        raise ValueError(f"a label has at least one image; found {num_images}")
    return next((crops for fewest, crops in params.crop_steps if num_images >= fewest), params.max_crops)


def crop_windows(height_px: int, width_px: int, num_crops: int, identity: str, params: CropParams) -> tuple[CropWindow, ...]:
    """Draw the crops of one image, each in a quadrant of its own.

    The image is divided at floor(height / 2) and floor(width / 2). If a side is odd, the bottom or right quadrants are one
    pixel longer. A crop's sides are floor(side * scale). The scale is drawn from those with which both sides are at least
    `min_crop_px`, and the position from all positions inside the quadrant. If fewer crops are drawn of the same image, they are
    the first ones of more.

    Args:
        num_crops: 1 to 4.
        identity: Name of the image (`idx`), unique in the data set.

    Returns:
        `num_crops` windows in the order in which they were drawn, or one window of the whole image if a side is smaller than
        `whole_below_px`.

    Source: CytoImageNet (arXiv:2111.11646), where the draws have no seed.
    """
    if min(height_px, width_px) < 1 or not 1 <= num_crops <= params.max_crops:
        raise ValueError(
            f"{identity}: expected sides of at least 1 px and 1 to {params.max_crops} crops; found {height_px} x {width_px} px "
            f"and {num_crops} crops"
        )
    if min(height_px, width_px) < params.whole_below_px:
        return (CropWindow(0, WHOLE, 1.0, 0, height_px, 0, width_px),)
    # No scale is larger than 1/2, so crops fit even into the shorter quadrants.
    sides = [(scale, math.floor(height_px * scale), math.floor(width_px * scale)) for scale in params.scales]
    allowed = [side for side in sides if min(side[1:]) >= params.min_crop_px]
    key = int.from_bytes(_digest(identity, params.seed, b"crop windows"), "big")
    generator = np.random.Generator(np.random.Philox(key=key))
    quadrants = generator.permutation(params.max_crops).tolist()[:num_crops]
    windows = []
    for number, quadrant in enumerate(quadrants):
        scale, rows, columns = allowed[int(generator.integers(len(allowed)))]
        y_min = _draw_start(generator, height_px, quadrant // 2, rows)
        x_min = _draw_start(generator, width_px, quadrant % 2, columns)
        windows.append(CropWindow(number, quadrant, scale, y_min, y_min + rows, x_min, x_min + columns))
    return tuple(windows)


def _draw_start(generator: np.random.Generator, side_px: int, half: int, crop_px: int) -> int:
    start, stop = (side_px // 2, side_px) if half else (0, side_px // 2)
    return int(generator.integers(start, stop - crop_px, endpoint=True))


def _digest(identity: str, seed: int, purpose: bytes) -> bytes:
    """Hash an identity with BLAKE2b. Its 128 bits never coincide in practice, and each purpose has hashes of its own."""
    return hashlib.blake2b(identity.encode(), digest_size=16, key=seed.to_bytes(8, "big"), person=purpose).digest()


def sample_back(identities: Sequence[str], crop_numbers: Sequence[int], params: CropParams) -> NDArray[np.bool_]:
    """Choose which crops of a label are kept if there are more than `max_images`.

    Images lose their fourth crops first, then their third and second ones, and only then their last one. Of one image, the crop
    with the highest number goes first; among images, a keyed hash decides. Only the crops that are listed count: if an image's
    crop 0 failed the quality rules, its crop 1 is its first one.

    Args:
        identities: The image of each crop.
        crop_numbers: The number of each crop in its image.

    Returns:
        bool (n,), true for `max_images` crops, or for all if there are not more. The order of the crops makes no difference.

    Source: CytoImageNet (arXiv:2111.11646), which also drops second crops of an image first, but without a seed.
    """
    if len(identities) != len(crop_numbers):
        raise ValueError(f"every crop has an image and a number; found {len(identities)} images, {len(crop_numbers)} numbers")
    num = len(identities)
    images = {identity: place for place, identity in enumerate(dict.fromkeys(identities))}
    image = np.fromiter((images[identity] for identity in identities), np.int64, num)
    numbers = np.asarray(crop_numbers, np.int64)
    order = np.lexsort((numbers, image))
    is_first = np.ones(num, np.bool_)
    is_first[1:] = image[order][1:] != image[order][:-1]
    is_twice = ~is_first
    is_twice[1:] &= numbers[order][1:] == numbers[order][:-1]
    if is_twice.any():
        shown = [f"crop {crop_numbers[row]} of {identities[row]}" for row in order[is_twice][:5]]
        raise ValueError(f"{int(is_twice.sum())} crops are listed twice, such as {', '.join(shown)}")
    if num <= params.max_images:
        return np.ones(num, np.bool_)
    rank = np.empty(num, np.int64)
    rank[order] = np.arange(num) - np.maximum.accumulate(np.where(is_first, np.arange(num), 0))
    digests = b"".join(_digest(identity, params.seed, b"sample back") for identity in images)
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2)[image]
    keep = np.zeros(num, np.bool_)
    keep[np.lexsort((halves[:, 1], halves[:, 0], rank))[: params.max_images]] = True
    return keep


def cut(image: NDArray[np.uint8], window: CropWindow) -> NDArray[np.uint8]:
    """Cut a crop out of a gray image, and normalise it again by its own percentiles.

    Args:
        image: uint8 (y, x).

    Returns:
        uint8 (height, width) of the window, contiguous; all zeros if the crop is uniform.
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"crops are cut from uint8 images of two axes; found shape {image.shape} of {image.dtype}")
    height, width = image.shape
    if not (0 <= window.y_min < window.y_max <= height and 0 <= window.x_min < window.x_max <= width):
        raise ValueError(
            f"the window y {window.y_min}..{window.y_max}, x {window.x_min}..{window.x_max} leaves the image of "
            f"{height} x {width} px"
        )
    return merge_channels([image[window.slices]])
