"""Parameters of a segmentation benchmark: what is trained, how it is augmented, and how it is tested and scored.

The numbers of each published benchmark are rows of the catalogue, and the defaults here are what they have in common. This
module does not import torch, so that Dagster's definitions load fast.

Source: the benchmark configurations of volume-em/cem-dataset (eLife 65894).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FinetuneLayer = Literal["none", "layer4", "layer3", "layer2", "layer1", "all"]
"""The shallowest layer of the encoder that is trained; all deeper layers are trained too."""
EncoderBatchNorm = Literal["frozen", "batch", "trained"]
"""What the BatchNorm of frozen layers does; see `cem_assets.benchmarks.segmentation.model.build_unet`."""
PredictionMode = Literal["2d", "stack", "orthoplane"]
"""How an image or a volume is predicted; see `EvaluationRule`."""
TestMode = Literal["2d", "stack", "orthoplane", "mixed"]
Rounding = Literal["none", "uint8"]
Share = Annotated[float, Field(ge=0, le=1)]

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
"""Encoders that a U-Net can be built over. They have the same names in segmentation-models-pytorch and in torchvision; its
EfficientNets have other names."""
FACTOR_PX = 32
"""The network halves its input five times, so the sides of the input must be multiples of this."""
TEST_FIELDS = ("scored_classes", "test_mode", "is_instance_matched", "mask_unlabelled", "threshold", "rounding")
"""Fields that change the score of a trained network, but not how it is trained."""


@dataclass(frozen=True)
class EvaluationRule:
    """How one test set is predicted and scored.

    Attributes:
        mode: "2d" predicts each image alone, resized down to multiples of 32. "stack" predicts the xy planes of a volume, and
            "orthoplane" the planes along all three axes.
        scored_classes: Classes whose IoU is averaged.
        is_instance_matched: Whether only predicted components count that touch a labelled one of the same class. This is for
            test sets in which not every instance is labelled.
        mask_unlabelled: Whether predictions count only where the labels are not 0.
    """

    mode: PredictionMode
    scored_classes: tuple[int, ...]
    is_instance_matched: bool = False
    mask_unlabelled: bool = False


class SegmentationParams(BaseModel):
    """How a network is trained, tested and scored on one segmentation benchmark.

    Attributes:
        num_classes: Number of outputs of the network. 1 is foreground against background, with masks of 0 and 1. With more,
            masks have the values 0..num_classes - 1, and 0 is background.
        class_weights: Weights of the classes in the cross-entropy; empty weighs them equally.
        scored_classes: Classes whose IoU is averaged; empty takes all except background.
        iters: Number of optimiser steps.
        batch_size: Number of crops in a step.
        crop_px: Side of a crop, a multiple of 32.
        lr: Highest learning rate of the one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        finetune_layer: See `FinetuneLayer`. Random weights are always trained completely.
        encoder_batchnorm: See `EncoderBatchNorm`.
        dtype: Number type of the network's forward pass in training; losses are float32.
        seed: Seed of the initial weights, of the order of the images and of the augmentation.
        crop_scale: Smallest and largest share of the padded image's area that a crop shows.
        crop_ratio: Smallest and largest ratio of a crop's width to its height, drawn log-uniformly.
        rotation_deg: Crops are rotated by angles between minus and plus this.
        rotation_share: Share of crops that are rotated.
        brightness, contrast: A pixel x on a scale of 0 to 1 becomes x * (1 + c) + b, where b and c are drawn between minus and
            plus these.
        jitter_share: Share of crops whose brightness and contrast change.
        flip_share: Share of crops that are mirrored left to right, and, drawn separately, upside down.
        has_noise: Whether half of the crops get Gaussian noise.
        has_blur: Whether half of the crops are blurred.
        foreground_share: Share of crops that are placed so that they contain a labelled pixel, if the image has one; 0.8 for
            test sets with few labels.
        mean, std: Mean and standard deviation of pixels on a scale of 0 to 1 that the encoder's weights were trained with.
        test_mode: See `EvaluationRule.mode`. With "mixed" every test set has its own rule, and all sets count equally.
        is_instance_matched, mask_unlabelled: See `EvaluationRule`.
        threshold: Probability above which a pixel is foreground if there is one class.
        rounding: "uint8" adds up planes as the published scripts do, where each is truncated to 255 / planes levels. Use it
            only for comparison with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: Annotated[int, Field(ge=1, le=255)] = 1
    class_weights: tuple[Annotated[float, Field(ge=0, lt=1e6)], ...] = ()
    scored_classes: tuple[Annotated[int, Field(ge=0, le=254)], ...] = ()
    iters: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    crop_px: Annotated[int, Field(ge=FACTOR_PX, le=4096, multiple_of=FACTOR_PX)] = 512
    lr: Annotated[float, Field(gt=0, lt=10)] = 0.003
    weight_decay: Annotated[float, Field(ge=0, lt=10)] = 0.1
    finetune_layer: FinetuneLayer = "none"
    encoder_batchnorm: EncoderBatchNorm = "frozen"
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 42
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.5, 1.5)
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 180.0
    rotation_share: Share = 0.5
    brightness: Share = 0.3
    contrast: Share = 0.3
    jitter_share: Share = 0.5
    flip_share: Share = 0.5
    has_noise: bool = False
    has_blur: bool = False
    foreground_share: Share = 0.0
    mean: Annotated[float, Field(ge=0, le=1)] = 0.57287
    std: Annotated[float, Field(gt=0, le=1)] = 0.12741
    test_mode: TestMode = "2d"
    is_instance_matched: bool = False
    mask_unlabelled: bool = False
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rounding: Rounding = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.class_weights and self.num_classes == 1:
            problems.append("class_weights are given for one class, but its loss has no classes to weigh; expected none")
        elif self.class_weights and (len(self.class_weights) != self.num_classes or not any(self.class_weights)):
            problems.append(f"class_weights are {self.class_weights}, expected {self.num_classes} numbers, not all 0")
        known = (1,) if self.num_classes == 1 else tuple(range(self.num_classes))
        if bad := [number for number in self.scored_classes if number not in known]:
            problems.append(f"scored_classes name {bad}, expected numbers of {known[0]} to {known[-1]}")
        if len(set(self.scored_classes)) != len(self.scored_classes):
            problems.append(f"scored_classes are {self.scored_classes}, expected each once")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            problems.append(f"crop_scale is {self.crop_scale}, expected 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] <= 100:
            problems.append(f"crop_ratio is {self.crop_ratio}, expected 0 < smallest <= largest <= 100")
        if self.batch_size == 1 and self.crop_px == FACTOR_PX:
            problems.append(f"one crop of {FACTOR_PX} px leaves BatchNorm one value, expected larger crops or batches")
        if self.mask_unlabelled and self.num_classes == 1:
            problems.append("mask_unlabelled with one class would hide every false positive, expected it for several classes")
        if problems:
            raise ValueError("; ".join(problems))  # pydantic makes a ValidationError of it
        return self

    def classes_to_score(self) -> tuple[int, ...]:
        """Return `scored_classes`, or all classes except background if it is empty."""
        return self.scored_classes or (tuple(range(1, self.num_classes)) if self.num_classes > 1 else (1,))

    def evaluation_rule(self) -> EvaluationRule:
        """Return the rule of the test set; there is none if the test mode is "mixed", where every set has its own."""
        if self.test_mode == "mixed":
            raise ValueError('test_mode is "mixed", so there is no single rule; expected a rule with every test image.')
        return EvaluationRule(self.test_mode, self.classes_to_score(), self.is_instance_matched, self.mask_unlabelled)
