"""Names of the files of a leaderboard and of promotions in the store, and reading the table of standings."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.benchmarks.leaderboard.standings import DTYPES
from cem_assets.store.manifests import Manifest
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.store import Store

TABLE = "leaderboard.parquet"
CSV = "leaderboard.csv"
CARD = "README.md"
VERDICT = "verdict.json"

_TYPES = {"str": pa.string(), "int64": pa.int64(), "Int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
STANDINGS_SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in DTYPES.items()])
"""Missing numbers are null."""


def standings_bytes(table: pd.DataFrame) -> bytes:
    """Write standings as one Parquet file; equal tables give equal bytes."""
    columns = [pa.array(table[field.name], field.type, from_pandas=True) for field in STANDINGS_SCHEMA]
    return parquet_bytes([pa.table(columns, schema=STANDINGS_SCHEMA)], STANDINGS_SCHEMA)


def read_standings(store: Store, manifest: Manifest) -> pd.DataFrame:
    """Read the standings of a leaderboard, given its manifest.

    Returns:
        The columns of `cem_assets.benchmarks.leaderboard.standings.DTYPES`; those that an older version did not write are
        blank.
    """
    with store.open(f"{manifest.folder}/{TABLE}") as handle:
        frame: pd.DataFrame = pq.ParquetFile(handle).read().to_pandas()
    blank: dict[str, Any] = {"str": "", "int64": 0, "bool": False, "float64": np.nan, "Int64": pd.NA}
    for name, kind in DTYPES.items():
        if name not in frame:
            frame[name] = pd.Series(blank[kind], index=frame.index, dtype=object)
    standings: pd.DataFrame = frame[list(DTYPES)].astype(DTYPES)
    return standings
