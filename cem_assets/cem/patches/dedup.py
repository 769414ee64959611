"""Deduplication of one dataset's patches: greedy exemplars at a Hamming distance.

Patches are visited in the order of a keyed hash of their names, so the outcome depends on the patches
and the seed alone, never on listing order, workers or time. Finished datasets are never reopened by new
ones; near copies across datasets are reported at a stricter distance (`CROSS_DATASET_DISTANCE`) when a
release is made. The search itself is `cem_assets.imaging.hamming`.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.imaging.hamming import greedy_exemplars

CROSS_DATASET_DISTANCE = 4
"""Between unrelated datasets chance matches are common at 12 bits: about 0.34 per patch against 1.5 M."""


class DedupParams(BaseModel):
    """How one dataset is deduplicated.

    Attributes:
        max_distance: Largest Hamming distance, of 64 bits, at which an exemplar stands for a patch.
        seed: Key of the visiting order.
    """

    model_config = ConfigDict(frozen=True)

    max_distance: Annotated[int, Field(ge=0, le=64)] = 12
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


@dataclass(frozen=True)
class Deduplication:
    """Which exemplar stands for each patch, in the order of the input.

    Attributes:
        exemplar: int64 (n,). Row of the exemplar; an exemplar's own row for itself.
        distance: uint8 (n,). Hamming distance to it.
    """

    exemplar: NDArray[np.int64]
    distance: NDArray[np.uint8]

    def is_exemplar(self) -> NDArray[np.bool_]:
        """Return bool (n,), true for exemplars."""
        return np.asarray(self.exemplar == np.arange(len(self.exemplar)))

    def num_duplicates(self) -> NDArray[np.int64]:
        """Return int64 (n,): how many other patches each exemplar stands for; 0 for duplicates."""
        counts = np.bincount(self.exemplar, minlength=len(self.exemplar)).astype(np.int64)
        return np.where(self.is_exemplar(), counts - 1, 0)


def visiting_order(names: Iterable[str], seed: int) -> NDArray[np.int64]:
    """Order patches by a keyed hash of their names: BLAKE2b, 128 bits, so that no two are ever equal.

    Args:
        names: Distinct patch names; taken once, so a generator will do.
        seed: Key of the hash.

    Returns:
        int64 (n,): rows in visiting order.
    """
    key = seed.to_bytes(8, "big")
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16, key=key).digest() for name in names)
    halves = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    return np.lexsort((halves[:, 1], halves[:, 0])).astype(np.int64)


def deduplicate(names: Iterable[str], hashes: NDArray[np.uint64], params: DedupParams, num_threads: int = 1) -> Deduplication:
    """Choose the exemplars of one dataset.

    Args:
        names: Distinct patch names, in row order; taken once.
        hashes: uint64 (n,), their difference hashes.
        num_threads: Threads to share the comparisons; the result does not depend on it.

    Returns:
        The exemplar of every patch: the first in visiting order within the distance.

    Source: deduplication of CEM500K (eLife 65894, `patchify3d.py`), per dataset; there the order is
    random and unseeded, and the exemplar of a dropped patch is not kept.
    """
    order = visiting_order(names, params.seed)
    found = greedy_exemplars(hashes[order], params.max_distance, num_threads)
    exemplar = np.empty(len(order), np.int64)
    distance = np.empty(len(order), np.uint8)
    exemplar[order] = order[found.exemplar]
    distance[order] = found.distance
    return Deduplication(exemplar, distance)
