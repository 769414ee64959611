"""What a patch classifier is trained and measured with: label tables, and the pixels of the labelled patches.

The tables are written by `cem_assets.cem.classifier.answers` (from the labelling page) or by hand; training is
`cem_assets.cem.classifier.stage`.
"""

import hashlib
import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cem_assets.cem.filter.params import to_hash_side
from cem_assets.cem.patches.patchify import parse_patch_name
from cem_assets.cem.patches.pixels import PixelJob, open_pixels
from cem_assets.errors import DataError
from cem_assets.store.assets import LABELS
from cem_assets.store.store import Store


def label_tables(store: Store) -> list[str]:
    """List the label tables of the store: CSV or Parquet files under `cem/patch_labels/`."""
    return [item.key for item in store.walk(LABELS) if item.key.endswith((".csv", ".parquet"))]


def read_labels(store: Store) -> tuple[pd.DataFrame, str]:
    """Read every label table.

    Returns:
        Columns dataset, name, label, in order of dataset and name; and a digest of the tables.

    Raises:
        DataError: A table lacks a column or is no table.
    """
    frames, digest = [], hashlib.sha256()
    for key in label_tables(store):
        data = store.read(key)
        digest.update(data)
        try:
            reader = pd.read_csv if key.endswith(".csv") else pd.read_parquet
            frame = reader(io.BytesIO(data))
        except (ValueError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"label table {key} cannot be read: {error}. Save it as CSV in UTF-8.") from error
        lacking = {"dataset", "name", "label"} - set(frame.columns)
        if lacking:
            raise DataError(
                f"label table {key} lacks the column(s) {', '.join(sorted(lacking))}; expected dataset, name and label."
            )
        frames.append(frame[["dataset", "name", "label"]].astype(str))
    if not frames:
        raise FileNotFoundError(
            f"there are no label tables under {LABELS}/ in {store.url}; give labels on the page of `cem-assets label DATASET`, "
            "or put a CSV with the columns dataset, name, label (good, bad or none) there."
        )
    table = pd.concat(frames).sort_values(["dataset", "name"], ignore_index=True)
    return table, digest.hexdigest()


def labelled_images(store: Store, labels: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Cut the labelled patches out of their datasets.

    Args:
        labels: Columns dataset and name, sorted by dataset.

    Returns:
        uint8 (n, 224, 224), in row order.
    """
    images: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for dataset, rows in labels.groupby("dataset", sort=True):
        places = [parse_patch_name(name) for name in rows["name"]]
        columns = ("volume", "axis", "index", "y0", "y1", "x0", "x1")
        table = pa.table({column: [getattr(place, column) for place in places] for column in columns})
        images.append(to_hash_side(PixelJob(open_pixels(store, str(dataset)))(table)))
    return np.concatenate(images)
