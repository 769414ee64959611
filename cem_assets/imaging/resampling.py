"""The integer coefficients of Pillow's resampling, for kernels that resize exactly as Pillow does.

Pillow resizes 8-bit images in two separable passes. Each pass multiplies pixels with filter coefficients that are rounded to 22
fractional bits, sums in int32, shifts, clips to 0..255 and stores uint8 again. With the same integers every order of summation
gives the same bytes, so `cem_assets.imaging.dhash` can be both exact and fast. This module computes the coefficients; it does
not resize.

Pillow 13 may run the vertical pass first where that is faster. It does not for the two resizes of a difference hash (any side
up to 224 px to 224 x 224 bilinear, 224 x 224 to 9 x 8 Lanczos), and `dhash.self_test` compares with the installed Pillow in
every process.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PRECISION_BITS = 32 - 8 - 2
"""Fractional bits of a coefficient. Of 32 bits, 8 are left for the pixel and 2 for the sign and overshoot."""

Filter = Literal["bilinear", "lanczos"]


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


_FILTERS: dict[Filter, tuple[Callable[[float], float], float]] = {
    "bilinear": (_bilinear, 1.0),
    "lanczos": (_lanczos, 3.0),
}


@dataclass(frozen=True)
class Taps:
    """Coefficients of one resampling pass, cut to windows of equal length.

    Attributes:
        start: int64 (num_out,), the first input pixel in the window of each output pixel.
        weight: int32 (num_out, num_taps), the coefficients times 2**22; zero where the window is wider than the filter.
    """

    start: NDArray[np.int64]
    weight: NDArray[np.int32]


@lru_cache(maxsize=1024)
def resampling_taps(num_in: int, num_out: int, filter_name: Filter) -> Taps:
    """Compute the integer coefficients that Pillow uses to resize `num_in` pixels to `num_out`.

    Args:
        num_in: Input length in px, at least 1.
        num_out: Output length in px, at least 1.

    Returns:
        The coefficients; the arrays are read-only, because callers share them.

    Source: Pillow, `src/libImaging/Resample.c` (`precompute_coeffs`, `normalize_coeffs_8bpc`).
    """
    function, support = _FILTERS[filter_name]
    scale = num_in / num_out
    filter_scale = max(scale, 1.0)
    radius = support * filter_scale
    inverse = 1.0 / filter_scale
    rows: list[tuple[int, list[int]]] = []
    for out in range(num_out):
        center = (out + 0.5) * scale
        first = max(int(center - radius + 0.5), 0)
        last = min(int(center + radius + 0.5), num_in)
        weights = [function((x - center + 0.5) * inverse) for x in range(first, last)]
        total = sum(weights)
        if total != 0.0:
            weights = [w / total for w in weights]
        rows.append((first, [int((-0.5 if w < 0 else 0.5) + w * (1 << PRECISION_BITS)) for w in weights]))
    num_taps = max(len(weights) for _, weights in rows)
    start = np.array([min(first, num_in - num_taps) for first, _ in rows], dtype=np.int64)
    weight = np.zeros((num_out, num_taps), dtype=np.int32)
    for out, (first, integers) in enumerate(rows):
        offset = first - int(start[out])
        weight[out, offset : offset + len(integers)] = integers
    start.setflags(write=False)
    weight.setflags(write=False)
    return Taps(start, weight)
