"""The store: one root, on a local disk or in S3, with the few operations that the platform needs.

Objects appear whole or not at all, and of several writers that `create` an object exactly one succeeds. The commit protocol
(`cem_assets.store.commits`) relies on these two properties. Keys are paths relative to the root.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.utils import get_protocol

from cem_assets import environment
from cem_assets.errors import DataError, StoreError
from cem_assets.store.faults import was_refused
from cem_assets.store.local import STAGING, delete_files, file_sha256, list_files, list_folders, move_into_place, staged
from cem_assets.store.s3 import QuickBucket, quick_bucket
from cem_assets.store.s3_listing import behind_folder, described, objects, pages

_BLOCK = 1 << 22
_SINGLE_PUT = 96 << 20
"""Objects up to this size are sent in one request. Larger ones are multipart uploads, which become visible when complete."""


@dataclass(frozen=True)
class StoredObject:
    """One object of the store.

    Attributes:
        key: Path relative to the root.
        modified: The time of writing in seconds since 1970, by the store's clock.
        tag: The entity tag (ETag) of the store; empty on a local disk.
    """

    key: str
    num_bytes: int
    modified: float
    tag: str = ""


def _described(key: str, info: Mapping[str, Any]) -> StoredObject:
    modified = info.get("LastModified", info.get("mtime", 0.0))
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    return StoredObject(key, int(info["size"]), seconds, str(info.get("ETag", "")).strip('"'))


def check_key(key: str) -> str:
    """Return a key unchanged after checking that it stays below the root.

    Raises:
        DataError: The key is empty or absolute, contains a backslash or a NUL, or has a part that is empty, `.` or `..`.
    """
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise DataError(f"store key {key!r} is not allowed; expected parts joined by '/', none of them '.' or '..'")
    return key


@lru_cache(maxsize=8)
def _filesystem(protocol: str, process: int) -> Any:
    # The process id is part of the cache's key, because fsspec's event loop must not be shared across a fork.
    del process
    if protocol == "s3":
        # botocore itself reads the AWS_* variables, including AWS_ENDPOINT_URL. Listings are never cached, because other
        # processes write at the same time. Retries with growing pauses cover throttling and brief outages.
        return fsspec.filesystem(
            "s3",
            use_listings_cache=False,
            config_kwargs={
                "retries": {"max_attempts": environment.whole_number(environment.AWS_MAX_ATTEMPTS), "mode": "standard"},
                "connect_timeout": 10,
                "read_timeout": 60,
                "max_pool_connections": 32,
            },
        )
    return fsspec.filesystem(protocol, use_listings_cache=False)


@dataclass(frozen=True)
class Store:
    """A root and how to reach it. It takes no time to make, can be pickled, and may be shared between threads.

    Attributes:
        url: The root without a trailing slash: `s3://bucket/prefix`, or an absolute local path.
    """

    url: str

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    @property
    def is_s3(self) -> bool:
        return not self.is_local and get_protocol(self.url) == "s3"

    @property
    def fs(self) -> Any:
        """The fsspec filesystem behind the root."""
        return _filesystem("file" if self.is_local else get_protocol(self.url), os.getpid())

    def url_of(self, key: str) -> str:
        """Return the URL or path of an object or folder, as pandas, DuckDB and HF datasets accept it."""
        return f"{self.url}/{check_key(key)}"

    def _quick(self, key: str) -> tuple[QuickBucket | None, str]:
        """Return the bucket through obstore, or None where s3fs alone can be used, and the object's key in the bucket."""
        if not self.is_s3:
            return None, ""
        bucket, name = self._path(key).split("/", 1)
        return self._quick_bucket(bucket), name

    def _quick_bucket(self, bucket: str) -> QuickBucket | None:
        about = self.fs.s3.meta
        return quick_bucket(bucket, str(about.endpoint_url), str(about.region_name or ""), os.getpid())

    def _path(self, key: str) -> str:
        return self.url_of(key) if self.is_local else self.url_of(key).split("://", 1)[1]

    # Reading

    def read(self, key: str) -> bytes:
        """Read a whole object.

        Raises:
            FileNotFoundError: There is no such object.
        """
        quick, name = self._quick(key)
        if quick is not None and (found := quick.read(name)) is not None:
            return found
        with self._absence_raised(key):
            data: bytes = self.fs.cat_file(self._path(key))
            return data

    def read_quickly(self, key: str) -> bytes | None:
        """Read a whole object in one request, without the GIL; None where that failed, and `read` finds out why."""
        quick, name = self._quick(key)
        return None if quick is None else quick.read(name)

    def read_range(self, key: str, start: int, num_bytes: int) -> tuple[Any, int]:
        """Read a part of an object in one request.

        Returns:
            The bytes as any object with the buffer protocol, fewer than `num_bytes` at the end of the object; and the size of
            the whole object.

        Raises:
            FileNotFoundError: There is no such object.
        """
        quick, name = self._quick(key)
        if quick is not None and (found := quick.read_range(name, start, num_bytes)) is not None:
            return found
        with self._absence_raised(key):
            data = self.fs.cat_file(self._path(key), start=start, end=start + num_bytes)
            return data, int(self.fs.size(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading at random offsets.

        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._absence_raised(key):
            handle: BinaryIO = self.fs.open(self._path(key), "rb")
            return handle

    @contextmanager
    def _absence_raised(self, key: str) -> Iterator[None]:
        """Raise FileNotFoundError for missing objects, even where S3 answers 403 because access is limited to a prefix."""
        try:
            yield
        except PermissionError:
            if self.is_s3 and self.stat(key) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url_of(key)) from None
            raise

    def stat(self, key: str) -> StoredObject | None:
        """Describe an object, or return None where there is none."""
        if self.is_s3:
            bucket, name = self._path(key).split("/", 1)
            page = self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=name, MaxKeys=1)
            found = [item for item in page.get("Contents", []) if item["Key"] == name]
            return StoredObject(key, *described(found[0])) if found else None
        try:
            info = self.fs.info(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _described(key, info) if info["type"] == "file" else None

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, or None where there is none."""
        found = self.stat(key)
        return None if found is None else found.num_bytes

    def sha256(self, key: str) -> str:
        """Hash an object, one block at a time."""
        if self.is_local:  # opening a small file through fsspec takes longer than reading it
            return file_sha256(self._path(key))
        quick, name = self._quick(key)
        if quick is not None and (found := quick.sha256(name)) is not None:
            return found
        digest = hashlib.sha256()
        with self.open(key) as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def download(self, key: str, target: Path) -> str:
        """Copy an object to a local file, and return the sha256 of what was written."""
        quick, name = self._quick(key)
        if quick is not None and (found := quick.download(name, target)) is not None:
            return found
        with self._absence_raised(key):
            self.fs.get_file(self._path(key), str(target))
        return file_sha256(target)

    def walk(self, folder: str, after: str = "") -> Iterator[StoredObject]:
        """List every object under a folder, in order of key.

        Args:
            after: In S3 the listing begins behind this subfolder; other stores ignore it.
        """
        if self.is_s3:
            bucket, base = self._place(folder)
            found_all = objects(self.fs, self._quick_bucket(bucket), bucket, base, behind_folder(base, after))
            for key, num_bytes, modified, tag in found_all:
                yield StoredObject(f"{folder}{key[len(base) :]}", num_bytes, modified, tag)
            return
        base = self._folder_path(folder)
        if self.is_local:
            for path, num_bytes, modified in list_files(base):
                yield StoredObject(f"{folder}{path[len(base) :]}", num_bytes, modified)
            return
        found = self.fs.find(base, detail=True)
        for path in sorted(found):
            yield _described(f"{folder}{str(path)[len(base) :]}", found[path])

    def children(self, folder: str) -> list[str]:
        """List the names of the files and folders directly in a folder, in order; a missing folder has none."""
        if self.is_s3:
            names = set()
            for page in pages(self.fs, *self._place(folder), "/", ""):
                names |= {str(item["Prefix"]).rstrip("/").rsplit("/", 1)[-1] for item in page.get("CommonPrefixes", [])}
                names |= {str(item["Key"]).rsplit("/", 1)[-1] for item in page.get("Contents", [])}
            return sorted(names - {""})
        try:
            entries = self.fs.ls(self._folder_path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries}
        return sorted(names - {""})

    def folders(self, folder: str, after: str = "") -> Iterator[str]:
        """List the names of the folders directly in a folder, in order. In S3, pages of 1,000 names are fetched as needed.

        Args:
            folder: Empty for the root.
            after: The listing begins behind this name; empty begins at the first.
        """
        if self.is_s3:
            bucket, base = self._place(folder)
            for page in pages(self.fs, bucket, base, "/", behind_folder(base, after)):
                yield from (str(item["Prefix"]).rstrip("/").rsplit("/", 1)[-1] for item in page.get("CommonPrefixes", []))
            return
        path = self._folder_path(folder)
        if self.is_local:
            names = list_folders(path)
        else:
            entries = self.fs.ls(path, detail=True) if self.fs.isdir(path) else []
            names = sorted(str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")
        yield from (name for name in names if name > after and name != STAGING)

    def _folder_path(self, folder: str) -> str:
        return self._path(folder) if folder else self._path("x").removesuffix("/x")

    def _place(self, folder: str) -> tuple[str, str]:
        """Return the bucket and the folder in it."""
        bucket, _, base = self._folder_path(folder).partition("/")
        return bucket, base

    # Writing

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object; readers see the old one or the new one, never a part of it.

        Args:
            data: The bytes, or a local file that holds them.

        Raises:
            OSError: The store cannot be written. If the disk is full, the error names the store and the free space.
        """
        if self.is_local:
            target = Path(self.url_of(key))
            with staged(Path(self.url), key, data) as written:
                move_into_place(written.replace, target)
            return
        num_bytes = data.stat().st_size if isinstance(data, Path) else len(data)
        if isinstance(data, Path) and num_bytes <= _SINGLE_PUT:
            data = data.read_bytes()
        quick, name = self._quick(key)
        if quick is not None and quick.write(name, data, is_multipart=num_bytes > _SINGLE_PUT):
            return
        if isinstance(data, Path):
            self.fs.put_file(str(data), self._path(key))
        else:
            self.fs.pipe_file(self._path(key), data, chunksize=_SINGLE_PUT)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free; of several writers with different data exactly one gets True.

        Args:
            data: The contents, small enough for one request.

        Returns:
            False if the key holds an object with other contents already.
        """
        try:
            if self.is_local:
                target = Path(self.url_of(key))
                with staged(Path(self.url), key, data) as written:
                    move_into_place(lambda place: os.link(written, place), target)
                return True
            quick, name = self._quick(key)
            was_made = None if quick is None else quick.create(name, data)
            if was_made is not None:
                return was_made or self.read(key) == data
            self.fs.pipe_file(self._path(key), data, mode="create", chunksize=_SINGLE_PUT)
        except OSError as error:
            if not was_refused(error):
                raise
            # A retried request is refused if its first try succeeded unnoticed. Then the contents are ours.
            return self.read(key) == data
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; keys without an object are ignored."""
        if self.is_local:
            delete_files(Path(self.url), (check_key(key) for key in keys))
            return
        paths = [self._path(key) for key in keys]
        for start in range(0, len(paths), 1000):
            self._delete_objects(paths[start : start + 1000])

    def _delete_objects(self, paths: list[str]) -> None:
        if not self.is_s3:
            self.fs.rm(paths)
            return
        bucket = paths[0].split("/", 1)[0]
        keys = [path.split("/", 1)[1] for path in paths]
        try:
            wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = self.fs.call_s3("delete_objects", Bucket=bucket, Delete=wanted)
        except PermissionError:  # some servers require access to the whole bucket for deleting several objects at once
            for key in keys:
                self.fs.call_s3("delete_object", Bucket=bucket, Key=key)
            return
        if errors := answer.get("Errors"):
            kind = PermissionError if errors[0].get("Code") == "AccessDenied" else StoreError
            raise kind(f"{len(errors)} object(s) could not be deleted, such as {errors[0].get('Key')}: {errors[0].get('Code')}")


def open_store(url: str | None = None) -> Store:
    """Open a store; nothing is read or written yet.

    Args:
        url: Any fsspec URL or local folder. None takes the variable CEM_ASSETS_ROOT, else `./.cem_assets/store`.

    Raises:
        DataError: The URL names no bucket, or holds credentials.
    """
    text = url or environment.text(environment.ROOT)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return Store(str(Path(text).expanduser().resolve()))
    text = text.rstrip("/")
    rest = text.split(":", 1)[1].strip("/")
    if not rest:
        raise DataError(f"store URL {text!r} names no bucket; expected s3://bucket/prefix. Set {environment.ROOT}.")
    if "@" in rest.split("/")[0]:
        raise DataError(
            "the store URL holds credentials; expected s3://bucket/prefix. Give keys in the AWS_* variables instead."
        )
    return Store(text)
