"""Formats whose voxels lie in plain order behind a header: MRC, NRRD, NIfTI, and DM3/DM4 images.

Each function reads the header with the format's own library (or its published layout), checks it
against the file's length and returns the voxels as `RawFile`, which is read in place.
"""

import bz2
import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mrcfile.dtypes
import mrcfile.utils
import nibabel
import nibabel.spatialimages
import nrrd
import numpy as np
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.formats.arrays import Opened, RawFile, Shape, check_decoded_size, require_disk, shown, spool_rows

_BLOCK = 1 << 22
_TEXT_BLOCK = 1 << 18
_MAX_WORD = 1000
_IMOD_STAMP = 1146047817
_MRC_SUPPORTED = "0 (int8), 1 (int16), 2 (float32), 6 (uint16), 12 (float16)"
_NM_PER_SPATIAL_UNIT = {"meter": 1e9, "mm": 1e6, "micron": 1e3}
_NM_PER_NRRD_UNIT = {"nm": 1.0, "nanometer": 1.0, "um": 1e3, "µm": 1e3, "micron": 1e3, "mm": 1e6, "angstrom": 0.1}


def decompress_file(path: Path, scratch: Path, kind: str) -> Path:
    """Unpack a .gz or .bz2 file into scratch, within limits.

    Args:
        path: The compressed file.
        scratch: Folder for the result.
        kind: "gzip" or "bzip2".

    Returns:
        The unpacked file, named without the last suffix.

    Raises:
        DataError: The file is damaged, or expands like a decompression bomb.
        OSError: The scratch disk is too small.
    """
    what = shown(path)
    target = scratch / Path(path.name).stem
    opener: Any = gzip.open if kind == "gzip" else bz2.open
    stored = path.stat().st_size
    require_disk(scratch, stored, what)
    total = 0
    try:
        with opener(path, "rb") as source, open(target, "wb") as out:
            while block := source.read(_BLOCK):
                total += len(block)
                check_decoded_size(what, total, stored, is_plane=False)
                if total % (1 << 28) < _BLOCK:
                    require_disk(scratch, 0, what)
                out.write(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{what} is damaged or truncated ({kind}): {error}. Copy it again from its source.") from error
    except OSError as error:
        if error.errno is None:  # bz2 reports bad data so
            raise DataError(f"{what} is damaged ({kind}): {error}. Copy it again from its source.") from error
        raise
    return target


def open_mrc(path: Path) -> Opened:
    """Open an MRC, MAP, REC or ST file.

    Axis order, byte order, extended header and IMOD's unsigned bytes are honoured; a missing "MAP " stamp and
    negative cell sizes, both common, are not held against the file.

    Args:
        path: The file, not compressed.

    Returns:
        The opened file; one section means a 2D image.

    Raises:
        DataError: The header makes no sense, the mode is not supported, or the file is truncated.
    """
    what = shown(path)
    size = path.stat().st_size
    with open(path, "rb") as handle:
        block = handle.read(1024)
    if len(block) < 1024:
        raise DataError(f"{what} has {size} bytes; expected an MRC header of 1024. Copy it again from its source.")
    header, order = _mrc_header(block)
    if header is None:
        raise DataError(
            f"{what} is not an MRC file: neither byte order gives a sensible header. Check the file's type and suffix."
        )
    mode = int(header["mode"])
    types = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
    if mode not in types:
        raise DataError(f"{what} has MRC mode {mode}; expected one of {_MRC_SUPPORTED}. Convert it to one of these.")
    notes = []
    dtype = types[mode]
    extra = block[152:160] if order == "<" else block[152:156][::-1] + block[156:160][::-1]
    stamp, flags = struct.unpack("<ii", extra)
    if mode == 0 and stamp == _IMOD_STAMP and not flags & 1:
        dtype = "u1"
        notes.append("bytes are unsigned, as IMOD's stamp says")
    # Columns, rows and sections are stored fastest to slowest; mapc, mapr and maps say which of x, y, z each one is.
    axes = [int(header["maps"]), int(header["mapr"]), int(header["mapc"])]
    if sorted(axes) != [1, 2, 3]:
        if any(axes):
            notes.append(f"axis codes {axes} make no sense; taken as z, y, x")
        axes = [3, 2, 1]
    disk_shape: Shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    position = (axes.index(3), axes.index(2), axes.index(1))
    raw = RawFile(path, 1024 + int(header["nsymbt"]), disk_shape, f"{order}{dtype}", position).check_length(what)
    cell = [abs(float(header["cella"][name])) for name in "zyx"]
    samples = [int(header[name]) for name in ("mz", "my", "mx")]
    voxel = None
    if all(cell) and all(samples):
        z, y, x = (0.1 * length / count for length, count in zip(cell, samples, strict=True))  # angstrom to nm
        voxel = (z, y, x)
    return Opened(raw, raw.shape[0] == 1, voxel, tuple(notes))


def _mrc_header(block: bytes) -> tuple[Any, str]:
    """Read the header in the byte order its machine stamp names, else in whichever makes sense."""
    orders = ["<", ">"]
    try:
        stamp = np.frombuffer(block[212:216], np.uint8)
        orders.sort(key=lambda order: order != mrcfile.utils.byte_order_from_machine_stamp(stamp))
    except ValueError:
        pass  # an unset stamp says nothing; the sizes below decide
    for order in orders:
        header = np.frombuffer(block, mrcfile.dtypes.HEADER_DTYPE.newbyteorder(order))[0]
        sizes = [int(header[name]) for name in ("nx", "ny", "nz")]
        if all(0 < side < 1 << 20 for side in sizes) and 0 <= int(header["mode"]) <= 101 and int(header["nsymbt"]) >= 0:
            return header, order
    return None, "<"


def open_nrrd(path: Path, scratch: Path) -> Opened:
    """Open an NRRD file (.nrrd, or .nhdr with its data beside it), raw, gzip, bzip2 or ascii.

    Args:
        scratch: Folder for decompressed voxels.

    Returns:
        The opened file; NRRD's first axis is the fastest, so sizes are reversed to (z, y, x).

    Raises:
        DataError: The header is broken, names data outside its own folder, or the data is truncated.
    """
    what = shown(path)
    try:
        with open(path, "rb") as handle:
            header = nrrd.read_header(handle)
            offset = handle.tell()
    except (nrrd.NRRDError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise DataError(f"{what} has no valid NRRD header: {error}. Save it again as NRRD.") from error
    sizes = [int(size) for size in header["sizes"]]
    data = path
    detached = header.get("data file", header.get("datafile"))
    if detached is not None:
        if isinstance(detached, list) or not re.fullmatch(r"[^/\\\0]{1,200}", str(detached)) or "%" in str(detached):
            raise DataError(
                f"{what} keeps its voxels in {str(detached)!r:.80}; expected one file in the same folder. Save it as one .nrrd."
            )
        data, offset = path.parent / str(detached), 0
        if detached in (".", "..") or not data.is_file():
            raise DataError(f"{what} keeps its voxels in {detached!r}, which is not beside it. Copy that file too.")
    try:
        dtype = np.dtype(nrrd.reader._TYPEMAP_NRRD2NUMPY[header["type"]])
    except KeyError as error:
        raise DataError(f"{what} has NRRD type {header.get('type')!r}; expected an integer or float type.") from error
    if dtype.itemsize > 1:
        if "endian" not in header and header["encoding"] != "ascii":
            raise DataError(f"{what} has type {header['type']} but no 'endian' field. Save it again as NRRD.")
        dtype = dtype.newbyteorder(">" if header.get("endian") == "big" else "<")
    kinds = list(header.get("kinds", []))
    if len(sizes) == 2:
        sizes = [*sizes, 1]
    while len(sizes) > 3 and 1 in sizes:
        sizes.remove(1)
    if len(sizes) != 3 or any("color" in str(kind).lower() or kind == "vector" for kind in kinds):
        raise DataError(f"{what} has sizes {list(header['sizes'])} of kinds {kinds}; expected 3 axes of space.")
    shape: Shape = (sizes[2], sizes[1], sizes[0])
    encoding = str(header["encoding"]).lower()
    raw = RawFile(data, offset + int(header.get("byte skip", header.get("byteskip", 0)) or 0), shape, dtype.str)
    skip_lines = int(header.get("line skip", header.get("lineskip", 0)) or 0)
    if skip_lines or raw.offset < offset:
        raise DataError(f"{what} skips lines or counts bytes from the end; expected neither. Save it again as NRRD.")
    if encoding in ("gzip", "gz", "bzip2", "bz2"):
        raw = _inflate_nrrd(raw, "gzip" if encoding in ("gzip", "gz") else "bzip2", scratch, what)
    elif encoding in ("ascii", "txt", "text"):
        check_decoded_size(what, raw.num_bytes, data.stat().st_size, is_plane=False)
        raw = spool_rows(_ascii_numbers(raw, dtype), shape, dtype, scratch, what)
    elif encoding != "raw":
        raise DataError(f"{what} has NRRD encoding {encoding!r}; expected raw, gzip, bzip2 or ascii.")
    return Opened(raw.check_length(what), shape[0] == 1, _nrrd_voxel_size(header))


def _ascii_numbers(raw: RawFile, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Read numbers written as text, some at a time; a number may lie across two blocks."""
    with open(raw.path, "rb") as handle:
        handle.seek(raw.offset)
        rest = b""
        while block := handle.read(_TEXT_BLOCK):
            words = (rest + block).split()
            rest = words.pop() if words and not block[-1:].isspace() else b""
            if len(rest) > _MAX_WORD:
                raise DataError(f"{shown(raw.path)} has {len(rest)} characters without a blank; expected numbers.")
            yield np.array(words, dtype=np.float64).astype(dtype.newbyteorder("="))
        if rest:
            yield np.array([rest], dtype=np.float64).astype(dtype.newbyteorder("="))


def _inflate_nrrd(raw: RawFile, kind: str, scratch: Path, what: str) -> RawFile:
    """Decompress exactly the announced bytes, so that a bomb stops at the size the header admits to."""
    stored = raw.path.stat().st_size - raw.offset
    check_decoded_size(what, raw.num_bytes, stored, is_plane=False)
    require_disk(scratch, raw.num_bytes, what)
    target = scratch / f"{raw.path.stem}.voxels"
    left = raw.num_bytes
    try:
        with open(raw.path, "rb") as handle, open(target, "wb") as out:
            handle.seek(raw.offset)
            stream: Any = gzip.GzipFile(fileobj=handle) if kind == "gzip" else bz2.BZ2File(handle)
            while left and (block := stream.read(min(_BLOCK, left))):
                out.write(block)
                left -= len(block)
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise DataError(f"{what} is damaged or truncated ({kind}): {error}. Copy it again from its source.") from error
    except OSError as error:
        if error.errno is None:
            raise DataError(f"{what} is damaged ({kind}): {error}. Copy it again from its source.") from error
        raise
    return RawFile(target, 0, raw.disk_shape, raw.disk_dtype)


def _nrrd_voxel_size(header: Any) -> tuple[float, float, float] | None:
    units = header.get("space units", header.get("units"))
    factor = _NM_PER_NRRD_UNIT.get(str(units[0]).strip('"')) if units else None
    if factor is None:
        return None
    if "space directions" in header:
        spacing = [float(np.linalg.norm(row)) for row in np.asarray(header["space directions"], float)]
    elif "spacings" in header:
        spacing = [float(value) for value in header["spacings"]]
    else:
        return None
    if len(spacing) != 3 or not np.isfinite(spacing).all():
        return None
    return (factor * spacing[2], factor * spacing[1], factor * spacing[0])


def open_nifti(path: Path) -> Opened:
    """Open an uncompressed NIfTI-1 or NIfTI-2 file (.nii); compressed ones are unpacked first.

    Returns:
        The opened file, in storage order reversed to (z, y, x); slope and intercept are applied, the
        affine is not.

    Raises:
        DataError: The header is broken, has more than three axes, or the file is truncated.
    """
    what = shown(path)
    with open(path, "rb") as handle:
        start = handle.read(544)
    try:
        sizeof = {struct.unpack("<i", start[:4])[0], struct.unpack(">i", start[:4])[0]}
        kind = nibabel.Nifti2Header if 540 in sizeof else nibabel.Nifti1Header
        if not sizeof & {348, 540}:
            raise DataError("its first four bytes are neither 348 nor 540")
        header = kind(start[: 540 if kind is nibabel.Nifti2Header else 348], check=False)
        dtype = header.get_data_dtype()
        sizes = [int(size) for size in header.get_data_shape()]
        slope, intercept = header.get_slope_inter()
        offset = int(header["vox_offset"])
        units = header.get_xyzt_units()[0]
        zooms = [float(zoom) for zoom in header.get_zooms()]
    except (ValueError, KeyError, struct.error, OverflowError, nibabel.spatialimages.HeaderDataError, WrapStructError) as error:
        raise DataError(f"{what} has no valid NIfTI header: {error}. Save it again as NIfTI.") from error
    if bytes(header["magic"].tobytes()[:2]) == b"ni" and offset == 0:
        raise DataError(f"{what} keeps its voxels in a separate .img file. Save it as one .nii file.")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    sizes += [1] * (3 - len(sizes))
    if len(sizes) != 3 or min(sizes) < 1 or dtype.fields is not None or dtype.kind not in "iuf":
        raise DataError(f"{what} has sizes {sizes} of {dtype}; expected 3 axes of integers or floats.")
    shape: Shape = (sizes[2], sizes[1], sizes[0])
    raw = RawFile(
        path,
        offset,
        shape,
        dtype.str,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    ).check_length(what)
    factor = _NM_PER_SPATIAL_UNIT.get(units)
    voxel = None if factor is None or len(zooms) < 3 else (factor * zooms[2], factor * zooms[1], factor * zooms[0])
    return Opened(raw, shape[0] == 1, voxel)
