"""Which boxes are cut around filtered patches as subvolumes or flipbooks: at most so many, with limited overlap.

This module has only geometry and names. `cem_assets.cem.subvolumes.files` reads volumes and encodes the boxes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cem_assets.cem.patch_grid import PATCH_SIDE_PX, PatchPlace, parse_patch_name
from cem_assets.cem.patches.dedup import visiting_order
from cem_assets.errors import DataError, UnknownNameError
from cem_assets.imaging.boxes import Box

MAX_VOXELS = 1 << 26
"""Largest size of one subvolume; a worker has a few of them in memory."""

Corner = tuple[int, int, int]
SubvolumeForm = Literal["ome-zarr", "tiff"]
"""How a subvolume is stored. An enum would not do, because Dagster's configuration takes an enum's names, and settings its
values."""


class Skipped(StrEnum):
    """Why no subvolume is cut around a patch."""

    flat = "it is cut from a 2D image, which has no neighbouring slices"
    no_context = "the volume ends before the subvolume does"
    overlap = "it overlaps a subvolume chosen before it by more than max_overlap"
    no_data = "it touches voxels that the source does not have"
    over_limit = "over limit"


class SubvolumeParams(BaseModel):
    """Which subvolumes are cut, and how they are stored.

    Attributes:
        num_slices: Number of slices along the patch's axis. It is odd (5 for flipbooks), so that the patch is the middle
            slice, or equal to `side_px` for cubes, in which the patch is slice `num_slices // 2`.
        side_px: Height and width; the subvolume is centred on the patch.
        limit: Largest number of subvolumes of a dataset. A larger limit only adds subvolumes.
        max_overlap: Largest share of its voxels that a subvolume may have in common with any other one. With the default,
            flipbooks of different axes may cross, but no two share a slice.
        seed: Key of the order in which patches are tried.
        form: OME-Zarr or TIFF stacks.

    Source: `reconstruct3d.py` of volume-em/cem-dataset (5 slices, 50 subvolumes of a volume). There the draw has no seed, an
    even number of slices becomes the next odd one, subvolumes may overlap without limit, and a box that ends exactly at the
    volume's border is skipped although all of it is inside.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_slices: Annotated[int, Field(ge=1, le=1024)] = 5
    side_px: Annotated[int, Field(ge=16, le=1024)] = PATCH_SIDE_PX
    limit: Annotated[int, Field(ge=1, le=10_000)] = 50
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 0.05
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    form: SubvolumeForm = "ome-zarr"

    @model_validator(mode="after")
    def _check(self) -> "SubvolumeParams":
        problems = []
        if self.num_slices % 2 == 0 and self.num_slices != self.side_px:
            problems.append(
                f"num_slices is {self.num_slices}; expected an odd number, so that the patch is in the middle, or side_px "
                f"({self.side_px}) for cubes"
            )
        if self.num_voxels > MAX_VOXELS:
            problems.append(
                f"num_slices x side_px x side_px is {self.num_voxels} voxels; expected at most {MAX_VOXELS}, which is what a "
                "worker can hold"
            )
        if problems:
            raise DataError("; ".join(problems))
        return self

    @property
    def num_voxels(self) -> int:
        return self.num_slices * self.side_px**2

    def extent(self, axis: int) -> Corner:
        """Return the size (z, y, x) of a subvolume around a patch of that axis, in voxels."""
        sides = [self.side_px] * 3
        sides[axis] = self.num_slices
        return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class Subvolume:
    """A box around a patch.

    Attributes:
        name: The patch's name with `{axis}_{low}-{high}` in place of `{axis}_{index}`, and with the rows and columns of the
            box. These are the patch's own if both of its sides are `side_px`.
        patch: Name of the patch.
        axis: The patch's axis, 0 (xy), 1 (xz) or 2 (yz). The stored array has this axis first, then rows, then columns.
        low: (z, y, x) of the first voxel.
        high: (z, y, x) one past the last voxel.
    """

    name: str
    patch: str
    volume: str
    axis: int
    low: Corner
    high: Corner

    @property
    def box(self) -> Box:
        z, y, x = (slice(low, high) for low, high in zip(self.low, self.high, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Placement:
    """Which subvolumes are cut, and why none is cut around the other patches.

    Attributes:
        subvolumes: The chosen ones, in the order in which they were chosen.
        skipped: (name of the patch, reason) for all other patches, in the order in which the names were given.
    """

    subvolumes: tuple[Subvolume, ...]
    skipped: tuple[tuple[str, Skipped], ...]


def box_around(place: PatchPlace, params: SubvolumeParams) -> tuple[Corner, Corner]:
    """Return (low, high) of the box centred on a patch, each (z, y, x) in voxels. The box may extend beyond the volume.

    Args:
        place: Place of a patch of a volume, which has axis 0, 1 or 2.
    """
    low = [
        place.y0 + (place.y1 - place.y0 - params.side_px) // 2,
        place.x0 + (place.x1 - place.x0 - params.side_px) // 2,
    ]
    low.insert(place.axis, place.index - params.num_slices // 2)
    z, y, x = (start + size for start, size in zip(low, params.extent(place.axis), strict=True))
    return (low[0], low[1], low[2]), (z, y, x)


def subvolume_name(volume: str, axis: int, low: Corner, high: Corner) -> str:
    """Name a subvolume, such as `vnc-LOC-0_5-10_224-448_0-224`. Names are public, and have the same form as in CEM.

    Args:
        axis: The slicing axis.
        low: (z, y, x) of the first voxel.
        high: (z, y, x) one past the last voxel.
    """
    spans = [f"{start}-{stop}" for start, stop in zip(low, high, strict=True)]
    along = spans.pop(axis)
    return f"{volume}-LOC-{axis}_{along}_{spans[0]}_{spans[1]}"


def shared_voxels(low: Corner, high: Corner, other_low: Corner, other_high: Corner) -> int:
    """Count the voxels that two boxes have in common."""
    sides = (min(b, d) - max(a, c) for a, b, c, d in zip(low, high, other_low, other_high, strict=True))
    return math.prod(max(0, side) for side in sides)


class _Chosen:
    """The boxes that were chosen so far, in a grid of cells that finds neighbours. All boxes have the same number of voxels."""

    def __init__(self, params: SubvolumeParams) -> None:
        # No box is longer than a cell, so two boxes that touch begin in the same cell or in neighbouring ones.
        self._cell = max(params.num_slices, params.side_px)
        self._max_shared = params.max_overlap * params.num_voxels
        self._boxes: dict[tuple[str, Corner], list[tuple[Corner, Corner]]] = {}

    def overlaps(self, volume: str, low: Corner, high: Corner) -> bool:
        z, y, x = (start // self._cell for start in low)
        return any(
            shared_voxels(low, high, *other) > self._max_shared
            for dz, dy, dx in product((0, -1, 1), repeat=3)
            for other in self._boxes.get((volume, (z + dz, y + dy, x + dx)), ())
        )

    def add(self, volume: str, low: Corner, high: Corner) -> None:
        z, y, x = (start // self._cell for start in low)
        self._boxes.setdefault((volume, (z, y, x)), []).append((low, high))


def place_subvolumes(
    patches: Sequence[str],
    shapes: Mapping[str, Corner],
    params: SubvolumeParams,
    is_whole: Callable[[str, Box], bool] | None = None,
) -> Placement:
    """Choose the subvolumes of a dataset: patches are tried in the order of a keyed hash until the limit is reached.

    Args:
        patches: Distinct names of its filtered patches, in any order. A name says where its patch is.
        shapes: (z, y, x) in voxels by name of the volume; 2D images need none.
        is_whole: Tells whether the source has every voxel of a box of a volume. It is called last, and only for boxes that
            would otherwise be chosen. None means that all voxels are there.

    Returns:
        The chosen subvolumes, and the reasons for the other patches. The choice does not depend on the order of `patches`;
        with a larger limit the same subvolumes come first. Once the limit is reached, no more patches are looked at, so the
        limit may hide other reasons.

    Raises:
        UnknownNameError: A patch's volume has no shape.
        DataError: A name is not the name of a patch.
    """
    chosen = _Chosen(params)
    found: list[Subvolume] = []
    reasons: list[Skipped | None] = [Skipped.over_limit] * len(patches)
    for row in visiting_order(patches, params.seed).tolist():
        if len(found) == params.limit:
            break
        place = parse_patch_name(patches[row])
        if place.axis < 0:
            reasons[row] = Skipped.flat
            continue
        if place.volume not in shapes:
            raise UnknownNameError(
                f"patch {patches[row]!r} belongs to volume {place.volume!r}, which the dataset does not have; it has "
                f"{', '.join(map(repr, list(shapes)[:20])) or 'none'}. Materialize cem/filtered_patches again."
            )
        low, high = box_around(place, params)
        subvolume = Subvolume(
            subvolume_name(place.volume, place.axis, low, high), patches[row], place.volume, place.axis, low, high
        )
        if min(low) < 0 or any(stop > size for stop, size in zip(high, shapes[place.volume], strict=True)):
            reasons[row] = Skipped.no_context
        elif chosen.overlaps(place.volume, low, high):
            reasons[row] = Skipped.overlap
        elif is_whole is not None and not is_whole(place.volume, subvolume.box):
            reasons[row] = Skipped.no_data
        else:
            reasons[row] = None
            chosen.add(place.volume, low, high)
            found.append(subvolume)
    skipped = tuple((name, reason) for name, reason in zip(patches, reasons, strict=True) if reason is not None)
    return Placement(tuple(found), skipped)
