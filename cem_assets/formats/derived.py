"""Volumes derived from an opened one, and read by boxes like it: a region of it, or all of it binned.

`cem_assets.imaging.cube_choice` decides which cubes of a large volume are taken; `drawn_cubes` applies its rules to local
volumes. The arithmetic of binning is `cem_assets.imaging.binning`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.catalog.description import LocalSampling
from cem_assets.errors import DataError
from cem_assets.formats.arrays import ArraySource, Shape
from cem_assets.imaging.binning import Factors, bin_any, bin_mean, binned_shape
from cem_assets.imaging.boxes import Box
from cem_assets.imaging.cube_choice import SamplingParams, cube_bytes, cube_grid, order_cubes
from cem_assets.imaging.intensity import IntensityMapping

_VALUES_AT_ONCE = 1 << 24
"""Source voxels that are in memory at a time while they are binned or judged: about as many as a brick has."""


@dataclass(frozen=True)
class Region:
    """A box of a volume, seen as a volume of its own.

    Attributes:
        box: (z, y, x) in voxels of the source.
    """

    source: ArraySource
    box: Box

    @property
    def shape(self) -> Shape:
        z, y, x = (span.stop - span.start for span in self.box)
        return (z, y, x)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    def read(self, box: Box) -> NDArray[Any]:
        return self.source.read(_inside(self.box, box))

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        return self.source.missing(_inside(self.box, box))


def _inside(outer: Box, box: Box) -> Box:
    z, y, x = (slice(o.start + b.start, o.start + b.stop) for o, b in zip(outer, box, strict=True))
    return (z, y, x)


@dataclass(frozen=True)
class BinnedVolume:
    """A volume that is mapped to uint8 and then binned: each voxel is the mean of a block of mapped voxels, rounded once.

    A block counts as missing where the source lacks any of its voxels.

    Attributes:
        source: The volume as it is stored.
        mapping: From stored voxels to uint8.
        factors: Sizes of a block, (z, y, x).
    """

    source: ArraySource
    mapping: IntensityMapping
    factors: Factors

    @property
    def shape(self) -> Shape:
        return binned_shape(self.source.shape, self.factors)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def read(self, box: Box) -> NDArray[Any]:
        out = np.empty([span.stop - span.start for span in box], np.uint8)
        for place, stored in self._parts(box):
            out[place] = bin_mean(self.mapping.apply(self.source.read(stored)), self.factors)
        return out

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        out: NDArray[np.bool_] | None = None
        for place, stored in self._parts(box):
            mask = self.source.missing(stored)
            if mask is not None:
                if out is None:
                    out = np.zeros([span.stop - span.start for span in box], np.bool_)
                out[place] = bin_any(mask, self.factors)
        return out

    def _parts(self, box: Box) -> Iterator[tuple[Box, Box]]:
        """Cut a box into parts that are small enough to be read at once; yields (place in the box, box in the source)."""
        for part in split_box(box, int(np.prod(self.factors))):
            z, y, x = (slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
            a, b, c = (slice(p.start * f, p.stop * f) for p, f in zip(part, self.factors, strict=True))
            yield (z, y, x), (a, b, c)


def split_box(box: Box, weight: int = 1, most: int = _VALUES_AT_ONCE) -> Iterator[Box]:
    """Halve a box along its longest axis (of equal ones z, then y) until every part is small enough.

    Args:
        weight: Source voxels for each voxel of the box.
        most: Source voxels that a part may have at most; parts of one voxel are not cut further.

    Yields:
        Parts that tile the box.
    """
    sides = [span.stop - span.start for span in box]
    if int(np.prod(sides, dtype=object)) * weight <= most or max(sides) == 1:
        yield box
        return
    axis = sides.index(max(sides))
    span = box[axis]
    middle = span.start + sides[axis] // 2
    for half in (slice(span.start, middle), slice(middle, span.stop)):
        yield from split_box((*box[:axis], half, *box[axis + 1 :]), weight, most)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DrawnCubes:
    """The cubes of a volume that are taken.

    Attributes:
        boxes: In the order in which they were drawn.
        notes: How many cubes were looked at, and why others were left out.
    """

    boxes: tuple[Box, ...]
    notes: tuple[str, ...]


def drawn_cubes(source: ArraySource, sampling: LocalSampling) -> DrawnCubes:
    """Look at a volume's cubes in a drawn order, and take those with enough content until the budget is used up.

    A local file has no coarse scale to judge cubes by. So each cube is judged by all of its voxels when its turn comes, and the
    rest of the file is not read. A larger budget only adds cubes.

    Args:
        sampling: The grid, the smallest share of content, the budget and the seed.

    Raises:
        DataError: Not one cube could be taken.
    """
    params = SamplingParams(
        cube_px=sampling.cube_px,
        min_content=sampling.min_content,
        gigabytes=sampling.gigabytes,
        seed=sampling.seed,
        padding_values=(sampling.padding_value,),
    )
    rows = cube_grid(source.shape, params)
    order = order_cubes([(slice(*z), slice(*y), slice(*x)) for z in rows[0] for y in rows[1] for x in rows[2]], params)
    taken: list[Box] = []
    left, num_empty, num_missing = params.budget_bytes, 0, 0
    ended = "all were looked at"
    for box in order:
        num_bytes = cube_bytes(box, source.dtype.itemsize)
        if num_bytes > left:
            ended = "the next one exceeds the budget"
            break
        share = _content(source, box, sampling.padding_value)
        if share is None:
            num_missing += 1
        elif share < params.min_content:
            num_empty += 1
        else:
            taken.append(box)
            left -= num_bytes
    told = (
        f"sampled: {len(taken)} of {len(order)} cubes of {params.cube_px} voxels with seed {params.seed} under "
        f"{params.gigabytes:g} GB; {num_empty} have less than {params.min_content:.0%} content (padding value "
        f"{sampling.padding_value}), {num_missing} touch missing data; {ended}"
    )
    if not taken:
        raise DataError(
            f"no cube of it could be taken: {told}. Check [sampling] in dataset.toml: padding_value, min_content, cube_px and "
            "gigabytes."
        )
    return DrawnCubes(tuple(taken), (told,))


def _content(source: ArraySource, box: Box, padding_value: int) -> float | None:
    """Return the share of a cube that is not padding; None where the source lacks some of its voxels."""
    num_content = 0
    for part in split_box(box):
        if source.missing(part) is not None:
            return None
        num_content += int(np.count_nonzero(source.read(part) != padding_value))
    return num_content / cube_bytes(box, 1)
