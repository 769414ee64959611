"""Writing into folders that other processes empty and remove at the same time."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from cem_assets.store.local import list_files, list_folders, move_into_place
from cem_assets.store.store import Store, open_store


@pytest.mark.parametrize("method", ["put", "create"])
def test_a_folder_that_others_remove_all_the_time_takes_every_object(local_store: Store, method: str):
    # As in the outbox of tracking: one process writes entries of a run, while another sends and deletes them.
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            local_store.delete([f"a/b/c/{number}" for number in range(2)])

    def write(number: int) -> None:
        for turn in range(300):
            key = f"a/b/c/{number}-{turn}"
            assert getattr(local_store, method)(key, b"x") is not False
            assert open_store(local_store.url).read(key) == b"x"
            local_store.delete([key])

    with ThreadPoolExecutor(4) as pool:
        removing = [pool.submit(remove) for _ in range(2)]
        try:
            for done in [pool.submit(write, number) for number in range(2)]:
                done.result(timeout=120)
        finally:
            stop.set()
        for done in removing:
            done.result(timeout=10)


def test_a_folder_that_is_gone_when_pathlib_looks_again_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # mkdir(exist_ok=True) raises FileExistsError if the folder was removed between its two system calls.
    real, lost = Path.mkdir, []

    def mkdir(path: Path, *rest, **more) -> None:
        if path.name == "folder" and not lost:
            lost.append(path)
            raise FileExistsError(17, "File exists", str(path))
        real(path, *rest, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    written = tmp_path / "staged"
    written.write_bytes(b"x")
    move_into_place(written.replace, tmp_path / "folder/object")
    assert lost and (tmp_path / "folder/object").read_bytes() == b"x"


def test_a_file_in_a_folders_place_is_told_and_never_taken_for_an_object_that_exists(local_store: Store):
    local_store.put("a", b"a file")
    for method in ("put", "create"):
        with pytest.raises(NotADirectoryError):
            getattr(local_store, method)("a/b", b"x")


def test_files_and_folders_are_those_that_fsspec_lists(tmp_path: Path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in ("a/x", "a-b/x", "a.b", "a/b/c/d", "zellkörper/--W1 P,2.tif", "a/.hidden", "a/per%20cent"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (root / "empty").mkdir()
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"1234567")
    for name, target in (("to-file", "file"), ("to-folder", "."), ("to-nothing", "nothing")):
        (root / "a" / name).symlink_to(elsewhere / target)
    os.mkfifo(root / "a/pipe")
    (tmp_path / "linked").symlink_to(root)
    fs = LocalFileSystem()
    for folder in (root, root / "a", root / "empty", root / "a.b", tmp_path / "linked", tmp_path / "absent"):
        found = fs.find(str(folder), detail=True)
        expected = [(path, about["size"], about["mtime"]) for path, about in found.items()]
        assert list_files(str(folder)) == expected
    assert len(list_files(str(root))) == 11
    for folder in (root, root / "a", root / "empty"):
        entries = fs.ls(str(folder), detail=True)
        assert list_folders(str(folder)) == sorted(e["name"].rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")
    assert list_folders(str(root / "absent")) == list_folders(str(root / "a.b")) == []
