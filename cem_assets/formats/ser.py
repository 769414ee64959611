"""FEI / Thermo Fisher TIA series (.ser): 2D images of one size, found through a table of offsets and read in place.

The layout is the one that TIA has written since 2004. The header has the number of images and the place of the table of their
offsets, which are 32-bit numbers before version 0x220 and 64-bit numbers since. In front of each image are its calibration in
metres, its number type and its size. Series of spectra are refused. The microscope's `.emi` file beside it is not needed.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.formats.arrays import Opened, RawFile, Shape, check_whole_in_memory, shown
from cem_assets.imaging.boxes import Box

MAGIC = b"II\x97\x01"
_IMAGES, _SPECTRA = 0x4122, 0x4120
_VERSION_64_BIT = 0x220
_MAX_IMAGES = 1 << 20
_DTYPES = {1: "<u1", 2: "<u2", 3: "<u4", 4: "<i1", 5: "<i2", 6: "<i4", 7: "<f4", 8: "<f8"}
_ELEMENT = struct.Struct("<ddiddihii")
_NM_PER_METRE = 1e9


@dataclass(frozen=True)
class SeriesFile:
    """The images of a series as the slices of a volume; the `ArraySource` of this format.

    Attributes:
        offsets: For each image, the first byte of its pixels.
        plane: Size of an image, (y, x) in px.
        disk_dtype: Number type as stored, with byte order.
    """

    path: Path
    offsets: tuple[int, ...]
    plane: tuple[int, int]
    disk_dtype: str

    @property
    def shape(self) -> Shape:
        return (len(self.offsets), *self.plane)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.disk_dtype).newbyteorder("=")

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels of a box, (z, y, x)."""
        out = np.empty([span.stop - span.start for span in box], self.dtype)
        for number, offset in enumerate(self.offsets[box[0]]):
            image = RawFile(self.path, offset, (1, *self.plane), self.disk_dtype)
            out[number] = image.read((slice(0, 1), box[1], box[2]))[0]
        return out

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        """Return None, because a series holds all of its pixels."""
        del box
        return None


def open_ser(path: Path) -> Opened:
    """Open a TIA series.

    Returns:
        The opened file. A file of one image is a 2D image, several images are slices. Only the size of pixels is calibrated,
        not the distance of slices.

    Raises:
        DataError: The file is no series of gray images, its images differ in size or type, or it is truncated.
    """
    what = shown(path)
    size = path.stat().st_size
    with open(path, "rb") as handle:
        head = handle.read(30)
        if len(head) < 30 or head[:4] != MAGIC:
            raise DataError(f"{what} is not a TIA series (.ser): its first bytes are {head[:4]!r}. Check its type and suffix.")
        version, kind, _, _, num_images = struct.unpack_from("<HIIII", head, 4)
        if kind != _IMAGES:
            found = "spectra" if kind == _SPECTRA else f"data of type 0x{kind:x}"
            raise DataError(f"{what} is a series of {found}; expected images. Remove it from the dataset.")
        wide = version >= _VERSION_64_BIT
        (table,) = struct.unpack_from("<Q" if wide else "<I", head, 22)
        item = 8 if wide else 4
        if not 1 <= num_images <= _MAX_IMAGES or table + num_images * item > size:
            raise DataError(
                f"{what} is truncated or damaged: its header announces {num_images} image(s) listed at byte {table}, the file "
                f"has {size} bytes. Copy it again from its source."
            )
        handle.seek(table)
        offsets = struct.unpack(f"<{num_images}{'Q' if wide else 'I'}", handle.read(num_images * item))
        elements = [_element(handle.fileno(), offset, number, what, size) for number, offset in enumerate(offsets)]
    first = elements[0]
    for number, element in enumerate(elements):
        if element[1:3] != first[1:3]:
            raise DataError(
                f"{what}: image {number} is {element[2]} {element[1]}, expected {first[2]} {first[1]} like the first. Save the "
                "images as files of their own."
            )
    source = SeriesFile(path, tuple(element[0] for element in elements), first[1], first[2])
    calibration = first[3]
    return Opened(source, num_images == 1, calibration, (f"TIA series, version 0x{version:x}",))


_Element = tuple[int, tuple[int, int], str, tuple[float, float, float] | None]


def _element(descriptor: int, offset: int, number: int, what: str, size: int) -> _Element:
    """Read what stands before an image.

    Returns:
        The first byte of its pixels, its size (y, x), its number type, and its voxel size (z, y, x) in nm, where calibrated.
    """
    block = os.pread(descriptor, _ELEMENT.size, offset) if offset + _ELEMENT.size <= size else b""
    if len(block) < _ELEMENT.size:
        raise DataError(
            f"{what} is truncated: image {number} begins at byte {offset} of {size}. Copy it again from its source."
        )
    _, delta_x, _, _, delta_y, _, type_number, width, height = _ELEMENT.unpack(block)
    if type_number not in _DTYPES:
        raise DataError(
            f"{what}: image {number} has number type {type_number}; expected one of {sorted(_DTYPES)} (8 to 64 bits, not "
            "complex). Export it as TIFF."
        )
    if width < 1 or height < 1:
        raise DataError(
            f"{what}: image {number} has sizes {width} x {height}; expected none of them 0 or negative. Copy it again from its "
            "source."
        )
    dtype = _DTYPES[type_number]
    num_bytes = width * height * np.dtype(dtype).itemsize
    check_whole_in_memory(f"{what}: image {number}", num_bytes)
    start = offset + _ELEMENT.size
    if start + num_bytes > size:
        raise DataError(
            f"{what} is truncated: image {number} needs {num_bytes} bytes after byte {start}, found {max(0, size - start)}. "
            "Copy it again from its source."
        )
    spacing = [abs(delta) * _NM_PER_METRE for delta in (delta_y, delta_x)]
    is_calibrated = all(math.isfinite(side) and side > 0 for side in spacing)
    return start, (height, width), dtype, (spacing[0], *spacing) if is_calibrated else None
