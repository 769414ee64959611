"""From a table of features to a table of treatments: standardising, controls, choosing features, averaging, fusing.

All functions take arrays and return arrays of float64.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cem_assets.errors import DataError

_NO_SPREAD = 1e-10
"""A column whose standard deviation is below this share of its largest value counts as constant; it is only rounding."""

Table = NDArray[np.floating[Any]]


def standardise(train: Table, *others: Table) -> tuple[NDArray[np.float64], ...]:
    """Subtract the training set's mean and divide by its standard deviation, column by column.

    Args:
        train: (n, d), at least one row.
        others: Each (m, d), such as test sets.

    Returns:
        float64 tables in the same order. The standard deviation is that of the population (ddof 0). Columns that are constant
        in the training set become 0 in all tables, because they have no scale.
    """
    if train.ndim != 2 or not len(train) or any(other.ndim != 2 or other.shape[1] != train.shape[1] for other in others):
        shapes = ", ".join(str(table.shape) for table in (train, *others))
        raise ValueError(f"tables have shapes {shapes}; expected at least one training row and equal numbers of columns")
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    is_constant = deviation <= _NO_SPREAD * np.abs(train).max(axis=0)
    scale = np.where(is_constant, 0.0, 1.0 / np.where(is_constant, 1.0, deviation))
    return tuple((table.astype(np.float64) - mean) * scale for table in (train, *others))


def standardise_by_controls(features: Table, plate: Sequence[Any], is_control: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Subtract the mean of each plate's controls and divide by their standard deviation (ddof 1).

    Args:
        features: (n, d).
        plate: (n,).
        is_control: bool (n,).

    Returns:
        float64 (n, d). Where the controls of a plate do not vary the result is NaN or infinite; leave such columns out.

    Raises:
        DataError: Plates have fewer than two controls; the error names them.

    Source: Ljosa et al. 2013 (doi:10.1177/1087057113503553).
    """
    codes, names = pd.factorize(np.asarray(plate, dtype=object))
    num_controls = np.bincount(codes[is_control], minlength=len(names))
    if lacking := [f"{name} ({num})" for name, num in zip(names, num_controls, strict=True) if num < 2]:
        raise DataError(f"plates have fewer than two controls: {', '.join(lacking)}; leave those plates out")
    out = np.empty(features.shape, np.float64)
    for code in range(len(names)):
        rows = codes == code
        controls = features[rows & is_control].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            out[rows] = (features[rows] - controls.mean(axis=0)) / controls.std(axis=0, ddof=1)
    return out


def replicate_correlations(features: Table, treatment: Sequence[Any], num_replicates: int = 3) -> NDArray[np.float64]:
    """Measure how well replicates agree on each feature.

    Args:
        features: (n, d).
        treatment: (n,), name or tuple of names.
        num_replicates: The first so many rows of every treatment, in the order of the table, are its replicates 1, 2, ...;
            treatments with fewer rows are left out.

    Returns:
        float64 (d,): the Pearson correlation between replicates i and j over treatments, as the median over pairs i < j; NaN
        where a replicate is constant.

    Raises:
        DataError: Fewer than two treatments have that many replicates, or `num_replicates` is below two.

    Source: the replicate correlation of cytominer, as used for Ljosa et al. 2013.
    """
    rows_of: dict[Any, list[int]] = {}
    for row, name in enumerate(treatment):
        rows_of.setdefault(name, []).append(row)
    chosen = [rows[:num_replicates] for rows in rows_of.values() if len(rows) >= num_replicates]
    if len(chosen) < 2 or num_replicates < 2:
        raise DataError(
            f"{len(chosen)} of {len(rows_of)} treatments have {num_replicates} replicates; expected at least two treatments "
            "with two or more. Change num_replicates, or leave min_replicate_correlation out."
        )
    values = np.stack([features[np.array(rows)] for rows in zip(*chosen, strict=True)]).astype(np.float64)
    values = values - values.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = values / np.sqrt((values * values).sum(axis=1, keepdims=True))
        pairs = [(values[a] * values[b]).sum(axis=0) for a, b in combinations(range(num_replicates), 2)]
    return np.asarray(np.median(pairs, axis=0))


def treatment_means(features: Table, treatment: Sequence[Any]) -> tuple[NDArray[np.float64], list[Any]]:
    """Average the rows of each treatment.

    Args:
        features: (n, d).
        treatment: (n,), name or tuple of names.

    Returns:
        float64 (treatments, d), and the treatments' names, in order of first appearance.
    """
    if len(treatment) != len(features):
        raise ValueError(f"there are {len(treatment)} treatments for {len(features)} rows; expected one for each")
    places: dict[Any, int] = {}
    codes = np.array([places.setdefault(name, len(places)) for name in treatment], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(places)))
    if not places:
        return np.zeros((0, features.shape[1])), []
    sums = np.add.reduceat(features[order].astype(np.float64), starts, axis=0)
    return sums / np.bincount(codes, minlength=len(places))[:, None], list(places)


def fuse(first: Table, second: Table, *more: Table) -> NDArray[np.float64]:
    """Standardise the features of several weights, each table over its own rows, and put them side by side.

    Without standardising, the weights with larger activations would dominate. It does not disturb a recipe that standardises by
    a training set later, because standardising is linear in each column.

    Args:
        first: (n, d1); all tables have the same samples in the same order.
        second: (n, d2).
        more: Further tables.

    Returns:
        float64 (n, d1 + d2 + ...).

    Source: CytoImageNet (arXiv:2111.11646), ImageNet and CytoImageNet features concatenated.
    """
    tables = (first, second, *more)
    if len({len(table) for table in tables}) != 1:
        raise ValueError(
            f"tables have {', '.join(str(len(table)) for table in tables)} rows; expected the same samples, in order"
        )
    return np.concatenate([standardise(table)[0] for table in tables], axis=1)
