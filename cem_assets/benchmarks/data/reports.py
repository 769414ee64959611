"""What could not be used of a benchmark's files: the table of it in the store, and the error if nothing is left."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cem_assets.catalog.benchmarks import Benchmark
from cem_assets.cem.volumes.tables import REJECTED_SCHEMA
from cem_assets.errors import DataError
from cem_assets.inbox.datasets import Rejection
from cem_assets.store.commits import Commit
from cem_assets.store.parquet import parquet_bytes

_NUM_IN_DETAILS = 100
_NUM_IN_ERROR = 20


def write_rejections(commit: Commit, rejections: Sequence[Rejection]) -> list[dict[str, Any]]:
    """Write the table of rejections.

    Returns:
        The first 100 of them for the manifest's details.
    """
    found = [{"what": item.what, "reason": item.reason} for item in rejections]
    table = pa.Table.from_pylist([{**item, "num_patches": 0} for item in found], schema=REJECTED_SCHEMA)
    commit.write("_rejected/part-00000.parquet", parquet_bytes([table], REJECTED_SCHEMA))
    return found[:_NUM_IN_DETAILS]


def nothing_usable(row: Benchmark, rejections: Sequence[Rejection], problem: str) -> DataError:
    """Make the error for a benchmark of which too little is left; it gives the first 20 reasons."""
    reasons = "\n".join(f"  - {item.what}: {item.reason}" for item in rejections[:_NUM_IN_ERROR])
    return DataError(f"benchmark {row.name!r} cannot be prepared: {problem}.\n{reasons}".rstrip())
