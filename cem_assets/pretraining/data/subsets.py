"""Subsets of a release's classes for quick supervised runs; the classes are chosen by their names alone.

This module does not import torch, so that definitions load fast.

Source: the names of the subsets and their numbers of classes are those of CytoImageNet (stan-hua/CytoImageNet), which has such
subsets for quick runs. The choice of classes is ours.
"""

import hashlib
from collections.abc import Mapping

from cem_assets.errors import DataError

SUBSETS: dict[str, int] = {"toy_20": 20, "toy_50": 50}
"""Number of classes of each subset."""


def choose_classes(sizes: Mapping[str, int], subset: str, seed: int) -> list[str]:
    """Choose the classes of a subset: those whose names come first in the order of a keyed hash (blake2b, 64 bits).

    One more class in the release therefore displaces at most one class of the subset, `toy_20` is within `toy_50`, and neither
    the order nor the sizes of the classes matter.

    Args:
        sizes: Number of images of each class of the release; classes without images are left out.
        subset: A key of `SUBSETS`.
        seed: Key of the hash, 0 to 2**63 - 1.

    Returns:
        Sorted names. Where the release has fewer classes with images than `SUBSETS[subset]`, these are all of them.

    Raises:
        DataError: The subset is not known, the seed or a size is out of range, or no class has images. The text names all
            problems.
    """
    problems = [f"class {name!r} has {size} images, expected 0 or more" for name, size in sizes.items() if size < 0]
    if subset not in SUBSETS:
        problems.append(f"subset {subset!r} is not known, expected one of {', '.join(SUBSETS)}")
    if not 0 <= seed < 1 << 63:
        problems.append(f"seed is {seed}, expected 0 to 2**63 - 1")
    if not any(sizes.values()):
        problems.append(f"none of {len(sizes)} classes has images, expected at least one")
    if problems:
        raise DataError(f"no classes can be chosen: {'; '.join(problems)}.")
    key = seed.to_bytes(8, "little")

    def place(name: str) -> tuple[bytes, str]:
        return hashlib.blake2b(name.encode(), digest_size=8, key=key).digest(), name

    return sorted(sorted((name for name, size in sizes.items() if size), key=place)[: SUBSETS[subset]])
