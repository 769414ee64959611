"""Stages `analyses/dataset_maps` and `analyses/dataset_distances`: how an encoder sees whole datasets beside each other.

The map is UMAP (`cem_assets.cytoimagenet.feature_space.umap_points`) with the share of neighbours of the same dataset
beside it
(`cem_assets.analyses.datasets.neighbourhoods`); distances are `cem_assets.analyses.datasets.frechet`.
"""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.analyses.images import ImageParams, ImagePlan, ImageSet, plan_images
from cem_assets.analyses.params import FrechetParams, MapParams
from cem_assets.analyses.results import AnalysisPlan, Findings, analysed_weights, build_weights, commit_analysis, read_table
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.store.assets import DATASET_DISTANCES, DATASET_MAPS
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store

POINTS, DISTANCES = "points", "distances"
_BATCH = 64
_MAX_TOLD_PAIRS = 100
"""Up to so many pairs of datasets each get a number of their own in MLflow; of more pairs only mean and extremes are logged."""


def map_datasets(
    store: Store,
    weights: str,
    images: ImageParams,
    params: MapParams,
    device: str = "auto",
    run_id: str = "",
    progress: Progress = no_progress,
) -> StageResult:
    """Lay the images of datasets out by the features of an encoder.

    Args:
        weights: Name of committed weights.
        images: The images; `num_images` from each dataset, fitted to 224 x 224 px.
        device: "auto", "cpu" or "cuda"; decides no number beyond rounding.

    Returns:
        The committed partition of `analyses/dataset_maps`: `points.parquet` (dataset, name, x, y), `neighbours.parquet`
        (dataset, neighbour, share), `map.png`.

    Raises:
        DataError: Weights are not known, or there are fewer than two images.
        FileNotFoundError: Weights or images are not in the store.
    """
    found = analysed_weights(store, weights)
    chosen = plan_images(store, images)
    parameters = {**params.model_dump(mode="json"), **chosen.parameters}
    plan = AnalysisPlan(DATASET_MAPS, found, parameters, chosen.upstream, chosen.source)
    return commit_analysis(store, plan, run_id, lambda: _find_map(store, plan, chosen, params, device, progress))


def _find_map(
    store: Store, plan: AnalysisPlan, chosen: ImagePlan, params: MapParams, device: str, progress: Progress
) -> Findings:
    from cem_assets.analyses.datasets.figures import dataset_maps_png
    from cem_assets.analyses.datasets.neighbourhoods import measure_neighbourhoods
    from cem_assets.cytoimagenet.feature_space import umap_points

    pictures = chosen.read(is_per_dataset=True)
    features = _features(store, plan, pictures, device, progress)
    near = measure_neighbourhoods(features, pictures.datasets, params.num_neighbors)
    points = umap_points(features, params.seed)
    title = f"UMAP of datasets: {len(pictures.images)} images, {chosen.source}"
    heading = map_heading(plan.weights.name, near.own)
    shares = [
        {"dataset": one, "neighbour": other, "share": float(near.shares[row, column])}
        for row, one in enumerate(near.names)
        for column, other in enumerate(near.names)
    ]
    table = pa.table(
        {
            "dataset": pa.array(list(pictures.datasets)),
            "name": pa.array(list(pictures.names)),
            "x": points[:, 0],
            "y": points[:, 1],
        }
    )
    return Findings(
        tables={POINTS: table, "neighbours": pa.Table.from_pylist(shares)},
        figures={"map.png": dataset_maps_png({heading: points}, pictures.datasets, title)},
        numbers={"own_neighbours": near.own, "chance": near.chance},
        counts={"images": len(pictures.images), "datasets": len(near.names), "features": features.shape[1]},
        details={"title": title},
    )


def map_heading(weights: str, own: float) -> str:
    """Return the title of a panel: the weights, and the share of neighbours from an image's own dataset."""
    return f"{weights}: {100 * own:.0f} % own neighbours"


def read_points(store: Store, manifest: Manifest) -> tuple[list[str], NDArray[np.float32]]:
    """Read the dataset and the place of every image of a committed map."""
    table = read_table(store, manifest, POINTS)
    return table["dataset"].to_pylist(), np.stack([table[axis].to_numpy() for axis in ("x", "y")], axis=1)


def measure_datasets(
    store: Store,
    weights: str,
    images: ImageParams,
    params: FrechetParams,
    device: str = "auto",
    run_id: str = "",
    progress: Progress = no_progress,
) -> StageResult:
    """Measure the Fréchet distance between every two datasets.

    Args:
        weights: Name of committed weights.
        images: The images; `num_images` from each dataset, fitted to 224 x 224 px.
        device: "auto", "cpu" or "cuda"; decides no number beyond rounding.
        progress: Called with (images done, number of images), then with (pairs done, number of pairs).

    Returns:
        The committed partition of `analyses/dataset_distances`: `distances.parquet` (first, second, distance, low, high, ...),
        `distances.png`.

    Raises:
        DataError: Weights are not known, or there are fewer than two datasets of two images.
        FileNotFoundError: Weights or images are not in the store.
    """
    found = analysed_weights(store, weights)
    chosen = plan_images(store, images)
    if len(chosen.datasets) < 2:
        raise DataError(
            f"{chosen.source} are one dataset, {', '.join(chosen.datasets)}; expected two or more. "
            "Name more datasets, or a folder with a subfolder for each."
        )
    parameters = {**params.model_dump(mode="json"), **chosen.parameters}
    plan = AnalysisPlan(DATASET_DISTANCES, found, parameters, chosen.upstream, chosen.source)
    return commit_analysis(store, plan, run_id, lambda: _find_distances(store, plan, chosen, params, device, progress))


def _find_distances(
    store: Store, plan: AnalysisPlan, chosen: ImagePlan, params: FrechetParams, device: str, progress: Progress
) -> Findings:
    from cem_assets.analyses.datasets.figures import distance_tables_png
    from cem_assets.analyses.datasets.frechet import frechet_distance

    pictures = chosen.read(is_per_dataset=True)
    features = _features(store, plan, pictures, device, progress)
    names = sorted(set(pictures.datasets))
    of_row = np.array([names.index(name) for name in pictures.datasets])
    table = np.zeros((len(names), len(names)))
    rows: list[dict[str, Any]] = []
    pairs = list(itertools.combinations(range(len(names)), 2))
    for number, (one, other) in enumerate(pairs):
        found = frechet_distance(
            features[of_row == one],
            features[of_row == other],
            params.shrinkage,
            params.num_bootstrap,
            params.confidence,
            params.seed,
        )
        table[one, other] = table[other, one] = found.distance
        rows.append(
            {
                "first": names[one],
                "second": names[other],
                "distance": found.distance,
                "means_part": found.means_part,
                "low": found.low,
                "high": found.high,
                "bias": found.bias,
                "num_first": found.nums[0],
                "num_second": found.nums[1],
                "is_undersampled": found.is_undersampled,
            }
        )
        progress(number + 1, len(pairs))
    distances = np.array([row["distance"] for row in rows])
    numbers = {
        "mean_distance": float(distances.mean()),
        "smallest_distance": float(distances.min()),
        "largest_distance": float(distances.max()),
    }
    if len(rows) <= _MAX_TOLD_PAIRS:
        numbers |= {f"distance_{row['first']}__{row['second']}": float(row["distance"]) for row in rows}
    title = f"Fréchet distance between datasets: {chosen.source}"
    return Findings(
        tables={DISTANCES: pa.Table.from_pylist(rows)},
        figures={"distances.png": distance_tables_png(names, {plan.weights.name: table}, title)},
        numbers=numbers,
        counts={"images": len(pictures.images), "datasets": len(names), "features": features.shape[1]},
        details={"title": title},
    )


def read_distances(store: Store, manifest: Manifest) -> tuple[list[str], NDArray[np.float64]]:
    """Read the names of datasets and their distances, float64 (n, n), of a committed result."""
    rows = read_table(store, manifest, DISTANCES).to_pylist()
    names = sorted({row[side] for row in rows for side in ("first", "second")})
    table = np.zeros((len(names), len(names)))
    for row in rows:
        one, other = names.index(row["first"]), names.index(row["second"])
        table[one, other] = table[other, one] = row["distance"]
    return names, table


def _features(store: Store, plan: AnalysisPlan, pictures: ImageSet, device: str, progress: Progress) -> NDArray[np.float32]:
    """Compute what the encoder gives for each image, float32 (n, d)."""
    from cem_assets.analyses.activations import ActivationReader, pixels_of_images

    encoder, norms = build_weights(store, plan.weights, device)
    fitted = pictures.fitted()
    found = []
    with ActivationReader(encoder, norms) as reader:
        for start in range(0, len(fitted), _BATCH):
            found.append(reader.units(pixels_of_images(fitted[start : start + _BATCH])).cpu().numpy())
            progress(min(start + _BATCH, len(fitted)), len(fitted))
    return np.concatenate(found)
