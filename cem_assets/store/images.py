"""Images as cells of a Parquet table. A cell holds an uncompressed TIFF, and Parquet compresses the column with zstd."""

import io
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cem_assets.store.parquet import IMAGE


@lru_cache(maxsize=256)
def _tiff_header(height: int, width: int) -> bytes:
    """Return the bytes before the pixels, which are the same for every image of a size."""
    sink = io.BytesIO()
    blank = np.zeros((height, width), np.uint8)
    tifffile.imwrite(sink, blank, byteorder="<", photometric="minisblack", metadata=None, software=False, rowsperstrip=height)
    whole = sink.getvalue()
    with tifffile.TiffFile(io.BytesIO(whole)) as tif:
        offset = int(tif.pages.first.dataoffsets[0])
    if offset + height * width != len(whole):
        raise RuntimeError("tifffile no longer writes pixels last; encode each image with tifffile instead")
    return whole[:offset]


def encode_tiff(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a gray image as an uncompressed TIFF; equal pixels give equal bytes.

    Args:
        pixels: uint8 (height, width).
    """
    return _tiff_header(*pixels.shape) + np.ascontiguousarray(pixels).tobytes()


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode the bytes of an `image` cell.

    Args:
        data: A TIFF as `encode_tiff` writes it, or any other TIFF or PNG; colour is converted to 8-bit gray.

    Returns:
        uint8 (height, width).
    """
    with Image.open(io.BytesIO(data), formats=("TIFF", "PNG")) as image:
        return np.asarray(image.convert("L"))


def image_column(names: list[str], images: Iterable[NDArray[np.uint8]]) -> pa.Array:
    """Put images into the form of column that HF datasets reads: a struct of `bytes` and `path`."""
    return pa.array(
        [{"bytes": encode_tiff(pixels), "path": f"{name}.tiff"} for name, pixels in zip(names, images, strict=True)],
        IMAGE,
    )
