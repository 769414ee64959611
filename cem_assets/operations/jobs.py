"""The jobs that fetch rows of the catalogue and maintain the store."""

import dagster as dg

from cem_assets.operations.catalogue_intake import fetch_row
from cem_assets.operations.maintenance import MIN_AGE_HOURS, measure, sweep
from cem_assets.platform.attempts import UNFINISHED
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained


class CatalogueConfig(dg.Config):
    """Which row of the catalogue to fetch.

    Attributes:
        name: Name of the EM dataset or microscopy source.
    """

    name: str


class MaintenanceConfig(dg.Config):
    """What may be deleted.

    Attributes:
        min_age_hours: Nothing younger than this is deleted.
    """

    min_age_hours: float = MIN_AGE_HOURS


@dg.op
def fetch_catalogue_row(context: dg.OpExecutionContext, config: CatalogueConfig, store: StoreResource) -> None:
    """Download the files of a row, check their digests, and put them into the inbox, with `dataset.toml` last."""
    with explained(context):
        dataset = fetch_row(store.open(), config.name)
    context.log.info(f"{dataset} is in the inbox; the inbox sensor takes it from there")


@dg.job(description="Fetches one dataset of the catalogue into the inbox.")
def catalogue_intake() -> None:
    """Fetch one dataset of the catalogue into the inbox."""
    fetch_catalogue_row()


@dg.op
def sweep_store(context: dg.OpExecutionContext, config: MaintenanceConfig, store: StoreResource) -> None:
    """Delete what nothing names any more, and report the size of the store by prefix."""
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
    """Return what unfinished runs may be writing: partition keys, and "" for assets without partitions."""
    records = instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED))
    return {record.dagster_run.tags.get("dagster/partition", "") for record in records if record.dagster_run.run_id != own_run}


@dg.job(description="Deletes objects older than a day that nothing names any more, and measures the store.")
def maintenance() -> None:
    """Delete objects older than a day that nothing names any more, and measure the store."""
    sweep_store()
