"""What runs by itself for benchmarks: rows of the catalogue become partitions, and new scores lead to a new leaderboard."""

from typing import Any

import dagster as dg

from cem_assets import environment
from cem_assets.benchmarks.jobs import benchmark_leaderboard, benchmark_scoring
from cem_assets.benchmarks.rows import known_benchmarks
from cem_assets.platform.attempts import UNFINISHED
from cem_assets.platform.partitions import benchmark_rows, missing_partitions
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import BENCHMARK_SCORES, LEADERBOARD


@dg.sensor(
    name="benchmarks",
    job=benchmark_leaderboard,
    minimum_interval_seconds=environment.whole_number(environment.RECONCILIATION_SECONDS, lowest=0),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Adds a partition for every row of the catalogue of benchmarks, and requests a leaderboard after new scores.",
)
def benchmarks_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """Add missing partitions, and request a leaderboard if scores are newer than the last one and no more are being made."""
    missing = missing_partitions(context.instance, benchmark_rows, known_benchmarks(store.open()))
    added = [key for request in missing for key in request.partition_keys]
    newest = _last(context.instance, BENCHMARK_SCORES)
    is_due = newest > _last(context.instance, LEADERBOARD)
    for job in (benchmark_scoring.name, benchmark_leaderboard.name):
        # A sweep of a hundred scores needs one leaderboard, not a hundred.
        if is_due and context.instance.get_run_records(dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1):
            is_due = False
    reason = f"added {', '.join(added)}" if added else "every row is a partition, and no scores are newer than the leaderboard"
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"leaderboard:{newest}")] if is_due else [],
        skip_reason=None if is_due else reason,
        dynamic_partitions_requests=missing,
    )


def _last(instance: dg.DagsterInstance, asset: str) -> float:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset.split("/")))
    return event.timestamp if event is not None else 0.0


BENCHMARK_SENSORS: list[Any] = [benchmarks_sensor]
