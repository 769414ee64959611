"""Learning rates: the published milestones, the half cosine, a constant."""

import math

import pytest

from cem_assets.pretraining.methods.params import params_for
from cem_assets.pretraining.methods.schedules import learning_rate

STEPS = 10  # of an epoch


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.015), (119, 0.015), (120, 0.0015), (159, 0.0015), (160, 0.00015), (199, 0.00015), (250, 0.00015)],
)
@pytest.mark.parametrize("batch", [0, STEPS - 1])
def test_moco_steps_down_at_the_start_of_its_milestones(epoch, batch, expected):
    assert learning_rate(params_for("moco", "paper"), epoch * STEPS + batch, STEPS) == pytest.approx(expected)


def test_swav_falls_with_half_a_cosine_to_its_final_rate():
    params = params_for("swav", "paper")
    rates = [learning_rate(params, step, STEPS) for step in range(200 * STEPS + 1)]
    expected = [0.0006 + (0.6 - 0.0006) * math.cos(math.pi * n / (2 * 200 * STEPS)) ** 2 for n in range(200 * STEPS + 1)]
    assert rates == pytest.approx(expected)
    assert rates[0] == 0.6 and rates[-1] == pytest.approx(0.0006) and rates == sorted(rates, reverse=True)
    assert learning_rate(params, 999 * STEPS, STEPS) == pytest.approx(0.0006)


def test_supervised_training_keeps_its_rate():
    assert {learning_rate(params_for("supervised", "paper"), step, STEPS) for step in range(100)} == {1e-3}


@pytest.mark.parametrize(("step", "steps"), [(-1, 10), (0, 0)])
def test_senseless_counts_are_refused(step, steps):
    with pytest.raises(ValueError, match="at least 0 and 1"):
        learning_rate(params_for("moco", "paper"), step, steps)
