"""Greedy deduplication follows its definition, and depends on nothing but names, hashes and seed."""

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from cem_assets.cem.patches.dedup import DedupParams, deduplicate, visiting_order
from cem_assets_tests.imaging.test_hamming import clustered, greedy_by_definition


def example(num=600, seed=0):
    return [f"v-LOC-0_{n:03d}_0-224_0-224" for n in range(num)], clustered(num, num // 4, seed)


def test_equals_the_definition_in_visiting_order():
    names, hashes = example()
    found = deduplicate(names, hashes, DedupParams(seed=5))
    order = visiting_order(names, 5)
    exemplar, distance = greedy_by_definition(hashes[order].tolist(), 12)
    assert found.exemplar[order].tolist() == order[exemplar].tolist()
    assert found.distance[order].tolist() == distance


def test_the_order_is_a_keyed_hash_of_names():
    names, _ = example(50)
    key = (9).to_bytes(8, "big")
    expected = sorted(range(50), key=lambda n: hashlib.blake2b(names[n].encode(), digest_size=16, key=key).digest())
    assert visiting_order(iter(names), 9).tolist() == expected


def test_listing_order_and_threads_do_not_matter():
    names, hashes = example()
    shuffled = np.random.default_rng(3).permutation(len(names))
    first = deduplicate(names, hashes, DedupParams())
    second = deduplicate([names[n] for n in shuffled], hashes[shuffled], DedupParams(), num_threads=3)
    by_name = {names[row]: names[first.exemplar[row]] for row in range(len(names))}
    again = {names[shuffled[row]]: names[shuffled[second.exemplar[row]]] for row in range(len(names))}
    assert by_name == again


def test_another_seed_chooses_other_exemplars():
    names, hashes = example()
    first, second = (deduplicate(names, hashes, DedupParams(seed=seed)).is_exemplar() for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_every_duplicate_names_an_exemplar_within_the_distance():
    names, hashes = example()
    found = deduplicate(names, hashes, DedupParams())
    is_exemplar = found.is_exemplar()
    assert is_exemplar[found.exemplar].all()
    apart = np.bitwise_count(hashes ^ hashes[found.exemplar])
    assert np.array_equal(apart, found.distance) and apart.max() <= 12
    assert found.num_duplicates().sum() == (~is_exemplar).sum()
    kept = hashes[is_exemplar]
    assert min((int(a) ^ int(b)).bit_count() for n, a in enumerate(kept) for b in kept[:n]) > 12


def test_no_patches_give_no_exemplars():
    found = deduplicate([], np.empty(0, np.uint64), DedupParams())
    assert len(found.exemplar) == 0 == found.num_duplicates().sum()


@pytest.mark.parametrize("bad", [{"max_distance": -1}, {"max_distance": 65}, {"seed": -1}])
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(ValidationError):
        DedupParams(**bad)
