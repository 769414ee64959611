"""The choice of the patches that are labelled next."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.web.next_patches import Order, next_patches, order_patches

SCORED = st.dictionaries(
    st.text(min_size=1, max_size=4), st.sampled_from([0.0, 0.1, 0.4, 0.5, 0.6, 0.9, 1.0]), min_size=1, max_size=20
)


def ordered(scores: dict[str, float], order: Order, seed: int = 7) -> list[str]:
    names = list(scores)
    return [names[row] for row in order_patches(names, np.array(list(scores.values()), np.float32), order, seed)]


@given(SCORED, st.randoms(use_true_random=False))
def test_the_order_depends_on_names_and_scores_not_on_rows(scores, random):
    shuffled = dict(random.sample(list(scores.items()), len(scores)))
    for order in Order:
        assert ordered(shuffled, order) == ordered(scores, order)


@given(SCORED)
def test_by_uncertainty_the_distance_from_a_half_never_falls(scores):
    found = ordered(scores, Order.uncertainty)
    assert sorted(found) == sorted(scores)
    distances = [abs(np.float32(scores[name]).astype(float) - 0.5) for name in found]
    assert distances == sorted(distances)


def test_equally_uncertain_patches_come_at_random_and_another_seed_is_another_order():
    scores = {f"p{number}": 0.5 for number in range(50)}
    assert ordered(scores, Order.uncertainty) == ordered(scores, Order.random)
    assert ordered(scores, Order.random) != ordered(scores, Order.random, seed=8)
    assert ordered(scores, Order.random) != sorted(scores)


def test_uncertainty_without_scores_is_refused():
    with pytest.raises(ValueError, match="found none"):
        order_patches(["p"], None, Order.uncertainty, 0)
    assert order_patches(["p"], None, Order.random, 0).tolist() == [0]


@pytest.mark.parametrize(
    ("answered", "held", "num", "expected"),
    [
        ((), (), 2, ["a", "b"]),
        (("a",), ("c",), 2, ["b", "d"]),
        (("a", "b", "c", "d"), (), 2, []),
        ((), ("a", "b", "c"), 9, ["d"]),
    ],
)
def test_what_was_answered_or_is_on_the_page_is_not_shown_again(answered, held, num, expected):
    assert next_patches(iter("abcd"), set(answered), set(held), num) == expected
