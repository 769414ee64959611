"""How far apart two datasets are to an encoder: the Fréchet distance between Gaussians fitted to their features.

Features are made by `cem_assets.benchmarks.transfer.features` or `cem_assets.pretraining.training.knn`.

Small samples: the distance is too large by an amount that falls as 1 / n, and with fewer rows than columns the covariance is
singular. Three things are done about it. The distance is computed from triangular factors of the centred features,
never from a root of a product of covariances, so singular ones do no harm. Covariances may be shrunk towards a
multiple of the identity (Ledoit and Wolf 2004), which tames noisy directions, but pulls datasets of unequal spread
together: compare only distances computed alike. And the bootstrap, which repeats the excess on top of itself, tells how large
it is: the interval is the basic one (Davison and Hinkley 1997), which takes it off to first order.
With no more rows than columns that is not enough: 300 rows of 512 equally spread columns, truly 5 apart, give 412 and an
interval of 268 to 274; shrunk, 9.0 and 4.5 to 5.9.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage

from cem_assets.analyses.params import Shrinkage
from cem_assets.errors import DataError


@dataclass(frozen=True)
class FrechetDistance:
    """The squared distance between two sets of features.

    Attributes:
        distance: Squared Fréchet (2-Wasserstein) distance between the Gaussians: the number known as FID.
        means_part: Part of it, the squared distance of the means; the rest is due to the covariances.
        low: Lower end of the bootstrap interval, not below 0; NaN without bootstrap. As the excess is taken off, the distance
            itself may lie above the interval.
        high: Upper end.
        bias: Mean of the bootstrap distances minus the distance: about how much too large the distance is.
        shrinkages: Weight of the identity in either covariance, 0..1.
        nums: Rows of either set.
        num_columns: Features of a row.
    """

    distance: float
    means_part: float
    low: float
    high: float
    bias: float
    shrinkages: tuple[float, float]
    nums: tuple[int, int]
    num_columns: int

    @property
    def is_undersampled(self) -> bool:
        """Whether a set has no more rows than columns, so that distance and interval are too large unless shrunk."""
        return min(self.nums) <= self.num_columns


@dataclass(frozen=True)
class _Fit:
    mean: NDArray[np.float64]
    factor: NDArray[np.float64]
    """R with R.T @ R the covariance in the space that the rows of both sets span: (at most k, k)."""
    variance: float
    """Trace of the covariance."""
    ridge: float
    """Deviation along every direction outside that space, where only the identity's share is left."""


def _fit(rows: NDArray[np.float64], shrinkage: float, num_columns: int) -> _Fit:
    """Fit a Gaussian to rows, which are coordinates in a space of their own out of `num_columns`."""
    mean = rows.mean(axis=0)
    centred = (rows - mean) / np.sqrt(len(rows) - 1)
    variance = float((centred * centred).sum())
    ridge = float(np.sqrt(shrinkage * variance / num_columns))
    if shrinkage > 0:
        # The identity's share as further rows: their products add it to the covariance. The trace stays.
        centred = np.concatenate([np.sqrt(1 - shrinkage) * centred, ridge * np.eye(rows.shape[1])])
    if len(centred) > rows.shape[1]:
        centred = scipy.linalg.qr(centred, mode="r", check_finite=False)[0][: rows.shape[1]]
    return _Fit(mean, centred, variance, ridge)


def _distance(first: _Fit, second: _Fit, num_outside: int) -> tuple[float, float]:
    difference = first.mean - second.mean
    means_part = float(difference @ difference)
    # The trace of (S1 S2)^(1/2) is the sum of the singular values of R1 R2^T: no root of a matrix, nothing complex.
    overlap = float(scipy.linalg.svdvals(first.factor @ second.factor.T, check_finite=False).sum())
    overlap += num_outside * first.ridge * second.ridge
    return means_part + max(0.0, first.variance + second.variance - 2 * overlap), means_part


def _reduced(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn wide tables into coordinates in the space that their rows span: exact, as a rotation changes no distance.

    With shrinkage both covariances are multiples of the identity outside that space, which `_distance` adds.
    """
    both = np.concatenate([first, second])
    both = both - both.mean(axis=0)
    if len(both) < both.shape[1]:
        both = scipy.linalg.qr(both.T, mode="r", check_finite=False)[0][: len(both)].T
    return both[: len(first)], both[len(first) :]


def frechet_distance(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    shrinkage: Shrinkage = "none",
    num_bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> FrechetDistance:
    """Measure the distance between two sets of features, with its uncertainty.

    Args:
        first: (n, d).
        second: (m, d).
        shrinkage: "none", or "ledoit_wolf" for the shrinkage of each set. The bootstrap keeps these weights, because its
            repeated rows would look less noisy than they are.
        num_bootstrap: Number of times that rows of both sets are drawn again; 0 for no interval. Each draw costs as much as the
            distance, which grows with the cube of the number of columns, or of rows where they are fewer. With 2,048 of both it
            takes seconds.
        confidence: Confidence of the interval.
        seed: Seed of the bootstrap.

    Returns:
        The squared distance. Rows are assumed to be independent. Patches of one volume are not, and the interval is then too
        narrow; where that matters, give one row, or a mean, for each volume.

    Raises:
        DataError: Sets have fewer than two rows, different numbers of columns, or values that are not finite, or parameters
            are out of range. The text names all problems.
    """
    problems = []
    for name, table in (("first", first), ("second", second)):
        if table.ndim != 2 or len(table) < 2 or not table.shape[1]:
            problems.append(f"the {name} set has shape {table.shape}, expected (2 or more, d)")
        elif not np.isfinite(table).all():
            problems.append(f"the {name} set has values that are not finite")
    if first.ndim == second.ndim == 2 and first.shape[1] != second.shape[1]:
        problems.append(f"sets have {first.shape[1]} and {second.shape[1]} columns, expected features of the same weights")
    if shrinkage not in ("none", "ledoit_wolf") or num_bootstrap < 0 or not 0 < confidence < 1:
        problems.append(
            f"shrinkage {shrinkage!r}, {num_bootstrap} draws, confidence {confidence}; expected none or ledoit_wolf, "
            "0 or more, between 0 and 1"
        )
    if problems:
        raise DataError(f"no distance can be computed: {'; '.join(problems)}.")
    tables = (first.astype(np.float64), second.astype(np.float64))
    weights = (0.0, 0.0)
    if shrinkage == "ledoit_wolf":
        weights = (float(ledoit_wolf_shrinkage(tables[0])), float(ledoit_wolf_shrinkage(tables[1])))
    num_columns = first.shape[1]
    tables = _reduced(*tables)
    num_outside = num_columns - tables[0].shape[1]
    fits = [_fit(table, weight, num_columns) for table, weight in zip(tables, weights, strict=True)]
    distance, means_part = _distance(fits[0], fits[1], num_outside)
    low = high = bias = float("nan")
    if num_bootstrap:
        generator = np.random.default_rng(seed)
        drawn = np.empty(num_bootstrap)
        for number in range(num_bootstrap):
            fits = [
                _fit(table[generator.integers(0, len(table), len(table))], weight, num_columns)
                for table, weight in zip(tables, weights, strict=True)
            ]
            drawn[number] = _distance(fits[0], fits[1], num_outside)[0]
        tail = (1 - confidence) / 2
        low, high = (max(0.0, 2 * distance - float(np.quantile(drawn, share))) for share in (1 - tail, tail))
        bias = float(drawn.mean()) - distance
    return FrechetDistance(distance, means_part, low, high, bias, weights, (len(first), len(second)), first.shape[1])
