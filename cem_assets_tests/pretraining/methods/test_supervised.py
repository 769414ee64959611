"""Supervised training: its loss, its shares of right answers, and the input that it refuses."""

import numpy as np
import pytest
import torch

from cem_assets.encoders import build_encoder
from cem_assets.pretraining.methods.params import params_for
from cem_assets.pretraining.methods.supervised import Supervised
from cem_assets_tests.pretraining.batches import random_views


def example(num_classes: int = 7, **more: object) -> Supervised:
    params = params_for("supervised", "smoke", **({"dropout": 0.0} | more))
    return Supervised(params, "resnet18", 100, num_classes)


def test_loss_and_shares_equal_the_definition():
    method = example()
    views, labels = random_views(method.params, 16, seed=0), torch.arange(16) % 7
    loss, indicators = method.compute_loss(views, labels, 0, 0)
    scores = method.logits(views[0]).detach().double().numpy()
    exponentials = np.exp(scores)
    chances = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert float(loss.detach()) == pytest.approx(-np.mean(np.log(chances[np.arange(16), labels.numpy()])), rel=1e-4)
    ranks = (scores > scores[np.arange(16), labels.numpy()][:, None]).sum(axis=1)
    assert float(indicators["top1"]) == pytest.approx(np.mean(ranks < 1))
    assert float(indicators["top5"]) == pytest.approx(np.mean(ranks < 5))
    assert 0 < np.mean(ranks < 5) < 1, "the example must tell the two apart from all and nothing"


def test_top5_of_two_classes_is_always_right():
    method = example(num_classes=2)
    _, indicators = method.compute_loss(random_views(method.params, 4, seed=0), torch.tensor([0, 1, 0, 1]), 0, 0)
    assert float(indicators["top5"]) == 1


def test_dropout_is_before_the_last_layer_alone():
    method = example(dropout=0.5)
    images, zero = random_views(method.params, 4, seed=0)[0], []
    method.classifier.register_forward_hook(lambda _, inputs, outputs: zero.append(float((inputs[0] == 0).float().mean())))
    method.logits(images)
    method.eval().logits(images)
    assert zero[0] > 0.4 and zero[1] < 0.4
    assert torch.equal(method.encoder(images), method.encoder(images))


def test_the_encoder_is_the_network_without_its_last_layer():
    assert example().encoder.state_dict().keys() == build_encoder("resnet18", in_channels=1).state_dict().keys()


@pytest.mark.parametrize("labels", [None, torch.zeros(3, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.int64)])
def test_labels_must_be_as_many_as_images(labels):
    method = example()
    with pytest.raises(ValueError, match=r"supervised training expects \(4,\), one for each image"):
        method.compute_loss(random_views(method.params, 4, seed=0), labels, 0, 0)


@pytest.mark.parametrize("num_classes", [0, 1])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(ValueError, match="expects 2 or more"):
        example(num_classes=num_classes)


def test_the_optimiser_is_adam_over_everything():
    method = example()
    optimizer = method.build_optimizer()
    assert isinstance(optimizer, torch.optim.Adam) and optimizer.param_groups[0]["lr"] == 1e-3
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(method.parameters()))
