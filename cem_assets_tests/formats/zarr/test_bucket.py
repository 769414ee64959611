"""The fast way to read Zarr arrays in a bucket gives the voxels that the zarr library gives, and none that are out of date."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from cachetools import LRUCache

from cem_assets.formats.zarr import bucket as bucket_zarr
from cem_assets.formats.zarr import stores as zarr_stores
from cem_assets.formats.zarr.bucket import read_bucket
from cem_assets.formats.zarr.stores import open_zarr
from cem_assets.store.store import Store

KEY = "inbox/d/a.zarr"


def voxels(seed: int = 0, shape=(20, 30, 40), dtype="uint16") -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def put(store: Store, folder: Path, data: np.ndarray, **options) -> None:
    zarr.create_array(str(folder), data=data, overwrite=True, **{"chunks": (8, 16, 16), "fill_value": 0, **options})
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            store.put(f"{KEY}/{file.relative_to(folder).as_posix()}", file)


def everything(data: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(0, side) for side in data.shape)


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The keys of the chunks that are fetched, in order."""
    keys: list[str] = []
    read = Store.read_quickly

    def counted(self, key):
        if not key.endswith(("zarr.json", ".zarray")):
            keys.append(key)
        return read(self, key)

    monkeypatch.setattr(Store, "read_quickly", counted)
    return keys


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 3},
        {"zarr_format": 2},
        {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"zarr_format": 3, "chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"zarr_format": 3, "compressors": None},
        {"zarr_format": 3, "compressors": zarr.codecs.BloscCodec(cname="lz4")},
    ],
    ids=str,
)
def test_a_box_is_read_the_quick_way_with_every_layout_of_chunks(s3_store, tmp_path, options, fetched):
    data = voxels()
    put(s3_store, tmp_path / "a.zarr", data, **options)
    box = (slice(3, 9), slice(15, 30), slice(16, 33))
    found = read_bucket(s3_store, KEY, box, "first")
    assert found is not None and np.array_equal(found, data[box])
    assert len(fetched) == len(set(fetched)) == 2 * 2 * 2
    assert read_bucket(s3_store, KEY, (slice(8, 16), slice(0, 16), slice(0, 40)), "first") is not None
    assert len(fetched) == len(set(fetched)) == 9, "chunks that were fetched before are kept"


def test_what_is_no_object_of_its_own_is_left_to_the_zarr_library(s3_store, tmp_path, fetched):
    data = voxels(shape=(16, 32, 32))
    put(s3_store, tmp_path / "a.zarr", data, shards=(16, 32, 32))
    assert read_bucket(s3_store, KEY, everything(data), "first") is None and fetched == []
    assert np.array_equal(open_zarr(s3_store, KEY, None).source.read(everything(data)), data)


@pytest.mark.parametrize("num_chunks", [1, 2, 4])
def test_a_box_over_many_chunks_is_read_in_parts_and_no_chunk_twice(s3_store, tmp_path, monkeypatch, fetched, num_chunks):
    data = voxels()
    put(s3_store, tmp_path / "a.zarr", data)
    monkeypatch.setattr(bucket_zarr, "_MAX_BOX_BYTES", 8 * 16 * 16 * 2 * num_chunks)
    monkeypatch.setattr(bucket_zarr, "_kept", LRUCache(0, getsizeof=len))
    box = (slice(3, 20), slice(1, 30), slice(5, 40))
    assert np.array_equal(read_bucket(s3_store, KEY, box, "first"), data[box])
    assert len(fetched) == len(set(fetched)) == 3 * 2 * 3


def test_very_large_chunks_are_left_to_the_zarr_library(s3_store, tmp_path, monkeypatch, fetched):
    put(s3_store, tmp_path / "a.zarr", voxels())
    monkeypatch.setattr(bucket_zarr, "_MAX_BOX_BYTES", 8 * 16 * 16 * 2 - 1)
    assert read_bucket(s3_store, KEY, (slice(0, 8), slice(0, 16), slice(0, 16)), "first") is None and fetched == []


def test_an_absent_chunk_is_found_out_by_the_zarr_library(s3_store, tmp_path):
    data = voxels()
    put(s3_store, tmp_path / "a.zarr", data)
    s3_store.delete([f"{KEY}/c/1/0/0"])
    source = open_zarr(s3_store, KEY, None).source
    box = everything(data)
    assert read_bucket(s3_store, KEY, box, source.opening) is None
    missing = np.zeros(data.shape, bool)
    missing[8:16, :16, :16] = True
    assert np.array_equal(source.missing(box), missing) and np.array_equal(source.read(box)[~missing], data[~missing])


def test_a_damaged_chunk_is_an_error_that_names_the_array(s3_store, tmp_path):
    put(s3_store, tmp_path / "a.zarr", voxels())
    s3_store.put(f"{KEY}/c/0/0/0", b"no zstd frame")
    source = open_zarr(s3_store, KEY, None).source
    with pytest.raises(ValueError, match=r"Zarr array inbox/d/a\.zarr cannot be decoded"):
        source.read((slice(0, 8), slice(0, 16), slice(0, 16)))


def test_a_server_in_trouble_changes_nothing_but_the_time(s3_store, tmp_path, monkeypatch):
    data = voxels()
    put(s3_store, tmp_path / "a.zarr", data)
    source = open_zarr(s3_store, KEY, None).source
    answers = iter(range(1000))
    read = Store.read_quickly
    # Every third request fails, as after a reset connection.
    monkeypatch.setattr(Store, "read_quickly", lambda self, key: read(self, key) if next(answers) % 3 else None)
    assert np.array_equal(source.read(everything(data)), data) and source.missing(everything(data)) is None


def test_an_array_that_replaces_another_is_never_taken_for_it(store, tmp_path):
    for seed, shape in ((1, (20, 30, 40)), (2, (20, 30, 40)), (3, (12, 16, 44))):
        data = voxels(seed, shape)
        put(store, tmp_path / "a.zarr", data)
        source = open_zarr(store, KEY, None).source
        assert source.shape == shape and np.array_equal(source.read(everything(data)), data)


def test_what_is_kept_stays_within_its_room(s3_store, tmp_path, monkeypatch):
    kept = LRUCache(20_000, getsizeof=len)
    monkeypatch.setattr(bucket_zarr, "_kept", kept)
    data = voxels()
    put(s3_store, tmp_path / "a.zarr", data, compressors=None)
    assert np.array_equal(read_bucket(s3_store, KEY, everything(data), "first"), data)
    assert kept.currsize == sum(map(len, kept.values())) <= 20_000 and len(kept) == 20_000 // 4096


def test_both_ways_give_the_same_voxels(s3_store, tmp_path, monkeypatch):
    data = voxels(dtype="float32")
    put(s3_store, tmp_path / "a.zarr", data)
    quick = open_zarr(s3_store, KEY, None).source.read(everything(data))
    monkeypatch.setattr(zarr_stores, "read_bucket", lambda *_: None)
    assert np.array_equal(open_zarr(s3_store, KEY, None).source.read(everything(data)), quick)
