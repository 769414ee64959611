"""Patches of a release for training: random access by row number, and batches that threads read ahead.

Rows are numbered through the Parquet shards in order. `cem_assets.pixels.shards` opens shards. A row group is fetched once,
decoded by `cem_assets.pixels.image_cells`, and kept in a bounded cache (`cem_assets.pixels.cache`).
`cem_assets.pretraining.data.epochs` decides the order of rows, and which process reads which. `cem_assets.readers` is simpler,
and enough for looking at a release.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.pixels.batch import Batch
from cem_assets.pixels.cache import PATCH_BYTES, DiskCache, MemoryCache, PixelCache, Wanted
from cem_assets.pixels.image_cells import SIDE_PX, Fit, decode_cells
from cem_assets.pixels.shards import Shard, as_line, first_of, is_damage, open_shard
from cem_assets.store.ranges import opened
from cem_assets.store.store import Store

DISK_CACHE_BYTES = 64 << 30
MEMORY_CACHE_BYTES = 2 << 30

_OPENING_THREADS = 16


@dataclass(frozen=True)
class TrainingSource:
    """The patches of some Parquet shards. It may be shared between threads.

    Attributes:
        labels: int64 (num_rows,), the place of each row's class in `classes`.
        classes: The values of the label column, in order.
        group_starts: int64 (num_groups + 1,), the first row of each row group, and the number of rows.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    group_starts: NDArray[np.int64]
    _store: Store = field(repr=False)
    _shards: tuple[Shard, ...] = field(repr=False)
    _groups: tuple[tuple[int, int], ...] = field(repr=False)
    _fit: Fit
    _cache: PixelCache = field(repr=False)

    @classmethod
    def open(
        cls,
        store: Store,
        keys: Sequence[str],
        cache: Path | None = None,
        cache_bytes: int | None = None,
        label_column: str = "dataset",
        fit: Fit = "mirror",
    ) -> "TrainingSource":
        """Open shards; only their footers are read, and labels that vary within a row group.

        Args:
            keys: Keys of Parquet files with an `image` column, in the order in which rows are numbered.
            cache: A folder on a local disk, which processes may share and which outlives them; None keeps patches in memory. A
                cache of `num_rows` x 50 kB holds everything. With a smaller one, read in a `streaming_order`.
            cache_bytes: The bound of the cache; None means 64 GiB on disk, 2 GiB in memory.
            label_column: A column of strings or integers, whose values are the classes.
            fit: How images of other sizes become 224 x 224 px.

        Raises:
            FileNotFoundError: Shards are missing; the error names them.
            DataError: A file is no such shard, or there are no rows; the error names all problems.
        """
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            found_shards = list(pool.map(partial(open_shard, store, label_column=label_column), keys))
        missing = [key for key, found in zip(keys, found_shards, strict=True) if found is None]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(keys)} shards are missing in {store.url}: {first_of(missing)}; expected those that "
                "the release names. Make the release again, or restore them."
            )
        problems = [found for found in found_shards if isinstance(found, str)]
        shards = tuple(found for found in found_shards if isinstance(found, Shard))
        groups = tuple((n, g) for n, shard in enumerate(shards) for g in range(shard.metadata.num_row_groups))
        sizes = [shards[n].metadata.row_group(g).num_rows for n, g in groups]
        if not problems and not sum(sizes):
            problems = [f"{len(keys)} shards hold no rows"]
        if problems:
            raise DataError(f"the shards in {store.url} cannot be trained on: {first_of(problems)}. Choose another release.")
        values = pa.chunked_array([shard.labels for shard in shards], pa.string())
        classes = pc.unique(values).sort()
        default = MEMORY_CACHE_BYTES if cache is None else DISK_CACHE_BYTES
        bound = default if cache_bytes is None else cache_bytes
        held: PixelCache = MemoryCache(bound) if cache is None else DiskCache(cache, bound)
        return cls(
            labels=pc.index_in(values, classes).combine_chunks().to_numpy().astype(np.int64),
            classes=tuple(classes.to_pylist()),
            group_starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            _store=store,
            _shards=shards,
            _groups=groups,
            _fit=fit,
            _cache=held,
        )

    @property
    def num_rows(self) -> int:
        return len(self.labels)

    def class_sizes(self) -> list[int]:
        """Count the rows of each class in the order of rows, for `cem_assets.pretraining.data.epochs.epoch_order`.

        Raises:
            DataError: The rows of a class do not lie together.
        """
        ends = np.flatnonzero(np.diff(self.labels)) + 1
        if len(ends) + 1 != len(self.classes):
            raise DataError(
                f"the rows of the {len(self.classes)} classes are mixed; expected those of each class together, as in "
                "releases. Draw from (num_rows,) with weight_gamma 0 instead."
            )
        sizes: list[int] = np.diff(np.concatenate([[0], ends, [self.num_rows]])).tolist()
        return sizes

    def read_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read patches.

        Args:
            rows: int64 (n,), in any order; a row may occur several times.

        Returns:
            Pixels, uint8 (n, 224, 224), and labels, int64 (n,).

        Raises:
            IndexError: There is no such row.
            FileNotFoundError: A shard has vanished since the source was opened.
            DataError: A shard is damaged.
            OSError: The store could not be reached after several attempts.
        """
        out = np.empty((len(rows), SIDE_PX, SIDE_PX), np.uint8)
        self._fill(rows, out, lambda: False)
        return out, self.labels[rows]

    def fill_cache(self, num_threads: int = 4, progress: Callable[[int, int], None] | None = None) -> None:
        """Fetch and decode every row group now, and not when it is first needed.

        Raises:
            DataError: The cache is too small for all row groups.
        """
        if self.num_rows * (PATCH_BYTES + 8) > self._cache.max_bytes:
            raise DataError(
                f"{self.num_rows} patches need {self.num_rows * (PATCH_BYTES + 8)} bytes of cache, and it may hold "
                f"{self._cache.max_bytes}. Raise cache_bytes, or read in a streaming_order without filling it first."
            )
        nothing = np.empty((0, SIDE_PX, SIDE_PX), np.uint8)
        with ThreadPoolExecutor(num_threads) as pool:
            futures = [pool.submit(self._read_group, group, _NONE, _NONE, nothing) for group in range(len(self._groups))]
            try:
                for done, future in enumerate(futures, 1):
                    future.result()
                    if progress is not None:
                        progress(done, len(futures))
            finally:
                pool.shutdown(cancel_futures=True)
        self.flush()

    def flush(self) -> None:
        """Wait until the cache holds everything decoded so far. Reading does not need this, and ending processes do it too."""
        self._cache.flush()

    def _fill(self, rows: NDArray[np.int64], out: NDArray[np.uint8], is_cancelled: Callable[[], bool]) -> None:
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_rows:
            raise IndexError(f"rows {rows.min()}..{rows.max()} were asked for; expected 0..{self.num_rows - 1}.")
        group_of = np.searchsorted(self.group_starts, rows, side="right") - 1
        by_group = np.argsort(group_of, kind="stable")
        groups, firsts = np.unique(group_of[by_group], return_index=True)
        parts = list(zip(groups.tolist(), np.split(by_group, firsts[1:]), strict=True)) if len(rows) else []
        # Threads that begin with the same group, or wait for each other's groups, would decode one after the other.
        turn = int(rows[0]) % len(parts) if parts else 0
        todo, may_wait = parts[turn:] + parts[:turn], False
        while todo:
            left = []
            for group, places in todo:
                if is_cancelled():
                    return
                if self._read_group(group, rows[places] - self.group_starts[group], places, out, may_wait):
                    may_wait = False
                else:
                    left.append((group, places))
            may_wait = len(left) == len(todo)  # other threads or processes are building all that is left
            todo = left

    def _read_group(
        self, group: int, inside: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[np.uint8], may_wait: bool = True
    ) -> bool:
        number, row_group = self._groups[group]
        text = f"{self._shards[number].identity} {row_group} {self._fit} {SIDE_PX}"
        name = hashlib.sha256(text.encode()).hexdigest()[:40]
        num_patches = int(self.group_starts[group + 1] - self.group_starts[group])
        build = partial(self._decode, number, row_group, num_patches)
        return self._cache.read(Wanted(name, num_patches, inside, places), out, build, may_wait)

    def _decode(self, number: int, row_group: int, num_patches: int) -> NDArray[np.uint8]:
        shard = self._shards[number]
        try:
            with opened(self._store, shard.key, shard.num_bytes) as handle:
                if (found := handle.size()) != shard.num_bytes:
                    raise DataError(f"it has {found} bytes now, and had {shard.num_bytes} when it was opened")
                file = pq.ParquetFile(handle, metadata=shard.metadata, pre_buffer=False)
                column = file.read_row_group(row_group, columns=[shard.image_column], use_threads=False)["image"]
            pixels = decode_cells(column, self._fit)
            if len(pixels) != num_patches:
                raise DataError(f"it has {len(pixels)} rows, and its footer says {num_patches}")
            return pixels
        except (FileNotFoundError, PermissionError) as error:
            if self._store.stat(shard.key) is not None:
                raise
            raise FileNotFoundError(
                f"shard {self._store.url_of(shard.key)} has vanished since training began. Restore it, or train on another "
                "release; what a release names is not swept."
            ) from error
        except (DataError, pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            raise DataError(
                f"row group {row_group} of shard {self._store.url_of(shard.key)} cannot be read: {as_line(error)}. "
                "Compare its sha256 with the manifest's, and restore it."
            ) from error


@dataclass(frozen=True)
class BatchStream:
    """Batches of a source, read ahead by threads. The batches and their order do not depend on the number of threads.

    It can be iterated several times. Leaving an iteration early stops its threads.

    Attributes:
        batches: int64 arrays with the rows of each batch, as `cem_assets.pretraining.data.epochs.share` deals them out.
        start: The number of the first batch.
        num_threads: Threads that read, and decode the row groups that the cache does not have yet.
        num_ahead: The number of batches that are being read or wait to be taken; it bounds the memory.
    """

    source: TrainingSource
    batches: Sequence[NDArray[np.int64]]
    start: int = 0
    num_threads: int = 4
    num_ahead: int = 8

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        cancelled = threading.Event()
        todo = enumerate(self.batches, self.start)
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(min(self.num_threads, self.num_ahead), thread_name_prefix="batches")
        try:
            for number, rows in islice(todo, self.num_ahead):
                waiting.append(pool.submit(self._read, number, rows, cancelled))
            while waiting:
                batch = waiting.popleft().result()
                for number, rows in islice(todo, 1):
                    waiting.append(pool.submit(self._read, number, rows, cancelled))
                yield batch
        finally:
            cancelled.set()
            pool.shutdown(cancel_futures=True)

    def _read(self, number: int, rows: NDArray[np.int64], cancelled: threading.Event) -> Batch:
        images = np.empty((len(rows), SIDE_PX, SIDE_PX), np.uint8)
        self.source._fill(rows, images, cancelled.is_set)
        return Batch(number, rows, images, self.source.labels[rows])


_NONE = np.empty(0, np.int64)
