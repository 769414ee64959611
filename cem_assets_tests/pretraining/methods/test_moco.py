"""MoCo compared with its definition: loss, keys, queue, momentum, and the weights that must not change."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from cem_assets.encoders import build_encoder
from cem_assets.pretraining.methods.moco import MoCo, shuffle
from cem_assets.pretraining.methods.params import MoCoParams, params_for
from cem_assets_tests.pretraining.batches import do_step, random_views

SETTINGS = {"batch_size": 8, "queue": 24, "dim": 16, "first_negatives": "random", "momentum": 0.9, "encoder_momentum": 0.9}


def example(num_splits: int = 2, num_samples: int = 100, **more: object) -> MoCo:
    params = params_for("moco", "smoke", **(SETTINGS | {"num_batch_splits": num_splits} | more))
    assert isinstance(params, MoCoParams)
    return MoCo(params, "resnet18", num_samples)


def plain_features(method: MoCo, which: str, images: torch.Tensor) -> np.ndarray:
    """Compute unit features of one group of images with a network of torch's own layers, in training mode."""
    network = build_encoder("resnet18", in_channels=1)
    network.load_state_dict(getattr(method, f"encoder_{which}").state_dict())
    with torch.no_grad():
        features = copy.deepcopy(getattr(method, f"head_{which}"))(network(images)).double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def by_definition(method: MoCo, views: list[torch.Tensor], num_splits: int, step: int) -> tuple[float, np.ndarray]:
    """Compute the loss of the paper, and the keys in the order of the images, one BatchNorm group at a time."""
    num = len(views[0])
    groups = np.split(np.arange(num), num_splits)
    queries = np.concatenate([plain_features(method, "q", views[0][group]) for group in groups])
    order, keys = shuffle(num, method.params.seed, step).numpy(), np.empty_like(queries)
    for group in groups:
        keys[order[group]] = plain_features(method, "k", views[1][order[group]])
    negatives, temperature = method.queue.rows.double().numpy(), method.params.temperature
    losses = []
    for query, key in zip(queries, keys, strict=True):
        positive = np.exp(query @ key / temperature)
        losses.append(-np.log(positive / (positive + sum(np.exp(query @ negative / temperature) for negative in negatives))))
    return float(np.mean(losses)), keys


@pytest.mark.parametrize("num_splits", [1, 2, 4])
def test_loss_and_keys_equal_the_definition(num_splits):
    method = example(num_splits)
    with torch.no_grad():  # so that keys and queries come from different networks
        for parameter in method.encoder_k.parameters():
            parameter.mul_(1.01)
    views = random_views(method.params, 8, seed=1)
    expected, keys = by_definition(method, views, num_splits, step=5)
    loss, _ = method.compute_loss(views, None, step=5, epoch=0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    method.after_step(5)
    assert np.allclose(method.queue.rows[:8], keys, atol=1e-4)


def test_the_company_in_which_keys_are_normalised_matters():
    method = example(num_splits=4)
    views = random_views(method.params, 8, seed=1)
    keys = [by_definition(method, views, 4, step)[1] for step in (5, 6)]
    assert not np.allclose(keys[0], keys[1], atol=1e-3)


def test_the_permutation_is_of_the_seed_and_the_step():
    drawn = [tuple(shuffle(64, seed, step).tolist()) for seed in (0, 1, 2, 1 << 30) for step in (0, 1, 1 << 31, 1 << 32)]
    assert len(set(drawn)) == len(drawn) and all(sorted(order) == list(range(64)) for order in drawn)
    assert torch.equal(shuffle(64, 3, 4), shuffle(64, 3, 4))


def test_the_queue_wraps_around_with_keys_that_were_not_their_own_negatives():
    method = example()
    before = method.queue.rows.clone()
    assert before.norm(dim=1).allclose(torch.ones(24)) and not method.queue.is_full
    written = []
    for step in range(4):
        views = random_views(method.params, 8, seed=step)
        loss, _ = method.compute_loss(views, None, step, 0)
        unchanged = method.queue.rows.clone()
        loss.backward()  # would fail had the queue been written before
        assert torch.equal(method.queue.rows, unchanged)
        method.after_step(step)
        written.append(method.queue.rows[(8 * step) % 24 : (8 * step) % 24 + 8].clone())
    assert torch.equal(method.queue.rows, torch.cat([written[3], written[1], written[2]]))
    assert not torch.isclose(written[3], written[0]).all() and int(method.queue.pointer) == 8 and method.queue.is_full


@pytest.mark.parametrize(("num_samples", "expected"), [(1000, 24), (24, 24), (23, 16), (8, 8)])
def test_the_queue_is_at_most_the_dataset_and_a_multiple_of_the_batch(num_samples, expected):
    assert len(example(num_samples=num_samples).queue) == expected


def test_the_key_encoder_follows_and_is_not_trained():
    method = example()
    optimizer = method.build_optimizer()
    for step in range(2):
        old = {name: value.clone() for name, value in method.named_parameters()}
        do_step(method, optimizer, random_views(method.params, 8, seed=step), None, step, 10)
        new = dict(method.named_parameters())
        share = method.params.encoder_momentum
        for name in (name for name in old if "_k." in name):
            query = new[name.replace("_k.", "_q.")]
            assert torch.allclose(new[name], share * old[name] + (1 - share) * query, atol=1e-7), name
            assert new[name].grad is None and not torch.equal(new[name], query)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(value) for name, value in method.named_parameters() if "_q." in name}


def test_a_step_that_is_given_up_leaves_no_trace_in_the_queue():
    method = example()
    before = {name: value.clone() for name, value in method.queue.state_dict().items()}
    method.compute_loss(random_views(method.params, 8, seed=0), None, 0, 0)
    assert all(torch.equal(value, before[name]) for name, value in method.queue.state_dict().items())


def test_indicators_tell_a_collapse():
    method = example()
    views = random_views(method.params, 8, seed=0)
    _, healthy = method.compute_loss(views, None, 0, 0)
    with torch.no_grad():
        for head in (method.head_q, method.head_k):
            head[-1].weight.zero_()
            head[-1].bias.fill_(1.0)
    _, collapsed = method.compute_loss(views, None, 0, 0)
    assert float(healthy["feature_std"]) > 1e-3 and float(collapsed["feature_std"]) < 1e-6
    assert float(collapsed["positive_similarity"]) == pytest.approx(1)
    assert all(not value.requires_grad and value.shape == () for value in healthy.values())


def test_the_loss_is_float32_under_bfloat16():
    method = example()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.compute_loss(random_views(method.params, 8, seed=0), None, 0, 0)
    loss.backward()
    method.after_step(0)
    assert loss.dtype == method.queue.rows.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


def test_the_encoder_is_the_query_encoder_with_torchvisions_names():
    method = example()
    assert method.encoder.state_dict().keys() == build_encoder("resnet18", in_channels=1).state_dict().keys()
    assert method.encoder is method.encoder_q
    assert list(method.head_q.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"], "as published"
    assert isinstance(method.head_q[1], nn.ReLU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda views: views[:1], "1 views were given, expected 2"),
        (lambda views: [views[0], views[1][:4]], r"view 1 has shape \(4, 1, 32, 32\), expected \(8, 1, s, s\)"),
        (lambda views: [view.expand(8, 3, 32, 32) for view in views], "view 0 has shape .* view 1 has shape"),
        (lambda views: [view[..., :16] for view in views], "view 0 has shape"),
        (lambda views: [], "0 views were given"),
    ],
)
def test_views_that_do_not_fit_are_refused(change, message):
    method = example()
    with pytest.raises(ValueError, match=message):
        method.compute_loss(change(random_views(method.params, 8, seed=0)), None, 0, 0)


def test_without_first_negatives_the_loss_knows_only_keys_that_came():
    method = example(2, first_negatives="none")
    views = random_views(method.params, 8, seed=1)
    loss, indicators = method.compute_loss(views, None, step=0, epoch=0)
    assert float(loss.detach()) == 0.0 and float(indicators["negative_similarity"]) == 0.0  # nothing to tell apart yet
    method.after_step(0)
    loss, _ = method.compute_loss(views, None, step=1, epoch=0)
    whole = example(2)
    whole.load_state_dict(method.state_dict())
    whole.queue = type(whole.queue)(8, 16)
    whole.queue.rows.copy_(method.queue.rows[:8])
    whole.queue.push(method.queue.rows[:8])
    expected, _ = whole.compute_loss(views, None, step=1, epoch=0)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
