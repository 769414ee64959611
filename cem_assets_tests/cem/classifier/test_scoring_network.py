"""The fast forward pass: folded, fused if the kernels are right, and plain otherwise."""

import numpy as np
import pytest
import torch
from torch import nn

from cem_assets.cem.classifier import scoring_network as module
from cem_assets.cem.classifier.network import build_classifier
from cem_assets.cem.classifier.params import ClassifierParams, Precision
from cem_assets.cem.classifier.scoring_network import FusedNetwork, folded, scoring_forward, to_network
from cem_assets.cem.classifier.training import settle_statistics

CPU = torch.device("cpu")


def patches(num: int, seed: int = 0) -> np.ndarray:
    """Stripes of many widths and contrasts on noise."""
    generator = np.random.default_rng(seed)
    wave = np.sin(np.arange(224) / generator.uniform(2, 9, (num, 1, 1)))
    noise = generator.integers(100, 150, (num, 224, 224))
    return np.clip(noise + wave * generator.uniform(0, 90, (num, 1, 1)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = build_classifier()
    settle_statistics(model, patches(8), ClassifierParams(batch_size=8, device="cpu"))
    return model


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(module, "_fits", {})


@torch.inference_mode()
def by_definition(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model.eval()(to_network(images)).flatten()


def test_folded_normalization_changes_nothing_but_rounding_and_leaves_the_network_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lean = folded(model)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in lean.modules())
    inputs = to_network(torch.from_numpy(patches(4, seed=1)))
    with torch.no_grad():
        assert torch.allclose(lean(inputs), model.eval()(inputs), atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_network_sees_three_equal_channels_before_normalising():
    inputs = to_network(torch.full((1, 224, 224), 255, dtype=torch.uint8))
    assert torch.allclose(inputs[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))


@pytest.mark.parametrize("precision", Precision)
@torch.inference_mode()
def test_logits_are_those_of_the_network(model, precision):
    forward = scoring_forward(model, CPU, precision)
    images = torch.from_numpy(
        patches(11, seed=1)
    )  # more images than go through a CPU together, and not a multiple of that number
    found, expected = forward(images), by_definition(model, images)
    assert found.dtype == torch.float32 and found.shape == (11,)
    tolerance = 1e-4 if precision == Precision.float32 else 0.1
    assert expected.std() > 3 * tolerance, "else anything would pass"
    assert torch.allclose(found, expected, atol=tolerance)
    assert torch.equal(forward(images), found)


@torch.inference_mode()
def test_float32_is_fused_only_where_every_bit_stays(model):
    forward, plain = scoring_forward(model, CPU, Precision.float32), folded(model).to(memory_format=torch.channels_last)
    assert module._fits == {Precision.float32: isinstance(forward, FusedNetwork)}
    for num in (1, 3, 9):
        images = torch.from_numpy(patches(num, seed=num))
        assert torch.equal(forward(images), plain(to_network(images)).flatten())


@pytest.mark.parametrize("precision", Precision)
@torch.inference_mode()
def test_kernels_that_give_something_else_are_not_used(model, precision, monkeypatch, caplog):
    try:
        FusedNetwork(folded(model), precision)(torch.from_numpy(patches(1)))
    except RuntimeError as error:  # for example bfloat16 without AVX-512
        pytest.skip(f"this processor has no such kernels: {error}")
    right = FusedNetwork._pooled
    monkeypatch.setattr(FusedNetwork, "_pooled", lambda network, images: 1.5 * right(network, images) + 0.5)
    forward = scoring_forward(model, CPU, precision)
    assert not isinstance(forward, FusedNetwork) and "scoring without them" in caplog.text
    images = torch.from_numpy(patches(2, seed=3))
    assert torch.allclose(forward(images), by_definition(model, images), atol=0.1)
    assert not isinstance(scoring_forward(model, CPU, precision), FusedNetwork), "nor tried again"


@torch.inference_mode()
def test_a_build_without_the_kernels_scores_all_the_same(model, monkeypatch, caplog):
    def absent(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(FusedNetwork, "_packed", absent)
    images = torch.from_numpy(patches(2, seed=3))
    assert torch.allclose(scoring_forward(model, CPU, Precision.float32)(images), by_definition(model, images), atol=1e-4)
    assert "Set precision to float32" not in caplog.text
    scoring_forward(model, CPU, Precision.bfloat16)
    assert "Set precision to float32" in caplog.text
