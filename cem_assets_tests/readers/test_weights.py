"""Reading weights: the list, the description, encoders in two forms, and the errors if there are no weights."""

from pathlib import Path

import pytest
import torch

from cem_assets import environment, readers
from cem_assets.catalog.weights import ImportedWeights, weights_rows
from cem_assets.pretraining.rows import ROWS
from cem_assets.pretraining.weights.importing import import_weights
from cem_assets.pretraining.weights.stored import WEIGHT_FILES
from cem_assets.store.store import open_store
from cem_assets_tests.pretraining.published_weights import features, images, moco, network, row


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.delenv(environment.WEIGHTS_FOLDER.name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    store = open_store(str(tmp_path_factory.mktemp("weights") / "store"))
    store.put(f"{WEIGHT_FILES}/published.pth.tar", moco(network()))
    manifest = import_weights(store, row(arch="resnet18", method="moco")).manifest
    store.delete([f"{WEIGHT_FILES}/published.pth.tar"])
    return store, manifest


@pytest.fixture
def published(committed, local_store):
    """Put the committed weights into the test's store, and return their manifest."""
    store, manifest = committed
    for item in store.walk("pretraining"):
        local_store.put(item.key, Path(store.url_of(item.key)))
    return manifest


def test_the_list_has_the_catalogue_and_what_is_committed(local_store, published):
    frame = readers.list_weights(local_store.url).set_index("name")
    assert set(frame.index) == {*weights_rows(), "published"} and frame["is_committed"].sum() == 1
    found = frame.loc["published"]
    assert (found["kind"], found["arch"], found["method"], found["epoch"]) == ("imported", "resnet18", "moco", 200)
    assert found["norms"] == (0.57287, 0.12741) and found["num_parameters"] == 11_170_240
    assert found["digest"] == published.digest and found["reason"] == ""
    assert frame.loc["cem_swav", "reason"] == "not trained yet" and frame.loc["cem_swav", "kind"] == "trained"
    assert frame.loc["cem500k_mocov2", "reason"] == "needs a local copy, or a checksum to be downloaded"
    assert frame.loc["random_resnet50", "reason"] == "made from its seed"
    assert "would be downloaded from https://download.pytorch.org/" in frame.loc["imagenet_resnet50", "reason"]


def test_the_list_of_an_empty_store_is_the_catalogue(local_store):
    frame = readers.list_weights(local_store.url)
    assert list(frame["name"]) == list(weights_rows()) and not frame["is_committed"].any()
    assert frame["norms"].isna().all() and frame["num_parameters"].isna().all()


def test_both_forms_give_the_features_of_the_hand_loaded_model(local_store, published):
    expected = features(network(), images())
    encoder = readers.load_weights("published", root=local_store.url)
    assert not encoder.training and all(not module.training for module in encoder.modules())
    other = readers.load_weights("published", "resnet18", root=local_store.url, form="smp")
    with torch.no_grad():
        assert torch.equal(encoder(images()), expected)
        maps = other(images())
    assert [tuple(item.shape[1:]) for item in maps][-1] == (512, 2, 2) and not other.training
    assert torch.allclose(maps[-1].mean((2, 3)), expected, atol=1e-6)


def test_they_can_be_put_into_a_unet(local_store, published):
    import segmentation_models_pytorch as smp

    unet = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)
    encoder = readers.load_weights("published", root=local_store.url, form="smp")
    unet.encoder.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert unet.eval()(images()).shape == (2, 1, 64, 64)


def test_an_efficientnet_has_no_other_form(local_store):
    asked = ImportedWeights("chance", "Random", "random", "efficientnet_b0", "random")
    import_weights(local_store, asked)
    with torch.no_grad():
        assert readers.load_weights("chance", root=local_store.url)(images()).shape == (2, 1280)
    with pytest.raises(ValueError, match="pads and normalises differently"):
        readers.load_weights("chance", root=local_store.url, form="smp")


def test_the_sidecar_is_read(local_store, published):
    info = readers.read_weights_info("published", local_store.url)
    assert info["state_sha256"] == published.details["state_sha256"] and info["norms"] == {"mean": 0.57287, "std": 0.12741}
    assert info["provenance"]["file"] == "published.pth.tar" and info["num_features"] == 512


@pytest.mark.parametrize("call", [readers.load_weights, readers.read_weights_info])
def test_names_that_are_not_known_and_weights_that_are_not_there(local_store, published, call):
    for name in ("nothing", "../settings", "a/b", ""):
        with pytest.raises(ValueError, match="are not known; expected one of .*cem_swav.*published"):
            call(name, root=local_store.url)
    with pytest.raises(FileNotFoundError, match=r"not trained yet. Materialize pretraining/weights, partition 'cem_swav'"):
        call("cem_swav", root=local_store.url)


def test_another_network_and_another_form_are_refused(local_store, published):
    with pytest.raises(ValueError, match="are for resnet18, not 'resnet50'"):
        readers.load_weights("published", "resnet50", root=local_store.url)
    with pytest.raises(ValueError, match="form 'onnx' is not known"):
        readers.load_weights("published", root=local_store.url, form="onnx")


def test_broken_rows_do_not_keep_committed_weights_from_being_read(local_store, published):
    local_store.put(ROWS, b"[a")
    assert readers.load_weights("published", root=local_store.url) is not None
    with pytest.raises(ValueError, match="is not valid TOML"):
        readers.list_weights(local_store.url)
