"""What patch classifiers are trained and measured with: label tables, and the pixels of the labelled patches.

`cem_assets.cem.classifier.answers` writes the tables from the answers given on the labelling page; people may add tables by
hand.
"""

import hashlib
import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cem.classifier.params import MIN_LABELLED, to_hash_side
from cem_assets.cem.patch_grid import PatchPlace, cell_spans, parse_patch_name
from cem_assets.cem.patches.pixels import PixelJob, open_pixels
from cem_assets.cem.patches.tables import table_of_places
from cem_assets.errors import DataError
from cem_assets.store.assets import LABELS
from cem_assets.store.store import Store


def label_tables(store: Store) -> list[str]:
    """List the label tables of the store: CSV or Parquet files under `cem/patch_labels/`."""
    return [item.key for item in store.walk(LABELS) if item.key.endswith((".csv", ".parquet"))]


def read_labels(store: Store) -> tuple[pd.DataFrame, str]:
    """Read all label tables as one.

    Returns:
        The columns dataset, name and label, in order of dataset and name, and a digest of the tables.

    Raises:
        FileNotFoundError: There are no label tables.
        DataError: A table cannot be read, or lacks a column.
    """
    frames, digest = [], hashlib.sha256()
    for key in label_tables(store):
        data = store.read(key)
        digest.update(data)
        try:
            reader = pd.read_csv if key.endswith(".csv") else pd.read_parquet
            frame = reader(io.BytesIO(data))
        except (ValueError, OSError, pa.ArrowException) as error:  # Arrow reports damaged pages as OSErrors
            raise DataError(f"label table {key} cannot be read: {error}. Save it as CSV in UTF-8.") from error
        lacking = {"dataset", "name", "label"} - set(frame.columns)
        if lacking:
            raise DataError(
                f"label table {key} lacks the column(s) {', '.join(sorted(lacking))}; expected dataset, name and label."
            )
        frames.append(frame[["dataset", "name", "label"]].astype(str))
    if not frames:
        raise FileNotFoundError(
            f"there are no label tables under {LABELS}/ in {store.url}. Give labels on the page of `cem-assets label DATASET`, "
            "or put a CSV with the columns dataset, name, label (good, bad or none) there."
        )
    table = pd.concat(frames).sort_values(["dataset", "name"], ignore_index=True)
    return table, digest.hexdigest()


def decided_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Check a label table, and keep the patches that are labelled good or bad.

    Args:
        labels: Columns dataset, name and label.

    Raises:
        DataError: A label is of another kind, a patch is listed twice, or too few are good or bad for training.
    """
    words = labels["label"].tolist()
    problems = []
    unknown = sorted(set(words) - {"good", "bad", "none"})
    if unknown:
        problems.append(f"labels {unknown[:5]} are not known; expected good, bad or none")
    num_repeated = int(labels.duplicated(["dataset", "name"]).sum())
    if num_repeated:
        problems.append(f"{num_repeated} patches are listed more than once")
    num_good, num_bad = words.count("good"), words.count("bad")
    if num_good + num_bad < MIN_LABELLED:
        problems.append(f"{num_good} good and {num_bad} bad patches; expected at least {MIN_LABELLED} of them together")
    elif min(num_good, num_bad) < 2:
        problems.append(f"{num_good} good and {num_bad} bad patches; expected at least 2 of each")
    if problems:
        raise DataError(f"the label table cannot train a classifier: {'; '.join(problems)}. Label more patches.")
    return labels[labels["label"] != "none"].reset_index(drop=True)


def labelled_images(store: Store, labels: pd.DataFrame) -> NDArray[np.uint8]:
    """Cut the labelled patches out of their datasets.

    Args:
        labels: Columns dataset and name, sorted by dataset.

    Returns:
        uint8 (n, 224, 224), in row order.

    Raises:
        DataError: A name is not the name of a patch of its dataset.
    """
    images: list[NDArray[np.uint8]] = []
    for dataset, rows in labels.groupby("dataset", sort=True):
        pixels = open_pixels(store, str(dataset))
        shapes = pixels.shapes()
        places = [_place(name, shapes, str(dataset)) for name in rows["name"]]
        images.append(to_hash_side(PixelJob(pixels)(table_of_places(places))))
    return np.concatenate(images)


def _place(name: str, shapes: Mapping[str, tuple[int, int, int]], dataset: str) -> PatchPlace:
    place = parse_patch_name(name)
    shape = shapes.get(place.volume)
    axis = max(place.axis, 0)
    if shape is None or not (0 <= place.index < shape[axis]) or not _is_on_grid(place, shape[:axis] + shape[axis + 1 :]):
        where = f"no volume {place.volume!r}" if shape is None else f"no such place in a volume of {shape} voxels (z, y, x)"
        raise DataError(
            f"the label table names the patch {name[:200]!r}, but dataset {dataset!r} has {where}. Take names from a table of "
            "patches."
        )
    return place


def _is_on_grid(place: PatchPlace, sides: tuple[int, ...]) -> bool:
    return (place.y0, place.y1) in cell_spans(sides[0]) and (place.x0, place.x1) in cell_spans(sides[1])
