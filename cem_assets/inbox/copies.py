"""Local copies of a dataset's files, made while the files are hashed, so that every byte is fetched only once from a bucket.

A dataset's version is the sha256 of its files, and most formats are read from a local file. Without these copies a volume would
be fetched twice, and a slice three times: for its digest, to tell it from a volume, and to read it. A file for which there is
no room is fetched again when its turn comes. Zarr stores are never copied, because their chunks are read from the bucket
itself.
"""

import itertools
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from cem_assets.formats import kind_of
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

_BESIDE_HEADERS = (".raw", ".raw.gz", ".gz", ".bz2")
"""Suffixes of files that hold the voxels for a header file beside them."""
_SHARE_OF_FREE_DISK = 4
"""Copies take at most a fourth of the free disk, because compressed files must be unpacked beside them."""


class SourceCopies:
    """Copies of some objects of a bucket in a scratch folder. Several threads may fill it at once."""

    def __init__(self, store: Store, folder: Path, room_bytes: int | None = None) -> None:
        """Make a folder for copies.

        Args:
            store: A remote store; the files of a local one need no copies.
            folder: A folder in scratch space, which its maker removes.
            room_bytes: Bytes that the copies may take; None takes a fourth of the free disk.
        """
        self._store = store
        self._folder = folder / "sources"
        self._folder.mkdir()
        self._room = shutil.disk_usage(folder).free // _SHARE_OF_FREE_DISK if room_bytes is None else room_bytes
        self._numbers = itertools.count()
        self._copies: dict[str, tuple[Path, int]] = {}
        self._lock = Lock()

    def sha256(self, key: str, num_bytes: int) -> str:
        """Return the sha256 of an object, and keep a copy if its format is read from a file and there is room for it.

        Args:
            num_bytes: Its size as it was listed.
        """
        name = key.rsplit("/", 1)[-1]
        if kind_of(name) is None and not name.lower().endswith(_BESIDE_HEADERS):  # such as a chunk of a Zarr store, or a text
            return self._store.sha256(key)
        with self._lock:
            has_room = num_bytes <= self._room
            self._room -= num_bytes if has_room else 0
        if not has_room:
            logger.info("%s (%d bytes) has no room among the copies and is fetched again when it is read", key, num_bytes)
            return self._store.sha256(key)
        target = self._folder / str(next(self._numbers)) / name  # file names may be equal, and say the format
        target.parent.mkdir()
        digest = self._store.download(key, target)
        with self._lock:
            self._copies[key] = (target, num_bytes)
        return digest

    def of(self, key: str) -> Path | None:
        """Return an object's copy, which has the object's file name; None where there is no copy."""
        with self._lock:
            path, _ = self._copies.get(key, (None, 0))
        return path if path is not None and path.is_file() else None

    def forget(self, keys: Iterable[str]) -> None:
        """Remove copies that are not read again."""
        for key in keys:
            with self._lock:
                path, num_bytes = self._copies.pop(key, (None, 0))
                self._room += num_bytes
            if path is not None:
                path.unlink(missing_ok=True)
