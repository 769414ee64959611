"""Stored subvolumes have the voxels of the volume, open in other tools, are continued after a kill, and errors name files."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from PIL import Image

from cem_assets import readers
from cem_assets.cem.previews import subvolume_pictures
from cem_assets.cem.subvolumes.files import lacks_voxels
from cem_assets.cem.subvolumes.places import Skipped, SubvolumeParams
from cem_assets.cem.subvolumes.stage import cut_subvolumes, read_subvolume
from cem_assets.cem.volumes.ome_zarr import open_volume_array
from cem_assets.errors import DataError
from cem_assets.execution.local import LocalEngine
from cem_assets.imaging.gallery import MAX_BYTES, flipbook_webp
from cem_assets.store.store import Store
from cem_assets_tests.cem.volumes.test_ome_zarr import written
from cem_assets_tests.datasets import cells

FORMS = ("ome-zarr", "tiff")
FLIPBOOKS = SubvolumeParams(num_slices=5, side_px=48, limit=6)
CUBES = SubvolumeParams(num_slices=32, side_px=32, limit=4, max_overlap=0.3)


def index_of(store: Store, manifest) -> pd.DataFrame:
    return pd.read_parquet(f"{store.url_of(manifest.folder)}/part-00000.parquet")


def dropped_of(store: Store, manifest) -> pd.DataFrame:
    return pd.read_parquet(f"{store.url_of(manifest.folder)}/_dropped/part-00000.parquet")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("params", [FLIPBOOKS, CUBES], ids=["flipbooks", "cubes"])
def test_what_is_stored_is_the_box_of_the_volume_with_the_patchs_axis_first(curated_local: Store, params, form):
    params = SubvolumeParams(**params.model_dump() | {"form": form})
    manifest = cut_subvolumes(curated_local, "cells", params).manifest
    source, index = cells((70, 130, 240)), index_of(curated_local, manifest)
    assert len(index) == manifest.counts["subvolumes"] == params.limit and index["axis"].nunique() > 1
    for row in index.itertuples():
        box = source[row.z0 : row.z1, row.y0 : row.y1, row.x0 : row.x1]
        voxels = read_subvolume(curated_local, manifest, row.file)
        assert np.array_equal(voxels, np.moveaxis(box, row.axis, 0))
        assert voxels.shape == (params.num_slices, params.side_px, params.side_px)
    assert (index[["voxel_size_z_nm", "voxel_size_y_nm", "voxel_size_x_nm"]] == 8.0).all(axis=None)


def test_the_middle_slice_is_the_filtered_patch(curated_local: Store):
    manifest = cut_subvolumes(curated_local, "cells", FLIPBOOKS).manifest
    images = dict(readers.iter_images("cells", "filtered", curated_local.url))
    for row in index_of(curated_local, manifest).itertuples():
        patch = images[row.patch]
        top, left = ((side - 48) // 2 for side in patch.shape)
        middle = read_subvolume(curated_local, manifest, row.file)[2]
        assert np.array_equal(middle, patch[top : top + 48, left : left + 48])


def test_every_patch_is_either_cut_or_told_with_its_reason(curated_local: Store):
    manifest = cut_subvolumes(curated_local, "cells", CUBES).manifest
    index, dropped = index_of(curated_local, manifest), dropped_of(curated_local, manifest)
    names = readers.read_patches("cells", "filtered", curated_local.url)["name"]
    assert sorted([*index["patch"], *dropped["name"]]) == sorted(names)
    counts = {reason: int((dropped["reason"] == reason.value).sum()) for reason in Skipped}
    assert counts == {reason: manifest.counts[f"dropped_{reason.name}"] for reason in Skipped}
    assert counts[Skipped.no_context] and counts[Skipped.over_limit] and manifest.counts["dropped"] == len(dropped)


def test_zarr_opens_a_subvolume_at_its_place_and_size(curated_local: Store):
    manifest = cut_subvolumes(curated_local, "cells", FLIPBOOKS).manifest
    for row in index_of(curated_local, manifest).itertuples():
        group = zarr.open_group(f"{curated_local.url_of(manifest.folder)}/{row.file}", mode="r")
        (scale,) = (dict(group.attrs)["ome"]["multiscales"],)
        low = {"z": row.z0, "y": row.y0, "x": row.x0}
        axes = [axis["name"] for axis in scale[0]["axes"]]
        assert axes == {0: ["z", "y", "x"], 1: ["y", "z", "x"], 2: ["x", "z", "y"]}[row.axis]
        assert scale[0]["datasets"][0]["coordinateTransformations"] == [
            {"type": "scale", "scale": [8.0] * 3},
            {"type": "translation", "translation": [8.0 * low[axis] for axis in axes]},
        ]
        assert np.array_equal(group["0"][:], read_subvolume(curated_local, manifest, row.file))


def test_imagej_reads_the_voxel_size_of_a_stack(curated_local: Store):
    manifest = cut_subvolumes(curated_local, "cells", FLIPBOOKS.model_copy(update={"form": "tiff"})).manifest
    file = index_of(curated_local, manifest)["file"][0]
    with tifffile.TiffFile(f"{curated_local.url_of(manifest.folder)}/{file}") as tif:
        assert tif.is_imagej and tif.series[0].axes == "ZYX" and tif.series[0].shape == (5, 48, 48)
        meta, tags = tif.imagej_metadata, tif.pages[0].tags
        assert (meta["slices"], meta["spacing"], meta["unit"]) == (5, 8.0, "nm")
        for name in ("XResolution", "YResolution"):
            pixels, units = tags[name].value
            assert units / pixels == pytest.approx(8.0, rel=1e-6)
        assert "DateTime" not in tags


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_run_is_taken_up_and_equal_runs_give_equal_bytes(curated_local: Store, form):
    params = FLIPBOOKS.model_copy(update={"form": form})
    first = cut_subvolumes(curated_local, "cells", params)
    assert not cut_subvolumes(curated_local, "cells", params).is_new
    whole = first.manifest
    subvolumes = [item for item in whole.objects if not item.name.endswith(".parquet")]
    per_file = len(subvolumes) // 6
    lost = subvolumes[per_file - 1 :: 2 * per_file]  # the last object of every second subvolume
    curated_local.delete([whole.key, *(f"{whole.folder}/{item.name}" for item in lost)])
    done = []
    again = cut_subvolumes(curated_local, "cells", params, progress=lambda *count: done.append(count)).manifest
    assert done == [(4, 6), (5, 6), (6, 6)] and again.digest == whole.digest
    curated_local.delete([item.key for item in curated_local.walk("cem/subvolumes/cells")])
    assert cut_subvolumes(curated_local, "cells", params).manifest.digest == whole.digest


def test_workers_change_nothing(curated_local: Store):
    one = cut_subvolumes(curated_local, "cells", CUBES).manifest.digest
    curated_local.delete([item.key for item in curated_local.walk("cem/subvolumes/cells")])
    assert cut_subvolumes(curated_local, "cells", CUBES, engine=LocalEngine(2)).manifest.digest == one


def test_a_larger_limit_keeps_the_files_of_a_smaller_one(curated_local: Store):
    few = cut_subvolumes(curated_local, "cells", FLIPBOOKS.model_copy(update={"limit": 3})).manifest
    more = cut_subvolumes(curated_local, "cells", FLIPBOOKS).manifest
    assert index_of(curated_local, more)["name"].tolist()[:3] == index_of(curated_local, few)["name"].tolist()
    digests = {item.name: item.sha256 for item in more.objects}
    kept = [item for item in few.objects if not item.name.endswith(".parquet")]
    assert len(kept) == 9 and all(digests[item.name] == item.sha256 for item in kept)


def test_images_and_volumes_that_are_too_small_give_an_empty_index_and_reasons(curated_local: Store):
    for dataset, params, reason in (
        ("pictures", SubvolumeParams(), Skipped.flat),
        ("cells", SubvolumeParams(), Skipped.no_context),
    ):
        manifest = cut_subvolumes(curated_local, dataset, params).manifest
        assert manifest.counts["subvolumes"] == 0 and len(index_of(curated_local, manifest)) == 0
        assert set(dropped_of(curated_local, manifest)["reason"]) == {reason.value}
        assert subvolume_pictures(curated_local, manifest) == {}


def test_the_preview_plays_the_slices_there_and_back_and_is_small(curated_local: Store):
    manifest = cut_subvolumes(curated_local, "cells", FLIPBOOKS).manifest
    data = subvolume_pictures(curated_local, manifest)["flipbook"]
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == ("WEBP", 8, 0)
        frames = []
        for number in range(8):
            image.seek(number)
            frames.append(np.asarray(image.convert("L")).astype(int))
    assert len(data) < 100_000 and all(np.abs(frames[n] - frames[n + 1]).max() > 20 for n in range(4))
    assert all(np.abs(frames[4 + n] - frames[4 - n]).mean() < 3 for n in range(1, 4))


def test_filtered_patches_are_needed_first(local_store: Store):
    with pytest.raises(FileNotFoundError, match="cem/filtered_patches"):
        cut_subvolumes(local_store, "cells", SubvolumeParams())


def test_a_chunk_that_was_lost_is_an_error_not_zeros(curated_local: Store):
    open_volume_array.cache_clear()
    chunks = [item.key for item in curated_local.walk("cem/volumes/cells") if "/0/c/" in item.key]
    curated_local.delete(chunks)
    with pytest.raises(FileNotFoundError, match="the store lost it"):
        cut_subvolumes(curated_local, "cells", FLIPBOOKS)


def test_an_unknown_file_is_told(curated_local: Store):
    manifest = cut_subvolumes(curated_local, "cells", FLIPBOOKS).manifest
    with pytest.raises(KeyError, match="its index .* lists those that it has"):
        read_subvolume(curated_local, manifest, "../cells")


@pytest.mark.parametrize("form", ["ome-zarr", "tiff"])
def test_a_damaged_file_is_named(curated_local: Store, form):
    manifest = cut_subvolumes(curated_local, "cells", FLIPBOOKS.model_copy(update={"form": form})).manifest
    file = index_of(curated_local, manifest).iloc[0]["file"]
    item = max((item for item in manifest.objects if item.name.startswith(file)), key=lambda item: item.num_bytes)
    data = bytearray(curated_local.read(f"{manifest.folder}/{item.name}"))
    data[len(data) // 2] ^= 1
    curated_local.put(f"{manifest.folder}/{item.name}", bytes(data))
    with pytest.raises(DataError, match=f"{item.name} is damaged: its sha256 .* Materialize cem/subvolumes again"):
        read_subvolume(curated_local, manifest, file)


def test_boxes_that_touch_missing_voxels_are_found_across_bricks(local_store: Store):
    generator = np.random.default_rng(0)
    mask = np.zeros((40, 300, 260), bool)
    mask[10, 223:226, 230] = mask[30, 5, 5] = True
    volume = written(local_store, cells(mask.shape), (0, 1, 2), mask)
    answers = set()
    for _ in range(40):
        low = [int(generator.integers(0, side - 12)) for side in mask.shape]
        low = low if generator.random() < 0.5 else [generator.integers(0, 11), generator.integers(213, 226), 225]
        box = tuple(slice(int(start), int(start) + 12) for start in low)
        answers.add(lacks_voxels(volume, box))
        assert lacks_voxels(volume, box) == mask[box].any()
    assert answers == {False, True}


def test_the_group_says_which_patch_it_is_around(curated_local: Store):
    manifest = cut_subvolumes(curated_local, "cells", FLIPBOOKS).manifest
    row = index_of(curated_local, manifest).iloc[0]
    about = json.loads(curated_local.read(f"{manifest.folder}/{row['file']}/zarr.json"))["attributes"]["cem_assets"]
    assert about["patch"] == row["patch"] and about["low"] == [row["z0"], row["y0"], row["x0"]]


def test_an_animation_of_noise_still_fits_into_an_events_metadata():
    stacks = np.random.default_rng(0).integers(0, 256, (8, 5, 224, 224), dtype=np.uint8)
    data = flipbook_webp([[(stack, "xy") for stack in stacks[:4]], [(stack, "xz") for stack in stacks[4:]], []], 120)
    with Image.open(io.BytesIO(data)) as image:
        assert len(data) <= MAX_BYTES and image.n_frames == 8
    with pytest.raises(ValueError, match="no stack to draw"):
        flipbook_webp([[]])
