"""Parameters of the analyses of weights.

This module does not import torch, so that definitions and the command line load fast. The module of each method explains what
its parameters do (`invariance.rates`, `occlusion.maps`, `organelles.correlation`, `organelles.consensus`,
`datasets.neighbourhoods`, `datasets.frechet`).
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cem_assets.errors import DataError

LOWEST_STRENGTHS = {"rotation": -360.0, "blur": 0.0, "noise": 0.0, "brightness": 0.0, "contrast": 0.0, "scale": 0.05}
"""Transformations by name, and the smallest strength of each that is allowed."""

DOWNSAMPLINGS = (4, 8, 16, 32)
"""Strides that a ResNet's last stage may have, in px of the image."""
Shrinkage = Literal["none", "ledoit_wolf"]


class InvarianceParams(BaseModel):
    """How firing rates are measured.

    Attributes:
        global_rate: Share of the unchanged images for which a unit fires.
        is_either_sign: Whether a unit may also fire with a low activation; as in the source, the sign with the larger score
            counts for each transformation. Use False for activations after a ReLU.
        layer: Name of the module that is read, averaged over its area; empty for the encoder's features.
        strengths: Strengths of each transformation that is wanted, by name; empty for all, with those of
            `cem_assets.analyses.invariance.transformations.TRANSFORMATIONS`.
        batch_size: Images at once.
        seed: Seed of the noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    global_rate: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    is_either_sign: bool = False
    layer: str = ""
    strengths: dict[str, list[float]] = Field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    @model_validator(mode="after")
    def _check_strengths(self) -> "InvarianceParams":
        problems = []
        for name, values in self.strengths.items():
            if name not in LOWEST_STRENGTHS:
                problems.append(f"{name!r} is not known, expected one of {', '.join(LOWEST_STRENGTHS)}")
            elif not values or not all(math.isfinite(value) and value >= LOWEST_STRENGTHS[name] for value in values):
                problems.append(f"strengths of {name} are {values}, expected numbers from {LOWEST_STRENGTHS[name]:g}")
        if problems:
            raise DataError(f"these changes cannot be measured: {'; '.join(problems)}.")
        return self


class OcclusionParams(BaseModel):
    """How images are covered.

    Attributes:
        square_px: Side of the square.
        stride_px: Step between its places, at most its side; the last place of a row or column touches the border.
        fill: The square is the image's mean gray, or black.
        layer: Name of the module that is read, averaged over its area; empty for the encoder's features.
        batch_size: Covered images at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    square_px: Annotated[int, Field(ge=1, le=4096)] = 48
    stride_px: Annotated[int, Field(ge=1, le=4096)] = 16
    fill: Literal["mean", "black"] = "mean"
    layer: str = ""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64

    @model_validator(mode="after")
    def _check_stride(self) -> "OcclusionParams":
        if self.stride_px > self.square_px:
            raise DataError(
                f"square {self.square_px} px, stride {self.stride_px} px; expected a stride from 1 to the square, or pixels "
                "between two places are never covered"
            )
        return self


class MaskParams(BaseModel):
    """How feature maps are compared with masks.

    Attributes:
        layer: Name of the module whose maps are read; empty for the last one with maps.
        downsampling: Px of the image between two values of a ResNet's maps, at most: 4, 8, 16 or 32
            (`cem_assets.analyses.organelles.strides`); 0 reads any encoder as it is. None for 8 where it is a ResNet, and 0
            where not.
        top_share: Share of a channel's values above its threshold, for the IoU of single channels; None for the share of pixels
            in masks.
        num_channels: Channels whose mean is a segmentation without training.
        threshold: Threshold of that mean, scaled to 0..1, for its IoU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: str = ""
    downsampling: int | None = None
    top_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    num_channels: Annotated[int, Field(ge=1, le=4096)] = 32
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3

    @model_validator(mode="after")
    def _check_downsampling(self) -> "MaskParams":
        if self.downsampling not in (None, 0, *DOWNSAMPLINGS):
            raise DataError(f"downsampling is {self.downsampling}; expected one of {', '.join(map(str, DOWNSAMPLINGS))}, or 0")
        return self


class MapParams(BaseModel):
    """How datasets are laid out.

    Attributes:
        seed: Seed of the layout.
        num_neighbors: Nearest neighbours of an image that are counted by dataset; the layout itself has 15.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    num_neighbors: Annotated[int, Field(ge=1, le=1000)] = 15


class FrechetParams(BaseModel):
    """How distances between datasets are measured.

    Attributes:
        shrinkage: How covariances are shrunk towards a multiple of the identity; "none" needs as many images as features.
        num_bootstrap: Draws of the interval; 0 for none.
        confidence: Confidence of the interval.
        seed: Seed of the draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shrinkage: Shrinkage = "ledoit_wolf"
    num_bootstrap: Annotated[int, Field(ge=0, le=10_000)] = 50
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
