"""Decoding the `image` cells of a Parquet row group together into one array of squares of 224 x 224 px.

`cem_assets.cem.patches.tables` writes such cells, and `cem_assets.pixels.reader` reads whole releases in random order.
"""

import io
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from cem_assets.errors import DataError
from cem_assets.imaging.dhash import HASH_SIDE_PX, stretch_to_hash_side
from cem_assets.store.images import decode_image, encode_tiff

SIDE_PX = HASH_SIDE_PX
"""The side of a patch, and of every image that this module returns."""
MAX_PIXELS = 1 << 26
"""The number of pixels of the largest image that is decoded; a cell with more is refused without decoding it."""

Fit = Literal["mirror", "stretch"]
"""How an image of another size becomes 224 x 224 px. "mirror" puts its pixels in the middle and mirrors them at its border, so
that the pixel size in nm does not change; this is for patches cut at the border of a volume. "stretch" resizes smaller and
larger images bilinearly, as Pillow does; this is for crops of any size."""

_WHOLE = np.frombuffer(encode_tiff(np.zeros((SIDE_PX, SIDE_PX), np.uint8))[: -SIDE_PX * SIDE_PX], np.uint8)
"""The bytes before the pixels in the TIFF of a whole patch."""


def decode_cells(column: Any, fit: Fit) -> NDArray[np.uint8]:
    """Decode a column of images.

    Cells as `encode_tiff` writes them are taken from the column's buffer together, without copying if all of them are whole
    patches. Pillow decodes any other 8-bit gray TIFF or PNG, one at a time.

    Args:
        column: pyarrow array of binary, or of struct with `bytes`.

    Returns:
        uint8 (n, 224, 224), which must not be written to. Each image is contiguous, but there may be gaps between images.

    Raises:
        DataError: A cell is empty, too large, or no image; the error names the row of the column.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_struct(array.type):
        array = array.field("bytes")
    if array.null_count:
        raise DataError(f"row {array.is_null().index(True).as_py()} has no bytes in its image; expected a TIFF or PNG.")
    out = np.empty((len(array), SIDE_PX, SIDE_PX), np.uint8)
    if len(array):
        large = array.cast(pa.large_binary())  # its offset may differ from that of a sliced array
        _, offset_buffer, data = large.buffers()
        offsets = np.frombuffer(offset_buffer, np.int64)[large.offset : large.offset + len(large) + 1]
        for rows, images in _by_size(np.frombuffer(data, np.uint8), offsets):
            if len(rows) == len(out) and images.shape == out.shape:
                return images
            out[rows] = _fitted(images, fit)
    return out


def _by_size(values: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Decode cells in groups of one size: (rows, uint8 (k, height, width))."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        while len(rows):
            first = int(rows[0])
            if length == len(_WHOLE) + SIDE_PX * SIDE_PX:  # nearly all cells; no single one has to be decoded for them
                heads = values[starts[rows][:, None] + np.arange(len(_WHOLE))]
                if (is_whole := (heads == _WHOLE).all(axis=1)).any():
                    cells = _stacked(values, starts[rows[is_whole]], length)
                    yield rows[is_whole], cells[:, len(_WHOLE) :].reshape(-1, SIDE_PX, SIDE_PX)
                    rows = rows[~is_whole]
                    continue
            image = _decode_one(values[starts[first] : starts[first] + length], first)
            header = np.frombuffer(encode_tiff(image)[: -image.size], np.uint8)
            is_same = rows == first
            if len(header) + image.size == length:  # an uncompressed TIFF; others of this length may have the same shape
                heads = values[starts[rows][:, None] + np.arange(len(header))]
                if (matches := (heads == header).all(axis=1))[0]:
                    is_same = matches
            chosen, rows = rows[is_same], rows[~is_same]
            if len(chosen) == 1:
                yield chosen, image[None]
                continue
            cells = _stacked(values, starts[chosen], length)
            yield chosen, cells[:, len(header) :].reshape(len(chosen), *image.shape)


def _stacked(values: NDArray[np.uint8], starts: NDArray[np.int64], length: int) -> NDArray[np.uint8]:
    if (np.diff(starts) == length).all():  # the usual case: every patch of the row group is a whole one
        return values[starts[0] : starts[-1] + length].reshape(len(starts), length)
    return np.stack([values[start : start + length] for start in starts.tolist()])


def _decode_one(cell: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
    data = cell.tobytes()
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF", "PNG")) as image:
            width, height = image.size
        if not 0 < width * height <= MAX_PIXELS:
            raise DataError(f"it has {height} x {width} px, expected 1 to {MAX_PIXELS} in all")
        return decode_image(data)
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise DataError(f"the image of row {row} cannot be read: {error}. Make the shard again.") from error


def _fitted(images: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    _, height, width = images.shape
    if (height, width) == (SIDE_PX, SIDE_PX):
        return images
    if fit == "stretch":
        if max(height, width) <= SIDE_PX:
            return stretch_to_hash_side(np.ascontiguousarray(images))
        size, bilinear = (SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR
        return np.stack([np.asarray(Image.fromarray(image).resize(size, bilinear)) for image in images])
    if max(height, width) > SIDE_PX:
        raise DataError(
            f'an image has {height} x {width} px, but fit "mirror" is for sides up to {SIDE_PX} px. Read it with fit "stretch".'
        )
    return images[:, _mirrored(height)][:, :, _mirrored(width)]


def _mirrored(size: int) -> NDArray[np.int64]:
    """Return for each of 224 places which of `size` pixels is there; pixels at the border are repeated."""
    place = (np.arange(SIDE_PX) - (SIDE_PX - size) // 2) % (2 * size)
    return np.minimum(place, 2 * size - 1 - place)
