"""Stage `benchmarks/scores`: how good weights are at a benchmark; the entry for both tasks.

Segmentation is `cem_assets.benchmarks.segmentation.stage`, transfer `cem_assets.benchmarks.transfer.stage`. Every score is a
partition of its own (`cem_assets.benchmarks.scores.stored.ScoreKey`), named by everything that decides its number, so nothing
overwrites another; comparing them is the leaderboard.
"""

from collections.abc import Callable, Mapping

from cem_assets.benchmarks.data.rows import require_benchmark
from cem_assets.benchmarks.scores.inputs import ALL, GIVEN, ScoreParams
from cem_assets.benchmarks.scores.stored import ScoreKey
from cem_assets.benchmarks.segmentation.plan import SegmentationPlan, plan_segmentation
from cem_assets.benchmarks.segmentation.stage import score_segmentation
from cem_assets.benchmarks.transfer.stage import TransferPlan, plan_transfer, score_features
from cem_assets.catalog.benchmarks import SegmentationBenchmark
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store

__all__ = ["GIVEN", "ScoreParams", "plan_score", "run_folder", "score_benchmark", "score_key", "score_lines"]


def plan_score(
    store: Store, benchmark: str, weights: str, params: ScoreParams | None = None
) -> SegmentationPlan | TransferPlan:
    """Make a score definite, before anything is computed; arguments and errors are those of `score_benchmark`."""
    row = require_benchmark(store, benchmark)
    asked = params or ScoreParams()
    if isinstance(row, SegmentationBenchmark):
        return plan_segmentation(store, row, weights, asked)
    return plan_transfer(store, row, weights, asked)


def score_key(store: Store, benchmark: str, weights: str, params: ScoreParams | None = None) -> ScoreKey:
    """Name the partition of a score; arguments and errors are those of `score_benchmark`."""
    return plan_score(store, benchmark, weights, params).key


def run_folder(store: Store, benchmark: str, weights: str, params: ScoreParams | None = None) -> str:
    """Name the folder where a segmentation score keeps the state of its training; empty for transfer.

    `cem_assets.pretraining.training.runs` reads its status and asks it to stop.
    """
    plan = plan_score(store, benchmark, weights, params)
    return plan.folder if isinstance(plan, SegmentationPlan) else ""


def score_benchmark(
    store: Store,
    benchmark: str,
    weights: str,
    params: ScoreParams | None = None,
    run_id: str = "",
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] | None = None,
    tags: Mapping[str, str] | None = None,
) -> StageResult:
    """Score weights on a benchmark once.

    Args:
        weights: Name of committed weights; two or more joined by "+", whose features are fused (transfer alone); or
            `GIVEN` for a benchmark that is a table of features.
        params: How; None for the benchmark's own.
        should_stop: Asked now and then; see Raises.
        tags: More tags of the MLflow run of a training.

    Returns:
        The committed partition of `benchmarks/scores`: `scores.parquet`, `results.json`, pictures, and in its details the
        rows in plain values, `main` the one of the leaderboard.

    Raises:
        KeyError: There is no such benchmark.
        FileNotFoundError: Benchmark or weights are not committed; the error says what to materialize.
        ValueError: Parameters are unknown or make no sense, or weights and benchmark do not fit each other.
        RuntimeError: A loss is not finite.
        InterruptedError: A stop was wanted; the state is kept, and the same call goes on from it.
    """
    plan = plan_score(store, benchmark, weights, params)
    if isinstance(plan, SegmentationPlan):
        return score_segmentation(store, plan, run_id, progress, should_stop, tags)
    return score_features(store, plan, run_id, progress, should_stop)


def score_lines(manifest: Manifest) -> list[str]:
    """Say in a few lines what a score is, the main number first.

    Args:
        manifest: Of a partition of `benchmarks/scores`.
    """
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
