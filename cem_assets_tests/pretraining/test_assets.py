"""Weights in Dagster and at the command line: partitions, metadata, several processes, stopping and continuing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
import torch

from cem_assets import readers
from cem_assets.cli.runs import failures, run_job
from cem_assets.cli.weights_runs import parsed_settings, stop_training, weights_lines
from cem_assets.errors import DataError
from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.pretraining.automation import tracking_sensor, weights_sensor
from cem_assets.pretraining.data.release_data import open_training_data
from cem_assets.pretraining.plan import make_plan
from cem_assets.pretraining.rows import ROWS, known_weights
from cem_assets.pretraining.training.checkpoints import decode_state
from cem_assets.pretraining.training.runs import StoreCheckpoints, read_status
from cem_assets.pretraining.training.stage import build_plan_method
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store, open_store
from cem_assets_tests.conftest import copy_store
from cem_assets_tests.platform.test_materializing import metadata_of, picture_of
from cem_assets_tests.pretraining.training_sets import texture_release

LOOP = {"device": "cpu", "num_threads": 1, "num_knn_images": 60, "num_processes": 1}
SETTINGS = """
[tiny_moco]
kind = "trained"
title = "MoCo on textures"
method = "moco"
preset = "smoke"
arch = "resnet18"
dataset = "cem"
params = { epochs = 2, batch_size = 16, queue = 32 }

[long_moco]
kind = "trained"
title = "MoCo on textures, for long"
method = "moco"
preset = "smoke"
arch = "resnet18"
dataset = "cem"
params = { epochs = 200, batch_size = 16, queue = 32 }
"""


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("textures")))
    texture_release(store, {"coarse": 40, "fine": 20, "middle": 12})
    store.put(ROWS, SETTINGS.encode())
    return store


@pytest.fixture
def textured(released: Store, local_store: Store) -> Store:
    local_store.put(ROWS, SETTINGS.encode())
    return copy_store(released, local_store)


def materialize(instance, store: Store, name: str, **config):
    return run_job(instance, store.url, "pretraining_weights", partition=name, config={WEIGHTS: {**LOOP, **config}})


def state_of(store: Store, name: str, **overrides: object) -> dict:
    plan = make_plan(store, known_weights(store)[name], overrides=overrides)
    return decode_state(StoreCheckpoints(store, plan.folder).load(), "checkpoint")


def test_imported_weights_show_their_card(instance, local_store):
    result = materialize(instance, local_store, "random_resnet50")
    assert result.success, failures(result)
    shown = metadata_of(result, WEIGHTS)
    assert shown["arch"].value == "resnet50" and shown["features"].value == 2048
    assert "random_resnet50" in shown["model card"].value
    checks = {item.check_name: item.passed for item in result.get_asset_check_evaluations()}
    assert checks == {"objects_match_manifest": True, "weights_give_features": True}
    assert readers.load_weights("random_resnet50", root=local_store.url)(torch.zeros(1, 1, 64, 64)).shape == (1, 2048)


def test_what_cannot_be_had_fails_in_words_and_commits_nothing(instance, local_store):
    result = materialize(instance, local_store, "cem500k_mocov2")
    assert not result.success
    (message, *_) = failures(result)
    assert "local copy" in message and "cem500k_mocov2" in message
    with pytest.raises(FileNotFoundError):
        require_manifest(local_store, WEIGHTS, "cem500k_mocov2")
    assert not materialize(instance, local_store, "nobody").success
    listed = next(line for line in weights_lines(local_store) if line.startswith("cem500k_mocov2 "))
    assert "not available" in listed


def test_an_unknown_setting_is_refused_before_a_run_starts(instance, textured):
    with pytest.raises(DataError, match="the configuration of pretraining_weights cannot be used(.|\n)*no_such_setting"):
        run_job(instance, textured.url, "pretraining_weights", partition="tiny_moco", config={WEIGHTS: {"no_such_setting": 1}})


def test_trained_weights_show_curves_views_and_the_mlflow_run(instance, textured):
    result = materialize(instance, textured, "tiny_moco")
    assert result.success, failures(result)
    shown = metadata_of(result, WEIGHTS)
    assert picture_of(shown["curves"]).width > 200 and picture_of(shown["views"]).width > 200
    assert shown["outcome"].value == "new" and shown["knn_accuracy"].value >= 0 and "mlflow run" in shown
    again = materialize(instance, textured, "tiny_moco")
    assert again.success and metadata_of(again, WEIGHTS)["outcome"].value.startswith("up to date")
    more = materialize(instance, textured, "tiny_moco", params={"epochs": 3})
    assert more.success and require_manifest(textured, WEIGHTS, "tiny_moco").details["epoch"] == 3


def test_two_processes_started_by_the_asset_are_one_of_the_whole_batch(instance, textured, released, tmp_path):
    alone = copy_store(released, open_store(str(tmp_path / "alone")))
    alone.put(ROWS, SETTINGS.encode())
    gentle = {"epochs": 1, "lr": 1e-3}  # or differences in the last bit grow with every step
    assert materialize(instance, alone, "tiny_moco", params=gentle).success
    result = materialize(instance, textured, "tiny_moco", num_processes=2, params=gentle)
    assert result.success, failures(result)
    assert "mlflow run" in metadata_of(result, WEIGHTS)
    one, two = state_of(alone, "tiny_moco", **gentle), state_of(textured, "tiny_moco", **gentle)
    assert [r["loss"] for r in two["results"]] == pytest.approx([r["loss"] for r in one["results"]], rel=1e-5)
    # Sums are taken in another order, so the weights differ in the last bits, by far less than the training changed them.
    plan = make_plan(textured, known_weights(textured)["tiny_moco"], overrides=gentle)
    start = build_plan_method(plan, open_training_data(textured, plan)).state_dict()
    trained = [name for name in start if name.endswith("weight") and "_q." in name]
    moved = sum(float((one["state"][name] - start[name]).square().sum()) for name in trained)
    apart = sum(float((one["state"][name] - two["state"][name]).square().sum()) for name in trained)
    assert moved > 0 and apart < 0.03**2 * moved, (apart / moved) ** 0.5


def test_rows_are_offered_as_partitions_once(instance, textured):
    store = StoreResource(url=textured.url)
    with dg.build_sensor_context(instance=instance, resources={"store": store}) as context:
        result = weights_sensor(context)
    (request,) = result.dynamic_partitions_requests
    assert set(request.partition_keys) == set(known_weights(textured)) and {"tiny_moco", "cem_mocov2"} <= set(
        request.partition_keys
    )
    instance.add_dynamic_partitions(str(weights_rows.name), list(request.partition_keys))
    with dg.build_sensor_context(instance=instance, resources={"store": store}) as context:
        assert weights_sensor(context).dynamic_partitions_requests == []
        assert "0 wait" in tracking_sensor(context).skip_message


def test_values_at_the_command_line_are_json_or_text():
    assert parsed_settings(["epochs=3", "dtype=bfloat16", "crops=[1, 2]"]) == {
        "epochs": 3,
        "dtype": "bfloat16",
        "crops": [1, 2],
    }
    with pytest.raises(ValueError, match="is no setting"):
        parsed_settings(["epochs"])


@pytest.mark.parametrize("way", ["signal", "command"])
def test_a_training_is_stopped_and_goes_on(textured, tmp_path, way):
    words = [
        "-m",
        "cem_assets.cli",
        "--root",
        textured.url,
        "weights",
        "train",
        "long_moco",
        "--device",
        "cpu",
        "--processes",
        "1",
    ]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "home").mkdir()
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    plan = make_plan(textured, known_weights(textured)["long_moco"])
    deadline = time.monotonic() + 200
    while (status := read_status(textured, plan.folder)) is None or status.epoch < 1:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()
        time.sleep(0.1)
    if way == "signal":
        process.send_signal(signal.SIGINT)
    else:
        assert "asked to stop" in stop_training(textured, "long_moco")[0]
    process.wait(timeout=100)
    told = (tmp_path / "out").read_text()
    assert process.returncode in (1, 130), told
    status = read_status(textured, plan.folder)
    assert status.state == "stopped" and 1 <= status.epoch < 200
    kept = state_of(textured, "long_moco")
    assert kept["epoch"] >= status.epoch
    assert any("stopped at epoch" in line for line in weights_lines(textured))
    with pytest.raises(ValueError, match="no training of 'long_moco' is under way"):
        stop_training(textured, "long_moco")
    with dg.DagsterInstance.ephemeral() as instance:  # on it goes, not for long
        result = materialize(instance, textured, "long_moco", params={"epochs": kept["epoch"] + 1})
    assert result.success, failures(result)
    assert len(state_of(textured, "long_moco")["results"]) == kept["epoch"] + 1
    assert json.loads(Path(textured.url_of(f"{plan.folder}/status.json")).read_text())["state"] == "finished"
