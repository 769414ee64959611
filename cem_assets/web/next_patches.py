"""Chooses the patches to label next: those of which the classifier is least sure, or random ones.

The patches come from `cem_assets.web.patch_source`.
"""

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cem_assets.cem.patches.dedup import visiting_order


class Order(StrEnum):
    """Orders in which patches are shown."""

    uncertainty = "uncertainty"
    random = "random"


def order_patches(
    names: Sequence[str], probabilities: NDArray[np.float32] | None, order: Order, seed: int
) -> NDArray[np.int64]:
    """Order patches for labelling; the order of the rows does not matter.

    Args:
        probabilities: float32 (n,), of being informative; None where nothing was scored.
        order: Either by |p - 0.5|, smallest first with ties at random, or at random.
        seed: Key of the hash of the names that makes the random order.

    Returns:
        int64 (n,): rows in order.

    Raises:
        ValueError: The order needs probabilities, and there are none, or not one for each name.
    """
    chance = visiting_order(names, seed)
    if order == Order.random:
        return chance
    if probabilities is None or len(probabilities) != len(names):
        found = "none" if probabilities is None else str(len(probabilities))
        raise ValueError(f"order {order} needs a probability for each of {len(names)} patches; found {found}.")
    distance = np.abs(probabilities.astype(np.float64) - 0.5)
    # A stable sort of the rows in random order leaves ties in that order.
    return np.asarray(chance[np.argsort(distance[chance], kind="stable")], dtype=np.int64)


def next_patches(ordered: Iterable[str], answered: Collection[str], held: Collection[str], num: int) -> list[str]:
    """Choose the patches to show next.

    Args:
        ordered: Names in order.
        answered: Names that this annotator has labelled or skipped.
        held: Names that the page has already.
        num: Largest number of patches.

    Returns:
        The first of the remaining names, in order.
    """
    found: list[str] = []
    for name in ordered:
        if len(found) == num:
            break
        if name not in answered and name not in held:
            found.append(name)
    return found
