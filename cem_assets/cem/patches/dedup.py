"""Deduplication of one dataset's patches: a greedy choice of exemplars by Hamming distance.

Patches are visited in the order of a keyed hash of their names, so the result depends only on the patches and the seed, and
not on the order of listings, the number of workers or the time. A new dataset never changes the result of another one. Near
copies across datasets are only reported, at a stricter distance (`CROSS_DATASET_DISTANCE`), when a release is made. The
search itself is in `cem_assets.imaging.hamming`.
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
"""Between unrelated datasets, matches by chance are common at 12 bits: about 0.34 per patch against 1.5 million patches."""


class DedupParams(BaseModel):
    """How one dataset is deduplicated.

    Attributes:
        max_distance: Largest Hamming distance, out of 64 bits, at which a patch is dropped in favour of an exemplar.
        seed: Key of the order in which patches are visited.
    """

    model_config = ConfigDict(frozen=True)

    max_distance: Annotated[int, Field(ge=0, le=64)] = 12
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


@dataclass(frozen=True)
class Deduplication:
    """The exemplar of each patch, in the order of the input.

    Attributes:
        exemplar: int64 (n,). Row of the patch's exemplar; an exemplar has its own row here.
        distance: uint8 (n,). Hamming distance to that exemplar.
    """

    exemplar: NDArray[np.int64]
    distance: NDArray[np.uint8]

    def is_exemplar(self) -> NDArray[np.bool_]:
        """Return bool (n,), which is true for exemplars."""
        return np.asarray(self.exemplar == np.arange(len(self.exemplar)))

    def num_duplicates(self) -> NDArray[np.int64]:
        """Return int64 (n,): for each exemplar the number of its duplicates, and 0 for duplicates."""
        counts = np.bincount(self.exemplar, minlength=len(self.exemplar)).astype(np.int64)
        return np.where(self.is_exemplar(), counts - 1, 0)


def visiting_order(names: Iterable[str], seed: int) -> NDArray[np.int64]:
    """Order patches by a keyed hash of their names: BLAKE2b with 128 bits, so that no two hashes are ever equal.

    Args:
        names: Distinct names of patches. They are read once, so a generator is enough.
        seed: Key of the hash.

    Returns:
        int64 (n,): the rows in the order in which they are visited.
    """
    key = seed.to_bytes(8, "big")
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16, key=key).digest() for name in names)
    halves = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    return np.lexsort((halves[:, 1], halves[:, 0])).astype(np.int64)


def deduplicate(names: Iterable[str], hashes: NDArray[np.uint64], params: DedupParams, num_threads: int = 1) -> Deduplication:
    """Choose the exemplars of one dataset.

    Args:
        names: Distinct names of patches, in row order. They are read once.
        hashes: uint64 (n,), their difference hashes.
        num_threads: Number of threads; the result does not depend on it.

    Returns:
        The exemplar of every patch: the first one within the distance, in the order in which patches are visited.

    Source: deduplication of CEM500K (eLife 65894, `patchify3d.py`), for each dataset. There the order is random without a
    seed, and the exemplar of a dropped patch is not recorded.
    """
    order = visiting_order(names, params.seed)
    found = greedy_exemplars(hashes[order], params.max_distance, num_threads)
    exemplar = np.empty(len(order), np.int64)
    distance = np.empty(len(order), np.uint8)
    exemplar[order] = order[found.exemplar]
    distance[order] = found.distance
    return Deduplication(exemplar, distance)
