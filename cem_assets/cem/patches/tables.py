"""Schemas of the tables of patches, and the step from hashes to rows of the raw table.

Pixels are stored as TIFF bytes in an `image` column (a struct of `bytes` and `path`), as HF datasets expects it, so
`datasets.load_dataset("parquet", ...)`, pandas, DuckDB and polars can read the tables without this package.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cem.patch_grid import PatchPlace
from cem_assets.cem.volumes.bricks import PatchRows, names_of
from cem_assets.store.parquet import IMAGE, schema_of

PATCHES_PER_SHARD = 2560
"""Number of patches in a file with pixels. If all patches are full, such a file has 128 MB."""


PATCH_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("volume", pa.string()),
    ("axis", pa.int8()),
    ("index", pa.int32()),
    ("y0", pa.int32()),
    ("y1", pa.int32()),
    ("x0", pa.int32()),
    ("x1", pa.int32()),
    ("dhash", pa.uint64()),
)


RAW_SCHEMA = schema_of(*PATCH_FIELDS)
DEDUPLICATED_SCHEMA = schema_of(*PATCH_FIELDS, ("num_duplicates", pa.int64()))
DUPLICATES_SCHEMA = schema_of(("name", pa.string()), ("exemplar", pa.string()), ("distance", pa.uint8()))
SCORES_SCHEMA = schema_of(*PATCH_FIELDS, ("num_duplicates", pa.int64()), ("logit", pa.float32()), ("informative", pa.float32()))
FILTERED_SCHEMA = schema_of(
    *PATCH_FIELDS,
    ("num_duplicates", pa.int64()),
    ("logit", pa.float32()),
    ("informative", pa.float32()),
    ("image", IMAGE),
)
DROPPED_SCHEMA = schema_of(("name", pa.string()), ("informative", pa.float32()), ("reason", pa.string()))


def patch_table(dataset: str, volume: str, shape: tuple[int, int, int], rows: PatchRows) -> pa.Table:
    """Put the rows of one brick or image into the columns of the raw table.

    Args:
        volume: Name of the volume or image.
        shape: (z, y, x) of the volume; it is not used for images.
    """
    columns = [rows.place[:, n] for n in range(6)]
    return pa.table(
        [
            pa.array([dataset] * len(rows), pa.string()),
            pa.array(names_of(volume, shape, rows.place), pa.string()),
            pa.array([volume] * len(rows), pa.string()),
            pa.array(columns[0].astype(np.int8)),
            *[pa.array(column) for column in columns[1:]],
            pa.array(rows.dhash),
        ],
        schema=RAW_SCHEMA,
    )


def places_of(table: pa.Table) -> NDArray[np.int32]:
    """Return the places of a table's patches, int32 (n, 6): axis, index, y0, y1, x0, x1."""
    names = ("axis", "index", "y0", "y1", "x0", "x1")
    return np.stack([table[name].to_numpy().astype(np.int32) for name in names], axis=1)


def table_of_places(places: Sequence[PatchPlace]) -> pa.Table:
    """Put places into the columns by which `DatasetPixels.patches` cuts patches: volume, axis, index, y0, y1, x0, x1."""
    columns = ("volume", "axis", "index", "y0", "y1", "x0", "x1")
    return pa.table({name: [getattr(place, name) for place in places] for name in columns})
