"""Materializing assets in Dagster: metadata, data versions, failures in words, blocking checks, retries."""

import base64
import io

import dagster as dg
import pytest
from PIL import Image

from cem_assets import readers
from cem_assets.cem.assets import volumes
from cem_assets.cem.classifier.stored import classifier_in_use
from cem_assets.cli.main import main
from cem_assets.cli.runs import chain_until, failures, run_job
from cem_assets.execution import checks as common_checks
from cem_assets.imaging.gallery import MAX_BYTES
from cem_assets.platform.resources import StoreResource
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store
from cem_assets_tests.datasets import put_in_inbox, toml, volume_dataset


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def materialize(instance, store: Store, dataset: str, until: str = "filtered", **config):
    return run_job(instance, store.url, "cem_chain", chain_until(until), dataset, config=config)


def metadata_of(result, asset: str) -> dict:
    event = result.asset_materializations_for_node(asset.replace("/", "__"))[-1]
    return dict(event.metadata)


def picture_of(value, kind: str = "") -> Image.Image:
    text = value.value
    assert len(text) < MAX_BYTES * 1.4 and text.startswith(f"![picture](data:image/{kind}")
    return Image.open(io.BytesIO(base64.b64decode(text.split("base64,")[1].rstrip(")"))))


def test_the_chain_runs_in_dagster_and_shows_what_it_did(instance, store, weights):
    volume_dataset(store)
    classifier = run_job(
        instance, store.url, "cem_patch_classifier", config={"cem/patch_classifier": {"source": "file", "file": str(weights)}}
    )
    assert classifier.success
    result = materialize(
        instance, store, "cells", **{"cem/filtered_patches": {"threshold": 0.0}, "cem/patch_scores": {"batch_size": 32}}
    )
    assert result.success, failures(result)
    release = run_job(instance, store.url, "cem_release")
    assert release.success
    for asset in chain_until("filtered"):
        shown, manifest = metadata_of(result, asset), require_manifest(store, asset, "cells")
        assert shown["bytes"].value == manifest.num_bytes and shown["digest"].value == manifest.digest
        assert shown["content"].value == store.url_of(manifest.folder) and shown["manifest"].value == store.url_of(manifest.key)
        for name, count in manifest.counts.items():
            assert shown[name].value == count
        assert any(label.endswith("per second") for label in shown)
        assert picture_of(shown["gallery"]).size[0] >= 100
        event = instance.get_latest_materialization_event(dg.AssetKey(asset.split("/")))
        assert event.asset_materialization.tags["dagster/data_version"] == manifest.digest
        assert event.asset_materialization.partition == "cells"
    for asset in ("cem/volumes", "cem/deduplicated_patches", "cem/patch_scores", "cem/filtered_patches"):
        assert picture_of(metadata_of(result, asset)["histogram"]).size[0] > 100
    assert metadata_of(result, "cem/filtered_patches")["parameters"].value == {"threshold": 0.0}
    assert metadata_of(release, "cem/releases")["version"].value == "v1"
    assert "# CEM patches, release v1" in metadata_of(release, "cem/releases")["dataset card"].value
    evaluations = result.get_asset_check_evaluations()
    assert len(evaluations) == 12 and all(evaluation.passed for evaluation in evaluations)
    again = materialize(
        instance, store, "cells", **{"cem/filtered_patches": {"threshold": 0.0}, "cem/patch_scores": {"batch_size": 32}}
    )
    assert again.success and metadata_of(again, "cem/volumes")["outcome"].value.startswith("up to date")
    assert require_manifest(store, "cem/filtered_patches", "cells").number == 1


def test_bad_data_fails_once_in_words_and_is_not_retried(instance, local_store):
    put_in_inbox(local_store, "bad", {"v.nrrd": b"<html>"}, toml("bad"))
    result = materialize(instance, local_store, "bad", until="raw")
    assert not result.success
    message = failures(result)[0]
    assert message.startswith("cem__volumes: dataset 'bad' has nothing that can be used") and "v.nrrd" in message
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    assert readers.list_datasets(local_store.url) == []


def test_a_missing_classifier_tells_the_ways_and_keeps_earlier_stages(instance, local_store):
    volume_dataset(local_store)
    result = materialize(instance, local_store, "cells")
    assert not result.success and "Ways to get one" in failures(result)[0]
    assert len(readers.read_patches("cells", "deduplicated", local_store.url)) > 0


def test_store_trouble_is_retried(instance, local_store, monkeypatch):
    from cem_assets.cem import assets as module

    volume_dataset(local_store)
    real, calls = module.standardize_dataset, []

    def flaky(*args, **more):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(5, "connection reset")
        return real(*args, **more)

    monkeypatch.setattr(module, "standardize_dataset", flaky)
    monkeypatch.setattr("cem_assets.platform.steps.RETRY_DELAY_SECONDS", 0.01)
    result = materialize(instance, local_store, "cells", until="volumes")
    assert result.success and len(calls) == 2


def test_a_failed_blocking_check_stops_the_next_stage_of_its_own_partition_only(instance, local_store, monkeypatch):
    for name in ("one", "two"):
        volume_dataset(local_store, name)
    real = common_checks.objects_match_manifest

    def finds_damage(store, asset, partition):
        if (asset, partition) == ("cem/volumes", "one"):
            return common_checks.Outcome(False, "1 objects are damaged")
        return real(store, asset, partition)

    monkeypatch.setattr("cem_assets.platform.assets.objects_match_manifest", finds_damage)
    first, second = (materialize(instance, local_store, name, until="raw") for name in ("one", "two"))
    assert not first.success and second.success
    assert "check objects_match_manifest of cem/volumes: 1 objects are damaged" in failures(first)
    with pytest.raises(FileNotFoundError):
        readers.read_patches("one", "raw", local_store.url)
    assert len(readers.read_patches("two", "raw", local_store.url)) > 0


@pytest.mark.parametrize(
    ("asset", "config"),
    [
        ("cem/deduplicated_patches", {"max_distance": 65}),
        ("cem/raw_patches", {"spacing": 0}),
        ("cem/filtered_patches", {"threshold": 2.0}),
    ],
)
def test_senseless_config_is_refused(instance, local_store, asset, config):
    volume_dataset(local_store)
    result = materialize(instance, local_store, "cells", until=asset, **{asset: config})
    assert not result.success and not any(event.is_step_up_for_retry for event in result.all_events)


def test_config_reaches_the_stage(instance, local_store):
    volume_dataset(local_store)
    config = {"cem/raw_patches": {"spacing": 10}, "cem/deduplicated_patches": {"max_distance": 3, "seed": 5}}
    assert materialize(instance, local_store, "cells", until="deduplicated", **config).success
    manifest = require_manifest(local_store, "cem/deduplicated_patches", "cells")
    assert manifest.inputs.parameters == {"max_distance": 3, "seed": 5}
    assert set(readers.read_patches("cells", "raw", local_store.url)["index"] % 10) == {0}


def test_assets_can_be_materialized_one_by_one(local_store):
    volume_dataset(local_store)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("em_datasets", ["cells"])
        resources = {"store": StoreResource(url=local_store.url)}
        result = dg.materialize([volumes], partition_key="cells", instance=instance, resources=resources)
    assert result.success and readers.list_datasets(local_store.url) == ["cells"]


def test_training_is_logged_to_mlflow(instance, local_store, monkeypatch):
    import mlflow

    from cem_assets_tests.cem.classifier.test_stage import labelled_dataset, put_labels

    put_labels(local_store, labelled_dataset(local_store))
    config = {"source": "labels", "init": "random", "epochs": 1, "batch_size": 32, "device": "cpu"}
    result = run_job(instance, local_store.url, "cem_patch_classifier", config={"cem/patch_classifier": config})
    assert result.success, failures(result)
    shown = metadata_of(result, "cem/patch_classifier")
    assert picture_of(shown["roc"]).size[0] > 100 and picture_of(shown["confusion"]).size[0] > 100
    import os

    client = mlflow.MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("cem/patch_classifier")
    run = client.search_runs([experiment.experiment_id])[0]
    assert run.data.params["epochs"] == "1" and {"accuracy", "training_loss", "validation_loss"} <= set(run.data.metrics)
    assert run.data.tags["digest"] == require_manifest(local_store, "cem/patch_classifier").digest
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
        "classifier.json",
        "confusion.png",
        "mistakes.jpg",
        "roc.png",
    }
    assert picture_of(shown["mistakes"]).size[0] > 100 and shown["in use"].value == "yes"
    assert "mlflow run" in shown


def test_a_second_classifier_waits_until_it_is_chosen(instance, local_store, weights, tmp_path, capsys):
    import torch

    def imported(path, **more) -> dict:
        config = {"cem/patch_classifier": {"source": "file", "file": str(path), **more}}
        result = run_job(instance, local_store.url, "cem_patch_classifier", config=config)
        assert result.success, failures(result)
        return metadata_of(result, "cem/patch_classifier")

    def version() -> str:
        event = instance.get_latest_materialization_event(dg.AssetKey(["cem", "patch_classifier"]))
        return event.asset_materialization.tags["dagster/data_version"]

    first = imported(weights)
    torch.save({key: value * 1.5 for key, value in torch.load(weights, weights_only=True).items()}, tmp_path / "w.pth")
    second = imported(tmp_path / "w.pth")
    digests = [shown["digest"].value for shown in (first, second)]
    assert second["in use"].value == f"no, it waits; scores are made with {digests[0][:12]}"
    assert digests[1][:12] in second["to use it"].value and "there are no label tables" in second["comparison"].value
    assert version() == digests[0], "scores of the one in use are not stale"
    config = {"choose_patch_classifier": {"digest": digests[1][:10], "reason": "sharper", "by": "ann"}}
    assert run_job(instance, local_store.url, "cem_choose_classifier", config=config).success
    assert version() == digests[1] and classifier_in_use(local_store).digest == digests[1]
    assert main(["--root", local_store.url, "classifier"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"in use  {digests[1][:12]}") and lines[-1].endswith("chosen by ann: sharper")
    assert main(["--root", local_store.url, "classifier", "use", digests[0][:9], "--reason", "back"]) == 0
    assert classifier_in_use(local_store).digest == digests[0]
    assert main(["--root", local_store.url, "classifier", "use", "0" * 12]) == 1
    assert imported(tmp_path / "w.pth", use_for_scores=True)["in use"].value == "yes"


def test_mlflow_being_down_costs_a_warning_not_the_weights(local_store, monkeypatch, caplog):
    from cem_assets.tracking.mlflow import Metric, log_run

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    assert log_run("e", "r", {"a": 1}, [Metric("m", 0.5, 1)], {"x.txt": b"1"}, {}) is None
    assert "could not be written" in caplog.text and "secret" not in "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("cem_assets")
    )


def test_flipbooks_are_cut_when_asked_for_and_shown_moving(instance, curated_local):
    config = {"cem/subvolumes": {"side_px": 64, "num_slices": 5, "limit": 4, "form": "tiff"}}
    result = run_job(instance, curated_local.url, "cem_subvolumes", partition="cells", config=config)
    assert result.success, failures(result)
    shown, manifest = metadata_of(result, "cem/subvolumes"), require_manifest(curated_local, "cem/subvolumes", "cells")
    assert shown["subvolumes"].value == manifest.counts["subvolumes"] == 4
    assert picture_of(shown["flipbook"], "webp").n_frames == 8, "five slices, there and back"
    assert all(check.passed for check in result.get_asset_check_evaluations())


def test_a_run_chooses_its_engine_which_is_no_part_of_what_is_recorded(instance, local_store, monkeypatch):
    volume_dataset(local_store)
    monkeypatch.setenv("CEM_ASSETS_ENGINE", "nonsense")  # the configuration of the run has priority
    local = {"cem/volumes": {"engine": "local"}, "cem/raw_patches": {"engine": "local", "spacing": 10}}
    assert materialize(instance, local_store, "cells", until="raw", **local).success
    assert require_manifest(local_store, "cem/raw_patches", "cells").inputs.parameters == {"spacing": 10}
    result = materialize(instance, local_store, "cells", until="raw")
    assert "CEM_ASSETS_ENGINE is 'nonsense'; expected local or ray" in failures(result)[0]
