"""Finer feature maps out of a ResNet: strides of its later stages are taken away, weights and channels stay.

A stage that no longer strides sees less of the image at each place than it was trained for, which is the price: organelles
smaller than a stride of 32 px could not be told from what is beside them otherwise.

Source: Conrad and Narayan 2021 (eLife 65894), who restride for the correlation of feature maps with organelles.
"""

from torch import nn
from torchvision.models import ResNet

from cem_assets.analyses.params import DOWNSAMPLINGS
from cem_assets.errors import DataError

_STAGES = ("layer2", "layer3", "layer4")
_STRIDES = (8, 16, 32)


def refine_maps(encoder: nn.Module, downsampling: int) -> None:
    """Let no stage of an encoder make maps coarser than asked for.

    Args:
        encoder: Changed in place.
        downsampling: Px of the image between two values of a map, at most: one of `DOWNSAMPLINGS`; 32 leaves a ResNet as it
            is, and 0 any encoder.

    Raises:
        DataError: The encoder is no ResNet, or there is no such downsampling.
    """
    if downsampling == 0:
        return
    if downsampling not in DOWNSAMPLINGS:
        raise DataError(f"downsampling is {downsampling}; expected one of {', '.join(map(str, DOWNSAMPLINGS))}, or 0")
    if not isinstance(encoder, ResNet):
        raise DataError(
            f"downsampling {downsampling} is for ResNets, and the encoder is a {type(encoder).__name__}; expected 0, which "
            "reads it as it is"
        )
    for name, stride in zip(_STAGES, _STRIDES, strict=True):
        if stride > downsampling:
            stage: nn.Module = encoder.get_submodule(name)
            for module in stage.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
