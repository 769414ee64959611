"""Whether images of a dataset lie together in feature space: how many of an image's nearest neighbours are of its dataset.

A map of features is for the eye and shows distances that its layout made up. This number is computed from all columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Neighbourhoods:
    """How datasets mix.

    Attributes:
        names: Names of the datasets, in order.
        shares: float64 (n, n): of the nearest neighbours of images of dataset i, the share that is of dataset j; rows add up
            to 1.
        own: Mean over datasets of the share of their own.
        chance: What `own` would be if neighbours were drawn from all other images.
    """

    names: tuple[str, ...]
    shares: NDArray[np.float64]
    own: float
    chance: float


def measure_neighbourhoods(features: NDArray[np.floating], labels: Sequence[str], num_neighbors: int = 15) -> Neighbourhoods:
    """Count from which datasets the nearest neighbours of images come.

    Args:
        features: (n, d), finite.
        labels: (n,), the dataset of each row.
        num_neighbors: Number of neighbours by cosine similarity; all others where there are fewer. Among equals the first rows
            are taken.

    Raises:
        ValueError: There are fewer than two images, shapes differ, or features are not finite.
    """
    if features.ndim != 2 or len(features) != len(labels) or len(features) < 2 or num_neighbors < 1:
        raise ValueError(
            f"features of shape {features.shape} for {len(labels)} labels, {num_neighbors} neighbours; expected (n, d), "
            "n labels, n of 2 or more, and one neighbour at least"
        )
    if not np.isfinite(features).all():
        raise ValueError("features are NaN or infinite; expected finite ones only")
    vectors = features.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    names, places = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    num = min(num_neighbors, len(units) - 1)
    counts = np.zeros((len(names), len(names)))
    for start in range(0, len(units), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(units)))
        similarity = np.round(units[rows] @ units.T, 12)  # so that the rounding of the product decides no tie
        similarity[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :num]
        np.add.at(counts, (np.repeat(places[rows], num), places[nearest].ravel()), 1)
    sizes = np.bincount(places).astype(np.float64)
    shares = counts / (sizes * num)[:, None]
    return Neighbourhoods(
        names=tuple(names.tolist()),
        shares=shares,
        own=float(np.diag(shares).mean()),
        chance=float(((sizes - 1) / (len(units) - 1)).mean()),
    )
