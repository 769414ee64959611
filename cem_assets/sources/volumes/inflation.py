"""Undoing compressions of foreign bytes without ever going beyond a limit.

What decoders of chunk formats would unpack without a bound is measured here first. Fetching is
`remote_objects`; turning chunks into voxels is `remote_volumes`.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs

from cem_assets.errors import DataError


def inflate(encoding: str, data: bytes, max_bytes: int, what: str) -> bytes:
    """Undo a compression, never beyond a limit.

    Args:
        encoding: "gzip", "zlib", "deflate", "br", "zstd", "bzip2", "xz" or "raw".
        data: Compressed bytes.
        max_bytes: Most bytes that may come out.
        what: Name for errors.

    Raises:
        DataError: The data are damaged, larger than allowed, or the compression is not known.
    """
    try:
        if encoding in ("raw", "identity"):
            out = data
        elif encoding in ("gzip", "zlib", "deflate"):
            out = _bounded(lambda: zlib.decompressobj(wbits=47), data, max_bytes)
        elif encoding == "bzip2":
            out = _bounded(bz2.BZ2Decompressor, data, max_bytes)
        elif encoding == "xz":
            out = _bounded(lambda: lzma.LZMADecompressor(memlimit=1 << 27), data, max_bytes)
        elif encoding in ("br", "zstd"):
            decode: Any = imagecodecs.brotli_decode if encoding == "br" else imagecodecs.zstd_decode
            out = bytes(decode(data, out=max_bytes))
        else:
            raise DataError(f"compression {encoding!r} is not known; expected gzip, zlib, br, zstd or bzip2")
    except (zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{what} cannot be unpacked within {max_bytes} bytes: {type(error).__name__}: {error}. Check the source."
        ) from error
    if len(out) > max_bytes:
        raise DataError(f"{what} unpacks to {len(out)} bytes; expected at most {max_bytes}.")
    return out


def _bounded(make: Callable[[], Any], data: bytes, max_bytes: int) -> bytes:
    """Inflate members that follow each other, as gzip and bzip2 allow, stopping at the limit."""
    out = bytearray()
    while data:
        member = make()
        out += member.decompress(data, max_bytes - len(out) + 1)
        if len(out) > max_bytes:
            raise DataError(f"it is larger than {max_bytes} bytes")
        if not member.eof:
            raise DataError("it ends too early")
        data = member.unused_data
    return bytes(out)


def check_inflation(compressor: str, data: bytes, max_bytes: int, what: str) -> None:
    """Refuse a chunk that would unpack to more than its voxels take.

    Args:
        compressor: As `inflate`, or "blosc", whose header says how much comes out and is believed by its decoder.
        data: The chunk.
        max_bytes: Bytes of the chunk's voxels.
        what: Name for errors.

    Raises:
        DataError: It is larger, or damaged.
    """
    if compressor == "blosc":
        if len(data) < 16:
            raise DataError(f"{what} has {len(data)} bytes; expected a blosc header of 16. Check the source.")
        claimed = struct.unpack_from("<I", data, 4)[0]
        if claimed > max_bytes:
            raise DataError(f"{what} unpacks to {claimed} bytes; expected at most {max_bytes}. Check the source.")
    elif compressor != "raw":
        inflate(compressor, data, max_bytes, what)
