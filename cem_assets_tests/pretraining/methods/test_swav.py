"""SwAV compared with its definition: loss, assignments with the queue, prototypes, one forward pass for each size."""

import copy

import numpy as np
import pytest
import torch

from cem_assets.encoders import build_encoder
from cem_assets.pretraining.methods.larc import LARC
from cem_assets.pretraining.methods.params import SwAVParams, params_for
from cem_assets.pretraining.methods.swav import SwAV
from cem_assets_tests.pretraining.batches import do_step, random_views
from cem_assets_tests.pretraining.methods.test_sinkhorn import by_definition as sinkhorn_by_definition

SETTINGS = {"batch_size": 6, "queue": 12, "queue_start_epoch": 1, "prototypes": 5, "dim": 8, "hidden": 16}


def example(num_samples: int = 60, **more: object) -> SwAV:
    params = params_for("swav", "smoke", **(SETTINGS | more))
    assert isinstance(params, SwAVParams)
    return SwAV(params, "resnet18", num_samples)


def by_definition(method: SwAV, views: list[torch.Tensor], queue: np.ndarray | None) -> float:
    """Compute the loss of the paper with torch's own layers; `queue` is (rows, views with assignments, dim)."""
    params, num = method.params, len(views[0])
    network, head = build_encoder("resnet18", in_channels=1), copy.deepcopy(method.projection_head)
    network.load_state_dict(method.backbone.state_dict())
    with torch.no_grad():
        encoded = torch.cat([network(torch.cat(views[:2])), network(torch.cat(views[2:]))])
        features = head(encoded).double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    prototypes = method.prototypes.weight.detach().double().numpy()
    scores = (features @ prototypes.T).reshape(len(views), num, -1)
    losses = []
    for assigned in range(2):
        rows = scores[assigned] if queue is None else np.concatenate([queue[:, assigned] @ prototypes.T, scores[assigned]])
        target = np.array(sinkhorn_by_definition(rows.tolist(), params.epsilon, params.sinkhorn_iterations))[-num:]
        for predicted in range(len(views)):
            if predicted == assigned:
                continue
            for row in range(num):
                exponentials = np.exp(scores[predicted, row] / params.temperature)
                losses.append(-float(target[row] @ np.log(exponentials / exponentials.sum())))
    return float(np.mean(losses))


def test_the_loss_equals_the_definition():
    method = example()
    views = random_views(method.params, 6, seed=1)
    loss, _ = method.compute_loss(views, None, step=0, epoch=0)
    assert float(loss.detach()) == pytest.approx(by_definition(method, views, None), rel=1e-4)


def test_the_loss_equals_the_definition_with_a_full_queue():
    method = example()
    generator = torch.Generator().manual_seed(3)
    method.queue.push(torch.nn.functional.normalize(torch.randn(12, 2, 8, generator=generator), dim=2))
    views = random_views(method.params, 6, seed=1)
    expected, without = (by_definition(method, views, queue) for queue in (method.queue.rows.double().numpy(), None))
    loss, _ = method.compute_loss(views, None, step=0, epoch=5)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(without, rel=1e-3), "the queue must matter for this to show anything"


def test_the_queue_fills_from_its_epoch_on_with_features_of_the_first_views():
    method = example()
    optimizer = method.build_optimizer()
    filled = []
    for step in range(6):  # two steps an epoch: epochs 0, 0, 1, 1, 2, 2
        views = random_views(method.params, 6, seed=step)
        with torch.no_grad():
            twin = copy.deepcopy(method)
            features = torch.nn.functional.normalize(twin.projection_head(twin._encode(views)), dim=1)
        do_step(method, optimizer, views, None, step, 2)
        filled.append(int(method.queue.num_filled))
        if step >= 2:
            start = 6 * (step % 2)
            expected = torch.stack([features[:6], features[6:12]], dim=1)
            assert torch.allclose(method.queue.rows[start : start + 6], expected, atol=1e-5)
    assert filled == [0, 0, 6, 12, 12, 12]


def test_an_unfilled_queue_is_not_used():
    method = example()
    views = random_views(method.params, 6, seed=1)
    method.queue.push(torch.ones(6, 2, 8))
    loss, _ = method.compute_loss(views, None, step=0, epoch=5)
    assert float(loss.detach()) == pytest.approx(by_definition(method, views, None), rel=1e-4)


def test_a_method_without_a_queue_learns_all_the_same():
    method = example(queue=0)
    before = method.backbone.conv1.weight.detach().clone()
    do_step(method, method.build_optimizer(), random_views(method.params, 6, seed=0), None, 0, 2)
    assert method.queue is None and not torch.equal(method.backbone.conv1.weight, before)
    assert not any("queue" in name for name in method.state_dict())


@pytest.mark.parametrize(("num_samples", "expected"), [(1000, 12), (11, 6), (6, 6)])
def test_the_queue_is_at_most_the_dataset_and_a_multiple_of_the_batch(num_samples, expected):
    assert len(example(num_samples=num_samples).queue) == expected


def test_each_resolution_goes_through_the_encoder_once():
    method, seen = example(), []
    method.backbone.register_forward_hook(lambda _, inputs, outputs: seen.append(tuple(inputs[0].shape)))
    method.compute_loss(random_views(method.params, 6, seed=0), None, 0, 0)
    assert seen == [(12, 1, 32, 32), (12, 1, 16, 16)]


def test_prototypes_stay_as_they_are_at_first_and_have_length_one_always():
    method = example(freeze_iterations=2)
    optimizer = method.build_optimizer()
    kept = [method.prototypes.weight.detach().clone()]
    for step in range(4):
        do_step(method, optimizer, random_views(method.params, 6, seed=step), None, step, 10)
        kept.append(method.prototypes.weight.detach().clone())
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2])
    assert not torch.allclose(kept[2], kept[3]) and not torch.allclose(kept[3], kept[4])
    for weight in kept:
        assert torch.allclose(weight.norm(dim=1), torch.ones(5), atol=1e-6)


def test_prototypes_are_frozen_for_an_epoch_at_most():
    assert example(num_samples=60, freeze_iterations=5005).freeze_iterations == 10
    assert example(num_samples=60, freeze_iterations=3).freeze_iterations == 3


def test_gradients_come_from_predictions_and_not_from_assignments():
    method = example(freeze_iterations=0)
    views = random_views(method.params, 6, seed=1)
    features = method.projection_head(method._encode(views)).detach()
    features = torch.nn.functional.normalize(features, dim=1)
    loss, _ = method.compute_loss(views, None, 0, 0)
    loss.backward()
    weight = method.prototypes.weight.detach().clone().requires_grad_()
    scores = (features @ weight.T).view(4, 6, -1)
    targets = [
        torch.tensor(sinkhorn_by_definition(scores[view].tolist(), method.params.epsilon, method.params.sinkhorn_iterations))
        for view in range(2)
    ]
    log_predictions = torch.log_softmax(scores / method.params.temperature, dim=2)
    terms = [-(targets[a] * log_predictions[v]).sum(dim=1).mean() for a in range(2) for v in range(4) if v != a]
    torch.stack(terms).mean().backward()
    assert torch.allclose(method.prototypes.weight.grad, weight.grad, atol=1e-4, rtol=1e-3)


def test_views_of_one_size_may_lie_apart():
    crops = ({"num": 2, "size_px": 32, "scale": (0.5, 1)}, {"num": 1, "size_px": 16, "scale": (0.1, 0.5)})
    apart = (*crops, {"num": 1, "size_px": 32, "scale": (0.5, 1)})
    method = example(crops=apart)
    views, seen = random_views(method.params, 6, seed=0), []
    method.backbone.register_forward_hook(lambda _, inputs, outputs: seen.append(outputs.detach()))
    encoded = method._encode(views)
    assert [len(outputs) for outputs in seen] == [18, 6]
    assert torch.equal(encoded, torch.cat([seen[0][:12], seen[1], seen[0][12:]]))


def test_indicators_tell_a_collapse():
    method = example()
    views = random_views(method.params, 6, seed=0)
    _, healthy = method.compute_loss(views, None, 0, 0)
    with torch.no_grad():
        method.projection_head[-1].weight.zero_()
        method.projection_head[-1].bias.copy_(method.prototypes.weight[2])
    _, collapsed = method.compute_loss(views, None, 0, 0)
    assert float(healthy["feature_std"]) > 0.05 and float(collapsed["feature_std"]) < 1e-6
    assert float(collapsed["prototypes_used"]) == pytest.approx(1 / 5)
    assert float(collapsed["prototype_entropy"]) == pytest.approx(float(collapsed["prediction_entropy"]), abs=1e-5)
    assert float(healthy["prototype_entropy"]) > float(healthy["prediction_entropy"]) + 0.01
    assert 0 < float(healthy["prototype_entropy"]) <= 1


def test_the_loss_is_float32_under_bfloat16():
    method = example()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.compute_loss(random_views(method.params, 6, seed=0), None, 0, 5)
    loss.backward()
    method.after_step(0)
    assert loss.dtype == method.queue.rows.dtype == torch.float32 and torch.isfinite(loss)


def test_the_optimiser_is_larc_with_the_published_numbers():
    optimizer = SwAV(params_for("swav", "paper"), "resnet18", 10_000).build_optimizer()
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, LARC) and len(optimizer.param_groups) == 1
    found = [group[name] for name in ("lr", "momentum", "weight_decay", "larc_weight_decay", "trust", "is_clipped")]
    assert found == [0.6, 0.9, 0.0, 1e-6, 0.001, False]


def test_names_are_the_published_ones():
    names = set(example().state_dict())
    assert {
        "prototypes.weight",
        "projection_head.0.weight",
        "projection_head.1.running_mean",
        "projection_head.3.bias",
    } <= names
    encoder = build_encoder("resnet18", in_channels=1).state_dict().keys()
    assert {f"backbone.{name}" for name in encoder} <= names
