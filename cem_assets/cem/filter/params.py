"""Which patches are informative: parameters, probabilities, and the split of a scored table.

Light on purpose: no torch here, so that definitions load fast. The network that gives the logits is
`cem_assets.cem.classifier.network`, its training `cem_assets.cem.classifier.training`.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from scipy.special import expit

from cem_assets.cem.patches.dedup import visiting_order
from cem_assets.imaging.dhash import HASH_SIDE_PX, stretch_to_hash_side


class Precision(StrEnum):
    """Number type of a network's forward pass."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Finetune(StrEnum):
    """Which layers training moves."""

    auto = "auto"
    layer4 = "layer4"
    all = "all"


class ScoreParams(BaseModel):
    """How patches are scored.

    Attributes:
        batch_size: Patches in one forward pass.
        device: "auto", "cpu" or a torch device.
        precision: Number type of the forward pass; bfloat16 takes about half the time (on CPUs with instructions for it, and on
            GPUs) and moves probabilities by up to about 0.02: `docs/patch_scores.md`.
    """

    model_config = ConfigDict(frozen=True)

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    device: str = "auto"
    precision: Precision = Precision.float32


class FilterParams(BaseModel):
    """Which scored patches are kept.

    Attributes:
        threshold: A patch is informative when its probability is above this.
        max_patches: At most this many informative patches of the dataset are kept; None keeps all. They are chosen by a
            keyed hash of their names, so a larger limit only adds.
        seed: Key of that choice.
    """

    model_config = ConfigDict(frozen=True)

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    max_patches: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a limit that is not set, and its seed: tables made before there was one keep their digests."""
        data: dict[str, Any] = handler(self)
        unused = {"max_patches", "seed"} if self.max_patches is None else set()
        return {key: value for key, value in data.items() if key not in unused}


class ClassifierParams(BaseModel):
    """How a patch classifier is trained.

    Attributes:
        seed: Of the split, the new layers, the order of batches and the augmentations.
        epochs: Passes over the training patches.
        batch_size: Patches in a step.
        learning_rate: Of Adam.
        validation_share: Share of the labelled patches held out, drawn within each label.
        finetune: "layer4" trains layer4 and fc, the rest stays frozen; "all" trains everything. "auto" means
            "layer4" from pretrained weights and "all" from random ones.
        device: "auto", "cpu" or a torch device.
        precision: Number type of the forward pass.
    """

    model_config = ConfigDict(frozen=True)

    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 1227
    epochs: Annotated[int, Field(ge=1, le=1000)] = 30
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 64
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    validation_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    finetune: Finetune = Finetune.auto
    device: str = "auto"
    precision: Precision = Precision.float32


MIN_LABELLED = 64
"""Patches labelled good or bad that training needs at least."""


def probability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into the probability of being informative.

    Args:
        logits: float32 (n,).

    Returns:
        float32 (n,), the sigmoid computed in float64.
    """
    return np.asarray(expit(logits.astype(np.float64)), dtype=np.float32)


def is_informative(probabilities: NDArray[np.float32], params: FilterParams) -> NDArray[np.bool_]:
    """Tell which patches are kept: probability above the threshold.

    Args:
        probabilities: float32 (n,).
        params: The threshold.

    Returns:
        bool (n,).
    """
    return np.asarray(probabilities > np.float32(params.threshold))


def within_limit(names: Iterable[str], params: FilterParams) -> NDArray[np.bool_]:
    """Tell which informative patches of a dataset are within its limit.

    Args:
        names: Distinct names of all informative patches, in row order; taken once.
        params: Limit and seed.

    Returns:
        bool (n,): the first `max_patches` in the order of a keyed hash of the names; all where there is no limit.
    """
    order = visiting_order(names, params.seed)
    chosen = np.zeros(len(order), np.bool_)
    chosen[order[: params.max_patches]] = True
    return chosen


def to_hash_side(patches: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Bring patches of any size to 224 x 224, bilinear, as Pillow resizes.

    Args:
        patches: uint8 (height, width), sides 1..224 px.

    Returns:
        uint8 (n, 224, 224).
    """
    listed = list(patches)
    out = np.empty((len(listed), HASH_SIDE_PX, HASH_SIDE_PX), np.uint8)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, patch in enumerate(listed):
        by_size.setdefault(patch.shape, []).append(number)
    for numbers in by_size.values():
        out[numbers] = stretch_to_hash_side(np.stack([listed[n] for n in numbers]))
    return out
