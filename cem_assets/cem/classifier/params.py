"""How a patch classifier is trained and how it scores patches, and what its logits mean.

This module does not import torch, so that Dagster's definitions load fast. The network is
`cem_assets.cem.classifier.network`, its training `cem_assets.cem.classifier.training`.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import expit

from cem_assets.imaging.dhash import HASH_SIDE_PX, stretch_to_hash_side

MIN_LABELLED = 64
"""Training needs at least this many patches that are labelled good or bad."""


class Precision(StrEnum):
    """Number type of a network's forward pass."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Finetune(StrEnum):
    """Which layers are trained."""

    auto = "auto"
    layer4 = "layer4"
    all = "all"


class ScoreParams(BaseModel):
    """How patches are scored.

    Attributes:
        batch_size: Number of patches in one forward pass.
        device: "auto", "cpu" or a torch device.
        precision: Number type of the forward pass. bfloat16 takes about half the time on GPUs and on CPUs with instructions
            for it, and changes probabilities by up to about 0.02; see `docs/patch_scores.md`.
    """

    model_config = ConfigDict(frozen=True)

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    device: str = "auto"
    precision: Precision = Precision.float32


class ClassifierParams(BaseModel):
    """How a patch classifier is trained.

    Attributes:
        seed: Decides the split, the initial values of new layers, the order of batches and the augmentations.
        epochs: Number of passes over the training patches.
        batch_size: Number of patches in one step.
        learning_rate: Learning rate of Adam.
        validation_share: Share of the labelled patches that is held out; it is the same for either label.
        finetune: "layer4" trains layer4 and fc and freezes the other layers; "all" trains everything. "auto" means
            "layer4" if training starts from pretrained weights, and "all" if it starts from random ones.
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


def probability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into probabilities of being informative.

    Args:
        logits: float32 (n,).

    Returns:
        float32 (n,): the sigmoid, computed in float64.
    """
    return np.asarray(expit(logits.astype(np.float64)), dtype=np.float32)


def to_hash_side(patches: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Resize patches of any size to 224 x 224 px, bilinearly as Pillow does it.

    Args:
        patches: uint8 (height, width), with sides of 1 to 224 px.

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
