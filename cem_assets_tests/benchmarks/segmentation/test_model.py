"""The U-Net: its weights, frozen and trained layers, random weights, and refusals."""

import pytest
import segmentation_models_pytorch as smp
import torch

from cem_assets.benchmarks.segmentation.model import build_unet
from cem_assets.encoders import build_encoder


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return build_encoder("resnet18", in_channels=1).state_dict()


def opened(model: torch.nn.Module) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}


def one_step(model: torch.nn.Module) -> set[str]:
    """Train one step, and return which parts of the encoder have changed, including statistics."""
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    model(torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    optimizer.step()
    return {name for name, value in model.encoder.state_dict().items() if not torch.equal(before[name], value)}


def test_the_encoder_computes_what_the_given_one_does(state):
    encoder = build_encoder("resnet18", in_channels=1)
    encoder.load_state_dict(state)
    model = build_unet("resnet18", 1, state).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        features = model.encoder(images)[-1].mean(dim=(2, 3))
        torch.testing.assert_close(features, encoder.eval()(images))
        assert model(images).shape == (2, 1, 64, 64)


def test_names_of_weights_are_those_of_the_library(state):
    model = build_unet("resnet18", 3, state)
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3)
    theirs.load_state_dict(model.state_dict())
    images = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("finetune_layer", "expected"),
    [
        ("none", set()),
        ("layer4", {"layer4"}),
        ("layer3", {"layer3", "layer4"}),
        ("layer1", {"layer1", "layer2", "layer3", "layer4"}),
        ("all", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_opened_layers_move_and_frozen_ones_keep_weights_and_statistics(state, finetune_layer, expected):
    model = build_unet("resnet18", 1, state, finetune_layer)
    assert opened(model) == expected
    moved = one_step(model)
    assert {name.split(".")[0] for name in moved} == expected
    assert {name.split(".")[-1] for name in moved} >= {"weight", "running_mean"} if expected else moved == set()


@pytest.mark.parametrize(
    ("encoder_batchnorm", "moving"),
    [("frozen", set()), ("batch", {"running_mean", "running_var", "num_batches_tracked"}),
     ("trained", {"running_mean", "running_var", "num_batches_tracked", "weight", "bias"})],
)  # fmt: skip
def test_batchnorm_of_a_frozen_encoder_does_what_was_asked(state, encoder_batchnorm, moving):
    model = build_unet("resnet18", 1, state, "none", encoder_batchnorm=encoder_batchnorm)
    moved = one_step(model)
    assert all("bn" in name or "downsample.1" in name for name in moved)
    assert {name.split(".")[-1] for name in moved} == moving


def test_a_frozen_encoder_is_one_function_in_both_modes(state):
    model, images = build_unet("resnet18", 1, state), torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.train().encoder(images)[-1], model.eval().encoder(images)[-1])
        assert not torch.equal(model.train()(images), model.eval()(images))


def test_random_weights_are_opened_whole_and_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build_unet("resnet18", 1, None, "none", seed=7)
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), following)  # the process's random generator has not changed
    again, other = build_unet("resnet18", 1, None, seed=7), build_unet("resnet18", 1, None, seed=8)
    assert first.finetune_layer == "all"
    assert len(opened(first)) == 6
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.encoder.conv1.weight, other.encoder.conv1.weight)


def test_weights_that_do_not_fit_are_named(state):
    bad = {name: value for name, value in state.items() if name != "bn1.bias"}
    bad |= {"fc.weight": torch.zeros(2, 512), "conv1.weight": torch.zeros(64, 3, 7, 7)}
    with pytest.raises(
        ValueError, match=r"fc.weight is unexpected; conv1.weight has shape \(64, 3, 7, 7\).*bn1.bias is missing"
    ):
        build_unet("resnet18", 1, bad)


def test_all_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"encoder 'efficientnet_b0'.*finetune_layer is 'layer9'.*num_classes is 0"):
        build_unet("efficientnet_b0", 0, None, "layer9")
