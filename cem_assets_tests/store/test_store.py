"""The guarantees of the store, on a local folder and on a real S3 server."""

import errno
import os
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store, check_key, open_store


def test_what_is_written_is_read_listed_hashed_and_deleted(store: Store):
    store.put("a/b/1.bin", b"abc")
    store.put("a/2.bin", b"")
    assert store.read("a/b/1.bin") == b"abc" and store.size("a/b/1.bin") == 3 and store.size("a/2.bin") == 0
    assert store.sha256("a/b/1.bin") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [(item.key, item.num_bytes) for item in store.walk("a")] == [("a/2.bin", 0), ("a/b/1.bin", 3)]
    assert store.children("a") == ["2.bin", "b"]
    store.delete(["a/b/1.bin", "a/never-there"])
    assert store.size("a/b/1.bin") is None and store.children("a") == ["2.bin"]


def test_what_is_not_there_is_said_so(store: Store):
    assert store.size("x") is None and store.children("x") == [] and list(store.walk("x")) == []
    with pytest.raises(FileNotFoundError):
        store.read("x")


def test_a_folder_has_no_size(store: Store):
    store.put("a/b", b"1")
    assert store.size("a") is None


def test_listing_does_not_mix_up_folders_with_a_common_beginning(store: Store):
    store.put("cem/raw/1", b"1")
    store.put("cem/raw2/1", b"1")
    assert [item.key for item in store.walk("cem/raw")] == ["cem/raw/1"]


def test_files_are_taken_whole_and_read_at_offsets(store: Store, tmp_path: Path):
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(1 << 20) * 3)
    store.put("big", source)
    with store.open("big") as handle:
        handle.seek(2_000_000)
        assert handle.read(10) == source.read_bytes()[2_000_000:2_000_010]


def test_a_multipart_object_arrives_whole(s3_store: Store, tmp_path: Path):
    source = tmp_path / "huge.bin"
    source.write_bytes(os.urandom(1 << 20) * 101)
    s3_store.put("huge", source)
    s3_store.put("huge2", source.read_bytes())
    assert s3_store.size("huge") == s3_store.size("huge2") == 101 << 20
    assert s3_store.sha256("huge") == s3_store.sha256("huge2")


def test_names_with_blanks_and_letters_of_any_script_survive(store: Store):
    for key in ("a/--W1 P,2.tif", "a/zellkörper.tif", "a/per%20cent+plus.tif", "a/hash#.tif"):
        store.put(key, key.encode())
        assert store.read(key) == key.encode()
    assert len(list(store.walk("a"))) == 4


def test_of_racing_creators_exactly_one_wins(store: Store):
    for _ in range(4):
        key = f"race/{uuid.uuid4().hex}"
        with ThreadPoolExecutor(12) as pool:
            wins = list(pool.map(lambda n, key=key: store.create(key, b"%d" % n), range(12)))
        assert sum(wins) == 1
        assert store.read(key) == b"%d" % wins.index(True)


def test_creating_again_with_the_same_contents_counts_as_ours(store: Store):
    assert store.create("k", b"same") and store.create("k", b"same") and not store.create("k", b"other")
    assert store.read("k") == b"same"


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/.", "a\\b", "a\0b", "a/"])
def test_keys_that_could_leave_the_root_are_refused(key):
    with pytest.raises(ValueError, match="is not allowed"):
        check_key(key)
    with pytest.raises(ValueError, match="is not allowed"):
        open_store("/tmp/x").put(key, b"")


def test_the_root_comes_from_the_environment_or_is_a_local_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert open_store() == Store(str(tmp_path / ".cem_assets/store"))
    monkeypatch.setenv("CEM_ASSETS_ROOT", "s3://bucket/prefix/")
    assert open_store() == Store("s3://bucket/prefix")
    assert open_store(f"file://{tmp_path}/x").url == str(tmp_path / "x")


@pytest.mark.parametrize(("url", "message"), [("s3://", "names no bucket"), ("s3://key:secret@host/x", "holds credentials")])
def test_urls_that_cannot_be_stores(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_wrong_keys_are_refused_by_the_server(s3, s3_store, monkeypatch):
    code = "from cem_assets.store.store import open_store; open_store().put('x', b'1')"
    environment = {**os.environ, "CEM_ASSETS_ROOT": s3_store.url, "AWS_SECRET_ACCESS_KEY": "wrong"}
    done = subprocess.run(["python", "-c", code], env=_on_path(environment), capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "PermissionError" in done.stderr
    assert s3_store.size("x") is None


def _on_path(environment: dict[str, str]) -> dict[str, str]:
    import sys

    return {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


def test_a_killed_writer_leaves_nothing_visible(local_store: Store, monkeypatch):
    def dies(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        local_store.put("a/b", b"x" * 100)
    assert list(local_store.walk("a")) == []


def test_a_full_disk_is_told_in_words_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system to fill needs root and mount")
    try:
        store = open_store(str(disk / "store"))
        store.put("kept", b"k" * (1 << 20))
        with pytest.raises(OSError, match=r"is full .* while writing big; nothing half-written is visible") as caught:
            store.put("big", b"b" * (8 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert store.size("big") is None and store.read("kept") == b"k" * (1 << 20)
        store.put("small", b"s")  # the staged file was deleted, so there is room again
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_scratch_goes_where_it_is_told_and_away_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("CEM_ASSETS_SCRATCH", str(tmp_path / "scratch"))
    with scratch_folder("test") as folder:
        assert folder.parent == tmp_path / "scratch" and "test" in folder.name
        (folder / "x").write_bytes(b"1")
    assert not folder.exists()
