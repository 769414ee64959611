"""Crops of one gray image: how many, where, which to give up again, and cutting them.

The gray image is made by `cem_assets.cytoimagenet.crops.channels`; which crops are fit for use is
`cem_assets.cytoimagenet.crops.quality`. Every draw is keyed by the seed and the image's identity alone: it does not depend
on the label's other images, on their order or on workers.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cem_assets.cytoimagenet.crops.channels import merge_channels
from cem_assets.errors import DataError

WHOLE = -1
"""Quadrant of a window that is the whole image."""


class CropParams(BaseModel):
    """How images are cropped.

    Attributes:
        seed: Key of all draws.
        min_crop_px: Smallest side of a crop.
        whole_below_px: Images with a side below this are kept whole.
        max_images: Most crops of a label; above it, crops are sampled back.
        min_images: Fewest crops of a label.
        crop_steps: (fewest images of a label, crops of each), from the most images down; of the method, not to be set.
        max_crops: Crops of each image of a label below the last step: one in each quadrant.
        scales: Side of a crop over that of the image; of the method, not to be set.
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
        number: 0, 1, ... in the order drawn.
        quadrant: 0 top left, 1 top right, 2 bottom left, 3 bottom right; `WHOLE` for the whole image.
        scaling: Side over the image's side.
        y_min, y_max, x_min, x_max: Pixels of the image.
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
        """Index that takes the window out of an image."""
        return slice(self.y_min, self.y_max), slice(self.x_min, self.x_max)


def crops_per_image(num_images: int, params: CropParams) -> int:
    """Tell how many crops are made of each image of a label.

    Args:
        num_images: Images of the label.
        params: The steps.

    Returns:
        1 from 1,000 images on, 2 from 550, 3 from 400, else 4.

    Raises:
        DataError: There are no images.

    Source: CytoImageNet (arXiv:2111.11646), which brings small labels near 1,000 images so.
    """
    if num_images < 1:
        raise DataError(f"a label has at least one image; found {num_images}")
    return next((crops for fewest, crops in params.crop_steps if num_images >= fewest), params.max_crops)


def crop_windows(height_px: int, width_px: int, num_crops: int, identity: str, params: CropParams) -> tuple[CropWindow, ...]:
    """Draw the crops of one image, each in a quadrant of its own.

    The image is divided at floor(height / 2) and floor(width / 2); where a side is odd, the bottom or right quadrants
    are one pixel longer. A crop's sides are floor(side * scale), the scale drawn from those that leave both sides
    at least `min_crop_px`, the position from all that lie in the quadrant. Fewer crops of the same image are the first
    of more.

    Args:
        height_px: Rows of the image.
        width_px: Columns of the image.
        num_crops: 1..4.
        identity: Name of the image, unique in the data set (`idx`).
        params: Sizes and seed.

    Returns:
        `num_crops` windows in the order drawn; one whole window where a side is below `whole_below_px`.

    Raises:
        DataError: The image has no pixels, or the number of crops is not 1..4.

    Source: CytoImageNet (arXiv:2111.11646); there the draws are not seeded.
    """
    if min(height_px, width_px) < 1 or not 1 <= num_crops <= params.max_crops:
        raise DataError(
            f"{identity}: expected sides of at least 1 px and 1 to {params.max_crops} crops; found {height_px} x {width_px} px "
            f"and {num_crops} crops"
        )
    if min(height_px, width_px) < params.whole_below_px:
        return (CropWindow(0, WHOLE, 1.0, 0, height_px, 0, width_px),)
    # No scale is above 1/2, so crops fit even the shorter quadrants.
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
    """BLAKE2b, 128 bits: so many that no two images are ever equal; each purpose has its own."""
    return hashlib.blake2b(identity.encode(), digest_size=16, key=seed.to_bytes(8, "big"), person=purpose).digest()


def sample_back(identities: Sequence[str], crop_numbers: Sequence[int], params: CropParams) -> NDArray[np.bool_]:
    """Choose the crops of one label to keep where there are more than `max_images`.

    Crops are given up from images that have most of them left: first fourth ones, then third, then second, and only
    then the last of an image; of one image those with the highest number first; of different images by a keyed hash.
    What counts is the crops listed here: where quality took an image's crop 0, its crop 1 is its first.

    Args:
        identities: Image of each crop.
        crop_numbers: Number of each crop in its image.
        params: `max_images` and the seed.

    Returns:
        bool (n,), true for `max_images` crops, or for all where there are no more; whatever their order.

    Raises:
        DataError: The two lists differ in length, or a crop is listed twice.

    Source: CytoImageNet (arXiv:2111.11646), which drops a second crop of the same image first; there unseeded.
    """
    if len(identities) != len(crop_numbers):
        raise DataError(f"every crop has an image and a number; found {len(identities)} images, {len(crop_numbers)} numbers")
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
        raise DataError(f"{int(is_twice.sum())} crops are listed twice, such as {', '.join(shown)}; list each once")
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
    """Cut a crop out of a gray image and normalise it again, by its own percentiles.

    Args:
        image: uint8 (y, x).
        window: Where.

    Returns:
        uint8 (window's height, window's width), contiguous; zeros where the crop is uniform.

    Raises:
        DataError: The image is no gray image, or the window leaves it.
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise DataError(f"crops are cut from uint8 images of two axes; found shape {image.shape} of {image.dtype}")
    height, width = image.shape
    if not (0 <= window.y_min < window.y_max <= height and 0 <= window.x_min < window.x_max <= width):
        raise DataError(
            f"the window y {window.y_min}..{window.y_max}, x {window.x_min}..{window.x_max} leaves the image of "
            f"{height} x {width} px; draw it for this image with crop_windows"
        )
    return merge_channels([image[window.slices]])
