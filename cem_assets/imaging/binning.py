"""Binning: voxels that are finer than wanted are averaged in blocks of 2, 4, 8, ... along an axis.

This module chooses factors and computes means. `cem_assets.formats.derived` reads the blocks of a volume in bounded memory.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Factors = tuple[int, int, int]

NO_BINNING: Factors = (1, 1, 1)


def binning_factors(
    shape: tuple[int, int, int], voxel_size_nm: tuple[float, float, float], target_nm: float | None, is_video: bool = False
) -> Factors:
    """Choose the factor for each axis: the voxel size is doubled as long as it stays at or below the target.

    Each axis has a factor of its own, so only axes finer than the target are binned. An axis shorter than its factor is
    binned less.

    Args:
        shape: (z, y, x) in voxels.
        voxel_size_nm: (z, y, x) in nm.
        target_nm: The wanted voxel size in nm; None means no binning.
        is_video: Whether z is time, which is never binned.

    Returns:
        Powers of two, (z, y, x).

    Source: the references bin data finer than 10 nm into 10 to 20 nm. Here the curator sets the target, and it is not
    exceeded.
    """
    if target_nm is None:
        return NO_BINNING
    factors = []
    for size, side in zip(voxel_size_nm, shape, strict=True):
        # A decimal voxel size (2.4 * 2 compared with 4.8) must not miss its target because of rounding.
        steps = math.floor(math.log2(target_nm / size) + 1e-9) if size < target_nm else 0
        factors.append(1 << min(steps, max(side.bit_length() - 1, 0)))
    return (1 if is_video else factors[0], factors[1], factors[2])


def binned_shape(shape: tuple[int, int, int], factors: Factors) -> tuple[int, int, int]:
    """Return (z, y, x) in voxels after binning; voxels behind the last whole block are left out."""
    return (shape[0] // factors[0], shape[1] // factors[1], shape[2] // factors[2])


def binned_voxel_size(voxel_size_nm: tuple[float, float, float], factors: Factors) -> tuple[float, float, float]:
    """Return (z, y, x) in nm after binning."""
    return (voxel_size_nm[0] * factors[0], voxel_size_nm[1] * factors[1], voxel_size_nm[2] * factors[2])


def bin_mean(voxels: NDArray[np.uint8], factors: Factors) -> NDArray[np.uint8]:
    """Average blocks of voxels. The mean of a block is rounded once; a half is rounded up.

    Args:
        voxels: uint8 (z, y, x); the sides must be multiples of the factors.
        factors: (z, y, x).

    Returns:
        uint8, each side divided by its factor.
    """
    blocks = _blocks(voxels, factors)
    count = math.prod(factors)
    sums = blocks.sum(axis=(1, 3, 5), dtype=np.uint64 if count > 1 << 23 else np.uint32)
    return np.asarray((sums + count // 2) // count, dtype=np.uint8)


def bin_any(mask: NDArray[np.bool_], factors: Factors) -> NDArray[np.bool_]:
    """Tell which blocks hold at least one true voxel, as bool with each side divided by its factor."""
    return np.asarray(_blocks(mask, factors).any(axis=(1, 3, 5)))


def _blocks(values: NDArray[Any], factors: Factors) -> NDArray[Any]:
    if any(side % factor for side, factor in zip(values.shape, factors, strict=True)):
        raise ValueError(f"voxels of sizes {values.shape} cannot be binned by {factors}; expected multiples of the factors.")
    (z, y, x), (a, b, c) = values.shape, factors
    return values.reshape(z // a, a, y // b, b, x // c, c)
