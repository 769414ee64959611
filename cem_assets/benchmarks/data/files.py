"""Where the files of a benchmark come from: a folder, the store's own inbox, or a download; each told apart by one class.

Which of them are images and which masks is `cem_assets.benchmarks.data.items`.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from cem_assets import environment
from cem_assets.benchmarks.data.rows import SETTINGS
from cem_assets.catalog.benchmarks import Benchmark
from cem_assets.errors import DataError
from cem_assets.formats.arrays import MAX_EXPANSION, require_disk
from cem_assets.inbox.datasets import Rejection, path_problem, shown_path
from cem_assets.sources.files.single import download
from cem_assets.store.local import file_sha256
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

BENCHMARK_INBOX = "benchmarks/inbox"
_JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
_EXPANSION_FROM = 1 << 30


class BenchmarkFiles(Protocol):
    """The files of a benchmark."""

    def listed(self) -> tuple[list[str], list[Rejection]]:
        """List paths relative to the folder, in order; names that are not allowed are rejected."""
        ...

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Give one file as a local one for the time of a block."""
        ...

    def sha256(self, path: str) -> str:
        """Hash one file."""
        ...


def _sorted_out(paths: list[str]) -> tuple[list[str], list[Rejection]]:
    allowed, rejections = [], []
    for path in sorted(paths):
        if any(part.startswith(".") or part in _JUNK for part in path.split("/")):
            continue
        if problem := path_problem(path):
            rejections.append(Rejection(shown_path(path), problem))
        else:
            allowed.append(path)
    return allowed, rejections


@dataclass(frozen=True)
class FolderFiles:
    """Files of a local folder; links are followed only as far as they stay in it."""

    folder: Path

    def listed(self) -> tuple[list[str], list[Rejection]]:
        base = self.folder.resolve()
        found, strays = [], []
        for place, _, names in os.walk(base):
            for name in names:
                path = Path(place) / name
                relative = path.relative_to(base).as_posix()
                if not path.resolve().is_relative_to(base):
                    strays.append(
                        Rejection(
                            shown_path(relative), "is a link that leads out of the folder; expected a file. Copy it there."
                        )
                    )
                elif path.is_file():
                    found.append(relative)
        allowed, rejections = _sorted_out(found)
        return allowed, [*rejections, *strays]

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        yield self.folder / path

    def sha256(self, path: str) -> str:
        return file_sha256(self.folder / path)


@dataclass(frozen=True)
class StoreFiles:
    """Files under a prefix of the store."""

    store: Store
    prefix: str

    def listed(self) -> tuple[list[str], list[Rejection]]:
        return _sorted_out([item.key[len(self.prefix) + 1 :] for item in self.store.walk(self.prefix)])

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        key = f"{self.prefix}/{path}"
        if self.store.is_local:
            yield Path(self.store.url_of(key))
            return
        with scratch_folder("benchmark-file") as scratch:
            target = scratch / path.rsplit("/", 1)[-1]
            self.store.download(key, target)
            yield target

    def sha256(self, path: str) -> str:
        return self.store.sha256(f"{self.prefix}/{path}")


@contextmanager
def benchmark_files(store: Store, row: Benchmark, folder: Path | None = None) -> Iterator[BenchmarkFiles]:
    """Find the files of a benchmark: the folder given, the store's inbox, the benchmarks folder, or a download.

    Args:
        row: The benchmark.
        folder: A local folder, or None.

    Yields:
        Its files, usable until the block ends.

    Raises:
        FileNotFoundError: The folder given is none, or there are no files anywhere and none can be downloaded.
        ConnectionError: A download failed.
        DataError: A download has another digest, or an archive is damaged.
    """
    inbox = f"{BENCHMARK_INBOX}/{row.name}"
    base = environment.text(environment.BENCHMARKS_FOLDER)
    if folder is not None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; expected the files of benchmark {row.name!r}.")
        yield FolderFiles(folder)
    elif store.children(inbox):
        yield StoreFiles(store, inbox)
    elif base and (Path(base) / row.name).is_dir():
        yield FolderFiles(Path(base) / row.name)
    elif row.sources and all(source.sha256 for source in row.sources):
        with scratch_folder("benchmark") as scratch:
            for source in row.sources:
                if problem := path_problem(source.file):
                    raise DataError(f"benchmark {row.name!r} names the file {source.file!r}: {problem}")
                target = scratch / source.file
                target.parent.mkdir(parents=True, exist_ok=True)
                found = download(source.url, source.sha256, target.parent, target.name)
                if target.suffix.lower() == ".zip":
                    unpack_zip(found, target.parent)
                    found.unlink()
            yield FolderFiles(scratch)
    else:
        raise FileNotFoundError(_ways(row, inbox, base))


def _ways(row: Benchmark, inbox: str, base: str | None) -> str:
    urls = ", ".join(source.url for source in row.sources if not source.sha256)
    return (
        f"the files of benchmark {row.name!r} are nowhere. Ways to give them, archives unpacked: a folder as an argument; the "
        f"folder {inbox}/ of the store; {environment.BENCHMARKS_FOLDER}/{row.name}/ (the variable is {base or 'not set'})"
        + (f"; or a download, for which [{row.name}] in {SETTINGS} must give the sha256 of {urls}" if urls else "")
        + (f". See {row.source_url}." if row.source_url else ".")
    )


def unpack_zip(path: Path, folder: Path) -> None:
    """Unpack an archive into a folder: whole, or not at all.

    Args:
        path: A zip file.
        folder: Where to.

    Raises:
        DataError: It is damaged, has names that would leave the folder or links, or claims more than
            `MAX_EXPANSION` times its size.
        OSError: The disk is too small.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if not item.is_dir()]
            total = sum(item.file_size for item in members)
            if total > _EXPANSION_FROM and total > MAX_EXPANSION * path.stat().st_size:
                raise DataError(f"it claims {total} bytes, more than {MAX_EXPANSION} times its size")
            for item in members:
                if problem := path_problem(item.filename):
                    raise DataError(f"{shown_path(item.filename)}: {problem}")
                if stat.S_ISLNK(item.external_attr >> 16):
                    raise DataError(f"{shown_path(item.filename)} is a link; expected files")
            require_disk(folder, total, path.name)
            with TemporaryDirectory(dir=folder) as staging:
                archive.extractall(staging, members)
                for child in Path(staging).iterdir():
                    if (folder / child.name).exists():
                        raise DataError(f"{child.name} is there already")
                    shutil.move(child, folder / child.name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{path.name} cannot be unpacked: {error}. Download it again, or unpack it yourself.") from error
