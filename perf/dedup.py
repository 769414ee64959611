"""Greedy deduplication beside the definition-level loop over boolean hashes, one core; and a million hashes."""

import time

import numpy as np

from cem_assets.imaging.hamming import greedy_exemplars
from perf.timing import Measured, best_seconds


def clustered(num: int, num_clusters: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**64, num_clusters, dtype=np.uint64)
    hashes = centres[generator.integers(0, num_clusters, num)]
    for _ in range(5):
        hashes ^= np.uint64(1) << generator.integers(0, 64, num).astype(np.uint64)
    return hashes


def by_definition(bits: np.ndarray) -> list[int]:
    """Take the first patch, strike all within the distance, go on with the rest."""
    places, exemplars = np.arange(len(bits)), []
    while len(bits):
        near = np.logical_xor(bits[0], bits).sum(axis=1) <= 12
        exemplars.append(int(places[0]))
        bits, places = bits[~near], places[~near]
    return exemplars


def measure(is_quick: bool = False) -> list[Measured]:
    hashes = clustered(20_000, 4000, 0)
    bits = np.unpackbits(hashes.byteswap().view(np.uint8).reshape(-1, 8), axis=1).astype(bool)
    found = greedy_exemplars(hashes, 12)
    assert np.flatnonzero(found.exemplar == np.arange(len(hashes))).tolist() == by_definition(bits)
    ours, peer = best_seconds(lambda: greedy_exemplars(hashes, 12), lambda: by_definition(bits))
    rows = [
        Measured("dedup of 20,000 hashes, one thread", "hashes/s", 20_000 / ours, 20_000 / peer, "definition-level loop", 80)
    ]
    million = clustered(1_000_000, 200_000, 1)
    started = time.perf_counter()
    greedy_exemplars(million, 12, num_threads=2)
    rows.append(
        Measured("dedup of 1,000,000 hashes, two threads", "hashes/s", 1_000_000 / (time.perf_counter() - started), 0, "-", 0)
    )
    return rows
