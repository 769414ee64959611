"""Encoders by name: the torchvision networks that pretraining, benchmarks and the patch classifier share."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

ENCODERS: dict[str, Callable[[], Any]] = {
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
}
"""Every network starts from random weights; pretrained ones are loaded from files by whoever needs them."""

_NUM_FEATURES = {"efficientnet_b0": 1280, "resnet18": 512, "resnet34": 512, "resnet50": 2048}


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
    check_arch(arch)
    model: nn.Module = ENCODERS[arch]()
    if in_channels != 3:
        _replace_first(model, in_channels)
    last = nn.Identity() if num_outputs is None else nn.Linear(num_features(arch), num_outputs)
    if isinstance(model, torchvision.models.ResNet):
        model.fc = last
    elif num_outputs is None:
        model.classifier = last  # without its dropout: features are those of the penultimate layer
    else:
        assert isinstance(model.classifier, nn.Sequential)
        model.classifier[-1] = last
    return model


def _replace_first(model: nn.Module, in_channels: int) -> None:
    """Give the network a first convolution for another number of channels, initialised as torchvision's own."""
    name, first = next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    assert not isinstance(first.padding, str)
    size, stride, padding = first.kernel_size[0], first.stride[0], first.padding[0]  # all are square
    new = nn.Conv2d(in_channels, first.out_channels, size, stride, padding, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out")
    holder, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(holder), attribute, new)


def check_arch(arch: str) -> None:
    """Refuse a name that is no key of `ENCODERS` with a ValueError."""
    if arch not in ENCODERS:
        raise ValueError(f"encoder {arch!r} is not known; expected one of {', '.join(ENCODERS)}.")


def num_features(arch: str) -> int:
    """Return how many features an encoder gives of an image.

    Args:
        arch: A key of `ENCODERS`.

    Raises:
        ValueError: The name is not known.
    """
    check_arch(arch)
    return _NUM_FEATURES[arch]


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
