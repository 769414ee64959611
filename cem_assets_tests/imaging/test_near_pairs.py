"""Near pairs between groups equal those of comparing all pairs, for any cut and any number of threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.imaging import near_pairs
from cem_assets.imaging.multi_index import NONE, bands
from cem_assets.imaging.near_pairs import choose_cut, pairs_between_groups


def by_definition(hashes, groups, max_distance):
    found = []
    for first in range(len(hashes)):
        for second in range(first + 1, len(hashes)):
            distance = (int(hashes[first]) ^ int(hashes[second])).bit_count()
            if distance <= max_distance and groups[first] != groups[second]:
                found.append([first, second, distance])
    return found


def crowded(num: int, seed: int = 0) -> np.ndarray:
    """Draw hashes around few centres with some bits flipped: there are pairs at every distance, and full buckets."""
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**64, max(1, num // 12), dtype=np.uint64)
    hashes = generator.choice(centres, num)
    for _ in range(5):
        hashes ^= np.where(generator.random(num) < 0.6, np.uint64(1) << generator.integers(0, 64, num, dtype=np.uint64), 0)
    return hashes.astype(np.uint64)


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 60),
    seed=st.integers(0, 1000),
    num_groups=st.integers(1, 5),
    max_distance=st.integers(0, 20),
    num_bands=st.sampled_from([0, 5, 7, 10]),
    num_threads=st.integers(1, 3),
)
def test_pairs_equal_the_definition(num, seed, num_groups, max_distance, num_bands, num_threads):
    hashes = crowded(num, seed)
    groups = np.random.default_rng(seed).integers(0, num_groups, num)
    cut = bands(num_bands, max_distance) if num_bands else None
    found = pairs_between_groups(hashes, groups, max_distance, num_threads, cut=cut)
    assert found.tolist() == by_definition(hashes, groups, max_distance) and found.dtype == np.int64


@pytest.mark.parametrize("num_bands", [0, 3, 4, 5])
def test_longer_lists_and_more_pairs_than_the_first_guess(monkeypatch, num_bands):
    monkeypatch.setattr(near_pairs, "_FIRST_ROOM", 3)
    hashes = crowded(700, seed=5)
    groups = np.arange(700) // 100
    expected = by_definition(hashes, groups, 4)
    cut = bands(num_bands, 4) if num_bands else near_pairs._EACH_WITH_EACH
    assert len(expected) > 100 and pairs_between_groups(hashes, groups, 4, 2, cut=cut).tolist() == expected


def test_equal_hashes_of_many_groups_are_all_paired():
    found = pairs_between_groups(np.full(50, 7, np.uint64), np.arange(50) // 2, 4)
    assert len(found) == 50 * 49 // 2 - 25 and set(found[:, 2].tolist()) == {0}


def test_short_lists_and_crowds_are_compared_each_with_each_and_long_ones_by_buckets():
    generator = np.random.default_rng(1)
    assert choose_cut(generator.integers(0, 2**64, 100, dtype=np.uint64), 4) == near_pairs._EACH_WITH_EACH
    assert len(choose_cut(generator.integers(0, 2**64, 100_000, dtype=np.uint64), 4)) == 5
    assert choose_cut(generator.integers(0, 3, 100_000, dtype=np.uint64), 4) == near_pairs._EACH_WITH_EACH


def test_progress_ends_with_all():
    told: list[tuple[int, int]] = []
    hashes, groups = crowded(5000), np.arange(5000) // 1000
    pairs_between_groups(hashes, groups, 4, progress=lambda *shares: told.append(shares), cut=bands(5, 4))
    assert told == sorted(told) and told[-1][0] == told[-1][1]


def test_too_many_hashes_are_refused_before_memory_is_taken():
    class Long(np.ndarray):
        def __len__(self) -> int:
            return NONE

    with pytest.raises(ValueError, match="expected fewer than 2,147,483,647"):
        pairs_between_groups(np.zeros(1, np.uint64).view(Long), np.zeros(1, np.int64), 4)
