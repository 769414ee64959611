"""The stages `cem/raw_patches` and `cem/deduplicated_patches`, and reading their results."""

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cem_assets import readers
from cem_assets.cem.patches import pixels as patches
from cem_assets.cem.patches import stage as cem_patches
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams, choose_exemplars, cut_and_hash
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.execution.local import LocalEngine, ThreadEngine
from cem_assets.store.store import Store
from cem_assets_tests.cem.volumes.test_bricks import by_definition
from cem_assets_tests.datasets import cells, image_dataset, put_in_inbox, toml, volume_dataset

COLUMNS = ["dataset", "name", "volume", "axis", "index", "y0", "y1", "x0", "x1", "dhash"]


def vnc(store: Store, test_data) -> str:
    folder = test_data / "em3d_labelled/vnc_sstem_stack1/raw"
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.tif"))}
    return put_in_inbox(store, "vnc", files, toml("vnc", voxel_size_nm="[45, 4.6, 4.6]"))


def hex_of(image: np.ndarray) -> str:
    resized = Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)
    return str(imagehash.dhash(resized, hash_size=8))


def test_the_vnc_stack_gives_500_patches_each_hashed_as_imagehash_does(local_store, s3_store, test_data):
    digests = []
    for store in (local_store, s3_store):
        vnc(store, test_data)
        stages = [
            standardize_dataset(store, "vnc"),
            cut_and_hash(store, "vnc", PatchifyParams()),
            choose_exemplars(store, "vnc", DedupParams()),
        ]
        digests.append([stage.manifest.digest for stage in stages])
        frame = readers.read_patches("vnc", "raw", store.url)
        assert list(frame.columns) == COLUMNS and frame["dhash"].dtype == np.uint64
        assert len(frame) == 500 and set(frame["axis"]) == {0} and frame["index"].nunique() == 20
        assert {"vnc-LOC-0_00_0-224_0-224", "vnc-LOC-0_19_896-1024_896-1024"} <= set(frame["name"])
        by_name = dict(zip(frame["name"], frame["dhash"], strict=True))
        seen = 0
        for name, image in readers.iter_images("vnc", "raw", store.url):
            assert f"{by_name[name]:016x}" == hex_of(image), name
            seen += 1
        assert seen == 500
    assert digests[0] == digests[1]


def test_patches_are_those_of_the_definition(store: Store):
    volume_dataset(store)
    standardize_dataset(store, "cells")
    cut_and_hash(store, "cells", PatchifyParams(spacing=3))
    expected = by_definition(cells((70, 130, 240)), (0, 1, 2), 3)
    expected = {f"v-LOC-{name.split('-LOC-')[1]}": patch for name, patch in expected.items()}
    found = dict(readers.iter_images("cells", "raw", store.url))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], patch) for name, patch in expected.items())


def test_images_are_cut_with_axis_minus_one_and_index_zero(store: Store, tmp_path):
    image_dataset(store, tmp_path)
    standardize_dataset(store, "pictures")
    result = cut_and_hash(store, "pictures", PatchifyParams())
    frame = readers.read_patches("pictures", "raw", store.url)
    assert set(frame["axis"]) == {-1} and set(frame["index"]) == {0}
    assert frame["name"][0] == "im 0-LOC-2d-0-224_0-224" and len(frame) == result.manifest.counts["patches"] == 11
    for name, image in readers.iter_images("pictures", "raw", store.url):
        row = frame[frame["name"] == name].iloc[0]
        assert f"{row['dhash']:016x}" == hex_of(image) and image.shape == (row["y1"] - row["y0"], row["x1"] - row["x0"])


def test_images_under_64_px_are_rejected_with_their_name(local_store: Store, tmp_path):
    from cem_assets_tests.datasets import png_bytes

    files = {"small.png": png_bytes(tmp_path, cells((63, 200))), "large.png": png_bytes(tmp_path, cells((64, 200)))}
    put_in_inbox(local_store, "d", files, toml("d", "images"))
    standardize_dataset(local_store, "d")
    result = cut_and_hash(local_store, "d", PatchifyParams())
    assert result.manifest.counts == {"patches": 1, "rejected_patches": 0, "rejected_planes": 1}
    frame = pd.read_parquet(f"{local_store.url_of(result.manifest.folder)}/_rejected/planes.parquet")
    assert frame["what"].tolist() == ["small"] and "63 x 200 px" in frame["reason"][0]


def test_workers_and_part_sizes_do_not_change_the_rows(local_store: Store, tmp_path, monkeypatch):
    volume_dataset(local_store, shape=(100, 300, 470))
    standardize_dataset(local_store, "cells")
    digests = []
    for engine in (LocalEngine(2), ThreadEngine(1), ThreadEngine(2), ThreadEngine(3), LocalEngine(1)):
        digests.append(cut_and_hash(local_store, "cells", PatchifyParams(), engine=engine).manifest.digest)
        if len(digests) < 5:
            local_store.delete([item.key for item in local_store.walk("cem/raw_patches")])
    assert len(set(digests)) == 1
    whole = readers.read_patches("cells", "raw", local_store.url)
    monkeypatch.setattr(patches, "ROWS_PER_PART", 200)
    local_store.delete([item.key for item in local_store.walk("cem/raw_patches")])
    cut_and_hash(local_store, "cells", PatchifyParams())
    pd.testing.assert_frame_equal(whole, readers.read_patches("cells", "raw", local_store.url))


def test_a_killed_run_is_taken_up_after_its_last_whole_part(local_store: Store, monkeypatch):
    monkeypatch.setattr(patches, "ROWS_PER_PART", 100)
    volume_dataset(local_store, shape=(100, 300, 470))
    standardize_dataset(local_store, "cells")
    reference = cut_and_hash(local_store, "cells", PatchifyParams()).manifest
    names = [item.name for item in reference.find(".parquet")]
    assert len(names) >= 3
    local_store.delete([reference.key, f"{reference.folder}/{names[-1]}", f"{reference.folder}/_rejected/planes.parquet"])
    hashed = []
    real = patches.hash_brick
    monkeypatch.setattr(patches, "hash_brick", lambda *args: (hashed.append(args[1]), real(*args))[1])
    again = cut_and_hash(local_store, "cells", PatchifyParams(), engine=LocalEngine(1)).manifest
    assert again.digest == reference.digest and len(hashed) < 6, "only the last part is hashed again"


def test_what_pillow_it_was_hashed_under_is_recorded(local_store: Store):
    import PIL

    volume_dataset(local_store)
    standardize_dataset(local_store, "cells")
    manifest = cut_and_hash(local_store, "cells", PatchifyParams()).manifest
    assert manifest.versions["pillow"] == manifest.inputs.pins["pillow"] == PIL.__version__
    assert "imagehash" in manifest.versions and "numba" in manifest.versions


# Deduplicated


def test_every_patch_is_an_exemplar_or_names_one(store: Store):
    volume_dataset(store)
    standardize_dataset(store, "cells")
    cut_and_hash(store, "cells", PatchifyParams())
    result = choose_exemplars(store, "cells", DedupParams())
    raw = readers.read_patches("cells", "raw", store.url)
    kept = readers.read_patches("cells", "deduplicated", store.url)
    dropped = readers.read_duplicates("cells", store.url)
    assert list(kept.columns) == [*COLUMNS, "num_duplicates"] and list(dropped.columns) == ["name", "exemplar", "distance"]
    assert 1 < len(kept) < len(raw) and set(kept["name"]) | set(dropped["name"]) == set(raw["name"])
    assert set(dropped["exemplar"]) <= set(kept["name"])
    hashes = dict(zip(raw["name"], raw["dhash"].astype(object), strict=True))
    apart = [(int(hashes[n]) ^ int(hashes[e])).bit_count() for n, e in zip(dropped["name"], dropped["exemplar"], strict=True)]
    assert apart == dropped["distance"].tolist() and max(apart) <= 12
    assert kept["num_duplicates"].sum() == len(dropped)
    counted = dropped["exemplar"].value_counts()
    assert all(counted.get(name, 0) == count for name, count in zip(kept["name"], kept["num_duplicates"], strict=True))
    assert sum(result.manifest.details["distances"]) == len(dropped)


def test_exemplars_stay_in_the_order_of_the_raw_table_across_parts(local_store: Store, monkeypatch):
    volume_dataset(local_store)
    standardize_dataset(local_store, "cells")
    cut_and_hash(local_store, "cells", PatchifyParams())
    monkeypatch.setattr(cem_patches, "_ROWS_PER_PART", 10)
    monkeypatch.setattr(cem_patches, "_BATCH_ROWS", 7)
    manifest = choose_exemplars(local_store, "cells", DedupParams()).manifest
    assert len(manifest.find(".parquet")) > 1
    raw = readers.read_patches("cells", "raw", local_store.url)["name"].tolist()
    kept = readers.read_patches("cells", "deduplicated", local_store.url)["name"].tolist()
    assert kept == [name for name in raw if name in set(kept)]
    dropped = readers.read_duplicates("cells", local_store.url)["name"].tolist()
    assert dropped == [name for name in raw if name not in set(kept)]


def test_another_distance_is_another_content_and_raw_is_left_alone(local_store: Store):
    volume_dataset(local_store)
    standardize_dataset(local_store, "cells")
    raw = cut_and_hash(local_store, "cells", PatchifyParams()).manifest
    strict = choose_exemplars(local_store, "cells", DedupParams(max_distance=0)).manifest
    loose = choose_exemplars(local_store, "cells", DedupParams(max_distance=20)).manifest
    assert strict.counts["exemplars"] > loose.counts["exemplars"] and loose.number == 2
    assert not cut_and_hash(local_store, "cells", PatchifyParams()).is_new and raw.number == 1


@pytest.mark.parametrize("stage", ["raw", "raw_patches", "cem/raw_patches"])
def test_stages_have_several_names(local_store: Store, stage):
    volume_dataset(local_store)
    standardize_dataset(local_store, "cells")
    cut_and_hash(local_store, "cells", PatchifyParams(spacing=50))
    assert len(readers.read_patches("cells", stage, local_store.url)) > 0


def test_other_stages_and_datasets_are_told_in_words(local_store: Store):
    with pytest.raises(ValueError, match="stage 'raws' is not known; expected one of volumes, raw"):
        readers.read_patches("d", "raws", local_store.url)
    with pytest.raises(FileNotFoundError, match="materialize it first"):
        readers.read_patches("d", "raw", local_store.url)
    with pytest.raises(ValueError, match="has no patches"):
        readers.read_patches("d", "volumes", local_store.url)
