"""BatchNorm in groups, compared with torch's own BatchNorm of each group."""

import copy

import pytest
import torch
from torch import nn

from cem_assets.encoders import build_encoder
from cem_assets.pretraining.methods.batchnorm import (
    SplitBatchNorm,
    SynchronizedBatchNorm,
    replace_batchnorm,
    split,
    synchronized,
)


def pair(num_splits: int) -> tuple[SplitBatchNorm, list[nn.BatchNorm2d]]:
    """Make a layer with this many groups, and torch's layer once for each group, all with the same parameters."""
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3)
    with torch.no_grad():
        for tensor in (plain.weight, plain.bias, plain.running_mean):
            tensor.copy_(torch.randn(3))
    layer = split(num_splits)(plain)
    layer.load_state_dict(plain.state_dict())
    return layer, [copy.deepcopy(plain) for _ in range(num_splits)]


@pytest.mark.parametrize("num_splits", [1, 2, 4])
def test_each_group_of_successive_rows_is_normalised_alone(num_splits):
    layer, plain = pair(num_splits)
    images = (torch.randn(8, 3, 5, 5) * torch.arange(1, 9).view(-1, 1, 1, 1)).requires_grad_()
    mine, weights = layer(images), torch.randn(8, 3, 5, 5)
    (mine * weights).sum().backward()
    gradient, images.grad = images.grad, None
    theirs = torch.cat([one(part) for one, part in zip(plain, images.chunk(num_splits), strict=True)])
    (theirs * weights).sum().backward()
    assert torch.allclose(mine, theirs, atol=1e-6) and torch.allclose(gradient, images.grad, atol=1e-5)
    assert torch.allclose(layer.weight.grad, sum(one.weight.grad for one in plain), rtol=1e-4, atol=1e-4)
    assert torch.allclose(layer.running_mean, torch.stack([one.running_mean for one in plain]).mean(dim=0), atol=1e-6)
    assert torch.allclose(layer.running_var, torch.stack([one.running_var for one in plain]).mean(dim=0), rtol=1e-5)
    assert int(layer.num_batches_tracked) == 1


def test_groups_matter():
    layer, plain = pair(2)
    images = torch.randn(8, 3, 5, 5) * torch.arange(1, 9).view(-1, 1, 1, 1)
    assert not torch.allclose(layer(images), plain[0](images), atol=0.1)


def test_evaluation_is_torchs_own_whatever_the_batch():
    layer, plain = pair(4)
    images = torch.randn(3, 3, 5, 5)
    assert torch.equal(layer.eval()(images), plain[0].eval()(images))


def test_a_batch_that_does_not_split_is_refused():
    layer, _ = pair(4)
    with pytest.raises(ValueError, match="a batch of 6 does not split into 4 equal groups"):
        layer(torch.randn(6, 3, 5, 5))


def test_bfloat16_goes_in_and_comes_out():
    layer, _ = pair(2)
    assert layer(torch.randn(4, 3, 5, 5).bfloat16()).dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32


@pytest.mark.parametrize("make", [split(2), synchronized])
def test_an_encoder_keeps_its_names_its_numbers_and_its_outputs(make):
    torch.manual_seed(0)
    plain = build_encoder("resnet18", in_channels=1)
    plain(torch.randn(4, 1, 32, 32))  # moves the running statistics
    replaced = copy.deepcopy(plain)
    replace_batchnorm(replaced, make)
    kinds = {type(layer) for layer in replaced.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {SplitBatchNorm if make is not synchronized else SynchronizedBatchNorm}
    assert replaced.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(replaced.eval()(images), plain.eval()(images))


def test_synchronized_layers_are_torchs_own_on_one_process():
    torch.manual_seed(0)
    plain, images = nn.BatchNorm1d(4), torch.randn(6, 4)
    layer = synchronized(plain)
    assert torch.allclose(layer(images), plain(images), atol=1e-6)
    assert torch.allclose(layer.running_var, plain.running_var)
