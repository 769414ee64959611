"""Jobs: what people and sensors launch."""

from typing import Any

import dagster as dg

from cem_assets.defs.analyses import ANALYSIS_ASSETS, comparisons
from cem_assets.defs.benchmarks import benchmark_data, benchmark_scores, contamination, leaderboard, promotions
from cem_assets.defs.cem import CHAIN, subvolumes
from cem_assets.defs.cem_releases import patch_classifier, releases
from cem_assets.defs.cytoimagenet import class_maps, crops, cyto_releases, label_table, source_metadata, test_images
from cem_assets.defs.partitions import benchmark_rows, cyto_labels, em_datasets, microscopy_sources, scored_pairs, weights_rows
from cem_assets.defs.pretraining import weights
from cem_assets.defs.resources import StoreResource
from cem_assets.defs.steps import explained
from cem_assets.stages.catalogue import fetch_row
from cem_assets.stages.maintenance import MIN_AGE_HOURS, measure, sweep
from cem_assets.storage.layout import CLASSIFIER
from cem_assets.storage.patch_classifiers import choose_classifier

cem_chain = dg.define_asset_job(
    "cem_chain",
    dg.AssetSelection.assets(*CHAIN),
    description="From the inbox to filtered patches, one dataset a run.",
    partitions_def=em_datasets,
)
cem_subvolumes = dg.define_asset_job(
    "cem_subvolumes",
    dg.AssetSelection.assets(subvolumes),
    description="Flipbooks or cubes around filtered patches, one dataset a run.",
    partitions_def=em_datasets,
)
cem_release = dg.define_asset_job(
    "cem_release", dg.AssetSelection.assets(releases), description="A new release, where anything changed."
)
cem_patch_classifier = dg.define_asset_job(
    "cem_patch_classifier", dg.AssetSelection.assets(patch_classifier), description="Import or train the patch classifier."
)
cyto_sources = dg.define_asset_job(
    "cyto_sources",
    dg.AssetSelection.assets(source_metadata),
    description="Metadata of microscopy sources, one source a run.",
    partitions_def=microscopy_sources,
)
cyto_test_images = dg.define_asset_job(
    "cyto_test_images", dg.AssetSelection.assets(test_images), description="Fingerprints of the benchmarks' images."
)
cyto_label_table = dg.define_asset_job(
    "cyto_label_table", dg.AssetSelection.assets(label_table), description="Weak labels over all sources."
)
cyto_crops = dg.define_asset_job(
    "cyto_crops",
    dg.AssetSelection.assets(crops),
    description="The images of weak labels, one label a run.",
    partitions_def=cyto_labels,
)
cyto_release = dg.define_asset_job(
    "cyto_release",
    dg.AssetSelection.assets(cyto_releases, class_maps),
    description="A new release of CytoImageNet, where anything changed, and maps of its classes.",
)
pretraining_weights = dg.define_asset_job(
    "pretraining_weights",
    dg.AssetSelection.assets(weights),
    description="Trains or imports encoder weights, one row of the catalogue a run.",
    partitions_def=weights_rows,
)
benchmark_preparation = dg.define_asset_job(
    "benchmark_data",
    dg.AssetSelection.assets(benchmark_data),
    description="Prepares the data of a benchmark, one benchmark a run.",
    partitions_def=benchmark_rows,
)
benchmark_scoring = dg.define_asset_job(
    "benchmark_scores",
    dg.AssetSelection.assets(benchmark_scores),
    description="Scores weights on a benchmark, one pair a run.",
    partitions_def=scored_pairs,
)
benchmark_leaderboard = dg.define_asset_job(
    "benchmark_leaderboard", dg.AssetSelection.assets(leaderboard), description="A leaderboard of all scores."
)
benchmark_contamination = dg.define_asset_job(
    "benchmark_contamination",
    dg.AssetSelection.assets(contamination),
    description="Compares a release with the test images of all benchmarks.",
)
weights_analyses = dg.define_asset_job(
    "analyses",
    dg.AssetSelection.assets(*ANALYSIS_ASSETS),
    description="Analyses of one encoder: invariance, occlusion, organelles, maps of and distances between datasets.",
    partitions_def=weights_rows,
)
analysis_comparison = dg.define_asset_job(
    "analysis_comparison", dg.AssetSelection.assets(comparisons), description="Sets analyses of several weights side by side."
)
benchmark_promotion = dg.define_asset_job(
    "benchmark_promotion", dg.AssetSelection.assets(promotions), description="Puts weights before the gate."
)


UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.CANCELING,
]


class CatalogueConfig(dg.Config):
    """Which row of the catalogue to fetch.

    Attributes:
        name: Of the dataset.
    """

    name: str


class ChoiceConfig(dg.Config):
    """Which patch classifier new scores are made with.

    Attributes:
        digest: Of the classifier, or its first 8 or more digits; "newest" is the one made last.
        reason: Why; it is kept.
        by: Who chooses; empty for the run.
    """

    digest: str = "newest"
    reason: str = ""
    by: str = ""


class MaintenanceConfig(dg.Config):
    """What may be swept.

    Attributes:
        min_age_hours: Nothing younger than this is touched.
    """

    min_age_hours: float = MIN_AGE_HOURS


@dg.op
def fetch_catalogue_row(context: dg.OpExecutionContext, config: CatalogueConfig, store: StoreResource) -> None:
    """Download the files of a row, check their digests, and put them into the inbox, `dataset.toml` last."""
    with explained(context):
        dataset = fetch_row(store.open(), config.name)
    context.log.info(f"{dataset} is in the inbox; the inbox sensor takes it from there")


@dg.op
def choose_patch_classifier(context: dg.OpExecutionContext, config: ChoiceConfig, store: StoreResource) -> None:
    """Make new scores with a classifier of the store from now on; the choice is kept, and shown at the asset."""
    opened = store.open()
    with explained(context):
        by = config.by or f"run {context.run_id}"
        manifest, is_changed = choose_classifier(opened, config.digest, by, config.reason)
    text = "new scores are made with it" if is_changed else "it was in use already"
    context.log.info(f"classifier {manifest.digest[:12]}: {text}")
    metadata: dict[str, Any] = {
        "in use": "yes",
        "digest": manifest.digest,
        "chosen by": by,
        "reason": config.reason,
        "content": dg.MetadataValue.path(opened.url_of(manifest.folder)),
        "provenance": dg.MetadataValue.json(manifest.details["provenance"]),
    }
    # A new data version of the asset, so that Dagster shows which scores are of the classifier before.
    tags = {"dagster/data_version": manifest.digest}
    event = dg.AssetMaterialization(CLASSIFIER.split("/"), description=text, metadata=metadata, tags=tags)
    context.log_event(event)


@dg.job(description="Chooses which patch classifier new scores are made with.")
def cem_choose_classifier() -> None:
    """Choose which patch classifier new scores are made with."""
    choose_patch_classifier()


@dg.job(description="Fetches one dataset of the catalogue into the inbox.")
def catalogue_intake() -> None:
    """Fetch one dataset of the catalogue into the inbox."""
    fetch_catalogue_row()


@dg.op
def sweep_store(context: dg.OpExecutionContext, config: MaintenanceConfig, store: StoreResource) -> None:
    """Delete what nothing names any more, and tell the store's size by prefix."""
    opened = store.open()
    with explained(context):
        swept = sweep(opened, live_partitions(context.instance, context.run_id), config.min_age_hours)
        sizes = measure(opened)
    rows = [dg.TableRecord({"prefix": s.prefix, "objects": s.num_objects, "bytes": s.num_bytes}) for s in sizes]
    context.add_output_metadata(
        {
            "swept objects": swept.num_objects,
            "swept bytes": swept.num_bytes,
            "swept folders": dg.MetadataValue.json(list(swept.folders)),
            "left for live runs": dg.MetadataValue.json(list(swept.live)),
            "store": dg.MetadataValue.table(records=rows),
            "bytes": sum(size.num_bytes for size in sizes),
        }
    )
    for size in sizes:
        context.log.info(f"{size.prefix}: {size.num_objects:,} objects, {size.num_bytes / 2**20:,.1f} MiB")
    context.log.info(f"swept {swept.num_objects:,} objects, {swept.num_bytes / 2**20:,.1f} MiB")


def live_partitions(instance: dg.DagsterInstance, own_run: str) -> set[str]:
    """Name what unfinished runs may be writing: partition keys, and "" for assets without partitions."""
    records = instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED))
    return {record.dagster_run.tags.get("dagster/partition", "") for record in records if record.dagster_run.run_id != own_run}


@dg.job(description="Sweeps unreferenced objects older than a day, and measures the store.")
def maintenance() -> None:
    """Sweep unreferenced objects older than a day, and measure the store."""
    sweep_store()


ALL_JOBS: list[Any] = [
    cem_chain,
    cem_subvolumes,
    cem_release,
    cem_patch_classifier,
    cem_choose_classifier,
    cyto_sources,
    cyto_test_images,
    cyto_label_table,
    cyto_crops,
    cyto_release,
    pretraining_weights,
    benchmark_preparation,
    benchmark_scoring,
    benchmark_leaderboard,
    benchmark_contamination,
    benchmark_promotion,
    weights_analyses,
    analysis_comparison,
    catalogue_intake,
    maintenance,
]
