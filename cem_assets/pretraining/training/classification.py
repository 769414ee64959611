"""Measures how well a supervised network classifies: loss, top-1 and top-5 by category and class, and the confusion matrix.

Everything is counted batch by batch, so the memory depends on the number of classes alone. The network is in
`cem_assets.pretraining.methods.supervised`, the figures in `cem_assets.pretraining.training.figures`. Features without a
classifier are measured in `cem_assets.pretraining.training.knn`.

Source: Hua et al., CytoImageNet, arXiv:2111.11646, report the accuracy over all images; shares by category and class are ours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.pixels.batch import Batch
from cem_assets.pretraining.methods.params import ViewSpec, views
from cem_assets.pretraining.methods.supervised import Supervised
from cem_assets.pretraining.views.augmentations import SUPERVISED, BatchAugmentation, normalised

_TOP = 5
_ROWS_AT_ONCE = 2048
"""Number of images scored at once; with 894 classes the largest intermediate result takes 15 MB."""
_UNTURNED = SUPERVISED.model_copy(update={"rotation_share": 0.0})


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """The scores of a classifier on a set of images.

    Attributes:
        num_images: Number of images that were scored.
        loss: Mean cross-entropy, in nats.
        top1: Share of images whose class has the highest score. Equal scores are ranked by the number of the class, the lower
            first, so a network that gives all classes the same score is right for class 0 alone.
        top5: Share of images whose class is among the five highest scores; 1 where there are five classes or fewer.
        classes: Names of the classes, by number.
        categories: Category of each class.
        per_category: Category -> (top-1 accuracy over its images, their number), sorted; NaN without images.
        class_num_images: int64 (c,).
        class_top1, class_top5: float64 (c,), shares of the class's images; NaN without images.
        confusion: int64 (c, c), number of images by true class (rows) and class with the highest score (columns).
    """

    num_images: int
    loss: float
    top1: float
    top5: float
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    per_category: dict[str, tuple[float, int]]
    class_num_images: NDArray[np.int64]
    class_top1: NDArray[np.float64]
    class_top5: NDArray[np.float64]
    confusion: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values.

        Returns:
            The numbers; `per_category` by name and `per_class` in order, each with `num_images` and accuracies, which are None
            where there is no image; `confusion` as a list of [true class, predicted class, count] without zeros.
        """
        true, predicted = np.nonzero(self.confusion)
        entries = np.stack([true, predicted, self.confusion[true, predicted]], axis=1)
        return {
            "num_images": self.num_images,
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "per_category": {
                name: {"num_images": num, "top1": _number(accuracy)} for name, (accuracy, num) in self.per_category.items()
            },
            "per_class": [
                {"label": label, "category": category, "num_images": num, "top1": _number(top1), "top5": _number(top5)}
                for label, category, num, top1, top5 in zip(
                    self.classes,
                    self.categories,
                    self.class_num_images.tolist(),
                    self.class_top1.tolist(),
                    self.class_top5.tolist(),
                    strict=True,
                )
            ],
            "confusion": entries.tolist(),
        }


class ClassificationScores:
    """Adds up scores over batches; neither the sizes of batches nor the order of images changes the result."""

    def __init__(self, classes: Sequence[str], categories: Sequence[str]) -> None:
        """Start without images.

        Args:
            classes: Names of the classes, by number.
            categories: Category of each class.

        Raises:
            ValueError: There are fewer than two classes, a name occurs twice, or the number of categories differs.
        """
        problems = []
        if len(classes) < 2:
            problems.append(f"{len(classes)} class(es), expected 2 or more")
        if len(set(classes)) != len(classes):
            twice = sorted({name for name in classes if classes.count(name) > 1})
            problems.append(f"{', '.join(twice[:3])} named more than once, expected one name for each class")
        if len(categories) != len(classes):
            problems.append(f"{len(categories)} categories for {len(classes)} classes, expected one of each class")
        if problems:
            raise ValueError(f"these classes cannot be scored: {'; '.join(problems)}.")
        self._classes, self._categories = tuple(classes), tuple(categories)
        self._confusion = np.zeros((len(classes), len(classes)), np.int64)
        self._num_top5 = np.zeros(len(classes), np.int64)
        # An exact sum: a rounded one would depend on the order of images in its last bits.
        self._loss = Fraction(0)

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Add the scores of a batch.

        Args:
            logits: float32 (n, c).
            labels: int64 (n,), 0 to c - 1.

        Raises:
            ValueError: Shapes or types are wrong, or a label is no class.
            DataError: Scores are not finite. In both cases nothing of the batch is counted.
        """
        num_classes = len(self._classes)
        problems = []
        if logits.ndim != 2 or logits.shape[1] != num_classes or labels.shape != logits.shape[:1]:
            problems.append(f"logits have shape {logits.shape} and labels {labels.shape}, expected (n, {num_classes}) and (n,)")
        elif not np.issubdtype(labels.dtype, np.integer):
            problems.append(f"labels are {labels.dtype}, expected integers")
        elif len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
            problems.append(f"labels are {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
        if problems:
            raise ValueError(f"this batch cannot be scored: {'; '.join(problems)}.")
        if num_bad := int((~np.isfinite(logits).all(axis=1)).sum()):
            raise DataError(
                f"this batch cannot be scored: scores of {num_bad} of {len(labels)} images are not finite. Train in float32, "
                "or with a lower learning rate."
            )
        for start in range(0, len(labels), _ROWS_AT_ONCE):
            end = start + _ROWS_AT_ONCE
            self._add_rows(np.ascontiguousarray(logits[start:end], np.float64), labels[start:end])

    def _add_rows(self, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        own = scores[np.arange(len(labels)), labels][:, None]
        is_lower = np.arange(scores.shape[1]) < labels[:, None]
        rank = ((scores > own) | ((scores == own) & is_lower)).sum(axis=1)
        np.add.at(self._confusion, (labels, scores.argmax(axis=1)), 1)  # argmax: the first of equal scores
        np.add.at(self._num_top5, labels, rank < _TOP)
        largest = scores.max(axis=1, keepdims=True)
        losses = np.log(np.exp(scores - largest).sum(axis=1)) + (largest - own)[:, 0]
        self._loss += sum(map(Fraction, losses.tolist()), Fraction(0))

    def result(self) -> ClassificationResult:
        """Return the scores of all images so far.

        Raises:
            DataError: There are no images.
        """
        num_of_class, num_right = self._confusion.sum(axis=1), np.diagonal(self._confusion)
        num_images = int(num_of_class.sum())
        if num_images == 0:
            raise DataError("no image was scored; expected at least one. Hold more images out for validation.")
        of_category = np.array(self._categories)
        per_category = {}
        for name in sorted(set(self._categories)):
            num = int(num_of_class[of_category == name].sum())
            per_category[name] = (int(num_right[of_category == name].sum()) / num if num else math.nan, num)
        return ClassificationResult(
            num_images=num_images,
            loss=float(self._loss / num_images),
            top1=int(num_right.sum()) / num_images,
            top5=int(self._num_top5.sum()) / num_images,
            classes=self._classes,
            categories=self._categories,
            per_category=per_category,
            class_num_images=num_of_class,
            class_top1=_shares(num_right, num_of_class),
            class_top5=_shares(self._num_top5, num_of_class),
            confusion=self._confusion.copy(),
        )


def evaluate_classifier(
    method: Supervised,
    batches: Iterable[Batch],
    classes: Sequence[str],
    categories: Sequence[str],
    norms: tuple[float, float],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> ClassificationResult:
    """Score images in evaluation mode and without augmentation; afterwards the method has its former mode.

    The network gets whole images at the size of the training views; images of another size are resampled as in training.

    Args:
        batches: Held-out images of any size with their classes, each image once.
        classes: Names of the method's classes, by number.
        categories: Category of each class.
        norms: Mean and standard deviation of the pixels, on a scale of 0 to 1.
        device: Device of the method.
        dtype: float32, or bfloat16 for autocast.

    Raises:
        DataError: There are no images, or scores are not finite.
        ValueError: The number of classes differs from the method's, or `ClassificationScores` refuses them.
    """
    if len(classes) != method.num_classes:
        raise ValueError(f"{len(classes)} classes were named; expected {method.num_classes}, as the method has.")
    scores = ClassificationScores(classes, categories)
    size_px = views(method.params)[0].size_px
    whole = BatchAugmentation((ViewSpec(1, size_px, (1.0, 1.0)),), _UNTURNED, *norms)
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                images = torch.from_numpy(np.ascontiguousarray(batch.images)).to(device)
                is_sized = images.shape[1:] == (size_px, size_px)
                inputs = normalised(images, *norms) if is_sized else whole(images, 0)[0]
                with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                    logits = method.logits(inputs.contiguous(memory_format=torch.channels_last))
                scores.add(logits.cpu().numpy(), batch.labels)
    finally:
        for module, is_training in modes:
            module.training = is_training
    return scores.result()


def _shares(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = np.full(len(wholes), np.nan)
    np.divide(parts, wholes, out=shares, where=wholes > 0)
    return shares


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
