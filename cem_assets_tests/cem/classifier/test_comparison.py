"""Mistakes and flipped decisions, compared with their definitions patch by patch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.cem.classifier.decisions import closest_calls, find_flips, find_mistakes

PATCHES = st.lists(st.tuples(st.booleans(), *[st.floats(0, 1, width=32)] * 2), max_size=40)


@given(PATCHES)
def test_mistakes_are_those_of_the_definition_the_furthest_off_first(patches):
    is_good = np.array([good for good, _, _ in patches], bool)
    probabilities = np.array([p for _, p, _ in patches], np.float32)
    found = find_mistakes(is_good, probabilities)
    kept = [row for row, (good, p, _) in enumerate(patches) if p > 0.5 and not good]
    lost = [row for row, (good, p, _) in enumerate(patches) if p <= 0.5 and good]
    assert found.kept.tolist() == sorted(kept, key=lambda row: -patches[row][1])
    assert found.lost.tolist() == sorted(lost, key=lambda row: -(1 - patches[row][1]))
    assert len(found) == len(kept) + len(lost)
    near = sorted(range(len(patches)), key=lambda row: abs(patches[row][1] - 0.5))
    assert closest_calls(probabilities, 3).tolist() == near[:3]


@given(PATCHES)
def test_flips_are_those_of_the_definition(patches):
    is_good = np.array([good for good, _, _ in patches], bool)
    new, used = (np.array([row[column] for row in patches], np.float32) for column in (1, 2))
    found = find_flips(is_good, new, used)
    gained = [row for row, (_, p, q) in enumerate(patches) if p > 0.5 >= q]
    dropped = [row for row, (_, p, q) in enumerate(patches) if q > 0.5 >= p]
    assert found.gained.tolist() == sorted(gained, key=lambda row: -(patches[row][1] - patches[row][2]))
    assert found.dropped.tolist() == sorted(dropped, key=lambda row: -(patches[row][2] - patches[row][1]))
    corrected = [row for row in gained if patches[row][0]] + [row for row in dropped if not patches[row][0]]
    assert (found.num_corrected, found.num_spoiled) == (len(corrected), len(found) - len(corrected))


def test_a_classifier_does_not_differ_from_itself():
    probabilities = np.linspace(0, 1, 9, dtype=np.float32)
    assert len(find_flips(np.arange(9) % 2 == 0, probabilities, probabilities)) == 0


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="found 3 labels, 2 and 3 probabilities"):
        find_flips(np.ones(3, bool), np.ones(2, np.float32), np.ones(3, np.float32))
