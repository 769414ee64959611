"""The ring buffer of the newest features, compared with a deque, and its state."""

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.pretraining.methods.feature_queue import FeatureQueue


def rows_of(start: int, num: int) -> torch.Tensor:
    return torch.arange(start, start + num, dtype=torch.float32).view(-1, 1).repeat(1, 2)


@given(st.integers(1, 12), st.lists(st.integers(0, 12), max_size=12))
def test_it_keeps_the_newest_rows_wherever_it_wraps_around(size, pushes):
    queue, expected, position, pushed = FeatureQueue(size, 2), deque(maxlen=size), 0, 0
    for num in pushes:
        num = min(num, size)
        queue.push(rows_of(pushed + 1, num))
        expected.extend(float(n) for n in range(pushed + 1, pushed + num + 1))
        pushed += num
        position = (position + num) % size
        filled = sorted(value for value in queue.rows[:, 0].tolist() if value)
        assert filled == sorted(expected)
        assert (int(queue.pointer), int(queue.num_filled)) == (position, len(expected))
        assert queue.is_full == (len(expected) == size)


def test_rows_lie_in_the_order_of_the_ring():
    queue = FeatureQueue(5, 2)
    queue.push(rows_of(1, 4))
    queue.push(rows_of(5, 3))
    assert queue.rows[:, 0].tolist() == [6, 7, 3, 4, 5]


def test_it_keeps_values_and_not_the_tensors_pushed():
    queue, features = FeatureQueue(3, 2), rows_of(1, 2).requires_grad_()
    queue.push(features)
    with torch.no_grad():
        features.zero_()
    assert queue.rows[:2, 0].tolist() == [1, 2] and not queue.rows.requires_grad


@pytest.mark.parametrize("shape", [(4, 2), (2, 3), (2,), (2, 2, 1)])
def test_rows_that_do_not_fit_are_refused(shape):
    queue = FeatureQueue(3, 2)
    with pytest.raises(ValueError, match=r"do not fit into a queue of shape \(3, 2\)"):
        queue.push(torch.ones(shape))
    assert int(queue.num_filled) == 0


def test_a_queue_without_rows_is_refused():
    with pytest.raises(ValueError, match="expected at least 1"):
        FeatureQueue(0, 2)


def test_a_loaded_queue_goes_on_where_the_other_was():
    first, second = FeatureQueue(5, 2), FeatureQueue(5, 2)
    first.push(rows_of(1, 4))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.push(rows_of(5, 3))
    assert torch.equal(first.rows, second.rows) and second.is_full and int(second.pointer) == 2


@pytest.mark.parametrize(("name", "value"), [("pointer", 5), ("pointer", -1), ("num_filled", 6)])
def test_a_damaged_state_is_refused(name, value):
    queue = FeatureQueue(5, 2)
    with pytest.raises(ValueError, match="damaged or belongs to another run"):
        queue.load_state_dict(queue.state_dict() | {name: torch.tensor(value)})
