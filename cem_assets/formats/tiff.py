"""TIFF files, read by tifffile: single images and stacks of any byte order, tiled, stripped or compressed.

Uncompressed contiguous stacks are read in place. All others are decoded page by page into scratch, and large gray pages strip
by strip or tile by tile. Missing strips and truncated files are errors here; tifffile would give zeros.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.formats.arrays import (
    MAX_PLANE_BYTES,
    Opened,
    RawFile,
    check_decoded_size,
    check_whole_in_memory,
    shown,
    spool,
    spool_rows,
)
from cem_assets.imaging.intensity import gray_from_channels

# tifffile logs damage and goes on; here damage is an error, so its log would only repeat that.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_DEPTH_AXES = "ZIQT"
_DECODE_THREADS = 2
_PAGE_BYTES_HELD = 32 << 20
"""Larger gray pages are decoded in parts."""
_SEGMENT_BUFFER = 1 << 20
"""Compressed bytes that are read ahead; all that they decode to is in memory at once."""
_NM_PER_UNIT = {"nm": 1.0, "nanometer": 1.0, "um": 1e3, "µm": 1e3, "micron": 1e3, "\\u00B5m": 1e3, "mm": 1e6}


def tiff_file(path: Path) -> tifffile.TiffFile:
    """Open a TIFF file without any of the other files that OME-XML may name: only this file is read.

    tifffile has no public argument for that. `is_ome=False` comes closest, but it hides how the pages of one OME-TIFF file are
    arranged, and a file object instead of a path makes tifffile fill the planes of other files with zeros. A test tells when
    there is a public argument.
    """
    return tifffile.TiffFile(path, _multifile=False)


def open_tiff(path: Path, scratch: Path, channel: int | None = None) -> Opened:
    """Open a TIFF file as one volume or 2D image.

    Args:
        scratch: Folder for the decoded planes of compressed stacks.
        channel: Which channel to take where the file has a channel axis.

    Returns:
        The opened file; a file of one page is a 2D image.

    Raises:
        DataError: The file is no TIFF, is damaged or truncated, holds pages of several sizes, or has channels or time points
            that cannot become one gray volume.
    """
    with tiff_file(path) as tif:
        return _open(tif, path, scratch, channel, shown(path))


def _open(tif: tifffile.TiffFile, path: Path, scratch: Path, channel: int | None, what: str) -> Opened:
    left_out: tuple[str, ...] = ()
    if not tif.pages:
        raise DataError(f"{what} has no pages; expected at least one image. Copy it again from its source.")
    check_page_list(tif, what)
    if tif.is_imagej or tif.is_ome or tif.is_shaped:
        series = tif.series[0]
        axes, shape, dtype = series.axes, series.shape, series.dtype
        pages: Sequence[Any] = list(series.pages)
        if lacking := sum(page is None for page in pages):
            raise DataError(
                f"{what} lacks {lacking} of the {len(pages)} pages that its metadata name. Copy it again from its source."
            )
    else:
        every = [full_page(page) for page in tif.pages]
        pages, left_out = equal_pages([page for page in every if not page.is_reduced] or every, what)
        first = pages[0]
        series = tif.series[0] if len(tif.series) == 1 else None
        axes, shape, dtype = f"I{first.axes}", (len(pages), *first.shape), first.dtype
    head = full_page(pages[0])
    check_tags(head, what)
    depth, num_channels, notes = _interpret(axes, shape, what, channel)
    notes += left_out
    size = (int(head.imagelength), int(head.imagewidth))
    voxel_size = _voxel_size(tif, head)
    plain = series is not None and series.dataoffset is not None and num_channels == 1 and is_plain(head)
    if plain:
        assert series is not None
        disk = np.dtype(f"{tif.byteorder}{dtype.char}")
        raw = RawFile(path, int(series.dataoffset), (depth, *size), disk.str).check_length(what)
        return Opened(raw, depth == 1, voxel_size, notes)
    in_segments = num_channels == 1 and is_plain(head) and int(head.nbytes) > _PAGE_BYTES_HELD
    check_pages(pages, path.stat().st_size, what, in_segments)
    if in_segments:
        if len(pages) != depth:
            raise DataError(f"{what} has {len(pages)} pages for {depth} slices; expected one page for each slice.")
        rows = (rows for number, page in enumerate(pages) for rows in _rows(full_page(page), number, size, dtype, what))
        return Opened(spool_rows(rows, (depth, *size), np.dtype(dtype), scratch, what), depth == 1, voxel_size, notes)
    done: list[str] = list(notes)
    planes = _decoded(pages, depth, num_channels, channel, what, done)
    first_plane = next(planes)
    source = spool(_chain(first_plane, planes), (depth, *first_plane.shape), first_plane.dtype, scratch, what)
    return Opened(source, depth == 1, voxel_size, tuple(dict.fromkeys(done)))


def _chain(first: NDArray[Any], rest: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    yield first
    yield from rest


def check_page_list(tif: tifffile.TiffFile, what: str) -> None:
    """Refuse a file whose list of pages breaks off; tifffile would log that and give the pages before the break."""
    num_pages = len(tif.pages)
    handle = tif.filehandle
    handle.seek(tif.pages.next_page_offset)
    following = int.from_bytes(handle.read(tif.tiff.offsetsize), "little" if tif.byteorder == "<" else "big")
    if following:
        raise DataError(
            f"{what} is truncated: after {num_pages} page(s) it names another at byte {following}, which is not there (it "
            f"has {handle.size}). Copy it again from its source."
        )


def equal_pages(pages: list[Any], what: str) -> tuple[list[Any], tuple[str, ...]]:
    """Return the pages of a stack, all of one size and type, and a note on other pages that were left out."""
    first = pages[0]
    others = [n for n, page in enumerate(pages) if page.shape != first.shape or page.dtype != first.dtype]
    if not others:
        return pages, ()
    number = others[0]
    page = pages[number]
    if len(others) == len(pages) - 1 and all(
        pages[n].dtype != first.dtype or pages[n].samplesperpixel != first.samplesperpixel for n in others
    ):  # one image, and then pages of other kinds, such as a preview, a mask or the camera's own data
        return [first], (f"{len(others)} page(s) left out that are no part of a stack, such as {page.dtype} {page.shape}",)
    raise DataError(
        f"{what}: page {number} is {page.dtype} {page.shape}, the first is {first.dtype} {first.shape}; expected "
        "pages of one size. Split the file, or remove that page."
    )


def full_page(page: Any) -> Any:
    """Return a page with its tags; for the later pages of a stack, tifffile gives frames without them."""
    return page.aspage() if isinstance(page, tifffile.TiffFrame) else page


def is_plain(page: Any) -> bool:
    """Tell whether a page holds gray pixels of 8, 16, 32 or 64 bits, with black as 0."""
    return page.photometric == tifffile.PHOTOMETRIC.MINISBLACK and page.bitspersample in (8, 16, 32, 64)


def _interpret(axes: str, shape: tuple[int, ...], what: str, channel: int | None) -> tuple[int, int, tuple[str, ...]]:
    """Return (number of slices, number of channels, notes) of tifffile's axes, such as ZCYX or IYXS."""
    sizes = {name: int(size) for name, size in zip(axes, shape, strict=True)}
    num_channels = max(sizes.get("S", 1), sizes.get("C", 1))
    if sizes.get("S", 1) > 1 and sizes.get("C", 1) > 1:
        raise DataError(f"{what} has both colour samples and channels ({axes} {shape}); expected one gray channel.")
    if num_channels > 4 and channel is None:
        raise DataError(
            f"{what} has {num_channels} channels ({axes} {shape}); expected 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 "
            "(RGB, alpha). Give channel = N in dataset.toml to take one of them; if they are slices, save them along z."
        )
    if channel is not None and num_channels > 1 and channel >= num_channels:
        raise DataError(f"{what} has {num_channels} channels; channel = {channel} in dataset.toml is not one of them.")
    stacked = [name for name in axes if name not in "YXSC" and sizes[name] > 1]
    unknown = [name for name in stacked if name not in _DEPTH_AXES]
    if len(stacked) > 1 or unknown:
        raise DataError(
            f"{what} has axes {axes} of sizes {shape}; expected one stack of slices. Save one time point and position."
        )
    depth = sizes[stacked[0]] if stacked else 1
    note = ("the stack is labelled as time; its frames were taken as slices",) if stacked == ["T"] else ()
    return depth, num_channels, note


def _rows(page: Any, number: int, size: tuple[int, int], dtype: Any, what: str) -> Iterator[NDArray[Any]]:
    """Decode a gray page, one strip or row of tiles at a time."""
    height, width = size
    band: NDArray[Any] | None = None
    top = 0
    for segment, (*_, y, x, _), _ in page.segments(maxworkers=_DECODE_THREADS, buffersize=_SEGMENT_BUFFER):
        if segment is None or (page.imagelength, page.imagewidth) != size or page.dtype != dtype:
            raise DataError(
                f"{what}: page {number} lacks strips or tiles, or is unlike the first; expected all of them. Copy the file "
                "again."
            )
        if band is None or y != top:
            if band is not None:
                yield band
            top = y
            band = np.zeros((min(int(segment.shape[1]), height - y), width), dtype)
        inside = segment[0, : len(band), : width - x, 0]
        band[: len(inside), x : x + inside.shape[1]] = inside
    if band is not None:
        yield band


def check_pages(pages: Sequence[Any], file_bytes: int, what: str, in_segments: bool) -> None:
    """Refuse pages that lack strips or tiles, reach beyond the end of the file, or decode to too much.

    Args:
        in_segments: Whether pages are decoded by strips or tiles, so that only those must fit memory.
    """
    checked: set[int] = set()
    for number, frame in enumerate(pages):
        if id(frame.keyframe) not in checked:  # pages of a stack share the tags of the first
            check_tags(frame.keyframe, f"{what}, page {number}")
            checked.add(id(frame.keyframe))
        offsets, counts = frame.dataoffsets, frame.databytecounts
        if len(offsets) != len(counts) or not all(isinstance(value, int | np.integer) for value in (*offsets, *counts)):
            raise DataError(
                f"{what}: page {number} lists {len(offsets)} places and {len(counts)} lengths of strips or tiles; expected "
                "whole numbers, and as many of both. Copy the file again from its source."
            )
        if not len(counts) or min(counts) == 0 or min(offsets) == 0:
            raise DataError(
                f"{what}: page {number} lacks strips or tiles (their length is 0); expected all of them. Copy the file again."
            )
        end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
        if end > file_bytes:
            raise DataError(
                f"{what} is truncated: page {number} reaches to byte {end}, the file has {file_bytes}. Copy it again."
            )
        is_held = not in_segments or int(frame.nbytes) <= MAX_PLANE_BYTES
        check_decoded_size(f"{what}, page {number}", int(frame.nbytes), int(sum(counts)), is_plane=is_held)
        if in_segments:
            _check_segments(full_page(frame), f"{what}, page {number}")
        elif frame.keyframe.is_tiled:
            check_whole_in_memory(f"a tile of {what}, page {number}", _tile_bytes(frame.keyframe))


def check_tags(page: Any, what: str) -> None:
    """Refuse a page whose sizes are no whole numbers above 0, as only damaged files have them, or without a number type."""
    lowest = {"imagewidth": 1, "imagelength": 1, "samplesperpixel": 1}
    lowest |= {"tilewidth": 1, "tilelength": 1} if page.is_tiled else {"rowsperstrip": 0}
    found = {name: getattr(page, name) for name in lowest}
    wrong = {name: value for name, value in found.items() if not isinstance(value, int) or value < lowest[name]}
    if wrong:
        raise DataError(f"{what} has {wrong!s:.200}; expected whole numbers above 0. Copy it again from its source.")
    if page.dtype is None:
        raise DataError(f"{what} has pixels of no known number type. Save it as 8-, 16- or 32-bit TIFF.")


def check_palette(page: Any, pixels: NDArray[Any], what: str) -> None:
    """Refuse pixels that name colours which the page's palette does not have."""
    colours = page.colormap
    has_colours = colours.ndim == 2 and len(colours) == 3
    if not has_colours or pixels.dtype.kind != "u" or int(pixels.max(initial=0)) >= colours.shape[1]:
        raise DataError(
            f"{what} has {pixels.dtype} pixels up to {pixels.max(initial=0)} and a palette of sizes {colours.shape}; expected "
            "(3, n) with a colour for each pixel. Copy it again from its source."
        )


def _tile_bytes(page: Any) -> int:
    return int(page.tilelength) * int(page.tilewidth) * int(page.dtype.itemsize)


def _check_segments(page: Any, what: str) -> None:
    """Check the part of a page that is in memory at once: a strip, or a row of tiles."""
    rows = int(page.tilelength) if page.is_tiled else min(int(page.rowsperstrip), int(page.imagelength))
    width = max(int(page.tilewidth), int(page.imagewidth)) if page.is_tiled else int(page.imagewidth)
    check_whole_in_memory(
        f"a {'row of tiles' if page.is_tiled else 'strip'} of {what}", rows * width * int(page.dtype.itemsize)
    )


def _decoded(
    pages: Sequence[Any], depth: int, num_channels: int, channel: int | None, what: str, notes: list[str]
) -> Iterator[NDArray[Any]]:
    """Decode pages in order, each slice to one gray (y, x) plane."""
    separate = num_channels > 1 and len(pages) == depth * num_channels  # one page per channel

    def decode(number: int) -> tuple[NDArray[Any], list[str]]:
        if separate:
            group = pages[number * num_channels : (number + 1) * num_channels]
            stack = np.stack([_page_pixels(page, [])[0] for page in group], axis=-1)
            return _to_gray(stack, channel)
        return _page_pixels(pages[number], [], channel)

    count = depth if separate else len(pages)
    if count != depth:
        raise DataError(f"{what} has {len(pages)} pages for {depth} slices; expected one page for each slice.")
    for number in range(depth):  # not in parallel, because pages share the file's position; the strips of a page are
        plane, found = decode(number)
        notes.extend(found)
        yield plane


def _page_pixels(frame: Any, notes: list[str], channel: int | None = None) -> tuple[NDArray[Any], list[str]]:
    page = full_page(frame)
    pixels: NDArray[Any] = page.asarray(maxworkers=_DECODE_THREADS)
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        check_palette(page, pixels, shown(page.parent.filename))
        pixels = np.moveaxis(page.colormap[:, pixels], 0, -1)
        notes.append("palette")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
        notes.append("1-bit pixels became 0 and 255")
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels
        notes.append("inverted, because the file says that 0 is white")
    if pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3:
        pixels, more = _to_gray(pixels, channel)
        notes = notes + more
    if pixels.ndim != 2:
        raise DataError(
            f"{shown(page.parent.filename)} has a page of axes {page.axes} and sizes {page.shape}; expected rows and columns. "
            "Copy it again from its source."
        )
    return pixels, notes


def _to_gray(pixels: NDArray[Any], channel: int | None) -> tuple[NDArray[Any], list[str]]:
    if channel is not None:
        return np.ascontiguousarray(pixels[..., channel]), [f"channel {channel} taken"]
    gray, how = gray_from_channels(pixels)
    return np.ascontiguousarray(gray), [] if how == "gray" else [how]


def _voxel_size(tif: tifffile.TiffFile, page: Any) -> tuple[float, float, float] | None:
    """Read ImageJ's unit, spacing and resolution, in nm; the resolution tags of other programs cannot be trusted."""
    meta = tif.imagej_metadata or {}
    factor = _NM_PER_UNIT.get(str(meta.get("unit", "")))
    if factor is None:
        return None
    spacings = []
    try:
        for tag in ("YResolution", "XResolution"):
            value = page.tags.get(tag)
            if value is None or not value.value[0]:
                return None
            spacings.append(factor * value.value[1] / value.value[0])
        return (factor * float(meta.get("spacing", 1.0)), spacings[0], spacings[1])
    except (TypeError, ValueError, IndexError):
        return None  # what the tags hold is no resolution
