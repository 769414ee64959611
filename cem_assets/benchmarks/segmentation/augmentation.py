"""Training crops of images and their masks, drawn and resampled together.

What is drawn for a crop depends on the seed, the step and the place in the batch alone, so threads do not change
it and a run goes on from any step. Which images there are and how they are read is the caller's; who learns from the crops is
`segmentation_training`.

Distributions are those of the benchmark configurations of volume-em/cem-dataset (albumentations, one image at a
time). We differ so: crop, rotation and flips are one resampling, so nothing is interpolated twice and a turned crop
shows its true surroundings instead of a mirrored part of itself (beyond the image it is mirrored); the blur is
computed in float32; a crop that should hold a labelled pixel holds one after its rotation too, while there a
later, smaller crop may lose it.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cem_assets.benchmarks.segmentation.params import SegmentationParams
from cem_assets.errors import DataError

NOISE_VARIANCE = (400.0, 1200.0)
"""Of Gaussian noise, in squared gray levels of 0..255, drawn uniformly."""
BLUR_KERNELS_PX = (3, 5, 7)
NOISE_SHARE = BLUR_SHARE = 0.5
_ATTEMPTS = 10
"""So many draws of a crop that fits, or of one that holds the labelled pixel, before a plain one is taken."""

Item = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image, uint8 (height, width), and its mask of the same size: class numbers."""
CropBatch = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Normalised images, float32 (n, 1, crop_px, crop_px), and masks, uint8 (n, crop_px, crop_px)."""


@dataclass(frozen=True)
class Crop:
    """Where a crop lies: a window of the image, turned about its own centre.

    Attributes:
        top, left, height, width: Of the window before it is turned, in px of the image; it may reach beyond it.
        angle_deg: Counter-clockwise as displayed.
        is_flipped_x, is_flipped_y: Mirrored left to right and upside down.
    """

    top: float
    left: float
    height: float
    width: float
    angle_deg: float = 0.0
    is_flipped_x: bool = False
    is_flipped_y: bool = False

    def holds(self, y: int, x: int) -> bool:
        """Tell whether the centre of a pixel lies in the window as turned."""
        angle = math.radians(self.angle_deg)
        dy, dx = y + 0.5 - self.top - self.height / 2, x + 0.5 - self.left - self.width / 2
        own_y = math.cos(angle) * dy + math.sin(angle) * dx
        own_x = -math.sin(angle) * dy + math.cos(angle) * dx
        return abs(own_y) < self.height / 2 and abs(own_x) < self.width / 2


def draw_crop(mask: NDArray[np.uint8], params: SegmentationParams, generator: np.random.Generator) -> Crop:
    """Draw a random resized crop of an image padded to the side of a crop.

    Args:
        mask: uint8 (height, width), class numbers.
        generator: Source of the draws.

    Returns:
        The crop. Where a labelled pixel is asked for and there is one, it lies inside: up to ten placements with
        the drawn angle are tried, and after them one that is not turned.
    """
    height, width = mask.shape
    padded_height, padded_width = max(height, params.crop_px), max(width, params.crop_px)
    above, before = (padded_height - height) // 2, (padded_width - width) // 2
    crop_height, crop_width = _draw_size(padded_height, padded_width, params, generator)
    is_turned = generator.random() < params.rotation_share
    angle = generator.uniform(-params.rotation_deg, params.rotation_deg) * is_turned
    flips = [bool(generator.random() < params.flip_share) for _ in range(2)]
    labelled = np.flatnonzero(mask) if generator.random() < params.foreground_share else np.empty(0, np.int64)
    if len(labelled) == 0:
        top = int(generator.integers(0, padded_height - crop_height, endpoint=True))
        left = int(generator.integers(0, padded_width - crop_width, endpoint=True))
        return Crop(top - above, left - before, crop_height, crop_width, angle, *flips)
    y, x = divmod(int(labelled[generator.integers(len(labelled))]), width)
    for attempt in range(_ATTEMPTS):
        top = _start(y + above, crop_height, padded_height, generator)
        left = _start(x + before, crop_width, padded_width, generator)
        turned = angle if attempt < _ATTEMPTS - 1 else 0.0
        crop = Crop(top - above, left - before, crop_height, crop_width, turned, *flips)
        if crop.holds(y, x):
            break
    return crop


def _start(place: int, length: int, padded: int, generator: np.random.Generator) -> int:
    """Draw the start of a window of a length that holds a place."""
    return int(generator.integers(max(0, place - length + 1), min(place, padded - length), endpoint=True))


def _draw_size(height: int, width: int, params: SegmentationParams, generator: np.random.Generator) -> tuple[int, int]:
    """Draw the height and width of a crop: the first of ten draws that fits, else the largest with an allowed ratio."""
    areas = height * width * generator.uniform(*params.crop_scale, size=_ATTEMPTS)
    low, high = np.log(params.crop_ratio)
    ratios = np.exp(generator.uniform(low, high, size=_ATTEMPTS))
    for crop_height, crop_width in zip(np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios)), strict=True):
        if 0 < crop_height <= height and 0 < crop_width <= width:
            return int(crop_height), int(crop_width)
    ratio = min(max(width / height, params.crop_ratio[0]), params.crop_ratio[1])
    return max(1, min(height, round(width / ratio))), max(1, min(width, round(height * ratio)))


def take_crop(image: NDArray[Any], crop: Crop, side_px: int, order: int) -> NDArray[Any]:
    """Resample a crop to a square.

    Args:
        image: (height, width).
        crop: Where.
        side_px: Of the result.
        order: 1 for bilinear, which gives float32; 0 for the nearest pixel, which keeps the type.

    Returns:
        (side_px, side_px). Beyond the image it is mirrored about its outermost pixels, which are not repeated.
    """
    angle = math.radians(crop.angle_deg)
    scale_y = crop.height / side_px * (-1 if crop.is_flipped_y else 1)
    scale_x = crop.width / side_px * (-1 if crop.is_flipped_x else 1)
    # From a pixel of the result to one of the image: y points down, so a turn to the left moves the upper end leftwards.
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.diag([scale_y, scale_x])
    centre = np.array([crop.top + crop.height / 2, crop.left + crop.width / 2]) - 0.5
    offset = centre - matrix @ np.full(2, (side_px - 1) / 2)
    kept = np.float32 if order else image.dtype
    return np.asarray(
        ndimage.affine_transform(
            image, matrix, offset, (side_px, side_px), output=kept, order=order, mode="mirror", prefilter=False
        )
    )


def augment(image: NDArray[np.uint8], mask: NDArray[np.uint8], params: SegmentationParams, seed: Sequence[int]) -> CropBatch:
    """Make one training crop.

    Args:
        image: uint8 (height, width), of any size.
        mask: uint8 (height, width), class numbers.
        seed: Numbers that name this crop.

    Returns:
        Image float32 (1, crop_px, crop_px), normalised, and mask uint8 (crop_px, crop_px).
    """
    generator = np.random.default_rng(np.random.SeedSequence(tuple(seed)))
    crop = draw_crop(mask, params, generator)
    pixels = take_crop(image, crop, params.crop_px, order=1) / np.float32(255)
    # Drawn whatever is used, so that one switch does not change the other draws.
    shares = generator.random(3)
    contrast = generator.uniform(-params.contrast, params.contrast)
    brightness = generator.uniform(-params.brightness, params.brightness)
    variance = generator.uniform(*NOISE_VARIANCE)
    kernel_px = int(generator.choice(BLUR_KERNELS_PX))
    if shares[0] < params.jitter_share:
        pixels = np.clip(pixels * np.float32(1 + contrast) + np.float32(brightness), 0, 1)
    if params.has_noise and shares[1] < NOISE_SHARE:
        noise = generator.standard_normal(pixels.shape, dtype=np.float32)
        pixels = np.clip(pixels + noise * np.float32(math.sqrt(variance) / 255), 0, 1)
    if params.has_blur and shares[2] < BLUR_SHARE:
        sigma_px = 0.3 * ((kernel_px - 1) / 2 - 1) + 0.8  # what OpenCV takes for a kernel of that size
        pixels = ndimage.gaussian_filter(pixels, sigma_px, mode="mirror", radius=kernel_px // 2)
    normalised = (pixels - np.float32(params.mean)) / np.float32(params.std)
    return normalised[None].astype(np.float32, copy=False), take_crop(mask, crop, params.crop_px, order=0)


class CropSampler:
    """Batches of crops by the number of the step.

    Images are taken in passes over all of them, each pass in an order of its own; a batch may reach into the next pass.
    """

    def __init__(self, items: Sequence[Item], params: SegmentationParams, num_threads: int = 1) -> None:
        """Make a sampler.

        Args:
            items: Images with masks; indexed whenever one is needed, from several threads where there are, so
                they may be read on demand.
            num_threads: Threads that make crops, a step ahead; 1 makes them when they are asked for.

        Raises:
            DataError: There are no images.
        """
        if len(items) == 0:
            raise DataError("there are no training images; expected at least one with its mask.")
        self.items = items
        self.params = params
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._ahead: tuple[int, list[Future[CropBatch]]] = (-1, [])

    def rows(self, step: int) -> list[int]:
        """Return the numbers of the images of a step's crops; steps are counted from 0."""
        num, orders, rows = len(self.items), {}, []
        for place in range(step * self.params.batch_size, (step + 1) * self.params.batch_size):
            number = place // num
            if number not in orders:
                orders[number] = np.random.default_rng((self.params.seed, 0, number)).permutation(num)
            rows.append(int(orders[number][place % num]))
        return rows

    def __call__(self, step: int) -> CropBatch:
        """Make the batch of a step.

        Args:
            step: Counted from 0.

        Raises:
            DataError: An image or a mask is not as expected; its number is named.
        """
        if self._pool is None:
            made = [self._crop(step, place, row) for place, row in enumerate(self.rows(step))]
        else:
            ready = self._ahead[1] if self._ahead[0] == step else self._submit(step)
            self._ahead = (step + 1, self._submit(step + 1))
            made = [future.result() for future in ready]
        return np.stack([image for image, _ in made]), np.stack([mask for _, mask in made])

    def close(self) -> None:
        """End the threads; crops under way are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _submit(self, step: int) -> list[Future[CropBatch]]:
        assert self._pool is not None
        return [self._pool.submit(self._crop, step, place, row) for place, row in enumerate(self.rows(step))]

    def _crop(self, step: int, place: int, row: int) -> CropBatch:
        image, mask = self.items[row]
        problems = [
            f"{what} is {array.dtype} {array.shape}, expected uint8 (height, width)"
            for what, array in (("the image", image), ("the mask", mask))
            if array.dtype != np.uint8 or array.ndim != 2 or array.size == 0
        ]
        largest = max(1, self.params.num_classes - 1)
        if not problems and image.shape != mask.shape:
            problems.append(f"the image is {image.shape} and its mask {mask.shape}, expected equal sizes")
        if not problems and int(mask.max()) > largest:
            problems.append(f"the mask has value {mask.max()}, expected class numbers of 0 to {largest}")
        if problems:
            raise DataError(f"training image {row} cannot be used: {'; '.join(problems)}. Prepare the benchmark again.")
        return augment(image, mask, self.params, (self.params.seed, 1, step, place))
