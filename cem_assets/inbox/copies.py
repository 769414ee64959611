"""Local copies of a dataset's files, made while they are hashed, so that a bucket is asked for every byte once.

A dataset's version is the sha256 of its files, and most formats are read from a local file. Without these copies a volume
would be fetched twice, and slices three times (for their digest, to tell them from volumes, to read them). What has no room
here is fetched again when its turn comes; Zarr stores are never copied, their chunks are read where they lie.
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
"""Files that hold the voxels of a header beside them."""
_SHARE_OF_FREE_DISK = 4
"""A fourth of what is free: compressed files still have to be unpacked beside."""


class SourceCopies:
    """Copies of some objects of a bucket in a scratch folder. Safe to fill from several threads."""

    def __init__(self, store: Store, folder: Path, room_bytes: int | None = None) -> None:
        """Make a place for copies.

        Args:
            store: A remote one; of a local store nothing needs to be copied.
            folder: In scratch space; whoever made it removes it.
            room_bytes: What the copies may take; default a fourth of the free disk.
        """
        self._store = store
        self._folder = folder / "sources"
        self._folder.mkdir()
        self._room = shutil.disk_usage(folder).free // _SHARE_OF_FREE_DISK if room_bytes is None else room_bytes
        self._numbers = itertools.count()
        self._copies: dict[str, tuple[Path, int]] = {}
        self._lock = Lock()

    def sha256(self, key: str, num_bytes: int) -> str:
        """Hash an object, and keep it where it is of a kind that is read from a file, and there is room for it.

        Args:
            num_bytes: Its size as it was listed.

        Returns:
            Hex digest of the bytes that were kept.
        """
        name = key.rsplit("/", 1)[-1]
        if kind_of(name) is None and not name.lower().endswith(_BESIDE_HEADERS):  # a chunk of a Zarr store, a text
            return self._store.sha256(key)
        with self._lock:
            has_room = num_bytes <= self._room
            self._room -= num_bytes if has_room else 0
        if not has_room:
            logger.info("%s (%d bytes) has no room among the copies and is fetched again when it is read", key, num_bytes)
            return self._store.sha256(key)
        target = self._folder / str(next(self._numbers)) / name  # numbered: names may be equal, and say the format
        target.parent.mkdir()
        digest = self._store.download(key, target)
        with self._lock:
            self._copies[key] = (target, num_bytes)
        return digest

    def of(self, key: str) -> Path | None:
        """Return an object's copy, under its own file name; None where there is none."""
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
