"""Stage `benchmarks/scores` for transfer benchmarks: nearest neighbours of features, extracted or given, also of fused weights.

`cem_assets.benchmarks.transfer.plan` says what exactly is scored.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from cem_assets.benchmarks.data.transfer_sets import PreparedTransfer
from cem_assets.benchmarks.scores.inputs import ALL, RowMaker, finite, main_of, plain_row
from cem_assets.benchmarks.scores.stored import ROWS, ScoreRow, rows_bytes
from cem_assets.benchmarks.transfer.features.stage import extract_benchmark_features, read_benchmark_features
from cem_assets.benchmarks.transfer.plan import CONTROL, TransferPlan
from cem_assets.benchmarks.transfer.profiles import fuse
from cem_assets.benchmarks.transfer.scoring import FeatureTable, Score, score_transfer
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_FEATURES, BENCHMARK_SCORES, CODE_VERSIONS
from cem_assets.store.commits import installed_versions
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import Metric
from cem_assets.tracking.runs import open_tracked_run

RESULTS = "results.json"


def score_features(
    store: Store,
    plan: TransferPlan,
    run_id: str = "",
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] | None = None,
) -> StageResult:
    """Score features, and extract them first if the store does not have them.

    Args:
        progress: Counts images while features are extracted.
        should_stop: Called regularly while features are extracted; the work stops when it returns True.

    Returns:
        The committed partition of `benchmarks/scores`.

    Raises:
        DataError: The recipe does not fit the benchmark's rows, or features are not usable.
        InterruptedError: `should_stop` returned True; the features so far are kept.
    """
    started = time.monotonic()
    benchmark, asked = plan.benchmark, plan.asked
    extracted = [
        extract_benchmark_features(
            store, benchmark, one, plan.settings, run_id, progress, should_stop, device=asked.device
        ).manifest
        for one in plan.weights
    ]
    upstream = {f"{BENCHMARK_DATA}/{benchmark.name}": benchmark.manifest.digest}
    for one, kept in zip(plan.weights, extracted, strict=True):
        upstream |= {**one.upstream, f"{BENCHMARK_FEATURES}/{kept.inputs.partition}": kept.digest}
    shown = {"max_pictures": asked.max_pictures, "has_map": asked.has_map}
    parameters = {**plan.parameters, "seed": asked.seed, "shown": shown}
    inputs = Inputs(BENCHMARK_SCORES, plan.key.partition, CODE_VERSIONS[BENCHMARK_SCORES], parameters, upstream)
    stage = begin(store, inputs, run_id, started)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    table = _table(benchmark, [read_benchmark_features(store, kept) for kept in extracted])
    try:
        scores = score_transfer(plan.recipe, table)
    except DataError as error:
        raise DataError(f"benchmark {benchmark.name!r}, weights {plan.key.weights!r}: {error}") from error
    rows = _rows(RowMaker(plan.key, plan.weights), scores)
    commit.write(ROWS, rows_bytes(rows))
    pictures = _pictures(plan, table, scores)
    for name, data in pictures.items():
        commit.write(name, data)
    results = {
        "benchmark": plan.key.benchmark,
        "weights": plan.key.weights,
        "seed": asked.seed,
        "parameters": plan.parameters,
        "scores": [
            {"metric": one.metric, "value": one.value, "interval": one.interval, "num": one.num, **one.details}
            for one in scores
        ],
    }
    commit.write(RESULTS, json.dumps(finite(results), indent=1, ensure_ascii=False).encode())
    details = {
        "task": "transfer",
        "title": str(benchmark.manifest.details.get("title", "")),
        "main": main_of(rows),
        "rows": [plain_row(row) for row in rows],
    }
    counts = {"rows": len(rows), "images": len(table.metadata), "pictures": len(pictures)}
    result = stage.finish(counts, details, installed_versions("umap-learn"))
    _track(store, plan, result.manifest, parameters, rows, pictures)
    return result


def _track(
    store: Store,
    plan: TransferPlan,
    manifest: Manifest,
    parameters: Mapping[str, Any],
    rows: Sequence[ScoreRow],
    pictures: Mapping[str, bytes],
) -> None:
    """Report the score to MLflow in its own run, through the outbox."""
    key = plan.key
    tags = {
        "cem_assets.benchmark": key.benchmark,
        "cem_assets.weights": key.weights,
        "partition": key.partition,
        "digest": manifest.digest,
    }
    run = open_tracked_run(store, manifest.digest, f"benchmarks/{key.benchmark}", key.weights, flattened(parameters), tags)
    with run:
        means = [row for row in rows if not row.class_name]
        values = {row.metric if row.test_set == ALL else f"{row.metric}_{row.test_set}": row.value for row in means}
        run.log_metrics([Metric(name, value, 0) for name, value in sorted(values.items())])
        for name, data in pictures.items():
            run.log_artifact(name, data)
        run.finish("FINISHED")


def flattened(parameters: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Turn nested parameters into flat ones, with their names joined by dots."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        found |= flattened(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _table(benchmark: PreparedTransfer, extracted: Sequence[tuple[list[str], Any]]) -> FeatureTable:
    if not extracted:
        metadata, given = benchmark.features()
        return FeatureTable(given, _with_controls(metadata), benchmark.feature_names)
    metadata = benchmark.table()
    for names, _ in extracted:
        if names != metadata["name"].tolist():
            raise DataError(
                f"features of benchmark {benchmark.name!r} are of other images than its rows; materialize "
                f"{BENCHMARK_FEATURES} again."
            )
    features = [found for _, found in extracted]
    return FeatureTable(features[0] if len(features) == 1 else fuse(*features), _with_controls(metadata))


def _with_controls(metadata: pd.DataFrame) -> pd.DataFrame:
    """Give all controls the same compound, whichever column of the benchmark marks them."""
    return metadata.assign(compound=metadata["compound"].where(~metadata["is_control"].astype(bool), CONTROL))


def _rows(maker: RowMaker, scores: Sequence[Score]) -> list[ScoreRow]:
    """Make a row for every score; if there are several test sets, add their mean as the main row."""
    rows = []
    for number, one in enumerate(scores):
        metric, _, test_set = one.metric.partition(" ")
        is_main = number == 0 and (len(scores) == 1 or not test_set)
        row = maker.row(metric, one.value, one.num, test_set=test_set or ALL, interval=one.interval, is_main=is_main)
        rows.append(row)
    if not any(row.is_main for row in rows):
        # Test sets are independent samples, so the variances of their accuracies add up.
        interval = math.sqrt(sum(one.interval**2 for one in scores)) / len(scores)
        mean, num = sum(one.value for one in scores) / len(scores), sum(one.num for one in scores)
        rows.insert(0, maker.row(rows[0].metric, mean, num, interval=interval, is_main=True))
    return rows


def _pictures(plan: TransferPlan, table: FeatureTable, scores: Sequence[Score]) -> dict[str, bytes]:
    from cem_assets.benchmarks.scores.pictures import confusion_png
    from cem_assets.benchmarks.transfer.pictures import feature_map_png

    pictures = {}
    for one in scores[: plan.asked.max_pictures]:
        name = f"confusion_{re.sub(r'[^a-zA-Z0-9_-]+', '_', one.metric)}.png"
        title = f"{plan.key.benchmark}, {plan.key.weights}: {one.metric} {100 * one.value:.2f} %"
        pictures[name] = confusion_png(one.confusion(), title)
    if plan.asked.has_map:
        labels = table.metadata[plan.recipe.label].tolist()
        title = f"{plan.key.benchmark}, {plan.key.weights}: features by UMAP"
        pictures["map.png"] = feature_map_png(table.features, labels, plan.asked.seed, title)
    return pictures
