"""Formats whose voxels follow a header in plain order: MRC, NRRD and NIfTI.

Each function reads the header with the format's own library or by its published layout, checks it against the file's length,
and returns the voxels as a `RawFile`, which is read in place.
"""

import bz2
import gzip
import re
import struct
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
from cem_assets.formats.decoding import decoding

_BLOCK = 1 << 22
_TEXT_BLOCK = 1 << 18
_MAX_WORD = 1000
_IMOD_STAMP = 1146047817
_MRC_SUPPORTED = "0 (int8), 1 (int16), 2 (float32), 6 (uint16), 12 (float16)"
_NM_PER_SPATIAL_UNIT = {"meter": 1e9, "mm": 1e6, "micron": 1e3}
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(
        ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"), "i8"
    ),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
"""Names of number types as the definition of the NRRD format lists them."""
_NM_PER_NRRD_UNIT = {"nm": 1.0, "nanometer": 1.0, "um": 1e3, "µm": 1e3, "micron": 1e3, "mm": 1e6, "angstrom": 0.1}


def decompress_file(path: Path, scratch: Path, kind: str) -> Path:
    """Unpack a .gz or .bz2 file into scratch, within limits.

    Args:
        kind: "gzip" or "bzip2".

    Returns:
        The unpacked file, whose name lacks the last suffix.

    Raises:
        DataError: The file is damaged, or expands so much that it is taken for a decompression bomb.
        OSError: The scratch disk is too small.
    """
    what = shown(path)
    target = scratch / Path(path.name).stem
    opener: Any = gzip.open if kind == "gzip" else bz2.open
    stored = path.stat().st_size
    require_disk(scratch, stored, what)
    total = 0
    with decoding(path, kind), opener(path, "rb") as source, open(target, "wb") as out:
        while block := source.read(_BLOCK):
            total += len(block)
            check_decoded_size(what, total, stored, is_plane=False)
            if total % (1 << 28) < _BLOCK:
                require_disk(scratch, 0, what)
            out.write(block)
    return target


def open_mrc(path: Path) -> Opened:
    """Open an MRC, MAP, REC or ST file that is not compressed.

    Axis order, byte order, extended header and IMOD's unsigned bytes are respected. Files without the "MAP " stamp and with
    negative cell sizes are accepted, because both are common.

    Returns:
        The opened file; a file of one section is a 2D image.

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
    # Columns vary fastest in the file, then rows, then sections; mapc, mapr and maps say which of x, y, z each of them is.
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
    """Read the header in the byte order that its machine stamp names, or else in the one that makes sense.

    Returns:
        The header and "<" or ">"; None in place of the header where neither order makes sense.
    """
    orders = ["<", ">"]
    try:
        stamp = np.frombuffer(block[212:216], np.uint8)
        orders.sort(key=lambda order: order != mrcfile.utils.byte_order_from_machine_stamp(stamp))
    except ValueError:
        orders = ["<", ">"]  # the stamp is not set, so the sizes below decide
    for order in orders:
        header = np.frombuffer(block, mrcfile.dtypes.HEADER_DTYPE.newbyteorder(order))[0]
        sizes = [int(header[name]) for name in ("nx", "ny", "nz")]
        if all(0 < side < 1 << 20 for side in sizes) and 0 <= int(header["mode"]) <= 101 and int(header["nsymbt"]) >= 0:
            return header, order
    return None, "<"


def open_nrrd(path: Path, scratch: Path) -> Opened:
    """Open an NRRD file (.nrrd, or .nhdr with its data beside it) of encoding raw, gzip, bzip2 or ascii.

    Args:
        scratch: Folder for decompressed voxels.

    Returns:
        The opened file. The first axis of NRRD varies fastest, so the sizes are reversed to (z, y, x).

    Raises:
        DataError: The header is broken or names data outside its own folder, or the data are truncated.
    """
    what = shown(path)
    try:
        with open(path, "rb") as handle:
            header = nrrd.read_header(handle)
            offset = handle.tell()
        sizes, type_name, encoding = _sizes(header), str(header["type"]), str(header["encoding"]).lower()
        byte_skip = int(header.get("byte skip", header.get("byteskip", 0)) or 0)
        line_skip = int(header.get("line skip", header.get("lineskip", 0)) or 0)
        voxel_size = _nrrd_voxel_size(header)
    except (nrrd.NRRDError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{what} has no valid NRRD header: {type(error).__name__}: {error}. Save it again as NRRD.") from error
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
        dtype = np.dtype(_NRRD_TYPES[type_name])
    except KeyError as error:
        raise DataError(f"{what} has NRRD type {type_name!r}; expected an integer or float type. Convert it.") from error
    if dtype.itemsize > 1:
        if "endian" not in header and header["encoding"] != "ascii":
            raise DataError(f"{what} has type {type_name} but no 'endian' field. Save it again as NRRD.")
        dtype = dtype.newbyteorder(">" if header.get("endian") == "big" else "<")
    kinds = list(header.get("kinds", []))
    if len(sizes) == 2:
        sizes = [*sizes, 1]
    while len(sizes) > 3 and 1 in sizes:
        sizes.remove(1)
    if len(sizes) != 3 or any("color" in str(kind).lower() or kind == "vector" for kind in kinds):
        raise DataError(
            f"{what} has sizes {_sizes(header)} of kinds {kinds}; expected 3 axes of space. Save one volume as NRRD."
        )
    if min(sizes) < 1:
        raise DataError(f"{what} has sizes {sizes}; expected none of them 0 or negative. Copy it again from its source.")
    shape: Shape = (sizes[2], sizes[1], sizes[0])
    raw = RawFile(data, offset + byte_skip, shape, dtype.str)
    if line_skip or raw.offset < offset:
        raise DataError(f"{what} skips lines or counts bytes from the end; expected neither. Save it again as NRRD.")
    if encoding in ("gzip", "gz", "bzip2", "bz2"):
        raw = _inflate_nrrd(raw, "gzip" if encoding in ("gzip", "gz") else "bzip2", scratch, what)
    elif encoding in ("ascii", "txt", "text"):
        check_decoded_size(what, raw.num_bytes, data.stat().st_size, is_plane=False)
        raw = spool_rows(_ascii_numbers(raw, dtype), shape, dtype, scratch, what)
    elif encoding != "raw":
        raise DataError(f"{what} has NRRD encoding {encoding!r}; expected raw, gzip, bzip2 or ascii. Save it as one of these.")
    return Opened(raw.check_length(what), shape[0] == 1, voxel_size)


def _sizes(header: Any) -> list[int]:
    return [int(size) for size in header["sizes"]]


def _ascii_numbers(raw: RawFile, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Read numbers that are written as text, block by block; a number may begin in one block and end in the next."""
    with open(raw.path, "rb") as handle:
        handle.seek(raw.offset)
        rest = b""
        while block := handle.read(_TEXT_BLOCK):
            words = (rest + block).split()
            rest = words.pop() if words and not block[-1:].isspace() else b""
            if len(rest) > _MAX_WORD:
                raise DataError(
                    f"{shown(raw.path)} has {len(rest)} characters without a blank; expected numbers. Copy it again from its "
                    "source."
                )
            yield _numbers(words, raw, dtype)
        if rest:
            yield _numbers([rest], raw, dtype)


def _numbers(words: list[bytes], raw: RawFile, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        return np.array(words, dtype=np.float64).astype(dtype.newbyteorder("="))
    except ValueError as error:
        raise DataError(
            f"{shown(raw.path)} has text among its voxels: {error!s:.200}. Copy it again from its source."
        ) from error


def _inflate_nrrd(raw: RawFile, kind: str, scratch: Path, what: str) -> RawFile:
    """Decompress as many bytes as the header announces and no more, so that a decompression bomb stops there."""
    stored = raw.path.stat().st_size - raw.offset
    check_decoded_size(what, raw.num_bytes, stored, is_plane=False)
    require_disk(scratch, raw.num_bytes, what)
    target = scratch / f"{raw.path.stem}.voxels"
    left = raw.num_bytes
    with open(raw.path, "rb") as handle, open(target, "wb") as out:
        handle.seek(raw.offset)
        stream: Any = gzip.GzipFile(fileobj=handle) if kind == "gzip" else bz2.BZ2File(handle)
        while left and (block := stream.read(min(_BLOCK, left))):
            out.write(block)
            left -= len(block)
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
    """Open an uncompressed NIfTI-1 or NIfTI-2 file (.nii); compressed files are unpacked first.

    Returns:
        The opened file, with its axes in reversed order of storage, (z, y, x). Slope and intercept are applied, the affine is
        not.

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
