"""Opening a file of any supported format as an array that is read by boxes.

`FORMATS` says which suffix belongs to which format. The first bytes of a file are compared with its suffix before a decoder
runs, so that the error for a file with a wrong suffix says what the file really is. To add a format, write one function that
opens it, and add one row to `FORMATS`. Zarr stores are folders, which `zarr.stores.open_zarr` opens; stacks of 2D files are
opened by `stacks.open_stack`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cem_assets.catalog.description import DatasetDescription
from cem_assets.errors import DataError
from cem_assets.formats.arrays import Opened, shown, spool
from cem_assets.formats.decoding import decoding
from cem_assets.formats.hdf5 import open_hdf5
from cem_assets.formats.headers import decompress_file, open_mrc, open_nifti, open_nrrd
from cem_assets.formats.micrograph import open_dm
from cem_assets.formats.rasters import read_raster
from cem_assets.formats.ser import MAGIC as SER_MAGIC
from cem_assets.formats.ser import open_ser
from cem_assets.formats.tiff import open_tiff
from cem_assets.formats.video import open_video

Opener = Callable[[Path, Path, DatasetDescription], Opened]


def _open_raster(path: Path, scratch: Path, description: DatasetDescription) -> Opened:
    del description
    plane, notes = read_raster(path)
    source = spool(iter([plane]), (1, *plane.shape), plane.dtype, scratch, shown(path))
    return Opened(source, True, None, notes)


FORMATS: dict[str, tuple[tuple[str, ...], Opener]] = {
    "TIFF": ((".tif", ".tiff"), lambda path, scratch, d: open_tiff(path, scratch, d.channel)),
    "PNG": ((".png",), _open_raster),
    "JPEG": ((".jpg", ".jpeg"), _open_raster),
    "MRC": ((".mrc", ".map", ".rec", ".st", ".ali", ".mrcs"), lambda path, scratch, d: open_mrc(path)),
    "NRRD": ((".nrrd", ".nhdr"), lambda path, scratch, d: open_nrrd(path, scratch)),
    "NIfTI": ((".nii",), lambda path, scratch, d: open_nifti(path)),
    "HDF5": ((".h5", ".hdf5", ".hdf", ".he5"), lambda path, scratch, d: open_hdf5(path, d.hdf5_dataset, d.channel)),
    "DM": ((".dm3", ".dm4"), lambda path, scratch, d: open_dm(path, scratch)),
    "SER": ((".ser",), lambda path, scratch, d: open_ser(path)),
    "MP4": ((".mp4", ".m4v"), lambda path, scratch, d: open_video(path, scratch, d, "MP4")),
    "AVI": ((".avi",), lambda path, scratch, d: open_video(path, scratch, d, "AVI")),
}
COMPRESSED: dict[str, str] = {".gz": "gzip", ".bz2": "bzip2"}
SLICE_FORMATS = ("TIFF", "PNG", "JPEG", "DM", "MRC", "SER")
"""Formats whose files may be 2D slices of one volume."""

_BY_SUFFIX = {suffix: name for name, (suffixes, _) in FORMATS.items() for suffix in suffixes}


@dataclass(frozen=True)
class FileKind:
    """What a file is, going by its name.

    Attributes:
        format: A key of `FORMATS`.
        compression: "gzip", "bzip2", or empty.
        stem: The name without its suffixes.
    """

    format: str
    compression: str
    stem: str


def kind_of(name: str) -> FileKind | None:
    """Tell a file's format from its name, which has no folders; None where no format has its suffix."""
    stem, compression = name, ""
    for suffix, kind in COMPRESSED.items():
        if stem.lower().endswith(suffix):
            stem, compression = stem[: -len(suffix)], kind
    match = re.search(r"\.[A-Za-z0-9]+$", stem)
    if match is None or match.group().lower() not in _BY_SUFFIX:
        return None
    return FileKind(_BY_SUFFIX[match.group().lower()], compression, stem[: match.start()])


def expected_suffixes() -> str:
    """List every supported suffix, for messages."""
    return ", ".join(sorted(_BY_SUFFIX)) + " (also with .gz or .bz2), or a Zarr folder"


def sniff(path: Path) -> str | None:
    """Tell a file's format from its first bytes; None where they match no known kind."""
    with open(path, "rb") as handle:
        head = handle.read(352)
    signatures = {
        b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG",
        b"\x89HDF": "HDF5", b"NRRD0": "NRRD", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"PK\x03\x04": "zip",
        b"%PDF": "PDF", b"GIF8": "GIF", b"BM": "BMP", b"7z\xbc\xaf": "7z", SER_MAGIC: "SER",
    }  # fmt: skip
    for signature, name in signatures.items():
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF":
        return "AVI" if head[8:12] == b"AVI " else "RIFF without video"
    if head[4:8] == b"ftyp":
        return "MP4"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "NIfTI"
    if head[208:212] == b"MAP ":
        return "MRC"
    if head[:4] in (b"\0\0\0\x03", b"\0\0\0\x04") and len(head) > 20:
        return "DM"
    if head and len(head) > 16 and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "text"
    return None


def open_file(path: Path, scratch: Path, description: DatasetDescription) -> Opened:
    """Open one local file by its suffix, after checking that its contents are of the same format.

    Args:
        scratch: Folder for what must be unpacked or decoded.
        description: The dataset's description. It names the array of HDF5 files, and the channel.

    Raises:
        DataError: The file is empty, of another format than its suffix says, damaged, or unsupported.
        OSError: The scratch disk is too small.
    """
    what = shown(path)
    kind = kind_of(path.name)
    if kind is None:
        raise DataError(f"{what} has no suffix of a known format; expected one of {expected_suffixes()}. Rename or remove it.")
    if path.stat().st_size == 0:
        raise DataError(f"{what} is empty (0 bytes); expected {kind.format}. Copy it again from its source.")
    if kind.compression:
        _check_contents(path, kind.compression, what)
        path = decompress_file(path, scratch, kind.compression)
    _check_contents(path, kind.format, what)
    with decoding(path, kind.format):
        opened = FORMATS[kind.format][1](path, scratch, description)
        shape, dtype = opened.source.shape, opened.source.dtype
    if min(shape) < 1:
        raise DataError(f"{what} has sizes {shape}; expected none of them 0. Copy it again from its source.")
    if dtype.kind not in "iuf" or dtype == np.dtype(np.longdouble):
        raise DataError(f"{what} holds {dtype}; expected integers or floats of 8 to 64 bits. Convert it.")
    return opened


def _check_contents(path: Path, expected: str, what: str) -> None:
    found = sniff(path)
    if found is not None and found != expected and not (expected in ("MRC", "NIfTI") and found == "DM"):
        raise DataError(f"{what} is {found}; expected {expected} by its name. Rename it, or copy the right file.")
