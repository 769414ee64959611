"""Getting one file whole: resumed, tried again, then from its mirrors, with one digest whoever served which byte.

Own code instead of pooch, which the smaller downloads use (`cem_assets.sources.files.single`): pooch keeps no part of a broken
download, knows one address per file, and no limit on size or slowness. Where bytes come from is
`cem_assets.sources.files.origins`;
who remembers dead sources is `cem_assets.operations.source_health`.

Bytes of one origin are continued from another only where a checksum decides at the end; without one, a file goes on only from
the same origin under the same strong entity tag.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cem_assets.errors import DataError
from cem_assets.sources.files.description import DownloadLimits, RemoteFile, check_checksum, file_digests
from cem_assets.sources.files.origins import Opened, open_origin

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]

_MAX_BACKOFF_S = 60.0
_NEW_BYTES = 16 << 20
"""Bytes beyond the furthest point so far that let a flaky server begin its tries anew; large files need more than five."""


@dataclass(frozen=True)
class Tried:
    """An origin that did not give the file.

    Attributes:
        origin: Its address.
        problem: Why, in words.
        is_contents: Whether it answered, but with another size or digest than expected.
    """

    origin: str
    problem: str
    is_contents: bool = False


@dataclass(frozen=True)
class Fetched:
    """A file that arrived.

    Attributes:
        path: Where it lies.
        sha256: Hex digest of its bytes.
        origin: Address that served its last byte; empty where it lay there already.
        tried: Origins that failed before, in order.
    """

    path: Path
    sha256: str
    origin: str
    tried: tuple[Tried, ...]


class _ContentsError(ValueError):
    """An origin serves other contents; another try of it would not help."""


def fetch(
    file: RemoteFile,
    mirrors: Sequence[str],
    folder: Path,
    limits: DownloadLimits | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Download a file from its address or, in order, its mirrors.

    Args:
        file: Which, and what is known of its size and checksum.
        mirrors: Addresses of the same file: https, http, ftp, `file://` below CEM_ASSETS_MIRROR_FOLDERS, `s3://`.
        folder: Where it gets its name; `<name>.part` beside it is what came so far, and is continued by the next call
            where the file has a checksum.
        limits: Sizes, tries and waits.

    Returns:
        The file, whole and checked.

    Raises:
        DataError: It is larger than allowed, or every origin that answered serves other contents.
        ConnectionError: No origin gave it; all of them are named with their reasons.
    """
    limits = limits or DownloadLimits()
    if file.num_bytes is not None and file.num_bytes > limits.max_bytes:
        raise DataError(f"{file.url} has {file.num_bytes:,} bytes; expected at most {limits.max_bytes:,}. Raise the limit.")
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.checksum is not None and target.is_file():
        sha256, digest = file_digests(target, file.checksum)
        if digest == check_checksum(file.checksum)[1]:
            return Fetched(target, sha256, "", ())
    part = target.with_name(f"{target.name}.part")
    if file.checksum is None:
        part.unlink(missing_ok=True)
    tried: list[Tried] = []
    for origin in (file.url, *mirrors):
        attempt = _Attempts(file, origin, part, limits, progress or (lambda done, total: None))
        try:
            sha256 = attempt.finish()
        except (ConnectionError, PermissionError, FileNotFoundError, ValueError) as error:
            tried.append(Tried(origin, " ".join(str(error).split())[:500], isinstance(error, _ContentsError)))
            logger.warning("%s from %s: %s", file.name, origin, tried[-1].problem)
            if file.checksum is None:
                part.unlink(missing_ok=True)  # nothing could tell whether the next origin's bytes belong to these
            continue
        part.replace(target)
        return Fetched(target, sha256, origin, tuple(tried))
    told = "; ".join(f"{item.origin}: {item.problem}" for item in tried)
    if all(item.is_contents for item in tried):
        raise DataError(f"{file.name} is not what was expected anywhere: {told}. The file was replaced or the row is wrong.")
    raise ConnectionError(f"{file.name} could not be fetched: {told}. Run again later, or add a mirror.")


class _Attempts:
    """The tries of one origin; the partial file is the state, also across origins."""

    def __init__(self, file: RemoteFile, origin: str, part: Path, limits: DownloadLimits, progress: Progress) -> None:
        self._file, self._origin, self._part, self._limits, self._progress = file, origin, part, limits, progress
        self._tag = ""
        self._is_mixed = self._size() > 0  # bytes of an earlier connection, whose file may have been another

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def finish(self) -> str:
        """Bring the partial file to its end; return its sha256."""
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
        """Ask once, and append what comes."""
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

    def _check_size(self, opened: Opened, start: int) -> None:
        found, expected = opened.num_bytes, self._file.num_bytes
        if found is None:
            return
        if expected is not None and found != expected:
            raise _ContentsError(f"it has {found:,} bytes; expected {expected:,}")
        if found > self._limits.max_bytes:
            raise _ContentsError(f"it has {found:,} bytes; expected at most {self._limits.max_bytes:,}")
        if start > found:
            raise _RestartError(f"it has {found:,} bytes, fewer than the {start:,} that came")

    def _append(self, opened: Opened, write: Callable[[bytes], object]) -> None:
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


class _RestartError(ValueError):
    """What came does not fit together; from its first byte on it may."""
