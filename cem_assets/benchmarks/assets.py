"""Benchmarks as Dagster assets: their data, the scores of weights on them, the leaderboard, the gate."""

from pathlib import Path
from typing import Any

import dagster as dg

from cem_assets.benchmarks.contamination.stage import check_contamination
from cem_assets.benchmarks.data.previews import benchmark_pictures
from cem_assets.benchmarks.data.rows import require_benchmark
from cem_assets.benchmarks.data.stage import prepare_benchmark
from cem_assets.benchmarks.leaderboard.promotion import promote
from cem_assets.benchmarks.leaderboard.stage import make_leaderboard
from cem_assets.benchmarks.scores.entry import score_benchmark, score_lines
from cem_assets.benchmarks.scores.inputs import ScoreParams
from cem_assets.cem.assets import GPU_POOL
from cem_assets.execution.interruptions import signals_as_wish
from cem_assets.execution.stage import StageResult
from cem_assets.platform.partitions import benchmark_rows, scored_pairs
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, picture, progress_of
from cem_assets.store.assets import (
    BENCHMARK_DATA,
    BENCHMARK_SCORES,
    CODE_VERSIONS,
    CONTAMINATION,
    CYTO_RELEASES,
    LEADERBOARD,
    PROMOTIONS,
    RELEASES,
    WEIGHTS,
)
from cem_assets.store.store import Store

_MAX_CARD = 60_000
"""Characters of Markdown shown with a materialization."""


class BenchmarkDataConfig(dg.Config):
    """Where the files of a benchmark are.

    Attributes:
        folder: A folder on the machine that runs this; empty looks in the store, then in CEM_ASSETS_BENCHMARKS_FOLDER.
    """

    folder: str = ""


class ScoreConfig(dg.Config, ScoreParams):
    """How weights are scored; see `ScoreParams`."""


class ContaminationConfig(dg.Config):
    """Which release is compared with the benchmarks' test images.

    Attributes:
        dataset: "cem" or "cytoimagenet".
        version: Of the release; empty takes the newest.
    """

    dataset: str = "cem"
    version: str = ""


class PromotionConfig(dg.Config):
    """Which weights shall become champion.

    Attributes:
        weights: Their name.
        reason: Overrides the gate, and is recorded; empty lets the gate decide.
    """

    weights: str
    reason: str = ""


def _asset(name: str, *deps: str, **more: Any) -> dict[str, Any]:
    return {
        "key": name.split("/"),
        "group_name": "benchmarks",
        "deps": [dep.split("/") for dep in deps],
        "code_version": CODE_VERSIONS[name],
        **more,
    }


def _with_files(store: Store, result: StageResult, described: dg.MaterializeResult[Any]) -> dg.MaterializeResult[Any]:
    """Show the card and the pictures that a stage wrote."""
    extra: dict[str, Any] = {}
    for item in result.manifest.objects:
        key = f"{result.manifest.folder}/{item.name}"
        if item.name == "README.md":
            extra["card"] = dg.MetadataValue.md(store.read(key).decode().split("---\n", 2)[-1][:_MAX_CARD])
        elif item.name.endswith(".png") and "/" not in item.name:
            extra[item.name.removesuffix(".png")] = picture(store.read(key))
    return described._replace(metadata={**(described.metadata or {}), **extra})


@dg.asset(**_asset(BENCHMARK_DATA, partitions_def=benchmark_rows, kinds={"zarr", "parquet"}))
def benchmark_data(
    context: dg.AssetExecutionContext, config: BenchmarkDataConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """The images and labels of a benchmark, prepared once by named steps.

    From its published files, or from your own folder of train, valid and test images with masks of equal names: put it
    into the store under `benchmarks/inbox/<name>/`, or name it here. Files that cannot be used are told; the rest goes on.
    """
    opened = store.open()
    with explained(context):
        row = require_benchmark(opened, context.partition_key)
        folder = Path(config.folder) if config.folder else None
        result = prepare_benchmark(opened, row, folder, context.run_id, progress_of(context, "items"))
        pictures = benchmark_pictures(opened, result.manifest)
    described = materialized(opened, result, pictures)
    extra: dict[str, Any] = {"licence": row.licence, "citation": row.citation}
    if rejections := result.manifest.details.get("rejections"):
        extra["left out"] = dg.MetadataValue.json(rejections)
    return described._replace(metadata={**(described.metadata or {}), **extra})


@dg.asset(
    **_asset(BENCHMARK_SCORES, BENCHMARK_DATA, WEIGHTS, partitions_def=scored_pairs, kinds={"pytorch", "mlflow"}, pool=GPU_POOL)
)
def benchmark_scores(context: dg.AssetExecutionContext, config: ScoreConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """How good weights are on a benchmark: one number, its parts, and pictures of where it goes wrong.

    Segmentation trains a U-Net on the weights and scores its predictions (IoU); transfer takes features as they are and
    asks nearest neighbours. Seed, iterations and opened layers are part of what is stored: no score overwrites another.
    """
    opened = store.open()
    # A run launched with the tag of the whole key alone knows it as plain text.
    keys = scored_pairs.get_partition_key_from_str(str(context.partition_key)).keys_by_dimension
    with explained(context), signals_as_wish() as wish:
        try:
            result = score_benchmark(
                opened,
                keys["benchmark"],
                keys["weights"],
                ScoreParams(**config.model_dump(include=set(ScoreParams.model_fields))),
                context.run_id,
                progress_of(context, "steps"),
                should_stop=wish,
                tags={"dagster_run": context.run_id},
            )
        except InterruptedError as error:
            raise dg.DagsterExecutionInterruptedError(str(error)) from error
    described = _with_files(opened, result, materialized(opened, result, {}))
    main = result.manifest.details["main"]
    extra: dict[str, Any] = {"scores": dg.MetadataValue.md("\n".join(f"    {line}" for line in score_lines(result.manifest)))}
    if main.get("value") is not None:
        extra["score"] = dg.MetadataValue.float(float(main["value"]))
    return described._replace(metadata={**(described.metadata or {}), **extra})


@dg.asset(**_asset(LEADERBOARD, BENCHMARK_SCORES, kinds={"pandas"}))
def leaderboard(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[Any]:
    """All scores side by side: mean and spread over seeds, ranks, published figures marked as such, what changed.

    One table and one picture for each benchmark. Scores are compared only where iterations and opened layers agree.
    """
    opened = store.open()
    with explained(context):
        result = make_leaderboard(opened, context.run_id, progress_of(context, "benchmarks drawn"))
    return _with_files(opened, result, materialized(opened, result, {}))


@dg.asset(**_asset(CONTAMINATION, RELEASES, CYTO_RELEASES, BENCHMARK_DATA, kinds={"parquet"}))
def contamination(
    context: dg.AssetExecutionContext, config: ContaminationConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """Whether a release holds what test images of the prepared benchmarks show, turned, flipped, cropped or re-encoded.

    Weights trained on such a release would be scored on what they have seen. Pairs are shown as pictures; `cem/releases`
    can be made without the patches (`exclude_contaminated`), and training refuses a release that was found to hold them.
    """
    opened = store.open()
    with explained(context):
        result = check_contamination(
            opened, config.dataset, config.version, context.run_id, progress_of(context, "tables of fingerprints")
        )
    return _with_files(opened, result, materialized(opened, result, {}, ("patches", result.manifest.counts["patches"])))


@dg.asset(**_asset(PROMOTIONS, LEADERBOARD, WEIGHTS, kinds={"mlflow"}))
def promotions(context: dg.AssetExecutionContext, config: PromotionConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """The gate: weights become champion where no gated benchmark fell by more than its tolerance.

    Every verdict is kept with its reasons, benchmark by benchmark. A person may override it with a reason, which is kept as
    well. The champion's version in the MLflow registry carries the alias `champion`.
    """
    opened = store.open()
    with explained(context):
        result = promote(opened, config.weights, config.reason, context.run_id)
    return _with_files(opened, result, materialized(opened, result, {}))


BENCHMARK_ASSETS = [benchmark_data, benchmark_scores, leaderboard, contamination, promotions]
