"""Benchmark scores in the store: one immutable partition for each benchmark, weights, parameters and seed.

`benchmarks/scores/<benchmark>/<weights>/<parameter digest>-s<seed>/` commits as every asset does, so nothing overwrites
another score; rows are `scores.parquet` of its content. Making them is `cem_assets.benchmarks.scores.entry`, comparing them
`cem_assets.benchmarks.leaderboard.stage`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.store.assets import BENCHMARK_SCORES
from cem_assets.store.manifests import MANIFESTS, Manifest, canonical_json, current_manifest
from cem_assets.store.parquet import parquet_bytes, schema_of
from cem_assets.store.store import Store

ROWS = "scores.parquet"
_DIGITS = 12

SCORES_SCHEMA = schema_of(
    ("benchmark", pa.string()),
    ("weights", pa.string()),
    ("weights_digest", pa.string()),
    ("release", pa.string()),
    ("release_digest", pa.string()),
    ("seed", pa.int64()),
    ("parameters", pa.string()),
    ("finetune_layer", pa.string()),
    ("iterations", pa.int64()),
    ("test_set", pa.string()),
    ("metric", pa.string()),
    ("class_name", pa.string()),
    ("value", pa.float64()),
    ("low", pa.float64()),
    ("high", pa.float64()),
    ("num", pa.int64()),
    ("is_main", pa.bool_()),
    ("code_version", pa.string()),
)


@dataclass(frozen=True)
class ScoreKey:
    """Which score.

    Attributes:
        benchmark: Its name.
        weights: Name of the weights; two joined by "+" where their features are fused.
        parameters: 12 hex digits of `parameters_digest`.
        seed: Of the training or of draws.
    """

    benchmark: str
    weights: str
    parameters: str
    seed: int

    @property
    def partition(self) -> str:
        """Path below `benchmarks/scores`."""
        return f"{self.benchmark}/{self.weights}/{self.parameters}-s{self.seed}"


@dataclass(frozen=True)
class ScoreRow:
    """One number.

    Attributes:
        benchmark: Its name.
        weights: Name of the weights.
        weights_digest: Of their manifest.
        release: What they were trained on, such as "cem/releases/v2"; empty for imported ones.
        release_digest: Of that release.
        seed: Of the training.
        parameters: Digest of all parameters.
        finetune_layer: Which layers were opened; empty for transfer.
        iterations: Training steps; 0 for transfer.
        test_set: Which test images, such as "test1"; "all" where there is one set.
        metric: "iou", "nsc_accuracy", "nscb_accuracy", "knn_accuracy", ...
        class_name: Class, for a score of one class; empty for the mean.
        value: The score, 0 to 1.
        low, high: Of the 95 % interval; equal to the value where there is none.
        num: What was counted: images, treatments, cells.
        is_main: Whether this is the number of the leaderboard.
        code_version: Of the asset.
    """

    benchmark: str
    weights: str
    weights_digest: str
    release: str
    release_digest: str
    seed: int
    parameters: str
    finetune_layer: str
    iterations: int
    test_set: str
    metric: str
    class_name: str
    value: float
    low: float
    high: float
    num: int
    is_main: bool
    code_version: str


def parameters_digest(parameters: Mapping[str, Any]) -> str:
    """Sum up every parameter but the seed, in 12 hex digits; values are JSON."""
    kept = {name: value for name, value in parameters.items() if name != "seed"}
    return hashlib.sha256(canonical_json(kept)).hexdigest()[:_DIGITS]


def rows_bytes(rows: Sequence[ScoreRow]) -> bytes:
    """Write rows as Parquet, in the order given."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCORES_SCHEMA)
    return parquet_bytes([table], SCORES_SCHEMA)


def score_keys(store: Store, benchmark: str = "", weights: str = "") -> Iterator[ScoreKey]:
    """List the scores that are committed, in order of benchmark, weights and parameters.

    Args:
        benchmark: Of this one alone.
        weights: Of these alone.
    """
    for name in [benchmark] if benchmark else store.children(BENCHMARK_SCORES):
        for which in [weights] if weights else store.children(f"{BENCHMARK_SCORES}/{name}"):
            for run in store.children(f"{BENCHMARK_SCORES}/{name}/{which}"):
                parameters, separator, seed = run.partition("-s")
                folder = f"{BENCHMARK_SCORES}/{name}/{which}/{run}"
                if separator and seed.isdecimal() and store.children(f"{folder}/{MANIFESTS}"):
                    yield ScoreKey(name, which, parameters, int(seed))


def read_scores(store: Store, benchmark: str = "", weights: str = "") -> pd.DataFrame:
    """Read all scores, one row for each number.

    Returns:
        The columns of `ScoreRow`, and `digest` and `folder` of the partition.
    """
    frames = []
    for key in score_keys(store, benchmark, weights):
        manifest = current_manifest(store, BENCHMARK_SCORES, key.partition)
        if manifest is not None:
            frames.append(read_score_rows(store, manifest).assign(digest=manifest.digest, folder=manifest.folder))
    if not frames:
        empty: pd.DataFrame = SCORES_SCHEMA.empty_table().to_pandas().assign(digest="", folder="")
        return empty
    found: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return found


def read_score_rows(store: Store, manifest: Manifest) -> pd.DataFrame:
    """Read the rows of one partition."""
    with store.open(f"{manifest.folder}/{ROWS}") as handle:
        frame: pd.DataFrame = pq.ParquetFile(handle).read().to_pandas()
    return frame
