"""Training crops of images and their masks, drawn and resampled together.

The draws of a crop depend only on the seed, the step and the position in the batch. So the number of threads does not change
them, and a training can continue from any step. The caller decides which images there are and how they are read;
`cem_assets.benchmarks.segmentation.training` learns from the crops.

The distributions are those of the benchmark configurations of volume-em/cem-dataset (albumentations, one image at a time), with
these differences. Crop, rotation and flips are one resampling, so nothing is interpolated twice, and a rotated crop shows what
really surrounds it instead of a mirrored part of itself; only beyond the border of the image pixels are mirrored. The blur is
computed in float32. A crop that should contain a labelled pixel still contains one after its rotation, while in the reference a
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
"""Range of the variance of Gaussian noise, in squared gray levels of 0..255; the variance is drawn uniformly."""
BLUR_KERNELS_PX = (3, 5, 7)
NOISE_SHARE = BLUR_SHARE = 0.5
_ATTEMPTS = 10
"""Number of draws of a crop that fits, or that contains the labelled pixel, before a plain crop is taken."""

ImageAndMask = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image, uint8 (height, width), and its mask of the same size with class numbers."""
CropBatch = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Normalised images, float32 (n, 1, crop_px, crop_px), and masks, uint8 (n, crop_px, crop_px)."""


@dataclass(frozen=True)
class RotatedWindow:
    """Where a crop is in its image: a window that is rotated about its own centre.

    Attributes:
        top, left, height, width: The window before its rotation, in px of the image; it may reach beyond the image.
        angle_deg: Angle of the rotation, counter-clockwise as displayed.
        is_flipped_x: Whether the crop is mirrored left to right.
        is_flipped_y: Whether the crop is mirrored upside down.
    """

    top: float
    left: float
    height: float
    width: float
    angle_deg: float = 0.0
    is_flipped_x: bool = False
    is_flipped_y: bool = False

    def contains(self, y: int, x: int) -> bool:
        """Tell whether the centre of a pixel is inside the rotated window."""
        angle = math.radians(self.angle_deg)
        dy, dx = y + 0.5 - self.top - self.height / 2, x + 0.5 - self.left - self.width / 2
        own_y = math.cos(angle) * dy + math.sin(angle) * dx
        own_x = -math.sin(angle) * dy + math.cos(angle) * dx
        return abs(own_y) < self.height / 2 and abs(own_x) < self.width / 2


def draw_window(mask: NDArray[np.uint8], params: SegmentationParams, generator: np.random.Generator) -> RotatedWindow:
    """Draw the window of a random resized crop, from an image that is padded to the side of a crop.

    Args:
        mask: uint8 (height, width), class numbers.

    Returns:
        The window. If it should contain a labelled pixel and the mask has one, such a pixel is inside: nine placements with the
        drawn angle are tried, and then one without rotation.
    """
    height, width = mask.shape
    padded_height, padded_width = max(height, params.crop_px), max(width, params.crop_px)
    above, before = (padded_height - height) // 2, (padded_width - width) // 2
    crop_height, crop_width = _draw_size(padded_height, padded_width, params, generator)
    is_rotated = generator.random() < params.rotation_share
    angle = generator.uniform(-params.rotation_deg, params.rotation_deg) * is_rotated
    flips = [bool(generator.random() < params.flip_share) for _ in range(2)]
    labelled = np.flatnonzero(mask) if generator.random() < params.foreground_share else np.empty(0, np.int64)
    if len(labelled) == 0:
        top = int(generator.integers(0, padded_height - crop_height, endpoint=True))
        left = int(generator.integers(0, padded_width - crop_width, endpoint=True))
        return RotatedWindow(top - above, left - before, crop_height, crop_width, angle, *flips)
    y, x = divmod(int(labelled[generator.integers(len(labelled))]), width)
    for attempt in range(_ATTEMPTS):
        top = _start(y + above, crop_height, padded_height, generator)
        left = _start(x + before, crop_width, padded_width, generator)
        tried_angle = angle if attempt < _ATTEMPTS - 1 else 0.0
        window = RotatedWindow(top - above, left - before, crop_height, crop_width, tried_angle, *flips)
        if window.contains(y, x):
            break
    return window


def _start(place: int, length: int, padded: int, generator: np.random.Generator) -> int:
    """Draw the start of a window of this length that contains a place."""
    return int(generator.integers(max(0, place - length + 1), min(place, padded - length), endpoint=True))


def _draw_size(height: int, width: int, params: SegmentationParams, generator: np.random.Generator) -> tuple[int, int]:
    """Draw the height and width of a crop: the first of ten draws that fits, or else the largest crop with an allowed ratio."""
    areas = height * width * generator.uniform(*params.crop_scale, size=_ATTEMPTS)
    low, high = np.log(params.crop_ratio)
    ratios = np.exp(generator.uniform(low, high, size=_ATTEMPTS))
    for crop_height, crop_width in zip(np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios)), strict=True):
        if 0 < crop_height <= height and 0 < crop_width <= width:
            return int(crop_height), int(crop_width)
    ratio = min(max(width / height, params.crop_ratio[0]), params.crop_ratio[1])
    return max(1, min(height, round(width / ratio))), max(1, min(width, round(height * ratio)))


def resample_window(image: NDArray[Any], window: RotatedWindow, side_px: int, order: int) -> NDArray[Any]:
    """Resample a window of an image to a square of `side_px`.

    Args:
        image: (height, width).
        order: 1 for bilinear interpolation, which gives float32; 0 for the nearest pixel, which keeps the type.

    Returns:
        (side_px, side_px). Beyond the border the image is mirrored about its outermost pixels, which are not repeated.
    """
    angle = math.radians(window.angle_deg)
    scale_y = window.height / side_px * (-1 if window.is_flipped_y else 1)
    scale_x = window.width / side_px * (-1 if window.is_flipped_x else 1)
    # The matrix leads from a pixel of the result to one of the image. y points down, so a rotation to the left moves the upper
    # end to the left.
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = rotation @ np.diag([scale_y, scale_x])
    centre = np.array([window.top + window.height / 2, window.left + window.width / 2]) - 0.5
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
        seed: Numbers that identify this crop.

    Returns:
        The normalised image, float32 (1, crop_px, crop_px), and the mask, uint8 (crop_px, crop_px).
    """
    generator = np.random.default_rng(np.random.SeedSequence(tuple(seed)))
    window = draw_window(mask, params, generator)
    pixels = resample_window(image, window, params.crop_px, order=1) / np.float32(255)
    # All numbers are drawn even if they are not used, so that switching one augmentation off does not change the other draws.
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
        sigma_px = 0.3 * ((kernel_px - 1) / 2 - 1) + 0.8  # the sigma that OpenCV uses for a kernel of this size
        pixels = ndimage.gaussian_filter(pixels, sigma_px, mode="mirror", radius=kernel_px // 2)
    normalised = (pixels - np.float32(params.mean)) / np.float32(params.std)
    return normalised[None].astype(np.float32, copy=False), resample_window(mask, window, params.crop_px, order=0)


class CropSampler:
    """Makes the batch of crops of any step.

    It goes through all images again and again, each time in another order. A batch may reach into the next pass.
    """

    def __init__(self, items: Sequence[ImageAndMask], params: SegmentationParams, num_threads: int = 1) -> None:
        """Make a sampler.

        Args:
            items: The training images. An item is looked up whenever it is needed, and with several threads from each of them,
                so it may be read from a file at that time.
            num_threads: Number of threads, which make the crops one step ahead; 1 makes them when they are requested.

        Raises:
            DataError: There are no images.
        """
        if len(items) == 0:
            raise DataError("there are no training images; expected at least one with its mask. Add training images.")
        self.items = items
        self.params = params
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._ahead: tuple[int, list[Future[CropBatch]]] = (-1, [])

    def rows(self, step: int) -> list[int]:
        """Return the number of the image of each crop of a step; steps are counted from 0."""
        num, orders, rows = len(self.items), {}, []
        for place in range(step * self.params.batch_size, (step + 1) * self.params.batch_size):
            number = place // num
            if number not in orders:
                orders[number] = np.random.default_rng((self.params.seed, 0, number)).permutation(num)
            rows.append(int(orders[number][place % num]))
        return rows

    def __call__(self, step: int) -> CropBatch:
        """Make the batch of a step; steps are counted from 0.

        Raises:
            DataError: An image or a mask has the wrong type, shape or values; the error gives its number.
        """
        if self._pool is None:
            made = [self._crop(step, place, row) for place, row in enumerate(self.rows(step))]
        else:
            ready = self._ahead[1] if self._ahead[0] == step else self._submit(step)
            self._ahead = (step + 1, self._submit(step + 1))
            made = [future.result() for future in ready]
        return np.stack([image for image, _ in made]), np.stack([mask for _, mask in made])

    def close(self) -> None:
        """End the threads; crops that are not finished are dropped."""
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
