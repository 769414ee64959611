"""The folder or bucket prefix that an export is written to.

It holds one export. Files appear only when they are complete, files that are there already and right are kept, and the
checksums are written last.
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
"""Number of requests at the same time, because small files wait for the disk or the network and hardly for the processor."""
_STAGING = ".staging"
"""Folder in which a local store keeps files that are not complete yet."""
_MAX_MARK_BYTES = 1 << 16


class ExportFolder:
    """The target of an export. Make one for each run."""

    def __init__(self, target: Store, scratch: Path, mark: dict[str, str]) -> None:
        """Begin an export in a folder, or continue it.

        Args:
            target: The folder, as a store.
            scratch: A local folder for the growing list of checksums.
            mark: Says what is exported. A folder with another mark is not changed.

        Raises:
            FileExistsError: The folder has another export, or other files.
        """
        self._target, self._sums = target, scratch / CHECKSUMS
        self.num_files = self.num_bytes = self.num_kept = 0
        text = (json.dumps(mark, sort_keys=True) + "\n").encode()
        size = target.size(MARKER)
        self._may_hold_files = size is not None
        if size is None:
            if names := [name for name in target.children("") if name != _STAGING]:
                raise FileExistsError(f"{target.url} is not empty (it has {names[0]!r}). Export to a new folder.")
            if not target.create(MARKER, text):
                raise FileExistsError(f"another export to {target.url} has just begun. Export to a new folder.")
        elif size > _MAX_MARK_BYTES or (found := target.read(MARKER)) != text:
            shown = found.decode(errors="replace").strip()[:200] if size <= _MAX_MARK_BYTES else f"{size} bytes"
            raise FileExistsError(f"{target.url} holds another export ({shown}). Export to an empty folder.")
        self._sums.write_bytes(b"")
        self._note([ExportedFile(MARKER, len(text), hashlib.sha256(text).hexdigest())])

    def put(self, path: str, data: bytes | Path, sha256: str = "") -> ExportedFile:
        """Write a file, unless it is there with the same bytes.

        Args:
            path: Path relative to the folder.
            data: The bytes, or a local file that holds them.
            sha256: Digest of the local file, if it is known already.
        """
        written, is_kept = self._put(path, data, sha256)
        self._note([written], int(is_kept))
        return written

    def put_all(self, files: Sequence[tuple[str, bytes]], pool: ThreadPoolExecutor) -> list[ExportedFile]:
        """Write several small files at the same time, and return them in their order."""
        done = list(pool.map(lambda item: self._put(item[0], item[1], ""), files))
        self._note([written for written, _ in done], sum(is_kept for _, is_kept in done))
        return [written for written, _ in done]

    @staticmethod
    def threads() -> ThreadPoolExecutor:
        """Make a pool of threads for `put_all`."""
        return ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="export")

    def finish(self) -> None:
        """Write the checksums in the form that `sha256sum --check` reads. An export that has them is complete."""
        self.num_files += 1
        self.num_bytes += self._sums.stat().st_size
        self.num_kept += self._put(CHECKSUMS, self._sums, "")[1]
        if self._target.is_local:
            with suppress(OSError):  # a killed run may have left a file there, which is not part of the export
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
