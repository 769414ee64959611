"""A batch of images on its way to training."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """The patches that one process trains on in one step.

    Attributes:
        number: The number of the step in its epoch, from 0.
        rows: int64 (n,), the row numbers of the patches.
        images: uint8 (n, height, width).
        labels: int64 (n,), the classes of the label column.
    """

    number: int
    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
