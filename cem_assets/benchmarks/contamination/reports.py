"""The tables of fingerprints that are kept with a contamination report; the report on another release takes them over."""

import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.benchmarks.contamination.fingerprints import Fingerprints
from cem_assets.store.parquet import parquet_bytes, schema_of
from cem_assets.store.store import Store

FINGERPRINTS_SCHEMA = schema_of(
    ("item", pa.int64()),
    ("turn", pa.uint8()),
    ("is_tile", pa.bool_()),
    ("has_contrast", pa.bool_()),
    ("dhash", pa.uint64()),
    ("pixels", pa.uint64()),
    ("top", pa.int32()),
    ("left", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
)


def fingerprint_bytes(prints: Fingerprints) -> bytes:
    """Write fingerprints as a Parquet file; equal fingerprints give equal bytes."""
    frame = prints.to_table()
    table = pa.table([pa.array(frame[field.name], field.type) for field in FINGERPRINTS_SCHEMA], schema=FINGERPRINTS_SCHEMA)
    return parquet_bytes([table], FINGERPRINTS_SCHEMA)


def read_fingerprints(store: Store, key: str) -> Fingerprints:
    """Read a table that `fingerprint_bytes` wrote."""
    with store.open(key) as handle:
        return Fingerprints.from_table(pq.ParquetFile(handle).read().to_pandas())
