"""Where images lie in the feature space of a network: distances within and between classes, and layouts on a plane."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cem_assets.errors import DataError

MIN_UMAP = 10
"""Fewer images than this are laid out by PCA, because UMAP's graph of neighbours needs more."""


def cosine_distances(features: NDArray[np.floating], labels: Sequence[str]) -> pd.DataFrame:
    """Measure how close the images of each class are to each other, and to the images of all other classes.

    Args:
        features: Floating-point numbers (n, d).
        labels: (n,).

    Returns:
        A table with the columns label (sorted), num_images, within and between. `within` is the mean cosine distance (1 -
        cosine) over all pairs of images of the class, or NaN for a single image. `between` is the mean over all pairs of an
        image of the class and one of any other class, or NaN if there is no other class.

    Raises:
        DataError: A feature vector is zero, NaN or infinite.

    Source: the mean pairwise distances of CytoImageNet (arXiv:2111.11646). They are exact although no pair is computed, because
    the sum of all cosines between two groups of unit vectors is the product of the groups' sums. This takes O(n d) time in
    float64.
    """
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"features of shape {features.shape} for {len(labels)} labels; expected (n, d) and n labels")
    vectors = features.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    if len(bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))):
        raise DataError(
            f"{len(bad)} of {len(vectors)} feature vectors are zero, NaN or infinite and have no direction, the first in row "
            f"{bad[0]}; leave these images out"
        )
    units = vectors / norms[:, None]
    names, places = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), units.shape[1]))
    np.add.at(sums, places, units)
    num = np.bincount(places, minlength=len(names)).astype(np.float64)
    total = sums.sum(axis=0)
    own = (sums**2).sum(axis=1)
    num_within, num_between = num * (num - 1), num * (len(units) - num)
    none = np.full(len(names), np.nan)
    # The product of every unit vector with itself is one of the num**2 products, but it is not a pair.
    within = 1 - np.divide(own - num, num_within, out=none.copy(), where=num_within > 0)
    between = 1 - np.divide(sums @ total - own, num_between, out=none.copy(), where=num_between > 0)
    return pd.DataFrame(
        {
            "label": names.astype(object),
            "num_images": num.astype(np.int64),
            "within": np.clip(within, 0.0, 2.0),
            "between": np.clip(between, 0.0, 2.0),
        }
    )


def umap_points(features: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """Lay images out on a plane so that those with similar features lie together.

    Args:
        features: (n, d), finite.
        seed: Seed of UMAP, which runs in one thread, so that the result is always the same on one machine.

    Returns:
        float32 (n, 2): UMAP by cosine distance, with 15 neighbours or as many as there are. Fewer than `MIN_UMAP` images are
        laid out by the two principal components of their unit vectors, each with the sign that makes its largest entry
        positive.

    Raises:
        DataError: Features are not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features of shape {features.shape}; expected (n, d)")
    if not np.isfinite(features).all():
        raise DataError(
            f"features of shape {features.shape} are not all finite, so they cannot be laid out; expected (n, d) with finite "
            "numbers only. Choose other weights, or leave these images out."
        )
    if len(features) < MIN_UMAP:
        return _principal_points(features)
    import umap  # type: ignore[import-untyped]

    num_neighbors = min(15, len(features) - 1)
    embedding = umap.UMAP(n_components=2, n_neighbors=num_neighbors, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(embedding.fit_transform(features.astype(np.float32)), dtype=np.float32)


def _principal_points(features: NDArray[np.floating]) -> NDArray[np.float32]:
    out = np.zeros((len(features), 2), np.float32)
    if not features.size:
        return out
    vectors = features.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    left, strength, _ = np.linalg.svd(units - units.mean(axis=0), full_matrices=False)
    scores = (left * strength)[:, :2]
    largest = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    out[:, : scores.shape[1]] = scores * np.where(largest < 0, -1.0, 1.0)
    return out
