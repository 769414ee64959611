"""Exact sums over pixels, from which the mean and standard deviation of any set of patches follow."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PixelSums:
    """Sums over pixels. They are whole numbers, so adding them in any order gives the same norms.

    Attributes:
        count: Number of pixels.
        total: Sum of their values 0..255.
        squares: Sum of the squared values.
    """

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> "PixelSums":
        """Sum over the pixels of one patch or image of any shape."""
        flat: NDArray[Any] = pixels.reshape(-1).astype(np.uint64)
        return cls(int(flat.size), int(flat.sum()), int((flat * flat).sum()))

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(self.count - other.count, self.total - other.total, self.squares - other.squares)

    def norms(self) -> tuple[float, float]:
        """Return (mean, standard deviation) of the pixels scaled to 0..1, or (0, 0) if there are none."""
        if not self.count:
            return (0.0, 0.0)
        mean = self.total / self.count
        # Whole numbers up to the last step, because the difference of two large floats would lose digits.
        variance = (self.squares * self.count - self.total * self.total) / (self.count * self.count)
        return (mean / 255.0, math.sqrt(max(variance, 0.0)) / 255.0)
