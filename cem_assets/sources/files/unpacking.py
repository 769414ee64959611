"""Unpacking downloaded archives: zip, tar (.gz, .bz2, .xz) and single .gz files, within limits, and all or nothing.

Archives are not trusted, even where their digest is known. Every member must be a plain file below the target. Sizes are
counted while members are unpacked, because what the archive says of them may be wrong. The target folder appears only when all
of it is there. `cem_assets.sources.files.download` gets the archives.
"""

import bz2
import errno
import io
import lzma
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cem_assets.errors import DataError
from cem_assets.sources.files.description import check_file_path

_BLOCK = 1 << 20
_MAX_HEADER_BYTES = 4 << 20
"""Longest record of tar itself, such as a long name or a pax header; real ones have a few hundred bytes."""
_MAX_DIRECTORY_BYTES = 64 << 20
"""Largest directory of a zip file."""
_XZ_MEMORY = 256 << 20
"""Bytes of memory that xz may need."""
_RATIO_FREE_BYTES = 64 << 20
"""Every archive may unpack to this size: blank images of real sources compress as well as bombs do, but are not large."""

_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error, NotImplementedError,
    OverflowError, RecursionError, UnicodeDecodeError,
)  # fmt: skip
"""What zipfile, tarfile and the decompressors raise for damaged archives."""
_DAMAGED_ERRNOS = (None, errno.EINVAL)
"""Codes of the OSErrors that damaged archives cause: bz2 raises them without a code, and the system refuses offsets below 0,
which damaged directories lead to, as invalid arguments."""
_TAR_SUFFIXES = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tbz2": "bz2", ".tar.xz": "xz", ".txz": "xz"}


@dataclass(frozen=True)
class UnpackLimits:
    """How much may come out of an archive.

    Attributes:
        max_members: Files and folders.
        max_bytes: Unpacked size of all files together.
        max_ratio: Unpacked bytes for each byte of the archive, beyond the first 64 MiB.
    """

    max_members: int = 100_000
    max_bytes: int = 500 * 10**9
    max_ratio: float = 250.0


def unpacked_stem(name: str) -> str | None:
    """Return the name of a zip, 7z or tar without its suffix; None for other files, also for single .gz files."""
    lower = name.lower()
    suffix = next((suffix for suffix in (".zip", ".7z", *_TAR_SUFFIXES) if lower.endswith(suffix)), None)
    return None if suffix is None else name[: -len(suffix)] or None


def unpack(path: Path, folder: Path, limits: UnpackLimits | None = None) -> list[str]:
    """Unpack an archive into a new folder.

    Args:
        path: The archive; its suffix says its kind.
        folder: The folder to make. `<folder>.part` beside it is filled first, and renamed when all is there.

    Returns:
        The files, relative to the folder, in order of name.

    Raises:
        DataError: The archive is damaged, encrypted or of no known kind, has members that are not allowed, or unpacks to too
            much.
        FileExistsError: The folder is there already.
    """
    limits = limits or UnpackLimits()
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; expected to make it. Remove it or choose another.")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        sink = _Sink(part, path, limits)
        _unpacker(path)(path, sink)
        if not sink.files:
            raise DataError(f"{path.name} has no files; expected some.")
        part.rename(folder)
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _DAMAGED_ERRNOS:
            raise
        raise DataError(f"{path.name} cannot be unpacked: {type(error).__name__}: {error}. Download it again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(sink.files)


class _Sink:
    """Takes the members of an archive of any format, and checks their names and amounts."""

    def __init__(self, folder: Path, archive: Path, limits: UnpackLimits) -> None:
        self._folder, self._archive, self._limits = folder, archive.name, limits
        self._most = min(limits.max_bytes, max(_RATIO_FREE_BYTES, int(limits.max_ratio * archive.stat().st_size)))
        self._num_members, self._num_bytes = 0, 0
        self._kinds: dict[str, str] = {}
        self.files: list[str] = []

    def refuse(self, name: str, reason: str) -> DataError:
        """Return the error for a member that is not allowed."""
        return DataError(f"{self._archive}: member {name[:120]!r} {reason}. Nothing of the archive was kept.")

    def check_amount(self, num_bytes: int) -> None:
        """Refuse more bytes than the limits allow, whether they were counted or the archive only claims them."""
        if num_bytes > self._most:
            raise DataError(
                f"{self._archive} unpacks to more than {self._most:,} bytes; expected at most that ({self._limits.max_bytes:,} "
                f"in all, {self._limits.max_ratio:g} for each byte of it). Unpack it yourself if you trust it."
            )

    def _count(self, name: str) -> str:
        self._num_members += 1
        if self._num_members > self._limits.max_members:
            raise DataError(f"{self._archive} has more than {self._limits.max_members:,} members; expected at most that.")
        plain = name.removeprefix("./").removesuffix("/")
        try:
            return check_file_path(plain)
        except DataError as error:
            raise self.refuse(name, f"is not allowed: {error}") from error

    def _claim(self, path: str, kind: str, name: str) -> None:
        # Some disks do not distinguish names that differ only by case or Unicode form, so that one file would replace another.
        key = unicodedata.normalize("NFC", path).casefold()
        before = self._kinds.get(key)
        if before is not None and "file" in (before, kind):
            raise self.refuse(name, f"is there twice, as {before} and as {kind} (letters' case is not told apart)")
        self._kinds[key] = kind

    def add_folder(self, name: str) -> None:
        if name.strip("./") == "":  # the root of the archive
            return
        path = self._count(name)
        self._claim_parents(f"{path}/x", name)
        (self._folder / path).mkdir(parents=True, exist_ok=True)

    def _claim_parents(self, path: str, name: str) -> None:
        parts = path.split("/")
        for end in range(1, len(parts)):
            self._claim("/".join(parts[:end]), "folder", name)

    def add_file(self, name: str, source: Any) -> None:
        """Write a member, whose bytes `source.read(n)` gives."""
        path = self._count(name)
        self._claim_parents(path, name)
        self._claim(path, "file", name)
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as handle:
            while block := source.read(_BLOCK):
                self._num_bytes += len(block)
                self.check_amount(self._num_bytes)
                handle.write(block)
        self.files.append(path)


def _unpacker(path: Path) -> Callable[[Path, _Sink], None]:
    lower = path.name.lower()
    if lower.endswith(".zip"):
        return _unpack_zip
    if lower.endswith(tuple(_TAR_SUFFIXES)):
        return _unpack_tar
    if lower.endswith(".gz"):
        return _unpack_gz
    if lower.endswith(".7z"):
        raise DataError(f"{path.name}: 7z is not read here; expected zip, tar or gz. Unpack it yourself and add its files.")
    raise DataError(f"{path.name} is of no known kind; expected .zip, {', '.join(_TAR_SUFFIXES)} or .gz.")


def _unpack_zip(path: Path, sink: _Sink) -> None:
    with path.open("rb") as handle:
        _check_directory(handle, path.name)
        with zipfile.ZipFile(handle) as archive:
            members = archive.infolist()
            sink.check_amount(sum(member.file_size for member in members))
            for member in members:
                mode = member.external_attr >> 16
                if not member.filename:
                    raise sink.refuse("", "has no name; expected plain file names")
                if member.flag_bits & 0x1:
                    raise sink.refuse(member.filename, "is encrypted; expected plain files")
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise sink.refuse(member.filename, "is a link or device; expected files and folders")
                if member.is_dir():
                    sink.add_folder(member.filename)
                else:
                    with archive.open(member) as source:
                        sink.add_file(member.filename, source)


def _check_directory(handle: BinaryIO, name: str) -> None:
    """Refuse a zip file with a directory that is too large, because the library reads it into memory as a whole."""
    size = handle.seek(0, io.SEEK_END)
    handle.seek(max(0, size - 66_000))
    tail = handle.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) - end < 22:
        raise zipfile.BadZipFile("it has no directory at its end")
    (num_bytes,) = struct.unpack_from("<I", tail, end + 12)
    locator = tail[end - 20 : end] if end >= 20 else b""
    if locator.startswith(b"PK\6\7"):
        handle.seek(min(struct.unpack_from("<Q", locator, 8)[0], size))
        record = handle.read(56)
        if record.startswith(b"PK\6\6") and len(record) == 56:
            num_bytes = struct.unpack_from("<Q", record, 40)[0]
    if num_bytes > _MAX_DIRECTORY_BYTES:
        raise DataError(f"{name} has a directory of {num_bytes:,} bytes; expected at most {_MAX_DIRECTORY_BYTES:,}.")
    handle.seek(0)


class _Inflating:
    """A compressed stream that is read forward only, in blocks of limited size, and whose end is checked."""

    def __init__(self, handle: BinaryIO, kind: str) -> None:
        self._handle, self._make = handle, _INFLATERS[kind]
        self._member: Any = self._make() if kind else None
        self._waiting, self._offset = b"", 0
        self.last = b""

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int) -> int:
        while self._offset < offset:
            if not self.take(min(_BLOCK, offset - self._offset)):
                break
        if self._offset > offset:
            raise tarfile.ReadError("it is read forward only, but asks to go back")
        return self._offset

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise DataError(f"a header claims {size:,} bytes; expected at most {_MAX_HEADER_BYTES:,}. It is no sound tar.")
        blocks = []
        while size > 0 and (block := self.take(size)):
            blocks.append(block)
            size -= len(block)
        self.last = b"".join(blocks)
        return self.last

    def take(self, size: int) -> bytes:
        block = self._handle.read(size) if self._member is None else self._inflated(size)
        self._offset += len(block)
        return block

    def _inflated(self, size: int) -> bytes:
        while True:
            if self._member.eof:
                self._waiting = self._member.unused_data or self._handle.read(_BLOCK)
                if not self._waiting.strip(b"\0"):  # the end, or padding of a tape
                    return b""
                self._member = self._make()
            if not self._waiting and getattr(self._member, "needs_input", True):
                self._waiting = self._handle.read(_BLOCK)
            is_last = not self._waiting and getattr(self._member, "needs_input", True)
            block: bytes = self._member.decompress(self._waiting, size)  # zlib may give bytes even without new input
            self._waiting = getattr(self._member, "unconsumed_tail", b"")
            if block:
                return block
            if is_last and not self._member.eof:
                raise EOFError("the compressed stream ends too early")


_INFLATERS: dict[str, Callable[[], Any]] = {
    "": lambda: None,
    "gz": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
}


def _unpack_tar(path: Path, sink: _Sink) -> None:
    kind = next(kind for suffix, kind in _TAR_SUFFIXES.items() if path.name.lower().endswith(suffix))
    with path.open("rb") as handle:
        stream = _Inflating(handle, kind)
        with tarfile.TarFile(fileobj=stream, mode="r", errorlevel=2) as archive:  # type: ignore[arg-type]
            for member in _members(archive, stream):
                if member.isdir():
                    sink.add_folder(member.name)
                elif member.isreg() and not member.issparse():
                    source = archive.extractfile(member)
                    assert source is not None
                    sink.add_file(member.name, source)
                else:
                    raise sink.refuse(member.name, "is a link, device or sparse file; expected plain files and folders")
        end = stream.tell()
        while stream.take(_BLOCK):  # read to the very end, where the compressed stream has its checksums
            sink.check_amount(stream.tell() - end)


def _members(archive: tarfile.TarFile, stream: _Inflating) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all members, which may be very many
    if stream.last.strip(b"\0"):
        raise tarfile.ReadError("a header in the middle is damaged")


def _unpack_gz(path: Path, sink: _Sink) -> None:
    with path.open("rb") as handle:
        sink.add_file(path.name[: -len(".gz")], _Inflating(handle, "gz"))
