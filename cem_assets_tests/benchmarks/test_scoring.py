"""Scoring weights: U-Nets on planes, volumes and unions, resumed and stopped; features extracted, fused and given."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch

from cem_assets.benchmarks.data.segmentation_sets import open_benchmark
from cem_assets.benchmarks.data.stage import prepare_benchmark
from cem_assets.benchmarks.data.transfer_sets import open_transfer
from cem_assets.benchmarks.rows import require_benchmark
from cem_assets.benchmarks.scores.inputs import find_weights, finite
from cem_assets.benchmarks.scores.stored import read_score_rows, read_scores, score_keys
from cem_assets.benchmarks.scoring import BenchmarkScoreParams, run_folder, score_benchmark, score_key, score_lines
from cem_assets.benchmarks.segmentation import stage as segmentation_scores
from cem_assets.benchmarks.segmentation.inference import Predictor
from cem_assets.benchmarks.segmentation.items import TrainingPlanes, pictured_planes, rules_of
from cem_assets.benchmarks.segmentation.metrics import count_classes, match_instances
from cem_assets.benchmarks.segmentation.model import build_unet
from cem_assets.benchmarks.segmentation.plan import plan_segmentation
from cem_assets.benchmarks.transfer import stage as transfer_scores
from cem_assets.benchmarks.transfer.features import stage as benchmark_features
from cem_assets.benchmarks.transfer.features.extraction import FeatureParams, extract_features
from cem_assets.benchmarks.transfer.features.params import FeatureSettings
from cem_assets.benchmarks.transfer.features.stage import extract_benchmark_features, read_benchmark_features
from cem_assets.benchmarks.transfer.metrics import knn_predictions
from cem_assets.catalog.benchmarks import SETTINGS
from cem_assets.errors import DataError, Fault, fault_of
from cem_assets.pretraining.training.runs import CHECKPOINT, read_status, request_stop, stop_watch
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_FEATURES, BENCHMARK_SCORES, WEIGHTS
from cem_assets.store.manifests import Manifest, committed_partitions, damaged_objects
from cem_assets.store.store import Store, open_store
from cem_assets_tests.benchmarks import published
from cem_assets_tests.benchmarks.benchmark_sets import NORMS, prepare_all, put_weights

QUICK = {"device": "cpu", "num_threads": 1, "crop_threads": 1, "has_map": False, "evaluate_every": 10}


def params(**changes) -> BenchmarkScoreParams:
    return BenchmarkScoreParams(**(QUICK | changes))


class Recorder:
    """Stands in for the MLflow run, and records what it is told."""

    opened: ClassVar[list["Recorder"]] = []

    def __init__(self, store, key, experiment, run_name, parameters, tags) -> None:
        self.key, self.experiment, self.parameters, self.tags = key, experiment, parameters, tags
        self.metrics: list = []
        self.artifacts: dict[str, bytes] = {}
        self.ends: list[str] = []
        Recorder.opened.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        assert self.ends, "every run is finished in words"

    def log_metrics(self, metrics) -> None:
        self.metrics += metrics

    def log_artifact(self, name, data) -> None:
        self.artifacts[name] = data

    def log_tags(self, tags) -> None:
        self.tags |= tags

    def finish(self, status) -> None:
        self.ends.append(status)


@pytest.fixture(autouse=True)
def _alone(monkeypatch) -> Iterator[None]:
    for stage in (segmentation_scores, transfer_scores):
        monkeypatch.setattr(stage, "open_tracked_run", Recorder)
    Recorder.opened.clear()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with four benchmarks and weights; every test scores with another seed."""
    folder = tmp_path_factory.mktemp("sets")
    store = open_store(str(folder / "store"))
    prepare_all(store, folder)
    put_weights(store, "pretrained", release="cem/releases/v3")
    put_weights(store, "other", seed=1, norms=None)
    put_weights(store, "chance", method="random", seed=2)
    return store


def results_of(store: Store, manifest: Manifest) -> dict:
    return json.loads(store.read(f"{manifest.folder}/results.json"))


def kept_network(store: Store, manifest: Manifest, num_classes: int, norms=NORMS) -> Predictor:
    """Rebuild the network from the stored file, without the code under test."""
    found = require_params(store, manifest)
    model = build_unet("resnet18", num_classes, None)
    model.load_state_dict(safetensors.torch.load(store.read(f"{manifest.folder}/model.safetensors")))
    assert (found.mean, found.std) == pytest.approx(norms)
    return Predictor(model, found, torch.device("cpu"))


def require_params(store: Store, manifest: Manifest):
    from cem_assets.benchmarks.segmentation.params import SegmentationParams

    return SegmentationParams.model_validate(results_of(store, manifest)["parameters"])


# Segmentation


def test_a_score_is_that_of_the_network_it_keeps(sets):
    result = score_benchmark(sets, "discs", "pretrained", params(seed=1, keep_model=True, evaluate_every=2), run_id="r1")
    manifest = result.manifest
    assert result.is_new and not damaged_objects(sets, manifest)
    predictor = kept_network(sets, manifest, 1)
    counts = [
        count_classes(predictor.predict_2d(np.asarray(item.image[...])), np.asarray(item.mask[...]), 2)
        for item in open_benchmark(sets, "discs").items("test")
    ]
    expected = (counts[0] + counts[1]).iou()[1]
    rows = read_score_rows(sets, manifest)
    (main,) = rows[rows["is_main"]].to_dict("records")
    assert main["value"] == expected == manifest.details["main"]["value"] and 0 < expected < 1
    assert (main["metric"], main["test_set"], main["class_name"], main["num"]) == ("iou", "all", "", 2)
    assert (main["release"], main["release_digest"], main["iterations"]) == ("cem/releases/v3", "ab" * 32, 4)
    assert main["low"] == main["high"] == main["value"] and main["finetune_layer"] == "none" and main["seed"] == 1
    assert rows[rows["class_name"] == "disc"]["value"].tolist() == [expected]
    assert set(manifest.inputs.upstream) == {f"{WEIGHTS}/pretrained", f"{BENCHMARK_DATA}/discs"}
    history = results_of(sets, manifest)["history"]
    assert [point["step"] for point in history] == [2, 4] and set(history[0]["iou"]) == {"disc"}
    assert results_of(sets, manifest)["history_split"] == "valid"
    assert manifest.details["steps_to_share"]["steps"] in (2, 4)
    names = [item.name for item in manifest.objects]
    assert names == ["errors_00.png", "errors_01.png", "history.png", "model.safetensors", "results.json", "scores.parquet"]
    assert score_lines(manifest)[1] == f"  iou: {100 * expected:.2f} %, 2 scored"
    again = score_benchmark(sets, "discs", "pretrained", params(seed=1, keep_model=True, evaluate_every=2))
    assert not again.is_new and again.manifest.digest == manifest.digest


def test_what_mlflow_and_the_status_are_told(sets):
    asked = params(seed=2, evaluate_every=2)
    score_benchmark(sets, "discs", "pretrained", asked, tags={"dagster_run": "abc"})
    (run,) = Recorder.opened
    assert run.experiment == "benchmarks/discs" and run.ends == ["FINISHED"] and run.tags["dagster_run"] == "abc"
    told = {(metric.key, metric.step) for metric in run.metrics}
    assert {("loss", 2), ("loss", 4), ("iou", 2), ("iou/disc", 4), ("test/iou", 4), ("test/iou/disc", 4)} <= told
    assert {"errors_00.png", "history.png", "results.json"} <= set(run.artifacts)
    folder = run_folder(sets, "discs", "pretrained", asked)
    status = read_status(sets, folder)
    assert (status.state, status.step, status.num_epochs) == ("finished", 4, 4)
    assert sets.size(f"{folder}/{CHECKPOINT}") is None  # a committed score needs no state


def test_seeds_layers_and_iterations_are_partitions_of_their_own_and_nothing_is_overwritten(sets):
    asked = [
        params(seed=3, iterations=1),
        params(seed=4, iterations=1),
        params(seed=3, iterations=1, finetune_layer="layer4"),
        params(seed=3, iterations=1, params={"threshold": 0.25}),
    ]
    found = [score_benchmark(sets, "discs", "other", one).manifest for one in asked]
    partitions = [manifest.inputs.partition for manifest in found]
    assert len(set(partitions)) == 4
    assert partitions[0].removesuffix("-s3") == partitions[1].removesuffix("-s4")
    assert [key.partition for key in score_keys(sets, "discs", "other")] == sorted(partitions)
    rows = read_scores(sets, "discs", "other")
    assert sorted(rows[rows["is_main"]]["finetune_layer"]) == ["layer4", "none", "none", "none"]
    # Weights without norms get those of the parameters, which are those of CEM500K.
    assert results_of(sets, found[0])["parameters"]["mean"] == 0.57287
    for number, manifest in enumerate(found):
        assert not score_benchmark(sets, "discs", "other", asked[number]).is_new
        assert not damaged_objects(sets, manifest)
    # Parameters that do not change the score do not change the partition either.
    more = params(seed=3, iterations=1, evaluate_every=0, max_pictures=0, slab_px=3, checkpoint_interval_s=1)
    assert score_key(sets, "discs", "other", more).partition == partitions[0]
    assert score_key(sets, "discs", "other", params(seed=3, iterations=2)).partition not in partitions


def test_random_weights_are_trained_whole_whatever_is_asked(sets):
    keys = [score_key(sets, "discs", "chance", params(finetune_layer=layer)) for layer in ("", "layer3", "all")]
    assert len(set(keys)) == 1
    manifest = score_benchmark(sets, "discs", "chance", params(seed=5, iterations=1)).manifest
    assert manifest.details["finetune_layer"] == "all"
    assert set(read_score_rows(sets, manifest)["finetune_layer"]) == {"all"}


def stop_after(num: int) -> Callable[[], bool]:
    asked = iter(range(1000))
    return lambda: next(asked) >= num - 1


def content_of(store: Store, manifest: Manifest) -> dict[str, bytes]:
    names = [item.name for item in manifest.objects if item.name.startswith(("results", "scores", "errors"))]
    return {name: store.read(f"{manifest.folder}/{name}") for name in names}


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_resumed_training_scores_as_one_that_ran_through(sets, end, tmp_path):
    """The second partition asks for other pictures, so that the same score is computed again."""
    seed = {"stopped": 6, "killed": 7}[end]
    asked = params(seed=seed, iterations=4, checkpoint_interval_s=0 if end == "killed" else 300, max_pictures=0)
    if end == "stopped":
        with pytest.raises(InterruptedError, match="training of 'discs' with 'pretrained' was stopped"):
            score_benchmark(sets, "discs", "pretrained", asked, should_stop=stop_after(3))
    else:

        def die(done: int, total: int) -> None:
            assert total == 6  # four steps and two images
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            score_benchmark(sets, "discs", "pretrained", asked, progress=die)
    folder = run_folder(sets, "discs", "pretrained", asked)
    assert sets.size(f"{folder}/{CHECKPOINT}") and Recorder.opened[0].ends == ["KILLED"]
    assert read_status(sets, folder).state == {"stopped": "stopped", "killed": "failed"}[end]
    steps = []
    resumed = score_benchmark(sets, "discs", "pretrained", asked, progress=lambda done, total: steps.append(done)).manifest
    assert steps[0] == {"stopped": 4, "killed": 3}[end] and steps[-1] == 6
    assert Recorder.opened[0].key == Recorder.opened[1].key  # one run in MLflow
    whole = score_benchmark(
        sets, "discs", "pretrained", asked.model_copy(update={"max_pictures": 1, "checkpoint_interval_s": 300})
    ).manifest
    assert whole.inputs.partition == resumed.inputs.partition and whole.number == resumed.number + 1
    found, expected = content_of(sets, resumed), content_of(sets, whole)
    expected.pop("errors_00.png")
    assert found == expected and len(found) == 2


def test_a_stop_asked_for_in_the_store_is_seen_and_one_in_the_test_too(sets, monkeypatch):
    monkeypatch.setattr(segmentation_scores, "stop_watch", lambda store, folder: stop_watch(store, folder, 0.0))
    asked = params(seed=8, iterations=2, evaluate_every=0)
    folder = run_folder(sets, "discs", "pretrained", asked)
    with pytest.raises(InterruptedError, match="training"):
        score_benchmark(sets, "discs", "pretrained", asked, progress=lambda done, total: request_stop(sets, folder))
    with pytest.raises(InterruptedError, match="testing"):
        score_benchmark(
            sets, "discs", "pretrained", asked, progress=lambda done, total: done >= 2 and request_stop(sets, folder)
        )
    assert sets.size(f"{folder}/{CHECKPOINT}")
    assert score_benchmark(sets, "discs", "pretrained", asked).is_new


def test_other_weights_of_the_same_name_do_not_go_on_from_the_old_state(local_store, sets, tmp_path):
    shutil.copytree(Path(sets.url_of(BENCHMARK_DATA)), Path(local_store.url_of(BENCHMARK_DATA)))
    local_store.put(SETTINGS, sets.read(SETTINGS))
    put_weights(local_store, "mine")
    first = run_folder(local_store, "discs", "mine", params())
    put_weights(local_store, "mine", seed=1)
    assert run_folder(local_store, "discs", "mine", params()) != first
    assert score_key(local_store, "discs", "mine").partition.startswith("discs/mine/")


@pytest.mark.parametrize("mode", ["stack", "orthoplane"])
def test_volumes_are_scored_slab_by_slab_as_in_memory(sets, mode):
    asked = params(
        seed=9, iterations=1, evaluate_every=0, keep_model=True, slab_px=5, params={"test_mode": mode, "mask_unlabelled": True}
    )
    manifest = score_benchmark(sets, "layers", "pretrained", asked).manifest
    predictor = kept_network(sets, manifest, 3)
    (item,) = open_benchmark(sets, "layers").items("test")
    volume, labels = np.asarray(item.image[...]), np.asarray(item.mask[...])
    out = np.zeros_like(volume)
    predictor.predict_volume(volume, mode, out)
    iou = count_classes(np.where(labels > 0, out, 0).astype(np.uint8), labels, 3).iou()
    rows = read_score_rows(sets, manifest)
    by_class = rows[(rows["metric"] == "iou") & (rows["class_name"] != "")].set_index("class_name")["value"]
    assert by_class.to_dict() == {"disc": iou[1], "ring": iou[2]}
    assert manifest.details["main"]["value"] == pytest.approx(iou[1:].mean())
    assert manifest.counts["images"] == 1 and manifest.counts["pictures"] == 7  # six slices and the curve


def test_parts_of_a_union_are_scored_by_their_own_rules(sets):
    manifest = score_benchmark(
        sets, "both", "pretrained", params(seed=10, iterations=2, evaluate_every=0, keep_model=True)
    ).manifest
    predictor, benchmark = kept_network(sets, manifest, 1), open_benchmark(sets, "both")
    planes = []
    for item in benchmark.items("test", "discs"):
        labels = np.asarray(item.mask[...])
        planes.append(
            count_classes(match_instances(predictor.predict_2d(np.asarray(item.image[...])), labels, (1,)), labels, 2)
        )
    (item,) = benchmark.items("test", "layers")
    labels, out = np.asarray(item.mask[...]), np.zeros(item.shape, np.uint8)
    assert labels.max() == 2  # the network does not know the ring, which only says where the volume is scored
    predictor.predict_volume(np.asarray(item.image[...]), "stack", out)
    is_labelled = labels > 0
    found, known = out[is_labelled] == 1, labels[is_labelled] == 1
    expected = {"discs": (planes[0] + planes[1]).iou()[1], "layers": (found & known).sum() / (found | known).sum()}
    rows = read_score_rows(sets, manifest)
    means = rows[(rows["class_name"] == "") & (rows["metric"] == "iou")].set_index("test_set")["value"]
    assert means.drop("all").to_dict() == pytest.approx(expected)
    assert means["all"] == manifest.details["main"]["value"] == pytest.approx(np.mean(list(expected.values())))


def test_training_planes_are_the_same_read_ahead_or_on_demand(sets):
    for name, num in (("discs", 3), ("layers", 12), ("both", 15)):
        plan = plan_segmentation(sets, require_benchmark(sets, name), "pretrained", params())
        items = plan.benchmark.items("train")
        held, lazy = (TrainingPlanes(items, plan.rules, size) for size in (1 << 30, 0))
        assert len(held) == len(lazy) == num
        for ahead, asked_for in zip(held, lazy, strict=True):
            assert all(np.array_equal(a, b) and a.dtype == np.uint8 for a, b in zip(ahead, asked_for, strict=True))
    params_3d = plan_segmentation(sets, require_benchmark(sets, "layers"), "other", params(params={"test_mode": "orthoplane"}))
    planes = TrainingPlanes(params_3d.benchmark.items("train"), params_3d.rules, 0)
    assert Counter(image.shape for image, _ in planes) == {(36, 40): 12, (12, 40): 36, (12, 36): 40}


def test_pictures_take_parts_in_turn_and_spread_over_volumes(sets):
    items = open_benchmark(sets, "both").items("test")
    assert [item.part for item in items] == ["discs", "discs", "layers"]
    assert pictured_planes(items, 2) == {0: [0], 2: [6]}
    assert pictured_planes(items, 5) == {0: [0], 1: [0], 2: [2, 6, 10]}
    assert pictured_planes(items, 0) == {}
    assert sum(map(len, pictured_planes(items, 99).values())) == 14


def test_a_loss_that_is_not_finite_is_told_and_tracked_as_failed(sets, monkeypatch):
    from cem_assets.benchmarks.segmentation import training as segmentation_training

    loss = segmentation_training.segmentation_loss
    monkeypatch.setattr(segmentation_training, "segmentation_loss", lambda *given: loss(*given) * float("nan"))
    asked = params(seed=11)
    with pytest.raises(DataError, match="not finite"):
        score_benchmark(sets, "discs", "pretrained", asked)
    assert Recorder.opened[0].ends == ["FAILED"]
    assert "not finite" in read_status(sets, run_folder(sets, "discs", "pretrained", asked)).message


# Refusals


@pytest.mark.parametrize(
    ("benchmark", "weights", "changes", "error", "message"),
    [
        ("nothing", "pretrained", {}, KeyError, "there is no benchmark 'nothing'"),
        ("lucchi_pp", "pretrained", {}, FileNotFoundError, "benchmarks/data, partition 'lucchi_pp' has nothing committed"),
        ("discs", "absent", {}, FileNotFoundError, "pretraining/weights, partition 'absent' has nothing committed"),
        ("cells", "absent", {}, FileNotFoundError, "pretraining/weights, partition 'absent' has nothing committed"),
        ("cells", "pretrained+absent", {}, FileNotFoundError, "partition 'absent'"),
        ("discs", "pretrained+other", {}, DataError, "segmentation cannot fuse weights"),
        ("cells", "other+other", {}, DataError, "different names joined"),
        ("cells", "given", {}, DataError, "holds images; expected weights, found 'given'"),
        ("discs", "pretrained", {"params": {"crop": 1, "lr": -1}}, DataError, "lr: .*crop: |crop: .*lr: "),
        ("discs", "pretrained", {"params": {"seed": 1}}, DataError, "give it as `seed`"),
        ("discs", "pretrained", {"finetune_layer": "layer9"}, DataError, "finetune_layer: .*layer9"),
        ("discs", "pretrained", {"params": {"test_mode": "stack"}}, DataError, r'test image 0 is \(70, 50\).*test_mode "2d"'),
        ("layers", "pretrained", {"params": {"test_mode": "2d"}}, DataError, 'expected test_mode "stack" or "orthoplane"'),
        (
            "layers",
            "pretrained",
            {"params": {"num_classes": 1, "scored_classes": [1], "class_weights": []}},
            DataError,
            "training image volume has labels above 1",
        ),
        ("discs", "pretrained", {"params": {"test_mode": "mixed"}}, DataError, "no rule for its own images"),
        ("cells", "pretrained", {"params": {"neighbours": 3}}, DataError, "neighbours unknown; expected some of label, "),
        ("cells", "pretrained", {"params": {"protocol": "best"}}, DataError, "protocol is 'best'; expected one of treatments"),
        ("cells", "pretrained", {"params": {"metric": "manhattan", "side_px": 1}}, DataError, "side_px"),
        ("cells", "pretrained", {"params": {"k": 0}}, DataError, "k: "),
        ("cells", "pretrained", {"params": {"k": 3, "num_neighbours": 3}}, DataError, "which are the same"),
        ("cells", "pretrained", {"params": {"protocol": "treatments"}}, DataError, "k is 3; treatments"),
        ("cells", "pretrained", {"params": {"tests": ["test7"]}}, DataError, "no samples of test7"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_words(sets, benchmark, weights, changes, error, message):
    before = {item.key for item in sets.walk(BENCHMARK_SCORES)}
    with pytest.raises(error, match=message):
        score_benchmark(sets, benchmark, weights, params(seed=99, **changes))
    assert {item.key for item in sets.walk(BENCHMARK_SCORES)} == before


def test_an_encoder_without_a_unet_is_refused_for_segmentation(sets):
    put_weights(sets, "efficient", "supervised", arch="efficientnet_b0")
    with pytest.raises(ValueError, match="are of efficientnet_b0; expected resnet18, resnet34, resnet50"):
        score_benchmark(sets, "discs", "efficient", params())


def test_unprepared_unions_and_test_sets_without_labels_are_told(local_store, tmp_path):
    from cem_assets_tests.benchmarks.benchmark_sets import ROWS, disc, save_pair

    local_store.put(SETTINGS, ROWS.encode())
    put_weights(local_store, "mine")
    image, mask = disc((40, 40), 0)
    save_pair(tmp_path / "discs", "train", "a", image, mask == 1)
    save_pair(tmp_path / "discs", "test", "b", image, mask > 9)
    prepare_benchmark(local_store, require_benchmark(local_store, "discs"), tmp_path / "discs")
    with pytest.raises(ValueError, match=r"no test image has a label of classes \(1,\)"):
        score_benchmark(local_store, "discs", "mine", params())
    with pytest.raises(FileNotFoundError, match="partition 'both'"):
        score_benchmark(local_store, "both", "mine", params())


# Transfer


def test_an_error_of_our_own_code_is_not_blamed_on_the_benchmark(sets, monkeypatch):
    def broken(recipe, table):
        raise ValueError("a bug")

    monkeypatch.setattr(transfer_scores, "score_transfer", broken)
    with pytest.raises(ValueError, match="^a bug$") as caught:
        score_benchmark(sets, "cells", "pretrained", params(seed=98))
    assert fault_of(caught.value) == Fault.bug


def test_features_are_those_of_the_encoder_and_scores_those_of_the_neighbours(sets, monkeypatch):
    manifest = score_benchmark(sets, "cells", "pretrained", params(seed=1)).manifest
    table = open_transfer(sets, "cells").table()
    images = [np.stack(planes) for _, batch in open_transfer(sets, "cells").batches() for planes in batch]
    from cem_assets.pretraining.weights.stored import load_encoder_weights

    encoder = load_encoder_weights(sets, "pretrained")[0].build()
    features = extract_features(encoder, images, FeatureParams(norms=NORMS, side_px=32))
    (key,) = [key for key in manifest.inputs.upstream if key.startswith(BENCHMARK_FEATURES)]
    names, kept = read_benchmark_features(sets, extracted(sets, "pretrained", settings()))
    assert names == table["name"].tolist() and np.array_equal(kept, features) and kept.shape == (36, 1024)
    assert key.startswith("benchmarks/features/cells/pretrained/")
    is_train = (table["split"] == "train").to_numpy()
    mean, sd = features[is_train].mean(axis=0, dtype=float), features[is_train].std(axis=0, dtype=float)
    scaled = np.where(sd > 1e-9, (features - mean) / np.maximum(sd, 1e-9), 0)
    rows = read_score_rows(sets, manifest).set_index("test_set")
    values = {}
    for name in ("test1", "test2"):
        is_test = (table["split"] == name).to_numpy()
        values[name] = knn_predictions(
            scaled[is_train], table["label"][is_train], scaled[is_test], table["label"][is_test], 3
        ).accuracy()
        assert rows.loc[name, "value"] == values[name] and rows.loc[name, "num"] == 12
        half = 1.96 * np.sqrt(values[name] * (1 - values[name]) / 12)
        assert rows.loc[name, "low"] == pytest.approx(max(0, values[name] - half))
        assert rows.loc[name, "high"] == pytest.approx(min(1, values[name] + half))
    assert rows["is_main"].to_dict() == {"all": True, "test1": False, "test2": False}
    assert rows.loc["all", "value"] == pytest.approx(np.mean(list(values.values()))) and rows.loc["all", "value"] > 0.6
    assert rows.loc["all", "num"] == 24 and set(rows["iterations"]) == {0} and set(rows["finetune_layer"]) == {""}
    pictures = [item.name for item in manifest.objects if item.name.endswith(".png")]
    assert pictures == ["confusion_knn_accuracy_test1.png", "confusion_knn_accuracy_test2.png"]
    counts = np.array(results_of(sets, manifest)["scores"][0]["confusion"]["counts"])
    assert np.trace(counts) == round(12 * values["test1"]) and counts.sum() == 12


def settings() -> FeatureSettings:
    return FeatureSettings(side_px=32)


def extracted(store: Store, weights: str, how: FeatureSettings, **more) -> Manifest:
    """Extract the features of benchmark "cells"."""
    return extract_benchmark_features(store, open_transfer(store, "cells"), find_weights(store, weights), how, **more).manifest


def test_another_k_or_metric_extracts_nothing_and_another_preprocessing_does(sets, monkeypatch):
    first = score_benchmark(sets, "cells", "other", params(seed=2)).manifest

    def refuse(*given, **more):
        raise AssertionError("features were extracted again")

    monkeypatch.setattr(benchmark_features, "extract_features", refuse)
    changes = [{"k": 1}, {"num_neighbours": 5}, {"metric": "cosine"}, {"is_standardised": False}, {"protocol": "leave_one_out"}]
    found = [score_benchmark(sets, "cells", "other", params(seed=2, params=change)).manifest for change in changes]
    assert len({manifest.inputs.partition for manifest in (first, *found)}) == 6
    assert [row["metric"] for row in found[-1].details["rows"]] == ["loo_knn_accuracy"]
    assert found[-1].details["main"]["num"] == 36
    assert not score_benchmark(sets, "cells", "other", params(seed=2)).is_new
    for change in ({"preprocessing": "merge"}, {"is_normalised": False}, {"mean": 0.3}):
        with pytest.raises(AssertionError, match="extracted again"):
            score_benchmark(sets, "cells", "other", params(seed=2, params=change))


def test_mlflow_is_told_of_transfer_scores(sets):
    manifest = score_benchmark(sets, "cells", "pretrained", params(params={"num_neighbours": 2})).manifest
    (run,) = Recorder.opened
    assert run.experiment == "benchmarks/cells" and run.ends == ["FINISHED"] and run.tags["digest"] == manifest.digest
    main = manifest.details["main"]
    assert {metric.value for metric in run.metrics} >= {main["value"]}
    assert not any(isinstance(value, dict) for value in run.parameters.values()), "MLflow's parameters are flat"


def test_fused_weights_are_scored_on_both_features_side_by_side(sets):
    fused = score_benchmark(sets, "cells", "pretrained+other", params(seed=3)).manifest
    parts = [name for name in fused.inputs.upstream if name.startswith(BENCHMARK_FEATURES)]
    assert [name.split("/")[3] for name in sorted(parts)] == ["other", "pretrained"]
    rows = read_score_rows(sets, fused)
    assert set(rows["weights"]) == {"pretrained+other"} and rows["weights_digest"][0].count("+") == 1
    from cem_assets.benchmarks.transfer.profiles import fuse, standardise

    kept = [read_benchmark_features(sets, extracted(sets, name, settings()))[1] for name in ("pretrained", "other")]
    table = open_transfer(sets, "cells").table()
    is_train, is_test = ((table["split"] == name).to_numpy() for name in ("train", "test2"))
    features = fuse(*kept)
    train, test = standardise(features[is_train], features[is_test])
    expected = knn_predictions(train, table["label"][is_train], test, table["label"][is_test], 3).accuracy()
    assert rows.set_index("test_set").loc["test2", "value"] == expected


def test_a_killed_extraction_goes_on_behind_its_last_file(sets, monkeypatch):
    monkeypatch.setattr(benchmark_features, "IMAGES_PER_PART", 10)
    how = settings().model_copy(update={"preprocessing": "merge"})
    asked = iter([False, False, True])
    with pytest.raises(InterruptedError, match="stopped after 20 of 36 images"):
        extracted(sets, "pretrained", how, should_stop=lambda: next(asked))
    seen: list[int] = []
    extract = benchmark_features.extract_features

    def counted(encoder, images, *more):
        found = extract(encoder, images, *more)
        seen.append(len(found))
        return found

    monkeypatch.setattr(benchmark_features, "extract_features", counted)
    done: list[int] = []
    manifest = extracted(sets, "pretrained", how, progress=lambda num, total: done.append(num))
    assert seen == [10, 6] and done == [10, 20, 30, 36] and manifest.counts == {"rows": 36, "features": 512}
    names, features = read_benchmark_features(sets, manifest)
    images = [np.stack(planes) for _, batch in open_transfer(sets, "cells").batches() for planes in batch]
    from cem_assets.pretraining.weights.stored import load_encoder_weights

    encoder = load_encoder_weights(sets, "pretrained")[0].build()
    expected = extract(encoder, images, FeatureParams(preprocessing="merge", norms=NORMS, side_px=32))
    assert np.allclose(features, expected, atol=1e-5) and len(set(names)) == 36


def test_the_published_features_of_bbbc021_give_the_published_matrix(local_store, tmp_path, test_data):
    source = test_data / "features/bbbc021_ljosa2013"
    tables = [test_data / f"metadata/bbbc021/BBBC021_v1_{name}" for name in ("image.csv.gz", "moa.csv")]
    for file in (source / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz", *tables):
        shutil.copy(file, tmp_path)
    local_store.put(SETTINGS, published.LJOSA.encode())
    prepare_benchmark(local_store, require_benchmark(local_store, "ljosa"), tmp_path)
    left_out = (source / "published_excluded_features.txt").read_text().split()
    asked = params(params={"min_replicate_correlation": 0.5, "left_out_features": left_out})
    manifest = score_benchmark(local_store, "ljosa", "given", asked).manifest
    found = results_of(local_store, manifest)["scores"][0]
    expected = json.loads((source / "expected.json").read_text())
    assert (found["num_right"], found["num"]) == (expected["published"]["correct"], expected["published"]["n"]) == (84, 103)
    lines = (source / "published_confusion_matrix.csv").read_text().splitlines()[1:]
    assert found["confusion"]["counts"] == [[int(cell) for cell in line.rsplit(",", 12)[1:]] for line in lines]
    main = manifest.details["main"]
    assert main["value"] == 84 / 103 and main["metric"] == "nsc_accuracy"
    assert main["high"] - main["value"] == pytest.approx(1.96 * np.sqrt(84 * 19 / 103**3))
    assert "81.55 %" in score_lines(manifest)[1] and manifest.inputs.partition.startswith("ljosa/given/")
    counts = expected["computed_here_not_published"]
    both = params(params={"exclusions": ["compound", "compound_and_batch"]})
    rows = score_benchmark(local_store, "ljosa", "given", both).manifest.details["rows"]
    assert [(row["metric"], round(row["value"] * row["num"]), row["num"]) for row in rows] == [
        ("nsc_accuracy", *counts["all 513 finite features, DMSO mean/sd per plate, mean over wells"]["pearson"]),
        ("nscb_accuracy", *next(value for name, value in counts.items() if name.startswith("NSCB"))["pearson"]),
    ]
    assert [row["is_main"] for row in rows] == [True, False]
    with pytest.raises(ValueError, match="holds a table of features; expected \"given\", found 'pretrained'"):
        score_benchmark(local_store, "ljosa", "pretrained", asked)
    assert not committed_partitions(local_store, WEIGHTS)


def test_a_map_of_features_is_drawn_where_it_is_wanted(sets, monkeypatch):
    from cem_assets.benchmarks.transfer import pictures as transfer_pictures

    chosen: list[np.ndarray] = []

    def points(features, seed):
        chosen.append(features)
        return features[:, :2].astype(np.float32)

    monkeypatch.setattr(transfer_pictures, "umap_points", points)
    monkeypatch.setattr(transfer_pictures, "MAX_MAP_ROWS", 20)
    manifest = score_benchmark(sets, "cells", "pretrained", params(seed=4, has_map=True)).manifest
    picture = sets.read(f"{manifest.folder}/map.png")
    assert picture[:4] == b"\x89PNG" and len(picture) < 100_000 and chosen[0].shape == (20, 1024)
    assert manifest.counts["pictures"] == 3


def test_confusion_matrices_of_many_long_names_stay_small():
    import pandas as pd

    from cem_assets.benchmarks.scores.pictures import confusion_png

    generator = np.random.default_rng(0)
    names = [f"mechanism {n} of a very long $name" for n in range(60)]
    matrix = pd.DataFrame(generator.integers(0, 90, (60, 60)), index=names, columns=names)
    picture = confusion_png(matrix, "sixty")
    assert picture[:4] == b"\x89PNG" and len(picture) <= 100_000
    assert picture != confusion_png(matrix.T, "sixty")


def test_rules_and_what_is_no_number(sets):
    plan = plan_segmentation(sets, require_benchmark(sets, "both"), "pretrained", params())
    rules = rules_of(plan.benchmark, plan.params)
    assert rules["discs"].is_instance_matched and rules["layers"].mask_unlabelled and rules["layers"].mode == "stack"
    assert finite({"a": [1.0, float("nan")], "b": (float("inf"), "x")}) == {"a": [1.0, None], "b": [None, "x"]}
