"""What every opened file is to the rest of the platform: an array that is read by boxes.

Files that store voxels in plain order are read in place, a few slices at a time. Everything that must be decoded from its
beginning is written once to a scratch file, and then read like the others. So the memory that is needed depends on the box that
is read, never on the file. `cem_assets.formats` decides which class fits which format.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box

Shape = tuple[int, int, int]

MAX_PLANE_BYTES = 4 << 30
"""Decoded size above which one 2D image or page is refused (about 64,000 x 64,000 px of 8 bits)."""
MAX_EXPANSION = 200
"""A file that decodes to more than this many times its own size counts as a decompression bomb."""
_PLANE_EXPANSION_FROM = 64 << 20
_FILE_EXPANSION_FROM = 1 << 30
"""Decoded sizes from which on the expansion is judged: small blank images and label masks shrink a lot and do no harm."""
_SLICES_AT_ONCE = 16
_MAPPED_BYTES = 16 << 20
"""Bytes of a file that are mapped at a time; larger planes are mapped some rows at a time."""
_WHOLE_ROW_BYTES = 3 << 10
"""Rows up to this length are read whole, and the part that is needed is copied. A mapping would load the same pages, with a
page fault for each."""
_ROWS_BUFFER_BYTES = 256 << 10
"""Bytes of whole rows that are read at a time: as many as stay in a core's own cache until they are copied."""
_SPARE_DISK = 512 << 20
"""Bytes of the scratch disk that always stay free."""


class ArraySource(Protocol):
    """The voxels of one volume or 2D image. Sources can be pickled, so that worker processes read them themselves.

    Attributes:
        shape: (z, y, x); z is 1 for a 2D image.
        dtype: Number type of the voxels.
    """

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels of a box, (z, y, x).

        Raises:
            DataError: The file is damaged in this box.
        """
        ...

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        """Return which voxels of a box the file does not hold, bool (z, y, x); None if it holds all of them."""
        ...


@dataclass(frozen=True)
class Opened:
    """An opened file.

    Attributes:
        is_image: True where the format says that the file is one 2D image.
        header_voxel_size_nm: (z, y, x) as the header says, or None. Where the curator's description differs, that counts.
        notes: What was recognised and what was done, for the provenance record.
    """

    source: ArraySource
    is_image: bool
    header_voxel_size_nm: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()


def check_decoded_size(what: str, decoded_bytes: int, stored_bytes: int, is_plane: bool = True) -> None:
    """Refuse to decode what would be far larger than its file.

    Args:
        what: The file, and the page where there are several, for errors.
        decoded_bytes: The size that the header claims.
        stored_bytes: The size of the compressed data.
        is_plane: Whether the limit for one plane applies.

    Raises:
        DataError: The size is above `MAX_PLANE_BYTES`, or above `MAX_EXPANSION` times the stored size.
    """
    if is_plane and decoded_bytes > MAX_PLANE_BYTES:
        raise DataError(
            f"{what} decodes to {decoded_bytes / 2**30:.1f} GiB; expected at most {MAX_PLANE_BYTES / 2**30:.0f} GiB for "
            "one image. Cut it into tiles, or store it as OME-Zarr."
        )
    if decoded_bytes > (_PLANE_EXPANSION_FROM if is_plane else _FILE_EXPANSION_FROM) and decoded_bytes > MAX_EXPANSION * max(
        stored_bytes, 1
    ):
        raise DataError(
            f"{what} claims {decoded_bytes} bytes of pixels in {stored_bytes} bytes of file, more than "
            f"{MAX_EXPANSION} times its size; it is taken for a decompression bomb. If it is real, save it uncompressed."
        )


@dataclass(frozen=True)
class RawFile:
    """Voxels that are stored in a file in plain order.

    Attributes:
        offset: First byte of the voxels.
        disk_shape: Sizes as stored, with the axis that varies slowest first.
        disk_dtype: Number type as stored, with byte order, such as ">u2".
        order: The stored axis of z, of y and of x.
        slope, intercept: Applied to the stored numbers where they are not 1 and 0; the result is float64.
    """

    path: Path
    offset: int
    disk_shape: Shape
    disk_dtype: str
    order: tuple[int, int, int] = (0, 1, 2)
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def shape(self) -> Shape:
        z, y, x = (self.disk_shape[axis] for axis in self.order)
        return (z, y, x)

    @property
    def dtype(self) -> np.dtype[Any]:
        if (self.slope, self.intercept) != (1.0, 0.0):
            return np.dtype(np.float64)
        return np.dtype(self.disk_dtype).newbyteorder("=")

    @property
    def num_bytes(self) -> int:
        """Bytes that the voxels take in the file."""
        return int(np.prod(self.disk_shape, dtype=object)) * np.dtype(self.disk_dtype).itemsize

    def check_length(self, what: str) -> "RawFile":
        """Return itself, or refuse a file that ends before its voxels do or whose header makes no sense."""
        if self.offset < 0 or min(self.disk_shape) < 1:
            raise DataError(
                f"{what} has a header that makes no sense: voxels of sizes {self.disk_shape} from byte {self.offset}; expected "
                "none of them 0 or negative. Copy the file again from its source."
            )
        available = self.path.stat().st_size - self.offset
        if available < self.num_bytes:
            raise DataError(
                f"{what} is truncated: its header announces {self.num_bytes} bytes of voxels {self.disk_shape} after byte "
                f"{self.offset}, found {max(available, 0)}. Copy the file again from its source."
            )
        return self

    def read(self, box: Box) -> NDArray[Any]:
        on_disk: list[slice] = [slice(0)] * 3
        for axis, span in zip(self.order, box, strict=True):
            on_disk[axis] = span
        native = np.dtype(self.disk_dtype).newbyteorder("=")
        out = np.empty([s.stop - s.start for s in on_disk], native)
        if self.disk_shape[2] * native.itemsize <= _WHOLE_ROW_BYTES:
            self._read_rows(on_disk, out)
        else:
            self._read_mapped(on_disk, out)
        turned = out.transpose(self.order)
        if (self.slope, self.intercept) != (1.0, 0.0):
            return turned.astype(np.float64) * self.slope + self.intercept
        return turned

    def _read_rows(self, on_disk: list[slice], out: NDArray[Any]) -> None:
        """Fill `out` with a box, reading whole rows."""
        width, item = self.disk_shape[2], np.dtype(self.disk_dtype).itemsize
        height = on_disk[1].stop - on_disk[1].start
        num_rows = max(1, min(height, _ROWS_BUFFER_BYTES // (width * item)))
        # Whole rows in native byte order are read straight to where they belong.
        is_direct = out.shape[2] == width and np.dtype(self.disk_dtype).isnative
        rows = np.empty((num_rows, width), self.disk_dtype)
        with open(self.path, "rb", buffering=0) as file:
            for z in range(on_disk[0].start, on_disk[0].stop):
                for y in range(0, height, num_rows):
                    count = min(num_rows, height - y)
                    first_row = z * self.disk_shape[1] + on_disk[1].start + y
                    wanted: NDArray[Any] = out[z - on_disk[0].start, y : y + count]
                    read: NDArray[Any] = wanted if is_direct else rows[:count]
                    self._fill(file.fileno(), read.data.cast("B"), self.offset + first_row * width * item)
                    if not is_direct:
                        wanted[:] = read[:, on_disk[2]]

    def _fill(self, descriptor: int, buffer: memoryview, start: int) -> None:
        """Read from byte `start` of the file until the buffer is full."""
        while len(buffer):
            found = os.preadv(descriptor, [buffer], start)
            if not found:
                raise DataError(
                    f"{shown(self.path)} ended at byte {start} while it was read, and was longer when it was opened. Copy it "
                    "again from its source, and do not change it while it is read."
                )
            buffer, start = buffer[found:], start + found

    def _read_mapped(self, on_disk: list[slice], out: NDArray[Any]) -> None:
        """Fill `out` with a box, mapping the file a few slices or rows at a time."""
        row = self.disk_shape[2] * np.dtype(self.disk_dtype).itemsize
        plane = self.disk_shape[1] * row
        num_slices = max(1, min(_SLICES_AT_ONCE, _MAPPED_BYTES // plane))
        num_rows = on_disk[1].stop - on_disk[1].start if plane <= _MAPPED_BYTES else max(1, _MAPPED_BYTES // row)
        for z in range(on_disk[0].start, on_disk[0].stop, num_slices):
            depth = min(num_slices, on_disk[0].stop - z)
            for y in range(on_disk[1].start, on_disk[1].stop, num_rows):
                # Few slices or rows are mapped and released at once, because pages of a large mapping count as our memory.
                count = min(num_rows, on_disk[1].stop - y)
                if plane <= _MAPPED_BYTES:
                    mapped = np.memmap(self.path, self.disk_dtype, "r", self.offset + z * plane, (depth, *self.disk_shape[1:]))
                    part = mapped[:, on_disk[1], on_disk[2]]
                else:
                    start = self.offset + z * plane + y * row
                    mapped = np.memmap(self.path, self.disk_dtype, "r", start, (1, count, self.disk_shape[2]))
                    part = mapped[:, :, on_disk[2]]
                z_out, y_out = z - on_disk[0].start, y - on_disk[1].start
                out[z_out : z_out + depth, y_out : y_out + count] = part
                del mapped, part

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        del box
        return None


def spool(planes: Iterable[NDArray[Any]], shape: Shape, dtype: np.dtype[Any], scratch: Path, what: str) -> RawFile:
    """Write planes that come one after the other to a scratch file, so that they can be read by boxes.

    Args:
        planes: (y, x) arrays in order of z.
        shape: (z, y, x) that the planes must add up to.
        dtype: Number type of all planes.
        scratch: Folder for the file.
        what: The source, for errors.

    Raises:
        DataError: A plane has another size or type than announced, or there are too few planes.
        OSError: The scratch disk is too small; the message says how much is needed.
    """
    native = dtype.newbyteorder("=")
    count = 0

    def checked() -> Iterator[NDArray[Any]]:
        nonlocal count
        for plane in planes:
            if plane.shape != shape[1:] or plane.dtype.newbyteorder("=") != native:
                raise DataError(
                    f"{what}: slice {count} is {plane.dtype} {plane.shape}, expected {native} {shape[1:]} like the first. "
                    "Remove or repair that slice."
                )
            yield plane
            count += 1
        if count != shape[0]:
            raise DataError(f"{what} has {count} slices; its header announces {shape[0]}. Copy it again from its source.")

    return spool_rows(checked(), shape, dtype, scratch, what)


def spool_rows(pieces: Iterable[NDArray[Any]], shape: Shape, dtype: np.dtype[Any], scratch: Path, what: str) -> RawFile:
    """Write pieces of voxels that follow each other in (z, y, x) order to a scratch file.

    Args:
        pieces: Arrays of any shape; only the order of their values counts.
        shape: (z, y, x) that the pieces must add up to.
        dtype: Number type in which they are written.
        scratch: Folder for the file.
        what: The source, for errors.

    Raises:
        DataError: There are more or fewer values than announced.
        OSError: The scratch disk is too small.
    """
    expected = int(np.prod(shape, dtype=object))
    require_disk(scratch, expected * dtype.itemsize, what)
    path = scratch / f"{uuid.uuid4().hex}.raw"
    native = dtype.newbyteorder("=")
    count = 0
    with open(path, "wb") as handle:
        for piece in pieces:
            count += piece.size
            if count > expected:
                break
            handle.write(np.ascontiguousarray(piece, dtype=native).data)
    if count != expected:
        found = "more" if count > expected else str(count)
        raise DataError(f"{what} holds {found} numbers; its header announces {expected}. Copy it again from its source.")
    return RawFile(path, 0, shape, native.str)


def check_whole_in_memory(what: str, num_bytes: int) -> None:
    """Refuse an image or chunk that must be in memory as a whole and is larger than `MAX_PLANE_BYTES`.

    Args:
        what: The image or chunk, for errors.
        num_bytes: Its decoded size.

    Raises:
        DataError: It is too large.
    """
    if num_bytes > MAX_PLANE_BYTES:
        raise DataError(
            f"{what} has {num_bytes / 2**30:.1f} GiB decoded and can only be held in memory whole; expected at most "
            f"{MAX_PLANE_BYTES / 2**30:.0f} GiB. Save it in smaller pieces, for example as OME-Zarr."
        )


def require_disk(scratch: Path, num_bytes: int, what: str) -> None:
    """Refuse to go on where a scratch disk has too little space.

    Raises:
        OSError: There is not enough space (ENOSPC); the message names the variable to set.
    """
    free = shutil.disk_usage(scratch).free
    if free < num_bytes + _SPARE_DISK:
        raise OSError(
            errno.ENOSPC,
            f"unpacking {what} needs {num_bytes / 2**30:.2f} GiB of scratch space in {scratch}, {free / 2**30:.2f} GiB are "
            "free. Point CEM_ASSETS_SCRATCH to a larger disk",
        )


def shown(path: Path | str) -> str:
    """Return a file's name for a message, without folders of this machine and control characters, at most 120 characters."""
    name = os.path.basename(str(path))
    text = "".join(c if c.isprintable() else "?" for c in name)
    return text if len(text) <= 120 else f"{text[:117]}..."
