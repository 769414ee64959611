"""The pretraining methods by name. Their parameters by the same names are `cem_assets.pretraining.methods.params.PARAMS`."""

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
    """Build the method that parameters belong to, on the CPU, in training mode.

    Several ranks must have joined each other before: groups of BatchNorm and shares of the queue depend on it.

    Args:
        params: Of one of the methods.
        arch: A key of `cem_assets.encoders.ENCODERS`.
        num_samples: Patches in the training set; queues are not longer.
        num_classes: For supervised training.

    Returns:
        The method; its weights depend on `params.seed` and `arch` alone.

    Raises:
        ValueError: The architecture is not known, or the numbers do not go together.
    """
    method: Method = METHODS[params.method](params, arch, num_samples, num_classes)
    return method
