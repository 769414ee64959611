"""Which patches are asked about next: the ones the classifier is least sure of, or any.

Pure. Where the patches come from is `cem_assets.web.patch_source`.
"""

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cem_assets.cem.patches.dedup import visiting_order
from cem_assets.errors import DataError


class Order(StrEnum):
    """Orders in which patches are shown."""

    uncertainty = "uncertainty"
    random = "random"


def order_patches(
    names: Sequence[str], probabilities: NDArray[np.float32] | None, order: Order, seed: int
) -> NDArray[np.int64]:
    """Order patches for labelling; the order of the rows does not matter.

    Args:
        names: Distinct names.
        probabilities: float32 (n,), of being informative; None where nothing was scored.
        order: By |p - 0.5|, smallest first and ties at random; or at random.
        seed: Of the keyed hash of the names that stands for chance.

    Returns:
        int64 (n,): rows in order.

    Raises:
        DataError: The order needs probabilities, and there are none, or not one for each name.
    """
    chance = visiting_order(names, seed)
    if order == Order.random:
        return chance
    if probabilities is None or len(probabilities) != len(names):
        found = "none" if probabilities is None else str(len(probabilities))
        raise DataError(f"order {order} needs a probability for each of {len(names)} patches; found {found}. Use random.")
    distance = np.abs(probabilities.astype(np.float64) - 0.5)
    # A stable sort of the rows in random order leaves ties in that order.
    return np.asarray(chance[np.argsort(distance[chance], kind="stable")], dtype=np.int64)


def next_patches(ordered: Iterable[str], answered: Collection[str], held: Collection[str], num: int) -> list[str]:
    """Choose the patches to show next.

    Args:
        ordered: Names in order.
        answered: Names this annotator has labelled or skipped.
        held: Names the asking page has already.
        num: How many at most.

    Returns:
        The first of the others, in order.
    """
    found: list[str] = []
    for name in ordered:
        if len(found) == num:
            break
        if name not in answered and name not in held:
            found.append(name)
    return found
