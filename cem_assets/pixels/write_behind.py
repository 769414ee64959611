"""Arrays on their way to a disk: a thread writes them when readers rest, and until then they are read from here.

Readers rest whenever they are ahead of training; a first epoch that nothing else holds up is not held up by writing
either. What waits for long, or takes half the room, is written at once. What is written and how is the caller's,
`cem_assets.pixels.cache`. Nothing here waits for room: where the bound is reached the caller writes by
itself, which also keeps it from running ahead of the disk.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

REST_SECONDS = 0.02
"""Without a read, after which readers are taken to rest."""
PATIENCE_SECONDS = 2.0
"""An array waits at most: what a process that is killed must fetch again."""


class WriteBehind:
    """Arrays by name, written in the order in which they came. Safe to share between threads.

    The thread ends when there is nothing left to write, and the process does not end before it.
    """

    def __init__(self, write: Callable[[str, NDArray[Any]], None], max_bytes: int) -> None:
        """Start with nothing to write.

        Args:
            write: Called with a name and its array. What it raises ends up in `threading.excepthook`, and the array is
                let go of all the same.
            max_bytes: Of the arrays that wait or are being written.
        """
        self.max_bytes = max_bytes
        self._write = write
        self._waiting: dict[str, tuple[float, NDArray[Any]]] = {}
        self._num_reading = 0
        self._last_read = 0.0
        self._is_flushing = threading.Event()
        self._num_bytes = 0
        self._writer: threading.Thread | None = None
        self._lock = threading.Lock()

    def find(self, name: str) -> NDArray[Any] | None:
        """Return an array that is not written yet, or None. Once it is None, it was written or writing it has failed."""
        _, array = self._waiting.get(name, (0.0, None))
        return array

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Say that a reader is busy."""
        with self._lock:
            self._num_reading += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_reading -= 1
                self._last_read = time.monotonic()

    def put(self, name: str, array: NDArray[Any]) -> bool:
        """Take an array to write, which must not change any more; False where there is no room for it.

        Args:
            name: Of the array.
            array: Any (n, ...), any dtype.
        """
        with self._lock:
            if name in self._waiting or self._num_bytes + array.nbytes > self.max_bytes:
                return name in self._waiting
            self._waiting[name] = time.monotonic(), array
            self._num_bytes += array.nbytes
            self._running()
        return True

    def flush(self) -> None:
        """Wait until everything is written."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                writer = self._running()
                self._is_flushing.set()
            writer.join()

    def _running(self) -> threading.Thread:
        # In a forked child the parent's thread is not alive either.
        if self._writer is None or not self._writer.is_alive():
            self._is_flushing.clear()
            self._writer = threading.Thread(target=self._work, name="write-behind")
            self._writer.start()
        return self._writer

    def _work(self) -> None:
        while True:
            with self._lock:
                name = next(iter(self._waiting), None)
                if name is None:
                    self._writer = None  # told under the lock: whoever puts the next one starts another
                    return
                since, array = self._waiting[name]
                is_half_full = 2 * self._num_bytes > self.max_bytes
            if not (is_half_full or self._is_due(since)):
                self._is_flushing.wait(REST_SECONDS)
                continue
            try:
                self._write(name, array)
            finally:
                with self._lock:
                    del self._waiting[name]
                    self._num_bytes -= array.nbytes

    def _is_due(self, since: float) -> bool:
        now = time.monotonic()
        has_rest = not self._num_reading and now - self._last_read > REST_SECONDS
        # The process ends when its main thread has; it waits for this one.
        is_ending = not threading.main_thread().is_alive()
        return has_rest or is_ending or self._is_flushing.is_set() or now - since > PATIENCE_SECONDS


def gather(array: NDArray[np.uint8], inside: NDArray[np.int64], out: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
    """Copy entries of one array to places of another, each of them once.

    Args:
        array: uint8 (n, ...).
        inside: int64 (k,), which of them.
        out: uint8 (m, ...).
        places: int64 (k,), where they go.
    """
    for one, place in zip(inside.tolist(), places.tolist(), strict=True):
        out[place] = array[one]
