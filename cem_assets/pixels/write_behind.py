"""Arrays on their way to a disk: a thread writes them when readers pause, and until then they can be read from here.

Readers pause whenever they are ahead of training, so writing does not slow down the first epoch. An array that has waited for
long is written at once, and so are arrays that take half the room. `cem_assets.pixels.cache` decides what is written and how.
Nothing here waits for room: when the bound is reached, the caller writes by itself, which also keeps it from running ahead of
the disk.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

REST_SECONDS = 0.02
"""After so many seconds without a read, readers count as pausing."""
PATIENCE_SECONDS = 2.0
"""An array waits at most this long. A killed process has to fetch again what was still waiting."""


class WriteBehind:
    """Arrays by name, written in the order in which they came. It may be shared between threads.

    The thread ends when nothing is left to write, and the process waits for it before it ends.
    """

    def __init__(self, write: Callable[[str, NDArray[Any]], None], max_bytes: int) -> None:
        """Start with nothing to write.

        Args:
            write: Called with a name and its array. Its errors go to `threading.excepthook`, and the array is dropped even
                then.
            max_bytes: The bound of the arrays that wait or are being written.
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
        """Return an array that is not written yet. None means that there is no such array, or that writing it has ended."""
        _, array = self._waiting.get(name, (0.0, None))
        return array

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count a reader as busy while the block runs."""
        with self._lock:
            self._num_reading += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_reading -= 1
                self._last_read = time.monotonic()

    def put(self, name: str, array: NDArray[Any]) -> bool:
        """Take an array to write, which must not change any more; return False if there is no room for it.

        Args:
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
        # A forked child has a copy of the attribute, but no living thread.
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
                    self._writer = None  # changed under the lock, so that the next `put` starts a new thread
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
        # When the main thread has ended, the process waits for this one.
        is_ending = not threading.main_thread().is_alive()
        return has_rest or is_ending or self._is_flushing.is_set() or now - since > PATIENCE_SECONDS


def gather(array: NDArray[np.uint8], inside: NDArray[np.int64], out: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
    """Copy entries of one array to places of another.

    Args:
        array: uint8 (n, ...).
        inside: int64 (k,), the places of the entries in `array`.
        out: uint8 (m, ...).
        places: int64 (k,), their places in `out`.
    """
    for one, place in zip(inside.tolist(), places.tolist(), strict=True):
        out[place] = array[one]
