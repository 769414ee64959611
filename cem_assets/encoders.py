"""Encoders by name: the torchvision networks that pretraining, benchmarks and the patch classifier share."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

ENCODERS: dict[str, Callable[[], Any]] = {
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
}
"""Every network starts from random weights; pretrained ones are loaded from files by whoever needs them."""


def build_encoder(arch: str, in_channels: int = 3, num_outputs: int | None = None) -> nn.Module:
    """Build an encoder with random weights.

    Args:
        arch: A key of `ENCODERS`.
        in_channels: Channels of its input; another number than 3 replaces the first convolution.
        num_outputs: Size of a new last layer; None makes the encoder return its features.

    Returns:
        The module, in training mode, float32.

    Raises:
        ValueError: The name is not known.
    """
    if arch not in ENCODERS:
        raise ValueError(f"encoder {arch!r} is not known; expected one of {', '.join(ENCODERS)}.")
    model: nn.Module = ENCODERS[arch]()
    if in_channels != 3:
        first = model.conv1
        assert isinstance(first, nn.Conv2d)
        model.conv1 = nn.Conv2d(in_channels, first.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    last = model.fc
    assert isinstance(last, nn.Linear)
    model.fc = nn.Identity() if num_outputs is None else nn.Linear(last.in_features, num_outputs)
    return model


def pick_device(name: str = "auto") -> torch.device:
    """Choose where to compute.

    Args:
        name: "auto" (a GPU where there is one), "cpu", or a torch device such as "cuda:1".

    Raises:
        ValueError: A GPU was asked for and none is there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device {name!r} was asked for, but torch sees no GPU here. Use "auto" or "cpu".')
    return device
