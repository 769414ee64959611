"""Subsets of classes: they depend on names alone, and change little when a release changes."""

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.pretraining.data.subsets import SUBSETS, choose_classes

NAMES = st.sets(st.text(min_size=1, max_size=8).filter(str.isprintable), min_size=1, max_size=90)
SEEDS = st.integers(0, 2**63 - 1)


def release(num: int) -> dict[str, int]:
    return {f"label {n}": 287 + n for n in range(num)}


@given(NAMES, SEEDS, st.sampled_from(sorted(SUBSETS)))
def test_the_choice_is_that_of_the_definition(names, seed, subset):
    hashes = {name: hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little")).hexdigest() for name in names}
    expected = sorted(names, key=lambda name: (hashes[name], name))[: SUBSETS[subset]]
    assert choose_classes(dict.fromkeys(names, 300), subset, seed) == sorted(expected)


@given(NAMES, SEEDS, st.randoms(use_true_random=False))
def test_neither_order_nor_sizes_matter_and_toy_20_is_within_toy_50(names, seed, random):
    shuffled = random.sample(sorted(names), len(names))
    small = choose_classes(dict.fromkeys(names, 300), "toy_20", seed)
    assert choose_classes({name: random.randint(1, 1000) for name in shuffled}, "toy_20", seed) == small
    assert set(small) <= set(choose_classes(dict.fromkeys(names, 300), "toy_50", seed))


@given(NAMES, st.text(min_size=1, max_size=8).filter(str.isprintable), SEEDS)
def test_a_new_class_displaces_one_at_most(names, added, seed):
    before = set(choose_classes(dict.fromkeys(names, 300), "toy_20", seed))
    after = set(choose_classes(dict.fromkeys(names | {added}, 300), "toy_20", seed))
    assert len(before - after) <= 1 and after - before <= {added}


def test_seeds_choose_differently_and_the_choice_is_pinned():
    chosen = choose_classes(release(894), "toy_20", 0)
    assert len(chosen) == 20 and len(choose_classes(release(894), "toy_50", 0)) == 50
    assert chosen != choose_classes(release(894), "toy_20", 1)
    assert hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16] == "7fec96725008d4bd"


@pytest.mark.parametrize(("num", "subset", "expected"), [(1, "toy_20", 1), (20, "toy_20", 20), (21, "toy_50", 21)])
def test_a_small_release_gives_all_of_its_classes(num, subset, expected):
    assert choose_classes(release(num), subset, 0) == sorted(release(num))[:expected]


def test_classes_without_images_are_passed_over():
    sizes = release(30)
    first = choose_classes(sizes, "toy_20", 0)[0]
    chosen = choose_classes(sizes | {first: 0}, "toy_20", 0)
    assert first not in chosen and len(chosen) == 20


@pytest.mark.parametrize(
    ("sizes", "subset", "seed", "message"),
    [
        ({"a": 1}, "toy_30", 0, "subset 'toy_30' is not known, expected one of toy_20, toy_50"),
        ({"a": 1}, "toy_20", -1, "seed is -1"),
        ({"a": 1}, "toy_20", 1 << 63, "seed is 9223372036854775808"),
        ({"a": -1, "b": 3}, "toy_20", 0, "class 'a' has -1 images"),
        ({}, "toy_20", 0, "none of 0 classes has images"),
        ({"a": 0}, "toy_9", 0, "subset 'toy_9'.*; none of 1 classes"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(sizes, subset, seed, message):
    with pytest.raises(ValueError, match=message):
        choose_classes(sizes, subset, seed)


def test_subsets_and_figures_load_without_torch():
    modules = "sys, cem_assets.pretraining.data.subsets, cem_assets.pretraining.training.figures"
    code = f"import {modules}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
