"""Stage `benchmarks/scores` for transfer benchmarks: nearest neighbours of features, kept or given, and of fused weights.

The benchmark's `params` name a protocol and change its recipe; features are `cem_assets.benchmarks.transfer.features_stage`,
recipes
and accuracies `cem_assets.benchmarks.transfer.recipes`. The entry is `cem_assets.benchmarks.scores.entry`.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from cem_assets.benchmarks.data.transfer_sets import PreparedTransfer, open_transfer
from cem_assets.benchmarks.scores.inputs import (
    ALL,
    GIVEN,
    RowMaker,
    ScoredWeights,
    ScoreParams,
    find_weights,
    finite,
    in_words,
    main_of,
    plain_row,
)
from cem_assets.benchmarks.scores.pictures import confusion_png, feature_map_png
from cem_assets.benchmarks.scores.stored import ROWS, ScoreKey, ScoreRow, parameters_digest, rows_bytes
from cem_assets.benchmarks.transfer.features_stage import FeatureSettings, extract_benchmark_features, read_benchmark_features
from cem_assets.benchmarks.transfer.profiles import fuse
from cem_assets.benchmarks.transfer.recipes import FeatureTable, KnnRecipe, LeaveOneOutRecipe, NscRecipe, Score, score_transfer
from cem_assets.catalog.benchmarks import TransferBenchmark
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_FEATURES, BENCHMARK_SCORES, CODE_VERSIONS
from cem_assets.store.commits import Commit, installed_versions
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import Metric
from cem_assets.tracking.runs import open_tracked_run

RESULTS = "results.json"
FUSED = "+"
CONTROL = "(control)"
"""Compound of the rows that a benchmark marks as controls, as recipes see it."""
PROTOCOLS: dict[str, type[NscRecipe] | type[KnnRecipe] | type[LeaveOneOutRecipe]] = {
    "treatments": NscRecipe,
    "train_and_test": KnnRecipe,
    "leave_one_out": LeaveOneOutRecipe,
}
"""Protocols of the catalogue. "treatments" with the exclusion "compound_and_batch" scores that way as well (NSCB)."""
_EXCLUSIONS = ("compound", "compound_and_batch")
_FIXED = ("name", "kind", "control")

Recipe = NscRecipe | KnnRecipe | LeaveOneOutRecipe


@dataclass(frozen=True)
class TransferPlan:
    """One score, made definite.

    Attributes:
        benchmark: Prepared.
        weights: One, several to be fused, or none for given features.
        settings: How images become features; None for given ones.
        recipe: What is done with them.
        asked: What the user gave.
        key: Of the partition.
    """

    benchmark: PreparedTransfer
    weights: tuple[ScoredWeights, ...]
    settings: FeatureSettings | None
    recipe: Recipe
    asked: ScoreParams
    key: ScoreKey


def plan_transfer(store: Store, row: TransferBenchmark, weights: str, asked: ScoreParams) -> TransferPlan:
    """Make a score definite, before anything is computed.

    Raises:
        FileNotFoundError: Benchmark or weights are not committed; the error says what to materialize.
        DataError: Parameters are unknown or make no sense, or the weights do not fit the benchmark.
    """
    benchmark = open_transfer(store, row.name)
    settings, recipe = parse_params(row, asked.params)
    names = weights.split(FUSED)
    if bool(benchmark.feature_names) != (weights == GIVEN):
        what, wanted = (
            ("a table of features", f'expected "{GIVEN}"') if benchmark.feature_names else ("images", "expected weights")
        )
        raise DataError(f"benchmark {row.name!r} holds {what}; {wanted}, found {weights!r}.")
    if len(set(names)) != len(names) or not all(names):
        raise DataError(f'weights are {weights!r}; expected one name, or different names joined by "{FUSED}".')
    found = () if weights == GIVEN else tuple(find_weights(store, name) for name in names)
    used = settings if found else None
    parameters = parameters_digest(_parameters(used, recipe))
    return TransferPlan(benchmark, found, used, recipe, asked, ScoreKey(row.name, weights, parameters, asked.seed))


def parse_params(row: TransferBenchmark, changes: Mapping[str, Any]) -> tuple[FeatureSettings, Recipe]:
    """Read the parameters of a transfer benchmark: those of its row, changed by others.

    Args:
        row: `params` names `protocol`; the rest are fields of that recipe (`num_neighbours` is `k`), `exclusions` for
            "treatments", and fields of `FeatureSettings`.
        changes: Likewise.

    Raises:
        DataError: A name is unknown, or a value makes no sense; all are named.
    """
    what = f"parameters of benchmark {row.name!r}"
    merged: dict[str, Any] = {}
    for values in (row.params, changes):
        if "k" in values and "num_neighbours" in values:
            raise DataError(f"{what} name k and num_neighbours, which are the same; expected one of them.")
        merged |= {("k" if name == "num_neighbours" else name): value for name, value in values.items()}
    protocol, exclusions = merged.pop("protocol", None), merged.pop("exclusions", ())
    kind = PROTOCOLS.get(protocol) if isinstance(protocol, str) else None
    if kind is None:
        raise DataError(f"{what}: protocol is {protocol!r}; expected one of {', '.join(PROTOCOLS)}.")
    if not isinstance(exclusions, list | tuple) or any(one not in _EXCLUSIONS for one in exclusions):
        raise DataError(f"{what}: exclusions are {exclusions!r}; expected some of {', '.join(_EXCLUSIONS)}.")
    of_features = {name: merged.pop(name) for name in FeatureSettings.model_fields if name in merged}
    if kind is NscRecipe:
        if (k := merged.pop("k", 1)) != 1:
            raise DataError(f"{what}: k is {k!r}; treatments are compared with their nearest one, expected 1.")
        batch = {"batch": "batch"} if "compound_and_batch" in exclusions else {}
        merged = {"label": "label", "control": CONTROL if row.has_controls else None, **batch, **_checked(merged, kind, what)}
    else:
        merged = _checked(merged, kind, what)
    try:
        return FeatureSettings.model_validate(of_features), kind.model_validate({"name": row.name, **merged})
    except ValidationError as error:
        raise in_words(error, what) from error


def _checked(values: dict[str, Any], kind: type[BaseModel], what: str) -> dict[str, Any]:
    known = [name for name in kind.model_fields if name not in _FIXED]
    if unknown := sorted(set(values) - set(known)):
        features = ", ".join(FeatureSettings.model_fields)
        raise DataError(f"{what}: {', '.join(unknown)} unknown; expected some of {', '.join(known)}; or of {features}.")
    return values


def _parameters(settings: FeatureSettings | None, recipe: Recipe) -> dict[str, Any]:
    features = settings.model_dump(mode="json") if settings else {}
    return {"task": "transfer", "features": features, "recipe": recipe.model_dump(mode="json", exclude={"name"})}


def score_features(
    store: Store,
    plan: TransferPlan,
    run_id: str = "",
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] | None = None,
) -> StageResult:
    """Score features, extracting them where they are not kept yet.

    Args:
        progress: Called with (images done, in all) while features are extracted.
        should_stop: Asked now and then while features are extracted.

    Returns:
        The committed partition of `benchmarks/scores`.

    Raises:
        DataError: The recipe does not fit the benchmark's rows, or features are unusable.
        InterruptedError: A stop was wanted; features so far are kept.
    """
    started = time.monotonic()
    benchmark, asked = plan.benchmark, plan.asked
    extracted = [
        extract_benchmark_features(
            store, benchmark.name, one.name, plan.settings, run_id, progress, should_stop, device=asked.device
        ).manifest
        for one in plan.weights
    ]
    upstream = {f"{BENCHMARK_DATA}/{benchmark.name}": benchmark.manifest.digest}
    for one, kept in zip(plan.weights, extracted, strict=True):
        upstream |= {**one.upstream, f"{BENCHMARK_FEATURES}/{kept.inputs.partition}": kept.digest}
    shown = {"max_pictures": asked.max_pictures, "has_map": asked.has_map}
    parameters = {**_parameters(plan.settings, plan.recipe), "seed": asked.seed, "shown": shown}
    inputs = Inputs(BENCHMARK_SCORES, plan.key.partition, CODE_VERSIONS[BENCHMARK_SCORES], parameters, upstream)
    commit = Commit(store, inputs, run_id)
    if commit.up_to_date:
        return StageResult(commit.up_to_date, False, time.monotonic() - started)
    table = _table(benchmark, [read_benchmark_features(store, kept) for kept in extracted])
    try:
        scores = score_transfer(plan.recipe, table)
    except ValueError as error:
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
        "parameters": _parameters(plan.settings, plan.recipe),
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
    manifest = commit.finish(counts, details, installed_versions("umap-learn"))
    _track(store, plan, manifest, parameters, rows, pictures)
    return StageResult(manifest, True, time.monotonic() - started)


def _track(
    store: Store,
    plan: TransferPlan,
    manifest: Manifest,
    parameters: Mapping[str, Any],
    rows: Sequence[ScoreRow],
    pictures: Mapping[str, bytes],
) -> None:
    """Tell MLflow, through the outbox: one run for each score."""
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
    """Turn nested parameters into flat ones, names joined by dots."""
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
    """Give all controls one compound, whatever column the benchmark tells them by."""
    return metadata.assign(compound=metadata["compound"].where(~metadata["is_control"].astype(bool), CONTROL))


def _rows(maker: RowMaker, scores: Sequence[Score]) -> list[ScoreRow]:
    """Make a row for every score; of several test sets their mean is the main one."""
    rows = []
    for number, one in enumerate(scores):
        metric, _, test_set = one.metric.partition(" ")
        is_main = number == 0 and (len(scores) == 1 or not test_set)
        row = maker.row(metric, one.value, one.num, test_set=test_set or ALL, interval=one.interval, is_main=is_main)
        rows.append(row)
    if not any(row.is_main for row in rows):
        # Test sets are drawn apart, so the variances of their accuracies add up.
        interval = math.sqrt(sum(one.interval**2 for one in scores)) / len(scores)
        mean, num = sum(one.value for one in scores) / len(scores), sum(one.num for one in scores)
        rows.insert(0, maker.row(rows[0].metric, mean, num, interval=interval, is_main=True))
    return rows


def _pictures(plan: TransferPlan, table: FeatureTable, scores: Sequence[Score]) -> dict[str, bytes]:
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
