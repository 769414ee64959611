"""The grid that planes are cut along, and the names of patches.

A plane is cut into patches of 224 px that start at 0, 224, 448, ... The name of a patch says where it is:
`{volume}-LOC-{axis}_{index}_{y0}-{y1}_{x0}-{x1}`. These names are public and never change. Which voxels are read together is
decided in `cem_assets.cem.volumes.bricks`.
"""

import math
import re
from dataclasses import dataclass

from cem_assets.errors import DataError

PATCH_SIDE_PX = 224
"""Side of a full patch. The grid is the same on all three planes."""
MIN_SIDE_PX = 64
"""A plane with a shorter side is not cut."""

PLANE_NAMES = {0: "xy", 1: "xz", 2: "yz", -1: "2d"}

_NAME = re.compile(
    r"(?P<volume>.+)-LOC-(?:(?P<axis>[012])_(?P<index>\d+)_|2d-)"
    r"(?P<y0>\d+)-(?P<y1>\d+)_(?P<x0>\d+)-(?P<x1>\d+)",
    re.DOTALL,
)


def num_cells(side_px: int) -> int:
    """Return the number of patches along a side: max(1, round(side / 224)), where halves are rounded to even.

    Source: `patchify3d.py` of volume-em/cem-dataset.
    """
    return max(1, round(side_px / PATCH_SIDE_PX))


def cell_spans(side_px: int) -> list[tuple[int, int]]:
    """List the (start, stop) in px of every patch along a side, in order.

    The last patch ends at the border of the plane at the latest. The pixels after it, up to 112, belong to no patch.
    """
    return [(cell * PATCH_SIDE_PX, min((cell + 1) * PATCH_SIDE_PX, side_px)) for cell in range(num_cells(side_px))]


def index_digits(num_slices: int) -> int:
    """Return to how many digits a slice index is padded with zeros: max(1, ceil(log10(num_slices - 1))).

    The index of the last slice may have one digit more (`_100` of 101 slices). The reference implementation never cuts the
    last slice.
    """
    return max(1, math.ceil(math.log10(num_slices - 1))) if num_slices > 2 else 1


def rejected_plane(shape: tuple[int, int, int], axis: int) -> str | None:
    """Say why a plane is not cut, or return None if it is.

    Args:
        shape: Size of the volume (z, y, x) in voxels.
        axis: 0 for xy, 1 for xz, 2 for yz.
    """
    sides = shape[:axis] + shape[axis + 1 :]
    if min(sides) >= MIN_SIDE_PX:
        return None
    return f"the {PLANE_NAMES[axis]} plane is {sides[0]} x {sides[1]} px; expected sides of at least {MIN_SIDE_PX} px"


def is_anisotropic(voxel_size_nm: tuple[float, float, float]) -> bool:
    """Tell whether only xy planes may be cut, which is so if |sx - sz| / sx > 0.25.

    Args:
        voxel_size_nm: (z, y, x) in nm.
    """
    z, _, x = voxel_size_nm
    return abs(x - z) / x > 0.25


@dataclass(frozen=True)
class PatchPlace:
    """The place of a patch.

    Attributes:
        volume: Name of the volume, or of the 2D image.
        axis: 0 (xy), 1 (xz), 2 (yz), or -1 for a 2D image.
        index: Slice along the axis; 0 for a 2D image.
        y0, y1, x0, x1: Rows y0 to y1 and columns x0 to x1 of the plane in px, without y1 and x1. Rows and columns are z and x
            on an xz plane, and z and y on a yz plane.
    """

    volume: str
    axis: int
    index: int
    y0: int
    y1: int
    x0: int
    x1: int

    def box(self) -> tuple[slice, slice, slice]:
        """Return the voxels of the patch as slices (z, y, x), one of which is one voxel thick."""
        plane = [slice(self.y0, self.y1), slice(self.x0, self.x1)]
        plane.insert(max(self.axis, 0), slice(self.index, self.index + 1))
        return plane[0], plane[1], plane[2]


def patch_name(place: PatchPlace, num_slices: int) -> str:
    """Name a patch.

    Args:
        num_slices: Number of slices of the volume along `place.axis`; it is not used for 2D images.

    Returns:
        Such as `vnc-LOC-0_07_224-448_0-224`, or `img-LOC-2d-0-224_0-224`.

    Source: `patchify3d.py` and `patchify2d.py` of volume-em/cem-dataset.
    """
    span = f"{place.y0}-{place.y1}_{place.x0}-{place.x1}"
    if place.axis < 0:
        return f"{place.volume}-LOC-2d-{span}"
    return f"{place.volume}-LOC-{place.axis}_{place.index:0{index_digits(num_slices)}d}_{span}"


def parse_patch_name(name: str) -> PatchPlace:
    """Return the place of a patch, which its name tells.

    Args:
        name: A name as `patch_name` writes it; everything before the last `-LOC-` is the volume.

    Raises:
        DataError: The name does not have this form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise DataError(
            f"patch name {name[:200]!r} does not have the form VOLUME-LOC-AXIS_INDEX_Y0-Y1_X0-X1 or VOLUME-LOC-2d-Y0-Y1_X0-X1. "
            "Take the name from a table of patches."
        )
    axis = match["axis"]
    numbers = [int(match[key]) for key in ("y0", "y1", "x0", "x1")]
    return PatchPlace(match["volume"], -1 if axis is None else int(axis), int(match["index"] or 0), *numbers)
