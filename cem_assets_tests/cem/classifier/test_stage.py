"""The sources of the patch classifier: files, URLs and labels; and that hostile weights do no harm."""

import http.server
import io
import pickle
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cem_assets import environment, readers
from cem_assets.cem.classifier.labels import label_tables
from cem_assets.cem.classifier.network import build_classifier
from cem_assets.cem.classifier.params import ClassifierParams
from cem_assets.cem.classifier.scoring_network import to_network
from cem_assets.cem.classifier.stage import ClassifierSource, Origin, make_classifier, read_weights
from cem_assets.cem.classifier.stored import WEIGHTS, choose_classifier, load_classifier, read_classifier
from cem_assets.cem.reconciliation import classifier_digest
from cem_assets.operations.maintenance import sweep
from cem_assets.store.local import file_sha256
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import import_classifier, run_chain, run_stage
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox
from cem_assets_tests.services.stack import ROOT

OUTPUT = ROOT / "test-output"
PARAMS = ClassifierParams(epochs=1, batch_size=16, device="cpu")


class Evil:
    ran = False

    def __reduce__(self):
        return (exec, ("import cem_assets_tests.cem.classifier.test_stage as t; t.Evil.ran = True",))


def test_weights_from_a_file_are_kept_as_they_are(store: Store, weights):
    result = import_classifier(store, weights)
    loaded, manifest = load_classifier(store)
    original = torch.load(weights, weights_only=True)
    assert loaded.keys() == original.keys() and all(torch.equal(loaded[key], original[key]) for key in original)
    assert manifest.details["provenance"] == {"source": "file", "origin": weights.name, "sha256": file_sha256(weights)}
    assert result.is_new and not import_classifier(store, weights).is_new
    assert str(weights.parent) not in store.read(manifest.key).decode(), "no folder of this machine in the store"


def test_equal_weights_are_equal_bytes(tmp_path, weights):
    digests = {import_classifier(Store(str(tmp_path / str(n))), weights).manifest.digest for n in range(6)}
    assert len(digests) == 1


def test_safetensors_and_checkpoints_with_a_state_dict_inside_are_read(tmp_path, weights):
    import safetensors.torch

    original = torch.load(weights, weights_only=True)
    safetensors.torch.save_file(original, tmp_path / "w.safetensors")
    torch.save({"state_dict": original, "epoch": 3}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert read_weights(tmp_path / name).keys() == original.keys()


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"conv1.weight": evil}, lambda evil: {"state_dict": evil}])
def test_pickles_that_run_code_do_not(tmp_path, wrap):
    torch.save(wrap(Evil()), tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(wrap(Evil())))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            read_weights(tmp_path / name)
    assert Evil.ran is False


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04garbage", b"\xff" * 100])
def test_files_that_are_no_weights(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
        read_weights(tmp_path / name)


def test_other_objects_are_no_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="is no state_dict; expected tensors by name, found list"):
        read_weights(tmp_path / "w.pth")


def test_weights_too_large_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("cem_assets.cem.classifier.stage.MAX_WEIGHTS_BYTES", 10)
    (tmp_path / "w.pth").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="has 11 bytes; expected weights of at most 10"):
        read_weights(tmp_path / "w.pth")


def test_weights_of_another_network_are_not_committed(local_store: Store, tmp_path):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="are not a ResNet34 patch classifier"):
        import_classifier(local_store, tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match="There is no patch classifier"):
        load_classifier(local_store)


def test_a_wrong_checksum_is_refused(local_store: Store, weights):
    source = ClassifierSource(source=Origin.file, file=str(weights), sha256="0" * 64)
    with pytest.raises(ValueError, match=f"has sha256 {file_sha256(weights)}; expected 000"):
        make_classifier(local_store, source, PARAMS)


def test_the_environment_may_name_the_file(local_store: Store, weights, monkeypatch):
    with pytest.raises(FileNotFoundError, match="Ways to get one"):
        make_classifier(local_store, ClassifierSource(), PARAMS)
    monkeypatch.setenv("CEM_ASSETS_CLASSIFIER_WEIGHTS", str(weights))
    assert make_classifier(local_store, ClassifierSource(), PARAMS).stage.is_new
    with pytest.raises(FileNotFoundError, match="are not there"):
        make_classifier(local_store, ClassifierSource(source=Origin.file, file="/nowhere/w.pth"), PARAMS)


@pytest.fixture
def server(weights: Path, monkeypatch: pytest.MonkeyPatch):
    """A web server on the loopback interface that serves the weights."""
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "yes")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(weights.parent))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_published_weights_are_fetched_and_checked(local_store: Store, weights, server):
    url = f"{server}/{weights.name}"
    good = ClassifierSource(source=Origin.published, url=url, sha256=file_sha256(weights))
    assert make_classifier(local_store, good, PARAMS).stage.manifest.details["provenance"]["origin"] == url
    with pytest.raises(ValueError, match="it has sha256 .*, expected 1111"):
        make_classifier(local_store, good.model_copy(update={"sha256": "1" * 64}), PARAMS)
    with pytest.raises(ValueError, match="needs the sha256 of its contents"):
        make_classifier(local_store, good.model_copy(update={"sha256": ""}), PARAMS)
    with pytest.raises(ConnectionError, match="could not be fetched"):
        make_classifier(local_store, good.model_copy(update={"url": f"{server}/nothing", "sha256": "2" * 64}), PARAMS)
    with pytest.raises(ValueError, match="expected an https:// address"):
        make_classifier(local_store, good.model_copy(update={"url": "file:///etc/passwd"}), PARAMS)


# Training


def labelled_dataset(store: Store) -> pd.DataFrame:
    """A volume with structure in its left half and noise in its right half, and their labels. It is thin, so only xy is cut."""
    noise = np.random.default_rng(1).integers(170, 190, (40, 70, 448), dtype=np.uint8)
    voxels = noise.copy()
    voxels[:, :, :224] = cells((40, 70, 224))
    put_in_inbox(store, "d", {"v.nrrd": nrrd_bytes(voxels)})
    run_chain(store, "d", until="raw")
    names = [name for name in readers.read_patches("d", "raw", store.url)["name"] if "-LOC-0_" in name]
    labels = ["good" if name.endswith("_0-224") else "bad" for name in names]
    return pd.DataFrame({"dataset": "d", "name": names, "label": labels})


def put_labels(store: Store, table: pd.DataFrame, name: str = "me.csv") -> None:
    sink = io.BytesIO()
    table.to_csv(sink, index=False) if name.endswith(".csv") else table.to_parquet(sink)
    store.put(f"cem/patch_labels/{name}", sink.getvalue())


def test_a_classifier_is_trained_from_labels_and_measured(local_store: Store):
    table = labelled_dataset(local_store)
    put_labels(local_store, table.iloc[:70], "a.csv")
    put_labels(local_store, table.iloc[70:], "b.parquet")
    assert len(label_tables(local_store)) == 2
    source = ClassifierSource(init="random")
    seen = []
    result = make_classifier(local_store, source, PARAMS, on_epoch=seen.append)
    manifest = result.stage.manifest
    assert result.training is not None and len(seen) == 1 == len(result.training.epochs)
    assert manifest.counts["labelled"] == 80 and manifest.counts["good"] == manifest.counts["bad"] == 40
    assert manifest.inputs.parameters["finetune"] == "all" and manifest.inputs.parameters["init"] == "random"
    assert result.training.num_validation == 12 and sum(map(sum, manifest.details["evaluation"]["confusion"])) == 12
    assert {item.name for item in manifest.objects} == {
        "patch_classifier.safetensors",
        "classifier.json",
        "roc.png",
        "confusion.png",
        "mistakes.jpg",
        "labelled_patches.parquet",
    }
    assert result.comparison is None and result.in_use == manifest, "the first one is in use"
    seen_by = pd.read_parquet(io.BytesIO(local_store.read(f"{manifest.folder}/labelled_patches.parquet")))
    assert sorted(seen_by["name"]) == sorted(table["name"]) and seen_by["is_validation"].sum() == 12
    assert (seen_by["informative"].notna() == seen_by["is_validation"]).all()
    held = seen_by[seen_by["is_validation"]]
    is_right = (held["informative"] > 0.5) == (held["label"] == "good")
    assert is_right.mean() == pytest.approx(manifest.details["evaluation"]["accuracy"])
    assert Image.open(io.BytesIO(local_store.read(f"{manifest.folder}/mistakes.jpg"))).size[0] > 100
    assert not make_classifier(local_store, source, PARAMS).stage.is_new


def test_a_new_classifier_is_compared_and_changes_no_score_until_it_is_chosen(local_store: Store, weights, monkeypatch):
    table = labelled_dataset(local_store)
    put_labels(local_store, table)
    run_chain(local_store, "d", until="deduplicated")
    used = import_classifier(local_store, weights).manifest
    scored = run_stage(local_store, "d", "scores").manifest
    source = ClassifierSource(source=Origin.labels, init=str(weights))
    result = make_classifier(local_store, source, PARAMS)
    made = result.stage.manifest
    assert result.in_use == used and load_classifier(local_store)[1] == used and made.digest != used.digest
    assert classifier_digest(local_store) == used.digest, "so reconciliation finds no score stale"
    assert run_stage(local_store, "d", "scores").manifest == scored

    # The probabilities of both classifiers for the held-out patches, computed one by one without the code that compares
    told = pd.read_parquet(io.BytesIO(local_store.read(f"{made.folder}/labelled_patches.parquet")))
    held = told[told["is_validation"]]
    images = {  # every patch is scored at this size
        name: np.array(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
        for name, image in readers.iter_images("d", "raw", local_store.url)
    }
    keeps, scores = {}, {}
    for key, manifest in (("new", made), ("in_use", used)):
        model = build_classifier(read_classifier(local_store, manifest)).eval()
        with torch.no_grad():
            logits = [float(model(to_network(torch.from_numpy(images[name][None])))) for name in held["name"]]
        scores[key], keeps[key] = np.array(logits), np.array(logits) > 0
    assert 1 / (1 + np.exp(-scores["new"])) == pytest.approx(held["informative"].to_numpy(), abs=0.01)
    is_good = (held["label"] == "good").to_numpy()
    facts = result.comparison.facts
    for key, manifest in (("new", made), ("in_use", used)):
        pairs = [(a > b) + (a == b) / 2 for a in scores[key][is_good] for b in scores[key][~is_good]]
        assert facts[key]["digest"] == manifest.digest and facts[key]["auc"] == pytest.approx(np.mean(pairs), abs=0.02)
        assert facts[key]["accuracy"] == pytest.approx(np.mean(keeps[key] == is_good))
    flipped = keeps["new"] != keeps["in_use"]
    assert facts["flipped"] == {
        "gained": int((flipped & keeps["new"]).sum()),
        "dropped": int((flipped & keeps["in_use"]).sum()),
        "corrected": int((flipped & (keeps["new"] == is_good)).sum()),
        "spoiled": int((flipped & (keeps["new"] != is_good)).sum()),
    }
    assert facts["num_patches"] == len(held) == 12 and facts["num_seen_by_in_use"] is None
    assert all(Image.open(io.BytesIO(data)).size[0] > 100 for data in result.comparison.pictures.values())
    OUTPUT.mkdir(exist_ok=True)
    for name, data in result.comparison.pictures.items():
        (OUTPUT / f"classifier_{name}").write_bytes(data)
    (OUTPUT / "classifier_mistakes.jpg").write_bytes(local_store.read(f"{made.folder}/mistakes.jpg"))

    with monkeypatch.context() as patched:  # the comparison is stored, so nothing is computed again
        patched.setattr("cem_assets.cem.classifier.comparison.stage._evaluate", None)
        again = make_classifier(local_store, source.model_copy(update={"use_for_scores": True}), PARAMS)
    assert not again.stage.is_new and again.comparison == result.comparison and again.in_use == made
    assert load_classifier(local_store)[1] == made and classifier_digest(local_store) == made.digest
    new = run_stage(local_store, "d", "scores").manifest
    assert new.inputs.upstream["cem/patch_classifier"] == made.digest and new.digest != scored.digest
    sweep(local_store, min_age_hours=0)  # classifiers that were ever chosen are kept
    choose_classifier(local_store, used.digest, "ann", "back")
    assert run_stage(local_store, "d", "scores").manifest.digest == scored.digest, "the way back gives the scores of before"


def test_damaged_weights_in_use_are_a_remark_but_a_bug_in_the_comparison_is_not(local_store: Store, weights, monkeypatch):
    put_labels(local_store, labelled_dataset(local_store))
    used = import_classifier(local_store, weights).manifest
    local_store.put(f"{used.folder}/{WEIGHTS}", b"garbage")
    source = ClassifierSource(source=Origin.labels, init=str(weights))
    result = make_classifier(local_store, source, PARAMS)
    assert result.comparison is None and f"{used.folder}/{WEIGHTS} is not a safetensors file" in result.remark

    def fails(*_):
        raise ValueError("wrong shape")

    monkeypatch.setattr("cem_assets.cem.classifier.stage.compare_with", fails)
    with pytest.raises(ValueError, match="wrong shape"):
        make_classifier(local_store, source, PARAMS)


def test_a_lack_of_memory_is_not_the_fault_of_the_weights(tmp_path, weights, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        read_weights(weights)


def test_training_from_a_file_that_is_not_there_says_so(local_store: Store):
    put_labels(local_store, labelled_dataset(local_store))
    with pytest.raises(FileNotFoundError, match='init = .*nowhere.pth.* is no file; expected "random", "imagenet" or the path'):
        make_classifier(local_store, ClassifierSource(source=Origin.labels, init="~/nowhere.pth"), PARAMS)


def test_the_patches_that_the_one_in_use_was_trained_on_are_counted(local_store: Store, weights):
    put_labels(local_store, labelled_dataset(local_store).groupby("label").head(33))
    source = ClassifierSource(source=Origin.labels, init=str(weights))
    first = make_classifier(local_store, source, PARAMS).stage.manifest
    second = make_classifier(local_store, source, PARAMS.model_copy(update={"seed": 5}))
    sides = [
        set(frame[frame["is_validation"] == held]["name"])
        for manifest, held in ((first, False), (second.stage.manifest, True))
        for frame in [pd.read_parquet(io.BytesIO(local_store.read(f"{manifest.folder}/labelled_patches.parquet")))]
    ]
    assert second.comparison.facts["num_seen_by_in_use"] == len(sides[0] & sides[1]) > 0
    assert f"trained on {len(sides[0] & sides[1])} of these" in second.comparison.line()


def test_without_labels_there_is_no_comparison_and_it_is_said(local_store: Store, weights, tmp_path):
    used = import_classifier(local_store, weights).manifest
    other = {key: value * 1.5 for key, value in torch.load(weights, weights_only=True).items()}
    torch.save(other, tmp_path / "other.pth")
    source = ClassifierSource(source=Origin.file, file=str(tmp_path / "other.pth"))
    result = make_classifier(local_store, source, PARAMS)
    assert result.comparison is None and "there are no label tables" in result.remark and result.in_use == used


def test_training_can_start_from_a_file(local_store: Store, weights):
    put_labels(local_store, labelled_dataset(local_store))
    source = ClassifierSource(source=Origin.labels, init=str(weights))
    manifest = make_classifier(local_store, source, PARAMS).stage.manifest
    assert manifest.inputs.parameters["finetune"] == "layer4" and manifest.inputs.upstream["init"] == file_sha256(weights)
    trained, original = load_classifier(local_store)[0], torch.load(weights, weights_only=True)
    assert torch.equal(trained["layer1.0.conv1.weight"], original["layer1.0.conv1.weight"])
    assert not torch.equal(trained["layer4.0.conv1.weight"], original["layer4.0.conv1.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:50], "expected at least 64"),
        (lambda t: t.assign(label="maybe"), "labels \\['maybe'\\] are not known"),
        (lambda t: pd.concat([t, t.iloc[:2]]), "2 patches are listed more than once"),
        (lambda t: t.drop(columns="label"), "lacks the column\\(s\\) label"),
        (lambda t: t.assign(name="what"), "listed more than once|does not have the form"),
    ],
)
def test_label_tables_that_cannot_be_used(local_store: Store, change, message):
    put_labels(local_store, change(labelled_dataset(local_store)))
    with pytest.raises(ValueError, match=message):
        make_classifier(local_store, ClassifierSource(source=Origin.labels, init="random"), PARAMS)


def test_a_label_table_that_is_no_table(local_store: Store):
    local_store.put("cem/patch_labels/x.parquet", b"garbage")
    with pytest.raises(ValueError, match="label table cem/patch_labels/x.parquet cannot be read"):
        make_classifier(local_store, ClassifierSource(source=Origin.labels, init="random"), PARAMS)


def test_imagenet_weights_that_cannot_be_fetched_are_told(local_store: Store, monkeypatch):
    import urllib.error

    import torchvision

    def fails(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models.ResNet34_Weights, "get_state_dict", fails)
    put_labels(local_store, labelled_dataset(local_store))
    with pytest.raises(
        ConnectionError, match='could not be fetched: .*no network.* Set init to the path of a copy, or to "random"'
    ):
        make_classifier(local_store, ClassifierSource(source=Origin.labels), PARAMS)
