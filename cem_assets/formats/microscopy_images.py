"""Decoding one image file of a light-microscopy source to its planes, as they were recorded.

Nothing is scaled, merged or reduced to gray here; recipes decide that, and `cem_assets.imaging` computes it. Volumes and 2D
images of electron microscopy, which become one gray array, are opened by `cem_assets.formats`.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cem_assets.errors import DataError
from cem_assets.formats import sniff
from cem_assets.formats.arrays import MAX_PLANE_BYTES, RawFile, check_decoded_size, shown
from cem_assets.formats.decoding import decoding
from cem_assets.formats.rasters import BYTES_PER_PIXEL, is_deep_colour
from cem_assets.formats.tiff import check_page_list, check_pages, check_palette, equal_pages, full_page, is_plain, tiff_file

MAX_PLANES = 10_000
"""A file of more pages than this is no image of one field of view."""

_DECODE_THREADS = 2
_ALPHA = (1, 2)
_UIC2 = 33629
"""MetaMorph's tag, which has an entry for each plane of a stack."""
_CELLOMICS_HEADER = struct.Struct("<IiiHHI32x")
_CELLOMICS_TYPES = {8: "u1", 16: "<u2", 32: "<u4"}
_SIGNATURES = {
    b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\0\0\0\x10\x78": "C01", b"\x28\0\0\0": "BMP",
}  # fmt: skip
"""First bytes of formats that `sniff` does not know, because volumes do not come in them."""

Decoded = tuple[list[NDArray[Any]], bool, list[str]]
"""Planes; whether they are red, green and blue of one picture; and notes."""


@dataclass(frozen=True)
class MicroscopyImage:
    """One decoded file.

    Attributes:
        planes: (y, x) arrays of one size and number type, contiguous, in native byte order. They are in the order of the pages;
            the channels of a page follow each other.
        is_colour: True where the planes are red, green and blue of one picture.
        notes: What was recognised and what was left out, for the provenance record.
    """

    planes: tuple[NDArray[Any], ...]
    is_colour: bool
    notes: tuple[str, ...]


def is_image(name: str) -> bool:
    """Tell whether a file's name has one of `IMAGE_SUFFIXES`, in upper or lower case."""
    return Path(name).suffix.lower() in _FORMATS


def read_microscopy_image(path: Path) -> MicroscopyImage:
    """Decode one local image file with one of `IMAGE_SUFFIXES`.

    Gray that was saved as RGB, RGBA, LA or with a gray palette becomes one plane. Alpha is left out, 1-bit pixels become 0 and
    255, and images in which 0 is white are inverted. NaN and infinities are kept, and counted in a note.

    Raises:
        DataError: The file is empty, of another format than its suffix says, damaged, truncated, an animation, or decodes to
            more than `cem_assets.formats.arrays` allows.
    """
    what = shown(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise DataError(f"{what} has no suffix of an image; expected one of {', '.join(IMAGE_SUFFIXES)}. Rename or remove it.")
    kind, decode = _FORMATS[suffix]
    if path.stat().st_size == 0:
        raise DataError(f"{what} is empty (0 bytes); expected {kind}. Copy it again from its source.")
    found = _kind_of_contents(path)
    if found != kind:
        raise DataError(
            f"{what} is {found or 'of no known format'}; expected {kind} by its name. Rename it, or copy the right file."
        )
    with decoding(path, kind):
        planes, is_colour, notes = decode(path, what)
    if planes[0].dtype.kind not in "iuf" or planes[0].dtype == np.longdouble or min(planes[0].shape) < 1:
        raise DataError(
            f"{what} holds {planes[0].dtype} {planes[0].shape}; expected integers or floats of 8 to 64 bits. Convert it."
        )
    native = [np.ascontiguousarray(plane, plane.dtype.newbyteorder("=")) for plane in planes]
    if native[0].dtype.kind == "f":
        num_bad = sum(int(plane.size - np.isfinite(plane).sum()) for plane in native)
        notes += [f"{num_bad} pixels are NaN or infinite"] if num_bad else []
    return MicroscopyImage(tuple(native), is_colour, tuple(dict.fromkeys(notes)))


def _kind_of_contents(path: Path) -> str | None:
    with open(path, "rb") as handle:
        head = handle.read(8)
    return next((name for start, name in _SIGNATURES.items() if head.startswith(start)), None) or sniff(path)


# Channels


def _split_colour(channels: Sequence[NDArray[Any]], name: str) -> Decoded:
    """Return red, green and blue as they are; one plane where all three are equal."""
    red, green, blue = channels
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return [red], False, [f"gray saved as {name}"]
    return [red, green, blue], True, []


def _apply_palette(indices: NDArray[Any], colours: NDArray[Any]) -> Decoded:
    """Look up colours, (number, 3). Only colours that some pixel uses decide whether the image is gray."""
    used = colours[np.unique(indices)]
    if (used[:, 0] == used[:, 1]).all() and (used[:, 1] == used[:, 2]).all():
        return [colours[:, 0][indices]], False, ["gray saved with a palette"]
    return [colours[:, channel][indices] for channel in range(3)], True, ["colours looked up in a palette"]


# TIFF


def _read_tiff(path: Path, what: str) -> Decoded:
    with tiff_file(path) as tif:
        if not tif.pages:
            raise DataError(f"{what} has no pages; expected at least one image. Copy it again from its source.")
        check_page_list(tif, what)
        if len(tif.pages) > MAX_PLANES:
            raise DataError(f"{what} has {len(tif.pages)} pages; expected at most {MAX_PLANES} in an image. Split it.")
        every = [full_page(page) for page in tif.pages]
        full = [page for page in every if not page.is_reduced] or every
        pages, left_out = equal_pages(full, what)
        notes = list(left_out)
        if len(full) < len(every):
            notes.append(f"{len(every) - len(full)} smaller copies of the image left out")
        stored = path.stat().st_size
        check_pages(pages, stored, what, in_segments=False)
        check_decoded_size(what, sum(int(page.nbytes) for page in pages), stored)
        arrays = _unlisted_planes(tif, path, what) or (page.asarray(maxworkers=_DECODE_THREADS) for page in pages)
        planes: list[NDArray[Any]] = []
        num_pages = num_colour = 0
        for number, pixels in enumerate(arrays):
            more, is_colour, found = _page_planes(pages[min(number, len(pages) - 1)], pixels, what)
            planes += more
            notes += found
            num_pages += 1
            num_colour += is_colour
        if num_colour and num_pages > 1:
            raise DataError(f"{what} has {num_pages} pages, {num_colour} of them in colour; expected one picture. Split it.")
        return planes, bool(num_colour), notes


def _unlisted_planes(tif: tifffile.TiffFile, path: Path, what: str) -> list[NDArray[Any]]:
    """Return the planes of a stack that lists only the first of them, as MetaMorph's stacks and large ones of ImageJ do."""
    page = full_page(tif.pages.first)
    if len(tif.pages) > 1:
        return []
    if (counter := page.tags.get(_UIC2)) is not None:
        num_planes, offset = int(counter.count), int(page.dataoffsets[0]) if page.is_contiguous else None
    elif tif.is_imagej or tif.is_shaped:
        series = tif.series[0]
        num_planes = int(np.prod(series.shape, dtype=object)) // int(np.prod(page.shape, dtype=object))
        offset = series.dataoffset
    else:
        return []
    if num_planes <= 1:
        return []
    if num_planes > MAX_PLANES or not is_plain(page) or page.compression != 1 or offset is None:
        raise DataError(
            f"{what} names {num_planes} planes and lists one; expected at most {MAX_PLANES}, uncompressed and one after the "
            "other. Save it again as TIFF with a page for each plane."
        )
    rows, columns = int(page.shape[0]), int(np.prod(page.shape[1:], dtype=object))
    disk = np.dtype(f"{tif.byteorder}{page.dtype.char}")
    raw = RawFile(path, int(offset), (num_planes, rows, columns), disk.str).check_length(what)
    check_decoded_size(what, raw.num_bytes, path.stat().st_size)
    stack = raw.read((slice(0, num_planes), slice(0, rows), slice(0, columns)))
    return [plane.reshape(page.shape) for plane in stack]


def _page_planes(page: Any, pixels: NDArray[Any], what: str) -> Decoded:
    kinds = tifffile.PHOTOMETRIC
    is_jpeg = page.compression in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise DataError(f"{what} has pages of axes {page.axes}; expected rows, columns and channels. Save it as plain TIFF.")
    channels = [pixels] if page.axes == "YX" else [pixels[..., channel] for channel in range(pixels.shape[-1])]
    notes: list[str] = []
    if pixels.dtype == np.bool_:
        channels = [channel.astype(np.uint8) * 255 for channel in channels]
        notes.append("1-bit pixels became 0 and 255")
    if page.photometric == kinds.PALETTE and page.colormap is not None and len(channels) == 1:
        check_palette(page, channels[0], what)
        planes, is_colour, found = _apply_palette(channels[0], _narrow(page.colormap.T))
        return planes, is_colour, notes + found
    if page.photometric == kinds.RGB or (page.photometric == kinds.YCBCR and is_jpeg):
        if len(channels) < 3:
            raise DataError(f"{what} is RGB with {len(channels)} channels; expected 3 or more. Save it again as gray.")
        base, is_colour, found = _split_colour(channels[:3], "RGB")
        extra, more = _further(channels[3:], page.extrasamples, is_rgb=True)
        if extra and is_colour:
            more.append("three colours and further channels: each a plane of its own")
        return base + extra, is_colour and not extra, notes + found + more
    if page.photometric not in (kinds.MINISBLACK, kinds.MINISWHITE):
        raise DataError(
            f"{what} has colours of kind {page.photometric!s:.40}; expected gray, RGB or a palette. Save it as RGB."
        )
    extra, more = _further(channels[1:], page.extrasamples, is_rgb=False)
    if page.photometric == kinds.MINISWHITE and channels[0].dtype.kind == "u":
        bits = 8 if pixels.dtype == np.bool_ else int(page.bitspersample)
        channels[0] = channels[0].dtype.type((1 << bits) - 1) - channels[0]
        more.append("inverted, because the file says that 0 is white")
    return [channels[0], *extra], False, notes + more


def _further(channels: Sequence[NDArray[Any]], kinds: Sequence[int], is_rgb: bool) -> tuple[list[NDArray[Any]], list[str]]:
    """Leave out alpha among the channels after gray or RGB. An unnamed channel after RGB is alpha if it is constant."""
    kept, notes = [], []
    for number, channel in enumerate(channels):
        kind = int(kinds[number]) if number < len(kinds) else 0
        if kind in _ALPHA or (is_rgb and kind == 0 and (channel == channel.flat[0]).all()):
            notes.append("alpha left out")
        else:
            kept.append(channel)
    return kept, notes


def _narrow(colours: NDArray[np.uint16]) -> NDArray[Any]:
    """Return the colours of a TIFF palette, which have 16 bits by definition, in 8 bits where they were saved from 8 bits."""
    if colours.max() < 256:
        return colours.astype(np.uint8)
    if (colours % 257 == 0).all():
        return (colours // 257).astype(np.uint8)
    if (colours % 256 == 0).all():
        return (colours >> 8).astype(np.uint8)
    return colours


# PNG, JPEG, BMP, GIF


def _raster_reader(formats: tuple[str, ...]) -> Callable[[Path, str], Decoded]:
    def read(path: Path, what: str) -> Decoded:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path, formats=formats) as opened:
                    return _raster_planes(opened, path, what)
        except Image.DecompressionBombError as error:
            raise DataError(f"{what} is too large to decode safely: {error}. Cut it into tiles.") from error

    return read


def _raster_planes(image: Any, path: Path, what: str) -> Decoded:
    is_deep = image.format == "PNG" and is_deep_colour(path)
    width, height = image.size
    size = width * height * BYTES_PER_PIXEL.get(image.mode, 8) * (2 if is_deep else 1)
    check_decoded_size(what, size, path.stat().st_size)
    notes = []
    if image.format == "MPO":
        notes.append("previews after the first image left out")
    elif getattr(image, "is_animated", False):
        raise DataError(f"{what} is an animation of several frames; expected one image. Save its frames as single files.")
    if is_deep:  # Pillow would reduce the pixels to 8 bits
        pixels = np.asarray(imagecodecs.png_decode(path.read_bytes()))
        mode = {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[-1]]
    else:
        image.load()
        mode = image.mode
        if mode == "1":
            return [np.asarray(image.convert("L"))], False, [*notes, "1-bit pixels became 0 and 255"]
        if mode == "P":
            notes += ["transparency left out"] if "transparency" in image.info else []
            colours = np.zeros((256, 3), np.uint8)
            listed = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
            colours[: len(listed)] = listed
            planes, is_colour, found = _apply_palette(np.asarray(image), colours)
            return planes, is_colour, notes + found
        if mode not in ("L", "I;16", "I;16B", "I", "F", "LA", "RGB", "RGBA"):
            notes.append(f"converted from {mode}")
            image, mode = image.convert("RGB"), "RGB"
        pixels = np.asarray(image)
    if pixels.ndim == 2:
        return [pixels], False, notes
    if mode == "LA":
        return [pixels[..., 0]], False, [*notes, "gray saved as LA", "alpha left out"]
    planes, is_colour, found = _split_colour([pixels[..., channel] for channel in range(3)], mode)
    return planes, is_colour, notes + found + (["alpha left out"] if mode == "RGBA" else [])


# Cellomics


def _read_c01(path: Path, what: str) -> Decoded:
    """Read Cellomics .C01: 4 bytes, then zlib data of a 52-byte header like that of a bitmap and of the rows from the top.

    The layout is the one that Bio-Formats documents. Unlike in bitmaps, rows are not padded, and planes follow each other.
    """
    if path.stat().st_size > MAX_PLANE_BYTES:
        raise DataError(f"{what} has {path.stat().st_size} bytes; expected at most {MAX_PLANE_BYTES}. Cut it into tiles.")
    inflater = zlib.decompressobj()
    head = inflater.decompress(path.read_bytes()[4:], _CELLOMICS_HEADER.size)
    shape, dtype, num_bytes = _cellomics_header(head, what)
    check_decoded_size(what, num_bytes, path.stat().st_size)
    payload = inflater.decompress(inflater.unconsumed_tail, num_bytes + 1)
    if len(payload) != num_bytes or not inflater.eof:
        found = "more" if len(payload) > num_bytes else "no end of them" if len(payload) == num_bytes else len(payload)
        raise DataError(
            f"{what} is damaged or truncated: its header announces {num_bytes} bytes of pixels, found {found}. Copy it again."
        )
    return list(np.frombuffer(payload, dtype).reshape(shape)), False, []


def _cellomics_header(head: bytes, what: str) -> tuple[tuple[int, int, int], str, int]:
    """Return ((planes, y, x), number type, bytes of pixels)."""
    if len(head) < _CELLOMICS_HEADER.size:
        raise DataError(f"{what} ends within its header of {_CELLOMICS_HEADER.size} bytes. Copy it again from its source.")
    size, width, height, num_planes, bits, _ = _CELLOMICS_HEADER.unpack(head[: _CELLOMICS_HEADER.size])
    if size != 40 or min(width, height) < 1 or not 1 <= num_planes <= MAX_PLANES or bits not in _CELLOMICS_TYPES:
        raise DataError(
            f"{what} has a header of {size} bytes for {num_planes} planes of {width} x {height} px, {bits} bits; expected 40 "
            "bytes, sizes above 0 and 8, 16 or 32 bits. Copy it again from its source."
        )
    return (num_planes, height, width), _CELLOMICS_TYPES[bits], num_planes * width * height * bits // 8


def _read_bitmap(path: Path, what: str) -> Decoded:
    """Read a bitmap with or without its file header; Cellomics' own .DIB is what its .C01 files unpack to."""
    stored = path.stat().st_size
    with open(path, "rb") as handle:
        head = handle.read(_CELLOMICS_HEADER.size)
    if head[:2] == b"BM":
        return _raster_reader(("BMP",))(path, what)
    if len(head) == _CELLOMICS_HEADER.size and head[14] in _CELLOMICS_TYPES and not any(head[16:20]):
        shape, dtype, num_bytes = _cellomics_header(head, what)
        if stored == len(head) + num_bytes:
            check_decoded_size(what, num_bytes, stored)
            raw = np.frombuffer(path.read_bytes(), dtype, offset=len(head))
            return list(raw.reshape(shape)), False, ["Cellomics DIB: rows from the top"]
    return _raster_reader(("DIB",))(path, what)


_FORMATS: dict[str, tuple[str, Callable[[Path, str], Decoded]]] = {
    **dict.fromkeys((".tif", ".tiff", ".flex", ".stk"), ("TIFF", _read_tiff)),
    ".png": ("PNG", _raster_reader(("PNG",))),
    **dict.fromkeys((".jpg", ".jpeg"), ("JPEG", _raster_reader(("JPEG",)))),
    **dict.fromkeys((".bmp", ".dib"), ("BMP", _read_bitmap)),
    ".gif": ("GIF", _raster_reader(("GIF",))),
    ".c01": ("C01", _read_c01),
}
IMAGE_SUFFIXES: tuple[str, ...] = tuple(_FORMATS)
