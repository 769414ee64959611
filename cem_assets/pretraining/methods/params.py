"""Parameters of the pretraining methods, their presets, and the views that each method needs.

This module does not import torch, so that definitions and the command line load fast. The numbers of the presets are in
`cem_assets.pretraining.methods.presets`. The modules of the methods (`moco`, `swav`, `supervised`) explain what the
parameters do, and `cem_assets.pretraining.views.augmentations` draws the views.

Sources: MoCo v2 (arXiv:2003.04297) and SwAV (arXiv:2006.09882) with the numbers of the CEM500K and CEM1.5M
configurations (volume-em/cem-dataset); CytoImageNet (arXiv:2111.11646).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cem_assets.errors import DataError
from cem_assets.pretraining.methods.presets import PRESETS

__all__ = [
    "MAY_CHANGE",
    "PARAMS",
    "PRESETS",
    "MethodParams",
    "MoCoParams",
    "SupervisedParams",
    "SwAVParams",
    "ViewSpec",
    "params_for",
    "queue_length",
    "views",
]


MAY_CHANGE = ("epochs", "milestones", "queue_start_epoch")
"""Parameters that may differ when a run is resumed, because they only say when something happens."""


@dataclass(frozen=True)
class ViewSpec:
    """Augmented views of one size.

    Attributes:
        num: Number of views of every image.
        size_px: Side of the square view.
        scale: Smallest and largest share of the image's area that a view shows; (1, 1) is the whole image.

    Raises:
        DataError: A number is out of range.
    """

    num: int
    size_px: int
    scale: tuple[float, float]

    def __post_init__(self) -> None:
        problems = []
        if self.num < 1:
            problems.append(f"num is {self.num}, expected at least 1")
        if not 8 <= self.size_px <= 1024:
            problems.append(f"size_px is {self.size_px}, expected 8 to 1024")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            problems.append(f"scale is {self.scale}, expected 0 < smallest <= largest <= 1")
        if problems:
            raise DataError(f"these views cannot be drawn: {'; '.join(problems)}.")


class MethodParams(BaseModel):
    """Parameters that every method has.

    Attributes:
        epochs: Number of epochs; an epoch draws as many patches as there are.
        batch_size: Patches in a step, over all ranks together.
        lr: Learning rate at the start.
        weight_decay: L2 penalty of the optimiser.
        dtype: Number type of the encoder's forward pass; losses and queues are always float32.
        seed: Seed of initial weights, queues and shuffles.
        weight_gamma: A patch is drawn with weight (1 / size of its dataset) ** weight_gamma; 0 draws each patch once.
        mean, std: Mean and standard deviation of the pixels on a scale of 0 to 1. Views are normalised with them, and they are
            published with the weights.
        crops: The views, largest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: ClassVar[str]

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)]
    lr: Annotated[float, Field(gt=0, lt=100)]
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 1447
    weight_gamma: Annotated[float, Field(ge=0, le=1)]
    mean: Annotated[float, Field(ge=0, le=1)]
    std: Annotated[float, Field(gt=0, le=1)]
    crops: Annotated[tuple[ViewSpec, ...], Field(min_length=1, max_length=8)]


class MoCoParams(MethodParams):
    """MoCo v2. The defaults are those of CEM500K.

    Attributes:
        momentum: Momentum of SGD.
        milestones: Epochs, counted from 0, at which the learning rate is multiplied by `lr_decay`.
        lr_decay: See `milestones`.
        dim: Length of a feature after the head.
        queue: Number of keys kept as negatives, at most the size of the dataset; see `queue_length`.
        encoder_momentum: Share of its old weights that the key encoder keeps in a step.
        temperature: Temperature of the softmax.
        first_negatives: What the queue holds before keys fill it: "random" directions as in the paper's code, or "none".
            Random directions are far from all keys and push the features of the first steps together. A long training
            recovers from that; a training of a few dozen steps does not.
        num_batch_splits: Number of groups of the whole batch, over all ranks, within which BatchNorm takes its statistics.
            With 4, four ranks have one group each, or one rank normalises in four groups.
    """

    method: ClassVar[str] = "moco"

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 200
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 128
    lr: Annotated[float, Field(gt=0, lt=100)] = 0.015
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    weight_gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    mean: Annotated[float, Field(ge=0, le=1)] = 0.57287
    std: Annotated[float, Field(gt=0, le=1)] = 0.12741
    crops: Annotated[tuple[ViewSpec, ...], Field(min_length=1, max_length=8)] = (ViewSpec(2, 224, (0.2, 1.0)),)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = (120, 160)
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    dim: Annotated[int, Field(ge=2, le=8192)] = 128
    queue: Annotated[int, Field(ge=2, le=1 << 24)] = 65_536
    encoder_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    temperature: Annotated[float, Field(ge=0.01, le=10)] = 0.2
    first_negatives: Literal["random", "none"] = "random"
    num_batch_splits: Annotated[int, Field(ge=1, le=1024)] = 4

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if len(self.crops) != 1 or self.crops[0].num != 2:
            problems.append(
                f"crops are {[(spec.num, spec.size_px) for spec in self.crops]} as (num, size_px), expected two views of one "
                "size"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            problems.append(f"milestones are {self.milestones}, expected each later than the one before")
        if self.batch_size % self.num_batch_splits or self.batch_size < 2 * self.num_batch_splits:
            problems.append(
                f"a batch of {self.batch_size} does not split into {self.num_batch_splits} equal groups of 2 or more"
            )
        if self.queue < self.batch_size:
            problems.append(f"queue is {self.queue}, expected at least batch_size ({self.batch_size})")
        if problems:
            raise DataError("; ".join(problems))
        return self


class SwAVParams(MethodParams):
    """SwAV. The defaults are those of CEM1.5M.

    Attributes:
        final_lr: Learning rate at the end of the cosine.
        momentum: Momentum of SGD.
        larc_trust: Share of the norm of a layer's weights by which one step may change them, times the learning rate.
        larc_clip: True limits the rate of a layer to the learning rate; False scales the learning rate by it.
        dim: Length of a feature after the head.
        hidden: Width of the head's hidden layer.
        prototypes: Number of prototypes.
        freeze_iterations: Number of steps at the start in which the prototypes do not change, at most one epoch.
        temperature: Temperature of the predictions' softmax.
        epsilon: Smoothness of the assignments.
        sinkhorn_iterations: Number of Sinkhorn iterations that compute the assignments.
        queue: Number of features kept over all ranks to widen small batches, at most the size of the dataset; 0 for no queue.
        queue_start_epoch: Epoch, counted from 0, at which the queue starts to fill.
    """

    method: ClassVar[str] = "swav"

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 200
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    lr: Annotated[float, Field(gt=0, lt=100)] = 0.6
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 1e-6
    weight_gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    mean: Annotated[float, Field(ge=0, le=1)] = 0.57571
    std: Annotated[float, Field(gt=0, le=1)] = 0.12765
    crops: Annotated[tuple[ViewSpec, ...], Field(min_length=1, max_length=8)] = (
        ViewSpec(2, 224, (0.14, 1.0)),
        ViewSpec(6, 96, (0.05, 0.14)),
    )
    final_lr: Annotated[float, Field(ge=0, lt=100)] = 0.0006
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    larc_trust: Annotated[float, Field(gt=0, lt=1)] = 0.001
    larc_clip: bool = False
    dim: Annotated[int, Field(ge=2, le=8192)] = 128
    hidden: Annotated[int, Field(ge=2, le=65_536)] = 2048
    prototypes: Annotated[int, Field(ge=2, le=1_000_000)] = 3000
    freeze_iterations: Annotated[int, Field(ge=0)] = 5005
    temperature: Annotated[float, Field(ge=0.01, le=10)] = 0.1
    epsilon: Annotated[float, Field(ge=0.025, le=10)] = 0.05
    sinkhorn_iterations: Annotated[int, Field(ge=1, le=100)] = 3
    queue: Annotated[int, Field(ge=0, le=1 << 24)] = 3840
    queue_start_epoch: Annotated[int, Field(ge=0)] = 15

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if sum(spec.num for spec in self.crops) < 2:
            problems.append("crops have one view, expected two or more")
        if self.final_lr > self.lr:
            problems.append(f"final_lr is {self.final_lr}, expected at most lr ({self.lr})")
        if 0 < self.queue < self.batch_size:
            problems.append(f"queue is {self.queue}, expected 0 or at least batch_size ({self.batch_size})")
        if problems:
            raise DataError("; ".join(problems))
        return self


class SupervisedParams(MethodParams):
    """Classification with cross-entropy and Adam. The defaults are those of CytoImageNet.

    Attributes:
        dropout: Share of features dropped before the last layer.
        validation_share: Share of every class that is held out.
    """

    method: ClassVar[str] = "supervised"

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 24
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    lr: Annotated[float, Field(gt=0, lt=100)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_gamma: Annotated[float, Field(ge=0, le=1)] = 0.0
    mean: Annotated[float, Field(ge=0, le=1)] = 0.0
    std: Annotated[float, Field(gt=0, le=1)] = 1.0
    crops: Annotated[tuple[ViewSpec, ...], Field(min_length=1, max_length=8)] = (ViewSpec(1, 224, (1.0, 1.0)),)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    validation_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.crops) != 1 or self.crops[0].num != 1:
            raise DataError(
                f"crops are {[(spec.num, spec.size_px) for spec in self.crops]} as (num, size_px), expected one view"
            )
        return self


PARAMS: dict[str, type[MethodParams]] = {"moco": MoCoParams, "swav": SwAVParams, "supervised": SupervisedParams}
"""The parameters of every method; `cem_assets.pretraining.methods.registry.METHODS` has the methods by the same names."""


def views(params: MethodParams) -> tuple[ViewSpec, ...]:
    """Return the views that a method needs of every image, in the order in which it takes them."""
    return params.crops


def queue_length(queue: int, batch_size: int, num_samples: int) -> int:
    """Choose the length of a queue: at most the size of the dataset, and a multiple of the batch size.

    Args:
        queue: Desired length; 0 for no queue.
        batch_size: Patches in a step over all ranks.
        num_samples: Number of patches in the dataset.

    Returns:
        The largest multiple of `batch_size` that is at most `queue` and `num_samples`; 0 where `queue` is 0.

    Raises:
        DataError: The dataset is smaller than a batch.
    """
    if num_samples < batch_size:
        raise DataError(
            f"the dataset has {num_samples} patches and batch_size is {batch_size}; expected at least one batch. Lower "
            "batch_size."
        )
    return min(queue, num_samples) // batch_size * batch_size


def params_for(method: str, preset: str, **overrides: Any) -> MethodParams:
    """Make the parameters of a run from a preset.

    Args:
        method: A key of `PRESETS`.
        preset: "paper", "single_gpu" or "smoke".
        **overrides: Fields to change. Where `epochs` is changed alone, the epochs at which something happens (`milestones`,
            `queue_start_epoch`) change in proportion: a milestone at epoch 120 of 200 comes at epoch 12 of 20.

    Raises:
        DataError: The method or the preset is not known.
        pydantic.ValidationError: Values are out of range or contradict each other; the text names all of them.
    """
    if method not in PRESETS:
        raise DataError(f"method {method!r} is not known; expected one of {', '.join(PRESETS)}.")
    if preset not in PRESETS[method]:
        raise DataError(f"preset {preset!r} is not known; expected one of {', '.join(PRESETS[method])}.")
    values = PRESETS[method][preset] | overrides
    if isinstance(epochs := overrides.get("epochs"), int):
        share = epochs / PRESETS[method][preset]["epochs"]
        if "milestones" in values and "milestones" not in overrides:
            values["milestones"] = tuple(sorted({max(1, round(epoch * share)) for epoch in values["milestones"]}))
        if "queue_start_epoch" in values and "queue_start_epoch" not in overrides:
            values["queue_start_epoch"] = round(values["queue_start_epoch"] * share)
    return PARAMS[method](**values)
