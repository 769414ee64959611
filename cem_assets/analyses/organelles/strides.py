"""Makes the feature maps of a ResNet finer: later stages lose their strides, and weights and channels stay.

Without its stride, a stage sees less of the image at each place than it was trained for. In return, organelles smaller than
a stride of 32 px can be told from their surroundings.

Source: Conrad and Narayan 2021 (eLife 65894), who restride for the correlation of feature maps with organelles.
"""

from torch import nn
from torchvision.models import ResNet

from cem_assets.analyses.params import DOWNSAMPLINGS
from cem_assets.errors import DataError

_STAGES = ("layer2", "layer3", "layer4")
_STRIDES = (8, 16, 32)


def refine_maps(encoder: nn.Module, downsampling: int) -> None:
    """Change an encoder in place so that none of its stages makes maps coarser than `downsampling`.

    Args:
        downsampling: Largest distance in px of the image between two values of a map, one of `DOWNSAMPLINGS`. 32 does not
            change a ResNet, and 0 does not change any encoder.

    Raises:
        DataError: The encoder is not a ResNet.
        ValueError: The downsampling is not one of `DOWNSAMPLINGS`.
    """
    if downsampling == 0:
        return
    if downsampling not in DOWNSAMPLINGS:
        raise ValueError(f"downsampling is {downsampling}; expected one of {', '.join(map(str, DOWNSAMPLINGS))}, or 0")
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
