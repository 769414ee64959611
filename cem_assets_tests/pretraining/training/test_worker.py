"""One process of a training: what it leaves in the store when it fails before the training begins."""

from contextlib import nullcontext

import pytest

from cem_assets.catalog.weights import TrainedWeights
from cem_assets.errors import DataError
from cem_assets.pretraining import distributed
from cem_assets.pretraining.plan import TrainingPlan, make_plan
from cem_assets.pretraining.training import worker
from cem_assets.pretraining.training.runs import RunStatus, read_status, write_status
from cem_assets.store.store import Store
from cem_assets_tests.pretraining.training_sets import texture_release

MOCO = TrainedWeights(
    "tiny_moco", "MoCo", "moco", "smoke", "resnet18", "cem", params={"epochs": 1, "batch_size": 16, "queue": 32}
)


@pytest.fixture
def plan(local_store: Store) -> TrainingPlan:
    texture_release(local_store, {"coarse": 12, "fine": 8})
    return make_plan(local_store, MOCO)


def run(store: Store, plan: TrainingPlan) -> int:
    return worker.main(["--root", store.url, "--plan", plan.write(store), "--loop", '{"device": "cpu", "num_threads": 1}'])


def test_a_failure_before_the_training_is_written_with_its_fault(local_store, plan, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 5)
    with pytest.raises(DataError, match="16 images cannot be divided evenly among 5 processes"):
        run(local_store, plan)
    status = read_status(local_store, plan.folder)
    assert (status.state, status.fault, status.num_epochs) == ("failed", "data", 1)
    assert "among 5 processes" in status.message


def test_what_follows_from_another_process_does_not_replace_its_reason(local_store, plan, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(worker, "train_weights", fail)
    monkeypatch.setattr(distributed, "process_group", nullcontext)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RuntimeError):
        run(local_store, plan)
    assert read_status(local_store, plan.folder) is None  # this process does not know the cause
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError):
        run(local_store, plan)
    assert read_status(local_store, plan.folder).fault == "bug"

    def told_then_fail(*arguments, **more):
        write_status(local_store, plan.folder, RunStatus("failed", 0, 1, 0, message="the loss is not finite", fault="data"))
        fail()

    monkeypatch.setattr(worker, "train_weights", told_then_fail)
    with pytest.raises(RuntimeError):
        run(local_store, plan)
    assert read_status(local_store, plan.folder).message == "the loss is not finite"
