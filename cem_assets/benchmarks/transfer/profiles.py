"""From a table of features to a table of treatments: standardising, controls, choosing features, averaging, fusing.

Plain arrays in, plain arrays out, in float64. Which steps a benchmark takes is a recipe of
`cem_assets.benchmarks.transfer.recipes`; features of images are made by `cem_assets.benchmarks.transfer.features`.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cem_assets.errors import DataError

_NO_SPREAD = 1e-10
"""Standard deviation, as a share of the largest value, below which a column counts as constant: rounding, no spread."""

Table = NDArray[np.floating[Any]]


def standardise(train: Table, *others: Table) -> tuple[NDArray[np.float64], ...]:
    """Subtract the training set's mean and divide by its standard deviation, column by column.

    Args:
        train: (n, d), at least one row.
        others: Each (m, d), such as test sets.

    Returns:
        float64 tables in the same order. The deviation is that of the population (ddof 0). Columns that are constant in the
        training set become 0 in all: they say nothing about it, and no scale is known.

    Raises:
        DataError: There is no training row, or numbers of columns differ.
    """
    if train.ndim != 2 or not len(train) or any(other.ndim != 2 or other.shape[1] != train.shape[1] for other in others):
        shapes = ", ".join(str(table.shape) for table in (train, *others))
        raise DataError(f"tables have shapes {shapes}; expected at least one training row and equal numbers of columns")
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
        DataError: Plates have fewer than two controls; all are named.

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
        num_replicates: Of every treatment with at least so many rows the first ones, in the order of the table, are its
            replicates 1, 2, ...; treatments with fewer are passed over.

    Returns:
        float64 (d,): Pearson correlation between replicates i and j over treatments, the median over pairs i < j;
        NaN where a replicate is constant.

    Raises:
        DataError: Fewer than two treatments have as many replicates, or fewer than two replicates are asked for.

    Source: the replicate correlation of cytominer, as used for Ljosa et al. 2013.
    """
    rows_of: dict[Any, list[int]] = {}
    for row, name in enumerate(treatment):
        rows_of.setdefault(name, []).append(row)
    chosen = [rows[:num_replicates] for rows in rows_of.values() if len(rows) >= num_replicates]
    if len(chosen) < 2 or num_replicates < 2:
        raise DataError(
            f"{len(chosen)} of {len(rows_of)} treatments have {num_replicates} replicates; expected two of two at least"
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

    Raises:
        DataError: Lengths differ.
    """
    if len(treatment) != len(features):
        raise DataError(f"there are {len(treatment)} treatments for {len(features)} rows; expected one for each")
    places: dict[Any, int] = {}
    codes = np.array([places.setdefault(name, len(places)) for name in treatment], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(places)))
    if not places:
        return np.zeros((0, features.shape[1])), []
    sums = np.add.reduceat(features[order].astype(np.float64), starts, axis=0)
    return sums / np.bincount(codes, minlength=len(places))[:, None], list(places)


def fuse(first: Table, second: Table, *more: Table) -> NDArray[np.float64]:
    """Put the features of several weights side by side, each standardised over its own rows first.

    Args:
        first: (n, d1), of the same samples in the same order as the others.
        second: (n, d2).
        more: Further ones.

    Returns:
        float64 (n, d1 + d2 + ...). Without standardising the weights with larger activations would decide alone. A recipe
        that standardises by a training set later is not disturbed: standardising is linear in each column.

    Raises:
        DataError: Numbers of rows differ.

    Source: CytoImageNet (arXiv:2111.11646), ImageNet and CytoImageNet features concatenated.
    """
    tables = (first, second, *more)
    if len({len(table) for table in tables}) != 1:
        raise DataError(
            f"tables have {', '.join(str(len(table)) for table in tables)} rows; expected the same samples, in order"
        )
    return np.concatenate([standardise(table)[0] for table in tables], axis=1)
