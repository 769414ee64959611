"""Scores of features by their nearest neighbours: kNN accuracy, not-same-compound accuracy, confidence intervals.

`cem_assets.benchmarks.transfer.neighbours` finds the neighbours and defines the distances.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cem_assets.benchmarks.transfer.neighbours import feature_matrix, nearest_rows
from cem_assets.errors import DataError

NO_NEIGHBOUR = "(no neighbour)"
"""Row of confusion matrices for samples that have no neighbour."""

Labels = Sequence[Any] | NDArray[Any] | pd.Series
"""One label for each row, a text or a number; none may be missing."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predicted label of every sample, in the order of the input.

    Attributes:
        true: object (n,), the labels.
        predicted: object (n,), None for samples without a neighbour.
        is_counted: bool (n,), false for samples that the accuracy leaves out.
    """

    true: NDArray[np.object_]
    predicted: NDArray[np.object_]
    is_counted: NDArray[np.bool_]

    def is_right(self) -> NDArray[np.bool_]:
        """Return bool (n,), true where the prediction is right; a sample without a neighbour is wrong."""
        return np.array(
            [a is not None and bool(a == b) for a, b in zip(self.predicted, self.true, strict=True)], dtype=np.bool_
        )

    def num_counted(self) -> int:
        """Return the number of samples that count for the accuracy."""
        return int(self.is_counted.sum())

    def num_right(self) -> int:
        """Return the number of counted samples that are right."""
        return int((self.is_right() & self.is_counted).sum())

    def accuracy(self) -> float:
        """Return the share of counted samples that are right."""
        if not self.num_counted():
            raise ValueError("no sample is counted, so there is no accuracy; see `is_counted`")
        return self.num_right() / self.num_counted()

    def confusion(self) -> pd.DataFrame:
        """Count the predictions of counted samples: rows are predicted labels, columns are true labels, both sorted."""
        true = [str(label) for label in self.true[self.is_counted]]
        predicted = [NO_NEIGHBOUR if label is None else str(label) for label in self.predicted[self.is_counted]]
        names = sorted({*true, *predicted} - {NO_NEIGHBOUR})
        rows = [*names, NO_NEIGHBOUR] if NO_NEIGHBOUR in predicted else names
        places = {name: place for place, name in enumerate(rows)}
        counts = np.zeros((len(rows), len(names)), np.int64)
        for a, b in zip(predicted, true, strict=True):
            counts[places[a], places[b]] += 1
        return pd.DataFrame(counts, index=pd.Index(rows, name="predicted"), columns=pd.Index(names, name="true"))


def confidence_interval(p: float, n: int) -> float:
    """Return half the width of the 95 % confidence interval of a share: 1.96 sqrt(p (1 - p) / n).

    Args:
        p: The share, 0..1.
        n: Number of samples it was measured on, at least 1.

    Source: CytoImageNet (arXiv:2111.11646), the normal approximation.
    """
    if not 0 <= p <= 1 or n < 1:
        raise ValueError(f"p is {p} and n is {n}; expected a share from 0 to 1 of at least one sample")
    return 1.96 * math.sqrt(p * (1 - p) / n)


def _column(labels: Labels, what: str, num: int) -> NDArray[np.object_]:
    """Check a column of labels, and return it as object (num,)."""
    column = np.empty(len(labels), dtype=object)
    column[:] = list(labels)
    if len(column) != num:
        raise ValueError(f"there are {len(column)} values of {what} for {num} rows of features; expected one for each")
    missing = np.flatnonzero([bool(np.ndim(value) == 0 and pd.isna(value)) for value in column])
    if len(missing):
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{what} is missing in {len(missing)} rows ({shown}); leave them out or fill them in")
    return column


def _codes(column: NDArray[np.object_]) -> tuple[NDArray[np.int64], list[Any]]:
    """Number labels in the order in which they appear; returns the numbers and the labels."""
    places: dict[Hashable, int] = {}
    codes = np.array([places.setdefault(value, len(places)) for value in column], dtype=np.int64)
    return codes, list(places)


def _batch_masks(batch: Labels, num: int) -> list[int]:
    """Turn the batches of each row into bits; a row's value is one batch, or a set, list, tuple or array of several."""
    places: dict[Hashable, int] = {}
    masks = []
    for row, value in enumerate(_column(batch, "batch", num)):
        members: Iterable[Any] = value if isinstance(value, (set, frozenset, list, tuple, np.ndarray)) else (value,)
        mask = 0
        for member in members:
            mask |= 1 << places.setdefault(member, len(places))
        if not mask:
            raise DataError(f"row {row} is in no batch; expected at least one")
        masks.append(mask)
    return masks


def not_same_compound_predictions(
    features: ArrayLike | pd.DataFrame,
    moa: Labels,
    compound: Labels,
    metric: str = "cosine",
    batch: Labels | None = None,
    unanswerable: Literal["wrong", "leave_out"] = "wrong",
) -> Predictions:
    """Predict the mechanism of every treatment from its nearest neighbour of another compound.

    Args:
        features: (n, d), a row for each treatment, without controls.
        moa: (n,), mechanism of action of each treatment.
        compound: (n,).
        metric: "cosine", "correlation" or "euclidean".
        batch: (n,), or None. A treatment of several batches has a set (or list, tuple) of them. Two treatments that share any
            batch are not neighbours.
        unanswerable: Whether treatments that cannot be right, because no possible neighbour has their mechanism, count as wrong
            or are left out. Published NSCB scores leave them out (of BBBC021, 92 of 103 remain).

    Returns:
        Predictions in the order of the rows. Of equally near neighbours the earlier row decides. A treatment without a
        neighbour has no prediction, and is wrong unless it is left out.

    Raises:
        DataError: Features are NaN or infinite (the error names rows and columns), labels are missing, or no two treatments may
            be compared, as with a single compound.

    Source: Ljosa et al. 2013 (doi:10.1177/1087057113503553) for compounds, Ando et al. 2017 (doi:10.1101/161422) for batches.
    """
    values = feature_matrix(features)
    num = len(values)
    true, compounds = _column(moa, "moa", num), _column(compound, "compound", num)
    moa_codes, names = _codes(true)
    compound_codes, _ = _codes(compounds)
    mask_numbers, distinct = _codes(np.array(_batch_masks(batch, num), dtype=object)) if batch is not None else (None, [])
    shares_batch = np.array([[bool(a & b) for b in distinct] for a in distinct], dtype=np.bool_)

    def excluded(start: int, stop: int) -> NDArray[np.bool_]:
        same = compound_codes[start:stop, None] == compound_codes[None, :]
        if mask_numbers is not None:
            same |= shares_batch[mask_numbers[start:stop]][:, mask_numbers]
        return np.asarray(same)

    nearest = nearest_rows(values, values, 1, metric, excluded)[:, 0] if num else np.empty(0, np.int64)
    if not (nearest >= 0).any():
        held = "compound" if batch is None else "compound or batch"
        raise DataError(f"no two of the {num} treatments differ in {held}, so none has a neighbour; expected at least two")
    predicted = np.empty(num, dtype=object)
    predicted[:] = [names[moa_codes[row]] if row >= 0 else None for row in nearest]
    is_counted = np.ones(num, np.bool_)
    if unanswerable == "leave_out":
        step = max(1, (1 << 24) // num)
        for start in range(0, num, step):
            stop = min(start + step, num)
            may_be_right = (moa_codes[start:stop, None] == moa_codes[None, :]) & ~excluded(start, stop)
            is_counted[start:stop] = may_be_right.any(axis=1)
    return Predictions(true, predicted, is_counted)


def _voted(neighbours: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Let neighbours (q, k), nearest first and -1 for none, vote; returns int64 (q,), -1 without a neighbour."""
    labels = np.where(neighbours >= 0, codes[neighbours], -1)
    winner = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), 4096):
        part = labels[start : start + 4096]
        votes = (part[:, :, None] == part[:, None, :]).sum(axis=2)
        votes[part < 0] = -1
        # argmax takes the first of tied labels, which is that of the nearest neighbour, because neighbours are sorted.
        winner[start : start + 4096] = part[np.arange(len(part)), votes.argmax(axis=1)]
    return winner


def _knn(
    queries: NDArray[np.float64], true: NDArray[np.object_], bank: NDArray[np.float64], known: NDArray[np.object_], k: int,
    metric: str, is_own: bool,
) -> Predictions:  # fmt: skip
    def own(start: int, stop: int) -> NDArray[np.bool_]:
        return np.asarray(np.arange(start, stop)[:, None] == np.arange(len(bank))[None, :])

    codes, names = _codes(known)
    winner = _voted(nearest_rows(queries, bank, k, metric, own if is_own else None), codes)
    predicted = np.empty(len(queries), dtype=object)
    predicted[:] = [names[code] if code >= 0 else None for code in winner]
    return Predictions(true, predicted, np.ones(len(queries), np.bool_))


def knn_predictions(
    train: ArrayLike | pd.DataFrame,
    train_labels: Labels,
    test: ArrayLike | pd.DataFrame,
    test_labels: Labels,
    k: int = 11,
    metric: str = "euclidean",
) -> Predictions:
    """Predict the label of every test sample as the most frequent one among its k nearest training samples.

    Args:
        train: (n, d).
        train_labels: (n,).
        test: (m, d).
        test_labels: (m,).
        k: Number of neighbours that vote, each with one vote; at most n are used.
        metric: "cosine", "correlation" or "euclidean".

    Returns:
        Predictions in the order of the test samples. Of labels with equally many votes that of the nearest neighbour wins; of
        equally near neighbours the earlier row counts as nearer.

    Raises:
        DataError: Features are NaN or infinite, labels are missing, or there is nothing to train or test on.
    """
    known, asked = feature_matrix(train, "training features"), feature_matrix(test, "test features")
    if not len(known) or not len(asked):
        raise DataError(f"there are {len(known)} training and {len(asked)} test samples; expected at least one of each")
    labels, true = _column(train_labels, "training labels", len(known)), _column(test_labels, "test labels", len(asked))
    return _knn(asked, true, known, labels, k, metric, is_own=False)


def leave_one_out_knn_predictions(
    features: ArrayLike | pd.DataFrame, labels: Labels, k: int = 11, metric: str = "euclidean"
) -> Predictions:
    """Predict the label of every sample as the most frequent one among its k nearest others; see `knn_predictions`.

    A sample is never its own neighbour, but another sample with the same features can be.
    """
    values = feature_matrix(features)
    if len(values) < 2:
        raise DataError(f"there are {len(values)} samples; leaving one out needs at least two")
    true = _column(labels, "labels", len(values))
    return _knn(values, true, values, true, k, metric, is_own=True)
