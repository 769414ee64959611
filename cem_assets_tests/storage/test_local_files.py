"""Writing into folders that other processes empty and remove at the same time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cem_assets.storage.local_files import move_into_place
from cem_assets.storage.store import Store, open_store


@pytest.mark.parametrize("method", ["put", "create"])
def test_a_folder_that_others_remove_all_the_time_takes_every_object(local_store: Store, method: str):
    # As in the outbox of tracking: one process writes a run's entries while another sends them and deletes them.
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
    # mkdir(exist_ok=True) raises FileExistsError where the folder was removed between its two looks.
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
