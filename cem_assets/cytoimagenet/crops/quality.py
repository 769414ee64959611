"""Why an image or crop is left out: the reasons, those that pixels show, and the digest that finds exact duplicates.

Only pixels are judged here. Reasons that need the other images of a label (duplicates, too few, sampled back) are given
by whoever sees them all; drawing and cutting crops is `cem_assets.cytoimagenet.crops.crops`.
"""

import hashlib
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cem_assets.cytoimagenet.crops.channels import HIGH_PERCENT, LOW_PERCENT, histogram, percentiles_of_counts
from cem_assets.errors import DataError

DIM_PERCENT = 75.0
"""A crop is dim where this percentile is 0."""
DARK_MEAN, BRIGHT_MEAN = 1.0, 254.0
"""Means at and below, at and above which a crop is dark or bright."""
MASK_VALUES = 2
"""A mask has no more different values than this."""


class DropReason(StrEnum):
    """Why an image or crop is not in the data set."""

    unreadable = "unreadable"
    uniform = "uniform"
    mask = "mask"
    dim = "dim"
    dark = "dark"
    bright = "bright"
    duplicate = "duplicate"
    too_few_images = "too_few_images"
    sampled_back = "sampled_back"
    test_image = "test_image"
    missing = "missing"


EXPLAINED: dict[DropReason, str] = {
    DropReason.unreadable: "The file cannot be decoded.",
    DropReason.uniform: "Its 0.1 and 99.9 percentiles are equal, so there is nothing to see.",
    DropReason.mask: "It has only two gray levels, as masks and nearly empty fields have.",
    DropReason.dim: "Three quarters of its pixels are black.",
    DropReason.dark: "Its mean is at most 1 of 255.",
    DropReason.bright: "Its mean is at least 254 of 255.",
    DropReason.duplicate: "Another crop has exactly the same pixels.",
    DropReason.too_few_images: "Its label was left with fewer images than a label needs.",
    DropReason.sampled_back: "Its label had more crops than a label may have, and others were preferred.",
    DropReason.test_image: "It belongs to a data set that models are tested on, so they must not learn from it.",
    DropReason.missing: "The metadata names it, but its file is not there.",
}
"""Each reason in a sentence."""


def pixel_fault(raw_crop: NDArray[np.uint8], crop: NDArray[np.uint8]) -> DropReason | None:
    """Find the first fault that the pixels of a crop show.

    In order: uniform (0.1 and 99.9 percentile of the raw crop are equal), mask (the raw crop or the crop has no more
    than two values), dim (75th percentile of the crop is 0), dark (its mean is <= 1), bright (its mean is >= 254).

    Args:
        raw_crop: uint8 (y, x), the window of the gray image, before it is normalised again.
        crop: uint8 (y, x), after it (`cem_assets.cytoimagenet.crops.crops.cut`).

    Returns:
        The reason to drop it, or None.

    Raises:
        DataError: The two are not uint8 of one shape with pixels.

    Source: the quality rules of CytoImageNet (arXiv:2111.11646), all of which look at the gray levels alone: two
    histograms serve them.
    """
    if raw_crop.dtype != np.uint8 or crop.dtype != np.uint8 or raw_crop.shape != crop.shape or not crop.size:
        raise DataError(
            f"a crop is uint8 of the same shape before and after; found {raw_crop.shape} of {raw_crop.dtype} and "
            f"{crop.shape} of {crop.dtype}"
        )
    raw_counts, counts = histogram(raw_crop), histogram(crop)
    low, high = percentiles_of_counts(raw_counts, (LOW_PERCENT, HIGH_PERCENT))
    if low == high:
        return DropReason.uniform
    if min(np.count_nonzero(raw_counts), np.count_nonzero(counts)) <= MASK_VALUES:
        return DropReason.mask
    if percentiles_of_counts(counts, (DIM_PERCENT,)) == [0.0]:
        return DropReason.dim
    mean = int(counts @ np.arange(256)) / crop.size
    if mean <= DARK_MEAN:
        return DropReason.dark
    if mean >= BRIGHT_MEAN:
        return DropReason.bright
    return None


def pixel_digest(crop: NDArray[np.uint8]) -> str:
    """Digest of shape and pixels: equal for exact duplicates, and for nothing else.

    Args:
        crop: uint8 (y, x).

    Returns:
        SHA-256 in 64 hexadecimal digits, of "height,width" and a line end, then the pixels row by row.

    Raises:
        DataError: It is not uint8 with two axes.
    """
    if crop.ndim != 2 or crop.dtype != np.uint8:
        raise DataError(f"a crop is uint8 with two axes; found shape {crop.shape} of {crop.dtype}")
    digest = hashlib.sha256(f"{crop.shape[0]},{crop.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(crop).data)
    return digest.hexdigest()
