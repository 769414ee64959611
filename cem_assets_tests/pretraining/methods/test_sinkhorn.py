"""Assignments, compared with the paper's algorithm in plain numbers, and the guarantees of optimal transport."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.pretraining.methods.sinkhorn import assignments


def by_definition(scores, epsilon, num_iterations):
    """Compute algorithm 1 of SwAV number by number; Q is (prototypes, samples)."""
    num, prototypes = len(scores), len(scores[0])
    q = [[math.exp(scores[b][k] / epsilon) for b in range(num)] for k in range(prototypes)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(num_iterations):
        q = [[value / sum(row) / prototypes for value in row] for row in q]
        columns = [sum(q[k][b] for k in range(prototypes)) for b in range(num)]
        q = [[q[k][b] / columns[b] / num for b in range(num)] for k in range(prototypes)]
    return [[q[k][b] * num for k in range(prototypes)] for b in range(num)]


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.sampled_from([0.03, 0.05, 0.5]), st.integers(0, 99))
def test_equals_the_definition(num, prototypes, num_iterations, epsilon, seed):
    scores = np.random.default_rng(seed).uniform(-1, 1, (num, prototypes))
    expected = by_definition(scores.tolist(), epsilon, num_iterations)
    found = assignments(torch.from_numpy(scores).float(), epsilon, num_iterations)
    assert np.allclose(found, expected, atol=1e-5, rtol=1e-3)


def test_after_many_rounds_all_prototypes_get_the_same_share():
    scores = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shares = assignments(scores, 0.05, 300)
    assert torch.allclose(shares.sum(dim=1), torch.ones(64), atol=1e-5)
    assert torch.allclose(shares.sum(dim=0), torch.full((8,), 64 / 8), rtol=1e-3)


def test_extreme_scores_stay_finite():
    scores = torch.full((6, 3), -1.0)
    scores[:, 0] = 1.0
    for epsilon in (0.025, 0.05):
        assert torch.isfinite(assignments(scores, epsilon, 3)).all()


def test_equal_scores_are_shared_out_evenly():
    assert torch.allclose(assignments(torch.zeros(5, 4), 0.05, 3), torch.full((5, 4), 0.25))


def test_assignments_have_no_gradient_and_leave_the_scores_alone():
    scores = torch.rand(4, 3, requires_grad=True)
    before = scores.detach().clone()
    assert not assignments(scores, 0.05, 3).requires_grad
    assert torch.equal(scores, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_assignments_are_float32(dtype):
    assert assignments(torch.rand(4, 3).to(dtype), 0.05, 1).dtype == torch.float32
