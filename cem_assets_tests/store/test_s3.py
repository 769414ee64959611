"""Requests to S3 through obstore, and through s3fs where obstore fails."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

import obstore
import pytest
from obstore.exceptions import GenericError

from cem_assets.store import s3 as quick_s3
from cem_assets.store.s3 import QuickBucket, quick_bucket
from cem_assets.store.store import Store


@pytest.fixture
def bucket(s3_store: Store) -> QuickBucket:
    """The store's bucket through obstore, with its count of failures reset before and after."""
    found, _ = s3_store._quick("x")
    assert found is not None
    found._num_failures, found._paused_until = 0, 0.0
    yield found
    found._num_failures, found._paused_until = 0, 0.0


def fail(*_, **__):
    raise GenericError("the server was struck by lightning")


def fail_all(monkeypatch) -> list[str]:
    """Let every call of obstore fail, while the server itself works."""
    asked: list[str] = []
    for name in ("get", "put", "list"):
        monkeypatch.setattr(obstore, name, lambda *args, _name=name, **more: (asked.append(_name), fail())[1])
    return asked


def test_what_fails_is_asked_again_through_s3fs(s3_store, bucket, monkeypatch):
    s3_store.put("a/1", b"one")
    asked = fail_all(monkeypatch)
    monkeypatch.setattr(quick_s3, "_MAX_FAILURES", 1000)  # without a pause, which would skip the last calls
    assert s3_store.read("a/1") == b"one"
    assert bytes(s3_store.read_range("a/1", 1, 9)[0]) == b"ne" and s3_store.read_range("a/1", 1, 9)[1] == 3
    s3_store.put("a/2", b"two")
    assert s3_store.create("a/3", b"three") and s3_store.create("a/3", b"three") and not s3_store.create("a/3", b"four")
    assert [item.key for item in s3_store.walk("a")] == ["a/1", "a/2", "a/3"]
    assert set(asked) == {"get", "put", "list"}
    monkeypatch.undo()
    assert s3_store.read("a/2") == b"two" and s3_store.read("a/3") == b"three"


def test_after_failures_in_a_row_s3fs_alone_is_asked_for_a_while(s3_store, bucket, monkeypatch, caplog):
    s3_store.put("a/1", b"one")
    asked = fail_all(monkeypatch)
    with caplog.at_level(logging.WARNING):
        for _ in range(quick_s3._MAX_FAILURES + 5):
            assert s3_store.read("a/1") == b"one"
    assert len(asked) == quick_s3._MAX_FAILURES
    (record,) = (record for record in caplog.records if "obstore failed" in record.message)
    assert bucket.name in record.message and "struck by lightning" in record.message
    monkeypatch.undo()
    assert bucket.read("anything") is None, "still paused, though the server is well"
    assert [item.key for item in s3_store.walk("a")] == ["a/1"], "s3fs lists meanwhile"
    clock = quick_s3.time.monotonic
    monkeypatch.setattr(quick_s3.time, "monotonic", lambda: clock() + quick_s3._PAUSE_SECONDS)
    assert bucket.read(s3_store._quick("a/1")[1]) == b"one", "asked again after the pause"


def test_a_success_and_what_the_server_answers_are_no_failures_in_a_row(s3_store, bucket, monkeypatch):
    s3_store.put("a/1", b"one")
    for _ in range(3 * quick_s3._MAX_FAILURES):
        with monkeypatch.context() as patch:
            patch.setattr(obstore, "get", fail)
            assert bucket.read("x") is None
        assert s3_store.read("a/1") == b"one"
    bucket._num_failures = 0
    for _ in range(2 * quick_s3._MAX_FAILURES):
        assert bucket.read(f"absent-{uuid.uuid4().hex}") is None
        assert bucket.read("a//b") is None and list(bucket.pages("a", "x//y")) == [None]
    assert bucket._num_failures == 0 and s3_store.read("a/1") == b"one"


def test_objects_of_any_size_are_read_whole(s3_store, bucket, monkeypatch):
    monkeypatch.setattr(quick_s3, "PART_BYTES", 10_000)
    monkeypatch.setattr(quick_s3, "_BLOCK", 4096)
    monkeypatch.setattr(s3_store.fs, "cat_file", lambda *_, **__: pytest.fail("s3fs was asked"))
    for num_bytes in (0, 1, 10_000, 10_001, 3_000_000):
        data = os.urandom(num_bytes)
        s3_store.put("big", data)
        found = s3_store.read("big")
        assert found == data and type(found) is bytes


def test_what_ends_early_is_not_taken_for_the_whole(s3_store, bucket, monkeypatch):
    class Short:
        """An answer with an incomplete body, which no correct HTTP server can give."""

        meta: ClassVar[dict[str, int]] = {"size": 20_000}

        def stream(self, min_chunk_size):
            yield b"x" * 15_000

    monkeypatch.setattr(quick_s3, "PART_BYTES", 10_000)
    s3_store.put("big", b"x" * 20_000)
    monkeypatch.setattr(obstore, "get", lambda *_, **__: Short())
    assert s3_store.read("big") == b"x" * 20_000


@pytest.mark.parametrize("num_bytes", [0, 1, 9_999, 10_000, 10_001, 95_000])
def test_objects_are_streamed_in_order_whatever_their_size(s3_store, bucket, monkeypatch, tmp_path, num_bytes):
    monkeypatch.setattr(quick_s3, "STREAMED_PART_BYTES", 10_000)
    monkeypatch.setattr(s3_store.fs, "get_file", lambda *_, **__: pytest.fail("s3fs was asked"))
    monkeypatch.setattr(s3_store.fs, "open", lambda *_, **__: pytest.fail("s3fs was asked"))
    data = os.urandom(num_bytes)
    s3_store.put("big", data)
    s3_store.download("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data and s3_store.sha256("big") == hashlib.sha256(data).hexdigest()


def test_a_stream_that_fails_halfway_leaves_nothing_of_itself(s3_store, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(quick_s3, "STREAMED_PART_BYTES", 10_000)
    data = os.urandom(95_000)
    s3_store.put("big", data)
    get, calls = obstore.get, []

    def breaking(*args, **more):
        calls.append(more)
        return fail() if len(calls) % 9 == 6 else get(*args, **more)

    monkeypatch.setattr(obstore, "get", breaking)
    assert bucket.stream(s3_store._quick("big")[1], lambda _: None) is None
    s3_store.download("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data and s3_store.sha256("big") == hashlib.sha256(data).hexdigest()


def test_an_object_replaced_while_it_is_streamed_is_not_mixed_with_the_new_one(s3_store, bucket, monkeypatch):
    monkeypatch.setattr(quick_s3, "STREAMED_PART_BYTES", 10_000)
    old, new = os.urandom(95_000), os.urandom(95_000)
    s3_store.put("big", old)
    taken = []

    def take(part):
        if not taken:
            s3_store.put("big", new)
        taken.append(bytes(part))

    assert bucket.stream(s3_store._quick("big")[1], take) is None, "the server was asked for the old version alone"
    assert b"".join(taken) == old[: sum(map(len, taken))]


def test_what_is_absent_is_said_so_by_downloads_and_hashes(store, tmp_path):
    for call in (lambda: store.download("nothing", tmp_path / "copy"), lambda: store.sha256("nothing")):
        with pytest.raises(FileNotFoundError):
            call()


def test_threads_share_a_bucket(s3_store):
    data = {f"t/{number}": os.urandom(100 + number) for number in range(60)}
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(s3_store.put, data, data.values()))
        assert list(pool.map(s3_store.read, data)) == list(data.values())


FORKING = """
import os
from cem_assets.store.store import open_store
store = open_store()
store.put("a/1", b"one")
quick = store._quick("a/1")[0]
assert quick is not None and store.read("a/1") == b"one"
if os.fork() == 0:
    is_none = store._quick("a/1")[0] is None
    store.put("a/2", b"from the child")
    print(is_none, store.read("a/1").decode(), len(list(store.walk("a"))), flush=True)
    os._exit(0)
os.wait()
assert store.read("a/2") == b"from the child" and store._quick("a/2")[0] is quick
print("the parent is well", flush=True)
"""


def test_a_forked_child_of_a_process_that_used_it_has_s3fs_alone(s3_store, tmp_path):
    # In a session of its own, because without the guard the child hangs and the parent may crash.
    told = tmp_path / "told"
    with open(told, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            env={**os.environ, "CEM_ASSETS_ROOT": s3_store.url},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert told.read_text().splitlines() == ["True one 2", "the parent is well"]


def test_there_is_none_without_keys_or_where_it_cannot_be_opened(s3, bucket, monkeypatch, caplog):
    monkeypatch.setattr(quick_s3, "S3Store", fail)
    with caplog.at_level(logging.WARNING):
        assert quick_bucket(f"another-{uuid.uuid4().hex}", s3.endpoint, "", os.getpid()) is None
    assert "only s3fs is used" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(quick_s3.Session, "get_credentials", lambda *_: None)
    assert quick_bucket(f"another-{uuid.uuid4().hex}", s3.endpoint, "", os.getpid()) is None
