"""How often some work was tried, and whether it may be requested now: the sensors that reconcile find it in Dagster's runs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import dagster as dg

from cem_assets import __version__
from cem_assets.errors import Fault
from cem_assets.platform.steps import FAULT_TAG, SHARE_TAG, VERSION_TAG

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.CANCELING,
]
TICK_SECONDS = 5.0
"""A tick stops looking for work after this long. The runs it requests are launched afterwards."""
MAX_REQUESTS = 25
"""The most runs that a tick requests; creating one takes Dagster up to a tenth of a second."""
WORK_TAG = "cem_assets/work"
"""Tag of runs that identifies the work they do: the same work gets the same value."""
SECONDS_AFTER_A_BUG = 24 * 3600.0
"""Work that failed because of a bug waits this long, unless cem_assets was upgraded."""
PROMPT_ATTEMPTS = 3
"""After fewer failures than this, work is repeated at the next tick; after that it waits 1, 2, 4, ... 24 hours."""


def seconds_until_again(num_failures: int) -> float:
    """Return how long work that failed `num_failures` times waits after its last failure; 0 while it is repeated at once."""
    return 0.0 if num_failures < PROMPT_ATTEMPTS else min(2 ** (num_failures - PROMPT_ATTEMPTS), 24) * 3600.0


@dataclass(frozen=True)
class Attempt:
    """Whether some work may be requested now.

    Attributes:
        number: How often the work was tried before; part of the run key.
        why_not: The reason why it must wait; None where it may be requested.
        tags: Tags of the run that does it.
    """

    number: int = 0
    why_not: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def attempt_at(instance: dg.DagsterInstance, job: str, partition: str, key: str, is_look_only: bool = False) -> Attempt:
    """Decide whether some work may be requested now, by how often it was tried and whose fault it was that it failed.

    Work whose data were refused waits for other data; with those it has another key. Work that failed because of a bug is
    repeated after an upgrade, and otherwise once a day. Work that ran out of memory or disk is repeated with fewer worker
    processes.

    Args:
        partition: Empty for a job without partitions.
        key: Identifies the work; its runs carry it as `WORK_TAG`.
        is_look_only: Whether one successful run is enough even if the store looks the same afterwards.
    """
    tags = {"dagster/partition": partition} if partition else {}
    if instance.get_run_records(dg.RunsFilter(job_name=job, tags=tags, statuses=UNFINISHED), limit=1):
        return Attempt(why_not="a run is under way")
    records = instance.get_run_records(dg.RunsFilter(tags={WORK_TAG: key}))
    if is_look_only and any(record.dagster_run.is_success for record in records):
        return Attempt(why_not="looked at already, nothing changed")
    failures = [record for record in records if not record.dagster_run.is_success]
    if not failures:
        return Attempt(len(records))
    newest = max(failures, key=lambda record: record.end_time or 0)
    found = newest.dagster_run.tags
    if any(record.dagster_run.tags.get(FAULT_TAG) == Fault.data for record in failures):
        return Attempt(why_not="its data was refused; repair it in the inbox and write dataset.toml (or source.toml) again")
    waited = time.time() - (newest.end_time or 0)
    if found.get(FAULT_TAG) == Fault.bug:
        is_upgraded = found.get(VERSION_TAG) != __version__
        if not is_upgraded and waited < SECONDS_AFTER_A_BUG:
            return Attempt(
                why_not=f"it failed because of a bug in cem_assets {__version__}; it is repeated after an upgrade, or in a day"
            )
    elif len(failures) >= PROMPT_ATTEMPTS and waited < seconds_until_again(len(failures)):
        return Attempt(why_not=f"failed {len(failures)} times, tried again later")
    return Attempt(len(records), tags={SHARE_TAG: found[SHARE_TAG]} if SHARE_TAG in found else {})
