"""Difference hashes of patches, bit for bit those of `imagehash.dhash(image, hash_size=8)`.

A patch is resized to 224 x 224 px (bilinear, unless it has that size) and then to 9 x 8 px (Lanczos). Every pixel is compared
with its left neighbour, which gives 64 bits, the most significant first, so that `f"{value:016x}"` equals
`str(imagehash.dhash(...))`. `docs/hashing.md` explains why this is exact and how much time it saves.
"""

import logging
from functools import lru_cache

import imagehash
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from cem_assets.imaging.compiled import kernel
from cem_assets.imaging.resampling import PRECISION_BITS, resampling_taps

logger = logging.getLogger(__name__)

HASH_SIDE_PX = 224
"""Every patch is resized to this size before it is hashed."""

_COLUMNS, _ROWS = 9, 8
_HALF = np.int32(1 << (PRECISION_BITS - 1))
_i32 = np.int32


@kernel
def _clip8(total):  # type: ignore[no-untyped-def]
    return np.uint8(min(max(_i32(total >> PRECISION_BITS), _i32(0)), _i32(255)))


_LANES = 16
"""Windows of the horizontal pass have a multiple of this length. With other lengths, such as 150, the compiler handles the last
taps one by one, which takes half as long again."""


@kernel
def _shrink_rows(images, start, count, weight, out):  # type: ignore[no-untyped-def]
    """Horizontal pass: images uint8 (n, rows, 224), weight int32 (9, most) to out uint8 (n, 9, rows)."""
    # Four rows at a time share each weight that is loaded. If the number of rows is no multiple of four, the last is repeated.
    lines = np.empty((4, images.shape[2]), np.int32)
    last = images.shape[1] - 1
    for n in range(images.shape[0]):
        for row in range(0, images.shape[1], 4):
            second, third, fourth = min(row + 1, last), min(row + 2, last), min(row + 3, last)
            # A row is widened to int32 once, and not for each of the nine outputs that read it.
            for x in range(images.shape[2]):
                lines[0, x] = images[n, row, x]
                lines[1, x] = images[n, second, x]
                lines[2, x] = images[n, third, x]
                lines[3, x] = images[n, fourth, x]
            for column in range(weight.shape[0]):
                first = np.uint64(start[column])
                a = b = c = d = _HALF
                for x in range(count[column] * _LANES):
                    # Unsigned indices need no check for negative ones, so the loop vectorizes.
                    place, tap = first + np.uint64(x), weight[column, x]
                    a = _i32(a + _i32(lines[0, place] * tap))
                    b = _i32(b + _i32(lines[1, place] * tap))
                    c = _i32(c + _i32(lines[2, place] * tap))
                    d = _i32(d + _i32(lines[3, place] * tap))
                out[n, column, row] = _clip8(a)
                out[n, column, second] = _clip8(b)
                out[n, column, third] = _clip8(c)
                out[n, column, fourth] = _clip8(d)


@lru_cache(maxsize=1)
def _row_taps() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Cut the windows of the horizontal pass to nonzero weights, in whole lanes: starts, lanes, weights as int32 (9, most)."""
    taps = resampling_taps(HASH_SIDE_PX, _COLUMNS, "lanczos")
    whole = np.zeros((_COLUMNS, HASH_SIDE_PX), np.int32)
    for column, first in enumerate(taps.start.tolist()):
        whole[column, first : first + taps.weight.shape[1]] = taps.weight[column]
    used = [np.flatnonzero(row) for row in whole]
    count = np.array([-(-(int(places[-1]) + 1 - int(places[0])) // _LANES) for places in used], np.int64)
    start = np.minimum([places[0] for places in used], HASH_SIDE_PX - count * _LANES).astype(np.int64)
    weight = np.zeros((_COLUMNS, int(count.max()) * _LANES), np.int32)
    for column, (first, lanes) in enumerate(zip(start.tolist(), count.tolist(), strict=True)):
        weight[column, : lanes * _LANES] = whole[column, first : first + lanes * _LANES]
    return start, count, weight


@kernel
def _shrink_middle(images, start, weight, out):  # type: ignore[no-untyped-def]
    """Pass along axis 1: images uint8 (n, 224, lanes) to out uint8 (n, num_out, lanes)."""
    lanes = images.shape[2]
    total = np.empty(lanes, np.int32)
    for n in range(images.shape[0]):
        for row in range(weight.shape[0]):
            for lane in range(lanes):
                total[lane] = _HALF
            for k in range(weight.shape[1]):
                tap = weight[row, k]
                if tap == 0:
                    continue
                source = images[n, start[row] + k]
                for lane in range(lanes):
                    total[lane] = _i32(total[lane] + _i32(_i32(source[lane]) * tap))
            for lane in range(lanes):
                out[n, row, lane] = _clip8(total[lane])


@kernel
def _bits(small, out):  # type: ignore[no-untyped-def]
    """Compare neighbours: small uint8 (8, 9, n) to out uint64 (n,)."""
    for n in range(small.shape[2]):
        value = np.uint64(0)
        for row in range(8):
            for column in range(8):
                value = np.uint64(value << np.uint64(1))
                if small[row, column + 1, n] > small[row, column, n]:
                    value = np.uint64(value | np.uint64(1))
        out[n] = value


def _hash_shrunk(columns: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Vertical pass and bits: columns uint8 (224 rows, 9, n) to uint64 (n,)."""
    vertical = resampling_taps(HASH_SIDE_PX, _ROWS, "lanczos")
    num = columns.shape[2]
    small = np.empty((1, _ROWS, _COLUMNS * num), np.uint8)
    _shrink_middle(columns.reshape(1, HASH_SIDE_PX, _COLUMNS * num), vertical.start, vertical.weight, small)
    out = np.empty(num, np.uint64)
    _bits(small.reshape(_ROWS, _COLUMNS, num), out)
    return out


def _shrink_last(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize the last axis of uint8 (n, m, 224) to nine: uint8 (n, 9, m)."""
    out = np.empty((images.shape[0], _COLUMNS, images.shape[1]), np.uint8)
    _shrink_rows(images, *_row_taps(), out)
    return out


@kernel
def _stretch_rows(images, start, weight, out):  # type: ignore[no-untyped-def]
    """Horizontal bilinear pass: images uint8 (n, rows, w) to out uint8 (n, rows, 224)."""
    total = np.empty(weight.shape[0], np.int32)
    line = np.empty(images.shape[2], np.int32)
    for n in range(images.shape[0]):
        for row in range(images.shape[1]):
            for x in range(images.shape[2]):
                line[x] = images[n, row, x]
            total[:] = _HALF
            for k in range(weight.shape[1]):
                for x in range(weight.shape[0]):
                    # Unsigned indices need no check for negative ones, so the loop vectorizes.
                    total[x] = _i32(total[x] + _i32(line[np.uint64(start[x]) + np.uint64(k)] * weight[x, k]))
            for x in range(weight.shape[0]):
                out[n, row, x] = _clip8(total[x])


def stretch_to_hash_side(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize patches to 224 x 224 as `PIL.Image.resize((224, 224), BILINEAR)` does.

    Args:
        patches: uint8 (n, height, width), both sides 1..224 px.

    Returns:
        uint8 (n, 224, 224). If the input has this size, it is returned unchanged.
    """
    num, height, width = patches.shape
    if width != HASH_SIDE_PX:
        taps = resampling_taps(width, HASH_SIDE_PX, "bilinear")
        wide = np.empty((num, height, HASH_SIDE_PX), np.uint8)
        _stretch_rows(patches, taps.start, taps.weight, wide)
        patches = wide
    if height != HASH_SIDE_PX:
        taps = resampling_taps(height, HASH_SIDE_PX, "bilinear")
        tall = np.empty((num, HASH_SIDE_PX, HASH_SIDE_PX), np.uint8)
        _shrink_middle(patches, taps.start, taps.weight, tall)
        patches = tall
    return patches


def imagehash_dhash(patch: NDArray[np.uint8]) -> int:
    """Hash one patch with Pillow and imagehash themselves, which define the hash; return an unsigned 64-bit integer.

    Args:
        patch: uint8 (height, width), any size.
    """
    image = Image.fromarray(np.ascontiguousarray(patch))
    resized = image.resize((HASH_SIDE_PX, HASH_SIDE_PX), Image.Resampling.BILINEAR)
    return int(str(imagehash.dhash(resized, hash_size=8)), 16)


def _fast(patches: NDArray[np.uint8]) -> NDArray[np.uint64]:
    num, height, width = patches.shape
    if height == HASH_SIDE_PX and width < HASH_SIDE_PX:
        # There is no vertical pass between the two horizontal ones, so both can process all rows side by side, with the same
        # taps for neighbours in memory. Along a row, every output of the stretch reads other places, which is slow.
        wide = np.empty((num, HASH_SIDE_PX, height), np.uint8)
        columns = np.empty((num, _COLUMNS, height), np.uint8)
        stretch, shrink = resampling_taps(width, HASH_SIDE_PX, "bilinear"), resampling_taps(HASH_SIDE_PX, _COLUMNS, "lanczos")
        _shrink_middle(np.ascontiguousarray(patches.transpose(0, 2, 1)), stretch.start, stretch.weight, wide)
        _shrink_middle(wide, shrink.start, shrink.weight, columns)
    else:
        columns = _shrink_last(stretch_to_hash_side(patches))  # (n, 9, 224)
    return _hash_shrunk(np.ascontiguousarray(columns.transpose(2, 1, 0)))


@lru_cache(maxsize=1)
def self_test() -> bool:
    """Compare the fast path with the installed Pillow and imagehash, once in each process.

    Returns:
        Whether all hashes agree. If not, a warning is logged, and imagehash makes every later hash of this process: that is
        slower and never different.
    """
    generator = np.random.default_rng(224)
    sizes = [(224, 224), (224, 130), (130, 224), (113, 64), (64, 113), (223, 225 - 2), (97, 200)]
    for height, width in sizes:
        noise = generator.integers(0, 256, (3, height, width), dtype=np.uint8)
        ramp = np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)
        patches = np.concatenate([noise, ramp[None], noise[:1] // 64 * 64, (ramp // 2 + noise[1] // 2)[None]])
        expected = [imagehash_dhash(patch) for patch in patches]
        if _fast(patches).tolist() != expected:
            logger.warning(
                "the fast dHash differs from imagehash under Pillow %s at %d x %d px; hashing with imagehash "
                "itself instead (about nine times slower). Install the pinned Pillow to be fast again.",
                PIL.__version__,
                height,
                width,
            )
            return False
    return True


def dhash(patches: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash patches of one size.

    Args:
        patches: uint8 (n, height, width). Patches with a side above 224 px are hashed by imagehash, which is slower.

    Returns:
        uint64 (n,), the 64 bits of `imagehash.dhash` of each patch, the most significant first.

    Source: Krawetz's difference hash as in imagehash 4; CEM500K (eLife 65894) hashes patches this way.
    """
    if patches.dtype != np.uint8 or patches.ndim != 3:
        raise ValueError(
            f"dhash takes uint8 patches of shape (n, height, width); found {patches.dtype} {patches.shape}. "
            "Standardize intensities first, and add the leading axis to a single patch."
        )
    if not len(patches):
        return np.empty(0, np.uint64)
    if max(patches.shape[1:]) > HASH_SIDE_PX or not self_test():
        return np.array([imagehash_dhash(patch) for patch in patches], dtype=np.uint64)
    return _fast(patches)


class BrickHashes:
    """Hashes of the planes of one brick along all three axes, which share resampling passes.

    Hashing the xy planes and hashing the xz planes both begin with a pass along x, so one pass serves both. The yz planes
    begin with a pass along y. So a brick takes two such passes instead of three.
    """

    def __init__(self, brick: NDArray[np.uint8]) -> None:
        """Take a brick, uint8 (depth, height, width) with sides up to 224 voxels."""
        self._brick = np.ascontiguousarray(brick)
        self._along_x: NDArray[np.uint8] | None = None

    def _columns_along_x(self) -> NDArray[np.uint8]:
        if self._along_x is None:
            self._along_x = _shrink_last(self._brick)  # (z, 9, y)
        return self._along_x

    def along(self, axis: int) -> NDArray[np.uint64]:
        """Hash the brick's slices along one axis.

        Args:
            axis: 0 for xy planes, 1 for xz, 2 for yz.

        Returns:
            uint64 (brick.shape[axis],), in slice order.
        """
        brick = self._brick
        sides = brick.shape[:axis] + brick.shape[axis + 1 :]
        if sides != (HASH_SIDE_PX, HASH_SIDE_PX) or not self_test():
            return dhash(np.ascontiguousarray(np.moveaxis(brick, axis, 0)))
        if axis == 0:
            return _hash_shrunk(np.ascontiguousarray(self._columns_along_x().transpose(2, 1, 0)))
        if axis == 1:
            return _hash_shrunk(self._columns_along_x())
        taps = resampling_taps(HASH_SIDE_PX, _COLUMNS, "lanczos")
        columns = np.empty((brick.shape[0], _COLUMNS, brick.shape[2]), np.uint8)
        _shrink_middle(brick, taps.start, taps.weight, columns)  # (z, 9, x)
        return _hash_shrunk(columns)
