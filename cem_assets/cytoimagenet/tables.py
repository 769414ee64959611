"""The Parquet tables of CytoImageNet (metadata, labels, crops, dropped rows), and how data frames become tables and back.

The tables of EM patches are in `cem_assets.cem.patches.tables`; `cem_assets.store.parquet` writes the bytes.
"""

import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from cem_assets.cytoimagenet.columns import RELEASE_COLUMNS, STANDARD_COLUMNS
from cem_assets.store.manifests import Manifest
from cem_assets.store.parquet import IMAGE, parquet_bytes, parquet_file, schema_of
from cem_assets.store.store import Store

_TEXTS = pa.list_(pa.string())
_METADATA_FIELDS = (
    *((name, pa.string()) for name in STANDARD_COLUMNS),
    ("source", pa.string()),
    ("licence", pa.string()),
    ("files", _TEXTS),
    ("sha256", _TEXTS),
)
METADATA_SCHEMA = pa.schema(_METADATA_FIELDS)
LABEL_TABLE_SCHEMA = pa.schema([("label", pa.string()), ("category", pa.string()), *_METADATA_FIELDS])
CANDIDATES_SCHEMA = schema_of(
    ("label", pa.string()),
    ("category", pa.string()),
    ("value", pa.string()),
    ("num_rows", pa.int64()),
    ("num_left", pa.int64()),
    ("num_images", pa.int64()),
    ("outcome", pa.string()),
)
LABELS_SCHEMA = schema_of(
    ("key", pa.string()),
    ("label", pa.string()),
    ("category", pa.string()),
    ("num_images", pa.int64()),
    ("digest", pa.string()),
)
EXCLUDED_SCHEMA = schema_of(("idx", pa.string()), ("source", pa.string()), ("reason", pa.string()))
SOURCE_DROPPED_SCHEMA = schema_of(("what", pa.string()), ("reason", pa.string()))
CROP_DROPPED_SCHEMA = schema_of(("idx", pa.string()), ("crop", pa.int32()), ("reason", pa.string()), ("detail", pa.string()))

_NUMBERS = {"crop": pa.bool_(), "scaling": pa.float64()} | dict.fromkeys(("x_min", "x_max", "y_min", "y_max"), pa.int32())
CROP_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    *((name, _NUMBERS.get(name, pa.string())) for name in RELEASE_COLUMNS),
    ("channels", pa.string()),
    ("split", pa.string()),
    ("source", pa.string()),
    ("source_path", pa.string()),
    ("licence", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("dhash", pa.uint64()),
    ("pixel_sha256", pa.string()),
)
"""The published columns, and those that the platform adds. `source_path` is the path of the image in its source's folder."""
CROPS_SCHEMA = schema_of(*CROP_FIELDS, ("image", IMAGE))
RELEASED_SCHEMA = schema_of(*CROP_FIELDS)

FEW_VALUES = tuple({*STANDARD_COLUMNS, "label", "category", "source", "licence", "split", "reason", "outcome"} - {"idx"})
"""Columns in which the same values occur many times; Parquet stores them as dictionaries."""


def to_arrow(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """Convert a data frame to a table with the given schema; lists and tuples become lists of text."""
    columns = []
    for field in schema:
        values: Any = frame[field.name]
        if field.type == _TEXTS:
            values = [list(cell) for cell in values]
        columns.append(pa.array(values, field.type, from_pandas=True))
    return pa.table(columns, schema=schema)


def frame_bytes(frame: pd.DataFrame, schema: pa.Schema) -> bytes:
    """Convert a data frame to the bytes of a Parquet file; equal frames give equal bytes."""
    return parquet_bytes([to_arrow(frame, schema)], schema, dictionary=FEW_VALUES)


def read_frame(store: Store, manifest: Manifest, name: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read one Parquet object of a manifest as a data frame. Text columns become str, and missing cells stay empty text.

    Args:
        name: Path of the object in the content folder.
        columns: None reads all columns.
    """
    with store.open(f"{manifest.folder}/{name}") as handle:
        return to_frame(parquet_file(handle).read(columns=columns))


def read_group(store: Store, manifest: Manifest, name: str, group: int) -> pd.DataFrame:
    """Read one row group of a Parquet object."""
    with store.open(f"{manifest.folder}/{name}") as handle:
        return to_frame(parquet_file(handle).read_row_group(group))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Convert a table to a data frame; lists become tuples, so that cells can be compared and hashed."""
    frame: pd.DataFrame = table.drop_columns([f.name for f in table.schema if f.type == _TEXTS]).to_pandas()
    for field in table.schema:
        if field.type == _TEXTS:
            frame[field.name] = [tuple(cell) for cell in table[field.name].to_pylist()]
    ordered: pd.DataFrame = frame[table.schema.names]
    return ordered


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a data frame as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a gray image as PNG, the format of the published data set; equal pixels give equal bytes.

    Args:
        pixels: uint8 (height, width).
    """
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG", compress_level=3)
    return sink.getvalue()
