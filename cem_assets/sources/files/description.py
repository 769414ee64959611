"""What a file of a foreign archive is: its name here, its address there, its size and checksum, and limits on getting it.

Only facts and their checks. Lists of such files come from `cem_assets.sources.archives`, their bytes from
`cem_assets.sources.files.transfer`.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cem_assets.errors import DataError

DIGEST_DIGITS = {"sha256": 64, "sha1": 40, "md5": 32, "git-sha1": 40}
"""Hex digits of each algorithm; "git-sha1" is git's name of a blob, sha1 over `blob <size>`, a NUL and the bytes."""

_BLOCK = 1 << 20
_MAX_PART_BYTES = 255


def check_file_path(path: str) -> str:
    """Return a relative path unchanged, or refuse one that could leave its folder or break a file system.

    Raises:
        DataError: It is empty, absolute or too long, or has '.', '..', a backslash or invisible characters.
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
        DataError: The algorithm is not known or the digits are not as many.
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
        name: Relative path it gets here; never taken from a redirect or a header.
        url: https://, http:// or ftp:// address.
        num_bytes: Its size, where the archive says so.
        checksum: `algorithm:hex` (see `DIGEST_DIGITS`), where the archive or a registry says so.
        licence: As the archive says it; empty where it does not.
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
    """How much is accepted of a server, and how long it is waited for.

    Attributes:
        max_bytes: Largest accepted file.
        num_attempts: Tries of one address that bring nothing new, before the next mirror is asked.
        backoff_s: Pause before the second try; doubled for each further one, at most 60.
        timeout_s: For the connection, and between two packets; slowness is told after this time.
        min_bytes_per_s: A slower server is left, its bytes kept.
    """

    max_bytes: int = 200 * 10**9
    num_attempts: int = 5
    backoff_s: float = 1.0
    timeout_s: float = 30.0
    min_bytes_per_s: float = 1000.0


def file_digests(path: Path, checksum: str | None) -> tuple[str, str | None]:
    """Hash a file in one pass.

    Args:
        checksum: `algorithm:hex` that is expected, or None.

    Returns:
        Its sha256, and its digest by the expected algorithm (None where nothing is expected).
    """
    sha256 = hashlib.sha256()
    other = None
    if checksum is not None:
        algorithm = check_checksum(checksum)[0]
        # md5 and sha1 are what archives publish; they tell damage, and the sha256 is recorded beside them.
        other = hashlib.new("sha1" if algorithm == "git-sha1" else algorithm, usedforsecurity=False)
        if algorithm == "git-sha1":
            other.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            sha256.update(block)
            if other is not None:
                other.update(block)
    return sha256.hexdigest(), None if other is None else other.hexdigest()
