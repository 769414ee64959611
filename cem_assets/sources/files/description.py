"""The description of a file of a foreign archive: its name here, its address there, size, checksum, and limits for downloading.

This module has only facts and their checks. `cem_assets.sources.archives` lists such files, and
`cem_assets.sources.files.download` gets their bytes.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cem_assets.errors import DataError

DIGEST_DIGITS = {"sha256": 64, "sha1": 40, "md5": 32, "git-sha1": 40}
"""Number of hex digits of each algorithm. "git-sha1" is git's name of a blob: sha1 over `blob <size>`, a NUL and the bytes."""

_BLOCK = 1 << 20
_MAX_PART_BYTES = 255


def check_file_path(path: str) -> str:
    """Return a relative path unchanged, or refuse one that could leave its folder or break a file system.

    Raises:
        DataError: The path is empty, absolute or too long, or has '.', '..', a backslash or invisible characters.
    """
    parts = path.split("/")
    if len(path) > 800 or any(part in ("", ".", "..") for part in parts) or "\\" in path or not path.isprintable():
        raise DataError(
            f"path {path[:120]!r} is not allowed; expected plain names joined by '/', none of them empty, '.' or '..', without "
            "backslashes and invisible characters."
        )
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        raise DataError(f"path {path[:120]!r} is not allowed; expected parts of at most {_MAX_PART_BYTES} bytes.")
    return path


def check_checksum(checksum: str) -> tuple[str, str]:
    """Split `algorithm:hex` into algorithm and lower-case digits.

    Raises:
        DataError: The algorithm is not known, or has another number of digits.
    """
    algorithm, _, digits = checksum.partition(":")
    if algorithm not in DIGEST_DIGITS or not re.fullmatch(rf"[0-9a-fA-F]{{{DIGEST_DIGITS[algorithm]}}}", digits):
        raise DataError(
            f"checksum {checksum[:90]!r} is malformed; expected "
            + " or ".join(f"{name}:<{number} hex digits>" for name, number in DIGEST_DIGITS.items())
            + "."
        )
    return algorithm, digits.lower()


@dataclass(frozen=True)
class RemoteFile:
    """A file of an archive.

    Attributes:
        name: The relative path that the file gets here; it is never taken from a redirect or a header.
        url: https://, http:// or ftp:// address.
        num_bytes: Its size, or None where the archive does not say it.
        checksum: `algorithm:hex` (see `DIGEST_DIGITS`), or None where neither the archive nor a registry says it.
        licence: In the archive's words; empty where it says nothing.
    """

    name: str
    url: str
    num_bytes: int | None = None
    checksum: str | None = None
    licence: str = ""

    def __post_init__(self) -> None:
        check_file_path(self.name)
        if self.checksum is not None:
            check_checksum(self.checksum)
        if self.num_bytes is not None and self.num_bytes < 0:
            raise DataError(f"{self.name} is said to have {self.num_bytes} bytes; expected 0 or more.")


@dataclass(frozen=True)
class DownloadLimits:
    """How much is accepted from a server, and how long to wait for it.

    Attributes:
        max_bytes: Size of the largest accepted file.
        num_attempts: So many tries of one address may bring nothing new before the next mirror is asked.
        backoff_s: Pause before the second try, in seconds. It doubles for each further try, up to 60.
        timeout_s: Longest wait for the connection and between two packets, in seconds; also the time over which the speed is
            measured.
        min_bytes_per_s: A slower server is given up, but what it has sent is kept.
    """

    max_bytes: int = 200 * 10**9
    num_attempts: int = 5
    backoff_s: float = 1.0
    timeout_s: float = 30.0
    min_bytes_per_s: float = 1000.0


def file_digests(path: Path, checksum: str | None) -> tuple[str, str | None]:
    """Hash a file in one pass.

    Args:
        checksum: The expected `algorithm:hex`, or None.

    Returns:
        The file's sha256, and its digest by the algorithm of the checksum (None where there is no checksum).
    """
    sha256 = hashlib.sha256()
    other = None
    if checksum is not None:
        algorithm = check_checksum(checksum)[0]
        # Archives publish md5 and sha1. They are good enough to notice damage, and the sha256 is recorded beside them.
        other = hashlib.new("sha1" if algorithm == "git-sha1" else algorithm, usedforsecurity=False)
        if algorithm == "git-sha1":
            other.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            sha256.update(block)
            if other is not None:
                other.update(block)
    return sha256.hexdigest(), None if other is None else other.hexdigest()
