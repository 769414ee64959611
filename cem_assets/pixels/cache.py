"""A bounded local cache of decoded pixels: one flat file for each row group, or the same in memory.

Training reads patches in random order many times. A row group is decoded once; reading a patch is then one read of 50 kB.

- Files are read at offsets and not mapped into memory. If a mapped file is cut short, the process dies; here the row group is
  decoded again. Every patch has a CRC-32, which is checked at each read.
- `cem_assets.pixels.write_behind` writes files in the background under a temporary name and renames them at the end. A killed
  process leaves complete files, and temporary ones that the next process deletes.
- Several processes may share a folder. Each group is then written before the next process looks for it, so that it is fetched
  and decoded once for all of them.

`cem_assets.pixels.reader` decides what the groups are.
"""

import errno
import fcntl
import logging
import os
import re
import threading
import time
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.pixels.image_cells import SIDE_PX
from cem_assets.pixels.write_behind import WriteBehind, gather

PATCH_BYTES = SIDE_PX * SIDE_PX
HEADER_BYTES = 32
"""A file begins with a magic text, the number of patches, and the CRC-32 of the table of CRC-32s. Then come this table and the
pixels."""

_MAGIC = b"CEMPIX01"
_WHOLE, _PART = ".pixels", ".part"
_OURS = re.compile(r"[0-9a-f]{40}(\.[0-9a-f]{32})?(\.pixels|\.part)")
_NUM_LOCKS = 64
_BEHIND_BYTES = 256 << 20
"""The bound of what is decoded and not written yet: about 20 row groups, which take a third of a second to write."""
_CELLS_AT_ONCE = 512
"""The number of patches in one call of writev; the operating system takes at most 1,024."""
_TOUCH_SECONDS = 60.0
"""A file's time of last use is updated at most this often."""
_logger = logging.getLogger(__name__)

Build = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class Wanted:
    """Patches of one row group, and where they go.

    Attributes:
        name: 40 hexadecimal digits that identify the group; groups with other pixels have other names.
        num_patches: The number of patches in the group.
        inside: int64 (k,), the places of the wanted patches in the group.
        places: int64 (k,), their places in the output.
    """

    name: str
    num_patches: int
    inside: NDArray[np.int64]
    places: NDArray[np.int64]


class PixelCache(Protocol):
    """The methods that both caches have."""

    max_bytes: int

    def read(self, wanted: Wanted, out: NDArray[np.uint8], build: Build, may_wait: bool = True) -> bool:
        """Put patches into `out`, uint8 (n, 224, 224); `build` decodes their group if the cache does not have it.

        Returns:
            False if `may_wait` is false and another thread or process seems to build the group at the moment; then nothing was
            read.
        """

    def flush(self) -> None:
        """Wait until everything that was built is in the cache."""


class MemoryCache:
    """Row groups in memory; the least recently used are dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: LRUCache[str, NDArray[np.uint8]] = LRUCache(max_bytes, getsizeof=lambda pixels: pixels.nbytes)
        self._lock = threading.Lock()
        self._building: dict[str, threading.Lock] = {}

    def read(self, wanted: Wanted, out: NDArray[np.uint8], build: Build, may_wait: bool = True) -> bool:
        pixels = self._find(wanted.name)
        if pixels is None:
            with self._lock:
                building = self._building.setdefault(wanted.name, threading.Lock())
            if not building.acquire(blocking=may_wait):
                return False
            try:
                pixels = self._find(wanted.name)
                if pixels is None:
                    pixels = build()
                    self._keep(wanted.name, pixels)
            finally:
                building.release()
        gather(pixels, wanted.inside, out, wanted.places)
        return True

    def flush(self) -> None:
        pass

    def _find(self, name: str) -> NDArray[np.uint8] | None:
        with self._lock:
            return self._held.get(name)

    def _keep(self, name: str, pixels: NDArray[np.uint8]) -> None:
        with self._lock:
            self._building.pop(name, None)
            if pixels.nbytes <= self.max_bytes:
                self._held[name] = pixels


class DiskCache:
    """Row groups as files of a folder; the least recently used are deleted first.

    The bound is that of the folder, no matter which processes wrote the files. If the disk is full or cannot be written, a
    warning is logged and reading continues without the cache.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open a cache.

        Args:
            folder: A folder on a local disk; it is made if it is missing.
            max_bytes: The bound of all files of the cache in it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.max_bytes = max_bytes
        self._checksums: dict[str, NDArray[np.uint32]] = {}
        self._touched: dict[str, float] = {}
        self._has_warned = False
        self._behind = WriteBehind(self._write, min(_BEHIND_BYTES, max_bytes))
        self._process = os.getpid()
        self._presence = self._announced()

    def read(self, wanted: Wanted, out: NDArray[np.uint8], build: Build, may_wait: bool = True) -> bool:
        with self._behind.reading():
            return self._read(wanted, out, build, may_wait)

    def _read(self, wanted: Wanted, out: NDArray[np.uint8], build: Build, may_wait: bool) -> bool:
        if self._read_behind(wanted, out) or self._read_file(wanted, out) is None:
            return True
        with self._locked(f"{int(wanted.name[:8], 16) % _NUM_LOCKS:02d}", may_wait) as has_lock:
            if not has_lock:
                return False
            if self._read_behind(wanted, out):
                return True
            fault = self._read_file(wanted, out)
            if fault is None:  # another thread or process made it while we waited
                return True
            if fault:
                _logger.warning("%s in the pixel cache %s is damaged: %s. It is made again.", wanted.name, self.folder, fault)
            pixels = build()
            # Other processes would fetch and decode a group that is not written yet, so it is written before the lock is free.
            if not (self._is_alone() and self._behind.put(wanted.name, pixels)):
                self._write(wanted.name, pixels)
        gather(pixels, wanted.inside, out, wanted.places)
        return True

    def flush(self) -> None:
        self._behind.flush()

    def _read_behind(self, wanted: Wanted, out: NDArray[np.uint8]) -> bool:
        """Read patches of a group that is not written yet; return False if there is no such group."""
        pixels = self._behind.find(wanted.name)
        if pixels is not None:
            gather(pixels, wanted.inside, out, wanted.places)
        return pixels is not None

    def _announced(self) -> int | None:
        """Hold a shared lock, as long as this cache exists, by which other processes see that the folder is in use."""
        try:
            descriptor = os.open(self.folder / ".lock-users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def _is_alone(self) -> bool:
        """Tell whether no other process seems to use the folder; a wrong answer costs work and does no harm."""
        if self._presence is None or os.getpid() != self._process:
            return False
        try:
            fcntl.flock(self._presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            fcntl.flock(self._presence, fcntl.LOCK_SH)
        return True

    def _write(self, name: str, pixels: NDArray[np.uint8]) -> None:
        try:
            self._write_file(name, pixels)
        except OSError as error:
            self._warn(f"the pixel cache {self.folder} cannot be written: {error}. Training goes on, reading from the store")

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning("%s; this is logged once.", text)

    def _read_file(self, wanted: Wanted, out: NDArray[np.uint8]) -> str | None:
        """Read patches from a group's file; return None, or what is wrong with the file: an empty text if there is none."""
        path = self.folder / f"{wanted.name}{_WHOLE}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        try:
            checksums = self._checksums_in(descriptor, wanted)
            first = HEADER_BYTES + checksums.nbytes
            for inside, place in zip(wanted.inside.tolist(), wanted.places.tolist(), strict=True):
                target = out[place].data.cast("B")
                if os.preadv(descriptor, [target], first + inside * PATCH_BYTES) != PATCH_BYTES:
                    raise DataError(f"patch {inside} is cut off")
                if zlib.crc32(target) != checksums[inside]:
                    raise DataError(f"patch {inside} has another checksum than when it was written")
        except (DataError, OSError) as error:
            self._checksums.pop(wanted.name, None)
            return str(error)
        finally:
            os.close(descriptor)
        now = time.monotonic()
        if now - self._touched.get(wanted.name, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[wanted.name] = now
            with suppress(OSError):  # another process has deleted the file, or the cache is read-only
                os.utime(path)
        return None

    def _checksums_in(self, descriptor: int, wanted: Wanted) -> NDArray[np.uint32]:
        known = self._checksums.get(wanted.name)
        if known is not None:
            return known
        num_bytes = 4 * wanted.num_patches
        header = os.pread(descriptor, HEADER_BYTES + num_bytes, 0)
        if len(header) != HEADER_BYTES + num_bytes or header[:HEADER_BYTES] != _header(header[HEADER_BYTES:]):
            raise DataError("its header is not what was written")
        checksums = np.frombuffer(header, "<u4", offset=HEADER_BYTES)
        self._checksums[wanted.name] = checksums
        return checksums

    def _write_file(self, name: str, pixels: NDArray[np.uint8]) -> None:
        table = np.array([zlib.crc32(patch) for patch in pixels], "<u4").tobytes()
        num_bytes = HEADER_BYTES + len(table) + pixels.nbytes
        part = self.folder / f"{name}.{uuid.uuid4().hex}{_PART}"
        with ExitStack() as opened:
            try:
                with self._locked("room"):
                    if not self._make_room(num_bytes, name):
                        self._warn(
                            f"a row group of {num_bytes} bytes does not fit into the pixel cache {self.folder}, which may hold "
                            f"{self.max_bytes}. Training goes on, reading from the store"
                        )
                        return
                    handle = opened.enter_context(open(part, "xb"))
                    fcntl.flock(handle, fcntl.LOCK_EX)  # tells other processes that the file is being written
                    os.truncate(handle.fileno(), num_bytes)  # other processes count its full size from now on
                handle.write(_header(table) + table)
                handle.flush()
                _write_patches(handle.fileno(), pixels)
                part.replace(self.folder / f"{name}{_WHOLE}")
            except OSError:
                part.unlink(missing_ok=True)
                raise

    def _make_room(self, num_bytes: int, name: str) -> bool:
        """Delete row groups until so many bytes fit, and return whether they do; files that are not the cache's are ignored."""
        (self.folder / f"{name}{_WHOLE}").unlink(missing_ok=True)  # a file that exists here was found to be damaged
        if num_bytes > self.max_bytes:
            return False
        whole: list[tuple[float, Path, int]] = []
        total = num_bytes
        for path in self.folder.iterdir():
            if not _OURS.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):
                if path.suffix == _PART and _is_abandoned(path):
                    path.unlink()  # a killed process left it behind
                    continue
                info = path.stat()
                total += info.st_size
                if path.suffix == _WHOLE:
                    whole.append((info.st_mtime, path, info.st_size))
        for _, path, size in sorted(whole):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total <= self.max_bytes

    @contextmanager
    def _locked(self, what: str, may_wait: bool = True) -> Iterator[bool]:
        """Hold a lock among all threads and processes that use the folder; the lock of a killed process is released.

        Yields:
            Whether the lock is held. It is not if the caller may not wait and another thread or process holds it.
        """
        has_lock = True
        with ExitStack() as opened:
            try:
                handle = opened.enter_context(open(self.folder / f".lock-{what}", "ab"))
                fcntl.flock(handle, fcntl.LOCK_EX if may_wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                has_lock = False
            except OSError as error:  # nothing can be written into such a folder, so it needs no lock
                _logger.debug("no lock in the pixel cache %s: %s", self.folder, error)
            yield has_lock


def _header(table: bytes) -> bytes:
    fields = (len(table) // 4).to_bytes(8, "little") + zlib.crc32(table).to_bytes(4, "little")
    return (_MAGIC + fields).ljust(HEADER_BYTES, b"\0")


def _write_patches(descriptor: int, pixels: NDArray[np.uint8]) -> None:
    """Write patches, which need not be contiguous in memory."""
    for start in range(0, len(pixels), _CELLS_AT_ONCE):
        left = [patch.data.cast("B") for patch in pixels[start : start + _CELLS_AT_ONCE]]
        while left:
            written = os.writev(descriptor, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]


def _is_abandoned(part: Path) -> bool:
    try:
        with open(part, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
