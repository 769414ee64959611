"""How well a segmentation agrees with its labels: counts of pixels, IoU per class, and the rules for sparse labels.

`cem_assets.benchmarks.segmentation.inference` makes the predictions, and `cem_assets.benchmarks.segmentation.pictures` draws
their errors.

**Empty classes.** A class that is neither labelled nor predicted anywhere in the test set has no IoU (NaN), and the mean leaves
it out. A class that is only predicted or only labelled has an IoU of 0. The published scripts add 1e-5 to the numerator and the
denominator of each image's quotient, so that an image without the class scores 1, and average over images. `mean_image_iou` is
that number, for comparison with published scores. Our own score counts the pixels of the whole test set.
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
"""The constant that the published scripts add."""


@dataclass(frozen=True)
class ClassCounts:
    """Number of pixels of each class. The counts of the parts of an image add up to those of the whole.

    Attributes:
        shared: int64 (k,), pixels that are both predicted and labelled as the class; the index is the class number.
        predicted: int64 (k,), pixels that are predicted as the class.
        labelled: int64 (k,), pixels that are labelled as the class.
    """

    shared: NDArray[np.int64]
    predicted: NDArray[np.int64]
    labelled: NDArray[np.int64]

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        return ClassCounts(
            self.shared + other.shared, self.predicted + other.predicted, self.labelled + other.labelled
        )  # fmt: skip

    def union(self) -> NDArray[np.int64]:
        """Return int64 (k,), the pixels that are predicted or labelled as the class, or both."""
        return np.asarray(self.predicted + self.labelled - self.shared)

    def iou(self) -> NDArray[np.float64]:
        """Return float64 (k,), the shared pixels divided by the union; NaN if the union is empty."""
        union = self.union()
        shared = np.where(union > 0, self.shared, np.nan)
        return np.asarray(shared / np.maximum(union, 1), np.float64)

    def mean_iou(self, classes: Iterable[int]) -> float:
        """Average the IoU of some classes without the empty ones; NaN if all of them are empty."""
        found = self.iou()[list(classes)]
        return float(found[~np.isnan(found)].mean()) if np.any(~np.isnan(found)) else math.nan


def count_classes(prediction: NDArray[Any], labels: NDArray[Any], num_labels: int) -> ClassCounts:
    """Count the pixels of every class.

    Args:
        prediction: Class numbers of any shape, as integers or bool.
        labels: Class numbers of the same shape.
        num_labels: Class numbers are 0..num_labels - 1; 2 for one class against background.

    Raises:
        DataError: The shapes differ, or a value is not a class number.
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
    """Drop predicted components that touch no labelled one, for test sets in which not every instance is labelled.

    A component that shares at least one pixel with a labelled one of its class is kept completely, so that its wrong pixels
    count. A component that touches none is assumed to be an instance that nobody labelled, and becomes background.

    Args:
        prediction: Class numbers, 2D or 3D.
        labels: Class numbers of the same shape.
        classes: The classes that are matched; the others stay as they are.

    Returns:
        The prediction, with 0 in place of the components that were dropped.

    Source: `inference2d.py` of volume-em/cem-dataset, where pixels that meet at a corner are connected too.
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
    """Turn predictions into background where nothing is labelled, for volumes that are only partly labelled."""
    return np.where(labels > 0, prediction, prediction.dtype.type(0))


def count_by_rule(prediction: NDArray[Any], labels: NDArray[Any], num_labels: int, rule: EvaluationRule) -> ClassCounts:
    """Count the pixels of every class as `count_classes` does, after the masking and matching of the rule.

    Args:
        prediction: Class numbers. Masking can be done slab by slab, but matching needs the whole volume.
        labels: Class numbers of the same shape.
    """
    if prediction.shape != labels.shape:
        return count_classes(prediction, labels, num_labels)  # raises the error
    if rule.mask_unlabelled:
        prediction = mask_unlabelled(prediction, labels)
    if rule.is_instance_matched:
        prediction = match_instances(prediction, labels, rule.scored_classes)
    return count_classes(prediction, labels, num_labels)


def mean_image_iou(counts: Sequence[ClassCounts], classes: Sequence[int]) -> float:
    """Average the IoU over images and classes as the published scripts do; see the docstring of this module."""
    if not counts:
        return math.nan
    scores = [(one.shared[list(classes)] + _EPSILON) / (one.union()[list(classes)] + _EPSILON) for one in counts]
    return float(np.mean(scores))


def mean_over_sets(scores: Mapping[str, float]) -> float:
    """Average the scores of several test sets with equal weights; NaN if one of them has no score."""
    return float(np.mean(list(scores.values()))) if scores else math.nan


def iterations_to_share(steps: Sequence[int], scores: Sequence[float], share: float = 0.95) -> int | None:
    """Find how soon a training came close to its best score.

    Args:
        steps: The steps after which the network was evaluated, in increasing order.
        scores: The score after each of these steps; NaN if there was none.
        share: The share of the best score that counts as close.

    Returns:
        The first step with at least this share of the best score; None if there is no score.
    """
    if len(steps) != len(scores) or any(b <= a for a, b in itertools.pairwise(steps)) or not 0 < share <= 1:
        raise ValueError(
            f"there are {len(steps)} steps, {len(scores)} scores and a share of {share}; expected as many increasing steps as "
            "scores, and a share above 0 and up to 1."
        )
    known = [(step, score) for step, score in zip(steps, scores, strict=True) if not math.isnan(score)]
    if not known:
        return None
    best = max(score for _, score in known)
    return next(step for step, score in known if score >= share * best)
