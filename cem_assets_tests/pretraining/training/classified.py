"""Makes results of a classifier for tests."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cem_assets.pretraining.training.classification import ClassificationResult, ClassificationScores


def score_classification(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str], categories: Sequence[str]
) -> ClassificationResult:
    """Score all images at once; `ClassificationScores` does it batch by batch, with an equal result.

    Args:
        logits: float32 (n, c).
        labels: int64 (n,), 0 to c - 1.
        classes: Names of the classes, by number.
        categories: Category of each class.

    Raises:
        ValueError: `ClassificationScores` refuses the classes or the batch.
    """
    scores = ClassificationScores(classes, categories)
    scores.add(logits, labels)
    return scores.result()
