"""Maps of the features of a transfer benchmark, as PNG bytes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cem_assets.benchmarks.transfer.profiles import standardise
from cem_assets.cytoimagenet.feature_space import umap_points
from cem_assets.cytoimagenet.pictures import class_map_png
from cem_assets.errors import DataError

MAX_MAP_ROWS = 3000
"""Largest number of samples in a map; from a larger table this many are drawn at random with the seed."""


def feature_map_png(features: NDArray[np.floating], labels: Sequence[str], seed: int, title: str) -> bytes:
    """Lay samples out by UMAP of their standardised features, coloured by label, as a PNG of at most `MAX_BYTES`.

    Args:
        features: (n, d); columns that are not finite are left out.
        labels: (n,).
        seed: Seed of the choice of samples and of the layout.

    Raises:
        DataError: No column is finite.
    """
    rows = np.arange(len(features))
    if len(rows) > MAX_MAP_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_MAP_ROWS, replace=False))
    chosen = features[rows]
    chosen = chosen[:, np.isfinite(chosen).all(axis=0)]
    if not chosen.shape[1]:
        raise DataError("no feature is finite in all samples, so there is no map; expected one at least.")
    points = umap_points(standardise(chosen)[0], seed)
    return class_map_png(points, [str(labels[row]) for row in rows.tolist()], title)
