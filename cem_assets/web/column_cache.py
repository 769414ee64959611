"""Keeps columns of tables on the local disk, so that DuckDB can query tables of any store.

Tables without pixels in a local store are read in place. Of all other tables (shards with pixels, whose row groups are small,
and every table in S3) the columns without pixels are copied once into one Parquet file. Its name is a digest of the table's
objects, so a copy is never stale. When the folder grows too large, the least recently used copies are removed.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.store.manifests import Manifest, ManifestObject
from cem_assets.store.parquet import TABLE_ROW_GROUP, rechunk
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

DEFAULT_BYTES = 4 << 30
_GLOB = set("*?[]{}")
_FEW_VALUES = ("partition", "dataset", "volume", "label", "category", "source", "licence", "reason")
_IN_USE_SECONDS = 600
"""A copy that was used within this time is kept, because a query of this or another explorer may have it open."""


@dataclass(frozen=True)
class TableContent:
    """One committed table: Parquet objects with equal columns.

    Attributes:
        partition: The dataset or label key that the table belongs to.
        folder: Folder of the store in which the objects are.
        has_pixels: Whether there is an `image` column.
    """

    partition: str
    folder: str
    objects: tuple[ManifestObject, ...]
    has_pixels: bool

    @property
    def key(self) -> str:
        """32 hex digits that identify this table."""
        digest = hashlib.sha256(f"{self.partition}\t{self.folder}\n".encode())
        for item in self.objects:
            digest.update(f"{item.name}\t{item.num_bytes}\t{item.sha256}\n".encode())
        return digest.hexdigest()[:32]


def main_table(manifest: Manifest, has_pixels: bool) -> TableContent:
    """Return a manifest's own table."""
    return TableContent(manifest.inputs.partition, manifest.folder, tuple(manifest.find(".parquet")), has_pixels)


def side_table(manifest: Manifest, name: str) -> TableContent:
    """Return a table beside the main one, such as `_duplicates`; it may have no objects."""
    objects = (item for item in manifest.objects if item.name.startswith(f"{name}/") and item.name.endswith(".parquet"))
    return TableContent(manifest.inputs.partition, manifest.folder, tuple(objects), False)


class ColumnCache:
    """Local files with the columns of tables; safe to use from several threads and processes.

    Args:
        folder: Folder of the copies; it is made readable by its owner only.
        max_bytes: Limit of all copies together. A table larger than that is still copied, alone.
    """

    def __init__(self, store: Store, folder: Path, max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store, self._max_bytes = store, max_bytes
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self.num_rows_copied = 0

    def is_in_place(self, content: TableContent) -> bool:
        """Tell whether a table can be read in place; DuckDB would take a `*` or `?` in its path for a pattern."""
        return self._store.is_local and not content.has_pixels and not _GLOB & set(self._store.url)

    def files(self, content: TableContent) -> list[str]:
        """Return local Parquet files with a table's columns, in order.

        Copies also have the columns `partition`, `part` (number of the object) and `row_group`.

        Raises:
            FileNotFoundError: An object of the table is gone from the store.
        """
        if self.is_in_place(content):
            return [self._store.url_of(f"{content.folder}/{item.name}") for item in content.objects]
        if not content.objects:
            return []
        with self._lock:
            lock = self._locks.setdefault(content.key, threading.Lock())
        path = self.folder / f"{content.key}.parquet"
        with lock:
            if path.is_file():
                os.utime(path)
            else:
                self._copy(content, path)
        return [str(path)]

    def _copy(self, content: TableContent, path: Path) -> None:
        started = time.monotonic()
        staged = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.new")
        writer: pq.ParquetWriter | None = None
        try:
            for table in rechunk(self._pieces(content), TABLE_ROW_GROUP):
                if writer is None:
                    known = [name for name in _FEW_VALUES if name in table.schema.names]
                    writer = pq.ParquetWriter(staged, table.schema, compression="zstd", use_dictionary=known)
                writer.write_table(table)
            if writer is None:  # a table without rows still has columns
                empty = self._pieces(content, is_schema_wanted=True)
                pq.write_table(next(empty), staged)
            else:
                writer.close()
            staged.replace(path)
        finally:
            with suppress(FileNotFoundError):
                staged.unlink()
        logger.info("copied the columns of %s in %.1f s", content.folder, time.monotonic() - started)
        self._evict(path)

    def _pieces(self, content: TableContent, is_schema_wanted: bool = False) -> Iterator[pa.Table]:
        for number, item in enumerate(content.objects):
            with self._store.open(f"{content.folder}/{item.name}") as handle:
                file = pq.ParquetFile(handle)
                columns = [name for name in file.schema_arrow.names if name != "image"]
                if is_schema_wanted:
                    yield _located(file.read(columns=columns), content.partition, number, 0)
                    return
                for group in range(file.num_row_groups):
                    table = _located(file.read_row_group(group, columns=columns), content.partition, number, group)
                    self.num_rows_copied += len(table)
                    yield table

    def _evict(self, newest: Path) -> None:
        """Remove copies, the least recently used first, until the others fit."""
        found = []
        for path in self.folder.glob("*.parquet"):
            with suppress(FileNotFoundError):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if total <= self._max_bytes:
                return
            if path != newest and used < time.time() - _IN_USE_SECONDS:
                path.unlink(missing_ok=True)
                total -= size


def _located(table: pa.Table, partition: str, part: int, group: int) -> pa.Table:
    num = len(table)
    table = table.replace_schema_metadata(None)
    table = table.append_column("partition", pa.array([partition] * num, pa.string()))
    table = table.append_column("part", pa.array([part] * num, pa.int32()))
    return table.append_column("row_group", pa.array([group] * num, pa.int32()))
