"""Gatan DigitalMicrograph files (DM3, DM4), parsed by nionswift-io.

The parser loads the whole file into memory, so its size is checked before. Every file has a thumbnail, which is skipped; of
several images the largest is taken.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from cem_assets.errors import DataError
from cem_assets.formats.arrays import MAX_PLANE_BYTES, Opened, Shape, shown, spool

_NM_PER_UNIT = {"nm": 1.0, "µm": 1e3, "um": 1e3, "μm": 1e3, "mm": 1e6, "Å": 0.1, "A": 0.1}
_RGB = 23


class _Bounded(io.BufferedReader):
    """A file that refuses to read beyond its end, before memory for that is allocated."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._size - self.tell():
            raise EOFError(f"a block of {size} bytes begins at byte {self.tell()}, and the file has {self._size} bytes")
        return super().read(size)


def open_dm(path: Path, scratch: Path) -> Opened:
    """Open a DM3 or DM4 file.

    Args:
        scratch: Folder for the decoded voxels.

    Returns:
        The largest image in the file, 2D or a 3D stack.

    Raises:
        DataError: The file is damaged, too large to be parsed in memory, or holds no gray 2D or 3D image.
    """
    from nionswift_plugin.DM_IO import dm3_image_utils, parse_dm3  # imports much of scipy

    what = shown(path)
    if path.stat().st_size > MAX_PLANE_BYTES:
        raise DataError(
            f"{what} has {path.stat().st_size / 2**30:.1f} GiB; DM files are parsed in memory, up to "
            f"{MAX_PLANE_BYTES / 2**30:.0f} GiB. Save it as a TIFF stack or MRC."
        )
    with _Bounded(path) as handle:
        tags = parse_dm3.dm_read_header(handle)
    try:
        images = [entry["ImageData"] for entry in tags["ImageList"]]
        candidates = [image for image in images if image["DataType"] != _RGB and _plain_sizes(image["Dimensions"])]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{what} lacks a part that every DM file has ({type(error).__name__}: {error}). Copy it again from its source."
        ) from error
    if not candidates:
        raise DataError(f"{what} holds no gray 2D or 3D image. Export it as TIFF.")
    image = max(candidates, key=lambda item: int(np.prod([int(d) for d in item["Dimensions"]], dtype=object)))
    pixels: Any = dm3_image_utils.imagedatadict_to_ndarray(image)
    if pixels.dtype.kind not in "iuf":
        raise DataError(f"{what} holds {pixels.dtype} pixels; expected integers or floats. Export it as TIFF.")
    sizes = _plain_sizes(image["Dimensions"])
    assert sizes is not None  # all candidates have sizes
    native = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("="), copy=False).reshape(sizes)
    raw = spool(iter(native), sizes, native.dtype, scratch, what)
    return Opened(raw, sizes[0] == 1, _voxel_size(image, sizes))


def _plain_sizes(dimensions: Any) -> Shape | None:
    sizes = [int(size) for size in dimensions][::-1]
    while len(sizes) > 3 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) == 2:
        sizes = [1, *sizes]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 and min(sizes) >= 1 else None


def _voxel_size(image: Any, sizes: Shape) -> tuple[float, float, float] | None:
    try:
        axes = image["Calibrations"]["Dimension"][::-1]
        spacing = [float(axis["Scale"]) * _NM_PER_UNIT["".join(chr(c) for c in axis["Units"])] for axis in axes[-2:]]
        depth = spacing[0]
        if sizes[0] > 1 and len(axes) > 2:
            depth = float(axes[-3]["Scale"]) * _NM_PER_UNIT["".join(chr(c) for c in axes[-3]["Units"])]
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # the image is not calibrated, or in units that are no length
    return (depth, spacing[0], spacing[1])
