"""Greedy exemplars and pairs, compared with loops written from the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.imaging import hamming, multi_index
from cem_assets.imaging.hamming import closest_pair_within, greedy_exemplars, near_pairs


def distance(a: int, b: int) -> int:
    return (int(a) ^ int(b)).bit_count()


def greedy_by_definition(hashes: list[int], max_distance: int) -> tuple[list[int], list[int]]:
    exemplar, found = [-1] * len(hashes), [0] * len(hashes)
    for first, value in enumerate(hashes):
        if exemplar[first] >= 0:
            continue
        for other in range(first, len(hashes)):
            if exemplar[other] < 0 and distance(value, hashes[other]) <= max_distance:
                exemplar[other], found[other] = first, distance(value, hashes[other])
    return exemplar, found


def clustered(num: int, num_clusters: int, seed: int, flips: int = 6) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**64, num_clusters, dtype=np.uint64)
    hashes = centres[generator.integers(0, num_clusters, num)]
    for _ in range(flips):
        hashes ^= np.uint64(1) << generator.integers(0, 64, num).astype(np.uint64)
    return hashes


hash_lists = st.lists(st.integers(0, 2**64 - 1), max_size=40)


@settings(max_examples=200, deadline=None)
@given(hash_lists, st.integers(0, 64))
def test_exemplars_equal_the_definition_on_arbitrary_hashes(hashes, max_distance):
    found = greedy_exemplars(np.array(hashes, dtype=np.uint64), max_distance)
    assert (found.exemplar.tolist(), found.distance.tolist()) == greedy_by_definition(hashes, max_distance)


@pytest.mark.parametrize("num", [511, 512, 513, 1500])
def test_exemplars_equal_the_definition_across_blocks(num):
    hashes = clustered(num, num // 3, seed=num)
    found = greedy_exemplars(hashes, 12)
    assert (found.exemplar.tolist(), found.distance.tolist()) == greedy_by_definition(hashes.tolist(), 12)


def adversarial() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(8)
    near_zero = np.zeros(600, np.uint64)
    for _ in range(14):  # distances around 12, and all hashes in few buckets
        near_zero ^= np.uint64(1) << generator.integers(0, 64, 600).astype(np.uint64)
    chain = np.array([(1 << min(n, 64)) - 1 for n in range(600)], dtype=np.uint64)  # each is near its neighbours only
    return {
        "all equal": np.full(600, 7, np.uint64),
        "all distinct": generator.integers(0, 2**64, 600, dtype=np.uint64),
        "clusters": clustered(600, 100, seed=3, flips=9),
        "around one": near_zero,
        "chain": chain,
        "one band": generator.integers(0, 2**16, 600).astype(np.uint64),
    }


@pytest.mark.parametrize("case", list(adversarial()))
@pytest.mark.parametrize("num_bands", [None, *multi_index.NUM_BANDS])
@pytest.mark.parametrize("max_distance", [0, 3, 12])
def test_halves_and_buckets_equal_the_definition(monkeypatch, case, num_bands, max_distance):
    joined = []

    def chosen(num_block, num_hashes, distance):
        joined.append(num_block)
        return num_bands and multi_index.bands(num_bands, distance)

    monkeypatch.setattr(hamming, "_LEAF", 16)
    monkeypatch.setattr(hamming, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(hamming, "choose_bands", chosen)
    hashes = adversarial()[case]
    found = greedy_exemplars(hashes, max_distance, 2)
    assert (found.exemplar.tolist(), found.distance.tolist()) == greedy_by_definition(hashes.tolist(), max_distance)
    assert joined


def test_lists_long_enough_for_buckets_equal_the_loop_over_exemplars(monkeypatch):
    chosen = []
    choose = hamming.choose_bands

    def seen(*arguments):
        chosen.append(choose(*arguments))
        return chosen[-1]

    monkeypatch.setattr(hamming, "choose_bands", seen)
    hashes = clustered(60_000, 30_000, seed=4, flips=8)
    found = greedy_exemplars(hashes, 12, 2)
    assert any(cut is not None for cut in chosen)
    exemplar, left = np.full(len(hashes), -1), np.arange(len(hashes))
    while len(left):
        near = np.bitwise_count(hashes[left] ^ hashes[left[0]]) <= 12
        exemplar[left[near]] = left[0]
        left = left[~near]
    assert np.array_equal(found.exemplar, exemplar)
    assert np.array_equal(found.distance, np.bitwise_count(hashes ^ hashes[exemplar]))


def test_too_many_hashes_are_refused():
    one = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint64), (2**31,), (0,))  # this array takes no memory
    with pytest.raises(ValueError, match="expected fewer than 2,147,483,647"):
        greedy_exemplars(one, 12)


def test_threads_do_not_change_the_result(monkeypatch):
    monkeypatch.setattr(hamming, "_PARALLEL_FROM", 1)
    hashes = clustered(5000, 1500, seed=1)
    one, three = greedy_exemplars(hashes, 12, 1), greedy_exemplars(hashes, 12, 3)
    assert np.array_equal(one.exemplar, three.exemplar) and np.array_equal(one.distance, three.distance)


def test_the_input_is_left_alone():
    hashes = clustered(100, 10, seed=2)
    before = hashes.copy()
    greedy_exemplars(hashes, 12)
    assert np.array_equal(hashes, before)


@settings(max_examples=100, deadline=None)
@given(hash_lists, hash_lists, st.integers(0, 40))
def test_pairs_equal_the_definition(queries, others, max_distance):
    expected = [
        (i, j, distance(a, b)) for i, a in enumerate(queries) for j, b in enumerate(others) if distance(a, b) <= max_distance
    ]
    found = near_pairs(np.array(queries, dtype=np.uint64), np.array(others, dtype=np.uint64), max_distance)
    assert list(found) == expected


def test_more_pairs_than_the_first_guess_are_all_found():
    same = np.zeros(90, np.uint64)
    assert sum(1 for _ in near_pairs(same, same, 0)) == 90 * 90


@settings(max_examples=100, deadline=None)
@given(hash_lists, st.integers(0, 30))
def test_the_first_close_pair_is_found(hashes, max_distance):
    expected = next(
        (
            (i, j, distance(a, b))
            for i, a in enumerate(hashes)
            for j, b in enumerate(hashes)
            if j > i and distance(a, b) <= max_distance
        ),
        None,
    )
    assert closest_pair_within(np.array(hashes, dtype=np.uint64), max_distance) == expected
