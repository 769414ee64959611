"""The network of segmentation benchmarks: a U-Net over a pretrained or random encoder, part of which may be frozen.

Its weights have the names of `Unet` of segmentation-models-pytorch, so published benchmark models can be loaded.
`cem_assets.benchmarks.segmentation.training` trains it.
"""

from collections.abc import Mapping
from typing import get_args

import segmentation_models_pytorch as smp  # type: ignore[import-untyped,unused-ignore]
import torch
from torch import nn

from cem_assets.benchmarks.segmentation.params import ARCHITECTURES, EncoderBatchNorm, FinetuneLayer
from cem_assets.errors import DataError

HALO_PX = {"resnet18": 320, "resnet34": 544, "resnet50": 320}
"""The prediction of a pixel depends only on pixels closer than this, rounded up to a multiple of 32. Gradients show a distance
of 297 px for resnet18 and 293 px for resnet50. For resnet34, whose encoder sees 899 px across instead of 435, it is estimated
as 530 px."""
_LAYERS: tuple[str, ...] = ("layer4", "layer3", "layer2", "layer1")
_MAX_NAMED = 5


class SegmentationUnet(smp.Unet):  # type: ignore[misc,unused-ignore]
    """A U-Net with one input channel, whose frozen layers stay in evaluation mode while the others are trained.

    Attributes:
        finetune_layer: The shallowest layer of the encoder that is trained.
        evaluated: Names of the modules that never enter training mode.
        halo_px: See `HALO_PX`.
    """

    finetune_layer: FinetuneLayer = "all"
    evaluated: tuple[str, ...] = ()
    halo_px: int = max(HALO_PX.values())

    def train(self, mode: bool = True) -> "SegmentationUnet":
        """Set the mode of all layers except the frozen BatchNorm layers."""
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
        num_classes: Number of outputs: 1 gives logits of the foreground, more give logits of every class.
        encoder_state: Weights of the encoder with torchvision's names, with one input channel and without a head. None takes
            random weights, which are always trained completely, whatever `finetune_layer` is.
        finetune_layer: "none" freezes the encoder. "layer4" trains its deepest layer, "layer3" the two deepest, and so on,
            while the first convolution stays frozen. "all" trains everything.
        encoder_batchnorm: What the BatchNorm of frozen layers does. "frozen" keeps everything as pretrained, also the
            statistics. "batch" keeps the factors, but normalises by the batch and updates the running statistics. "trained" is
            like "batch", and the factors are trained.
        seed: Seed of the random weights. The global random generators are neither read nor changed.

    Returns:
        The network, float32, in training mode. Frozen parameters need no gradient.

    Raises:
        DataError: Tensors of the encoder are missing, unexpected or of the wrong shape; the error lists them.

    Source: `finetune.py` of volume-em/cem-dataset. It freezes only the parameters of the encoder and calls `train()` on the
    whole network. So the running statistics of a frozen encoder follow the benchmark there ("batch" here), and for the Perez
    and All-Mito sets the factors are trained as well ("trained"). By default we freeze the statistics too, so that a frozen
    encoder is the same function for every benchmark and batch.
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
        raise ValueError(f"no network can be built: {'; '.join(problems)}.")
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
            f"these weights do not fit a {arch} encoder with one channel: {'; '.join(problems[:_MAX_NAMED])}{more}. "
            "Use weights of this architecture, without the head."
        )
    encoder.load_state_dict(dict(state))


def _freeze(model: SegmentationUnet, encoder_batchnorm: EncoderBatchNorm) -> None:
    trained = _LAYERS if model.finetune_layer == "all" else _LAYERS[: _depth(model.finetune_layer)]
    evaluated = []
    for name, module in model.encoder.named_children():
        if model.finetune_layer == "all" or name in trained:
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
    """Return how many of the deepest layers are trained."""
    return _LAYERS.index(finetune_layer) + 1 if finetune_layer in _LAYERS else 0
