"""PNG and JPEG files: one 2D image each, decoded by Pillow; PNG of 16-bit colour by imagecodecs.

TIFF is `cem_assets.formats.tiff`. `cem_assets.formats.stacks` puts stacks of such files together.
"""

import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cem_assets.errors import DataError
from cem_assets.formats.arrays import check_decoded_size, shown
from cem_assets.imaging.intensity import gray_from_channels

BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 3, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "F": 4, "I": 4}
"""Bytes of a decoded pixel, by Pillow's mode."""
_PNG_HEADER_BYTES = 26


def read_raster(path: Path) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Decode a PNG or JPEG file to one channel.

    Returns:
        (y, x) array of uint8, uint16, int32 or float32, and notes on what was reduced.

    Raises:
        DataError: The file is too large, or an animation.
    """
    what = shown(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as opened:
                image: Any = opened
                width, height = image.size
                size = width * height * BYTES_PER_PIXEL.get(image.mode, 8)
                check_decoded_size(what, size, path.stat().st_size)
                if image.format == "PNG" and is_deep_colour(path):
                    return _gray(np.asarray(imagecodecs.png_decode(path.read_bytes())), "16-bit colour")
                if getattr(image, "n_frames", 1) > 1:
                    raise DataError(f"{what} is an animation of {image.n_frames} frames; expected one image. Save one frame.")
                image.load()
                return _pixels(image)
    except Image.DecompressionBombError as error:
        raise DataError(f"{what} is too large to decode safely: {error}. Cut it into tiles.") from error


def is_deep_colour(path: Path) -> bool:
    """Tell by a PNG's header whether it holds 16-bit colour or gray with alpha, which Pillow silently reduces to 8 bits."""
    with open(path, "rb") as handle:
        header = handle.read(_PNG_HEADER_BYTES)
    return header[24] == 16 and header[25] in (2, 4, 6)  # bit depth and colour type


def _pixels(image: Image.Image) -> tuple[NDArray[Any], tuple[str, ...]]:
    mode = image.mode
    if mode == "1":
        return np.asarray(image.convert("L")), ("1-bit pixels became 0 and 255",)
    if mode == "P":
        return _gray(np.asarray(image.convert("RGBA" if "transparency" in image.info else "RGB")), "palette")
    if mode in ("CMYK", "YCbCr"):
        return _gray(np.asarray(image.convert("RGB")), mode)
    array = np.asarray(image)
    if array.ndim == 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False), ()
    return _gray(array, "")


def _gray(array: NDArray[Any], note: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    if array.ndim == 2:
        return array, (note,) if note else ()
    gray, how = gray_from_channels(array)
    return np.ascontiguousarray(gray), tuple(text for text in (note, how) if text and text != "gray")
