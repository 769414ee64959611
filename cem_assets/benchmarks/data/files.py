"""Where the files of a benchmark come from: a local folder, the store's inbox, or a download.

`cem_assets.benchmarks.data.items` decides which of them are images and which are masks.
"""

import hashlib
import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Protocol

from cem_assets import environment
from cem_assets.catalog.benchmarks import SETTINGS, Benchmark
from cem_assets.errors import DataError
from cem_assets.formats.arrays import MAX_EXPANSION, require_disk
from cem_assets.inbox.datasets import Rejection, path_problem, shown_path
from cem_assets.sources.files.download import download_url
from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import canonical_json
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

BENCHMARK_INBOX = "benchmarks/inbox"
FILES = "files.json"
"""Lists the files that a benchmark was prepared from, with their digests."""
_JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
_EXPANSION_FROM = 1 << 30
"""Unpacked bytes from which on an archive is refused if it expands too much."""


class BenchmarkFiles(Protocol):
    """The files of a benchmark."""

    def listed(self) -> tuple[list[str], list[Rejection]]:
        """List paths relative to the folder, in order, and reject those with names that are not allowed."""
        ...

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Make one file available as a local file while the block runs."""
        ...

    def sha256(self, path: str) -> str:
        """Return the sha256 of one file."""
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
    """Files of a local folder; links that lead out of it are rejected."""

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


def path_matches(path: str, pattern: str) -> bool:
    """Tell whether the end of a path matches a glob pattern, which comes from a table of benchmarks."""
    try:
        return PurePosixPath(path).match(pattern)
    except ValueError as error:
        raise DataError(f"a pattern of files is {pattern!r}, which cannot be matched: {error}. Correct the table.") from error


def file_digests(files: BenchmarkFiles, paths: Sequence[str]) -> list[tuple[str, str]]:
    """Pair paths with the sha256 of their files."""
    return [(path, files.sha256(path)) for path in paths]


def inbox_upstream(name: str, digests: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the files of a benchmark as an input of its partition: one digest over all of them."""
    return {f"{BENCHMARK_INBOX}/{name}": hashlib.sha256(canonical_json([list(pair) for pair in digests])).hexdigest()}


def digests_bytes(digests: Sequence[tuple[str, str]]) -> bytes:
    """Write the contents of `FILES`."""
    return json.dumps([{"path": path, "sha256": digest} for path, digest in digests], indent=1).encode()


@contextmanager
def benchmark_files(store: Store, row: Benchmark, folder: Path | None = None) -> Iterator[BenchmarkFiles]:
    """Find the files of a benchmark: in a folder, the store's inbox, or the benchmarks folder, or by downloading them.

    Args:
        folder: The only place to look, if it is given.

    Yields:
        The files, which can be used until the block ends.

    Raises:
        FileNotFoundError: `folder` is not a folder, or the files are in none of these places and cannot be downloaded.
        ConnectionError: A download failed.
        DataError: A downloaded file has another digest than the catalogue says, or an archive is damaged.
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
                found = download_url(source.url, source.sha256, target.parent, target.name)
                if target.suffix.lower() == ".zip":
                    unpack_zip(found, target.parent)
                    found.unlink()
            yield FolderFiles(scratch)
    else:
        raise FileNotFoundError(_ways(row, inbox, base))


def _ways(row: Benchmark, inbox: str, base: str | None) -> str:
    urls = ", ".join(source.url for source in row.sources if not source.sha256)
    return (
        f"the files of benchmark {row.name!r} were not found. Unpack archives, and give the files in one of these ways: name a "
        f"folder in the configuration; put them into the folder {inbox}/ of the store; put them into "
        f"{environment.BENCHMARKS_FOLDER}/{row.name}/ (the variable is {base or 'not set'})"
        + (f"; or have them downloaded, for which [{row.name}] in {SETTINGS} must give the sha256 of {urls}" if urls else "")
        + (f". See {row.source_url}." if row.source_url else ".")
    )


def unpack_zip(path: Path, folder: Path) -> None:
    """Unpack a zip file into a folder, completely or not at all.

    Raises:
        DataError: The archive is damaged, holds links or names that lead out of the folder, or claims to unpack to more than
            `MAX_EXPANSION` times its size.
        OSError: There is not enough room on the disk.
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
    except (DataError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{path.name} cannot be unpacked: {error}. Download it again, or unpack it yourself.") from error
