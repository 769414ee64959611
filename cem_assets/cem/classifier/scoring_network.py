"""The fast forward pass of the patch classifier: normalizations folded into convolutions, and fused kernels on a CPU.

On a CPU, a convolution, its bias, the addition of a shortcut and the ReLU are one oneDNN kernel, whose weights are packed once
(`FusedNetwork`). PyTorch has these kernels for its own compiler, which would need a C++ compiler on the machine. PyTorch does
not promise to keep them, so the first fused network of a process is compared with the plain network, and the plain one is
used if they differ. Measurements are in `docs/patch_scores.md`.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cem_assets.cem.classifier.params import Precision

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Forward = Callable[[torch.Tensor], torch.Tensor]
"""A function from images, uint8 (n, 224, 224), to logits, float32 (n,)."""

_PATCHES_PER_THREAD = 4
"""Number of patches for each CPU thread that go through the network together; with few, activations stay in the caches."""
_CENTRE = 116
"""A gray level near the three means. Levels minus this value are exact in bfloat16, and the weights of the second input channel
stay small."""
_MAX_ERROR, _MAX_RELATIVE_ERROR = 0.25, 0.1
"""Largest differences from float32 logits, far above those that rounding to bfloat16 causes."""
_fits: dict[Precision, bool] = {}
"""Whether the fused kernels gave the right results in this process, by number type."""


def to_network(images: torch.Tensor) -> torch.Tensor:
    """Turn gray levels into the network's input: three equal channels, normalized by the mean and deviation of ImageNet.

    Args:
        images: uint8 (n, 224, 224), on any device.

    Returns:
        float32 (n, 3, 224, 224), channels_last.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    scaled = (images.unsqueeze(1).to(torch.float32) / 255.0 - mean) / std
    return scaled.contiguous(memory_format=torch.channels_last)


def folded(model: nn.Module) -> nn.Module:
    """Fold every batch normalization into the convolution before it, which saves one pass over the activations for each.

    Args:
        model: A network from `network.build_classifier`.

    Returns:
        Another network, in evaluation mode. Its logits differ only by rounding, by about 1e-6.
    """
    lean = copy.deepcopy(model).eval()
    for holder in lean.modules():
        children = list(holder.named_children())
        # A ResNet registers each convolution right before its normalization: conv1, bn1; conv2, bn2; downsample 0, 1.
        for (first, convolution), (second, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(holder, first, fuse_conv_bn_eval(convolution, norm))
                setattr(holder, second, nn.Identity())
    return lean


def scoring_forward(model: nn.Module, device: torch.device, precision: Precision) -> Forward:
    """Make the fastest forward pass that gives right results on this machine.

    Args:
        model: A network from `network.build_classifier`, which is not changed.
        device: Where the network runs. Images may be there or on the CPU.
        precision: Number type. In float32, fused kernels are used only if they give the same bits as the plain network.

    Returns:
        A function from images, uint8 (n, 224, 224), to logits, float32 (n,), on the device. Call it in inference mode.
    """
    lean = folded(model).to(device).to(memory_format=torch.channels_last)

    def plain(images: torch.Tensor) -> torch.Tensor:
        inputs = to_network(images.to(device, non_blocking=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == Precision.bfloat16):
            logits: torch.Tensor = lean(inputs)
        return logits.float().flatten()

    if device.type != "cpu" or not _fits.get(precision, True):
        return plain
    try:
        fused = FusedNetwork(lean, precision)
        if precision not in _fits:
            _fits[precision] = _is_right(fused, lean, precision)
    except (AttributeError, RuntimeError, TypeError) as error:  # this build or this processor does not have the kernels
        logger.info("PyTorch %s has no fused kernels for %s here (%s); scoring without", torch.__version__, precision, error)
        if precision == Precision.bfloat16:
            logger.warning(
                "bfloat16 runs without fused kernels here. Without AVX-512 that was measured at an eighth of float32's rate. "
                "Set precision to float32, unless you measured that it is slower here."
            )
        _fits[precision] = False
    return fused if _fits[precision] else plain


def _is_right(fused: "FusedNetwork", lean: nn.Module, precision: Precision) -> bool:
    images = torch.randint(0, 256, (2, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(224))
    images[1] = images[1] // 8 + torch.arange(224, dtype=torch.uint8)[:, None] // 2  # a ramp with a little noise
    with torch.inference_mode():
        found, expected = fused(images), lean(to_network(images)).flatten()
    if precision == Precision.float32:
        is_right = torch.equal(found, expected)
    else:
        is_right = torch.allclose(found, expected, _MAX_RELATIVE_ERROR, _MAX_ERROR)
    if not is_right:
        logger.warning(
            "fused kernels of PyTorch %s give logits %s where %s are right (%s); scoring without them, about a tenth slower",
            torch.__version__,
            found.tolist(),
            expected.tolist(),
            precision,
        )
    return is_right


@dataclass(frozen=True)
class _Convolution:
    """A convolution with packed weights, and its arguments in the form that the kernels take."""

    arguments: tuple[object, ...]

    def __call__(self, inputs: torch.Tensor, then: str = "none") -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(inputs, *self.arguments, then, [], "")
        return out

    def added_to(self, shortcut: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return ReLU(shortcut + convolution). The result overwrites the shortcut."""
        kernel = torch.ops.mkldnn._convolution_pointwise_.binary
        out: torch.Tensor = kernel(shortcut, inputs, *self.arguments, "add", 1.0, "relu", [], "")
        return out


class FusedNetwork:
    """A folded ResNet of basic blocks on the CPU.

    In bfloat16, the first convolution takes two channels instead of three: the gray level minus 116, which bfloat16 represents
    exactly, and ones. The normalization and the sum over three equal channels are part of its weights. Padding gives the same
    result, because both channels are 0 there, as the three normalized channels are. Sums are float32, and activations are
    rounded once for each convolution.
    """

    def __init__(self, lean: nn.Module, precision: Precision) -> None:
        """Pack the weights.

        Args:
            lean: A network from `folded`: a ResNet18 or ResNet34 with one output, on the CPU.
            precision: Number type of weights and activations.

        Raises:
            AttributeError, RuntimeError, TypeError: This build of PyTorch or this processor does not have the kernels.
        """
        self._dtype = torch.bfloat16 if precision == Precision.bfloat16 else torch.float32
        self._num_together = _PATCHES_PER_THREAD * torch.get_num_threads()
        stem = lean.get_submodule("conv1")
        assert isinstance(stem, nn.Conv2d) and stem.bias is not None
        weight = stem.weight.detach()
        if self._dtype == torch.bfloat16:
            mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            weight = torch.stack([(weight / std).sum(1), (weight * (_CENTRE - mean) / std).sum(1)], 1)
        self._stem = self._packed(stem, weight, 224)
        self._blocks: list[tuple[_Convolution, _Convolution, _Convolution | None]] = []
        for number in range(4):
            side = 56 >> number  # side of the layer's outputs for patches of 224 px
            for block in lean.get_submodule(f"layer{number + 1}").children():
                first, second = block.get_submodule("conv1"), block.get_submodule("conv2")
                shortcut = block.get_submodule("downsample.0") if block.downsample is not None else None
                side_in = side if shortcut is None else 2 * side
                across = None if shortcut is None else self._packed(shortcut, None, side_in)
                self._blocks.append((self._packed(first, None, side_in), self._packed(second, None, side), across))
        self._fc = lean.get_submodule("fc")

    def _packed(self, convolution: nn.Module, weight: torch.Tensor | None, side: int) -> _Convolution:
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        weight = (convolution.weight.detach() if weight is None else weight).to(self._dtype)
        how = ([*convolution.padding], [*convolution.stride], [*convolution.dilation], convolution.groups)
        shape = [self._num_together, weight.shape[1], side, side]
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, shape)
        return _Convolution((packed, convolution.bias.detach().to(self._dtype), *how))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (n,), of images, uint8 (n, 224, 224)."""
        pooled = torch.cat([self._pooled(part) for part in torch.split(images, self._num_together)])
        # One matrix product for the whole batch, as in the plain network, because its last bits depend on the number of rows.
        logits: torch.Tensor = self._fc(pooled)
        return logits.flatten()

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        outputs = functional.max_pool2d(self._stem(self._input(images), "relu"), 3, 2, 1)
        for first, second, shortcut in self._blocks:
            inner = first(outputs, "relu")
            outputs = second.added_to(outputs if shortcut is None else shortcut(outputs), inner)
        return functional.adaptive_avg_pool2d(outputs.float(), 1).flatten(1)

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        if self._dtype == torch.float32:
            return to_network(images)
        inputs = torch.ones((*images.shape, 2), dtype=torch.bfloat16)
        inputs[..., 0] = images.to(torch.bfloat16) - _CENTRE
        return inputs.permute(0, 3, 1, 2)
