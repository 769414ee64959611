"""Parquet tables of patches and images: schemas, HF features, deterministic writing, pixels as TIFF bytes.

Pixels lie in an `image` column (struct of `bytes` and `path`) as HF datasets understands it, so
`datasets.load_dataset("parquet", ...)`, pandas, DuckDB and polars read it without this package.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cem.volumes.bricks import PatchRows, names_of
from cem_assets.store.parquet import IMAGE, schema_of

PATCHES_PER_SHARD = 2560
"""Patches in a file with pixels: 128 MB when none is cut at a border."""


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
REJECTED_SCHEMA = schema_of(("what", pa.string()), ("reason", pa.string()), ("num_patches", pa.int64()))
IMAGES_SCHEMA = schema_of(
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("file", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("pixel_size_y_nm", pa.float64()),
    ("pixel_size_x_nm", pa.float64()),
    ("intensity_policy", pa.string()),
    ("source_dtype", pa.string()),
    ("intensity_low", pa.float64()),
    ("intensity_high", pa.float64()),
    ("source_sha256", pa.string()),
    ("notes", pa.string()),
    ("image", IMAGE),
)


def patch_table(dataset: str, volume: str, shape: tuple[int, int, int], rows: PatchRows) -> pa.Table:
    """Put the rows of one brick or image into the raw table's columns.

    Args:
        volume: Name of the volume or image.
        shape: (z, y, x) of the volume; for images anything.
        rows: Places and hashes.
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
    """Return int32 (n, 6): axis, index, y0, y1, x0, x1 of a table's patches."""
    names = ("axis", "index", "y0", "y1", "x0", "x1")
    return np.stack([table[name].to_numpy().astype(np.int32) for name in names], axis=1)
