"""Copies of files in a bucket: they are the bytes that were hashed, stay within their room, and are fetched only once."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
import pytest

from cem_assets import readers
from cem_assets.cem.volumes import stage as cem_volumes
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.inbox.copies import SourceCopies
from cem_assets_tests.datasets import cells, nrrd_bytes, png_bytes, put_in_inbox


def test_a_copy_is_what_was_hashed_and_has_the_files_own_name(s3_store, tmp_path):
    data = {f"inbox/d/{folder}/v.nrrd": os.urandom(1000 + folder) for folder in range(20)}
    for key, content in data.items():
        s3_store.put(key, content)
    copies = SourceCopies(s3_store, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda key: copies.sha256(key, len(data[key])), data))
    assert digests == [hashlib.sha256(content).hexdigest() for content in data.values()]
    for key, content in data.items():
        assert copies.of(key).name == "v.nrrd" and copies.of(key).read_bytes() == content
    assert copies.of("inbox/d/other.nrrd") is None


def test_what_has_no_room_or_is_no_file_of_voxels_is_hashed_alone(s3_store, tmp_path):
    for name in ("a.nrrd", "b.nrrd", "c.raw", "z.zarr/c/0/0/0", "notes.txt"):
        s3_store.put(f"d/{name}", b"x" * 100)
    copies = SourceCopies(s3_store, tmp_path, room_bytes=250)
    expected = hashlib.sha256(b"x" * 100).hexdigest()
    assert {copies.sha256(f"d/{name}", 100) for name in ("z.zarr/c/0/0/0", "notes.txt", "a.nrrd", "c.raw", "b.nrrd")} == {
        expected
    }
    there = [name for name in ("a.nrrd", "b.nrrd", "c.raw", "z.zarr/c/0/0/0", "notes.txt") if copies.of(f"d/{name}")]
    assert there == ["a.nrrd", "c.raw"]
    path = copies.of("d/a.nrrd")
    copies.forget(["d/a.nrrd", "d/never-there"])
    assert copies.of("d/a.nrrd") is None and not path.exists()
    assert copies.sha256("d/b.nrrd", 100) == expected and copies.of("d/b.nrrd") is not None, "the room is free again"


def test_an_object_that_cannot_be_had_leaves_no_copy(s3_store, tmp_path):
    copies = SourceCopies(s3_store, tmp_path)
    with pytest.raises(FileNotFoundError):
        copies.sha256("d/gone.nrrd", 100)
    assert copies.of("d/gone.nrrd") is None


@pytest.mark.parametrize("has_room", [True, False])
def test_every_source_is_fetched_once_where_there_is_room(s3_store, local_store, tmp_path, monkeypatch, has_room):
    data = cells((70, 80, 130))
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 130 80 70\nencoding: raw\ndata file: v.raw\n\n"
    files = {f"stack/s{n:03d}.png": png_bytes(tmp_path, plane) for n, plane in enumerate(data[:66])}
    files |= {"one.nrrd": nrrd_bytes(data), "pair/v.nhdr": header.encode(), "pair/v.raw": data.tobytes()}
    for store in (s3_store, local_store):
        put_in_inbox(store, "d", files)
    if not has_room:
        monkeypatch.setattr(cem_volumes, "SourceCopies", lambda store, folder: SourceCopies(store, folder, room_bytes=0))
    asked: Counter[str] = Counter()
    get = obstore.get
    monkeypatch.setattr(obstore, "get", lambda *args, **more: (asked.update([args[1]]), get(*args, **more))[1])
    manifest = standardize_dataset(s3_store, "d").manifest
    fetched = {key.split("/inbox/d/")[1]: count for key, count in asked.items() if "/inbox/d/" in key}
    most = max(count for name, count in fetched.items() if name != "dataset.toml")
    assert set(fetched) >= set(files) and (most == 1) == has_room
    assert manifest.digest == standardize_dataset(local_store, "d").manifest.digest
    for name in ("one", "pair-v"):
        assert np.array_equal(readers.open_volume("d", name, s3_store.url)[:], data)
