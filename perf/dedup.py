"""Greedy deduplication beside a plain loop and faiss, and near pairs between datasets, both up to ten million hashes.

Every peer must give the same exemplars. faiss compares binary codes exactly in two ways: `IndexBinaryFlat` scans all of them,
and `IndexBinaryMultiHash` with four maps of 16 bits and three flips cannot miss a code within 12 bits. MinHash LSH
(datasketch) is made for sets and finds a near pair only with some probability, so no setting of it gives the exact result, and
it has no row. Sizes from a million up run in separate processes, so that their peak memory is their own.
"""

import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np

from cem_assets.imaging.hamming import Exemplars, greedy_exemplars, near_pairs
from cem_assets.imaging.near_pairs import pairs_between_groups
from perf.timing import Measured, best_seconds

GROWTH = (1_000_000, 10_000_000)
CHECKED = 300
"""Rows of the large lists that are compared with the definition."""


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


def by_faiss(index: Any, hashes: np.ndarray) -> list[int]:
    """Search the exemplars found so far for every block; a code without one becomes an exemplar and strikes the rest."""
    exemplars: list[int] = []
    for start in range(0, len(hashes), 1024):
        block = hashes[start : start + 1024]
        left = np.arange(len(block))
        if exemplars:
            ends, _, _ = index.range_search(block.view(np.uint8).reshape(-1, 8), 13)  # distances below 13
            left = left[np.diff(ends.astype(np.int64)) == 0]
        new = []
        while len(left):
            new.append(int(left[0]))
            left = left[np.bitwise_count(block[left] ^ block[left[0]]) > 12]
        if new:
            index.add(block[new].view(np.uint8).reshape(-1, 8))
        exemplars += [start + place for place in new]
    return exemplars


def faiss_peers() -> dict[str, Any]:
    """Return a function for each kind of faiss index that makes an empty one; no functions where faiss is not installed."""
    try:
        import faiss
    except ImportError:
        return {}

    def hashed() -> Any:
        index = faiss.IndexBinaryMultiHash(64, 4, 16)
        index.nflip = 3
        return index

    faiss.omp_set_num_threads(2)
    return {"faiss IndexBinaryFlat": lambda: faiss.IndexBinaryFlat(64), "faiss IndexBinaryMultiHash": hashed}


def check_sample(hashes: np.ndarray, found: Exemplars) -> None:
    """Compare some rows with the definition: the first exemplar within the distance, and none before an exemplar."""
    exemplars = np.flatnonzero(found.exemplar == np.arange(len(hashes)))
    for row in np.random.default_rng(0).choice(len(hashes), CHECKED, replace=False):
        apart = np.bitwise_count(hashes[exemplars[: np.searchsorted(exemplars, row, "right")]] ^ hashes[row])
        first = int(np.argmax(apart <= 12))
        assert found.exemplar[row] == exemplars[first] and found.distance[row] == apart[first]


def run_one(num: int) -> dict[str, float]:
    """Time one size in this process, a fifth of it exemplars."""
    import resource

    greedy_exemplars(clustered(20_000, 4000, 0), 12, 2)  # so that the search is timed without compilation
    hashes = clustered(num, num // 5, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    found = greedy_exemplars(hashes, 12, num_threads=2)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_sample(hashes, found)
    exemplars = int((found.exemplar == np.arange(num)).sum())
    return {"seconds": seconds, "exemplars": exemplars, "peak_mib": peak / 1024, "before_mib": before / 1024}


def run_pairs(num: int) -> dict[str, float]:
    """Time near pairs between 20 datasets in this process, a hundredth of the hashes near one of another dataset."""
    import resource

    generator = np.random.default_rng(2)
    pairs_between_groups(generator.integers(0, 2**64, 20_000, dtype=np.uint64), np.arange(20_000) // 1000, 4, 2)
    hashes, groups = generator.integers(0, 2**64, num, dtype=np.uint64), np.arange(num) // -(-num // 20)
    copies = num // 100
    hashes[:copies] = hashes[-copies:] ^ (np.uint64(1) << generator.integers(0, 64, copies, dtype=np.uint64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    found = pairs_between_groups(hashes, groups, 4, 2)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = generator.choice(num, CHECKED, replace=False)
    started = time.perf_counter()
    plain = list(near_pairs(hashes[rows], hashes, 4))
    plain_seconds = (time.perf_counter() - started) * num / CHECKED / 2
    expected = {(int(rows[q]), o) for q, o, _ in plain if o > rows[q] and groups[o] != groups[rows[q]]}
    chosen = set(rows.tolist())
    assert {(int(a), int(b)) for a, b, _ in found if int(a) in chosen} == expected
    told = {"seconds": seconds, "pairs": len(found), "peak_mib": peak / 1024, "before_mib": before / 1024}
    return told | {"plain_seconds": plain_seconds}


def pairs_rows(is_quick: bool) -> list[Measured]:
    rows = []
    for num in GROWTH[:1] if is_quick else GROWTH:
        command = [sys.executable, "-m", "perf.dedup", "pairs", str(num)]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        note = f"{told['pairs']:,} pairs in {told['seconds']:.2f} s; peak {told['peak_mib']:,.0f} MiB, before "
        note += f"{told['before_mib']:,.0f}; each with each: our vectorized loop, one thread, extrapolated from {CHECKED} rows"
        ours, plain = num / told["seconds"], num / told["plain_seconds"]
        rows.append(
            Measured(
                f"near pairs of {num:,} hashes in 20 datasets, two threads", "hashes/s", ours, plain, "each with each", 0, note
            )
        )
    return rows


def measure(is_quick: bool = False) -> list[Measured]:
    rows, seconds_of = [], {}
    for num in (20_000,) if is_quick else (20_000, 200_000):
        hashes = clustered(num, num // 5, 0)
        found = greedy_exemplars(hashes, 12, 2)
        exemplars = np.flatnonzero(found.exemplar == np.arange(num)).tolist()
        check_sample(hashes, found)
        if num == 20_000:
            bits = np.unpackbits(hashes.byteswap().view(np.uint8).reshape(-1, 8), axis=1).astype(bool)
            assert exemplars == by_definition(bits)
            ours, peer = best_seconds(
                lambda hashes=hashes: greedy_exemplars(hashes, 12),
                lambda bits=bits: by_definition(bits),
                repeats=1 if is_quick else 3,
            )
            rows.append(
                Measured("dedup of 20,000 hashes, one thread", "hashes/s", num / ours, num / peer, "definition-level loop", 100)
            )
        peers = faiss_peers()
        if not peers:
            rows.append(
                Measured(f"dedup of {num:,} hashes beside faiss", "hashes/s", 0, 0, "faiss", 0, "faiss-cpu is not installed")
            )
        for name, new_index in peers.items():
            if num > 20_000 and "Multi" in name:
                continue  # already slower than the scan at 20,000
            assert by_faiss(new_index(), hashes) == exemplars
            ours, peer = best_seconds(
                lambda hashes=hashes: greedy_exemplars(hashes, 12, 2),
                lambda new_index=new_index, hashes=hashes: by_faiss(new_index(), hashes),
                repeats=1 if num > 20_000 or is_quick else 3,
            )
            seconds_of[num] = ours
            rows.append(
                Measured(f"dedup of {num:,} hashes, two threads", "hashes/s", num / ours, num / peer, name, 0, "same exemplars")
            )
    previous = max(seconds_of, default=0)
    for num in GROWTH[:1] if is_quick else GROWTH:
        done = subprocess.run([sys.executable, "-m", "perf.dedup", str(num)], capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        seconds_of[num] = told["seconds"]
        note = f"{told['exemplars']:,} exemplars in {told['seconds']:.1f} s, {CHECKED} rows held against the definition; "
        note += f"peak {told['peak_mib']:,.0f} MiB, before {told['before_mib']:,.0f}"
        if previous:
            exponent = math.log(seconds_of[num] / seconds_of[previous]) / math.log(num / previous)
            note += f"; time grows with n^{exponent:.1f} from {previous:,}"
        rows.append(Measured(f"dedup of {num:,} hashes, two threads", "hashes/s", num / told["seconds"], 0, "-", 0, note))
        previous = num
    return rows + pairs_rows(is_quick)


if __name__ == "__main__":
    print(json.dumps(run_pairs(int(sys.argv[2])) if sys.argv[1] == "pairs" else run_one(int(sys.argv[1]))))
