"""Training from a release: plans, resuming, extending, stopping, tracking, and the weights that it gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cem_assets import readers
from cem_assets.catalog.weights import TrainedWeights
from cem_assets.operations.maintenance import sweep
from cem_assets.pretraining.checks import weights_give_features
from cem_assets.pretraining.data.release_data import open_training_data
from cem_assets.pretraining.plan import TrainingPlan, find_release, make_plan, read_plan
from cem_assets.pretraining.training import stage as weights_training
from cem_assets.pretraining.training.checkpoints import decode_state, finished_epochs
from cem_assets.pretraining.training.runs import StoreCheckpoints, read_status, request_stop, stop_watch
from cem_assets.pretraining.training.stage import LoopParams, train_weights
from cem_assets.pretraining.weights.results import finish_weights, trained_already
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store, open_store
from cem_assets_tests.conftest import copy_store
from cem_assets_tests.cytoimagenet.example_sources import copy_of
from cem_assets_tests.pretraining.training_sets import SIZES, put_filtered, texture_release, textures

CPU = torch.device("cpu")
QUICK = LoopParams(device="cpu", num_threads=1, num_knn_images=30)
CAREFUL = QUICK.model_copy(update={"checkpoint_interval_s": 0})
SHORT = {"epochs": 2, "batch_size": 16, "queue": 32}
MOCO = TrainedWeights("tiny_moco", "MoCo on textures", "moco", "smoke", "resnet18", "cem", params=SHORT)
SUPERVISED = TrainedWeights(
    "tiny_classes", "Classes", "supervised", "smoke", "resnet18", "cytoimagenet", params={"epochs": 2, "batch_size": 8}
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Make a store with a release of textures, which tests copy."""
    store = open_store(str(tmp_path_factory.mktemp("textures")))
    texture_release(store, {"coarse": 40, "fine": 20, "middle": 12})
    return store


@pytest.fixture
def textured(released: Store, local_store: Store) -> Store:
    return copy_store(released, local_store)


def train(store: Store, plan: TrainingPlan, loop: LoopParams = QUICK, **more):
    return train_weights(store, plan, loop, CPU, **more)


def state_of(store: Store, plan: TrainingPlan) -> dict:
    data = StoreCheckpoints(store, plan.folder).load()
    assert data is not None
    return decode_state(data, "checkpoint")


def assert_equal_state(first, second, where: str = "state") -> None:
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            if key not in ("seconds", "images_per_second"):
                assert_equal_state(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert_equal_state(*pair, f"{where}[{number}]")
    else:
        assert first == second, where


# Plans


def test_a_plan_names_the_release_and_takes_its_norms(textured):
    plan = make_plan(textured, MOCO)
    release = find_release(textured, "cem", "newest")
    assert (plan.version, plan.digest, plan.release) == ("v1", release.digest, "cem/releases/v1")
    assert plan.params.mean == pytest.approx(release.details["pixel_mean"], abs=1e-5)
    assert plan.params.std == pytest.approx(release.details["pixel_std"], abs=1e-5)
    fixed = make_plan(textured, MOCO, overrides={"mean": 0.5, "std": 0.25})
    assert (fixed.params.mean, fixed.params.std) == (0.5, 0.25)
    assert read_plan(textured, plan.write(textured)) == plan


def test_a_run_is_everything_but_how_long_it_trains(textured):
    plan = make_plan(textured, MOCO)
    assert make_plan(textured, MOCO, overrides={"epochs": 9}).run == plan.run
    assert make_plan(textured, MOCO, overrides={"lr": 0.5}).run != plan.run
    put_filtered(textured, "middle", textures(36.0, 9, 5))
    from cem_assets.cem.releases.stage import make_release

    make_release(textured)
    newer = make_plan(textured, MOCO)
    assert newer.version == "v2" and newer.run != plan.run
    assert make_plan(textured, MOCO, "v1").run == plan.run == make_plan(textured, MOCO, plan.digest).run


def test_missing_releases_and_foreign_plans_are_told(textured, local_store, tmp_path):
    empty = open_store(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="no release to train on; materialize cem/releases"):
        make_plan(empty, MOCO)
    with pytest.raises(FileNotFoundError, match="no release of cem/releases has the digest 0000"):
        make_plan(textured, MOCO, "0" * 64)
    with pytest.raises(FileNotFoundError, match="v7"):
        make_plan(textured, MOCO, "v7")
    with pytest.raises(ValueError, match=r"milestons: unknown.*lr: "):
        make_plan(textured, MOCO, overrides={"milestons": [1], "lr": -1})
    textured.put("plan.json", b'{"name": "x"}')
    with pytest.raises(ValueError, match="is no training plan"):
        read_plan(textured, "plan.json")
    with pytest.raises(ValueError, match="supervised training on EM patches"):
        open_training_data(textured, make_plan(textured, TrainedWeights("s", "s", "supervised", "smoke", "resnet18", "cem")))


# The data that is read


def test_every_patch_is_delivered_once_over_epochs_whatever_the_ranks(textured):
    plan = make_plan(textured, MOCO, overrides={"weight_gamma": 0.0, "batch_size": 16, "queue": 32})
    data = open_training_data(textured, plan)
    delivered = []
    for epoch in range(2):
        alone = [batch.rows for batch in data.stream(epoch, 0)]
        assert len(alone) == data.num_batches(epoch)
        shared = [list(data.stream(epoch, 0, rank, 2)) for rank in range(2)]
        for whole, left, right in zip(alone, *shared, strict=True):
            assert np.array_equal(whole, np.concatenate([left.rows, right.rows]))
        assert [batch.number for batch in data.stream(epoch, 2)] == list(range(2, data.num_batches(epoch)))
        delivered.append(np.concatenate(alone))
    counts = np.bincount(np.concatenate(delivered), minlength=72)
    assert counts.sum() == 2 * 72 // 16 * 16 and set(counts.tolist()) <= {1, 2}


def test_an_epoch_larger_than_the_cache_has_the_same_patches(textured, monkeypatch):
    plan = make_plan(textured, MOCO)
    data = open_training_data(textured, plan)
    from dataclasses import replace

    streamed = replace(data, reach=1)
    whole = np.sort(np.concatenate([batch.rows for batch in data.stream(1, 0)]))
    assert np.array_equal(np.sort(np.concatenate([batch.rows for batch in streamed.stream(1, 0)])), whole)


def test_the_sample_that_is_looked_at_is_even_over_datasets(textured):
    data = open_training_data(textured, make_plan(textured, MOCO))
    rows = data.sample(45, 0)
    assert np.bincount(data.labels[rows]).tolist() == [16, 16, 12]
    assert len(data.sample(1000, 0)) == 72 and np.array_equal(rows, data.sample(45, 0))


# Stopping, resuming, extending


@pytest.fixture(scope="module")
def uninterrupted(released: Store, tmp_path_factory) -> Store:
    store = copy_store(released, open_store(str(tmp_path_factory.mktemp("whole"))))
    outcome = train(store, make_plan(store, MOCO))
    assert outcome.is_finished
    return store


def test_a_stopped_and_resumed_training_equals_the_uninterrupted_one(textured, uninterrupted, tmp_path):
    plan = make_plan(textured, MOCO)
    asked = iter(range(1000))
    outcome = train(textured, plan, should_stop=lambda: next(asked) >= 5)
    assert not outcome.is_finished and len(outcome.results) == 1
    status = read_status(textured, plan.folder)
    assert (status.state, status.epoch, status.num_epochs) == ("stopped", 1, 2)
    again = train(textured, plan)
    assert again.is_finished and len(again.results) == 2
    assert_equal_state(state_of(textured, plan), state_of(uninterrupted, plan))
    whole = copy_of(uninterrupted, open_store(str(tmp_path / "whole")))
    mine, theirs = finish_weights(textured, plan, "t"), finish_weights(whole, plan, "t")
    assert mine.manifest.digest == theirs.manifest.digest


def test_more_epochs_extend_and_fewer_are_refused(textured):
    one = make_plan(textured, MOCO, overrides={"epochs": 1})
    assert train(textured, one).is_finished
    first = finish_weights(textured, one, "t").manifest
    three = make_plan(textured, MOCO, overrides={"epochs": 3})
    seen = []
    outcome = train(textured, three, on_epoch=lambda result: seen.append(result.epoch))
    assert outcome.is_finished and seen == [2, 3] and len(outcome.results) == 3
    second = finish_weights(textured, three, "t").manifest
    assert (first.details["epoch"], second.details["epoch"]) == (1, 3)
    with pytest.raises(ValueError, match="has done 3 epochs already, and 2 were asked for"):
        train(textured, make_plan(textured, MOCO, overrides={"epochs": 2}))
    with pytest.raises(ValueError, match="has done 3 of 5 epochs"):
        finish_weights(textured, make_plan(textured, MOCO, overrides={"epochs": 5}), "t")


def test_a_stop_asked_for_in_the_store_is_seen_and_forgotten(textured, monkeypatch):
    plan = make_plan(textured, MOCO)
    monkeypatch.setattr(weights_training, "stop_watch", lambda store, folder: stop_watch(store, folder, 0.0))
    outcome = train(textured, plan, on_epoch=lambda _: request_stop(textured, plan.folder))
    assert not outcome.is_finished and len(outcome.results) == 1
    assert train(textured, plan).is_finished  # the wish was of an earlier time


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(textured, monkeypatch):
    plan = make_plan(textured, MOCO)
    from cem_assets.pretraining.methods.moco import MoCo

    original, calls = MoCo.compute_loss, []

    def sometimes(self, views, labels, step, epoch):
        calls.append(step)
        loss, indicators = original(self, views, labels, step, epoch)
        return (loss * float("nan") if step == 6 else loss), indicators

    monkeypatch.setattr(MoCo, "compute_loss", sometimes)
    with pytest.raises(ValueError, match=r"the loss of step 7 is not finite.*checkpoint of step 6 was kept"):
        train(textured, plan, CAREFUL)
    status = read_status(textured, plan.folder)
    assert status.state == "failed" and "not finite" in status.message
    assert state_of(textured, plan)["step"] == 6
    monkeypatch.undo()
    assert train(textured, plan).is_finished


PROGRAM = """
import sys, torch
from cem_assets.pretraining.plan import read_plan
from cem_assets.pretraining.training.stage import LoopParams, train_weights
from cem_assets.store.store import open_store
store = open_store(sys.argv[1])
loop = LoopParams(device="cpu", num_threads=1, num_knn_images=30, checkpoint_interval_s=0)
train_weights(store, read_plan(store, sys.argv[2]), loop, torch.device("cpu"))
"""


def test_killed_at_a_random_moment_it_goes_on_and_ends_the_same(textured, uninterrupted, tmp_path):
    plan = make_plan(textured, MOCO)
    key = plan.write(textured)
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), textured.url, key], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    checkpoint = StoreCheckpoints(textured, plan.folder)
    deadline = time.monotonic() + 120
    while textured.stat(checkpoint.key) is None:  # it trains
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = state_of(textured, plan)
    assert 0 < kept["step"] <= 9
    assert train(textured, plan).is_finished
    assert_equal_state(state_of(textured, plan), state_of(uninterrupted, plan))


# The resulting weights


def test_weights_load_and_say_where_they_come_from(uninterrupted, local_store):
    store = copy_of(uninterrupted, local_store)
    plan = make_plan(store, MOCO)
    result = finish_weights(store, plan, "MoCo on textures", "run-1")
    assert result.is_new and not finish_weights(store, plan, "MoCo on textures").is_new
    assert trained_already(store, plan).manifest.digest == result.manifest.digest
    names = {item.name for item in result.manifest.objects}
    assert names == {
        "README.md", "checkpoint.pth", "curves.png", "results.json", "views.png", "weights.json", "weights.safetensors"
    }  # fmt: skip
    encoder = readers.load_weights("tiny_moco", "resnet18", root=store.url)
    method = weights_training.build_plan_method(plan, open_training_data(store, plan))
    method.load_state_dict(state_of(store, plan)["state"])
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(encoder(images), method.encoder.eval()(images))
    published = torch.load(Path(store.url_of(f"{result.manifest.folder}/checkpoint.pth")), weights_only=True)
    assert set(published) == {"epoch", "arch", "state_dict", "norms"} and published["norms"] == [
        plan.params.mean,
        plan.params.std,
    ]
    assert all(name.startswith("module.encoder_q.") for name in published["state_dict"])
    sidecar = json.loads(store.read(f"{result.manifest.folder}/weights.json"))
    assert sidecar["provenance"]["release"]["digest"] == plan.digest
    assert [source["licence"] for source in sidecar["provenance"]["data"]] == ["CC0-1.0"] * 3
    card = store.read(f"{result.manifest.folder}/README.md").decode()
    assert "Textures coarse, 2026" in card and plan.digest in card and "knn_accuracy" in card
    assert weights_give_features(store, "tiny_moco").passed


def test_collapsed_weights_do_not_pass_the_check(uninterrupted, local_store):
    from cem_assets.execution.stage import begin
    from cem_assets.pretraining.weights.export import EncoderWeights
    from cem_assets.pretraining.weights.files import commit_weights
    from cem_assets.pretraining.weights.stored import load_encoder_weights
    from cem_assets.store.manifests import Inputs

    store = copy_of(uninterrupted, local_store)
    finish_weights(store, make_plan(store, MOCO), "t")
    weights, _ = load_encoder_weights(store, "tiny_moco")
    last = [name for name in weights.state if name.startswith("layer4") and "bn" in name and name.endswith(("weight", "bias"))]
    last += [name for name in weights.state if name.startswith("layer4.0.downsample.1") and name.endswith(("weight", "bias"))]
    flat = {name: torch.zeros_like(value) if name in last else value for name, value in weights.state.items()}
    collapsed = EncoderWeights(weights.arch, flat, weights.norms, 1)
    commit_weights(begin(store, Inputs(WEIGHTS, "flat", "1", {}, {})), collapsed, "moco", {}, "card")
    outcome = weights_give_features(store, "flat")
    assert not outcome.passed and "collapsed" in outcome.description


def test_the_sweep_leaves_runs_alone_and_takes_older_weights(textured):
    one = make_plan(textured, MOCO, overrides={"epochs": 1})
    train(textured, one)
    first = finish_weights(textured, one, "t").manifest
    two = make_plan(textured, MOCO)
    train(textured, two)
    second = finish_weights(textured, two, "t").manifest
    swept = sweep(textured, min_age_hours=-1)
    assert first.folder in swept.folders and second.folder not in swept.folders
    assert state_of(textured, two)["epoch"] == 2 and readers.load_weights("tiny_moco", root=textured.url) is not None


# Tracking


def test_curves_pictures_and_the_registered_model_are_in_mlflow(textured):
    import mlflow

    plan = make_plan(textured, MOCO)
    outcome = train(textured, plan, tags={"dagster_run": "abc"})
    manifest = finish_weights(textured, plan, "t").manifest
    from cem_assets.tracking.mlflow import tracking_uri

    client = mlflow.MlflowClient(tracking_uri=tracking_uri())
    run = client.get_run(outcome.link.run_id)
    assert run.info.status == "FINISHED" and client.get_experiment(run.info.experiment_id).name == "pretraining/moco"
    params = run.data.params
    assert params["release_digest"] == plan.digest and params["epochs"] == "2" and params["temperature"] == "0.1"
    tags = run.data.tags
    assert tags["dagster_run"] == "abc" and tags["device"].startswith("cpu") and tags["torch"] == torch.__version__
    for name in ("loss", "learning_rate", "images_per_second", "gpu_memory_gib", "feature_std", "knn_accuracy"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2], name
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"views.png", "curves.png", "model"} <= artifacts
    versions = client.search_model_versions("name='tiny_moco'")
    assert [version.tags["digest"] for version in versions] == [manifest.digest]
    assert list(textured.walk("tracking/outbox")) == []


def test_mlflow_down_delays_nothing_and_is_written_when_it_is_back(textured, monkeypatch, tmp_path):
    from cem_assets.tracking.outbox import drain_outbox

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    plan = make_plan(textured, MOCO)
    started = time.monotonic()
    outcome = train(textured, plan)
    assert outcome.is_finished and outcome.link is None
    waiting = len([item for item in textured.walk("tracking/outbox") if item.key.endswith(".json")])
    assert waiting >= 5 and time.monotonic() - started < 90
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/later.db")
    drained = drain_outbox(textured)
    assert (drained.num_delivered, drained.num_left) == (waiting, 0)
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/later.db")
    experiment = client.get_experiment_by_name("pretraining/moco")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]


def test_sizes_of_the_shared_release_are_uneven():
    assert len(set(SIZES.values())) == len(SIZES), "or weight_gamma would have nothing to do"


def test_committed_weights_name_their_release_upstream(textured):
    plan = make_plan(textured, MOCO, overrides={"epochs": 1})
    train(textured, plan)
    finish_weights(textured, plan, "t")
    manifest = require_manifest(textured, WEIGHTS, "tiny_moco")
    assert dict(manifest.inputs.upstream) == {"cem/releases/v1": plan.digest}
    assert finished_epochs(StoreCheckpoints(textured, plan.folder).load())[0].epoch == 1
