"""Importing published, torchvision's and random weights: copies, checksums, downloads, and hostile files."""

import hashlib
import http.server
import io
import json
import pickle
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from cem_assets import environment, readers
from cem_assets.catalog.weights import ImportedWeights, TrainedWeights, weights_rows
from cem_assets.execution.stage import begin
from cem_assets.pretraining.rows import ROWS, known_weights, params_of
from cem_assets.pretraining.weights import importing as weights_import
from cem_assets.pretraining.weights.export import read_weights
from cem_assets.pretraining.weights.files import commit_weights
from cem_assets.pretraining.weights.importing import availability, import_weights
from cem_assets.pretraining.weights.stored import WEIGHT_FILES, load_encoder_weights
from cem_assets.sources.files.download import download_url
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import Inputs, committed_partitions, current_manifest
from cem_assets.store.store import Store
from cem_assets_tests.pretraining.published_weights import NORMS, features, images, moco, network, row, saved, small, swav

RANDOM = ImportedWeights("chance", "Random", "random", "efficientnet_b0", "random", seed=3)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path) -> Iterator[None]:
    monkeypatch.delenv(environment.WEIGHTS_FOLDER.name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def put(store: Store, data: bytes, name: str = "published.pth.tar") -> str:
    store.put(f"{WEIGHT_FILES}/{name}", data)
    return hashlib.sha256(data).hexdigest()


def is_nothing_committed(store: Store) -> bool:
    return not committed_partitions(store, WEIGHTS) and not list(store.walk(WEIGHTS))


# The imported weights


@pytest.mark.parametrize(("method", "build", "norms"), [("moco", moco, NORMS), ("swav", swav, [0.57571, 0.12765])])
def test_published_layouts_give_the_features_of_a_hand_loaded_model(store, method, build, norms):
    original = network()
    put(store, build(original))
    result = import_weights(store, row(method=method, arch="resnet18"))
    assert result.is_new and result.manifest.counts == {"parameters": 11_170_240, "features": 512}
    encoder = readers.load_weights("published", "resnet18", root=store.url)
    with torch.no_grad():
        assert torch.equal(encoder(images()), features(original, images()))
    details = result.manifest.details
    assert (details["arch"], details["method"], details["epoch"]) == ("resnet18", method, 200)
    assert details["norms"] == dict(zip(("mean", "std"), norms, strict=True))


def test_a_partition_has_every_form_and_they_hold_the_same_weights(local_store):
    put(local_store, moco(network()))
    manifest = import_weights(local_store, row(method="moco", arch="resnet18")).manifest
    names = [item.name for item in manifest.objects]
    assert names == ["README.md", "checkpoint.pth", "weights.json", "weights.safetensors"]
    content = {name: local_store.read(f"{manifest.folder}/{name}") for name in names}
    published = read_weights(content["checkpoint.pth"], "checkpoint.pth")
    assert published.digest() == read_weights(content["weights.safetensors"], "w").digest() == manifest.details["state_sha256"]
    plain = safetensors.torch.load(content["weights.safetensors"])
    model = network(seed=5)
    model.fc = torch.nn.Identity()
    model.load_state_dict(plain, strict=True)
    assert torch.equal(features(model, images()), features(network(), images()))
    about = json.loads(content["weights.json"])
    for name in ("weights.safetensors", "checkpoint.pth"):
        assert about["files"][name]["sha256"] == hashlib.sha256(content[name]).hexdigest()
    assert about["provenance"] == manifest.details["provenance"] and about["provenance"]["data_licence"] == "CC-BY-NC-4.0"
    card = content["README.md"].decode()
    assert "CC-BY-NC-4.0" in card and "Commercial use is excluded" in card and "CEM500K" in card


def test_torchvisions_three_channels_are_summed_as_by_hand(local_store, monkeypatch, tmp_path):
    colour = network(3)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    data = saved(colour.state_dict())
    (folder / "resnet18-0.pth").write_bytes(data)
    digits = hashlib.sha256(data).hexdigest()[:8]
    asked = row(source="torchvision", arch="resnet18", file="resnet18-0.pth", sha256=digits, mean=0.449, std=0.226)
    manifest = import_weights(local_store, asked).manifest
    assert manifest.details["provenance"]["checksum"] == "first 8 digits"
    assert manifest.details["norms"] == {"mean": 0.449, "std": 0.226}
    assert len(manifest.details["notes"]) == 2, "channels were summed; the norms are the catalogue's"
    by_hand = network(seed=9)
    state = colour.state_dict()
    by_hand.load_state_dict(state | {"conv1.weight": state["conv1.weight"].sum(1, keepdim=True)})
    encoder = readers.load_weights("published", root=local_store.url)
    with torch.no_grad():
        assert torch.equal(encoder(images()), features(by_hand, images()))
        expected = features(colour, images().repeat(1, 3, 1, 1))
        assert torch.allclose(encoder(images()), expected, atol=1e-4), "features of the gray image in three channels"


def test_random_weights_follow_from_their_seed_alone(local_store, tmp_path):
    torch.manual_seed(98)
    first = import_weights(local_store, RANDOM)
    drawn = torch.rand(1)
    torch.manual_seed(99)
    other = Store(str(tmp_path / "other"))
    assert import_weights(other, RANDOM).manifest.digest == first.manifest.digest
    assert torch.rand(1) != drawn, "the process's own generator is not set to the seed"
    assert (
        import_weights(other, replace(RANDOM, name="b", seed=4)).manifest.details["state_sha256"]
        != (first.manifest.details["state_sha256"])
    )
    assert [item.name for item in first.manifest.objects] == ["README.md", "weights.json", "weights.safetensors"]
    assert first.manifest.details["norms"] is None and first.manifest.details["epoch"] == 0
    assert not import_weights(local_store, RANDOM).is_new


def test_random_weights_with_norms_have_a_checkpoint_too(local_store):
    manifest = import_weights(local_store, replace(RANDOM, mean=0.5, std=0.1)).manifest
    checkpoint = torch.load(f"{local_store.url}/{manifest.folder}/checkpoint.pth", weights_only=True)
    assert checkpoint["norms"] == [0.5, 0.1] and "module.features.0.0.weight" in checkpoint["state_dict"]


# The origin of files


def test_importing_again_is_up_to_date_and_another_file_is_not(local_store):
    put(local_store, small())
    first = import_weights(local_store, row())
    assert not import_weights(local_store, row()).is_new
    local_store.delete([f"{WEIGHT_FILES}/published.pth.tar"])
    assert import_weights(local_store, row()).manifest.digest == first.manifest.digest, "what is there needs no file"
    put(local_store, small(1))
    second = import_weights(local_store, row())
    assert second.is_new and second.manifest.number == 2
    assert second.manifest.details["state_sha256"] != first.manifest.details["state_sha256"]


def test_weights_that_lost_a_file_are_imported_again(local_store):
    put(local_store, small())
    first = import_weights(local_store, row())
    local_store.delete([f"{first.manifest.folder}/weights.safetensors"])
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors is gone .* materialize pretraining/weights"):
        load_encoder_weights(local_store, "published")
    import_weights(local_store, row())
    assert load_encoder_weights(local_store, "published")[0].digest() == first.manifest.details["state_sha256"]


def test_nothing_of_this_machine_is_recorded(local_store, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "published.pth.tar").write_bytes(small())
    monkeypatch.setenv(environment.WEIGHTS_FOLDER.name, str(tmp_path / "elsewhere"))
    assert "local copy" in availability(local_store, row()).reason
    manifest = import_weights(local_store, row()).manifest
    for name in (item.name for item in manifest.objects):
        assert str(tmp_path).encode() not in local_store.read(f"{manifest.folder}/{name}")
    assert str(tmp_path) not in json.dumps(dict(manifest.details))
    other = Store(str(tmp_path / "other"))
    put(other, (tmp_path / "elsewhere" / "published.pth.tar").read_bytes())
    assert import_weights(other, row()).manifest.digest == manifest.digest, "wherever the copy lay"


def test_the_stores_copy_comes_before_the_folders(local_store, monkeypatch, tmp_path):
    monkeypatch.setenv(environment.WEIGHTS_FOLDER.name, str(tmp_path))
    (tmp_path / "published.pth.tar").write_bytes(b"not looked at")
    digest = put(local_store, small())
    assert import_weights(local_store, row(sha256=digest)).manifest.details["provenance"]["sha256"] == digest


@pytest.mark.parametrize("length", [8, 64])
def test_a_copy_with_another_checksum_is_refused_and_nothing_else_tried(local_store, length):
    digest = put(local_store, small())
    wrong = ("0" if digest[0] != "0" else "1") + digest[1:length]
    with pytest.raises(ValueError, match=f"has sha256 {digest}, expected .*{wrong}"):
        import_weights(local_store, row(sha256=wrong, url="https://127.0.0.1:9/x"))
    assert is_nothing_committed(local_store)


def test_a_wrong_checksum_does_not_hide_behind_an_earlier_import(local_store):
    put(local_store, small())
    import_weights(local_store, row())
    with pytest.raises(ValueError, match="expected one that begins with 00000000"):
        import_weights(local_store, row(sha256="00000000"))


@pytest.mark.parametrize("url", ["", "https://example.org/published.pth.tar"])
def test_what_is_not_at_hand_and_has_no_checksum_is_told_with_every_way(local_store, url):
    with pytest.raises(FileNotFoundError, match="'published' are not available here") as error:
        import_weights(local_store, row(url=url))
    told = str(error.value)
    for part in (
        f"{WEIGHT_FILES}/published.pth.tar",
        environment.WEIGHTS_FOLDER.name,
        ROWS,
        "sha256",
        "Nothing is used in their place",
        url,
    ):
        assert part in told
    assert is_nothing_committed(local_store)
    assert availability(local_store, row(url=url)).is_available is False


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_a_download_that_fails_is_told_and_nothing_is_committed(local_store, monkeypatch):
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "yes")
    monkeypatch.setattr("cem_assets.sources.files.download.time.sleep", lambda seconds: None)
    asked = row(url=f"http://127.0.0.1:{closed_port()}/published.pth.tar", sha256="0" * 64)
    found = availability(local_store, asked)
    assert (found.is_available, found.is_downloadable) == (False, True) and "not tried" in found.reason
    with pytest.raises(ConnectionError, match="not available here: there is no local copy .* could not be fetched") as error:
        import_weights(local_store, asked)
    assert environment.WEIGHTS_FOLDER.name in str(error.value) and is_nothing_committed(local_store)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "yes")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        num_asked = 0

        def __init__(self, *arguments):
            type(self).num_asked += 1
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.folder, running.handler = folder, Quiet
        yield running
        running.shutdown()
        thread.join()


def test_what_is_downloaded_is_checked_and_not_fetched_twice(local_store, server):
    data = small()
    (server.folder / "a.pth").write_bytes(data)
    url = f"http://127.0.0.1:{server.server_port}/a.pth"
    asked = row(url=url, sha256=hashlib.sha256(data).hexdigest())
    assert import_weights(local_store, asked).is_new and server.handler.num_asked == 1
    assert not import_weights(local_store, asked).is_new and server.handler.num_asked == 1
    assert availability(local_store, asked).reason == "in the store"


@pytest.mark.parametrize(
    ("path", "sha256", "limit", "kind", "told"),
    [
        ("a.pth", "0" * 64, 100, ValueError, "has sha256"),
        ("a.pth", hashlib.sha256(b"weights").hexdigest(), 6, ValueError, "has 7 bytes; expected at most 6"),
        ("b.pth", "0" * 64, 100, ConnectionError, "404"),
        ("a.pth", "0" * 8, 100, ValueError, "cannot download"),
        ("a.pth", "", 100, ValueError, "cannot download"),
    ],
)
def test_downloads_that_are_refused_leave_no_file(server, tmp_path, path, sha256, limit, kind, told):
    (server.folder / "a.pth").write_bytes(b"weights")
    target = tmp_path / "got"
    with pytest.raises(kind, match=told):
        download_url(f"http://127.0.0.1:{server.server_port}/{path}", sha256, tmp_path, target.name, limit, min_digits=8)
    assert not target.exists()
    whole = hashlib.sha256(b"weights").hexdigest()
    assert download_url(f"http://127.0.0.1:{server.server_port}/a.pth", whole, tmp_path, target.name, 7) == target
    assert target.read_bytes() == b"weights"


# Files that must be refused


class Evil:
    ran = False

    def __reduce__(self):
        return (exec, ("import cem_assets_tests.pretraining.weights.test_importing as t; t.Evil.ran = True",))


@pytest.mark.parametrize(
    "build",
    [
        lambda: pickle.dumps({"state_dict": Evil()}),
        lambda: saved({"state_dict": network(arch="efficientnet_b0").state_dict(), "extra": Evil()}),
        lambda: b"",
        lambda: b"garbage" * 50,
        lambda: small()[:-20_000],
        lambda: saved({"state_dict": {}}),
        lambda: saved([1, 2]),
        lambda: saved({**torch.load(io.BytesIO(small()), weights_only=True), "arch": "resnet50"}),
        lambda: saved(
            {
                name: value
                for name, value in network(arch="efficientnet_b0").state_dict().items()
                if name != "features.1.0.block.0.0.weight"
            }
        ),
        lambda: saved(
            network(arch="efficientnet_b0").state_dict() | {"features.0.0.weight": torch.full((32, 1, 3, 3), float("nan"))}
        ),
    ],
    ids=["pickle", "code in a zip", "empty", "garbage", "cut", "no tensors", "a list", "another arch", "one missing", "NaN"],
)
def test_hostile_and_damaged_files_commit_nothing(local_store, build):
    put(local_store, build())
    with pytest.raises(ValueError, match=r"published\.pth\.tar"):
        import_weights(local_store, row())
    assert Evil.ran is False and is_nothing_committed(local_store)


def test_a_file_too_large_is_not_read(local_store, monkeypatch):
    put(local_store, b"x" * 11)
    monkeypatch.setattr(weights_import, "MAX_FILE_BYTES", 10)
    with pytest.raises(ValueError, match="has 11 bytes; expected weights of at most 10"):
        import_weights(local_store, row())


def test_norms_that_disagree_with_the_row_are_told(local_store):
    put(local_store, small())
    with pytest.raises(ValueError, match="has pixel norms .0.57287, 0.12741., but its row in the catalogue has .0.449, 0.226."):
        import_weights(local_store, row(mean=0.449, std=0.226))
    assert import_weights(local_store, row(mean=0.5729, std=0.1274)).manifest.details["norms"]["mean"] == 0.57287, "the file's"


def test_weights_changed_in_the_store_are_not_loaded(local_store):
    put(local_store, small())
    manifest = import_weights(local_store, row()).manifest
    key = f"{manifest.folder}/weights.safetensors"
    data = bytearray(local_store.read(key))
    data[-1] ^= 1
    local_store.put(key, bytes(data))
    with pytest.raises(ValueError, match="has sha256 .* It was changed"):
        load_encoder_weights(local_store, "published")
    local_store.put(key, bytes(data[:-4]))
    with pytest.raises(ValueError, match=r"bytes; expected [\d,]+"):
        load_encoder_weights(local_store, "published")


def test_an_older_manifest_is_loaded_by_its_digest(local_store):
    put(local_store, small())
    old = import_weights(local_store, row()).manifest
    put(local_store, small(1))
    import_weights(local_store, row())
    weights, manifest = load_encoder_weights(local_store, "published", old.digest)
    assert manifest.number == 1 and weights.digest() == old.details["state_sha256"]
    with pytest.raises(FileNotFoundError, match="has no manifest with digest"):
        load_encoder_weights(local_store, "published", "0" * 64)


# Rows and parameters


def test_a_stores_rows_lie_over_the_packages(local_store):
    assert known_weights(local_store) == weights_rows()
    local_store.put(
        ROWS,
        b'[cem_swav]\nkind = "trained"\ntitle = "ours"\nmethod = "swav"\npreset = "smoke"\narch = "resnet18"\ndataset = "cem"\n'
        b'[ours]\nkind = "imported"\ntitle = "r"\nsource = "random"\nmethod = "random"\narch = "resnet18"\n',
    )
    rows = known_weights(local_store)
    assert rows["cem_swav"].title == "ours" and rows["ours"].source == "random"
    assert set(rows) == {*weights_rows(), "ours"}


def test_a_stores_row_cannot_turn_trained_weights_into_imported_ones(local_store):
    text = '[cem_swav]\nkind = "imported"\ntitle = "r"\nsource = "random"\nmethod = "random"\narch = "resnet18"\n'
    local_store.put(ROWS, text.encode())
    with pytest.raises(ValueError, match="cem_swav is trained in the package's catalogue, imported here"):
        known_weights(local_store)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[a", b"x" * (5 << 20)])
def test_a_stores_rows_that_cannot_be_read_are_told(local_store, data):
    local_store.put(ROWS, data)
    with pytest.raises(ValueError, match=r"^settings/weights\.toml"):
        known_weights(local_store)


def test_parameters_of_all_rows_are_checked_and_told_at_once(local_store):
    row_text = '[{}]\nkind = "trained"\ntitle = "t"\nmethod = "swav"\npreset = "smoke"\narch = "resnet18"\ndataset = "cem"\n'
    text = (
        row_text.format("a") + "params = { epochs = 0, momentums = 1 }\n" + row_text.format("b") + "params = { final_lr = 9 }\n"
    )
    local_store.put(ROWS, text.encode())
    with pytest.raises(ValueError, match="has 3 problem") as error:
        known_weights(local_store)
    for part in ("a: momentums: unknown to swav; expected ", "a: epochs: ", "b: together: ", "final_lr is 9"):
        assert part in str(error.value)


def test_every_trained_row_has_parameters():
    for name, asked in weights_rows().items():
        if isinstance(asked, TrainedWeights):
            params = params_of(asked)
            assert params.method == asked.method, name
    assert params_of(weights_rows()["cem_swav"]).epochs == 200


def test_parameters_are_the_presets_changed_by_the_row_changed_by_the_caller():
    asked = TrainedWeights("a", "t", "moco", "paper", "resnet18", "cem", params={"epochs": 20, "lr": 0.5})
    assert (params_of(asked).epochs, params_of(asked).lr, params_of(asked).milestones) == (20, 0.5, (12, 16))
    assert (params_of(asked, lr=0.1).lr, params_of(asked, lr=0.1).epochs) == (0.1, 20)
    with pytest.raises(ValueError, match="parameters of weights a cannot be used: method: unknown to moco.*; batch_size: "):
        params_of(asked, method="swav", batch_size="many")
    tables = {"crops": [{"num": 2, "size_px": 64, "scale": [0.2, 1.0]}]}
    assert params_of(replace(asked, params=tables)).crops[0].size_px == 64


def test_extra_files_are_committed_and_may_not_take_the_weights_names(local_store):
    weights = read_weights(small(), "w")
    stage = begin(local_store, Inputs(WEIGHTS, "mine", "1"))
    with pytest.raises(ValueError, match=r"README.md have names"):
        commit_weights(stage, weights, "supervised", {}, "card", {"README.md": b""})
    manifest = commit_weights(stage, weights, "supervised", {"kind": "trained"}, "card", {"loss.png": b"png"}).manifest
    assert "loss.png" in [item.name for item in manifest.objects] and current_manifest(local_store, WEIGHTS, "mine") is not None
    assert "loss.png" in readers.read_weights_info("mine", local_store.url)["files"]
