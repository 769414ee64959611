"""Engines for parallel work: they apply a pure function to independent items and return the results in order.

All heavy work on independent pieces (bricks, images) goes through `Engine.map`. The local engines use a pool of processes, or
threads where the work releases the GIL; `cem_assets.execution.ray` uses a cluster. All of them yield results in the order of
the items, have a bounded number of items in flight, and raise an error when its item's turn comes. Results never depend on the
choice of the engine.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.util import Finalize
from typing import Protocol, TypeVar

from cem_assets import environment
from cem_assets.errors import DataError, OutOfMemoryError

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_IN_FLIGHT_PER_WORKER = 2


class EngineChoice(StrEnum):
    """The engine that distributes work; `default` is the one that CEM_ASSETS_ENGINE names."""

    default = "default"
    local = "local"
    ray = "ray"


def engine_choice(choice: EngineChoice = EngineChoice.default) -> EngineChoice:
    """Return the engine to use: that of the run's configuration, else CEM_ASSETS_ENGINE, else the local one.

    Raises:
        DataError: The variable names no engine.
    """
    if choice != EngineChoice.default:
        return choice
    text = environment.text(environment.ENGINE) or EngineChoice.local
    if text not in (EngineChoice.local, EngineChoice.ray):
        raise DataError(f"{environment.ENGINE} is {text!r}; expected local or ray.")
    return EngineChoice(text)


class Engine(Protocol):
    """Something that applies a function to items in parallel.

    Attributes:
        spans_machines: Whether items may be processed on other machines, which do not have this machine's scratch files and
            devices.
    """

    @property
    def spans_machines(self) -> bool: ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item; yield results in the order of the items."""
        ...


_divisor: ContextVar[int] = ContextVar("workers_divided_by", default=1)


@contextmanager
def fewer_workers(divisor: int) -> Iterator[None]:
    """Divide what `default_num_workers` returns in this block, for work that ran out of memory or disk before."""
    token = _divisor.set(_divisor.get() * divisor)
    try:
        yield
    finally:
        _divisor.reset(token)


def default_num_workers() -> int:
    """Return CEM_ASSETS_WORKERS, else the number of cores that this process may use, at most 16.

    Within `fewer_workers` the number is divided; it is always at least one.
    """
    wanted = environment.whole_number(environment.WORKERS)
    if not wanted:
        wanted = min(16, len(os.sched_getaffinity(0)))
    return max(1, wanted // _divisor.get())


@dataclass(frozen=True)
class LocalEngine:
    """A pool of processes on this machine; with one worker everything runs in the calling process."""

    num_workers: int = 1

    @property
    def spans_machines(self) -> bool:
        return False

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item and yield the results in order; at most two items for each worker are in flight.

        Args:
            function: A pure function that can be pickled. Its module should not import Dagster or torch without need, because
                every worker imports it.
            items: Items that can be pickled. They are taken as needed, so a generator stays lazy.

        Raises:
            OutOfMemoryError: A worker was killed, most often because memory ran out.
            Exception: The error that `function` raised for an item, when the item's turn comes.
        """
        if self.num_workers <= 1:
            yield from map(function, items)
            return
        # Never fork: the calling process has threads (gRPC, S3), which do not run in a forked child, though it has their state.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.num_workers, context, _start_worker, (os.getpid(),))
        # A caller may keep this generator alive and unfinished, for example in the traceback of an error. A process that
        # multiprocessing started would then wait for the workers for ever when it ends.
        shut_down = Finalize(None, pool.shutdown, kwargs={"wait": True, "cancel_futures": True}, exitpriority=100)
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= _IN_FLIGHT_PER_WORKER * self.num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError(
                f"one of {self.num_workers} worker processes was killed, most often because memory ran out. Run again with "
                f"fewer workers ({environment.WORKERS}=1); finished pieces are not computed twice."
            ) from error
        finally:
            shut_down()


def _start_worker(parent: int) -> None:
    """Limit a worker to one thread for numerical libraries, and end it when its parent ends, even if that was killed."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def local_engine(num_workers: int | None, num_items: int, items_per_worker: int = 4) -> LocalEngine:
    """Choose a pool for a job: starting processes takes about a second, so small jobs run in this process.

    Args:
        num_workers: The wanted number of processes; None means `default_num_workers()`.
        items_per_worker: With fewer items than this for each worker, the job runs in this process.
    """
    wanted = default_num_workers() if num_workers is None else num_workers
    return LocalEngine(wanted if num_items >= items_per_worker * wanted else 1)


_MOST_THREADS = 8
"""With more threads than this, the Python code that runs for each brick (names, tables) would make others wait for the GIL."""


@dataclass(frozen=True)
class ThreadEngine:
    """Threads of the calling process, for functions that spend their time in libraries that release the GIL.

    Threads start at once, where a process takes a second, and share the imported modules. There is one thread more than
    `num_workers`, so that all cores are busy while one thread waits for the disk or the network.
    """

    num_workers: int = 1

    @property
    def spans_machines(self) -> bool:
        return False

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item and yield the results in order; at most two items for each thread are in flight.

        Args:
            function: A pure function that may run in several threads at once.
            items: They are taken as needed, so a generator stays lazy.

        Raises:
            Exception: The error that `function` raised for an item, when the item's turn comes.
        """
        num_threads = self.num_workers + 1
        pool = ThreadPoolExecutor(num_threads, "engine")
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= _IN_FLIGHT_PER_WORKER * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def threads_or_processes(num_items: int, items_per_worker: int = 4) -> Engine:
    """Choose the engine for a function that releases the GIL: threads, or processes where there are many cores.

    Args:
        items_per_worker: As for `local_engine`.
    """
    wanted = default_num_workers()
    if wanted <= _MOST_THREADS or num_items < items_per_worker * wanted:
        return ThreadEngine(min(wanted, _MOST_THREADS))
    return LocalEngine(wanted)


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Take the next item of an iterable in a thread, while the caller works on the one before.

    Args:
        items: Such as batches that are read from a store. One thread takes them, one at a time and in order.

    Yields:
        The items. If taking one raises an error, the error is raised in its place.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        waiting: Future[object] = pool.submit(next, iterator, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
