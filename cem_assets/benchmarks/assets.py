"""Benchmarks as Dagster assets: their data, the scores of weights on them, the leaderboard, the gate for promotion."""

from pathlib import Path
from typing import Any

import dagster as dg

from cem_assets.benchmarks.contamination.stage import check_contamination
from cem_assets.benchmarks.data.previews import benchmark_pictures
from cem_assets.benchmarks.data.stage import prepare_benchmark
from cem_assets.benchmarks.leaderboard.promotion import promote
from cem_assets.benchmarks.leaderboard.stage import make_leaderboard
from cem_assets.benchmarks.rows import require_benchmark
from cem_assets.benchmarks.scores.inputs import BenchmarkScoreParams
from cem_assets.benchmarks.scoring import score_benchmark, score_lines
from cem_assets.execution.interruptions import signals_as_wish
from cem_assets.platform.assets import GPU_POOL, asset
from cem_assets.platform.partitions import benchmark_rows, scored_pairs
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import card, explained, materialized, picture, progress_of
from cem_assets.store.assets import (
    BENCHMARK_DATA,
    BENCHMARK_SCORES,
    CONTAMINATION,
    CYTO_RELEASES,
    LEADERBOARD,
    PROMOTIONS,
    RELEASES,
    WEIGHTS,
)
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store


class BenchmarkDataConfig(dg.Config):
    """Where the files of a benchmark are.

    Attributes:
        folder: A folder on the machine that runs this; empty looks in the store, then in CEM_ASSETS_BENCHMARKS_FOLDER.
    """

    folder: str = ""


class ScoreConfig(dg.Config, BenchmarkScoreParams):
    """How weights are scored; see `BenchmarkScoreParams`."""


class ContaminationConfig(dg.Config):
    """Which release is compared with the test images of the benchmarks.

    Attributes:
        dataset: "cem" or "cytoimagenet".
        version: Version of the release; if empty, the newest.
    """

    dataset: str = "cem"
    version: str = ""


class PromotionConfig(dg.Config):
    """Which weights should become champion.

    Attributes:
        weights: Their name.
        reason: Overrides the gate, and is recorded; empty lets the gate decide.
    """

    weights: str
    reason: str = ""


def _shown_files(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Make metadata of the card and the pictures that a stage wrote."""
    shown: dict[str, Any] = {}
    for item in manifest.objects:
        key = f"{manifest.folder}/{item.name}"
        if item.name == "README.md":
            shown["card"] = card(store.read(key).decode())
        elif item.name.endswith(".png") and "/" not in item.name:
            shown[item.name.removesuffix(".png")] = picture(store.read(key))
    return shown


@asset(BENCHMARK_DATA, kinds={"zarr", "parquet"}, partitions=benchmark_rows)
def benchmark_data(
    context: dg.AssetExecutionContext, config: BenchmarkDataConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """The images and labels of a benchmark, prepared once by named steps.

    They come from the benchmark's published files, or from a folder of your own that holds images for training,
    validation and testing, and masks with the same names. Put the folder into the store under
    `benchmarks/inbox/<name>/`, or give its path in the configuration. Files that cannot be used are listed with the
    reason; all others are prepared.
    """
    opened = store.open()
    with explained(context):
        row = require_benchmark(opened, context.partition_key)
        folder = Path(config.folder) if config.folder else None
        result = prepare_benchmark(opened, row, folder, context.run_id, progress_of(context, "items"))
        pictures = benchmark_pictures(opened, result.manifest)
    extra: dict[str, Any] = {"licence": row.licence, "citation": row.citation}
    if rejections := result.manifest.details.get("rejections"):
        extra["left out"] = dg.MetadataValue.json(rejections)
    return materialized(opened, result, pictures, extra=extra)


@asset(BENCHMARK_SCORES, BENCHMARK_DATA, WEIGHTS, kinds={"pytorch", "mlflow"}, partitions=scored_pairs, pool=GPU_POOL)
def benchmark_scores(context: dg.AssetExecutionContext, config: ScoreConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """How good weights are on a benchmark: one number, the numbers behind it, and pictures of the errors.

    For segmentation a U-Net is trained over the weights, and its predictions are scored (IoU). For transfer benchmarks
    the features are used as they are, and nearest neighbours decide. The seed, the iterations and the layers that are
    trained are part of what is stored, so no score overwrites another.
    """
    opened = store.open()
    # In a run that was launched with the tag of the whole key only, the partition key is plain text.
    keys = scored_pairs.get_partition_key_from_str(str(context.partition_key)).keys_by_dimension
    with explained(context), signals_as_wish() as wish:
        try:
            result = score_benchmark(
                opened,
                keys["benchmark"],
                keys["weights"],
                config,
                context.run_id,
                progress_of(context, "steps"),
                should_stop=wish,
                tags={"dagster_run": context.run_id},
            )
        except InterruptedError as error:
            raise dg.DagsterExecutionInterruptedError(str(error)) from error
        extra = _shown_files(opened, result.manifest)
    extra["scores"] = dg.MetadataValue.md("\n".join(f"    {line}" for line in score_lines(result.manifest)))
    main = result.manifest.details["main"]
    if main.get("value") is not None:
        extra["score"] = dg.MetadataValue.float(float(main["value"]))
    return materialized(opened, result, extra=extra)


@asset(LEADERBOARD, BENCHMARK_SCORES, kinds={"pandas"})
def leaderboard(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[Any]:
    """All scores side by side: mean and spread over seeds, ranks, published figures marked as such, what changed.

    There is one table, and one picture for each benchmark. Scores are compared only where the iterations and the layers
    that were trained are the same.
    """
    opened = store.open()
    with explained(context):
        result = make_leaderboard(opened, context.run_id, progress_of(context, "benchmarks drawn"))
        extra = _shown_files(opened, result.manifest)
    return materialized(opened, result, extra=extra)


@asset(CONTAMINATION, RELEASES, CYTO_RELEASES, BENCHMARK_DATA, kinds={"parquet"})
def contamination(
    context: dg.AssetExecutionContext, config: ContaminationConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """Whether a release holds what test images of the prepared benchmarks show, turned, flipped, cropped or re-encoded.

    Weights trained on such a release would be scored on images they have seen. The pairs that were found are shown as
    pictures. `cem/releases` can be made without these patches (`exclude_contaminated`), and training refuses a release
    that was found to hold them.
    """
    opened = store.open()
    with explained(context):
        progress = progress_of(context, "tables of fingerprints")
        result = check_contamination(opened, config.dataset, config.version, context.run_id, progress)
        extra = _shown_files(opened, result.manifest)
    return materialized(opened, result, rate=("patches", result.manifest.counts["patches"]), extra=extra)


@asset(PROMOTIONS, LEADERBOARD, WEIGHTS, kinds={"mlflow"})
def promotions(context: dg.AssetExecutionContext, config: PromotionConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """The gate: weights become champion if their score on no gated benchmark fell by more than its tolerance.

    Every verdict is kept with its reasons, benchmark by benchmark. A person may override it with a reason, which is kept
    as well. In the MLflow registry the champion's version carries the alias `champion`.
    """
    opened = store.open()
    with explained(context):
        result = promote(opened, config.weights, config.reason, context.run_id)
        extra = _shown_files(opened, result.manifest)
    return materialized(opened, result, extra=extra)


BENCHMARK_ASSETS = [benchmark_data, benchmark_scores, leaderboard, contamination, promotions]
