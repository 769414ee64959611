"""Alerts about failed runs and about releases that became too old, sent by `cem_assets.operations.notices`."""

import json
import time
from datetime import timedelta

import dagster as dg

from cem_assets.operations.notices import deliver, is_configured
from cem_assets.platform.freshness import max_release_age
from cem_assets.store.assets import RELEASES

_HOW = "no channel is configured; set CEM_ASSETS_ALERT_WEBHOOK or CEM_ASSETS_ALERT_EMAIL"
_MAX_TEXT = 2000


@dg.run_failure_sensor(
    name="failure_alerts",
    description="Sends a notice of every failed run by webhook or e-mail; does nothing while neither is configured.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
)
def failure_alerts(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """Send a notice of a failed run."""
    if not is_configured():
        return dg.SkipReason(_HOW)
    run = context.dagster_run
    dataset = run.tags.get("dagster/partition", "")
    steps = []
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        metadata = data.user_failure_data
        text = metadata.description if metadata and metadata.description else data.error_display_string
        steps.append((event.step_key or "", str(text)))
    subject = f"cem_assets: {run.job_name} failed" + (f" for {dataset}" if dataset else "")
    text = "\n".join(f"{key}: {text}" for key, text in steps) or (context.failure_event.message or "the run failed")
    facts = {"run": run.run_id, "job": run.job_name, "dataset": dataset, "stage": ", ".join(key for key, _ in steps)}
    for problem in deliver(subject, text[:_MAX_TEXT], facts):
        context.log.warning(problem)
    return None


@dg.sensor(
    name="freshness_alerts",
    description="Sends one notice when the newest release became too old (CEM_ASSETS_RELEASE_MAX_AGE_DAYS).",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=3600,
)
def freshness_alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Send one notice for each release that became too old."""
    event = context.instance.get_latest_materialization_event(dg.AssetKey(RELEASES.split("/")))
    if event is None:
        return dg.SkipReason("there is no release yet")
    age = timedelta(seconds=time.time() - event.timestamp)
    told = json.loads(context.cursor or "{}")
    if age <= max_release_age() or told.get("for") == event.timestamp:
        return dg.SkipReason(f"the newest release was checked {age.days} days ago")
    if not is_configured():
        return dg.SkipReason(_HOW)
    text = (
        f"The last materialization of {RELEASES} was {age.days} days ago; at most {max_release_age().days} days are allowed. "
        "Check that the daemon runs and that the schedule named releases is on."
    )
    problems = deliver("cem_assets: releases are overdue", text, {"asset": RELEASES})
    if not problems:
        context.update_cursor(json.dumps({"for": event.timestamp}))
    return dg.SkipReason("; ".join([text, *problems]))
