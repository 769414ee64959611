"""Tracking of long runs with the real MLflow: on SQLite in most tests, and on a server that is down at first."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cem_assets.store.store import Store, open_store
from cem_assets.tracking import mlflow as tracking
from cem_assets.tracking import outbox as tracking_outbox
from cem_assets.tracking import runs as tracked_runs
from cem_assets.tracking.mlflow import Metric, TrackingServer
from cem_assets.tracking.outbox import Drained, Lease, drain_outbox, waiting_entries
from cem_assets.tracking.runs import open_tracked_run
from cem_assets_tests.services.stack import free_port, wait_for

KEY = "ab" * 32
EXPERIMENT = "pretraining/mocov2"


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once because that takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_runs, "_FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(tracked_runs, "_BUSY_PAUSE_S", 0.1)
    monkeypatch.setattr(tracking_outbox, "_REFUSAL_PAUSE_S", 0.01)


@pytest.fixture
def client(empty_mlflow, tmp_path, monkeypatch):
    """A client of a fresh MLflow that works; `DOWN` is the address of one that does not."""
    import mlflow

    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow.MlflowClient(tracking_uri=uri)


@pytest.fixture
def mlflow_down(monkeypatch):
    """Set an address where nothing listens; calling the result sets that of a working MLflow."""
    up = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:hunter2@127.0.0.1:{free_port()}")
    return lambda: monkeypatch.setenv("MLFLOW_TRACKING_URI", up)


def opened(store, parameters=None, tags=None, key=KEY):
    return open_tracked_run(store, key, EXPERIMENT, "mocov2-ab", parameters or {"epochs": 3}, tags or {"digest": "d1"})


def runs_of(client, key=KEY):
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([experiment.experiment_id], f"tags.`cem_assets.key` = '{key}'")


def the_run(client, key=KEY):
    (run,) = runs_of(client, key)
    return run


def points_of(client, run, name):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def contents(store):
    return {item.key: store.read(item.key) for item in store.walk("tracking")}


def restored(store, objects):
    """Put the entries back, as if the process that delivered them was killed before it deleted them."""
    for name, data in objects.items():
        if name.startswith("tracking/outbox/"):
            store.put(name, data)


def test_a_tracked_run_arrives_whole_and_leaves_the_outbox_empty(store, client):
    with opened(store, {"epochs": 3, "rate": 0.5, **{f"p{i}": i for i in range(120)}}) as run:
        run.log_metrics([Metric("loss", 1 / step, step) for step in range(1, 1501)])
        run.log_metrics([Metric("odd", value, step) for step, value in enumerate((math.nan, math.inf, -math.inf))])
        run.log_artifact("views/epoch_001.png", b"picture")
        run.log_artifact("views/epoch_001.png", b"better picture")
        run.log_tags({"epoch": "1"})
        run.log_tags({"epoch": "2"})
        link = run.link(30)
    found = the_run(client)
    assert link is not None and link.run_id == found.info.run_id
    assert (found.info.status, found.info.run_name) == ("FINISHED", "mocov2-ab")
    assert found.data.params == {"epochs": "3", "rate": "0.5", **{f"p{i}": str(i) for i in range(120)}}
    assert found.data.tags["epoch"] == "2" and found.data.tags["digest"] == "d1"
    assert points_of(client, found, "loss") == [(step, 1 / step) for step in range(1, 1501)]
    odd = [value for _, value in points_of(client, found, "odd")]
    assert math.isnan(odd[0]) and odd[1] > 1e308 and odd[2] < -1e308  # MLflow stores infinity as the largest number
    assert Path(client.download_artifacts(found.info.run_id, "views/epoch_001.png")).read_bytes() == b"better picture"
    assert contents(store) == {}


def test_a_resumed_run_continues_the_same_curves_and_tells_changed_parameters_as_tags(local_store, client):
    for start, epochs in ((1, 3), (4, 6), (7, 3)):
        with opened(local_store, {"epochs": epochs, "rate": 0.5, f"new{start}": start}) as run:
            run.log_metrics([Metric("loss", float(epoch), epoch) for epoch in range(start, start + 3)])
            assert run.link(30) is not None
            if start == 4:
                wait_for("the delivery", lambda: not waiting_entries(local_store, KEY), 20, 0.05)
                assert the_run(client).info.status == "RUNNING"
                assert the_run(client).data.tags["param.epochs"] == "6"
    found = the_run(client)
    assert points_of(client, found, "loss") == [(epoch, float(epoch)) for epoch in range(1, 10)]
    assert found.data.params == {"epochs": "3", "rate": "0.5", "new1": "1", "new4": "4", "new7": "7"}
    assert found.data.tags["param.epochs"] == "3" and "param.rate" not in found.data.tags


def test_mlflow_being_down_delays_nothing_loses_nothing_and_is_told_once(local_store, client, mlflow_down, caplog, tmp_path):
    with caplog.at_level(logging.DEBUG):
        run = opened(local_store)
        for step in range(20):
            begin = time.monotonic()
            run.log_metrics([Metric("loss", float(step), step)])
            run.log_artifact(f"views/{step}.txt", str(step).encode())
            assert time.monotonic() - begin < 0.5
        before = int(time.time() * 1000)
        run.finish("FINISHED")
        assert run.link(0.5) is None
        time.sleep(0.5)
        run.close(0.3)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("cem_assets")]
    assert sum("cannot be delivered" in text for text in told) == 1
    trouble = drain_outbox(local_store)
    assert (trouble.num_delivered, trouble.num_left) == (0, 42) and "refused" in trouble.trouble
    everything = "\n".join(told) + caplog.text + trouble.trouble + repr(contents(local_store))
    assert "hunter2" not in everything and "somebody" not in everything

    mlflow_down()
    time.sleep(0.05)
    assert drain_outbox(local_store) == Drained(42, 0)
    found = the_run(client)
    assert points_of(client, found, "loss") == [(step, float(step)) for step in range(20)]
    assert found.info.status == "FINISHED" and found.info.end_time - before < 40  # the time of the event, not of writing it
    assert found.info.start_time <= client.get_metric_history(found.info.run_id, "loss")[0].timestamp <= before
    assert len(client.list_artifacts(found.info.run_id, "views")) == 20
    assert contents(local_store) == {}


def test_entries_delivered_twice_change_nothing(local_store, client, mlflow_down):
    run = opened(local_store)
    run.log_metrics([Metric("loss", 0.5, 1), Metric("loss", math.nan, 2), Metric("loss", math.inf, 3), Metric("loss", 0.5, 1)])
    run.log_artifact("model/card.md", b"card")
    run.log_tags({"epoch": "1"})
    run.register_model("mocov2", "model", {"digest": "d1"}, "epoch 1")
    run.finish("FAILED")
    run.close(0.1)
    saved = contents(local_store)
    mlflow_down()

    def seen():
        found = the_run(client)
        versions = [(v.version, v.source, v.run_id, v.description) for v in client.search_model_versions("name = 'mocov2'")]
        return repr((found.info, found.data.params, found.data.tags, points_of(client, found, "loss"), versions))

    assert drain_outbox(local_store) == Drained(6, 0)
    once = seen()
    restored(local_store, saved)
    assert drain_outbox(local_store) == Drained(6, 0)
    assert seen() == once and once.count("(1, 0.5)") == 1 and f"runs:/{the_run(client).info.run_id}/model" in once


def test_a_killed_process_loses_nothing(local_store, client, tmp_path):
    script = """
import os, signal, sys
from cem_assets.store.store import open_store
from cem_assets.tracking.mlflow import Metric
from cem_assets.tracking.runs import open_tracked_run
run = open_tracked_run(open_store(sys.argv[1]), sys.argv[2], sys.argv[3], "r", {"epochs": 9}, {})
for step in range(5):
    run.log_metrics([Metric("loss", float(step), step)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    command = [sys.executable, "-c", script, local_store.url, KEY, EXPERIMENT]
    assert subprocess.run(command, check=False, env=environment, timeout=60).returncode == -signal.SIGKILL
    assert len(waiting_entries(local_store, KEY)) == 6
    with opened(local_store, {"epochs": 12}) as run:  # the lease of the killed process does not prevent it
        run.log_metrics([Metric("loss", 5.0, 5)])
        assert run.link(30) is not None
    found = the_run(client)
    assert points_of(client, found, "loss") == [(step, float(step)) for step in range(6)]
    assert found.data.params["epochs"] == "9" and found.data.tags["param.epochs"] == "12"  # the older entries came first


def test_what_waits_is_delivered_before_what_a_resumed_run_adds(local_store, client, mlflow_down, monkeypatch):
    first = opened(local_store)
    first.log_tags({"epoch": "1"})
    first.close(0.1)
    monkeypatch.setattr(tracking_outbox.time, "time", lambda: 1e9)  # the clock of this machine is decades behind
    second = opened(local_store)
    second.log_tags({"epoch": "2"})
    second.close(0.1)
    monkeypatch.undo()
    entries = [json.loads(local_store.read(entry)) for entry in waiting_entries(local_store, KEY)]
    assert [entry["body"]["tags"] for entry in entries] == [{"digest": "d1"}, {"epoch": "1"}, {"digest": "d1"}, {"epoch": "2"}]


def test_a_refused_entry_is_set_aside_with_its_reason_and_the_rest_goes_on(local_store, client, mlflow_down, caplog):
    run = opened(local_store)
    run.log_metrics([Metric("../loss", 1.0, 1)])
    run.log_artifact("views/a.txt", b"lost bytes")
    run.log_metrics([Metric("loss", 2.0, 2)])
    run.close(0.1)
    entries = waiting_entries(local_store, KEY)
    (attached,) = [key for key in contents(local_store) if key.endswith(".bin")]
    local_store.delete([attached])
    local_store.put(entries[0].replace(".json", "9.json"), b"{not json")
    caplog.clear()
    mlflow_down()
    drained = drain_outbox(local_store)
    assert drained == Drained(2, 0)
    assert points_of(client, the_run(client), "loss") == [(2, 2.0)]
    refused = {key: json.loads(data)["reason"] for key, data in contents(local_store).items()}
    assert set(refused) == {
        entry.replace("outbox", "refused") for entry in (*entries[1:3], entries[0].replace(".json", "9.json"))
    }
    reasons = " ".join(refused.values())
    assert "'../loss'" in reasons and "are gone" in reasons and "damaged" in reasons
    assert caplog.text.count("was refused 3 times") == 3


def test_a_refused_artifact_keeps_its_bytes(local_store, client, mlflow_down, monkeypatch):
    run = opened(local_store)
    run.log_artifact("views/a.txt", b"the bytes")
    run.close(0.1)
    mlflow_down()
    entry = waiting_entries(local_store, KEY)[1]
    record = json.loads(local_store.read(entry))
    local_store.put(entry, json.dumps({**record, "body": {"name": "../a.txt"}}).encode())
    assert drain_outbox(local_store) == Drained(1, 0)
    kept = contents(local_store)
    assert len(kept) == 2 and b"the bytes" in kept.values() and all(key.startswith("tracking/refused/") for key in kept)
    restored_entry = json.loads(json.loads(kept[entry.replace("outbox", "refused")])["entry"])
    assert restored_entry["body"] == {"name": "../a.txt"}


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../../b", "a//b", "", ".", "a/", "a\\b", "%2e%2e/a", "c:a", "a\0", "a\nb", "a/.."]
)
def test_artifact_names_that_leave_the_run_are_refused(local_store, mlflow_down, name):
    run = opened(local_store)
    with pytest.raises(ValueError, match="not allowed"):
        run.log_artifact(name, b"x")
    with pytest.raises(ValueError, match="not allowed"):
        run.register_model("model", name, {"digest": "d"}, "")
    run.close(0)
    assert len(waiting_entries(local_store, KEY)) == 1


def test_what_could_never_be_delivered_is_refused_at_once(local_store, mlflow_down):
    for key in ("", "../..", "AB" * 32, "a' or 'b", "abc"):
        with pytest.raises(ValueError, match="hex digest"):
            opened(local_store, key=key)
    with pytest.raises(ValueError, match="how the run is found again"):
        opened(local_store, tags={"cem_assets.key": "other"})
    with pytest.raises(ValueError, match="no name"):
        open_tracked_run(local_store, KEY, " ", "r", {}, {})
    assert contents(local_store) == {}
    run = opened(local_store)
    with pytest.raises(ValueError, match="digest"):
        run.register_model("model", "folder", {}, "")
    with pytest.raises(ValueError, match="model name"):
        run.register_model("a' or name = 'b", "folder", {"digest": "d"}, "")
    with pytest.raises(ValueError, match="status"):
        run.finish("RUNNING")
    run.close(0)
    assert len(waiting_entries(local_store, KEY)) == 1


def test_a_store_that_fails_is_not_passed_over(tmp_path, mlflow_down):
    store = open_store(str(tmp_path / "store"))
    run = opened(store)
    run.close(0)
    shutil.rmtree(store.url)
    Path(store.url).write_text("a file where the store was")
    with pytest.raises(OSError):
        run.log_metrics([Metric("loss", 1.0, 1)])


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_leaving_a_run_tells_how_it_ended(local_store, client, mlflow_down, monkeypatch, error, status):
    monkeypatch.setattr(tracked_runs.TrackedRun.close, "__defaults__", (0.1,))
    try:
        with opened(local_store):
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt) as raised:
        assert raised is error
    mlflow_down()
    assert drain_outbox(local_store) == Drained(2, 0)
    assert the_run(client).info.status == status


def test_models_get_one_version_per_digest(local_store, client):
    with opened(local_store) as run:
        for digest, epoch in (("d1", "1"), ("d2", "2"), ("d1", "1")):
            run.log_artifact(f"epoch_{epoch}/card.md", b"# card")
            run.register_model("mocov2 resnet50", f"epoch_{epoch}", {"digest": digest, "epoch": epoch}, f"epoch {epoch}")
        assert run.link(30) is not None
    versions = sorted(client.search_model_versions("name = 'mocov2 resnet50'"), key=lambda version: int(version.version))
    assert [(v.tags["digest"], v.tags["epoch"], v.description) for v in versions] == [
        ("d1", "1", "epoch 1"),
        ("d2", "2", "epoch 2"),
    ]
    run_id = the_run(client).info.run_id
    assert [version.source for version in versions] == [f"runs:/{run_id}/epoch_1", f"runs:/{run_id}/epoch_2"]


def test_two_drains_at_once_do_no_harm(local_store, client, mlflow_down):
    keys = [f"{number:02x}" * 16 for number in range(3)]
    for key in keys:
        run = opened(local_store, key=key)
        for step in range(10):
            run.log_metrics([Metric("loss", float(step), step)])
        run.finish("FINISHED")
        run.close(0)
    mlflow_down()
    results: list[Drained] = []
    threads = [threading.Thread(target=lambda: results.append(drain_outbox(local_store))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.trouble for result in results] == [""] * 3 and sum(result.num_delivered for result in results) == 36
    for key in keys:
        found = the_run(client, key)
        assert points_of(client, found, "loss") == [(step, float(step)) for step in range(10)]
        assert found.info.status == "FINISHED"
    assert contents(local_store) == {}


def test_a_sensor_that_drains_while_the_run_goes_on_does_no_harm(local_store, client):
    is_over = threading.Event()
    troubles: list[str] = []

    def drain_on():
        while not is_over.wait(0.01):
            troubles.append(drain_outbox(local_store).trouble)

    sensor = threading.Thread(target=drain_on)
    sensor.start()
    with opened(local_store) as run:
        for epoch in range(1, 31):
            run.log_metrics([Metric("loss", 1 / epoch, epoch)])
            run.log_tags({"epoch": str(epoch)})
        assert run.link(30) is not None
    is_over.set()
    sensor.join()
    found = the_run(client)
    assert points_of(client, found, "loss") == [(epoch, 1 / epoch) for epoch in range(1, 31)]
    assert (found.data.tags["epoch"], found.info.status) == ("30", "FINISHED")
    assert set(troubles) == {""} and contents(local_store) == {}


def test_draining_an_empty_outbox_is_one_listing(store, monkeypatch):
    calls = []
    children = Store.children
    monkeypatch.setattr(Store, "children", lambda self, folder: calls.append(folder) or children(self, folder))
    monkeypatch.setattr(tracking_outbox, "TrackingServer", None)  # MLflow is not even contacted
    assert drain_outbox(store) == Drained(0, 0)
    assert calls == ["tracking/outbox"]


def test_a_drain_stops_at_its_budget(local_store, client, mlflow_down):
    opened(local_store).close(0)
    mlflow_down()
    assert drain_outbox(local_store, budget_s=-1) == Drained(0, 1)
    assert drain_outbox(local_store) == Drained(1, 0)


def test_a_drain_leaves_a_key_to_the_process_that_delivers_it_until_its_lease_lapses(
    local_store, client, mlflow_down, monkeypatch
):
    opened(local_store).close(0)
    mlflow_down()
    lease = Lease(local_store, KEY, "run")
    assert lease.hold()
    assert drain_outbox(local_store) == Drained(0, 1)
    monkeypatch.setattr(tracking_outbox, "_LEASE_S", 0.01)
    time.sleep(0.05)
    assert drain_outbox(local_store) == Drained(1, 0)
    monkeypatch.setattr(tracking_outbox, "_RENEW_S", 0.0)
    monkeypatch.setattr(tracking_outbox, "_LEASE_S", 60.0)
    assert lease.hold()  # the lease was released, so it is free again


def test_one_of_many_gets_the_lease_and_keeps_it(store, monkeypatch):
    monkeypatch.setattr(tracking_outbox, "_RENEW_S", 0.0)
    leases = [Lease(store, KEY, "drain") for _ in range(8)]
    held = []
    threads = [threading.Thread(target=lambda lease=lease: held.append(lease) if lease.hold() else None) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert held[0].hold() and not any(lease.hold() for lease in leases if lease is not held[0])
    held[0].release()
    other = next(lease for lease in leases if lease is not held[0])
    assert other.hold() and not held[0].hold()


def test_a_process_that_opens_a_run_anew_takes_the_lease_of_the_one_before(local_store, monkeypatch):
    monkeypatch.setattr(tracking_outbox, "_RENEW_S", 0.0)
    before, drain = Lease(local_store, KEY, "run"), Lease(local_store, KEY, "drain")
    assert before.hold()
    after = Lease(local_store, KEY, "run")
    assert after.hold() and not before.hold() and not drain.hold()
    assert after.hold()
    after.release()
    assert drain.hold() and not after.hold() and not Lease(local_store, KEY, "run").hold()


def test_bytes_without_an_entry_go_after_a_day(local_store, mlflow_down, monkeypatch):
    name = f"tracking/outbox/{KEY}/000000000000001.{'0' * 16}.bin"
    local_store.put(name, b"x")
    assert drain_outbox(local_store) == Drained(0, 0) and contents(local_store)
    old = time.time() - 90000
    os.utime(local_store.url_of(name), (old, old))
    assert drain_outbox(local_store) == Drained(0, 0) and contents(local_store) == {}


def test_a_run_deleted_in_mlflow_is_made_anew(client):
    server = TrackingServer()

    def event(step):
        return tracking.TrackingEvent(KEY, EXPERIMENT, "r", "metrics", step, {"points": [("loss", 1.0, step)]})

    first = server.write(event(1))
    client.delete_run(first.run_id)
    with pytest.raises(ValueError, match="active"):
        server.write(event(2))
    second = server.write(event(2))  # the outbox does the same after a refusal
    assert second.run_id != first.run_id and points_of(client, the_run(client), "loss") == [(2, 1.0)]


def test_a_server_that_comes_up_late_gets_everything_in_order(local_store, empty_mlflow, tmp_path, monkeypatch, caplog, capfd):
    import mlflow

    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:hunter2@127.0.0.1:{port}/")
    monkeypatch.setattr(tracked_runs, "_MAX_PAUSE_S", 0.4)
    shutil.copy(empty_mlflow, tmp_path / "server.db")
    with caplog.at_level(logging.DEBUG):
        run = opened(local_store)
        run.log_metrics([Metric("loss", value, step) for step, value in enumerate((math.nan, math.inf, -math.inf, 0.1 + 0.2))])
        run.log_artifact("views/epoch_001.png", b"\x89PNG" * 1000)
        run.log_tags({"epoch": "1"})
        assert run.link(0.3) is None
        log = os.open(tmp_path / "server.log", os.O_CREAT | os.O_WRONLY)
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
             "--artifacts-destination", str(tmp_path / "served"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""},
            cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            link = run.link(90)
            assert link is not None, (tmp_path / "server.log").read_text()[-3000:]
            run.log_tags({"epoch": "2"})
            run.register_model("mocov2", "views", {"digest": "d1"}, "card")
            run.finish("FINISHED")
            run.close(30)
            assert contents(local_store) == {}
            with opened(local_store, {"epochs": 4}) as again:
                again.log_metrics([Metric("loss", 1.0, 4)])
                assert again.link(30) == link
            client = mlflow.MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
            found = the_run(client)
            assert link.url == f"http://127.0.0.1:{port}/#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}"
            values = [value for _, value in points_of(client, found, "loss")]
            assert math.isnan(values[0]) and values[1] > 1e308 and values[2] < -1e308 and values[3:] == [0.1 + 0.2, 1.0]
            assert (found.info.status, found.data.tags["epoch"]) == ("FINISHED", "2")
            assert (found.data.params["epochs"], found.data.tags["param.epochs"]) == ("3", "4")
            picture = client.download_artifacts(found.info.run_id, "views/epoch_001.png", str(tmp_path))
            assert Path(picture).read_bytes() == b"\x89PNG" * 1000
            (version,) = client.search_model_versions("name = 'mocov2'")
            assert (version.source, version.tags) == (f"runs:/{found.info.run_id}/views", {"digest": "d1"})
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)
            os.close(log)
    assert "hunter2" not in caplog.text + "".join(capfd.readouterr())
