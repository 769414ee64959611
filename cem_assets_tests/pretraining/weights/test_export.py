"""Reading and writing weights: published layouts, torchvision, safetensors, and files that must be refused."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cem_assets import encoders
from cem_assets.encoders import build_encoder
from cem_assets.errors import DataError
from cem_assets.pretraining.methods.params import params_for
from cem_assets.pretraining.methods.registry import build_method
from cem_assets.pretraining.training.checkpoints import decode_state
from cem_assets.pretraining.weights.export import (
    EncoderWeights,
    read_weights,
    sidecar,
    to_published,
    to_safetensors,
    weights_of,
)
from cem_assets_tests.pretraining.training.test_loop import METHODS, SmallNetwork

NORMS = (0.57287, 0.12741)


def torchvision_resnet(arch: str = "resnet50", in_channels: int = 1) -> nn.Module:
    """Build a network without the code under test."""
    model = getattr(torchvision.models, arch)()
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm other numbers than the initial ones, with which a swapped mean and variance would show little."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.running_mean.shape
            module.running_mean.copy_(torch.randn(size, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            module.num_batches_tracked.fill_(7)
    return model


def features_of(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    for name in ("fc", "classifier"):
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
    with torch.no_grad():
        return model.eval()(inputs)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because networks on pictures this small are slower with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(torchvision_resnet())


def saved(content: object, **options: object) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink, **options)
    return sink.getvalue()


def moco_checkpoint(model: nn.Module) -> dict[str, object]:
    """Make the layout of `train_mocov2.py` under DistributedDataParallel, with its MLP head, key encoder and queue."""
    state = OrderedDict()
    encoder = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    for part in ("encoder_q", "encoder_k"):
        for name, value in encoder.items():
            state[f"module.{part}.{name}"] = value if part == "encoder_q" else torch.zeros_like(value)
        state |= {f"module.{part}.fc.0.weight": torch.randn(2048, 2048), f"module.{part}.fc.0.bias": torch.randn(2048)}
        state |= {f"module.{part}.fc.2.weight": torch.randn(128, 2048), f"module.{part}.fc.2.bias": torch.randn(128)}
    state |= {"module.queue": torch.randn(128, 256), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    momentum = {0: {"momentum_buffer": torch.zeros(64, 1, 7, 7)}}
    optimizer = {"state": momentum, "param_groups": [{"lr": 0.015, "momentum": 0.9, "params": [0]}]}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer, "norms": [0.57287, 0.12741]}


def swav_checkpoint(model: nn.Module) -> dict[str, object]:
    """Make the layout of `train_swav.py`, with encoder, projection head and prototypes at one level."""
    state = OrderedDict((f"module.{n}", v) for n, v in model.state_dict().items() if not n.startswith("fc."))
    state |= {"module.projection_head.0.weight": torch.randn(64, 2048), "module.projection_head.0.bias": torch.randn(64)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"module.projection_head.1.{name}"] = torch.randn(64)
    state |= {"module.projection_head.1.num_batches_tracked": torch.tensor(3)}
    state |= {"module.projection_head.3.weight": torch.randn(16, 64), "module.projection_head.3.bias": torch.randn(16)}
    state |= {"module.prototypes.weight": torch.randn(30, 16)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "run_id": "abc", "norms": [0.57571, 0.12765]}


@pytest.mark.parametrize("build", [moco_checkpoint, swav_checkpoint])
@pytest.mark.parametrize("is_zip", [True, False])
def test_published_layouts_give_the_features_of_a_hand_loaded_model(build, is_zip, resnet50, inputs):
    checkpoint = build(resnet50)
    weights = read_weights(saved(checkpoint, _use_new_zipfile_serialization=is_zip), "published.pth")
    assert (weights.arch, weights.epoch, weights.norms, weights.notes) == ("resnet50", 200, tuple(checkpoint["norms"]), ())
    assert not any(name.startswith(("fc", "projection", "prototypes", "module")) for name in weights.state)
    with torch.no_grad():
        found = weights.build()(inputs)
    reference = with_statistics(torchvision_resnet())
    reference.load_state_dict(resnet50.state_dict())
    assert found.shape == (2, 2048) and torch.equal(found, features_of(reference, inputs))


@pytest.mark.parametrize(("method", "prefix"), [("moco", "module.encoder_q."), ("swav", "module.")])
def test_an_exported_checkpoint_loads_strictly_into_a_hand_built_torchvision_model(method, prefix, resnet50, inputs):
    encoder = build_encoder("resnet50", in_channels=1)
    encoder.load_state_dict({n: v for n, v in resnet50.state_dict().items() if not n.startswith("fc.")})
    encoder.to(memory_format=torch.channels_last)  # as it is trained
    exported = to_published(weights_of(encoder, "resnet50", NORMS, 3), method)
    checkpoint = torch.load(io.BytesIO(exported), weights_only=True)
    assert {**checkpoint, "state_dict": None} == {"epoch": 3, "arch": "resnet50", "norms": list(NORMS), "state_dict": None}
    assert all(name.startswith(prefix) and value.is_contiguous() for name, value in checkpoint["state_dict"].items())
    reference = torchvision_resnet()
    reference.fc = nn.Identity()
    reference.load_state_dict({n[len(prefix) :]: v for n, v in checkpoint["state_dict"].items()}, strict=True)
    with torch.no_grad():
        expected = encoder.eval()(inputs)
    assert torch.allclose(features_of(reference, inputs), expected, rtol=1e-4, atol=1e-3)  # another layout in memory
    assert torch.equal(features_of(reference, inputs), weights_of(encoder, "resnet50").build()(inputs).detach())


@pytest.mark.parametrize(("name", "prefix"), [("moco", "module.encoder_q."), ("swav", "module."), ("supervised", "module.")])
def test_what_a_method_trained_is_what_a_hand_built_torchvision_model_computes(name, prefix, inputs):
    params = params_for(name, "smoke", **({"batch_size": 8} | METHODS[name]))
    encoder = with_statistics(build_method(params, "resnet18", 64, num_classes=3 if name == "supervised" else 0).encoder)
    exported = to_published(weights_of(encoder, "resnet18", (params.mean, params.std), 1), name)
    state = torch.load(io.BytesIO(exported), weights_only=True)["state_dict"]
    reference = torchvision_resnet("resnet18")
    reference.fc = nn.Identity()
    reference.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()}, strict=True)
    with torch.no_grad():
        assert torch.equal(features_of(reference, inputs), encoder.eval()(inputs))


@pytest.mark.parametrize("write", [lambda w: to_published(w, "swav"), to_safetensors])
@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_b0"])
def test_what_is_written_is_read_back_and_equal_weights_give_equal_bytes(write, arch):
    torch.manual_seed(0)
    weights = weights_of(with_statistics(build_encoder(arch, in_channels=1)), arch, NORMS, 12)
    data = write(weights)
    again = read_weights(data, "own", arch)
    assert again.digest() == weights.digest() and write(weights) == data
    assert (again.arch, again.norms, again.epoch) == (arch, NORMS, 12)
    assert read_weights(data, "own").arch == arch, "the file says so itself"


def test_safetensors_hold_torchvisions_names_and_say_what_they_are():
    weights = weights_of(build_encoder("resnet18", in_channels=1), "resnet18", NORMS, 1)
    data = to_safetensors(weights)
    assert set(safetensors.torch.load(data)) == set(weights.state)
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert json.loads(header["__metadata__"]["cem_assets"]) == {"arch": "resnet18", "epoch": 1, "norms": list(NORMS)}


@pytest.mark.parametrize("beginning", [b"PK", b"\x80"])
def test_safetensors_whose_header_length_looks_like_another_format_are_read(beginning):
    weights = weights_of(build_encoder("small", in_channels=1), "small", NORMS, 1)
    data = to_safetensors(weights)
    length = struct.unpack("<Q", data[:8])[0]
    longer = next(n for n in range(length, 1 << 17) if struct.pack("<Q", n).startswith(beginning))
    data = struct.pack("<Q", longer) + data[8 : 8 + length] + b" " * (longer - length) + data[8 + length :]
    assert safetensors.torch.load(data).keys() == weights.state.keys()
    assert read_weights(data, "unlucky.safetensors").digest() == weights.digest()


def test_three_channels_are_summed_to_one_and_the_notes_say_so(inputs):
    torch.manual_seed(0)
    colour = with_statistics(torchvision_resnet("resnet18", in_channels=3))
    weights = read_weights(saved(colour.state_dict()), "resnet18.pth", arch="resnet18")
    assert weights.state["conv1.weight"].shape == (64, 1, 7, 7) and weights.norms is None and weights.epoch is None
    assert weights.notes == ("the first convolution had three channels; their weights were summed to one",)
    with torch.no_grad():
        found = weights.build()(inputs)
    assert torch.allclose(found, features_of(colour, inputs.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norms", "expected", "note"),
    [
        ([0.5, 0.25], (0.5, 0.25), ""),
        ((0.5, 0.25), (0.5, 0.25), ""),
        ({"mean": 0.5, "std": 0.25}, (0.5, 0.25), ""),
        ([[0.5], [0.25]], (0.5, 0.25), ""),
        ([[0.4, 0.5, 0.6], [0.2, 0.2, 0.2]], (0.5, 0.2), "averaged"),
        (None, None, ""),
    ],
)
def test_norms_are_read_in_the_forms_they_are_published_in(norms, expected, note):
    state = {f"module.{n}": v for n, v in build_encoder("resnet18", in_channels=1).state_dict().items()}
    content = {"state_dict": state, "arch": "resnet18"} | ({} if norms is None else {"norms": norms})
    weights = read_weights(saved(content), "x.pth")
    assert weights.norms == (None if expected is None else pytest.approx(expected))
    assert note in "".join(weights.notes) and bool(weights.notes) == bool(note)


def test_files_without_counters_get_them():
    state = build_encoder("resnet18", in_channels=1).state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    weights = read_weights(saved(old), "old.pth", arch="resnet18")
    assert set(weights.state) == set(state) and weights.state["bn1.num_batches_tracked"] == 0


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "small", SmallNetwork)
    monkeypatch.setitem(encoders._NUM_FEATURES, "small", 16)


def small_state() -> dict[str, object]:
    return dict(build_encoder("small", in_channels=1).state_dict())


def changed(**tensors: object) -> dict[str, object]:
    return small_state() | {name.replace("__", "."): value for name, value in tensors.items()}


def without(name: str) -> dict[str, object]:
    state = small_state()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: changed(features__0__weight=torch.zeros(8, 2, 7, 7)),
            r"features.0.weight has shape \(8, 2, 7, 7\), expected \(8, 1,",
        ),
        (
            lambda: changed(features__1__bias=torch.zeros(1).expand(1 << 40)),
            r"features.1.bias has shape \(1099511627776,\), expected \(8,\)",
        ),
        (lambda: changed(features__1__bias=torch.full((8,), float("nan"))), "features.1.bias has values that are not finite"),
        (lambda: changed(features__1__bias=torch.zeros(8, dtype=torch.int64)), "features.1.bias has type torch.int64"),
        (lambda: changed(features__1__bias=torch.zeros(8, dtype=torch.complex64)), "features.1.bias has type torch.complex64"),
        (lambda: changed(features__1__bias=torch.zeros(8).to_sparse()), "features.1.bias is no plain tensor"),
        (lambda: changed(features__1__bias=torch.zeros(8, device="meta")), "features.1.bias is no plain tensor"),
        (lambda: changed(features__1__bias=[0.0] * 8), "features.1.bias is no plain tensor"),
        (lambda: changed(decoder__weight=torch.zeros(1)), "decoder.weight is unexpected"),
        (lambda: without("features.3.weight"), "features.3.weight is missing"),
        (lambda: {"state_dict": small_state(), "arch": "resnet50"}, "`arch` is 'resnet50', expected 'small'"),
        (lambda: {"state_dict": small_state(), "arch": ["small"]}, "`arch` is a list, expected a name"),
        (lambda: {"state_dict": small_state(), "epoch": -3}, "`epoch` is -3, expected a whole number"),
        (lambda: {"state_dict": small_state(), "norms": [146.1, 32.5]}, r"`norms` is \[146.1, 32.5\], expected mean and dev"),
        (lambda: {"state_dict": small_state(), "norms": [0.5, 0.0]}, r"`norms` is \[0.5, 0.0\]"),
        (lambda: {"state_dict": small_state(), "norms": [float("nan"), 0.2]}, r"`norms` is \[nan, 0.2\]"),
        (lambda: {"state_dict": small_state(), "norms": "0.5"}, "`norms` is 0.5, expected mean and deviation"),
        (lambda: {"state_dict": small_state(), "norms": [0.5, [0.1, 0.2]]}, r"`norms` is \[0.5, \[0.1, 0.2\]\]"),
        (lambda: {"state_dict": {}}, "holds no state_dict"),
        (lambda: torch.zeros(3), "holds no state_dict"),
        (lambda: [1, 2], "holds no state_dict"),
        (lambda: {1: torch.zeros(1)}, "holds no state_dict"),
    ],
)
def test_files_that_are_no_such_weights_are_refused_in_words(content, message):
    with pytest.raises(ValueError, match=message):
        read_weights(saved(content()), "hostile.pth", arch="small")


def test_all_problems_are_gathered_and_counted():
    with pytest.raises(ValueError, match=r"fc.*|missing") as caught:
        read_weights(saved({"features.0.weight": torch.zeros(1)}), "small.pth", arch="small")
    assert "small.pth does not fit an encoder small: features.0.weight has shape (1,)" in str(caught.value)
    assert " and " in str(caught.value) and "more" in str(caught.value)


def test_the_architecture_must_come_from_somewhere():
    with pytest.raises(ValueError, match="does not say which network"):
        read_weights(saved(small_state()), "plain.pth")
    with pytest.raises(ValueError, match="encoder 'resnet999' is not known"):
        read_weights(saved({"state_dict": small_state(), "arch": "resnet999"}), "plain.pth")


class Evil:
    """An object whose pickle would call eval when it is loaded, as that of a hostile file does."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('pathlib').Path('evil').touch()",))


@pytest.mark.parametrize("is_zip", [True, False])
def test_python_objects_are_refused_and_nothing_runs(is_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = saved({"state_dict": small_state(), "extra": Evil()}, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"hostile.pth holds Python objects \(.*eval\).*refused"):
        read_weights(hostile, "hostile.pth", arch="small")
    for protocol, message in ((2, r"holds Python objects \(.*eval\)"), (4, "a pickle of other things than tensors")):
        with pytest.raises(ValueError, match=message):
            read_weights(pickle.dumps(Evil(), protocol), "plain.pickle", arch="small")
    with pytest.raises(ValueError, match=r"holds Python objects \(torchvision.models.resnet.ResNet\)"):
        read_weights(saved(torchvision_resnet("resnet18")), "whole model.pth", arch="small")
    assert not (tmp_path / "evil").exists()


def test_large_files_are_refused_before_they_are_read():
    with pytest.raises(ValueError, match="big.pth has 2,000 bytes; expected at most 1,000"):
        read_weights(b"PK" + bytes(1998), "big.pth", arch="small", max_bytes=1000)


def repacked(data: bytes, compression: int = zipfile.ZIP_STORED, **replaced: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(sink, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, replaced.get(name.rpartition("/")[2].replace(".", "_"), source.read(name)))
    return sink.getvalue()


def test_packed_records_are_refused():
    packed = repacked(saved({"a": torch.zeros(1 << 20)}), zipfile.ZIP_DEFLATED)
    assert len(packed) < 100_000
    with pytest.raises(ValueError, match="compressed records"):
        decode_state(packed, "bomb.pth")


def test_a_flipped_bit_in_a_tensor_is_noticed():
    data = bytearray(saved({"a": torch.full((1000,), 7.5)}))
    data[data.find(struct.pack("<f", 7.5) * 10) + 400] ^= 1
    with pytest.raises(ValueError, match="checksum of its record .* is wrong"):
        decode_state(bytes(data), "flipped.pth")


VALID = {
    "zip": saved({"a": torch.arange(6.0), "b": [1, "two", None]}),
    "legacy": saved({"a": torch.arange(6.0), "b": [1, "two", None]}, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save({"a": torch.arange(6.0)}, {"cem_assets": "{}"}),
}


@pytest.mark.parametrize("kind", VALID)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_in_words_and_never_crash(kind, data):
    damaged = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    with pytest.raises(ValueError) as caught:  # undamaged or not, it is no such network
        read_weights(bytes(damaged), "damaged.pth", arch="small")
    assert type(caught.value) is DataError and "damaged.pth" in str(caught.value)


def test_the_sidecar_describes_files_and_weights():
    weights = weights_of(build_encoder("small", in_channels=1), "small", NORMS, 4)
    data = to_safetensors(weights)
    described = sidecar(weights, "moco", {"weights.safetensors": data}, release="v3", licences=["CC0"])
    assert json.loads(json.dumps(described)) == described
    assert described["files"]["weights.safetensors"]["bytes"] == len(data)
    assert (described["num_features"], described["in_channels"], described["epoch"]) == (16, 1, 4)
    assert described["norms"] == {"mean": NORMS[0], "std": NORMS[1]} and described["licences"] == ["CC0"]
    assert described["num_parameters"] == 8 * 49 + 2 * 8 + 16 * 8 * 9 + 2 * 16
    assert described["state_sha256"] == read_weights(data, "x").digest()


def test_weights_without_norms_are_not_published_and_methods_are_known():
    weights = EncoderWeights("resnet18", {})
    with pytest.raises(ValueError, match="have no norms"):
        to_published(weights, "moco")
    with pytest.raises(ValueError, match="method 'mae' is not known; expected one of moco, swav, supervised"):
        to_published(weights, "mae")


def test_weights_that_are_not_finite_are_not_taken():
    encoder = build_encoder("resnet18", in_channels=1)
    with torch.no_grad():
        encoder.conv1.weight[0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="the encoder does not fit an encoder resnet18: conv1.weight has values that are not"):
        weights_of(encoder, "resnet18")
