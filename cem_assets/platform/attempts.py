"""How often some work was tried, and whether it may be asked for now: what every reconciling sensor asks of Dagster's runs."""

import time

import dagster as dg

from cem_assets.platform.steps import FAULT_TAG

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.CANCELING,
]
TICK_SECONDS = 5.0
"""A tick stops looking after this long; what it asks for is launched after that."""
MAX_REQUESTS = 25
"""Runs a tick asks for at most; creating one costs Dagster up to a tenth of a second."""
WORK_TAG = "cem_assets/work"
PROMPT_ATTEMPTS = 3
"""Failures of the same work that are repeated at the next tick; later ones wait an hour, two, four, ... a day."""


def seconds_until_again(num_failures: int) -> float:
    """Return how long after its last failure work that failed so often is left alone; 0 while it is repeated promptly."""
    return 0.0 if num_failures < PROMPT_ATTEMPTS else min(2 ** (num_failures - PROMPT_ATTEMPTS), 24) * 3600.0


def attempt_at(
    instance: dg.DagsterInstance, job: str, partition: str, key: str, is_look_only: bool = False
) -> tuple[int, str | None]:
    """Tell which attempt at some work this would be, and why not now, if so.

    Args:
        instance: Whose runs count.
        job: Name of the job that does it.
        partition: Its partition key; empty where there is none.
        key: Identifies the work; runs carry it as `WORK_TAG`.
        is_look_only: Whether one success is enough, though the store looks the same afterwards.
    """
    tags = {"dagster/partition": partition} if partition else {}
    if instance.get_run_records(dg.RunsFilter(job_name=job, tags=tags, statuses=UNFINISHED), limit=1):
        return 0, "a run is under way"
    records = instance.get_run_records(dg.RunsFilter(tags={WORK_TAG: key}))
    if is_look_only and any(record.dagster_run.is_success for record in records):
        return 0, "looked at already, nothing changed"
    failures = [record for record in records if not record.dagster_run.is_success]
    if any(FAULT_TAG in record.dagster_run.tags for record in failures):
        return 0, "its data was refused; repair it in the inbox and write dataset.toml (or source.toml) again"
    if len(failures) >= PROMPT_ATTEMPTS:
        last = max(record.end_time or 0 for record in failures)
        if time.time() < last + seconds_until_again(len(failures)):
            return 0, f"failed {len(failures)} times, tried again later"
    return len(records), None
