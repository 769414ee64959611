"""Which scored patches are informative: the parameters of the filter, and the choice itself."""

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from cem_assets.cem.patches.dedup import visiting_order


class FilterParams(BaseModel):
    """Which scored patches are kept.

    Attributes:
        threshold: A patch is informative if its probability is above this.
        max_patches: At most this many informative patches of the dataset are kept; None keeps all. They are chosen by a
            keyed hash of their names, so a larger limit only adds patches.
        seed: Key of that hash.
    """

    model_config = ConfigDict(frozen=True)

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    max_patches: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the limit and its seed if there is no limit, so that tables from before the limit keep their digests."""
        data: dict[str, Any] = handler(self)
        unused = {"max_patches", "seed"} if self.max_patches is None else set()
        return {key: value for key, value in data.items() if key not in unused}


def is_informative(probabilities: NDArray[np.float32], params: FilterParams) -> NDArray[np.bool_]:
    """Tell which patches have a probability above the threshold.

    Args:
        probabilities: float32 (n,).

    Returns:
        bool (n,).
    """
    return np.asarray(probabilities > np.float32(params.threshold))


def within_limit(names: Iterable[str], params: FilterParams) -> NDArray[np.bool_]:
    """Tell which informative patches of a dataset are within its limit.

    Args:
        names: Distinct names of all informative patches, in row order. They are read once, so a generator is enough.

    Returns:
        bool (n,): true for the first `max_patches` patches in the order of a keyed hash of their names, and for all patches
        if there is no limit.
    """
    order = visiting_order(names, params.seed)
    chosen = np.zeros(len(order), np.bool_)
    chosen[order[: params.max_patches]] = True
    return chosen
