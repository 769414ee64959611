"""What every pretraining method can do, and what several of them need to do it.

The methods are `moco`, `swav` and `supervised`, found by name in `cem_assets.pretraining.methods.registry`; the loop that
drives them is `cem_assets.pretraining.training.loop`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cem_assets.errors import DataError
from cem_assets.pretraining.methods.params import MethodParams, views

P = ParamSpec("P")
Built = TypeVar("Built")


class Method(nn.Module, ABC):
    """A method with its networks and all of its state: `state_dict` leaves nothing out between two steps.

    One step is `compute_loss`, backward, `distributed.average_gradients` on several ranks, the optimiser's step,
    `after_step`. Every rank starts from the same weights (they depend on the seed alone) and after every step
    holds the same state. Steps and epochs are counted from 0 and go on where a resumed run left off.

    Attributes:
        params: Of the method.
        arch: The encoder's name in `cem_assets.encoders.ENCODERS`.
        num_classes: Of a supervised method; 0 otherwise.
    """

    def __init__(self, params: MethodParams, arch: str, num_samples: int, num_classes: int = 0) -> None:
        super().__init__()
        self.params = params
        self.arch = arch
        self.num_samples = num_samples
        self.num_classes = num_classes

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The network whose weights are wanted in the end: (n, 1, s, s) to features (n, d)."""

    @abstractmethod
    def compute_loss(
        self, views: list[Tensor], labels: Tensor | None, step: int, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of this rank's share of a batch.

        Args:
            views: Float tensors (n, 1, s, s), augmented and normalised, in the order of `params.views`.
            labels: int64 (n,), for supervised methods.
            step: Optimiser steps made before, from the start of the whole run.
            epoch: Epochs finished before.

        Returns:
            The mean loss, float32 (), and indicators of this rank, float32 () without gradient, on the device.

        Raises:
            DataError: The views or labels are not what the method needs.
        """

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Do what follows the optimiser's step; `step` is that of the `compute_loss` before."""

    @abstractmethod
    def build_optimizer(self, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Make the method's optimiser; the rate of each step is `schedules.learning_rate`.

        Args:
            fused: True for one kernel a step, for parameters on a GPU; None for torch's choice.
        """

    def check_views(self, given: list[Tensor]) -> None:
        """Refuse views of a wrong number or shape.

        Args:
            given: As in `compute_loss`; sizes other than the parameters' are taken, so that small tests are possible.

        Raises:
            DataError: All problems.
        """
        problems = []
        num = sum(spec.num for spec in views(self.params))
        if len(given) != num:
            problems.append(f"{len(given)} views were given, expected {num}")
        num_images = len(given[0]) if given else 0
        problems += [
            f"view {number} has shape {tuple(view.shape)}, expected ({num_images}, 1, s, s)"
            for number, view in enumerate(given)
            if view.ndim != 4 or view.shape[:2] != (num_images, 1) or view.shape[2] != view.shape[3]
        ]
        if problems:
            raise DataError(f"{self.params.method} cannot learn from this batch: {'; '.join(problems)}.")


def built_with_seed(seed: int, build: Callable[P, Built], *args: P.args, **kwargs: P.kwargs) -> Built:
    """Call a function that draws initial weights from torch's generator, from a seed, leaving that generator as it was.

    Args:
        seed: Of the weights.
        build: Builds modules on the CPU.
        *args: Of `build`.
        **kwargs: Of `build`.

    Returns:
        What `build` returned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args, **kwargs)


def unit_rows(features: Tensor) -> Tensor:
    """Scale rows to length 1, in float32."""
    return functional.normalize(features.float(), dim=1)


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Measure how spread features are, on the device; `knn.feature_std` is the same for arrays.

    Args:
        features: (n, d).

    Returns:
        float32 (): mean over dimensions of the standard deviation of unit-length rows; near 0 when they have
        collapsed to one direction, 1 / sqrt(d) when directions are spread evenly.
    """
    return unit_rows(features.detach()).std(dim=0, correction=0).mean()
