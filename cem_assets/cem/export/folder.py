"""The folder, or bucket prefix, an export goes to: one export each, files whole, kept where they are right, checksums last.

What goes into it is `cem_assets.cem.export.forms`.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from cem_assets.cem.export.facts import ExportedFile
from cem_assets.store.store import Store

MARKER = "release.json"
CHECKSUMS = "SHA256SUMS"

_NUM_THREADS = 8
"""Requests under way at once: small files wait for the disk or the network, hardly for the processor."""
_STAGING = ".staging"
"""Where a local store writes what is not whole yet."""
_MAX_MARK_BYTES = 1 << 16


class ExportFolder:
    """Where files of an export are put. To be made once for each run."""

    def __init__(self, target: Store, scratch: Path, mark: dict[str, str]) -> None:
        """Take the folder for an export, or go on with it.

        Args:
            target: The folder.
            scratch: A local folder for the list of checksums as it grows.
            mark: What is exported; a folder with another mark is left alone.

        Raises:
            FileExistsError: It holds another export, or anything else.
        """
        self._target, self._sums = target, scratch / CHECKSUMS
        self.num_files = self.num_bytes = self.num_kept = 0
        text = (json.dumps(mark, sort_keys=True) + "\n").encode()
        size = target.size(MARKER)
        self._may_hold_files = size is not None
        if size is None:
            if names := [name for name in target.children("") if name != _STAGING]:
                raise FileExistsError(f"{target.url} is not empty (it has {names[0]!r}); export to a new folder.")
            if not target.create(MARKER, text):
                raise FileExistsError(f"{target.url} was just taken by another export; export to a new folder.")
        elif size > _MAX_MARK_BYTES or (found := target.read(MARKER)) != text:
            shown = found.decode(errors="replace").strip()[:200] if size <= _MAX_MARK_BYTES else f"{size} bytes"
            raise FileExistsError(f"{target.url} holds another export ({shown}); export to an empty folder.")
        self._sums.write_bytes(b"")
        self._note([ExportedFile(MARKER, len(text), hashlib.sha256(text).hexdigest())])

    def put(self, path: str, data: bytes | Path, sha256: str = "") -> ExportedFile:
        """Write a file, unless it is there with these bytes.

        Args:
            path: Relative to the folder.
            data: Bytes, or a local file.
            sha256: Of a local file, where it is known.
        """
        written, is_kept = self._put(path, data, sha256)
        self._note([written], int(is_kept))
        return written

    def put_all(self, files: Sequence[tuple[str, bytes]], pool: ThreadPoolExecutor) -> list[ExportedFile]:
        """Write several small files at once; the answers are in their order."""
        done = list(pool.map(lambda item: self._put(item[0], item[1], ""), files))
        self._note([written for written, _ in done], sum(is_kept for _, is_kept in done))
        return [written for written, _ in done]

    @staticmethod
    def threads() -> ThreadPoolExecutor:
        """Make the threads that `put_all` takes."""
        return ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="export")

    def finish(self) -> None:
        """Write the checksums, in the form of `sha256sum --check`: an export that has them is complete."""
        self.num_files += 1
        self.num_bytes += self._sums.stat().st_size
        self.num_kept += self._put(CHECKSUMS, self._sums, "")[1]
        if self._target.is_local:
            with suppress(OSError):  # a killed run may have left a file there, which has no name in the export
                (Path(self._target.url) / _STAGING).rmdir()

    def _put(self, path: str, data: bytes | Path, sha256: str) -> tuple[ExportedFile, bool]:
        if isinstance(data, Path):
            num_bytes, digest = data.stat().st_size, sha256 or sha256_of(data)
        else:
            num_bytes, digest = len(data), hashlib.sha256(data).hexdigest()
        is_kept = self._may_hold_files and self._target.size(path) == num_bytes and self._target.sha256(path) == digest
        if not is_kept:
            self._target.put(path, data)
        return ExportedFile(path, num_bytes, digest), is_kept

    def _note(self, files: Sequence[ExportedFile], num_kept: int = 0) -> None:
        with open(self._sums, "a", encoding="ascii", newline="\n") as handle:
            handle.writelines(f"{item.sha256}  {item.path}\n" for item in files)
        self.num_files += len(files)
        self.num_bytes += sum(item.num_bytes for item in files)
        self.num_kept += num_kept


def sha256_of(path: Path) -> str:
    """Hash a local file, a few MiB at a time."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
