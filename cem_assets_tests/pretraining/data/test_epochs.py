"""The draw of an epoch and its shares: every row exactly once, resumable, and with the right weights."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cem_assets.pretraining.data.epochs import carried_order, epoch_order, num_batches, share, streaming_order


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), st.integers(0, 2**62), st.integers(0, 300))
def test_without_weights_every_row_is_drawn_once(sizes, seed, epoch):
    order = epoch_order(sizes, 0, seed, epoch)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(sum(sizes)))


def test_seed_and_epoch_decide_the_order():
    draws = {(seed, epoch): epoch_order([500], 0, seed, epoch).tolist() for seed in (0, 1, 2**40) for epoch in (0, 1)}
    assert len({tuple(draw) for draw in draws.values()}) == 6
    assert draws[1, 1] == epoch_order([200, 300], 0, 1, 1).tolist()  # without weights datasets do not matter


def test_orders_stay_what_they_were():
    """A checkpoint has its position in an epoch as a number, so another order would show patches twice."""
    assert epoch_order([5, 7], 0, 3, 2).tolist() == [9, 8, 1, 4, 5, 11, 0, 6, 2, 3, 10, 7]
    assert epoch_order([5, 7], 0.5, 3, 2).tolist() == [7, 5, 9, 10, 5, 0, 9, 11, 0, 0, 4, 6]
    streamed = streaming_order(np.arange(12), np.array([0, 4, 8, 12]), 2, 3, 2)
    assert streamed.tolist() == [0, 2, 5, 7, 3, 1, 6, 4, 11, 9, 10, 8]


def by_definition(sizes, gamma):
    """Compute the probability of every row: its weight divided by the sum of weights."""
    weight = np.concatenate([np.full(size, (1 / size) ** gamma) for size in sizes if size])
    return weight / weight.sum()


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 2.0])
def test_rows_are_drawn_with_their_weights(gamma):
    sizes = [3, 0, 40, 7, 150]
    drawn = np.concatenate([epoch_order(sizes, gamma, 9, epoch) for epoch in range(200)])
    expected = by_definition(sizes, gamma) * len(drawn)
    assert chisquare(np.bincount(drawn, minlength=200), expected).pvalue > 1e-3


def test_gamma_one_gives_every_dataset_the_same_share():
    sizes = [10, 1000, 50_000]
    order = epoch_order(sizes, 1.0, 0, 0)
    assert len(order) == sum(sizes)
    counts = np.histogram(order, [0, 10, 1010, 51_010])[0]
    assert np.abs(counts / len(order) - 1 / 3).max() < 0.01


@settings(max_examples=100, deadline=None)
@given(
    num=st.integers(0, 200),
    per_rank=st.integers(1, 9),
    world=st.integers(1, 4),
    workers=st.integers(1, 3),
    start=st.integers(0, 60),
)
def test_every_entry_goes_to_one_rank_and_worker_and_none_twice(num, per_rank, world, workers, start):
    order, batch_size = np.random.default_rng(num).integers(0, 50, num), per_rank * world
    for remainder, end in (("keep", num), ("drop", num - num % batch_size)):
        first = min(start, num_batches(num, batch_size, remainder))
        parts = [
            share(order, rank, world, worker, workers, batch_size, first, remainder)
            for rank in range(world)
            for worker in range(workers)
        ]
        delivered = Counter(int(row) for part in parts for batch in part for row in batch)
        assert delivered == Counter(order[first * batch_size : end].tolist())
        if remainder == "drop":
            assert all(len(batch) == per_rank for part in parts for batch in part)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_the_steps_of_one(world):
    order = epoch_order([100], 0, 0, 0)
    alone = share(order, batch_size=8)
    together = [share(order, rank, world, batch_size=8) for rank in range(world)]
    assert len(alone) == 12 == num_batches(100, 8)
    for step, batch in enumerate(alone):
        assert batch.tolist() == [row for part in together for row in part[step].tolist()]


def test_workers_take_turns_and_resume_where_they_were():
    order = np.arange(70)
    workers = [share(order, worker=worker, num_workers=3, batch_size=10) for worker in range(3)]
    assert [[int(batch[0]) for batch in part] for part in workers] == [[0, 30, 60], [10, 40], [20, 50]]
    resumed = [share(order, worker=worker, num_workers=3, batch_size=10, start=4) for worker in range(3)]
    assert [[int(batch[0]) for batch in part] for part in resumed] == [[60], [40], [50]]


def test_kept_remainders_are_split_evenly():
    parts = [share(np.arange(27), rank, 4, batch_size=20, remainder="keep") for rank in range(4)]
    assert [[len(batch) for batch in part] for part in parts] == [[5, 1], [5, 2], [5, 2], [5, 2]]
    few = [share(np.arange(2), rank, 4, batch_size=20, remainder="keep") for rank in range(4)]
    assert [[batch.tolist() for batch in part] for part in few] == [[], [[0]], [], [[1]]]


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 40), batch_size=st.integers(1, 100), epochs=st.integers(1, 8), gamma=st.sampled_from([0.0, 0.5]))
def test_carried_entries_are_lost_only_at_the_end_of_the_run(num, batch_size, epochs, gamma):
    sizes = [num, 3]
    delivered = [
        batch
        for epoch in range(epochs)
        for batch in share(carried_order(sizes, gamma, 5, epoch, batch_size), batch_size=batch_size)
    ]
    draws = np.concatenate([epoch_order(sizes, gamma, 5, epoch) for epoch in range(epochs)])
    whole = len(draws) - len(draws) % batch_size
    assert np.array_equal(np.concatenate([*delivered, np.empty(0, np.int64)]), draws[:whole])
    assert len(delivered) == num_batches(len(draws), batch_size)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 9), st.sampled_from([0.0, 0.7])
)
def test_streaming_keeps_the_draw_and_uses_few_groups_at_a_time(group_sizes, reach, epoch, gamma):
    starts = np.concatenate([[0], np.cumsum(group_sizes)])
    order = epoch_order(group_sizes, gamma, 1, epoch)
    streamed = streaming_order(order, starts, reach, 1, epoch)
    assert sorted(streamed.tolist()) == sorted(order.tolist())
    assert np.array_equal(streamed, streaming_order(order, starts, reach, 1, epoch))
    group = np.searchsorted(starts, streamed, side="right") - 1
    first = {int(g): n for n, g in reversed(list(enumerate(group)))}
    last = {int(g): n for n, g in enumerate(group)}
    in_use = [sum(first[g] <= n <= last[g] for g in first) for n in range(len(group))]
    assert max(in_use) <= min(reach + 1, len(group_sizes))


def test_a_streamed_epoch_mixes_groups_and_takes_them_evenly():
    starts = np.arange(0, 256 * 101, 256)
    order = streaming_order(epoch_order([25_600], 0, 0, 0), starts, 20, 0, 0)
    group = order // 256
    seen: set[int] = set()
    new = []
    for begin in range(0, 25_600, 256):
        batch = set(group[begin : begin + 256].tolist())
        new.append(len(batch - seen))
        seen |= batch
    assert max(new) < 16  # the first batches, which begin with few groups
    assert max(new[20:]) <= 5  # then about one new group in a batch of one group's length
    inner = [len(set(group[begin : begin + 256].tolist())) for begin in range(5120, 20_480, 256)]
    assert min(inner) >= 18


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: epoch_order([4, -1], -0.5, -1, 0), ["dataset 1 has -1 rows", "weight_gamma is -0.5", "seed is -1"]),
        (lambda: epoch_order([4], float("nan"), 0, 0), ["weight_gamma is nan"]),
        (lambda: epoch_order([0, 0], 0, 0, 0), ["no rows"]),
        (lambda: carried_order([4], 0, 0, 0, 0), ["batch_size 0"]),
        (lambda: share(np.arange(9), 2, 2, 5, 3, 3, 9), ["rank is 2, expected 0..1", "worker is 5", "start is 9, expected 0..3",
                                                         "a multiple of the 2 ranks"]),
        (lambda: share(np.arange(9), batch_size=0), ["batch_size is 0"]),
        (lambda: streaming_order(np.array([3]), np.array([0, 3]), 1, 0, 0), ["rows 3..3", "hold 0..2"]),
        (lambda: streaming_order(np.array([1]), np.array([0, 3]), 0, 0, 0), ["reach 0"]),
    ],
)  # fmt: skip
def test_senseless_numbers_are_named(call, told):
    with pytest.raises(ValueError) as error:
        call()
    assert all(text in str(error.value) for text in told), error.value
