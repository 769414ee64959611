"""Alerts: which notices are sent when a run fails or releases become too old."""

import json
import time

import dagster as dg
import pytest

from cem_assets.cli.runs import run_job
from cem_assets.operations import alerts
from cem_assets_tests.datasets import put_in_inbox


@pytest.fixture
def told(monkeypatch):
    """Collect the notices instead of sending them; test_notices tries the channels themselves."""
    notices = []
    monkeypatch.setenv("CEM_ASSETS_ALERT_WEBHOOK", "http://127.0.0.1:9/")
    monkeypatch.setattr(alerts, "deliver", lambda subject, text, facts: notices.append((subject, text, dict(facts))) or [])
    return notices


def failed_run(instance, store) -> dg.RunFailureSensorContext:
    put_in_inbox(store, "bad", {"v.nrrd": b"NRRD0004\ngarbage"})
    result = run_job(instance, store.url, "cem_chain", ["cem/volumes"], "bad")
    event = next(event for event in result.all_events if event.is_failure and event.event_type_value == "PIPELINE_FAILURE")
    run = instance.get_run_by_id(result.run_id)
    context = dg.build_run_status_sensor_context("failure_alerts", event, instance, run)
    return context.for_run_failure()


def test_a_failed_run_is_told_with_dataset_stage_and_reason(local_store, told):
    with dg.instance_for_test() as instance:
        alerts.failure_alerts(failed_run(instance, local_store))
    ((subject, text, facts),) = told
    assert subject == "cem_assets: cem_chain failed for bad"
    assert "v.nrrd" in text and "expected" in text
    assert facts["dataset"] == "bad" and facts["stage"] == "cem__volumes" and facts["run"]


def test_nobody_is_told_while_no_channel_is_configured(local_store, told, monkeypatch):
    monkeypatch.delenv("CEM_ASSETS_ALERT_WEBHOOK")
    with dg.instance_for_test() as instance:
        alerts.failure_alerts(failed_run(instance, local_store))
    assert told == []


def look(instance: dg.DagsterInstance, cursor: str | None = None) -> tuple[str, str | None]:
    with dg.build_sensor_context(instance, cursor=cursor) as context:
        return str(alerts.freshness_alerts(context).skip_message), context.cursor


def test_an_overdue_release_is_told_once(told, monkeypatch):
    with dg.instance_for_test() as instance:
        assert "no release yet" in look(instance)[0]
        instance.report_runless_asset_event(dg.AssetMaterialization(dg.AssetKey(["cem", "releases"])))
        look(instance)
        assert told == []
        later = time.time() + 32 * 24 * 3600
        monkeypatch.setattr(alerts.time, "time", lambda: later)
        _, cursor = look(instance)
        ((subject, text, _),) = told
        assert subject == "cem_assets: releases are overdue" and "was 32 days ago" in text
        assert json.loads(cursor)["for"] > 0
        look(instance, cursor)
        assert len(told) == 1


@pytest.mark.parametrize("text", ["0", "-3", "soon"])
def test_senseless_ages_are_refused(monkeypatch, text):
    monkeypatch.setenv("CEM_ASSETS_RELEASE_MAX_AGE_DAYS", text)
    with pytest.raises(ValueError, match="CEM_ASSETS_RELEASE_MAX_AGE_DAYS is .* expected a whole number"):
        alerts.max_release_age()
