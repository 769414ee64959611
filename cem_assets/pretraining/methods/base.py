"""The interface of a pretraining method, and functions that several methods share.

The methods are `moco`, `swav` and `supervised`; `cem_assets.pretraining.methods.registry` finds them by name, and the loop
that drives them is `cem_assets.pretraining.training.loop`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cem_assets.pretraining.methods.params import MethodParams, views

P = ParamSpec("P")
Built = TypeVar("Built")


class Method(nn.Module, ABC):
    """A method with its networks and its whole state: between two steps, `state_dict` holds all of it.

    A step consists of `compute_loss`, the backward pass, `distributed.average_gradients` where there are several ranks, the
    optimiser's step and `after_step`. Every rank starts from the same weights, which depend on the seed alone, and holds the
    same state after every step. Steps and epochs are counted from 0, and a resumed run continues the count.

    Attributes:
        arch: The encoder's name in `cem_assets.encoders.ENCODERS`.
        num_samples: Number of patches in the training set.
        num_classes: Number of classes of a supervised method; 0 for other methods.
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
        """The network whose weights the training is for: it maps images (n, 1, s, s) to features (n, d)."""

    @abstractmethod
    def compute_loss(
        self, views: list[Tensor], labels: Tensor | None, step: int, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of this rank's share of a batch.

        Args:
            views: Float tensors (n, 1, s, s), augmented and normalised, in the order of `params.crops`.
            labels: int64 (n,) for supervised methods; the other methods ignore them.
            step: Number of optimiser steps made before, from the start of the whole run.
            epoch: Number of epochs finished before.

        Returns:
            The mean loss, float32 (), and the indicators of this rank by name, float32 () without gradient. All of them are
            on the device.

        Raises:
            ValueError: The method cannot use views or labels of these shapes.
        """

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Update the state after the optimiser's step; `step` is the number that `compute_loss` got before it."""

    @abstractmethod
    def build_optimizer(self, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Make the method's optimiser; the loop sets its learning rate at every step with `schedules.learning_rate`.

        Args:
            fused: True runs a step as one kernel and needs all parameters on a GPU; None lets torch choose.
        """

    def check_views(self, given: list[Tensor]) -> None:
        """Refuse views of a wrong number or shape.

        Args:
            given: The views as in `compute_loss`. Their side s may differ from the parameters', which allows small tests.

        Raises:
            ValueError: The text lists all problems.
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
            raise ValueError(f"{self.params.method} cannot learn from this batch: {'; '.join(problems)}.")


def built_with_seed(seed: int, build: Callable[P, Built], *args: P.args, **kwargs: P.kwargs) -> Built:
    """Call `build`, which draws initial weights on the CPU, with torch's generator set to a seed.

    Afterwards torch's generator is in the state that it had before the call.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args, **kwargs)


def unit_rows(features: Tensor) -> Tensor:
    """Scale rows to length 1, in float32."""
    return functional.normalize(features.float(), dim=1)


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Measure on the device how widely features are spread; `knn.feature_std` does the same for arrays.

    Args:
        features: (n, d).

    Returns:
        float32 (): the standard deviation of the rows scaled to length 1, averaged over dimensions. It is near 0 when the
        features have collapsed to one direction, and 1 / sqrt(d) when their directions are spread evenly.
    """
    return unit_rows(features.detach()).std(dim=0, correction=0).mean()
