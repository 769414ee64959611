"""Choosing the cubes that are taken of a huge volume: candidates from its coarsest scale, and a seeded draw under a budget.

This module computes with geometry and a small reference image. `cem_assets.sources.volumes.volumes` reads remote volumes, and
`cem_assets.inbox.remote_cubes` writes the cubes into the inbox.
"""

import hashlib
import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box

BYTES_PER_GIGABYTE = 10**9


class SamplingParams(BaseModel):
    """How a volume is sampled.

    Attributes:
        cube_px: Side of a cube in voxels of the scale that is sampled.
        min_content: The smallest share of a cube's voxels in the reference image that must not be padding.
        gigabytes: Budget of the dataset in 10^9 bytes. It limits the voxels of the cubes and also the downloaded bytes.
        seed: Seed of the draw.
        invert: Whether dark and bright are exchanged; membranes must be dark.
        padding_values: Source values that mark voxels without data, before any inversion.
        min_slices: Cubes with fewer slices in z are left out.

    Source: sparse sampling of volume-em/cem-dataset. There the draw has no seed. Here a keyed hash orders the candidates, so
    that a larger budget only adds cubes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cube_px: Annotated[int, Field(ge=16, le=1024)] = 256
    min_content: Annotated[float, Field(ge=0, le=1)] = 0.7
    gigabytes: Annotated[float, Field(gt=0, le=10_000)] = 5.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    invert: bool = False
    padding_values: tuple[int, ...] = (0,)
    min_slices: Annotated[int, Field(ge=1)] = 5

    @property
    def budget_bytes(self) -> int:
        return int(self.gigabytes * BYTES_PER_GIGABYTE)


def cube_grid(full_shape: tuple[int, int, int], params: SamplingParams) -> tuple[list[tuple[int, int]], ...]:
    """List the spans of the grid's cubes along each axis; the cubes at the far border are cut off.

    Args:
        full_shape: (z, y, x) in voxels of the scale that is sampled.

    Returns:
        Lists of (start, stop) for z, y and x. Spans along z have at least `min_slices` slices.
    """
    spans = tuple(
        [(start, min(start + params.cube_px, size)) for start in range(0, size, params.cube_px)] for size in full_shape
    )
    return ([span for span in spans[0] if span[1] - span[0] >= params.min_slices], spans[1], spans[2])


def candidate_cubes(
    reference: NDArray[Any],
    scale_factor: tuple[float, float, float],
    full_shape: tuple[int, int, int],
    params: SamplingParams,
    is_missing: NDArray[np.bool_] | None = None,
) -> list[Box]:
    """List the cubes of the grid that hold enough content.

    Args:
        reference: The volume at its coarsest scale, any integer type, (z, y, x).
        scale_factor: The length of a reference voxel in voxels of the sampled scale, (z, y, x).
        full_shape: (z, y, x) in voxels of the sampled scale.
        is_missing: bool like `reference`: voxels that the source does not have. They count as padding.

    Returns:
        Boxes in order of z, y, x. All reference voxels that a cube touches count for it.

    Raises:
        DataError: The reference does not cover the volume, or the factors are not positive.
    """
    _check_reference(reference, scale_factor, full_shape)
    rows_z, rows_y, rows_x = (
        [(span, _touched(span, factor, size)) for span in spans]
        for spans, factor, size in zip(cube_grid(full_shape, params), scale_factor, reference.shape, strict=True)
    )
    found: list[Box] = []
    for span_z, (low, high) in rows_z:
        is_content = ~np.isin(reference[low:high], params.padding_values)
        if is_missing is not None:
            is_content &= ~is_missing[low:high]
        counts = is_content.sum(axis=0, dtype=np.int64)
        by_row = [counts[start:stop].sum(axis=0) for _, (start, stop) in rows_y]
        for (span_y, touched_y), row in zip(rows_y, by_row, strict=True):
            sums = np.concatenate(([0], np.cumsum(row)))
            for span_x, touched_x in rows_x:
                total = (high - low) * (touched_y[1] - touched_y[0]) * (touched_x[1] - touched_x[0])
                if sums[touched_x[1]] - sums[touched_x[0]] >= params.min_content * total:
                    found.append((slice(*span_z), slice(*span_y), slice(*span_x)))
    return found


def _check_reference(
    reference: NDArray[Any], scale_factor: tuple[float, float, float], full_shape: tuple[int, int, int]
) -> None:
    if reference.ndim != 3 or min(reference.shape) < 1:
        raise DataError(f"the reference has shape {reference.shape}; expected three axes, none of them empty.")
    if not all(math.isfinite(factor) and factor > 0 for factor in scale_factor):
        raise DataError(f"the scale factor is {scale_factor}; expected three positive numbers (z, y, x).")
    covered = [size * factor for size, factor in zip(reference.shape, scale_factor, strict=True)]
    # A pyramid may round down at each step. A difference of more than two reference voxels or a tenth means another volume.
    lacking = [
        f"{axis}: {size}, covered {have:g}"
        for axis, size, have, factor in zip("zyx", full_shape, covered, scale_factor, strict=True)
        if abs(size - have) > max(2 * factor, 0.1 * size)
    ]
    if lacking:
        raise DataError(
            f"the reference {reference.shape} times {scale_factor} does not cover the volume {full_shape} "
            f"({'; '.join(lacking)}); expected two scales of one volume. Check the scales in its metadata."
        )


def _touched(span: tuple[int, int], factor: float, size: int) -> tuple[int, int]:
    """Return the span of reference voxels that a span touches; it holds at least one."""
    low = min(math.floor(span[0] / factor), size - 1)
    return low, max(low + 1, min(math.ceil(span[1] / factor), size))


def order_cubes(candidates: list[Box], params: SamplingParams) -> list[Box]:
    """Sort boxes into the order of the draw, which depends only on the seed and on where the boxes start."""
    key = params.seed.to_bytes(8, "big")

    def rank(box: Box) -> tuple[bytes, tuple[int, ...]]:
        corner = tuple(int(span.start) for span in box)
        return hashlib.blake2b(",".join(map(str, corner)).encode(), key=key, digest_size=16).digest(), corner

    return sorted(candidates, key=rank)


def cube_bytes(box: Box, itemsize: int) -> int:
    """Return the size of a box's voxels in bytes."""
    return int(math.prod(span.stop - span.start for span in box)) * itemsize


def draw_cubes(candidates: list[Box], params: SamplingParams, itemsize: int = 1) -> list[Box]:
    """Draw cubes until the budget is spent.

    Args:
        candidates: Boxes, in any order.
        itemsize: Bytes of a voxel.

    Returns:
        The first boxes of `order_cubes`. The draw ends at the first cube that exceeds the budget, so that a larger budget only
        adds cubes.
    """
    drawn: list[Box] = []
    left = params.budget_bytes
    for box in order_cubes(candidates, params):
        left -= cube_bytes(box, itemsize)
        if left < 0:
            break
        drawn.append(box)
    return drawn


def roi_name(volume: str, box: Box) -> str:
    """Return a region's name, `{volume}-ROI-x{x0}-{x1}_y{y0}-{y1}_z{z0}-{z1}`. Published data use it, so it must not change.

    Args:
        box: (z, y, x) in voxels of the sampled scale.
    """
    z, y, x = box
    return f"{volume}-ROI-x{x.start}-{x.stop}_y{y.start}-{y.stop}_z{z.start}-{z.stop}"


def invert_values(voxels: NDArray[Any]) -> NDArray[Any]:
    """Exchange dark and bright over the full range of an integer type. Doing it twice gives the original values.

    Raises:
        DataError: The voxels are no integers.
    """
    if voxels.dtype.kind not in "iu":
        raise DataError(f"voxels of {voxels.dtype} cannot be inverted; expected integers, whose range is known.")
    inverted: NDArray[Any] = np.invert(voxels)
    return inverted
