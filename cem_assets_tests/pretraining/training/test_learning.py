"""Every method learns on a small release, on a CPU: the loss falls, and features tell the datasets apart."""

import json

import numpy as np
import pytest
import torch

from cem_assets import readers
from cem_assets.catalog.weights import TrainedWeights
from cem_assets.pretraining.data.release_data import open_training_data
from cem_assets.pretraining.plan import make_plan
from cem_assets.pretraining.training.stage import LoopParams, train_weights
from cem_assets.pretraining.weights.results import finish_weights
from cem_assets.store.store import Store, open_store
from cem_assets_tests.pretraining.training_sets import class_release, texture_release

CPU = torch.device("cpu")
LOOP = LoopParams(device="cpu", num_threads=1, num_knn_images=200, evaluate_every=8, checkpoint_interval_s=1e6)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("classes")))
    class_release(store)
    return store


def row(method: str, dataset: str = "cem", subset: str = "", **params: object) -> TrainedWeights:
    return TrainedWeights(f"learned_{method}", "Learned", method, "smoke", "resnet18", dataset, subset=subset, params=params)


@pytest.mark.parametrize("method", ["moco", "swav"])
def test_without_labels_the_loss_falls_and_datasets_are_told_apart(local_store, method):
    texture_release(local_store)
    plan = make_plan(local_store, row(method))
    results = train_weights(local_store, plan, LOOP, CPU).results
    losses = [result.loss for result in results]
    if method == "moco":
        # The first epochs have few negatives, and a low loss for that reason alone.
        assert np.mean(losses[-3:]) < np.max(losses) - 0.15, losses
    else:
        assert losses[-1] < losses[0] - 0.4, losses
    last = results[-1].indicators
    assert last["knn_accuracy"] > last["knn_chance"] + 0.1
    assert last["knn_feature_std"] > 0.002, "features have collapsed"


def test_classes_are_learned_and_scored_in_full(classes):
    plan = make_plan(classes, row("supervised", "cytoimagenet", epochs=8, batch_size=16))
    data = open_training_data(classes, plan)
    assert data.classes == ("drug a", "drug b", "drug c") and set(data.categories) == {"compound"}
    assert len(data.validation) >= 9 and not set(data.validation) & set(data.rows)
    results = train_weights(classes, plan, LOOP, CPU).results
    assert results[-1].loss < 0.6 * results[0].loss
    last = results[-1].indicators
    assert last["validation_top1"] > 1 / 3 + 0.25 and last["validation_top5"] == 1.0
    manifest = finish_weights(classes, plan, "Classes").manifest
    scores = json.loads(classes.read(f"{manifest.folder}/classification.json"))
    assert scores["top1"] == pytest.approx(last["validation_top1"], abs=0.1)
    assert scores["per_category"]["compound"]["num_images"] == len(data.validation)
    assert sum(count for _, _, count in scores["confusion"]) == len(data.validation)
    assert {"confusion.png", "curves.png", "views.png"} <= {item.name for item in manifest.objects}
    assert "top1" in classes.read(f"{manifest.folder}/README.md").decode()
    encoder = readers.load_weights("learned_supervised", "resnet18", root=classes.url)
    assert encoder(torch.zeros(2, 1, 64, 64)).shape == (2, 512)


def test_a_subset_trains_on_its_classes_alone(classes, monkeypatch):
    from cem_assets.pretraining.data import subsets

    monkeypatch.setitem(subsets.SUBSETS, "toy_20", 2)
    plan = make_plan(classes, row("supervised", "cytoimagenet", "toy_20", epochs=1, batch_size=16))
    data = open_training_data(classes, plan)
    assert len(data.classes) == 2 and plan.run != make_plan(classes, row("supervised", "cytoimagenet")).run
    assert set(data.labels[data.rows]) == {0, 1} and (data.labels == -1).sum() > 0
    assert all(set(batch.labels) <= {0, 1} for batch in data.stream(0, 0))
    assert [name for name in data.source.classes if name not in data.classes] != []


def test_labels_are_not_needed_to_train_on_fluorescence(classes):
    data = open_training_data(classes, make_plan(classes, row("moco", "cytoimagenet", weight_gamma=0.0)))
    assert len(data.rows) == data.source.num_rows and len(data.validation) == 0
    with pytest.raises(ValueError, match="leaves .* images to train on; expected at least a batch of 512"):
        open_training_data(classes, make_plan(classes, row("supervised", "cytoimagenet", batch_size=512)))
