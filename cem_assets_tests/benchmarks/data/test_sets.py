"""Prepared benchmarks in the store: they are read as they were written, whole, by boxes, and after damage."""

import json
import pickle

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cem_assets.benchmarks.data.segmentation_sets import INDEX, ItemWriter, open_benchmark, prepared_items
from cem_assets.benchmarks.data.steps import Item
from cem_assets.benchmarks.data.transfer_sets import METADATA, TransferWriter, decode_plane, encode_plane, open_transfer
from cem_assets.store.assets import BENCHMARK_DATA, CODE_VERSIONS
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.store import Store

CLASSES = ("background", "a", "b")


def make(name: str, split: str, shape: tuple[int, ...], seed: int = 0, part: str = "") -> Item:
    random = np.random.default_rng(seed)
    return Item(name, split, random.integers(0, 256, shape, np.uint8), (random.integers(0, 3, shape).astype(np.uint8),), part)


def write(store: Store, items: list[Item], name: str = "mine") -> Manifest:
    commit = Commit(store, Inputs(BENCHMARK_DATA, name, CODE_VERSIONS[BENCHMARK_DATA]))
    writer = ItemWriter(commit, len(CLASSES))
    for item in items:
        writer.add(item)
    return commit.finish(writer.finish(name, CLASSES), {"task": "segmentation"})


def items() -> list[Item]:
    images = [make(f"i{n:03}", "train", (20 + n % 3, 33), n) for n in range(150)]
    volumes = [make("v", "test", (230, 40, 250), 7), make("thin", "test", (3, 30, 31), 8)]
    return [*images, volumes[0], make("v", "valid", (8, 9), 9), volumes[1]]


def test_items_of_all_kinds_are_read_as_they_were_written(store: Store):
    written = {(item.split, item.name): item for item in items()}
    manifest = write(store, items())
    assert manifest.counts == {"train": 150, "valid": 1, "test": 2, "volumes": 2, "pixels": manifest.counts["pixels"]}
    benchmark = open_benchmark(store, "mine")
    assert benchmark.classes == CLASSES and benchmark.parts == ("",) and benchmark.manifest.digest == manifest.digest
    assert [item.name for item in benchmark.items("test")] == ["thin", "v"]
    assert [item.name for item in benchmark.items("train")] == sorted(name for split, name in written if split == "train")
    for found in benchmark.all_items:
        original = written[found.split, found.name]
        assert found.shape == original.image.shape and found.is_volume == (original.image.ndim == 3)
        assert found.label_counts == tuple(int((original.mask == value).sum()) for value in range(3))
        assert found.image.shape == found.shape and found.image.ndim == len(found.shape) and found.image.dtype == np.uint8
        if found.is_volume or found.name < "i010":
            assert np.array_equal(np.asarray(found.image), original.image)
            assert np.array_equal(np.asarray(found.mask), original.mask)


def test_volumes_and_images_are_read_by_boxes(local_store: Store):
    written = {(item.split, item.name): item for item in items()}
    write(local_store, items())
    volume = next(item for item in open_benchmark(local_store, "mine").items("test") if item.name == "v")
    image, mask = written["test", "v"].image, written["test", "v"].mask
    for box in ((slice(220, 230), slice(5, 9), slice(200, 250)), (slice(None), 3), (100,), (..., 249)):
        assert np.array_equal(volume.image[box], image[box]) and np.array_equal(volume.mask[box], mask[box])
    plane = pickle.loads(pickle.dumps(open_benchmark(local_store, "mine").items("train")[5]))
    original = written["train", plane.name]
    assert np.array_equal(plane.image[3:9, 4], original.image[3:9, 4]) and np.array_equal(plane.mask[-1], original.mask[-1])


def test_a_box_of_a_volume_is_read_from_its_own_bricks_and_a_lost_brick_is_told(local_store: Store):
    write(local_store, items())
    volume = next(item for item in open_benchmark(local_store, "mine").items("test") if item.name == "v")
    bricks = [item.key for item in local_store.walk(f"{volume.folder}/volumes/00150_image.ome.zarr/0/c")]
    assert len(bricks) == 4
    local_store.delete([key for key in bricks if "/c/1/" in key])  # the planes from 224 on
    assert volume.image[:224].shape == (224, 40, 250)
    with pytest.raises(FileNotFoundError, match="absent from a standardized volume"):
        volume.image[225]


def test_the_parquet_files_are_read_without_this_package(local_store: Store):
    manifest = write(local_store, items())
    (part,) = manifest.find(".parquet")
    table = pq.read_table(f"{local_store.url}/{manifest.folder}/{part.name}")
    assert table.num_rows == 151 and table["image"].to_pylist()[0]["bytes"][:4] == b"II*\0"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == features["mask"] == {"_type": "Image"}


def test_equal_items_give_equal_manifests(local_store: Store, tmp_path):
    from cem_assets.store.store import open_store

    other = open_store(str(tmp_path / "other"))
    assert write(local_store, items()).digest == write(other, items()).digest


def test_a_name_may_come_twice_only_in_other_splits_or_parts(local_store: Store):
    write(local_store, [make("a", "train", (4, 4)), make("a", "test", (4, 4)), make("a", "test", (4, 4), part="p")])
    assert open_benchmark(local_store, "mine").parts == ("", "p")
    assert [item.part for item in open_benchmark(local_store, "mine").items("test", "p")] == ["p"]
    with pytest.raises(ValueError, match="a: train has an item of that name already"):
        write(local_store, [make("a", "train", (4, 4)), make("a", "train", (5, 5))])


def test_items_are_given_back_as_steps_take_them(local_store: Store):
    write(local_store, items())
    found = list(prepared_items(open_benchmark(local_store, "mine"), "test"))
    assert (found[0].name, found[0].image.shape, found[0].mask.shape) == ("thin", (3, 30, 31), (3, 30, 31))
    assert np.array_equal(found[0].image, items()[-1].image)


def test_a_split_or_benchmark_that_is_not_there_is_told(local_store: Store):
    with pytest.raises(FileNotFoundError, match="materialize it first"):
        open_benchmark(local_store, "mine")
    write(local_store, items())
    with pytest.raises(ValueError, match="'training' is not known; expected one of train, valid, test"):
        open_benchmark(local_store, "mine").items("training")
    with pytest.raises(ValueError, match=r"open it with segmentation_sets.open_benchmark"):
        open_transfer(local_store, "mine")


def cells(store: Store, num: int = 300) -> tuple[Manifest, list[tuple[np.ndarray, np.ndarray]]]:
    commit = Commit(store, Inputs(BENCHMARK_DATA, "cells", CODE_VERSIONS[BENCHMARK_DATA]))
    writer = TransferWriter(commit, ("protein", "nucleus"))
    random = np.random.default_rng(0)
    planes = [
        (random.integers(0, 65536, (9, 8)).astype(np.uint16), random.integers(0, 256, (9, 8), np.uint8)) for _ in range(num)
    ]
    for number, pair in enumerate(planes):
        facts = {"name": f"c{number}", "split": "train" if number % 3 else "test1", "label": "AB"[number % 2]}
        writer.add(facts | ({"concentration": 0.3, "is_control": True} if number == 4 else {}), pair)
    return commit.finish(writer.finish("cells"), {"task": "transfer"}), planes


def test_cells_of_any_depth_are_read_in_batches(store: Store):
    manifest, planes = cells(store)
    assert manifest.counts == {"rows": 300, "labels": 2, "splits": 2}
    prepared = open_transfer(store, "cells")
    table = prepared.table()
    assert list(table) == list(METADATA) and list(table["name"]) == [f"c{n}" for n in range(300)]
    assert table["concentration"].notna().sum() == 1 and list(table.index[table["is_control"]]) == [4]
    seen = 0
    for facts, images in prepared.batches(64):
        assert len(facts) == len(images) <= 64
        for image in images:
            for found, original in zip(image, planes[seen], strict=True):
                assert found.dtype == original.dtype and np.array_equal(found, original)
            seen += 1
    assert seen == 300
    assert list(table["name"][table["split"] == "test1"]) == [f"c{n}" for n in range(0, 300, 3)]
    assert json.loads(store.read(f"{manifest.folder}/{INDEX}"))["labels"][0] == {"split": "test1", "label": "A", "rows": 50}


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
def test_a_plane_survives_its_encoding(dtype):
    plane = np.arange(600).reshape(20, 30).astype(dtype)
    found = decode_plane(encode_plane(plane))
    assert np.array_equal(found, plane) and found.dtype == plane.dtype.newbyteorder("=")
    assert encode_plane(plane) == encode_plane(plane.copy())


def test_features_are_kept_to_the_last_bit_with_what_is_missing(local_store: Store):
    commit = Commit(local_store, Inputs(BENCHMARK_DATA, "wells", CODE_VERSIONS[BENCHMARK_DATA]))
    writer = TransferWriter(commit, (), ("f1", "f2", "f3"))
    values = np.random.default_rng(0).normal(size=(500, 3))
    values[7, 1] = np.nan
    for number, vector in enumerate(values):
        writer.add({"name": str(number), "split": "all", "label": "x"}, features=vector)
    commit.finish(writer.finish("wells"), {"task": "transfer"})
    prepared = open_transfer(local_store, "wells")
    table, found = prepared.features()
    assert isinstance(table, pd.DataFrame) and len(table) == 500 and prepared.feature_names == ("f1", "f2", "f3")
    assert np.array_equal(found, values, equal_nan=True)
    with pytest.raises(ValueError, match="holds features, no images"):
        next(prepared.batches())


def test_images_are_not_asked_for_features(local_store: Store):
    cells(local_store, 3)
    with pytest.raises(ValueError, match="holds images, no features"):
        open_transfer(local_store, "cells").features()
