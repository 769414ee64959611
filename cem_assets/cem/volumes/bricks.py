"""Bricks: the pieces of a volume that are read, hashed and scored as one, for all three planes together.

The grid of patches has a spacing of 224 voxels on every plane, so a cube of 224 voxels holds whole patches of all planes.
Memory use depends on the size of a brick and the number of workers, never on the size of the volume. Bricks are independent
of each other, so any number of workers gives the same rows. Volumes that are only cut in xy have flat bricks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cem_assets.cem.patch_grid import PATCH_SIDE_PX, cell_spans, index_digits, num_cells, rejected_plane
from cem_assets.imaging.boxes import Box
from cem_assets.imaging.dhash import BrickHashes, dhash

ALL_PLANES = (0, 1, 2)
XY_ONLY = (0,)

CHUNK_SHAPE = (112, 112, 112)
FLAT_CHUNK_SHAPE = (1, 2 * PATCH_SIDE_PX, 2 * PATCH_SIDE_PX)
"""Holds four patches: small enough to fetch one patch, and large enough that a brick does not have thousands of chunks."""
_FLAT_CHUNKS = 4
_FLAT_VOXELS = 1 << 24
"""A flat brick holds at most 16 Mi voxels, about as many as a cube of 224 voxels."""


class Readable(Protocol):
    """A standardized volume that bricks can be read from.

    Attributes:
        name: Name of the volume, with which the names of its patches begin.
        shape: (z, y, x) in voxels.
        planes: The axes that it is cut along: `ALL_PLANES` or `XY_ONLY`.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def planes(self) -> tuple[int, ...]: ...

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return the voxels of a box, uint8 (z, y, x)."""
        ...

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        """Return which voxels of a box the source never had, bool (z, y, x), or None if it had all of them."""
        ...


def brick_shape(shape: tuple[int, int, int], planes: tuple[int, ...]) -> tuple[int, int, int]:
    """Choose the size of a volume's bricks.

    Args:
        shape: Size of the volume (z, y, x) in voxels.
        planes: The axes that it is cut along.

    Returns:
        (z, y, x) in voxels: a cube of 224 voxels, or, for volumes that are only cut in xy, a slab of whole patches with as
        many slices as fit into 16 Mi voxels.
    """
    if tuple(planes) != XY_ONLY:
        return (PATCH_SIDE_PX, PATCH_SIDE_PX, PATCH_SIDE_PX)
    height, width = (
        chunk * min(_FLAT_CHUNKS, -(-side // chunk)) for side, chunk in zip(shape[1:], FLAT_CHUNK_SHAPE[1:], strict=True)
    )
    depth = max(1, min(shape[0], _FLAT_VOXELS // (height * width)))
    return (depth, height, width)


def brick_boxes(shape: tuple[int, int, int], planes: tuple[int, ...]) -> list[Box]:
    """List the bricks of a volume, with z slowest and x fastest. They tile the volume; those at its end are smaller.

    Args:
        shape: Size of the volume (z, y, x) in voxels.
        planes: The axes that it is cut along.
    """
    steps = brick_shape(shape, planes)
    return [
        (
            slice(z, min(z + steps[0], shape[0])),
            slice(y, min(y + steps[1], shape[1])),
            slice(x, min(x + steps[2], shape[2])),
        )
        for z in range(0, shape[0], steps[0])
        for y in range(0, shape[1], steps[1])
        for x in range(0, shape[2], steps[2])
    ]


@dataclass(frozen=True)
class BrickGroup:
    """Bricks that are worked on together because they lie side by side along x, so that rows of the source run through them.

    Attributes:
        boxes: The bricks in order, all from the same row of bricks.
        is_written: Whether all of them are stored already; otherwise none of them is.
    """

    boxes: tuple[Box, ...]
    is_written: bool


def brick_groups(boxes: list[Box], written: list[bool], most: int) -> list[BrickGroup]:
    """Group bricks that lie side by side.

    Args:
        boxes: All bricks of a volume, in order.
        written: For each brick, whether it is stored already.
        most: Largest number of bricks in a group.

    Returns:
        Groups that together hold every box once, in order.
    """
    groups: list[BrickGroup] = []
    for box, is_written in zip(boxes, written, strict=True):
        last = groups[-1] if groups else None
        if (
            last is not None
            and len(last.boxes) < most
            and last.is_written == is_written
            and last.boxes[-1][:2] == box[:2]
            and last.boxes[-1][2].stop == box[2].start
        ):
            groups[-1] = BrickGroup((*last.boxes, box), is_written)
        else:
            groups.append(BrickGroup((box,), is_written))
    return groups


def _spans_inside(side_px: int, span: slice) -> list[tuple[int, int]]:
    return [(start, stop) for start, stop in cell_spans(side_px) if span.start <= start < span.stop]


def _slices_inside(span: slice, spacing: int) -> range:
    first = -(-span.start // spacing) * spacing
    return range(first, span.stop, spacing)


def count_patches(shape: tuple[int, int, int], planes: tuple[int, ...], spacing: int = 1) -> int:
    """Compute the number of patches of a whole volume from its size.

    Args:
        shape: Size of the volume (z, y, x) in voxels.
        planes: The axes that it is cut along.
        spacing: One slice is cut out of every `spacing` slices.

    Returns:
        The number of patches before any are rejected because of missing voxels.
    """
    total = 0
    for axis in planes:
        if rejected_plane(shape, axis) is None:
            sides = shape[:axis] + shape[axis + 1 :]
            total += len(range(0, shape[axis], spacing)) * num_cells(sides[0]) * num_cells(sides[1])
    return total


def count_brick_patches(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, spacing: int = 1) -> int:
    """Compute the number of patches of one brick from its place, without reading it."""
    total = 0
    for axis in planes:
        if rejected_plane(shape, axis) is None:
            rows, columns = (i for i in range(3) if i != axis)
            total += (
                len(_slices_inside(box[axis], spacing))
                * len(_spans_inside(shape[rows], box[rows]))
                * len(_spans_inside(shape[columns], box[columns]))
            )
    return total


def patch_places(shape: tuple[int, int, int], planes: tuple[int, ...], box: Box, spacing: int = 1) -> NDArray[np.int32]:
    """Compute the places of one brick's patches, without reading the brick.

    Args:
        shape: Size of the volume (z, y, x) in voxels.
        planes: The axes that it is cut along.
        box: One of `brick_boxes`.
        spacing: One slice is cut out of every `spacing` slices.

    Returns:
        int32 (n, 6): axis, index, y0, y1, x0, x1, in order of axis, slice, row and column.
    """
    pieces = [np.empty((0, 6), np.int32)]
    for axis in planes:
        if rejected_plane(shape, axis) is not None:
            continue
        rows, columns = (i for i in range(3) if i != axis)
        slices = _slices_inside(box[axis], spacing)
        cells = [
            (axis, 0, *y, *x)
            for y in _spans_inside(shape[rows], box[rows])
            for x in _spans_inside(shape[columns], box[columns])
        ]
        place = np.tile(np.array(cells, np.int32).reshape(1, len(cells), 6), (len(slices), 1, 1))
        place[:, :, 1] = np.array(slices, np.int32)[:, None]
        pieces.append(place.reshape(-1, 6))
    return np.concatenate(pieces)


@dataclass(frozen=True)
class PatchRows:
    """Rows of the raw table, column by column, all of one length.

    Attributes:
        place: int32 (n, 6): axis, index, y0, y1, x0, x1.
        dhash: uint64 (n,).
        num_missing: int32 (n,). How many voxels of the patch the source never had; patches with any are rejected.
    """

    place: NDArray[np.int32]
    dhash: NDArray[np.uint64]
    num_missing: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.dhash)


def hash_brick(volume: Readable, box: Box, spacing: int = 1) -> PatchRows:
    """Read one brick and hash the patches of every plane the volume is cut along.

    Args:
        box: One of `brick_boxes`.
        spacing: One slice is cut out of every `spacing` slices.

    Returns:
        Rows in order of axis, slice, row and column.
    """
    brick = volume.read(box)
    mask = volume.missing(box)
    hashes = BrickHashes(brick) if tuple(volume.planes) != XY_ONLY else None
    values = [np.empty(0, np.uint64)]
    holes = [np.empty(0, np.int32)]
    for axis in volume.planes:
        if rejected_plane(volume.shape, axis) is not None:
            continue
        rows, columns = (i for i in range(3) if i != axis)
        slices = np.array(_slices_inside(box[axis], spacing), dtype=np.int64)
        cells = [
            (y, x)
            for y in _spans_inside(volume.shape[rows], box[rows])
            for x in _spans_inside(volume.shape[columns], box[columns])
        ]
        if not len(slices) or not cells:
            continue
        turned = np.moveaxis(brick, axis, 0)
        turned_mask = None if mask is None else np.moveaxis(mask, axis, 0)
        inside = slices - box[axis].start
        value = np.empty((len(slices), len(cells)), np.uint64)
        hole = np.zeros((len(slices), len(cells)), np.int32)
        for cell, ((y0, y1), (x0, x1)) in enumerate(cells):
            window = (
                slice(y0 - box[rows].start, y1 - box[rows].start),
                slice(x0 - box[columns].start, x1 - box[columns].start),
            )
            if hashes is not None and spacing == 1 and turned.shape[1:] == (y1 - y0, x1 - x0):
                value[:, cell] = hashes.along(axis)[inside]
            else:
                value[:, cell] = dhash(np.ascontiguousarray(turned[(inside, *window)]))
            if turned_mask is not None:
                hole[:, cell] = turned_mask[(inside, *window)].sum(axis=(1, 2))
        values.append(value.reshape(-1))
        holes.append(hole.reshape(-1))
    places = patch_places(volume.shape, tuple(volume.planes), box, spacing)
    return PatchRows(places, np.concatenate(values), np.concatenate(holes))


def image_cells(shape: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """List the patches of a 2D image as (y0, y1, x0, x1), row by row.

    Args:
        shape: (height, width) in px.
    """
    return [(y0, y1, x0, x1) for y0, y1 in cell_spans(shape[0]) for x0, x1 in cell_spans(shape[1])]


def hash_image(pixels: NDArray[np.uint8]) -> PatchRows:
    """Hash the patches of a 2D image.

    Args:
        pixels: uint8 (height, width).

    Returns:
        Rows in order of row and column, with axis -1 and index 0.
    """
    cells = image_cells((pixels.shape[0], pixels.shape[1]))
    place = np.array([(-1, 0, *cell) for cell in cells], dtype=np.int32).reshape(-1, 6)
    value = np.empty(len(cells), np.uint64)
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, (y0, y1, x0, x1) in enumerate(cells):
        by_size.setdefault((y1 - y0, x1 - x0), []).append(number)
    for numbers in by_size.values():
        batch = np.stack([pixels[cells[n][0] : cells[n][1], cells[n][2] : cells[n][3]] for n in numbers])
        value[numbers] = dhash(batch)
    return PatchRows(place, value, np.zeros(len(cells), np.int32))


def names_of(volume: str, shape: tuple[int, int, int], place: NDArray[np.int32]) -> list[str]:
    """Name the patches of one volume or image.

    Args:
        volume: Name of the volume or image.
        shape: (z, y, x) in voxels; it is not used for a 2D image.
        place: int32 (n, 6) as in `PatchRows`.
    """
    # The format of `patch_name` is repeated here because this runs once for each raw patch, and calling it would be slow.
    digits = [index_digits(side) for side in shape]
    return [
        f"{volume}-LOC-2d-{y0}-{y1}_{x0}-{x1}"
        if axis < 0
        else f"{volume}-LOC-{axis}_{index:0{digits[axis]}d}_{y0}-{y1}_{x0}-{x1}"
        for axis, index, y0, y1, x0, x1 in place.tolist()
    ]


def group_by_brick(
    shape: tuple[int, int, int], planes: tuple[int, ...], place: NDArray[np.int32]
) -> Iterator[tuple[Box, NDArray[np.int64]]]:
    """Group patches by the brick that holds them, so that each brick is read once.

    Args:
        shape: Size of the volume (z, y, x) in voxels.
        planes: The axes that it is cut along.
        place: int32 (n, 6) as in `PatchRows`, in any order.

    Yields:
        (box, int64 numbers of the rows inside it), in the order of `brick_boxes`. Bricks without patches are left out.
    """
    if not len(place):
        return
    steps = brick_shape(shape, planes)
    corner = np.empty((len(place), 3), np.int64)
    axis, index, y0, x0 = place[:, 0], place[:, 1], place[:, 2], place[:, 4]
    for a in ALL_PLANES:
        rows, columns = (i for i in range(3) if i != a)
        on = axis == a
        corner[on, a], corner[on, rows], corner[on, columns] = index[on], y0[on], x0[on]
    counts = [-(-side // step) for side, step in zip(shape, steps, strict=True)]
    cell = corner // np.array(steps)
    number = (cell[:, 0] * counts[1] + cell[:, 1]) * counts[2] + cell[:, 2]
    order = np.argsort(number, kind="stable")
    cuts = np.flatnonzero(np.diff(number[order])) + 1
    for group in np.split(order, cuts):
        z, y, x = (int(c) * s for c, s in zip(cell[group[0]], steps, strict=True))
        box = (
            slice(z, min(z + steps[0], shape[0])),
            slice(y, min(y + steps[1], shape[1])),
            slice(x, min(x + steps[2], shape[2])),
        )
        yield box, group


def cut_patches(brick: NDArray[np.uint8], box: Box, place: NDArray[np.int32]) -> list[NDArray[np.uint8]]:
    """Cut patches out of a brick that is in memory.

    Args:
        brick: uint8 (z, y, x), the voxels of `box`.
        place: int32 (n, 6) as in `PatchRows`, all inside the brick.

    Returns:
        One uint8 (height, width) copy per row.
    """
    patches = []
    for axis, index, y0, y1, x0, x1 in place.tolist():
        rows, columns = (i for i in range(3) if i != axis)
        plane = np.moveaxis(brick, axis, 0)[index - box[axis].start]
        patches.append(
            plane[y0 - box[rows].start : y1 - box[rows].start, x0 - box[columns].start : x1 - box[columns].start].copy()
        )
    return patches
