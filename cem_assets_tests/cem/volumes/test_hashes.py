"""Hashes stored beside the voxels: they are the same as those of the bricks, and are only used if the same code made them."""

import numpy as np
import pytest
import zarr

from cem_assets.cem.patches.pixels import DatasetPixels, open_pixels
from cem_assets.cem.patches.stage import PatchifyParams, cut_and_hash
from cem_assets.cem.volumes import hashes as patch_hashes
from cem_assets.cem.volumes.bricks import brick_boxes, hash_brick, patch_places
from cem_assets.cem.volumes.hashes import FOLDER, has_hashes, stored_rows
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox, toml, volume_dataset


def holed(store: Store) -> str:
    """Put a Zarr store of two bricks that lacks a chunk into the inbox."""
    put_in_inbox(store, "holed", {}, toml("holed"))
    array = zarr.create_array(store.url_of("inbox/holed/v.zarr"), shape=(70, 130, 300), chunks=(40, 70, 100), dtype="uint8")
    array[:] = cells((70, 130, 300))
    store.delete(["inbox/holed/v.zarr/c/0/0/2"])
    return "holed"


def flat(store: Store) -> str:
    voxels = nrrd_bytes(cells((3, 460, 500)))
    return put_in_inbox(store, "flat", {"v.nrrd": voxels}, toml("flat", voxel_size_nm="[50, 5, 5]"))


def cube(store: Store) -> str:
    return volume_dataset(store, "cube", (226, 224, 230))


def opened(store: Store, dataset: str) -> tuple[Manifest, DatasetPixels, list]:
    manifest = standardize_dataset(store, dataset).manifest
    pixels = open_pixels(store, dataset, manifest)
    bricks = [(n, box) for n, volume in enumerate(pixels.volumes) for box in brick_boxes(volume.shape, volume.planes)]
    return manifest, pixels, bricks


@pytest.mark.parametrize("make", [cube, flat, holed])
def test_stored_rows_are_those_of_hashing_every_brick(local_store: Store, monkeypatch, make):
    monkeypatch.setattr(patch_hashes, "ROWS_PER_PART", 100)  # so that some bricks have their hashes in two files
    manifest, pixels, bricks = opened(local_store, make(local_store))
    records = [volume.record for volume in pixels.volumes]
    assert sum(item.name.startswith(FOLDER) for item in manifest.objects) == -(-manifest.counts["patches_expected"] // 100)
    for spacing, some in ((1, bricks), (1, bricks[1:]), (3, bricks), (1000, bricks)):
        found = list(stored_rows(local_store, manifest, records, spacing, some))
        assert len(found) == len(some)
        for (number, box), rows in zip(some, found, strict=True):
            expected = hash_brick(pixels.volumes[number], box, spacing)
            for name in ("place", "dhash", "num_missing"):
                assert np.array_equal(getattr(rows, name), getattr(expected, name)), (box, spacing, name)
            assert np.array_equal(
                rows.place, patch_places(pixels.volumes[number].shape, pixels.volumes[number].planes, box, spacing)
            )
    assert (make is holed) == any(rows.num_missing.any() for rows in stored_rows(local_store, manifest, records, 1, bricks))


def test_the_table_is_the_same_with_and_without_them(store: Store, monkeypatch):
    volume_dataset(store)
    standardize_dataset(store, "cells")
    with_hashes = cut_and_hash(store, "cells", PatchifyParams()).manifest
    monkeypatch.setattr("cem_assets.cem.patches.stage.has_hashes", lambda manifest: False)
    store.delete([f"{with_hashes.folder}/{item.name}" for item in with_hashes.objects])
    without = cut_and_hash(store, "cells", PatchifyParams()).manifest
    assert without.objects == with_hashes.objects and without.digest == with_hashes.digest


def test_no_voxel_is_read_where_hashes_are_there(local_store: Store):
    volume_dataset(local_store)
    manifest = standardize_dataset(local_store, "cells").manifest
    local_store.delete([f"{manifest.folder}/{item.name}" for item in manifest.objects if "/0/c/" in item.name])
    assert cut_and_hash(local_store, "cells", PatchifyParams()).manifest.counts["patches"]


def test_hashes_of_another_pillow_are_not_taken(local_store: Store, monkeypatch):
    volume_dataset(local_store)
    manifest = standardize_dataset(local_store, "cells").manifest
    assert has_hashes(manifest)
    monkeypatch.setattr(patch_hashes.PIL, "__version__", "1.0")
    assert not has_hashes(manifest)


def test_a_changed_file_of_hashes_is_refused_by_name(local_store: Store):
    volume_dataset(local_store)
    manifest = standardize_dataset(local_store, "cells").manifest
    (name,) = (item.name for item in manifest.objects if item.name.startswith(FOLDER))
    key = f"{manifest.folder}/{name}"
    data = bytearray(local_store.read(key))
    data[len(data) // 2] ^= 1
    local_store.put(key, bytes(data))
    with pytest.raises(ValueError, match=r"part-00000.parquet is not the file that its manifest lists. Materialize"):
        cut_and_hash(local_store, "cells", PatchifyParams())
    standardize_dataset(local_store, "cells")
    assert cut_and_hash(local_store, "cells", PatchifyParams()).manifest.counts["patches"]


def test_a_refused_volume_leaves_no_hashes(local_store: Store):
    volume_dataset(local_store)
    local_store.put("inbox/cells/dark.nrrd", nrrd_bytes(np.zeros((80, 80, 80), np.uint8)))
    manifest = standardize_dataset(local_store, "cells").manifest
    assert manifest.counts["rejected"] == 1
    assert {item.key for item in local_store.walk(f"{manifest.folder}/{FOLDER}")} == {
        f"{manifest.folder}/{item.name}" for item in manifest.objects if item.name.startswith(FOLDER)
    }
