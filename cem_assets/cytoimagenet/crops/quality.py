"""Why an image or crop is left out, the faults that its pixels show, and the digest that finds exact duplicates.

Only pixels are judged here. The stage finds the reasons that need the other images of a label (duplicate, too few images,
sampled back). `cem_assets.cytoimagenet.crops.crops` draws and cuts crops.
"""

import hashlib
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cem_assets.cytoimagenet.channels import HIGH_PERCENT, LOW_PERCENT, histogram, percentiles_of_counts

DIM_PERCENT = 75.0
"""A crop is dim if this percentile is 0."""
DARK_MEAN, BRIGHT_MEAN = 1.0, 254.0
"""A crop is dark if its mean is at most the first number, and bright if it is at least the second."""
MASK_VALUES = 2
"""A mask has at most this many different values."""


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
"""Each reason in a sentence. The sentences are stored with every crop that was dropped, so they must not change."""


def pixel_fault(raw_crop: NDArray[np.uint8], crop: NDArray[np.uint8]) -> DropReason | None:
    """Find the first fault that the pixels of a crop show.

    The order is: uniform (the 0.1 and 99.9 percentiles of the raw crop are equal), mask (the raw crop or the crop has at most
    two values), dim (the 75th percentile of the crop is 0), dark (its mean is <= 1), bright (its mean is >= 254).

    Args:
        raw_crop: uint8 (y, x), the window of the gray image before it is normalised again.
        crop: uint8 (y, x), the same window afterwards, as `cem_assets.cytoimagenet.crops.crops.cut` returns it.

    Returns:
        The reason to drop the crop, or None.

    Source: the quality rules of CytoImageNet (arXiv:2111.11646). All of them depend only on the gray levels, so two histograms
    are enough.
    """
    if raw_crop.dtype != np.uint8 or crop.dtype != np.uint8 or raw_crop.shape != crop.shape or not crop.size:
        raise ValueError(
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
    """Compute a digest of shape and pixels, which is equal only for exact duplicates.

    Args:
        crop: uint8 (y, x).

    Returns:
        The SHA-256 of "height,width", a line end and the pixels row by row, as 64 hexadecimal digits.
    """
    if crop.ndim != 2 or crop.dtype != np.uint8:
        raise ValueError(f"a crop is uint8 with two axes; found shape {crop.shape} of {crop.dtype}")
    digest = hashlib.sha256(f"{crop.shape[0]},{crop.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(crop).data)
    return digest.hexdigest()
