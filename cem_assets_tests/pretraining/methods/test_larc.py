"""LARC, compared with the rule of the paper in plain numbers over several steps, and its state."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cem_assets.pretraining.methods.larc import LARC

SHAPES = [(3, 2, 3, 3), (5,), (4, 6)]
MOMENTUM, DECAY, TRUST = 0.9, 0.01, 0.02


def example(seed=0):
    generator = np.random.default_rng(seed)
    weights = [generator.normal(0, 1, shape) for shape in SHAPES]
    gradients = [[generator.normal(0, 10.0**-step, shape) for shape in SHAPES] for step in range(4)]
    return weights, gradients


def parameters_of(weights):
    return [nn.Parameter(torch.tensor(weight, dtype=torch.float32)) for weight in weights]


def run(optimizer, parameters, gradients, rates):
    for step, rate in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()


def by_definition(weights, gradients, rates, is_clipped):
    """Compute equation 6 of the LARC paper, and SGD with momentum as torch defines it."""
    weights = [weight.copy() for weight in weights]
    velocity = [np.zeros(shape) for shape in SHAPES]
    for step, lr in zip(gradients, rates, strict=True):
        for n, gradient in enumerate(step):
            w_norm = math.sqrt(sum(x * x for x in weights[n].ravel()))
            g_norm = math.sqrt(sum(x * x for x in gradient.ravel()))
            local = TRUST * w_norm / (g_norm + DECAY * w_norm)
            if is_clipped:
                local = min(local / lr, 1.0)
            velocity[n] = MOMENTUM * velocity[n] + local * (gradient + DECAY * weights[n])
            weights[n] = weights[n] - lr * velocity[n]
    return weights


@pytest.mark.parametrize("is_clipped", [False, True])
@pytest.mark.parametrize("rates", [(0.6, 0.5, 0.4, 0.3), (0.005, 0.005, 0.003, 0.001)])
@pytest.mark.parametrize("fused", [None, True])
def test_equals_the_definition_over_several_steps(is_clipped, rates, fused):
    weights, gradients = example()
    parameters = parameters_of(weights)
    run(LARC(parameters, 1.0, MOMENTUM, DECAY, TRUST, is_clipped, fused), parameters, gradients, rates)
    expected = by_definition(weights, gradients, rates, is_clipped)
    for parameter, weight in zip(parameters, expected, strict=True):
        assert np.allclose(parameter.detach(), weight, atol=1e-5)


def test_clipping_changes_the_outcome_of_the_example():
    weights, gradients = example()
    rates = (0.005, 0.005, 0.003, 0.001)
    clipped, scaled = (by_definition(weights, gradients, rates, flag) for flag in (True, False))
    assert not np.allclose(clipped[0], scaled[0], atol=1e-4)


def test_a_step_is_in_proportion_to_the_weights_whatever_the_gradient():
    for scale in (1e-6, 1.0, 1e6):
        weight = nn.Parameter(torch.full((10,), 3.0))
        weight.grad = torch.full((10,), scale)
        LARC([weight], 0.5, momentum=0.0, trust=0.01).step()
        assert torch.allclose(3.0 - weight.detach(), torch.full((10,), 3.0 * 0.01 * 0.5), rtol=0.02)


def test_zero_weights_and_zero_gradients_are_stepped_without_scaling():
    fresh, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    fresh.grad, still.grad = torch.ones(3), torch.zeros(3)
    LARC([fresh, still], 0.5, weight_decay=0.1).step()
    assert torch.equal(fresh.detach(), torch.full((3,), -0.5)) and torch.equal(still.detach(), torch.ones(3))


def test_a_parameter_without_a_gradient_does_not_move():
    moved, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    moved.grad = torch.ones(3)
    LARC([moved, frozen], 0.5, weight_decay=0.1).step()
    assert not torch.equal(moved.detach(), torch.ones(3)) and torch.equal(frozen.detach(), torch.ones(3))


def test_the_state_goes_on_where_it_was():
    weights, gradients = example()
    whole, halves = parameters_of(weights), parameters_of(weights)
    optimizer = LARC(whole, 1.0, MOMENTUM, DECAY, TRUST)
    run(optimizer, whole, gradients, (0.6, 0.5, 0.4, 0.3))
    first = LARC(halves, 1.0, MOMENTUM, DECAY, TRUST)
    run(first, halves, gradients[:2], (0.6, 0.5))
    second = LARC(halves, 9.0)
    second.load_state_dict(first.state_dict())
    run(second, halves, gradients[2:], (0.4, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_a_closure_is_called_with_gradients_enabled():
    weight = nn.Parameter(torch.ones(3))
    optimizer = LARC([weight], 0.5)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0 and not torch.equal(weight.detach(), torch.ones(3))
