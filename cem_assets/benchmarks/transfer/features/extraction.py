"""Computing the features of images under an encoder, in batches, in the four ways of the transfer benchmarks.

Either each channel goes through the encoder alone and the features are put side by side ("concat"), or the channels are
averaged to one gray image ("merge"). Both are possible with and without stretching every channel to its 0.1 and 99.9
percentiles.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

Preprocessing = Literal["concat", "merge"]

IMAGENET_NORMS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue on a scale of 0 to 1, for weights trained on ImageNet."""
LOW_PERCENT, HIGH_PERCENT = 0.1, 99.9
"""Percentiles that become 0 and 1, as in `cem_assets.cytoimagenet.channels`."""


@dataclass(frozen=True)
class FeatureParams:
    """How images become features under one encoder.

    Attributes:
        preprocessing: "concat" puts each channel through the encoder alone and the features side by side; "merge" averages the
            channels.
        is_normalised: Whether channels are stretched to their percentiles; otherwise the range of their type becomes 0..1.
        norms: Mean and standard deviation of pixels on a scale of 0 to 1, either one number each or one for each channel of
            the encoder.
        side_px: Images are resized to squares of this side, bilinear with antialiasing.
        batch_size: Number of planes that go through the encoder at once.
    """

    preprocessing: Preprocessing = "concat"
    is_normalised: bool = True
    norms: tuple[Any, Any] = IMAGENET_NORMS
    side_px: int = 224
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.preprocessing not in ("concat", "merge") or self.side_px < 1 or self.batch_size < 1:
            raise ValueError(
                f"preprocessing is {self.preprocessing!r}, side {self.side_px} px, batch size {self.batch_size}; expected "
                '"concat" or "merge", and both at least 1'
            )


def planes_of_image(image: NDArray[Any], params: FeatureParams) -> NDArray[np.float32]:
    """Turn one image into the planes that go through the encoder.

    Args:
        image: (c, height, width), uint8 or uint16.
        params: Only `preprocessing` and `is_normalised` are used.

    Returns:
        float32 (c, height, width) or (1, height, width), 0..1. If channels are stretched, one without contrast becomes 0.

    Raises:
        DataError: The image has another shape or type.
    """
    if image.ndim != 3 or not image.size or image.dtype.kind != "u" or image.dtype.itemsize > 2:
        raise DataError(f"found {image.dtype} of shape {image.shape}; expected uint8 or uint16, (channels, height, width)")
    values = image.astype(np.float64)
    if params.is_normalised:
        for channel in values:
            low, high = np.percentile(channel, (LOW_PERCENT, HIGH_PERCENT))
            channel[...] = np.clip((channel - low) / (high - low), 0.0, 1.0) if low < high else 0.0
    else:
        values /= float(np.iinfo(image.dtype).max)
    if params.preprocessing == "merge":
        values = values.mean(axis=0, keepdims=True)
    return values.astype(np.float32)


def _images(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for item in batches:
        if item.ndim == 4:
            yield from item
        else:
            yield item


def _resized(planes: list[NDArray[np.float32]], side_px: int, device: "torch.device") -> "torch.Tensor":
    """Resize planes to (n, 1, side, side); neighbours of equal shape are resized together."""
    import torch

    parts, start = [], 0
    while start < len(planes):
        stop = start + 1
        while stop < len(planes) and planes[stop].shape == planes[start].shape:
            stop += 1
        part = torch.from_numpy(np.stack(planes[start:stop])).to(device).unsqueeze(1)
        if part.shape[-2:] != (side_px, side_px):
            part = torch.nn.functional.interpolate(part, (side_px, side_px), mode="bilinear", antialias=True)
        parts.append(part)
        start = stop
    return torch.cat(parts)


def extract_features(
    encoder: "nn.Module",
    images: Iterable[NDArray[Any]],
    params: FeatureParams | None = None,
    device: "torch.device | None" = None,
) -> NDArray[np.float32]:
    """Compute the features of images; only one batch and the result are in memory.

    Args:
        encoder: Takes (n, 1 or 3, side, side) and returns (n, d). It runs in evaluation mode, and its mode is restored
            afterwards. For an encoder of three channels gray planes are repeated.
        images: uint8 or uint16, each (c, height, width) or a batch (n, c, height, width); sizes may differ, but c may not.
            The batches in which they come do not change the result, because planes are gathered to `params.batch_size`.
        params: None takes the defaults.
        device: Where the encoder is; None looks it up.

    Returns:
        float32 (images, d) for "merge"; (images, c * d) for "concat", channel after channel; (0, 0) without images.

    Raises:
        DataError: An image has another shape or type (the error gives its number), numbers of channels differ, norms do not
            fit the encoder, or features are not finite.

    Source: CytoImageNet (arXiv:2111.11646), which did not resize; here every image gets the size that the weights were
    trained with.
    """
    import torch
    from torch import nn

    params = params or FeatureParams()
    device = device or next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    first = next((layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)), None)
    mean, std = (np.asarray(norm, np.float32).reshape(-1) for norm in params.norms)
    num_inputs = first.in_channels if first is not None else max(len(mean), len(std))
    if {len(mean), len(std)} - {1, num_inputs} or not (std > 0).all():
        raise DataError(f"norms are {params.norms} for {num_inputs} channels; expected one positive deviation, or one for each")
    shift, scale = (torch.from_numpy(norm).to(device).view(1, -1, 1, 1) for norm in (mean, std))
    modes = [(module, module.training) for module in encoder.modules()]
    waiting: deque[NDArray[np.float32]] = deque()
    outputs: list[NDArray[np.float32]] = []
    num_channels: int | None = None

    def run(num: int) -> None:
        pixels = _resized([waiting.popleft() for _ in range(num)], params.side_px, device).expand(-1, num_inputs, -1, -1)
        found = encoder(((pixels - shift) / scale).contiguous())
        outputs.append(found.float().flatten(1).cpu().numpy())

    encoder.eval()
    try:
        with torch.inference_mode():
            for number, image in enumerate(_images(images)):
                try:
                    planes = planes_of_image(image, params)
                except DataError as error:
                    raise DataError(f"image {number}: {error}") from error
                if num_channels not in (None, len(image)):
                    raise DataError(f"image {number} has {len(image)} channels, those before {num_channels}; expected as many")
                num_channels = len(image)
                waiting.extend(planes)
                while len(waiting) >= params.batch_size:
                    run(params.batch_size)
            if waiting:
                run(len(waiting))
    finally:
        for module, is_training in modes:
            module.training = is_training
    if not outputs or num_channels is None:
        return np.zeros((0, 0), np.float32)
    features = np.concatenate(outputs)
    per_image = num_channels if params.preprocessing == "concat" else 1
    features = features.reshape(len(features) // per_image, -1)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise DataError(f"features of {len(bad)} images are NaN or infinite, first image {bad[0]}; check the weights and norms")
    return features
