"""Whether a channel of an encoder answers to an organelle: its feature map compared with the organelle's mask.

Two measures: the correlation of map and mask over the pixels of an image, and the overlap (IoU) of the mask with where the
map is above a threshold of its channel. The best of hundreds of channels looks good by chance on few images, so the
result of the channel that was chosen on all other images is reported beside it.

Source: Bau et al. 2017, "Network dissection" (arXiv:1704.05796), for thresholds and IoU: a threshold is the top 0.5 % of
a channel's values at its own resolution over all images, intersections and unions are summed over images, and maps are
enlarged bilinearly between the centres of receptive fields.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cem_assets.analyses.activations import ActivationReader, Norms, pixels_of_images
from cem_assets.errors import DataError

DISSECTION_SHARE = 0.005
"""Share of a channel's values above its threshold in the source; organelles cover more, which bounds the IoU."""
_CHANNELS_AT_ONCE = 64


@dataclass(frozen=True)
class MaskAgreement:
    """How the channels of a layer agree with the masks of one kind of organelle.

    Attributes:
        correlations: float64 (images, channels), Pearson's, over pixels; 0 where a map is constant.
        ious: float64 (channels,), summed over images; 0 where a channel passes its threshold nowhere.
        thresholds: float64 (channels,).
        top_share: Share of a channel's values above its threshold.
        best_channel: Channel of the largest mean correlation; the first of equals.
        best_correlation: That mean.
        held_out_correlation: Mean over images of the correlation of the channel that is best on all other images; NaN for a
            single image.
        best_iou_channel: Channel of the largest IoU; the first of equals.
        best_iou: That IoU.
    """

    correlations: NDArray[np.float64]
    ious: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    top_share: float
    best_channel: int
    best_correlation: float
    held_out_correlation: float
    best_iou_channel: int
    best_iou: float


def layer_maps(encoder: nn.Module, images: Sequence[NDArray[np.uint8]], norms: Norms, layer: str) -> list[NDArray[np.float32]]:
    """Compute the feature maps of images, one by one: their sizes may differ.

    Args:
        encoder: Encoder with one or three input channels; it is afterwards as before.
        images: uint8 (height, width) each.
        norms: Mean and deviation of pixels on a scale of 0 to 1.
        layer: Name of the module, such as "layer3".

    Returns:
        float32 (channels, rows, columns) of each; all are held in memory.

    Raises:
        DataError: There is no such layer, or its output is no map.
    """
    found = []
    with ActivationReader(encoder, norms, layer) as reader:
        for image in images:
            maps = reader.maps(pixels_of_images(image[None]))
            if maps.ndim != 4:
                raise DataError(f"layer {layer!r} gives shape {tuple(maps.shape)}; expected maps (n, c, rows, columns)")
            found.append(maps[0].cpu().numpy())
    return found


def _weights(side_px: int, num_values: int) -> NDArray[np.float32]:
    """Return what each value along a side adds to each pixel: float32 (side, values)."""
    strides = [2**power for power in range(16) if -(-side_px // 2**power) == num_values]
    if not strides:
        raise DataError(
            f"the layer's maps have {num_values} values along {side_px} px; expected a stride that is a power of 2. Choose "
            "another layer."
        )
    places = np.minimum(np.arange(side_px) / strides[0], num_values - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(num_values))), np.float32)


def enlarged(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Enlarge feature maps to the size of their image, bilinearly, each value at the centre of its receptive field.

    Args:
        maps: float32 (channels, rows, columns).
        height: Height of the image.
        width: Width of the image.

    Returns:
        float32 (channels, height, width). Value i is placed at pixel stride * i, because all encoders here have odd kernels
        padded by half on either side; the last value is repeated beyond. Enlarging edge to edge instead would move maps by
        half a stride, which is 16 px in the last layer, the size of an organelle.

    Raises:
        DataError: The stride of the layer is not a power of 2.
    """
    return np.asarray(_weights(height, maps.shape[1]) @ maps @ _weights(width, maps.shape[2]).T, np.float32)


def _chunks(maps: NDArray[np.float32], shape: tuple[int, ...]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Enlarge a few channels at a time: all of a deep layer would take hundreds of megabytes."""
    for start in range(0, len(maps), _CHANNELS_AT_ONCE):
        part = slice(start, min(start + _CHANNELS_AT_ONCE, len(maps)))
        wide = enlarged(maps[part], *shape).reshape(part.stop - start, -1).astype(np.float64)
        flat = maps[part].reshape(len(wide), -1)
        is_constant = (flat == flat[:, :1]).all(axis=1)
        # Interpolating equal values rounds some of them up, which would lift them above their own threshold.
        wide[is_constant] = flat[is_constant, :1]
        yield part, wide


def _check(maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]) -> None:
    problems = []
    if not masks or len(maps) != len(masks):
        problems.append(f"there are {len(maps)} images with maps and {len(masks)} masks, expected as many, at least one")
    if len({(found.ndim, len(found)) for found in maps}) > 1 or any(found.ndim != 3 for found in maps):
        problems.append(f"maps have shapes {[found.shape for found in maps]}, expected (channels, rows, columns), one layer's")
    for number, mask in enumerate(masks):
        if mask.ndim != 2 or mask.dtype != np.bool_:
            problems.append(f"mask {number} is {mask.dtype} of shape {mask.shape}, expected bool (height, width)")
        elif mask.all() or not mask.any():
            problems.append(f"mask {number} is {'full' if mask.size and mask.all() else 'empty'}, expected some of both")
    if problems:
        raise ValueError(f"maps and masks cannot be compared: {'; '.join(problems)}.")


def measure_agreement(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], top_share: float | None = DISSECTION_SHARE
) -> MaskAgreement:
    """Compare the feature maps of a layer with masks.

    Args:
        maps: float32 (channels, rows, columns) of each image, as `layer_maps` gives them.
        masks: bool (height, width) of each image, its own size.
        top_share: Share of a channel's values that is above its threshold; None for the share of pixels in masks, with
            which a channel that is the organelle has an IoU of 1.

    Returns:
        Correlations, IoUs and the best channels.

    Raises:
        ValueError: Maps and masks differ in number, a mask is empty or full, or the share is not between 0 and 1.
        DataError: The layer's stride is not a power of 2, see `enlarged`.
    """
    _check(maps, masks)
    if top_share is None:
        top_share = sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)
    if not 0 < top_share < 1:
        raise ValueError(f"the share above a threshold is {top_share}; expected between 0 and 1")
    values = np.concatenate([found.reshape(len(found), -1) for found in maps], axis=1)
    thresholds = np.quantile(values.astype(np.float64), 1 - top_share, axis=1)
    num_channels = len(thresholds)
    correlations = np.zeros((len(maps), num_channels))
    intersections, unions = np.zeros(num_channels, np.int64), np.zeros(num_channels, np.int64)
    for number, (found, mask) in enumerate(zip(maps, masks, strict=True)):
        inside = mask.ravel()
        centred = inside - inside.mean()
        centred /= np.sqrt((centred * centred).sum())
        for part, wide in _chunks(found, mask.shape):
            above = wide > thresholds[part, None]
            num_inside = above[:, inside].sum(axis=1)
            intersections[part] += num_inside
            unions[part] += above.sum(axis=1) + inside.sum() - num_inside
            is_constant = np.ptp(wide, axis=1) <= 1e-6 * np.abs(wide).max(
                axis=1
            )  # differences from float32 rounding are not structure
            wide -= wide.mean(axis=1, keepdims=True)
            lengths = np.sqrt((wide * wide).sum(axis=1))
            products = wide @ centred
            correlations[number, part] = np.where(is_constant, 0.0, products / np.where(is_constant, 1.0, lengths))
    ious = intersections / unions
    means = correlations.mean(axis=0)
    best, best_iou = int(means.argmax()), int(ious.argmax())
    return MaskAgreement(
        correlations=correlations,
        ious=ious,
        thresholds=thresholds,
        top_share=top_share,
        best_channel=best,
        best_correlation=float(means[best]),
        held_out_correlation=_held_out(correlations),
        best_iou_channel=best_iou,
        best_iou=float(ious[best_iou]),
    )


def _held_out(correlations: NDArray[np.float64]) -> float:
    if len(correlations) < 2:
        return float("nan")
    total = correlations.sum(axis=0)
    return float(np.mean([row[(total - row).argmax()] for row in correlations]))
