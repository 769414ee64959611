"""The local engines: order, laziness, errors, killed workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cem_assets.execution.local import LocalEngine, ThreadEngine, ahead, default_num_workers, local_engine, threads_or_processes


def square(n: int) -> int:
    time.sleep(0.02 * (n % 3))
    return n * n


def fail_at_five(n: int) -> int:
    if n == 5:
        raise ValueError("five")
    return n


def die_at_five(n: int) -> int:
    if n == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(LocalEngine(workers).map(square, range(20))) == [n * n for n in range(20)]


def test_items_are_taken_lazily_and_few_are_in_flight():
    taken = []

    def items():
        for n in range(100):
            taken.append(n)
            yield n

    results = LocalEngine(2).map(square, items())
    next(results)
    assert len(taken) <= 5
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_up_at_their_items_turn(workers):
    results = LocalEngine(workers).map(fail_at_five, range(10))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_a_killed_worker_is_told_with_the_remedy():
    with pytest.raises(RuntimeError, match=r"one of 2 worker processes was killed, .*CEM_ASSETS_WORKERS=1"):
        list(LocalEngine(2).map(die_at_five, range(10)))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\nfrom cem_assets.execution.local import LocalEngine\n"
        "def work(n):\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    list(LocalEngine(2).map(work, range(4)))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


_unfinished: list[Iterator[int]] = []


def leave_unfinished() -> None:
    _unfinished.append(LocalEngine(2).map(square, range(20)))
    next(_unfinished[0])


def test_a_process_that_leaves_work_unfinished_ends():
    process = multiprocessing.get_context("spawn").Process(target=leave_unfinished)
    process.start()
    process.join(30)
    is_over = process.exitcode == 0
    process.kill()
    assert is_over


def test_small_jobs_do_without_processes(monkeypatch):
    assert local_engine(4, 15) == LocalEngine(1) and local_engine(4, 16) == LocalEngine(4)
    monkeypatch.setenv("CEM_ASSETS_WORKERS", "3")
    assert default_num_workers() == 3
    for bad in ("0", "-1", "many"):
        monkeypatch.setenv("CEM_ASSETS_WORKERS", bad)
        with pytest.raises(ValueError, match="CEM_ASSETS_WORKERS is .* expected a whole number of at least 1"):
            default_num_workers()


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_keep_the_order_and_tell_errors_at_their_items_turn(workers):
    assert list(ThreadEngine(workers).map(square, range(20))) == [n * n for n in range(20)]
    results = ThreadEngine(workers).map(fail_at_five, range(10))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_threads_take_few_items_ahead_and_end_with_an_unfinished_map():
    taken, running = [], threading.active_count()

    def items():
        for n in range(100):
            taken.append(n)
            yield n

    results = ThreadEngine(2).map(square, items())
    next(results)
    assert len(taken) <= 7
    results.close()
    assert threading.active_count() == running


def test_threads_are_chosen_for_few_cores_or_small_jobs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CEM_ASSETS_WORKERS", "2")
    assert threads_or_processes(10_000) == ThreadEngine(2)
    monkeypatch.setenv("CEM_ASSETS_WORKERS", "16")
    assert threads_or_processes(10) == ThreadEngine(8)
    assert threads_or_processes(64) == LocalEngine(16)


def test_one_item_is_taken_ahead_in_order_and_errors_come_in_their_place():
    taken: list[int] = []
    is_ahead = threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            taken.append(number)
            if number == 1:
                is_ahead.set()
            yield number
        raise ValueError("item 4")

    coming = ahead(items())
    assert next(coming) == 0
    assert is_ahead.wait(10), "the next one is taken while nobody asks"
    assert len(taken) == 2
    assert [next(coming) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="item 4"):
        next(coming)
    assert list(ahead([])) == [] and list(ahead([None, 1])) == [None, 1]


def test_a_caller_that_stops_early_leaves_no_thread_behind():
    coming = ahead(iter(range(100)))
    next(coming)
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
