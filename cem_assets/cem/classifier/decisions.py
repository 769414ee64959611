"""The decisions of patch classifiers on labelled patches: mistakes, close calls, and flips between two classifiers.

This module only uses numpy. `cem_assets.cem.classifier.training` runs the networks, and
`cem_assets.cem.classifier.pictures` draws the patches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DECISION_THRESHOLD = 0.5


@dataclass(frozen=True)
class Mistakes:
    """Rows of patches for which a classifier decides differently from people, with the largest error first.

    Attributes:
        kept: int64, rows that are labelled bad and kept.
        lost: int64, rows that are labelled good and dropped.
    """

    kept: NDArray[np.int64]
    lost: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kept) + len(self.lost)


@dataclass(frozen=True)
class Flips:
    """Decisions that differ between a new classifier and the one in use, with the largest change first.

    Attributes:
        gained: int64, rows that only the new one keeps.
        dropped: int64, rows that only the one in use keeps.
        num_corrected: Number of flips after which the decision agrees with the label.
        num_spoiled: Number of flips after which it does not.
    """

    gained: NDArray[np.int64]
    dropped: NDArray[np.int64]
    num_corrected: int
    num_spoiled: int

    def __len__(self) -> int:
        return len(self.gained) + len(self.dropped)


def find_mistakes(is_good: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> Mistakes:
    """Find the wrong decisions.

    Args:
        is_good: bool (n,), the labels.
        probabilities: float32 (n,), the probabilities of being informative.

    Returns:
        Rows in order of how far the probability is from the label. Rows with equal distances stay in their order.
    """
    keeps = _keeps(probabilities)
    distance = np.abs(probabilities.astype(np.float64) - is_good)
    order = np.argsort(-distance, kind="stable")
    return Mistakes(order[(keeps & ~is_good)[order]], order[(~keeps & is_good)[order]])


def closest_calls(probabilities: NDArray[np.float32], num: int) -> NDArray[np.int64]:
    """Return up to `num` rows, int64, whose probabilities are nearest to the threshold, with the nearest first."""
    distance = np.abs(probabilities.astype(np.float64) - DECISION_THRESHOLD)
    return np.argsort(distance, kind="stable")[:num]


def find_flips(is_good: NDArray[np.bool_], new: NDArray[np.float32], in_use: NDArray[np.float32]) -> Flips:
    """Find the decisions that differ.

    Args:
        is_good: bool (n,), the labels.
        new: float32 (n,), probabilities from the new classifier.
        in_use: float32 (n,), probabilities from the one in use, for the same patches.
    """
    if not len(is_good) == len(new) == len(in_use):
        raise ValueError(
            f"found {len(is_good)} labels, {len(new)} and {len(in_use)} probabilities; expected one of each for every patch."
        )
    keeps, kept = _keeps(new), _keeps(in_use)
    change = np.abs(new.astype(np.float64) - in_use)
    order = np.argsort(-change, kind="stable")
    flipped = keeps != kept
    num_corrected = int((flipped & (keeps == is_good)).sum())
    return Flips(
        order[(keeps & ~kept)[order]], order[(kept & ~keeps)[order]], num_corrected, int(flipped.sum()) - num_corrected
    )


def _keeps(probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(probabilities > np.float32(DECISION_THRESHOLD))
