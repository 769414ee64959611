"""Parquet tables of the store: schemas with the features that HF datasets reads, and deterministic writing.

Pixels are in an `image` column, a struct of `bytes` and `path` as HF datasets understands it. So
`datasets.load_dataset("parquet", ...)`, pandas, DuckDB and polars read the tables without this package.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.errors import DataError
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store

TABLE_ROW_GROUP = 1 << 17
"""Rows in a row group of tables without pixels."""

IMAGE_ROW_GROUP = 256
"""Rows in a row group of tables with patches: about 12 MiB."""

SHARD_BYTES = 128 * 10**6
"""A table with pixels is cut into files of about this size."""

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The type of an image column as HF datasets reads it."""

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
    """Make a schema whose metadata tells HF datasets the features: columns of type `IMAGE` become images."""
    features: dict[str, Any] = {}
    for name, kind in fields:
        is_image = kind == IMAGE
        features[name] = {"_type": "Image"} if is_image else {"dtype": _HF_TYPES[kind], "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    return pa.schema([pa.field(name, kind) for name, kind in fields], metadata=metadata)


def parquet_bytes(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    row_group: int = TABLE_ROW_GROUP,
    dictionary: Sequence[str] = ("dataset", "volume", "reason"),
) -> bytes:
    """Write tables one after the other into one Parquet file, and return its bytes; equal rows give equal bytes.

    Args:
        tables: Pieces in order, of any length.
        row_group: Rows in a row group, independent of the lengths of the pieces; 0 makes every piece a row group.
        dictionary: Columns with few different values, which are dictionary-encoded.
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
    """Return the name of the n-th file of a table."""
    return f"part-{number:05d}.parquet"


def parquet_file(handle: Any, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file of the store.

    Args:
        handle: As `Store.open` returns it.
        options: Any other argument of `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: The file is damaged.
    """
    try:
        return pq.ParquetFile(handle, **options)
    except pa.ArrowException as error:
        name = getattr(handle, "path", None) or getattr(handle, "name", "a table of the store")
        raise DataError(f"{name} is damaged: {error}. Restore it from a copy, or materialize its asset again.") from error


def read_parts(
    store: Store, manifest: Manifest, columns: list[str] | None = None, batch_rows: int | None = None
) -> Iterator[pa.Table]:
    """Read the files of a table in order, one piece at a time.

    Args:
        columns: Columns to read; None reads all.
        batch_rows: Rows in a piece; None gives one piece for each file.

    Raises:
        DataError: A file is damaged.
    """
    for item in manifest.find(".parquet"):
        key = f"{manifest.folder}/{item.name}"
        with store.open(key) as handle:
            try:
                file = pq.ParquetFile(handle)
                if batch_rows is None:
                    yield file.read(columns=columns)
                else:
                    for batch in file.iter_batches(batch_rows, columns=columns):
                        yield pa.Table.from_batches([batch])
            except pa.ArrowException as error:
                raise DataError(
                    f"{key} is damaged: {error}. Restore it from a copy, or materialize {manifest.inputs.asset} again to "
                    "repair the partition."
                ) from error


def read_side_table(store: Store, manifest: Manifest, name: str, schema: pa.Schema) -> pa.Table:
    """Read a table that is stored beside the main one, such as `_duplicates`; it is empty where there is none."""
    tables = []
    for item in manifest.objects:
        if item.name.startswith(f"{name}/") and item.name.endswith(".parquet"):
            with store.open(f"{manifest.folder}/{item.name}") as handle:
                tables.append(parquet_file(handle).read())
    return pa.concat_tables(tables) if tables else schema.empty_table()
