"""The network of segmentation benchmarks: a U-Net over a pretrained or random encoder, with part of it frozen.

Names of its weights are those of segmentation-models-pytorch's `Unet`, so published benchmark models load. How it is
trained is `segmentation_training`; weights are read from files elsewhere and come in as a dict of tensors.
"""

from collections.abc import Mapping
from typing import get_args

import segmentation_models_pytorch as smp  # type: ignore[import-untyped,unused-ignore]
import torch
from torch import nn

from cem_assets.benchmarks.segmentation.params import EncoderBatchNorm, FinetuneLayer
from cem_assets.errors import DataError

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
"""Encoders whose names in segmentation-models-pytorch are torchvision's; its EfficientNets have other names."""
HALO_PX = {"resnet18": 320, "resnet34": 544, "resnet50": 320}
"""What a pixel's prediction depends on lies closer than this, a multiple of 32. Measured by gradients: 297 px for
resnet18 and 293 for resnet50; for resnet34, whose encoder sees 899 px across instead of 435, reckoned as 530."""
_LAYERS: tuple[str, ...] = ("layer4", "layer3", "layer2", "layer1")
_MAX_NAMED = 5


class SegmentationUnet(smp.Unet):  # type: ignore[misc,unused-ignore]
    """U-Net of one input channel whose frozen layers stay in evaluation mode while the rest trains.

    Attributes:
        finetune_layer: What was opened.
        evaluated: Names of modules that never enter training mode.
        halo_px: Of its architecture, see `HALO_PX`.
    """

    finetune_layer: FinetuneLayer = "all"
    evaluated: tuple[str, ...] = ()
    halo_px: int = max(HALO_PX.values())

    def train(self, mode: bool = True) -> "SegmentationUnet":
        """Set the mode of all but the frozen BatchNorm layers."""
        super().train(mode)
        for name in self.evaluated:
            self.get_submodule(name).eval()
        return self


def build_unet(
    arch: str,
    num_classes: int,
    encoder_state: Mapping[str, torch.Tensor] | None,
    finetune_layer: FinetuneLayer = "none",
    *,
    encoder_batchnorm: EncoderBatchNorm = "frozen",
    seed: int = 42,
) -> SegmentationUnet:
    """Build the network.

    Args:
        arch: One of `ARCHITECTURES`.
        num_classes: Outputs: logits of foreground for 1, of every class for more.
        encoder_state: Weights of the encoder by torchvision's names, first convolution of one channel, no head; None
            for random ones, which are trained whole, whatever `finetune_layer` says.
        finetune_layer: "none" freezes the encoder; "layer4" opens its deepest layer, "layer3" the two deepest, and so on
            (the first convolution stays frozen); "all" opens everything.
        encoder_batchnorm: BatchNorm of frozen layers. "frozen": as pretrained, statistics too. "batch": factors stay,
            but it normalises by the batch and its running statistics follow. "trained": like "batch", and its factors
            are trained.
        seed: Of the random weights; no global generator is read or moved.

    Returns:
        The network, float32, in training mode; frozen parameters need no gradient.

    Raises:
        DataError: A name is not known, or tensors are missing, unexpected or misshaped; all are named.

    Source: `finetune.py` of volume-em/cem-dataset. It freezes the encoder's parameters only and calls `train()` on the
    whole network, so there the running statistics of a frozen encoder follow the benchmark ("batch" here), and for
    the Perez and All-Mito sets the factors are trained as well ("trained"). By default we freeze the statistics too:
    a frozen encoder is then the same function for every benchmark and batch.
    """
    problems = []
    if arch not in ARCHITECTURES:
        problems.append(f"encoder {arch!r} is not known, expected one of {', '.join(ARCHITECTURES)}")
    if finetune_layer not in get_args(FinetuneLayer):
        problems.append(f"finetune_layer is {finetune_layer!r}, expected one of {', '.join(get_args(FinetuneLayer))}")
    if encoder_batchnorm not in get_args(EncoderBatchNorm):
        problems.append(f"encoder_batchnorm is {encoder_batchnorm!r}, expected one of {', '.join(get_args(EncoderBatchNorm))}")
    if num_classes < 1:
        problems.append(f"num_classes is {num_classes}, expected at least 1")
    if problems:
        raise DataError(f"no network can be built: {'; '.join(problems)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SegmentationUnet(arch, encoder_weights=None, in_channels=1, classes=num_classes)
    model.halo_px = HALO_PX[arch]
    if encoder_state is not None:
        _load_encoder(model.encoder, encoder_state, arch)
    model.finetune_layer = "all" if encoder_state is None else finetune_layer
    _freeze(model, encoder_batchnorm)
    return model.train()


def _load_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor], arch: str) -> None:
    expected = encoder.state_dict()
    problems = [f"{name} is unexpected" for name in state if name not in expected]
    for name, wanted in expected.items():
        if name not in state:
            problems.append(f"{name} is missing")
        elif tuple(state[name].shape) != tuple(wanted.shape):
            problems.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(wanted.shape)}")
    if problems:
        more = f" and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        raise DataError(
            f"these weights do not fit an encoder {arch} of one channel: {'; '.join(problems[:_MAX_NAMED])}{more}. "
            "Give those of the right architecture, without its head."
        )
    encoder.load_state_dict(dict(state))


def _freeze(model: SegmentationUnet, encoder_batchnorm: EncoderBatchNorm) -> None:
    opened = _LAYERS if model.finetune_layer == "all" else _LAYERS[: _depth(model.finetune_layer)]
    evaluated = []
    for name, module in model.encoder.named_children():
        if model.finetune_layer == "all" or name in opened:
            continue
        module.requires_grad_(False)
        for inner, layer in module.named_modules(prefix=f"encoder.{name}"):
            if not isinstance(layer, nn.BatchNorm2d):
                continue
            if encoder_batchnorm == "frozen":
                evaluated.append(inner)
            elif encoder_batchnorm == "trained":
                layer.requires_grad_(True)
    model.evaluated = tuple(evaluated)


def _depth(finetune_layer: str) -> int:
    """Return how many of the deepest layers are opened."""
    return _LAYERS.index(finetune_layer) + 1 if finetune_layer in _LAYERS else 0
