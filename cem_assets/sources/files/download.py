"""Downloading one file whole: resumed where it broke off, tried again, then taken from its mirrors, and checked by its digest.

Every download of this package goes through here: files of the catalogue with `download`, and single files whose sha256 is known
with `download_url`. The bytes themselves come from `cem_assets.sources.files.origins`, which also says what a mirror can be.

What one origin has sent is continued from another origin only where a checksum decides at the end. Without a checksum a file is
continued only from the same origin, and only as long as that origin names the same strong entity tag.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cem_assets.errors import DataError
from cem_assets.sources.files.description import DownloadLimits, RemoteFile, check_checksum, file_digests
from cem_assets.sources.files.origins import OpenOrigin, open_origin

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there so far, and the size of the whole file where it is known."""

_MAX_BACKOFF_S = 60.0
_NEW_BYTES = 16 << 20
"""A server that has sent this many new bytes gets its full number of tries again: a large file may break off more than five
times."""
_SHA256_DIGITS = 64
_FEWEST_DIGITS = 8


@dataclass(frozen=True)
class FailedOrigin:
    """An origin that did not give the file.

    Attributes:
        address: Where it was asked for.
        problem: Why it failed, in words.
        is_contents: True where the origin answered, but with another size or digest than expected.
    """

    address: str
    problem: str
    is_contents: bool = False


@dataclass(frozen=True)
class Downloaded:
    """A file that has arrived and was checked.

    Attributes:
        sha256: Hex digest of its bytes.
        origin: The address that served its last byte; empty where the file was there already.
        failed: Origins that failed before that one, in the order in which they were asked.
    """

    path: Path
    sha256: str
    origin: str
    failed: tuple[FailedOrigin, ...]


class _ContentsError(ValueError):
    """The origin serves other contents than expected, and would serve them again."""


class _RestartError(ValueError):
    """The bytes so far do not belong to this file; a download from the first byte on may succeed."""


def download(
    file: RemoteFile,
    mirrors: Sequence[str],
    folder: Path,
    limits: DownloadLimits | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """Download a file from its address or, in order, from its mirrors.

    Args:
        mirrors: Addresses of the same file: https, http, ftp, `file://` below CEM_ASSETS_MIRROR_FOLDERS, or `s3://`.
        folder: The file is written here under its own name. `<name>.part` beside it holds what has come so far; where the
            file has a checksum, the next call continues it.

    Raises:
        DataError: The file is larger than allowed, or every origin that answered serves other contents.
        ConnectionError: No origin gave the file; the error names all of them with their reasons.
    """
    limits = limits or DownloadLimits()
    if file.num_bytes is not None and file.num_bytes > limits.max_bytes:
        raise DataError(f"{file.url} has {file.num_bytes:,} bytes; expected at most {limits.max_bytes:,}. Raise the limit.")
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.checksum is not None and target.is_file():
        sha256, digest = file_digests(target, file.checksum)
        if digest == check_checksum(file.checksum)[1]:
            return Downloaded(target, sha256, "", ())
    part = target.with_name(f"{target.name}.part")
    if file.checksum is None:
        part.unlink(missing_ok=True)
    failed: list[FailedOrigin] = []
    for origin in (file.url, *mirrors):
        attempts = _Attempts(file, origin, part, limits, progress or (lambda done, total: None))
        try:
            sha256 = attempts.finish()
        except (ConnectionError, PermissionError, FileNotFoundError, DataError, _ContentsError) as error:
            failed.append(FailedOrigin(origin, " ".join(str(error).split())[:500], isinstance(error, _ContentsError)))
            logger.warning("%s from %s: %s", file.name, origin, failed[-1].problem)
            if file.checksum is None:
                part.unlink(missing_ok=True)  # nothing could tell whether the next origin's bytes belong to these
            continue
        part.replace(target)
        return Downloaded(target, sha256, origin, tuple(failed))
    told = "; ".join(f"{item.address}: {item.problem}" for item in failed)
    if all(item.is_contents for item in failed):
        raise DataError(f"{file.name} is not what was expected anywhere: {told}. The file was replaced or the row is wrong.")
    raise ConnectionError(
        f"{file.name} could not be fetched: {told}. Run again later, add a mirror, or download the file "
        "elsewhere and give that copy."
    )


def download_url(
    url: str,
    sha256: str,
    folder: Path,
    name: str,
    max_bytes: int = DownloadLimits.max_bytes,
    min_digits: int = _SHA256_DIGITS,
) -> Path:
    """Download a single file whose sha256 is known, or find it in the folder from an earlier time.

    Args:
        url: An https or http address.
        sha256: Hex digest that the contents must have. Where `min_digits` allows it, its first digits are enough, but only over
            https: torch's own downloads rest on the first 8.
        name: What to call the file in the folder; it is never taken from the URL or the server.
        min_digits: The fewest digits of the sha256 that are accepted, at least 8.

    Returns:
        The file, with its digest checked.

    Raises:
        DataError: The address or the digest is malformed, or the contents are too large or have another digest.
        ConnectionError: The file could not be fetched.
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(f"cannot download {url!r}; expected an https:// address. Give a local file as a path instead.")
    min_digits = max(min_digits, _FEWEST_DIGITS)
    if not re.fullmatch(rf"[0-9a-f]{{{min_digits},{_SHA256_DIGITS}}}", sha256):
        fewest = "" if min_digits == _SHA256_DIGITS else f"{min_digits} to "
        raise DataError(
            f"cannot download {url}: it needs the sha256 of its contents ({fewest}{_SHA256_DIGITS} hex digits), found "
            f"{sha256!r}. Compute it from a copy you trust: sha256sum FILE."
        )
    is_whole = len(sha256) == _SHA256_DIGITS
    if not is_whole and not url.startswith("https://"):
        raise DataError(
            f"cannot download {url} with {len(sha256)} digits of its sha256; expected all {_SHA256_DIGITS} digits, or an "
            "https:// address."
        )
    file = RemoteFile(name, url, checksum=f"sha256:{sha256}" if is_whole else None)
    found = download(file, (), folder, DownloadLimits(max_bytes=max_bytes))
    try:
        check_sha256(found.sha256, sha256, url)
    except DataError:
        found.path.unlink()
        raise
    return found.path


def check_sha256(found: str, expected: str, what: str) -> None:
    """Refuse a file whose digest does not begin as expected.

    Args:
        found: The file's sha256, 64 hex digits.
        expected: All digits or the first ones; an empty text expects nothing.
        what: The file, for messages.

    Raises:
        DataError: The digest begins otherwise.
    """
    if not found.startswith(expected):
        begins = "" if len(expected) == len(found) else "one that begins with "
        raise DataError(f"{what} has sha256 {found}, expected {begins}{expected}. It is damaged or another file: get it again.")


class _Attempts:
    """The tries of one origin. All state is in the partial file, so that the next origin can continue it."""

    def __init__(self, file: RemoteFile, origin: str, part: Path, limits: DownloadLimits, progress: Progress) -> None:
        self._file, self._origin, self._part, self._limits, self._progress = file, origin, part, limits, progress
        self._tag = ""
        self._is_mixed = self._size() > 0  # bytes of an earlier connection, whose file may have been another

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def finish(self) -> str:
        """Complete the partial file, and return its sha256."""
        furthest, num_failed = self._size(), 0
        while True:
            try:
                self._go_on()
                return self._checked()
            except _RestartError as error:
                if not self._is_mixed:
                    raise _ContentsError(str(error)) from error
                logger.info("%s: begun anew from %s: %s", self._file.name, self._origin, error)
                self._part.unlink(missing_ok=True)
                self._is_mixed, self._tag = False, ""
            except ConnectionError as error:
                size = self._size()
                if size >= furthest + _NEW_BYTES:
                    furthest, num_failed = size, 0
                num_failed += 1
                self._is_mixed = size > 0
                if num_failed >= self._limits.num_attempts:
                    raise ConnectionError(f"{error} ({size:,} bytes so far, try {num_failed})") from error
                time.sleep(min(self._limits.backoff_s * 2 ** (num_failed - 1), _MAX_BACKOFF_S))

    def _go_on(self) -> None:
        """Ask the origin once for the rest of the file, and append what comes."""
        start = self._size()
        if start and self._file.checksum is None and not self._tag:
            start = 0  # nothing would tell whether the parts belong together
        with open_origin(self._origin, start, self._tag, self._limits.timeout_s) as opened:
            if opened.start not in (0, start):
                raise _RestartError(f"asked for bytes from {start:,}, found bytes from {opened.start:,}")
            self._check_size(opened, start)
            self._tag = opened.tag
            if opened.start == 0:
                self._is_mixed = False
            with self._part.open("r+b" if opened.start else "wb") as handle:
                handle.seek(opened.start)
                self._append(opened, handle.write)
        if opened.num_bytes is not None and self._size() < opened.num_bytes:
            raise ConnectionError(f"it broke off after {self._size():,} of {opened.num_bytes:,} bytes")

    def _check_size(self, opened: OpenOrigin, start: int) -> None:
        found, expected = opened.num_bytes, self._file.num_bytes
        if found is None:
            return
        if expected is not None and found != expected:
            raise _ContentsError(f"it has {found:,} bytes; expected {expected:,}")
        if found > self._limits.max_bytes:
            raise _ContentsError(f"it has {found:,} bytes; expected at most {self._limits.max_bytes:,}")
        if start > found:
            raise _RestartError(f"it has {found:,} bytes, fewer than the {start:,} that came")

    def _append(self, opened: OpenOrigin, write: Callable[[bytes], object]) -> None:
        done, since = opened.start, time.monotonic()
        most = self._limits.max_bytes if opened.num_bytes is None else opened.num_bytes
        window = 0  # bytes since `since`; a server is judged by each stretch of `timeout_s`, not by its first rush
        for block in opened.blocks:
            done += len(block)
            window += len(block)
            if done > most:
                raise _ContentsError(f"it sends more than {most:,} bytes; expected at most that")
            write(block)
            self._progress(done, opened.num_bytes)
            seconds = time.monotonic() - since
            if seconds >= self._limits.timeout_s:
                if window < self._limits.min_bytes_per_s * seconds:
                    raise ConnectionError(f"it is slow: {window:,} bytes in {seconds:.1f} s")
                since, window = time.monotonic(), 0

    def _checked(self) -> str:
        size, expected = self._size(), self._file.num_bytes
        if expected is not None and size < expected:
            raise ConnectionError(f"it broke off after {size:,} of {expected:,} bytes")
        if expected is not None and size > expected:
            raise _RestartError(f"it has {size:,} bytes; expected {expected:,}")
        sha256, digest = file_digests(self._part, self._file.checksum)
        if self._file.checksum is not None:
            algorithm, wanted = check_checksum(self._file.checksum)
            if digest != wanted:
                error = _RestartError(f"it has {algorithm} {digest}, expected {wanted}")
                if not self._is_mixed:
                    self._part.unlink()  # the next origin must not continue contents known to be wrong
                raise error
        return sha256
