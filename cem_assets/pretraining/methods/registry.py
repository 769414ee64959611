"""The pretraining methods by name; `cem_assets.pretraining.methods.params.PARAMS` has their parameters by the same names."""

from typing import Any

from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.methods.moco import MoCo
from cem_assets.pretraining.methods.params import MethodParams
from cem_assets.pretraining.methods.supervised import Supervised
from cem_assets.pretraining.methods.swav import SwAV

__all__ = ["METHODS", "Method", "build_method"]

METHODS: dict[str, type[Any]] = {"moco": MoCo, "swav": SwAV, "supervised": Supervised}
"""Every value is a subclass of `Method`."""


def build_method(params: MethodParams, arch: str, num_samples: int, num_classes: int = 0) -> Method:
    """Build the method that the parameters belong to, on the CPU and in training mode.

    Where there are several ranks, they must have joined their process group before, because the groups of BatchNorm and the
    queue depend on the number of ranks.

    Args:
        arch: A key of `cem_assets.encoders.ENCODERS`.
        num_samples: Number of patches in the training set, which limits the length of queues.
        num_classes: Number of classes for supervised training; other methods ignore it.

    Returns:
        The method; its initial weights depend on `params.seed` and `arch` alone.

    Raises:
        DataError: The architecture is not known, or the parameters do not suit the number of ranks, patches or classes.
    """
    method: Method = METHODS[params.method](params, arch, num_samples, num_classes)
    return method
