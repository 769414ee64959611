"""A batch of images on its way to training."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Patches of one step of one process.

    Attributes:
        number: Of the step in its epoch, from 0.
        rows: int64 (n,), their row numbers.
        images: uint8 (n, height, width).
        labels: int64 (n,), classes of the label column.
    """

    number: int
    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
