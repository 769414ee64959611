"""Encoders by name: the torchvision networks that pretraining, benchmarks and the patch classifier share."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from cem_assets.errors import DataError, UnknownNameError

ENCODERS: dict[str, Callable[[], Any]] = {
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
}
"""The functions that build each network with random weights. Callers load pretrained weights from files."""

_NUM_FEATURES = {"efficientnet_b0": 1280, "resnet18": 512, "resnet34": 512, "resnet50": 2048}


def build_encoder(arch: str, in_channels: int = 3, num_outputs: int | None = None) -> nn.Module:
    """Build an encoder with random weights.

    Args:
        arch: A key of `ENCODERS`.
        in_channels: Channels of the input; for any other number than 3 the first convolution is replaced.
        num_outputs: The size of a new last layer; None makes the encoder return its features.

    Returns:
        The module, in training mode, float32.

    Raises:
        UnknownNameError: `ENCODERS` has no such key.
    """
    check_arch(arch)
    model: nn.Module = ENCODERS[arch]()
    if in_channels != 3:
        _replace_first(model, in_channels)
    last = nn.Identity() if num_outputs is None else nn.Linear(num_features(arch), num_outputs)
    if isinstance(model, torchvision.models.ResNet):
        model.fc = last
    elif num_outputs is None:
        model.classifier = last  # its dropout goes too, because features are the output of the penultimate layer
    else:
        assert isinstance(model.classifier, nn.Sequential)
        model.classifier[-1] = last
    return model


def _replace_first(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one for another number of channels, initialised as torchvision does."""
    name, first = next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    assert not isinstance(first.padding, str)
    size, stride, padding = first.kernel_size[0], first.stride[0], first.padding[0]  # the same in both directions
    new = nn.Conv2d(in_channels, first.out_channels, size, stride, padding, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out")
    holder, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(holder), attribute, new)


def check_arch(arch: str) -> None:
    """Raise an UnknownNameError for a name that is no key of `ENCODERS`."""
    if arch not in ENCODERS:
        raise UnknownNameError(f"encoder {arch!r} is not known; expected one of {', '.join(ENCODERS)}.")


def num_features(arch: str) -> int:
    """Return the number of features that an encoder computes from an image.

    Raises:
        UnknownNameError: `ENCODERS` has no such key.
    """
    check_arch(arch)
    return _NUM_FEATURES[arch]


def pick_device(name: str = "auto") -> torch.device:
    """Choose the device to compute on.

    Args:
        name: "auto" (a GPU where there is one), "cpu", or a torch device such as "cuda:1".

    Raises:
        DataError: torch does not know the device, or it is a GPU and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DataError(f'device {name!r} is not known; expected "auto", "cpu", or a torch device such as "cuda:1".') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f'device {name!r} was asked for, but torch sees no GPU here. Use "auto" or "cpu".')
    return device
