"""A segmentation without training: the mean of the channels that correlate best with an organelle's masks.

One channel sees a part of an organelle; the mean of the best few shows whether the encoder as a whole tells it from the rest.
They are chosen with the very masks they are compared with, so the result for channels chosen on all other images is reported
too.
Single channels are `cem_assets.analyses.organelles.correlation`.

Source: Conrad and Narayan 2021 (eLife 65894): the mean of 32 channels, scaled to 0..1, correlated with the mask
(point-biserial, which is Pearson's with a binary variable) and cut at 0.3 for an IoU. They choose the channels on each image
alone; here they are chosen on all images of an organelle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cem_assets.analyses.organelles.correlation import enlarged


@dataclass(frozen=True)
class Consensus:
    """How the mean of the best channels agrees with the masks of one kind of organelle.

    Attributes:
        channels: int64 (k,), chosen on all images, the best first.
        maps: float32 (height, width) of each image, 0..1.
        correlations: float64 (images,), of map and mask over pixels; 0 where a map is constant.
        ious: float64 (images,), of the map above the threshold and the mask.
        held_out: float64 (images,), correlations of the mean of channels chosen on the other images; NaN for a single image.
    """

    channels: NDArray[np.int64]
    maps: tuple[NDArray[np.float32], ...]
    correlations: NDArray[np.float64]
    ious: NDArray[np.float64]
    held_out: NDArray[np.float64]


def _chosen(correlations: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Return the channels of the largest mean correlation, ties in order of channel."""
    return np.argsort(-correlations.mean(axis=0), kind="stable")[:num]


def _mean_map(maps: NDArray[np.float32], channels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    mean = enlarged(maps[channels].mean(axis=0, keepdims=True), *shape)[0]
    low, high = float(mean.min()), float(mean.max())
    # A map that differs by rounding alone counts as constant and stays 0.
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return np.zeros(shape, np.float32)
    return np.asarray((mean - low) / (high - low), np.float32)


def _correlation(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    centred = values.ravel().astype(np.float64)
    centred -= centred.mean()
    inside = mask.ravel() - mask.mean()
    length = float(np.sqrt((centred @ centred) * (inside @ inside)))
    return float(centred @ inside) / length if length else 0.0


def measure_consensus(
    maps: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.bool_]],
    correlations: NDArray[np.float64],
    num_channels: int = 32,
    threshold: float = 0.3,
) -> Consensus:
    """Compare the mean of the best channels with masks.

    Args:
        maps: float32 (channels, rows, columns) of each image.
        masks: bool (height, width) of each image.
        correlations: float64 (images, channels), of `measure_agreement` for these.
        num_channels: Number of channels that are averaged; all where there are fewer.
        threshold: Threshold of the map scaled to 0..1, for the IoU.

    Raises:
        ValueError: The numbers of maps, masks and correlations differ, or another number is out of range.
    """
    if not len(maps) == len(masks) == len(correlations) or not maps or num_channels < 1 or not 0 <= threshold < 1:
        raise ValueError(
            f"{len(maps)} maps, {len(masks)} masks, correlations of {len(correlations)}, {num_channels} channels, threshold "
            f"{threshold}; expected as many of each, one channel at least and a threshold from 0 to 1"
        )
    channels = _chosen(correlations, num_channels)
    means = [_mean_map(found, channels, mask.shape) for found, mask in zip(maps, masks, strict=True)]
    held_out = np.full(len(maps), np.nan)
    if len(maps) > 1:
        for number, (found, mask) in enumerate(zip(maps, masks, strict=True)):
            others = _chosen(np.delete(correlations, number, axis=0), num_channels)
            held_out[number] = _correlation(_mean_map(found, others, mask.shape), mask)
    above = [mean > threshold for mean in means]
    pairs = list(zip(above, masks, strict=True))
    return Consensus(
        channels=channels,
        maps=tuple(means),
        correlations=np.array([_correlation(mean, mask) for mean, mask in zip(means, masks, strict=True)]),
        ious=np.array([(one & mask).sum() / (one | mask).sum() for one, mask in pairs], np.float64),
        held_out=held_out,
    )
