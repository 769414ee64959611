"""The schedules that fetch rows of the catalogue and maintain the store."""

from typing import Any

import dagster as dg

from cem_assets import environment
from cem_assets.operations.catalogue_intake import missing_rows
from cem_assets.operations.jobs import catalogue_intake, maintenance
from cem_assets.platform.attempts import UNFINISHED
from cem_assets.platform.resources import StoreResource

CATALOGUE_TAG = "cem_assets/catalogue"


@dg.schedule(
    name="catalogue",
    job=catalogue_intake,
    cron_schedule=environment.text(environment.CATALOGUE_CRON),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Fetches enabled rows of the catalogue that the store lacks, a few each day (CEM_ASSETS_CATALOGUE_PER_DAY).",
)
def catalogue_schedule(context: dg.ScheduleEvaluationContext, store: StoreResource) -> Any:
    """Request the rows that were tried least often, and of those the first by name."""
    day = context.scheduled_execution_time.date().isoformat()
    tried = {}
    for name in missing_rows(store.open()):
        runs = context.instance.get_runs(dg.RunsFilter(job_name=catalogue_intake.name, tags={CATALOGUE_TAG: name}))
        if not any(run.status in UNFINISHED for run in runs):
            tried[name] = len(runs)
    chosen = sorted(tried, key=lambda name: (tried[name], name))[: per_day()]
    if not chosen:
        return dg.SkipReason("every enabled row of the catalogue is in the store or on its way")
    return [
        dg.RunRequest(
            run_key=f"{name}:{day}",
            run_config={"ops": {"fetch_catalogue_row": {"config": {"name": name}}}},
            tags={CATALOGUE_TAG: name},
        )
        for name in chosen
    ]


def per_day() -> int:
    """Return how many rows are fetched each day: CEM_ASSETS_CATALOGUE_PER_DAY, or 3."""
    return environment.whole_number(environment.CATALOGUE_PER_DAY, lowest=0)


maintenance_schedule = dg.ScheduleDefinition(
    name="maintenance",
    job=maintenance,
    cron_schedule=environment.text(environment.MAINTENANCE_CRON),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Deletes what no manifest and no release names any more, and measures the store.",
)
