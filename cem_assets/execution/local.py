"""The one seam for parallel work: a pure function over independent items, results in order.

Everything heavy that can be cut into independent pieces (bricks, images) goes through `Engine.map`. The local
engines are a pool of processes, and threads where the work leaves the GIL alone; `cem_assets.execution.ray` is a cluster. All
keep the contract: results in the order of the items, a bounded number in flight, errors raised where their item comes
up. Results never depend on it.
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
    """Which engine shares work out."""

    default = "default"
    local = "local"
    ray = "ray"


def engine_choice(choice: EngineChoice = EngineChoice.default) -> EngineChoice:
    """Return the engine to take: what a run asks for, else CEM_ASSETS_ENGINE, else the local one.

    Raises:
        ValueError: The variable names no engine.
    """
    if choice != EngineChoice.default:
        return choice
    text = environment.text(environment.ENGINE) or EngineChoice.local
    if text not in (EngineChoice.local, EngineChoice.ray):
        raise DataError(f"{environment.ENGINE} is {text!r}; expected local or ray.")
    return EngineChoice(text)


class Engine(Protocol):
    """Something that maps a function over items.

    Attributes:
        spans_machines: Whether items may be worked on where this machine's scratch files and devices are not.
    """

    @property
    def spans_machines(self) -> bool: ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item; yield results in the order of the items."""
        ...


_divisor: ContextVar[int] = ContextVar("workers_divided_by", default=1)


@contextmanager
def fewer_workers(divisor: int) -> Iterator[None]:
    """Let `default_num_workers` return that many times fewer, at least one: for work that ran out of memory before."""
    token = _divisor.set(_divisor.get() * divisor)
    try:
        yield
    finally:
        _divisor.reset(token)


def default_num_workers() -> int:
    """Return CEM_ASSETS_WORKERS, else the number of cores this process may use, at most 16; fewer in `fewer_workers`."""
    wanted = environment.whole_number(environment.WORKERS)
    if not wanted:
        wanted = min(16, len(os.sched_getaffinity(0)))
    return max(1, wanted // _divisor.get())


@dataclass(frozen=True)
class LocalEngine:
    """A pool of processes on this machine; with one worker everything runs in the calling process.

    Attributes:
        num_workers: Processes.
    """

    num_workers: int = 1

    @property
    def spans_machines(self) -> bool:
        return False

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item; yield results in order, at most two items a worker in flight.

        Args:
            function: Picklable, pure, and importable without Dagster or torch where they are not needed.
            items: Picklable; taken one at a time, so a generator stays lazy.

        Yields:
            Results in the order of the items.

        Raises:
            OutOfMemoryError: A worker was killed, most often for memory.
            Exception: Whatever `function` raised, at the item's turn.
        """
        if self.num_workers <= 1:
            yield from map(function, items)
            return
        # Never fork: the calling process has threads (gRPC, S3) that a forked child would inherit half-alive.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.num_workers, context, _start_worker, (os.getpid(),))
        # A caller may leave this generator unfinished and alive (in the traceback of an error, say); a process that was
        # itself started by multiprocessing would then wait for the workers for ever when it ends.
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
    """Keep a worker to one thread of its own, and let it end when its parent does, however that one ends."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def local_engine(num_workers: int | None, num_items: int, items_per_worker: int = 4) -> LocalEngine:
    """Choose a pool for a job: starting processes costs about a second, so small jobs do without.

    Args:
        num_workers: What was asked for; None means `default_num_workers()`.
        num_items: How many items there are.
        items_per_worker: Fewer than this for every worker, and the job runs in this process.
    """
    wanted = default_num_workers() if num_workers is None else num_workers
    return LocalEngine(wanted if num_items >= items_per_worker * wanted else 1)


_MOST_THREADS = 8
"""Past this many workers, what Python does for each brick (names, tables) would keep the others waiting for the GIL."""


@dataclass(frozen=True)
class ThreadEngine:
    """Threads of the calling process, for functions whose time goes into libraries that release the GIL.

    They start at once, where a process takes a second, and share what is imported. There is one more than workers, so
    that one may wait for the disk or the network.

    Attributes:
        num_workers: Cores to keep busy.
    """

    num_workers: int = 1

    @property
    def spans_machines(self) -> bool:
        return False

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item; yield results in order, at most two items a thread in flight.

        Args:
            function: Pure, and safe in several threads at once.
            items: Taken one at a time, so a generator stays lazy.

        Yields:
            Results in the order of the items.

        Raises:
            Exception: Whatever `function` raised, at the item's turn.
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
    """Choose the engine of a job that releases the GIL: threads, or processes where there are many cores.

    Args:
        num_items: How many items there are.
        items_per_worker: As for `local_engine`.
    """
    wanted = default_num_workers()
    if wanted <= _MOST_THREADS or num_items < items_per_worker * wanted:
        return ThreadEngine(min(wanted, _MOST_THREADS))
    return LocalEngine(wanted)


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Take items from an iterable one ahead, in a thread, while the caller works on the one before.

    Args:
        items: Such as batches read from a store; taken in order, one at a time, by one thread.

    Yields:
        The items. What taking one raised is raised in its place.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        waiting: Future[object] = pool.submit(next, iterator, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
