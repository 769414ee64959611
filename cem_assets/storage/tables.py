"""Parquet tables of patches and images: schemas, HF features, deterministic writing, pixels as TIFF bytes.

Pixels lie in an `image` column (struct of `bytes` and `path`) as HF datasets understands it, so
`datasets.load_dataset("parquet", ...)`, pandas, DuckDB and polars read it without this package.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cem_assets.cem.bricks import PatchRows, names_of
from cem_assets.storage.manifests import Manifest
from cem_assets.storage.store import Store

TABLE_ROW_GROUP = 1 << 17
"""Rows in a row group of tables without pixels."""
IMAGE_ROW_GROUP = 256
"""Rows in a row group of tables with patches: about 12 MiB."""
PATCHES_PER_SHARD = 2560
"""Patches in a file with pixels: 128 MB when none is cut at a border."""
SHARD_BYTES = 128 * 10**6

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""An image column as HF datasets reads it."""

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

_HF_TYPES = {
    pa.string(): "string",
    pa.int8(): "int8",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.uint8(): "uint8",
    pa.uint64(): "uint64",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.bool_(): "bool",
}


def schema_of(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    """Make a schema that HF datasets reads with the right features, `image` as an Image."""
    features: dict[str, Any] = {}
    for name, kind in fields:
        is_image = kind == IMAGE
        features[name] = {"_type": "Image"} if is_image else {"dtype": _HF_TYPES[kind], "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    return pa.schema([pa.field(name, kind) for name, kind in fields], metadata=metadata)


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
        dataset: Name of the dataset.
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


def parquet_bytes(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    row_group: int = TABLE_ROW_GROUP,
    dictionary: Sequence[str] = ("dataset", "volume", "reason"),
) -> bytes:
    """Write tables one after the other into one Parquet file; equal rows give equal bytes.

    Args:
        tables: Pieces in order, of any length.
        schema: Their schema.
        row_group: Rows in a row group, whatever the pieces' lengths; 0 makes every piece a row group.
        dictionary: Columns with few values, which are stored once each.

    Returns:
        The file.
    """
    sink = io.BytesIO()
    has_pixels = "image" in schema.names
    writer = pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in dictionary if name in schema.names],
        write_statistics=[name for name in schema.names if name != "image"] if has_pixels else True,
        write_page_index=True,
    )
    with writer:
        for group in rechunk(tables, row_group) if row_group else tables:
            writer.write_table(group.cast(schema), row_group_size=row_group or max(len(group), 1))
    return sink.getvalue()


def rechunk(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Cut a stream of tables into tables of exactly `num_rows`, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        while len(table):
            piece = table.slice(0, num_rows - count)
            held.append(piece)
            count += len(piece)
            table = table.slice(len(piece))
            if count == num_rows:
                yield pa.concat_tables(held).combine_chunks()
                held, count = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def part_name(number: int) -> str:
    """Name the n-th file of a table's content."""
    return f"part-{number:05d}.parquet"


def read_parts(
    store: Store, manifest: Manifest, columns: list[str] | None = None, batch_rows: int | None = None
) -> Iterator[pa.Table]:
    """Read the parts of a table in order, one piece at a time.

    Args:
        store: Where.
        manifest: The committed table.
        columns: Columns to read; None for all.
        batch_rows: Rows in a piece; None gives one piece for each part.

    Yields:
        Tables in row order.
    """
    for item in manifest.find(".parquet"):
        with store.open(f"{manifest.folder}/{item.name}") as handle:
            file = pq.ParquetFile(handle)
            if batch_rows is None:
                yield file.read(columns=columns)
            else:
                for batch in file.iter_batches(batch_rows, columns=columns):
                    yield pa.Table.from_batches([batch])


def read_side_table(store: Store, manifest: Manifest, name: str, schema: pa.Schema) -> pa.Table:
    """Read a table that lies beside the main one, such as `_duplicates`; empty where there is none."""
    tables = []
    for item in manifest.objects:
        if item.name.startswith(f"{name}/") and item.name.endswith(".parquet"):
            with store.open(f"{manifest.folder}/{item.name}") as handle:
                tables.append(pq.ParquetFile(handle).read())
    return pa.concat_tables(tables) if tables else schema.empty_table()


@lru_cache(maxsize=256)
def _tiff_header(height: int, width: int) -> bytes:
    """Write an empty image once per size; every image of that size has the same bytes before its pixels."""
    sink = io.BytesIO()
    blank = np.zeros((height, width), np.uint8)
    tifffile.imwrite(sink, blank, byteorder="<", photometric="minisblack", metadata=None, software=False, rowsperstrip=height)
    whole = sink.getvalue()
    with tifffile.TiffFile(io.BytesIO(whole)) as tif:
        offset = int(tif.pages.first.dataoffsets[0])
    if offset + height * width != len(whole):
        raise RuntimeError("tifffile no longer writes pixels last; encode each image with tifffile instead")
    return whole[:offset]


def encode_tiff(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a gray image as an uncompressed TIFF; Parquet's zstd compresses the column.

    Args:
        pixels: uint8 (height, width).

    Returns:
        The file; equal pixels give equal bytes.
    """
    return _tiff_header(*pixels.shape) + np.ascontiguousarray(pixels).tobytes()


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode the bytes of an `image` cell.

    Args:
        data: TIFF as `encode_tiff` writes it, or any PNG or TIFF of 8-bit gray.

    Returns:
        uint8 (height, width).
    """
    with Image.open(io.BytesIO(data), formats=("TIFF", "PNG")) as image:
        return np.asarray(image.convert("L"))


def image_column(names: list[str], images: Iterable[NDArray[np.uint8]]) -> pa.Array:
    """Put images into the column HF datasets reads: struct of `bytes` and `path`."""
    return pa.array(
        [{"bytes": encode_tiff(pixels), "path": f"{name}.tiff"} for name, pixels in zip(names, images, strict=True)],
        IMAGE,
    )
