"""Files of a local store. A file appears under its name only when it is complete, and survives a power cut from then on.

`cem_assets.store.store` uses these functions where the root is a local folder.
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
"""Folder under the root in which files are written before they are moved to their place. Readers ignore it."""

_BLOCK = 1 << 22
_HASHED_AT_ONCE = 1 << 18
_MOVE_ATTEMPTS = 50
"""An attempt fails only when another process removes the emptied folder at that very moment."""


@contextmanager
def staged(root: Path, key: str, data: bytes | Path) -> Iterator[Path]:
    """Write data to a file in the staging folder and sync it to the disk; the file is deleted when the block ends.

    Args:
        key: The object that the file will become; it is named in the error.
        data: The bytes, or a local file that holds them.

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
    """Move a staged file to its place and sync the folder, even while other processes remove emptied folders.

    Args:
        move: Called with the target; renames or links the staged file to it.
    """
    for attempt in range(_MOVE_ATTEMPTS):
        is_last = attempt == _MOVE_ATTEMPTS - 1
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError):
            # The folder or one above it was removed while pathlib made it; or there is a file of that name.
            if is_last or target.parent.is_file():
                raise NotADirectoryError(errno.ENOTDIR, f"{target.parent} cannot be made a folder") from None
            continue
        try:
            move(target)
        except FileNotFoundError:
            if is_last:
                raise
            continue
        with suppress(FileNotFoundError):  # another process has deleted the file already, and its folder with it
            _sync_folder(target.parent)
        return


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    """Hash a file in blocks that fit the cache of a core."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        while block := handle.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: str) -> list[tuple[str, int, float]]:
    """List all files under a folder, in order of path.

    Links to folders are not followed. A link to a file is listed with the size of that file.

    Args:
        folder: Absolute path. If it is a file, that file is listed.

    Returns:
        Absolute path, size in bytes and time of writing in seconds since 1970. Folders that are missing or cannot be read
        contribute nothing.
    """
    found: list[tuple[str, int, float]] = []
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                with suppress(FileNotFoundError):  # another process has just removed it
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
    """List the names of the folders directly in a folder, in order; links to folders do not count."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def delete_files(root: Path, keys: Iterator[str]) -> None:
    """Delete files and the folders that become empty: S3 has no folders without objects either."""
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
