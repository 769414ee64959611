"""Writing in the background: bounded, in order, readable until it is written, and complete when the process ends."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cem_assets.pixels import write_behind
from cem_assets.pixels.write_behind import WriteBehind, gather


def numbered(n: int) -> np.ndarray:
    return np.full((2, 5), n, np.uint8)


def test_everything_is_written_once_in_order_and_then_let_go_of():
    written = []
    behind = WriteBehind(lambda name, array: written.append((name, int(array[0, 0]))), 1000)
    for n in range(20):
        assert behind.put(str(n), numbered(n))
    behind.flush()
    assert written == [(str(n), n) for n in range(20)]
    assert behind.find("3") is None
    behind.flush()  # nothing left to wait for
    assert behind.put("again", numbered(1))
    behind.flush()
    assert written[-1] == ("again", 1)


def test_the_bound_holds_and_what_waits_is_found(monkeypatch):
    may_write = threading.Event()
    behind = WriteBehind(lambda *_: may_write.wait(60), 35)
    assert [behind.put(str(n), numbered(n)) for n in range(5)] == [True, True, True, False, False]
    assert behind.put("1", numbered(1))  # the array is waiting already
    found = behind.find("2")
    assert found is not None and found[0, 0] == 2 and behind.find("3") is None
    may_write.set()
    behind.flush()
    assert behind.put("3", numbered(3))
    behind.flush()


@pytest.mark.parametrize("reason", ["rest", "patience", "half full"])
def test_it_is_written_without_a_flush(monkeypatch, reason):
    """Test each reason to write alone, with the others made impossible."""
    monkeypatch.setattr(write_behind, "REST_SECONDS", 0.01 if reason == "rest" else 60.0)
    monkeypatch.setattr(write_behind, "PATIENCE_SECONDS", 0.0 if reason == "patience" else 60.0)
    written = threading.Event()
    behind = WriteBehind(lambda *_: written.set(), 10 if reason == "half full" else 1000)
    with behind.reading():
        behind.put("0", numbered(0))
        if reason != "rest":
            assert written.wait(30)
    assert written.wait(30)


def test_while_readers_are_busy_nothing_is_written(monkeypatch):
    monkeypatch.setattr(write_behind, "REST_SECONDS", 0.01)
    monkeypatch.setattr(write_behind, "PATIENCE_SECONDS", 60.0)
    written = []
    behind = WriteBehind(lambda name, _: written.append(name), 1000)
    with behind.reading():
        behind.put("0", numbered(0))
        with behind.reading():
            pass
        threading.Event().wait(0.1)
        assert not written and behind.find("0") is not None
        behind.flush()
        assert written == ["0"]


def test_a_write_that_fails_holds_nothing_up(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fails(name: str, _: np.ndarray) -> None:
        raise RuntimeError(name)

    behind = WriteBehind(fails, 25)
    for n in range(4):
        assert behind.put(str(n), numbered(n))
        behind.flush()
        assert behind.find(str(n)) is None
    assert len(told) == 4


def test_a_process_writes_everything_before_it_ends(tmp_path):
    code = f"""
import numpy as np
from pathlib import Path
from cem_assets.pixels.write_behind import WriteBehind
behind = WriteBehind(lambda name, array: (Path({str(tmp_path)!r}) / name).write_bytes(array.tobytes()), 10**6)
for n in range(5):
    behind.put(str(n), np.full(9, n, np.uint8))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert [(tmp_path / str(n)).read_bytes() for n in range(5)] == [bytes([n] * 9) for n in range(5)]


def test_gathering_copies_chosen_entries_to_their_places():
    array, out = np.arange(40, dtype=np.uint8).reshape(4, 10)[:, 2:], np.zeros((6, 8), np.uint8)
    gather(array, np.array([3, 0, 3]), out, np.array([1, 5, 0]))
    assert np.array_equal(out[[1, 5, 0]], array[[3, 0, 3]]) and not out[2:5].any()
