"""Limits on what foreign bytes unpack to.

tensorstore stops decoding zlib, gzip, bzip2, xz and zstd at the size of a chunk (seen with 0.1.86), and of a dictionary that
an xz chunk claims it only touches as much. Two cases are left for this module: what is unpacked outside of tensorstore (HTTP
bodies and parts of neuroglancer shards), and blosc, for which tensorstore allocates as much as the header of a chunk claims.
"""

import struct
import zlib

import imagecodecs

from cem_assets.errors import DataError


def inflate(encoding: str, data: bytes, max_bytes: int, what: str) -> bytes:
    """Decompress bytes, and stop at a limit.

    Args:
        encoding: The name that HTTP and neuroglancer use: "gzip", "zlib", "deflate", "br", "zstd", "raw" or "identity".
        max_bytes: The result may have at most this many bytes.
        what: What the bytes are, for error texts.

    Raises:
        DataError: The data are damaged, unpack to more than allowed, or the compression is not known.
    """
    try:
        if encoding in ("raw", "identity"):
            out = data
        elif encoding in ("gzip", "zlib", "deflate"):
            out = _inflate_members(data, max_bytes)
        elif encoding in ("br", "zstd"):
            decode = imagecodecs.brotli_decode if encoding == "br" else imagecodecs.zstd_decode
            out = bytes(decode(data, out=max_bytes))
        else:
            raise DataError(f"compression {encoding!r} is not known; expected gzip, zlib, br or zstd")
    except (zlib.error, RuntimeError, ValueError) as error:
        raise DataError(
            f"{what} cannot be unpacked within {max_bytes} bytes: {type(error).__name__}: {error}. Check the source."
        ) from error
    if len(out) > max_bytes:
        raise DataError(f"{what} unpacks to {len(out)} bytes; expected at most {max_bytes}. Check the source.")
    return out


def _inflate_members(data: bytes, max_bytes: int) -> bytes:
    """Inflate all members of a gzip file, which may have several, one after the other."""
    out = bytearray()
    while data:
        member = zlib.decompressobj(wbits=47)  # 47 recognizes both gzip and zlib
        out += member.decompress(data, max_bytes - len(out) + 1)
        if len(out) > max_bytes:
            raise DataError(f"it is larger than {max_bytes} bytes")
        if not member.eof:
            raise DataError("it ends too early")
        data = member.unused_data
    return bytes(out)


def check_blosc(data: bytes, max_bytes: int, what: str) -> None:
    """Refuse a blosc buffer whose header claims that it unpacks to more than a chunk has.

    Args:
        data: The buffer; its header is the first 16 bytes, and the size is the number in bytes 4 to 8.
        max_bytes: The size of the chunk's voxels.
        what: What the bytes are, for error texts.

    Raises:
        DataError: The header claims more than that, or is cut off.
    """
    if len(data) < 16:
        raise DataError(f"{what} has {len(data)} bytes; expected a blosc header of 16. Check the source.")
    claimed = struct.unpack_from("<I", data, 4)[0]
    if claimed > max_bytes:
        raise DataError(f"{what} unpacks to {claimed} bytes; expected at most {max_bytes}. Check the source.")
