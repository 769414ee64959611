"""How well a segmentation agrees with its labels: counts of pixels, IoU per class, and the rules of sparse labels.

Arrays in, numbers out; predictions come from `segmentation_inference`. Pictures of the errors are
`segmentation_pictures`.

**Empty classes.** A class that is neither labelled nor predicted anywhere in the test set has no IoU (NaN) and is left
out of the mean; one that is predicted but nowhere labelled, or the reverse, has 0. The published scripts add
1e-5 to both sides of each image's quotient, so that an image without the class scores 1, and average over images:
`mean_image_iou` is that number, kept for comparison with published scores. Ours counts pixels over the whole test set.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cem_assets.benchmarks.segmentation.params import EvaluationRule
from cem_assets.errors import DataError

_EPSILON = 1e-5
"""Of the published scripts."""


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of each class; add the counts of parts to have those of the whole.

    Attributes:
        shared: int64 (k,), predicted and labelled so; the row is the class number.
        predicted: int64 (k,).
        labelled: int64 (k,).
    """

    shared: NDArray[np.int64]
    predicted: NDArray[np.int64]
    labelled: NDArray[np.int64]

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        return ClassCounts(
            self.shared + other.shared, self.predicted + other.predicted, self.labelled + other.labelled
        )  # fmt: skip

    def union(self) -> NDArray[np.int64]:
        """Return int64 (k,): pixels that are predicted or labelled so, or both."""
        return np.asarray(self.predicted + self.labelled - self.shared)

    def iou(self) -> NDArray[np.float64]:
        """Return float64 (k,): shared over union, NaN where the union is empty."""
        union = self.union()
        shared = np.where(union > 0, self.shared, np.nan)
        return np.asarray(shared / np.maximum(union, 1), np.float64)

    def mean_iou(self, classes: Iterable[int]) -> float:
        """Average the IoU of classes, those that are empty left out; NaN where all are."""
        found = self.iou()[list(classes)]
        return float(found[~np.isnan(found)].mean()) if np.any(~np.isnan(found)) else math.nan


def count_classes(prediction: NDArray[Any], labels: NDArray[Any], num_labels: int) -> ClassCounts:
    """Count the pixels of every class.

    Args:
        prediction: Class numbers, of any shape, unsigned or bool.
        labels: Class numbers, of the same shape.
        num_labels: Class numbers are 0..num_labels - 1; 2 for one class against background.

    Returns:
        Counts of `num_labels` classes.

    Raises:
        DataError: Shapes differ, or there are other numbers.
    """
    problems = []
    if prediction.shape != labels.shape:
        problems.append(f"shapes are {prediction.shape} and {labels.shape}, expected equal ones")
    for what, array in (("prediction", prediction), ("labels", labels)):
        if array.dtype.kind not in "biu":
            problems.append(f"{what} are {array.dtype}, expected whole numbers")
        elif array.size and (array.min() < 0 or array.max() >= num_labels):
            problems.append(f"{what} have values {array.min()} to {array.max()}, expected 0 to {num_labels - 1}")
    if problems:
        raise DataError(f"prediction and labels cannot be compared: {'; '.join(problems)}.")
    pairs = labels.ravel().astype(np.int64) * num_labels + prediction.ravel()
    confusion = np.bincount(pairs, minlength=num_labels * num_labels).reshape(num_labels, num_labels)
    return ClassCounts(np.diag(confusion).copy(), confusion.sum(axis=0), confusion.sum(axis=1))


def match_instances(prediction: NDArray[Any], labels: NDArray[Any], classes: Iterable[int]) -> NDArray[Any]:
    """Keep only predicted components that touch a labelled one, for sets where not every instance is labelled.

    A component that shares at least one pixel with a labelled one of its class stays whole, so that what it
    covers too much counts; one that touches none is taken for an unlabelled instance and becomes background.

    Args:
        prediction: Class numbers, 2D or 3D.
        labels: Class numbers, of the same shape.
        classes: Which classes are matched; the others stay as they are.

    Returns:
        The prediction with 0 in place of what was dropped.

    Source: `inference2d.py` of volume-em/cem-dataset; pixels that meet at a corner are connected there too.
    """
    kept = prediction.copy()
    structure = np.ones((3,) * prediction.ndim, np.bool_)
    for number in classes:
        components, num = ndimage.label(prediction == number, structure)
        is_kept = np.zeros(num + 1, np.bool_)
        is_kept[components[labels == number]] = True
        is_kept[0] = True  # other classes
        kept[~is_kept[components]] = 0
    return kept


def mask_unlabelled(prediction: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Turn predictions into background where nothing is labelled, for volumes that are labelled in part."""
    return np.where(labels > 0, prediction, prediction.dtype.type(0))


def count_by_rule(prediction: NDArray[Any], labels: NDArray[Any], num_labels: int, rule: EvaluationRule) -> ClassCounts:
    """Count the pixels of every class after the rule's masking and matching.

    Args:
        prediction: Class numbers.
        labels: Class numbers, of the same shape.
        num_labels: See `count_classes`.
        rule: Which of both is done. Masking is for parts of a volume as for the whole; matching needs the whole.

    Returns:
        Counts; those of classes that are not scored are of the same prediction.

    Raises:
        DataError: See `count_classes`.
    """
    if prediction.shape != labels.shape:
        return count_classes(prediction, labels, num_labels)  # which says what is wrong
    if rule.mask_unlabelled:
        prediction = mask_unlabelled(prediction, labels)
    if rule.is_instance_matched:
        prediction = match_instances(prediction, labels, rule.scored_classes)
    return count_classes(prediction, labels, num_labels)


def mean_image_iou(counts: Sequence[ClassCounts], classes: Sequence[int]) -> float:
    """Average IoU over images and classes as the published scripts do; see the head of this module."""
    if not counts:
        return math.nan
    scores = [(one.shared[list(classes)] + _EPSILON) / (one.union()[list(classes)] + _EPSILON) for one in counts]
    return float(np.mean(scores))


def mean_over_sets(scores: Mapping[str, float]) -> float:
    """Average the scores of several test sets, each counting alike; NaN as soon as one has none."""
    return float(np.mean(list(scores.values()))) if scores else math.nan


def iterations_to_share(steps: Sequence[int], scores: Sequence[float], share: float = 0.95) -> int | None:
    """Find how soon training came near its best.

    Args:
        steps: Numbers of the steps after which was evaluated, increasing.
        scores: Of each, NaN where there was none.
        share: Of the best score.

    Returns:
        The first step with at least that share of the best score; None where there is no score.

    Raises:
        DataError: Lengths differ, steps do not increase or the share is not in 0..1.
    """
    if len(steps) != len(scores) or any(b <= a for a, b in itertools.pairwise(steps)) or not 0 < share <= 1:
        raise DataError(
            f"{len(steps)} steps, {len(scores)} scores and share {share}; expected as many increasing steps as scores, and a "
            "share above 0 and up to 1."
        )
    known = [(step, score) for step, score in zip(steps, scores, strict=True) if not math.isnan(score)]
    if not known:
        return None
    best = max(score for _, score in known)
    return next(step for step, score in known if score >= share * best)
