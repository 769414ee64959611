"""Opening Parquet shards for training: their footers and label columns are read, and their form is checked.

`cem_assets.pixels.reader` reads their pixels in random order, and `cem_assets.cem.patches.tables` writes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.errors import DataError
from cem_assets.pixels.cache import PATCH_BYTES
from cem_assets.store.ranges import opened
from cem_assets.store.store import Store

MAX_GROUP_BYTES = 1 << 30
"""The largest size of a row group's images, stored or decoded, because a thread holds one in memory. Ours have 12 MiB."""

_IMAGE_BYTES = "image.bytes"


@dataclass(frozen=True)
class Shard:
    """An opened shard.

    Attributes:
        key: The key in the store.
        num_bytes: The size of the file.
        identity: A text that differs for another file, even under the same key.
        metadata: The footer, a pyarrow.parquet.FileMetaData.
        image_column: The Parquet column with the bytes of images.
        labels: Strings, one for each row.
    """

    key: str
    num_bytes: int
    identity: str
    metadata: Any
    image_column: str
    labels: pa.Array


def open_shard(store: Store, key: str, label_column: str) -> Shard | str | None:
    """Read a shard's footer and labels.

    Args:
        label_column: A column of strings or integers.

    Returns:
        The shard, or a text that says what is wrong with it, or None if there is no such object.

    Raises:
        OSError: The store cannot be reached, or denies access.
    """
    stored = store.stat(key)
    if stored is None:
        return None
    try:
        with opened(store, key, stored.num_bytes) as handle:
            file = pq.ParquetFile(handle, pre_buffer=False)
            names = file.schema_arrow.names
            if absent := [name for name in ("image", label_column) if name not in names]:
                return f"{key} has no column {' and no column '.join(absent)}, but {', '.join(names)}"
            column = _image_column(file.schema_arrow.field("image").type)
            if column is None:
                return f"{key} has an image column of {file.schema_arrow.field('image').type}, expected bytes"
            paths = [file.metadata.schema.column(n).path for n in range(len(file.metadata.schema))]
            place = paths.index(column)
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                chunk = group.column(place)
                size = max(chunk.total_compressed_size, chunk.total_uncompressed_size, group.num_rows * PATCH_BYTES)
                if size > MAX_GROUP_BYTES:
                    return f"row group {number} of {key} takes {size} bytes, at most {MAX_GROUP_BYTES} are read at once"
            labels = _read_labels(file, label_column, paths.index(label_column) if label_column in paths else -1)
            if isinstance(labels, str):
                return f"{key} {labels}"
    except (DataError, UnicodeDecodeError, pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
        return f"{key} is no Parquet file: {as_line(error)}"
    identity = f"{store.url_of(key)} {stored.num_bytes} {stored.tag or stored.modified}"
    return Shard(key, stored.num_bytes, identity, file.metadata, column, labels)


def _image_column(kind: pa.DataType) -> str | None:
    """Return the name of the Parquet column with the bytes of images, or None if there is none."""
    column = "image"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = _IMAGE_BYTES, kind.field("bytes").type
    return column if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _read_labels(file: Any, name: str, place: int) -> pa.Array | str:
    """Read the label column; for row groups that have one value according to the statistics, the footer is enough."""
    kind = file.schema_arrow.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        return f"has a label column {name} of {kind}, expected strings or integers"
    pieces = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        known = group.column(place).statistics if place >= 0 else None
        if known is not None and known.has_min_max and known.has_null_count and not known.null_count and known.min == known.max:
            pieces.append(pa.repeat(pa.scalar(str(known.min), pa.string()), group.num_rows))
            continue
        values = file.read_row_group(number, columns=[name], use_threads=False)[name]
        if values.null_count:
            return f"has {values.null_count} rows without a {name} in row group {number}"
        pieces.append(values.combine_chunks().cast(pa.string()))
    return pa.concat_arrays(pieces) if pieces else pa.array([], pa.string())


def is_damage(error: Exception) -> bool:
    """Tell whether an error means a damaged file, and not trouble with the store.

    pyarrow reports damaged pages as plain OSErrors without an error number.
    """
    return not isinstance(error, OSError) or (type(error) is OSError and error.errno is None)


def as_line(error: Exception) -> str:
    """Return the text of an error without the line breaks and the full stop that Arrow adds."""
    return " ".join(str(error).split()).rstrip(".")


def first_of(texts: Sequence[str]) -> str:
    """Join the first five texts, and say how many more there are."""
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return "; ".join(texts[:5]) + more
