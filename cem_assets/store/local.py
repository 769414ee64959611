"""Files of a local store, written so that they appear whole under their names and stay there after a power cut.

What a store is, local or in S3, is `cem_assets.store.store`.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STAGING = ".staging"
"""Folder of the root that no reader looks at."""

_BLOCK = 1 << 22
_HASHED_AT_ONCE = 1 << 18
_MOVE_ATTEMPTS = 50
"""Each one is lost only to another process that removes the emptied folder at that very moment."""


@contextmanager
def staged(root: Path, key: str, data: bytes | Path) -> Iterator[Path]:
    """Write data, synced, to a file beside the others of the root that no reader looks at.

    Args:
        root: Of the store.
        key: What it will be, for the error.
        data: Bytes, or a file whose contents to take.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    folder = root / STAGING
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uuid.uuid4().hex
    try:
        with open(path, "wb") as handle:
            if isinstance(data, Path):
                with open(data, "rb") as source:
                    shutil.copyfileobj(source, handle, _BLOCK)
            else:
                handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        yield path
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(folder).free
            raise OSError(
                errno.ENOSPC,
                f"the disk of the store {root} is full ({free / 2**20:.0f} MiB free) while writing {key}; "
                "nothing half-written is visible. Free space and run again",
            ) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def move_into_place(move: Callable[[Path], object], target: Path) -> None:
    """Move a staged file to its name, durably, even while another process removes emptied folders."""
    for attempt in range(_MOVE_ATTEMPTS):
        is_last = attempt == _MOVE_ATTEMPTS - 1
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError):
            # It or a folder above it was removed between two looks of pathlib; or a file stands in its place.
            if is_last or target.parent.is_file():
                raise NotADirectoryError(errno.ENOTDIR, f"{target.parent} cannot be made a folder") from None
            continue
        try:
            move(target)
        except FileNotFoundError:
            if is_last:
                raise
            continue
        with suppress(FileNotFoundError):  # somebody has taken the file already, folder and all
            _sync_folder(target.parent)
        return


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    """Hash a file, in blocks that stay in a core's own cache."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        while block := handle.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: str) -> list[tuple[str, int, float]]:
    """List all files under a folder, in order of path; links are not followed, but have the size of what they lead to.

    Args:
        folder: Absolute path; of a file, the file itself is listed.

    Returns:
        Absolute path, bytes and time of writing (seconds since 1970); nothing for what is not there or cannot be read.
    """
    found: list[tuple[str, int, float]] = []
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                with suppress(FileNotFoundError):  # somebody has just removed it
                    found.append((entry.path, *_size_and_time(entry)))
    if not found and Path(folder).is_file():
        about = Path(folder).stat()
        return [(folder, about.st_size, about.st_mtime)]
    return sorted(found)


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, float]:
    about = entry.stat(follow_symlinks=False)
    if not entry.is_symlink():
        return about.st_size, about.st_mtime
    try:
        return entry.stat().st_size, about.st_mtime
    except OSError:
        return 0, about.st_mtime


def list_folders(folder: str) -> list[str]:
    """List the names of the folders directly in a folder, in order; links are none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def delete_files(root: Path, keys: Iterator[str]) -> None:
    """Delete files, and the folders that are empty then, as folders without objects do not exist in S3."""
    for key in keys:
        path = root / key
        with suppress(FileNotFoundError):
            path.unlink()
        for folder in path.parents:
            if folder == root:
                break
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone already
                break
