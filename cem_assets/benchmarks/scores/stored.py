"""Benchmark scores in the store: one partition for each benchmark, weights, parameters and seed.

`benchmarks/scores/<benchmark>/<weights>/<parameter digest>-s<seed>/` is committed like every partition, and its content holds
the rows as `scores.parquet`. No score overwrites another.
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
    """Identifies a score.

    Attributes:
        weights: Name of the weights; several names joined by "+" if their features are fused.
        parameters: The 12 hex digits of `parameters_digest`.
        seed: Seed of the training, or of the random draws.
    """

    benchmark: str
    weights: str
    parameters: str
    seed: int

    @property
    def partition(self) -> str:
        """The path below `benchmarks/scores`."""
        return f"{self.benchmark}/{self.weights}/{self.parameters}-s{self.seed}"


@dataclass(frozen=True)
class ScoreRow:
    """One number of a score.

    Attributes:
        weights_digest: Digest of the weights' manifest.
        release: The release they were trained on, such as "cem/releases/v2"; empty for imported weights.
        release_digest: Digest of the release's manifest.
        parameters: Digest of all parameters except the seed.
        finetune_layer: Shallowest layer that was trained; empty for transfer benchmarks.
        iterations: Training steps; 0 for transfer benchmarks.
        test_set: Name of the test set, such as "test1"; "all" if there is only one.
        metric: "iou", "nsc_accuracy", "nscb_accuracy", "knn_accuracy", ...
        class_name: Name of the class that was scored; empty for the mean over classes.
        value: The score, 0 to 1.
        low, high: Bounds of the 95 % confidence interval; equal to the value if there is none.
        num: Number of images, treatments or cells that were scored.
        is_main: Whether this number represents the score on the leaderboard.
        code_version: Code version of the asset.
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
    """Hash all parameters except the seed to 12 hex digits; the values must be JSON values."""
    kept = {name: value for name, value in parameters.items() if name != "seed"}
    return hashlib.sha256(canonical_json(kept)).hexdigest()[:_DIGITS]


def rows_bytes(rows: Sequence[ScoreRow]) -> bytes:
    """Write rows as Parquet in this order."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCORES_SCHEMA)
    return parquet_bytes([table], SCORES_SCHEMA)


def score_keys(store: Store, benchmark: str = "", weights: str = "") -> Iterator[ScoreKey]:
    """List the scores that are committed, in order of benchmark, weights and parameters.

    Args:
        benchmark: Takes only scores on this benchmark; empty takes all.
        weights: Takes only scores of these weights; empty takes all.
    """
    for name in [benchmark] if benchmark else store.children(BENCHMARK_SCORES):
        for which in [weights] if weights else store.children(f"{BENCHMARK_SCORES}/{name}"):
            for run in store.children(f"{BENCHMARK_SCORES}/{name}/{which}"):
                parameters, separator, seed = run.partition("-s")
                folder = f"{BENCHMARK_SCORES}/{name}/{which}/{run}"
                if separator and seed.isdecimal() and store.children(f"{folder}/{MANIFESTS}"):
                    yield ScoreKey(name, which, parameters, int(seed))


def read_scores(store: Store, benchmark: str = "", weights: str = "") -> pd.DataFrame:
    """Read scores, one row for each number; see `score_keys` for the arguments.

    Returns:
        The columns of `ScoreRow`, and `digest` and `folder` of the partition's manifest.
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
