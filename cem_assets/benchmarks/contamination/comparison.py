"""Whether a release holds patches of benchmark test images: exact or near copies, turned, re-encoded, shifted by half a patch.

Hashes at a strict distance propose candidates (`cem_assets.benchmarks.contamination.fingerprints`). Each candidate is confirmed
on its pixels, by the correlation of smoothed and aligned thumbnails and of their fine structure. Blank pictures, and pictures
that share only their lighting, do not agree in fine structure.
Not found are copies that are rescaled and cropped, turned by other angles, inverted, or shifted by other distances than half
patches (within a few px).
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter

from cem_assets.benchmarks.contamination.fingerprints import MIN_LEVELS, TURNS, Fingerprints, Window, check_picture, turned
from cem_assets.benchmarks.contamination.hash_index import near_hashes
from cem_assets.errors import DataError

MAX_DISTANCE = 4
MIN_CORRELATION = 0.9
MIN_DETAIL = 0.5
"""Smallest local agreement of fine structure; see `compare_pictures`."""

_THUMBNAIL_PX = 112
_MARGIN_PX = 3
"""Largest shift tried when thumbnails are aligned, in px of the thumbnail; windows on a grid of half patches may be slightly
off."""
_SMOOTH_PX, _COARSE_PX = 3, 15
_BLOCKS, _MIN_LOCAL_SPREAD = 8, 0.5
_ROWS_KEPT = 256

Reader = Callable[[int], NDArray[np.uint8]]
"""Returns the pixels, uint8 (height, width), of a row of the release or of a test image by its number."""


@dataclass(frozen=True)
class Pair:
    """A patch of a release that shows what a test image shows.

    Attributes:
        release_row: Row of the patch in the release.
        test_image: Number of the test image.
        window: Part of the test image: top, left, height, width in px.
        release_window: Part of the patch that shows the same: top, left, height, width in px.
        turn: What turns the part of the test image into the part of the patch, one of `TURNS`.
        distance: Hamming distance of their dHashes.
        correlation: Pearson correlation of their aligned thumbnails.
        is_exact: Whether all pixels are equal.
    """

    release_row: int
    test_image: int
    window: Window
    release_window: Window
    turn: str
    distance: int
    correlation: float
    is_exact: bool


def _candidates(release: Fingerprints, test: Fingerprints, max_distance: int) -> NDArray[np.int64]:
    """Match fingerprints of the same kind; returns int64 (n, 3): place in release, place in test, and distance."""
    found = [np.empty((0, 3), np.int64)]
    for is_tile in (False, True):
        own = np.flatnonzero((release.is_tile == is_tile) & release.has_contrast)
        other = np.flatnonzero((test.is_tile == is_tile) & test.has_contrast)
        pairs = near_hashes(release.dhash[own], test.dhash[other], max_distance)
        found.append(np.stack([own[pairs[:, 0]], other[pairs[:, 1]], pairs[:, 2]], axis=1))
    # Equal pixels are a match even without contrast.
    order = np.argsort(test.pixels, kind="stable")
    known = test.pixels[order]
    own = np.flatnonzero((release.pixels != 0) & np.isin(release.pixels, known))
    low, high = (np.searchsorted(known, release.pixels[own], side=side) for side in ("left", "right"))
    equal = [(row, order[place], 0) for row, a, b in zip(own, low, high, strict=True) for place in range(a, b)]
    found.append(np.array(equal, np.int64).reshape(-1, 3))
    return np.unique(np.concatenate(found), axis=0)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    size = (_THUMBNAIL_PX, _THUMBNAIL_PX)
    small = np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BOX))
    return np.asarray(uniform_filter(small, _SMOOTH_PX, mode="nearest"))


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    lengths = float(np.sqrt(np.sum(a * a, dtype=np.float64) * np.sum(b * b, dtype=np.float64)))
    return float(np.sum(a * b, dtype=np.float64)) / lengths if lengths > 0 else 0.0


def compare_pictures(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[float, float]:
    """Correlate two pictures, aligned by up to a few px.

    Args:
        first: uint8 (height, width), of any size.
        second: uint8 (height, width), of any size; both are resized to 112 x 112 px.

    Returns:
        The largest Pearson correlation over shifts of the thumbnails by up to 3 px, and how well their fine structure agrees
        at that shift. Fine structure is what smoothing over 15 px removes. It is cut into 8 x 8 blocks, each block is
        correlated, and the median counts. A block without structure counts as 0, so that lighting or the edge of a padding
        are no agreement. If either picture has no contrast the result is (0, 0).
    """
    a, b = _thumbnail(first), _thumbnail(second)
    fine_a, fine_b = (image - uniform_filter(image, _COARSE_PX, mode="nearest") for image in (a, b))
    side = _THUMBNAIL_PX - 2 * _MARGIN_PX
    inner = slice(_MARGIN_PX, _MARGIN_PX + side)
    best: tuple[float, tuple[slice, slice] | None] = (0.0, None)
    for top in range(2 * _MARGIN_PX + 1):
        for left in range(2 * _MARGIN_PX + 1):
            part = slice(top, top + side), slice(left, left + side)
            correlation = _correlation(a[part], b[inner, inner])
            if correlation > best[0]:
                best = correlation, part
    if best[1] is None:
        return 0.0, 0.0
    blocks = [_blocks(fine) for fine in (fine_a[best[1]], fine_b[inner, inner])]
    spreads = [block.std(axis=1) for block in blocks]
    is_plain = np.minimum(*spreads) < _MIN_LOCAL_SPREAD
    products = np.mean((blocks[0] - blocks[0].mean(axis=1, keepdims=True)) * blocks[1], axis=1)
    local = np.where(is_plain, 0.0, products / np.where(is_plain, 1.0, spreads[0] * spreads[1]))
    return best[0], float(np.median(local))


def _blocks(image: NDArray[np.float32]) -> NDArray[np.float64]:
    side = image.shape[0] // _BLOCKS
    cut = image[: side * _BLOCKS, : side * _BLOCKS].astype(np.float64).reshape(_BLOCKS, side, _BLOCKS, side)
    return cut.transpose(0, 2, 1, 3).reshape(_BLOCKS * _BLOCKS, side * side)


def _cut(image: NDArray[np.uint8], box: NDArray[np.int32] | Window) -> NDArray[np.uint8]:
    top, left, height, width = (int(number) for number in box)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def find_contamination(
    release: Fingerprints,
    release_reader: Reader,
    test: Fingerprints,
    test_reader: Reader,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
    min_detail: float = MIN_DETAIL,
) -> list[Pair]:
    """Find patches of a release that show what test images show.

    Args:
        release: From `release_fingerprints`.
        release_reader: Called only for rows that have a candidate.
        test: From `test_image_fingerprints`.
        test_reader: Called once for each test image that has a candidate.
        max_distance: Largest Hamming distance of the dHashes, of 64 bits.
        min_correlation: Smallest correlation of the aligned thumbnails.
        min_detail: Smallest correlation of their fine structure.

    Returns:
        One pair for each patch and test image that match, sorted by test image, then by row. If several parts match, the pair
        names the largest, then the one of least distance, then the first.

    Raises:
        DataError: A picture is smaller than it was when it was hashed.
    """
    candidates = _candidates(release, test, max_distance)
    rows, images = release.item[candidates[:, 0]], test.item[candidates[:, 1]]
    area = test.box[candidates[:, 1], 2].astype(np.int64) * test.box[candidates[:, 1], 3] * ~test.is_tile[candidates[:, 1]]
    order = np.lexsort((candidates[:, 1], candidates[:, 0], candidates[:, 2], -area, rows, images))
    read_row = lru_cache(maxsize=_ROWS_KEPT)(release_reader)
    pairs: list[Pair] = []
    image, last_image, done = np.empty((0, 0), np.uint8), -1, (-1, -1)
    for place in order.tolist():
        number, row = int(images[place]), int(rows[place])
        if (number, row) == done:
            continue
        if number != last_image:
            image, last_image = test_reader(number), number
            check_picture(image, f"test image {number}")
        patch = read_row(row)
        check_picture(patch, f"patch {row}")
        own, other, distance = (int(value) for value in candidates[place])
        part, shown = _cut(patch, release.box[own]), turned(_cut(image, test.box[other]), int(test.turn[other]))
        wanted = tuple(release.box[own, 2:].tolist()), tuple(sorted(test.box[other, 2:].tolist()))
        if (part.shape, tuple(sorted(shown.shape))) != wanted:
            raise DataError(
                f"patch {row} is {patch.shape} and test image {number} {image.shape} px, smaller than when they were hashed "
                f"(parts {release.box[own].tolist()} and {test.box[other].tolist()}). The stored fingerprints are of other "
                "pictures: delete them, and make the fingerprints anew."
            )
        is_exact = bool(np.array_equal(part, shown))
        # Equal padding is no evidence of copying, but equal noise is.
        is_proof = is_exact and np.count_nonzero(np.bincount(part.reshape(-1))) >= MIN_LEVELS
        correlation, detail = (1.0, 1.0) if is_proof else compare_pictures(part, shown)
        if correlation >= min_correlation and detail >= min_detail:
            done = (number, row)
            windows = (_box(test.box[other]), _box(release.box[own]))
            pairs.append(Pair(row, number, *windows, TURNS[int(test.turn[other])], distance, correlation, is_exact))
    return pairs


def _box(values: NDArray[np.int32]) -> Window:
    top, left, height, width = values.tolist()
    return top, left, height, width


def contaminated_rows(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """List the rows of the release that are in a pair: int64, sorted, each once."""
    return np.array(sorted({pair.release_row for pair in pairs}), dtype=np.int64)


def contamination_pictures(
    pairs: Sequence[Pair], release_reader: Reader, test_reader: Reader, limit: int = 20, tile_px: int = 160
) -> bytes:
    """Draw pairs as a PNG: the patch with the matching part framed, beside that part of the test image, turned like the patch.

    Args:
        pairs: The first `limit` are drawn; without pairs the PNG shows a line of text.
        tile_px: Side of a picture.
    """
    shown = pairs[:limit]
    columns, gap, text_px = 2, 6, 30
    cell = (2 * tile_px + 3 * gap, tile_px + text_px + gap)
    num_rows = max(1, -(-len(shown) // columns))
    canvas = Image.new("RGB", (columns * cell[0], num_rows * cell[1] + 20), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    title = f"{len(pairs)} pairs of patch (left) and test image (right)"
    draw.text((gap, 4), title + (f", the first {len(shown)}" if len(pairs) > len(shown) else ""), fill="black", font=font)
    for number, pair in enumerate(shown):
        left, top = gap + number % columns * cell[0], 20 + number // columns * cell[1]
        patch = release_reader(pair.release_row)
        part = turned(_cut(test_reader(pair.test_image), pair.window), TURNS.index(pair.turn))
        framed = Image.fromarray(patch).convert("RGB")
        y, x, height, width = pair.release_window
        ImageDraw.Draw(framed).rectangle(
            (x, y, x + width - 1, y + height - 1), outline="red", width=max(1, max(patch.shape) // 75)
        )
        for offset, picture in enumerate((framed, Image.fromarray(part).convert("RGB"))):
            picture.thumbnail((tile_px, tile_px))
            canvas.paste(picture, (left + offset * (tile_px + gap), top))
        kind = "exact" if pair.is_exact else f"correlation {pair.correlation:.3f}, {pair.distance} bits"
        lines = f"row {pair.release_row}: {kind}\nimage {pair.test_image} at {pair.window[0]}, {pair.window[1]}, {pair.turn}"
        draw.multiline_text((left, top + tile_px + 2), lines, fill="black", font=font, spacing=1)
    sink = io.BytesIO()
    canvas.save(sink, "PNG")
    return sink.getvalue()
