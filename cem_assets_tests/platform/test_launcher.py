"""The launcher distinguishes dead runs from living ones."""

import time
from importlib.resources import files

import dagster as dg
import pytest

from cem_assets.cli.runs import open_instance
from cem_assets.definitions import defs
from cem_assets.platform import launcher
from cem_assets.platform.launcher import GRPC_INFO_TAG, WatchedRunLauncher, WorkerStatus

OVERRIDES = {"run_launcher": {"module": "cem_assets.platform.launcher", "class": "WatchedRunLauncher"}}
NOWHERE = '{"host": "127.0.0.1", "port": 9}'


@pytest.mark.parametrize("tags", [{}, {GRPC_INFO_TAG: NOWHERE}])
def test_a_run_without_a_server_is_dead_once_it_is_silent(tags, monkeypatch):
    with dg.instance_for_test(overrides=OVERRIDES) as instance:
        assert isinstance(instance.run_launcher, WatchedRunLauncher) and instance.run_launcher.supports_check_run_worker_health
        job = defs.resolve_job_def("cem_release")
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        instance.report_engine_event("working", run)
        assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
        later = time.time() + 200
        monkeypatch.setattr(launcher.time, "time", lambda: later)
        result = instance.run_launcher.check_run_worker_health(run)
        assert result.status == WorkerStatus.FAILED and "its process died" in str(result.msg)


def test_a_run_its_server_knows_is_alive_however_silent(monkeypatch):
    with dg.instance_for_test(overrides=OVERRIDES) as instance:
        run = instance.create_run_for_job(defs.resolve_job_def("cem_release"), status=dg.DagsterRunStatus.STARTED)
        monkeypatch.setattr(WatchedRunLauncher, "_is_known_to_its_server", lambda self, run: True)
        later = time.time() + 10_000
        monkeypatch.setattr(launcher.time, "time", lambda: later)
        assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING


def test_dagster_still_needs_this_launcher():
    """When this fails, Dagster's default launcher notices dead runs by itself: remove `cem_assets.platform.launcher`."""
    assert dg.DefaultRunLauncher().supports_check_run_worker_health is False


def test_the_settings_of_an_instance_of_0_1_0_get_the_module_of_today(tmp_path, monkeypatch):
    text = files("cem_assets").joinpath("dagster.yaml").read_text()
    old = text.replace("cem_assets.platform.launcher", "cem_assets.defs.launcher")
    (tmp_path / "dagster.yaml").write_text(f"# ours\n{old}")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with open_instance() as instance:
        assert isinstance(instance.run_launcher, WatchedRunLauncher)
    assert (tmp_path / "dagster.yaml").read_text() == f"# ours\n{text}"
