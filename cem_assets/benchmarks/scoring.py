"""Stage `benchmarks/scores`: how good weights are at a benchmark, for both tasks.

`cem_assets.benchmarks.segmentation.stage` and `cem_assets.benchmarks.transfer.stage` do the work. Every score is a partition
whose name holds everything that decides its number (`cem_assets.benchmarks.scores.stored.ScoreKey`), so no score overwrites
another. The leaderboard compares them.
"""

from collections.abc import Callable, Mapping

from cem_assets.benchmarks.rows import require_benchmark
from cem_assets.benchmarks.scores.inputs import ALL, GIVEN, BenchmarkScoreParams
from cem_assets.benchmarks.scores.stored import ScoreKey
from cem_assets.benchmarks.segmentation.plan import SegmentationPlan, plan_segmentation
from cem_assets.benchmarks.segmentation.stage import score_segmentation
from cem_assets.benchmarks.transfer.plan import TransferPlan, plan_transfer
from cem_assets.benchmarks.transfer.stage import score_features
from cem_assets.catalog.benchmarks import SegmentationBenchmark
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store

__all__ = ["GIVEN", "BenchmarkScoreParams", "plan_score", "run_folder", "score_benchmark", "score_key", "score_lines"]


def plan_score(
    store: Store, benchmark: str, weights: str, params: BenchmarkScoreParams | None = None
) -> SegmentationPlan | TransferPlan:
    """Look up everything that a score depends on, before anything is computed; see `score_benchmark`."""
    row = require_benchmark(store, benchmark)
    asked = params or BenchmarkScoreParams()
    if isinstance(row, SegmentationBenchmark):
        return plan_segmentation(store, row, weights, asked)
    return plan_transfer(store, row, weights, asked)


def score_key(store: Store, benchmark: str, weights: str, params: BenchmarkScoreParams | None = None) -> ScoreKey:
    """Name the partition of a score; see `score_benchmark`."""
    return plan_score(store, benchmark, weights, params).key


def run_folder(store: Store, benchmark: str, weights: str, params: BenchmarkScoreParams | None = None) -> str:
    """Name the folder in which a segmentation score keeps the state of its training; empty for a transfer benchmark.

    `cem_assets.pretraining.training.runs` reads the status in it, and can request a stop.
    """
    plan = plan_score(store, benchmark, weights, params)
    return plan.folder if isinstance(plan, SegmentationPlan) else ""


def score_benchmark(
    store: Store,
    benchmark: str,
    weights: str,
    params: BenchmarkScoreParams | None = None,
    run_id: str = "",
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] | None = None,
    tags: Mapping[str, str] | None = None,
) -> StageResult:
    """Score weights on a benchmark once.

    Args:
        weights: Name of committed weights. For a transfer benchmark also several names joined by "+", whose features are
            fused. `GIVEN` for a benchmark that is a table of features.
        params: None takes the benchmark's own parameters.
        should_stop: Called regularly; the work stops when it returns True.
        tags: Additional tags of the MLflow run of a training.

    Returns:
        The committed partition of `benchmarks/scores`, with `scores.parquet`, `results.json` and pictures. Its details hold
        the rows in plain values, and under `main` the row for the leaderboard.

    Raises:
        UnknownNameError: There is no such benchmark.
        FileNotFoundError: The benchmark or the weights are not committed; the error says what to materialize.
        DataError: Parameters are unknown or not valid, weights and benchmark do not fit each other, or a loss is not finite.
        InterruptedError: `should_stop` returned True. The state is kept, and the same call continues from it.
    """
    plan = plan_score(store, benchmark, weights, params)
    if isinstance(plan, SegmentationPlan):
        return score_segmentation(store, plan, run_id, progress, should_stop, tags)
    return score_features(store, plan, run_id, progress, should_stop)


def score_lines(manifest: Manifest) -> list[str]:
    """Describe a partition of `benchmarks/scores` in a few lines, the main number first."""
    benchmark, weights, run = manifest.inputs.partition.split("/")
    lines = [f"{benchmark}, {weights} ({run})"]
    for row in sorted(manifest.details["rows"], key=lambda row: not row["is_main"]):
        of = ", ".join(text for text in (row["test_set"] if row["test_set"] != ALL else "", row["class_name"]) if text)
        value = "no score" if row["value"] is None else f"{100 * row['value']:.2f} %"
        if row["value"] is not None and row["low"] != row["high"]:
            value += f" ({100 * row['low']:.2f} to {100 * row['high']:.2f})"
        lines.append(f"  {row['metric']}{f' of {of}' if of else ''}: {value}, {row['num']:,} scored")
    steps = (manifest.details.get("steps_to_share") or {}).get("steps")
    if steps is not None:
        lines.append(f"  {100 * manifest.details['steps_to_share']['share']:.0f} % of its best after {steps:,} steps")
    return lines
