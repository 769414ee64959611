"""Parameters of a segmentation benchmark: what is trained, how it is augmented, how it is tested and scored.

Light on purpose: no torch here, so that definitions load fast. The numbers of each published benchmark are rows of the
catalogue; the defaults here are what they share. Who uses them: `segmentation_model`, `segmentation_augmentation`,
`segmentation_training`, `segmentation_inference`, `segmentation_metrics`.

Source: the benchmark configurations of volume-em/cem-dataset (eLife 65894).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cem_assets.errors import DataError

FinetuneLayer = Literal["none", "layer4", "layer3", "layer2", "layer1", "all"]
"""The shallowest layer of the encoder that is trained, deeper ones with it."""
EncoderBatchNorm = Literal["frozen", "batch", "trained"]
"""BatchNorm of frozen layers of the encoder; `segmentation_model.build_unet` says what each does."""
PredictionMode = Literal["2d", "stack", "orthoplane"]
"""How an image or a volume is predicted."""
TestMode = Literal["2d", "stack", "orthoplane", "mixed"]
Rounding = Literal["none", "uint8"]
Share = Annotated[float, Field(ge=0, le=1)]

FACTOR_PX = 32
"""The network halves five times: sides of what it is given are multiples of this."""
TEST_FIELDS = ("scored_classes", "test_mode", "is_instance_matched", "mask_unlabelled", "threshold", "rounding")
"""Fields that change what a trained network scores, never how it is trained."""


@dataclass(frozen=True)
class EvaluationRule:
    """How one test set is predicted and scored.

    Attributes:
        mode: "2d": each image alone, resized down; "stack": xy planes; "orthoplane": planes of all three axes.
        scored_classes: Classes whose IoU is averaged.
        is_instance_matched: Only predicted components that touch a labelled one of the same class count, for sets in
            which not every instance is labelled.
        mask_unlabelled: Predictions count only where the labels are not 0.
    """

    mode: PredictionMode
    scored_classes: tuple[int, ...]
    is_instance_matched: bool = False
    mask_unlabelled: bool = False


class SegmentationParams(BaseModel):
    """One segmentation benchmark.

    Attributes:
        num_classes: Outputs of the network. 1: foreground against background, masks of 0 and 1; else masks of
            0..num_classes - 1, 0 for background.
        class_weights: Of the cross-entropy, one for each class; empty for equal ones.
        scored_classes: Classes whose IoU is averaged; empty for all but background.
        iters: Optimiser steps.
        batch_size: Crops in a step.
        crop_px: Side of a crop, a multiple of 32.
        lr: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        finetune_layer: See `FinetuneLayer`; random weights are opened whole, whatever is said here.
        encoder_batchnorm: See `EncoderBatchNorm`.
        dtype: Number type of the network's forward pass in training; losses are float32.
        seed: Of the initial weights, of the order of images and of the augmentation.
        crop_scale: Smallest and largest share of the padded image's area that a crop shows.
        crop_ratio: Smallest and largest ratio of its width to its height, drawn log-uniformly.
        rotation_deg: Crops are turned by angles between minus and plus this.
        rotation_share: Share of crops that are turned.
        brightness, contrast: Pixels on 0..1 become x * (1 + c) + b, b and c drawn between minus and plus these.
        jitter_share: Share of crops whose brightness and contrast change.
        flip_share: Share of crops mirrored left to right, and, drawn apart, upside down.
        has_noise: Half of the crops get Gaussian noise.
        has_blur: Half of the crops are blurred.
        foreground_share: Share of crops placed so that they hold a labelled pixel, where there is one; 0.8 for
            sparse sets.
        mean, std: Of the pixels on 0..1, those the encoder's weights were trained with.
        test_mode: See `EvaluationRule.mode`; "mixed": every test set brings its own rule, and sets count alike.
        is_instance_matched, mask_unlabelled: See `EvaluationRule`.
        threshold: Probability above which a pixel is foreground, for one class.
        rounding: "uint8" adds up planes as the published scripts do, each truncated to 255 / planes levels; only for
            comparison with them.
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
            problems.append("class_weights are given for one class, expected none: there the loss has no classes to weigh")
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
            raise DataError("; ".join(problems))
        return self

    def classes_to_score(self) -> tuple[int, ...]:
        """Return `scored_classes`, or all but background where none are named."""
        return self.scored_classes or (tuple(range(1, self.num_classes)) if self.num_classes > 1 else (1,))

    def evaluation_rule(self) -> EvaluationRule:
        """Return the rule of the test set.

        Raises:
            DataError: The mode is "mixed": the sets bring their own.
        """
        if self.test_mode == "mixed":
            raise DataError('test_mode is "mixed", so there is no one rule; expected a rule with every test image.')
        return EvaluationRule(self.test_mode, self.classes_to_score(), self.is_instance_matched, self.mask_unlabelled)
