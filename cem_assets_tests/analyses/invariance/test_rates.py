"""Firing rates under changes of the image, compared with the definition unit by unit and image by image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from cem_assets.analyses.activations import pixels_of_images
from cem_assets.analyses.invariance.rates import FiringRates, firing_thresholds, measure_invariance
from cem_assets.analyses.invariance.transformations import TRANSFORMATIONS, noise_seeds
from cem_assets.analyses.params import InvarianceParams
from cem_assets_tests.analyses.encoders import NORMS, FourQuadrants, random_resnet, tiny_images

STRENGTHS = {"rotation": (0.0, 20.0), "noise": (0.0, 0.2), "brightness": (1.0, 0.5)}


def _slow_rates(encoder: nn.Module, images: np.ndarray, name: str, strength: float, share: float, sign: int) -> np.ndarray:
    """Compute the local firing rate of Goodfellow et al. unit by unit and image by image."""
    encoder.eval()

    def answer(image: np.ndarray, number: int, by: float) -> np.ndarray:
        changed = TRANSFORMATIONS[name].apply(pixels_of_images(image[None]), by, noise_seeds(0, number, 1))
        with torch.inference_mode():
            return sign * encoder((changed - NORMS[0]) / NORMS[1])[0].numpy().astype(np.float64)

    plain = [answer(image, number, TRANSFORMATIONS[name].identity) for number, image in enumerate(images)]
    moved = [answer(image, number, strength) for number, image in enumerate(images)]
    rates = []
    for unit in range(len(plain[0])):
        descending = sorted((row[unit] for row in plain), reverse=True)
        num = max(1, round(share * len(images)))
        threshold = (descending[num - 1] + descending[num]) / 2
        chosen = [number for number in range(len(images)) if plain[number][unit] > threshold]
        fired = [moved[number][unit] > threshold for number in chosen]
        rates.append(sum(fired) / len(fired) if fired else np.nan)
    return np.array(rates)


def test_rates_agree_with_the_definition_in_any_batches() -> None:
    encoder, images = random_resnet(), tiny_images(10)
    slow = {
        name: np.stack([_slow_rates(encoder, images, name, value, 0.3, 1) for value in values])
        for name, values in STRENGTHS.items()
    }
    for batch_size in (3, 64):
        found = measure_invariance(
            encoder, images, NORMS, InvarianceParams(global_rate=0.3, batch_size=batch_size, strengths=STRENGTHS)
        )
        assert list(found) == list(STRENGTHS)
        for name, rates in found.items():
            # A changed image within rounding of a threshold may fall on either side.
            assert np.mean(~np.isclose(rates.local_rates, slow[name], equal_nan=True)) < 0.005
            assert np.allclose(rates.mean_rates, np.nanmean(slow[name], axis=1), atol=2e-3)
            assert np.array_equal(rates.local_rates[0, rates.is_firing], np.ones(rates.is_firing.sum()))
            assert rates.mean_rates[1] < 1


def test_a_unit_of_either_sign_takes_the_one_that_scores_more() -> None:
    encoder, images = FourQuadrants(), tiny_images(20)
    params = InvarianceParams(global_rate=0.2, is_either_sign=True, strengths={"brightness": [0.7, 1.0]})
    found = measure_invariance(encoder, images, NORMS, params)["brightness"]
    both = [
        np.stack([_slow_rates(encoder, images, "brightness", value, 0.2, sign) for value in (0.7, 1.0)]) for sign in (1, -1)
    ]
    slow = np.where(both[1].mean(axis=0) > both[0].mean(axis=0), both[1], both[0])
    assert np.allclose(found.local_rates, slow)
    # With darker images no unit that responds to light fires, and every unit that responds to darkness does.
    assert found.mean_rates[0] == 1.0


def test_what_a_unit_cannot_see_it_is_invariant_to() -> None:
    class Mean(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(dim=(2, 3))

    images = tiny_images(30)
    found = measure_invariance(
        Mean(), images, NORMS, InvarianceParams(global_rate=0.1, strengths={"rotation": [90, 180], "brightness": [0.3]})
    )
    assert np.array_equal(found["rotation"].mean_rates, [1.0, 1.0])
    assert found["rotation"].scores == pytest.approx([10.0])  # 1 / the global rate is the most there can be
    assert np.array_equal(found["brightness"].mean_rates, [0.0])


def test_silent_units_are_left_out_of_means() -> None:
    class WithConstant(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.stack([pixels.mean(dim=(1, 2, 3)), torch.zeros(len(pixels))], 1)

    rates = measure_invariance(WithConstant(), tiny_images(9), NORMS, InvarianceParams(strengths={"rotation": [180]}))[
        "rotation"
    ]
    assert rates.is_firing.tolist() == [True, False] and np.isnan(rates.local_rates[0, 1]) and np.isnan(rates.scores[1])
    assert rates.mean_rates.tolist() == [1.0]


def test_scores_are_local_rates_by_the_global_one() -> None:
    rates = FiringRates("blur", (1.0, 2.0), np.array([[1.0, 0.5, 0.2], [1.0, 0.5, 0.0]]), np.array([0.1, 0.1, 0.1]), 10)
    assert rates.scores == pytest.approx([10, 5, 1])


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(4, 40), st.just(3)), elements=st.floats(-9, 9, width=16)),
    st.sampled_from([0.01, 0.1, 0.5]),
)
def test_no_unit_fires_for_more_images_than_asked(activations: np.ndarray, share: float) -> None:
    num = max(1, round(share * len(activations)))
    fires = activations > firing_thresholds(activations, share)
    for unit, column in enumerate(activations.T):
        descending = np.sort(column)[::-1]
        expected = num if descending[num - 1] > descending[num] else int((column > descending[num]).sum())
        assert fires[:, unit].sum() == expected <= num


def test_wrong_parameters_are_told_together() -> None:
    with pytest.raises(ValueError, match=r"'shear' is not known.*strengths of blur are \[-1\.0\]"):
        InvarianceParams(strengths={"shear": [1], "blur": [-1]})
    with pytest.raises(ValueError, match="less than or equal to 0.5"):
        InvarianceParams(global_rate=0.7)
    with pytest.raises(ValueError, match="n above that"):
        firing_thresholds(np.zeros((1, 3)))
