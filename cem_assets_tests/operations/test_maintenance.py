"""Maintenance: what nothing names is deleted, and everything else can still be read."""

import os
import time
from pathlib import Path

from cem_assets import readers
from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams, choose_exemplars, cut_and_hash
from cem_assets.cem.releases.stage import make_release
from cem_assets.cli.demo.cytoimagenet import write_phantom_source
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.labels.stage import LabelTableParams, label_entries, make_label_table
from cem_assets.cytoimagenet.phantom.screens import phantom_sources
from cem_assets.cytoimagenet.releases.stage import make_cyto_release
from cem_assets.cytoimagenet.sources.inbox import register_source
from cem_assets.cytoimagenet.sources.stage import standardize_source
from cem_assets.operations.maintenance import measure, sweep
from cem_assets.store.assets import FILTERED
from cem_assets.store.manifests import current_manifest, damaged_objects
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import run_chain


def images(store: Store, dataset: str, stage: str) -> list[str]:
    return [name for name, _ in readers.iter_images(dataset, stage, store.url)]


def test_nothing_that_is_named_is_swept(curated_store: Store):
    make_release(curated_store)
    before = {item.key for item in curated_store.walk("cem")}
    assert sweep(curated_store, min_age_hours=0).num_objects == 0
    assert {item.key for item in curated_store.walk("cem")} == before


def test_old_content_goes_but_what_a_release_names_stays(curated_store: Store):
    store = curated_store
    make_release(store)
    released = current_manifest(store, FILTERED, "cells")
    keep_informative(store, "cells", FilterParams(threshold=0.5))
    choose_exemplars(store, "twin", DedupParams(max_distance=3))  # still names what twin's scores were made from
    keep_informative(store, "twin", FilterParams(threshold=0.5))
    between = current_manifest(store, FILTERED, "twin")
    keep_informative(store, "twin", FilterParams(threshold=0.25))
    swept = sweep(store, min_age_hours=0)
    assert swept.folders == (between.folder,) and swept.num_objects == len(between.objects)
    assert damaged_objects(store, released) == {}
    assert len(list(readers.read_release("v1", store.url).iter_images())) == readers.read_release("v1", store.url).num_patches
    for dataset in ("cells", "twin", "pictures"):
        for stage in ("raw", "deduplicated", "scores", "filtered"):
            assert len(images(store, dataset, stage)) == len(readers.read_patches(dataset, stage, store.url))


def test_young_content_and_that_of_live_runs_stays(curated_local: Store):
    store = curated_local
    keep_informative(store, "cells", FilterParams(threshold=0.5))
    keep_informative(store, "cells", FilterParams(threshold=0.25))
    store.put("cem/raw_patches/killed/0123456789abcdef/part-00000.parquet", b"left by a killed run")
    assert sweep(store).num_objects == 0
    old = time.time() - 25 * 3600
    for item in store.walk("cem"):
        os.utime(store.url_of(item.key), (old, old))
    first = sweep(store, live={"cells"})
    assert first.live == ("cells",) and first.folders == ("cem/raw_patches/killed/0123456789abcdef",)
    store.put(
        f"{'/'.join(current_manifest(store, FILTERED, 'cells').folder.split('/')[:-1])}/fedcba9876543210/part-1", b"young"
    )
    second = sweep(store)
    assert len(second.folders) == 2 and all(folder.startswith("cem/filtered_patches/cells/") for folder in second.folders)


def test_pixels_are_found_again_while_newer_data_is_not_yet_cut(curated_local: Store):
    store = curated_local
    before = images(store, "cells", "raw")
    store.put("inbox/cells/w.nrrd", store.read("inbox/cells/v.nrrd"))
    run_chain(store, "cells", until="volumes")
    assert sweep(store, min_age_hours=0).num_objects == 0
    assert images(store, "cells", "raw") == before
    cut_and_hash(store, "cells", PatchifyParams())
    assert len(images(store, "cells", "deduplicated")) > 0
    sweep(store, min_age_hours=0)
    assert len(images(store, "cells", "deduplicated")) > 0


def test_sizes_add_up(curated_store: Store):
    sizes = {size.prefix: size for size in measure(curated_store)}
    for prefix in ("inbox", "cem/volumes", "cem/filtered_patches"):
        objects = list(curated_store.walk(prefix))
        assert (sizes[prefix].num_objects, sizes[prefix].num_bytes) == (len(objects), sum(item.num_bytes for item in objects))


def test_crops_that_a_release_names_stay_and_others_go(local_store: Store, tmp_path: Path):
    store = local_store
    write_phantom_source(phantom_sources(3)[2], tmp_path / "phantom_lineup")
    register_source(store, tmp_path / "phantom_lineup")
    standardize_source(store, "phantom_lineup")
    thresholds = {"min_images": 5, "max_images": 10, "presample_images": 40}
    table = make_label_table(store, LabelTableParams(**thresholds)).manifest
    key = next(iter(label_entries(store, table)))
    first = make_crops(store, key, CropStageParams(seed=0, min_images=2)).manifest
    make_cyto_release(store)
    between = make_crops(store, key, CropStageParams(seed=1, min_images=2)).manifest
    last = make_crops(store, key, CropStageParams(seed=2, min_images=2)).manifest
    make_label_table(store, LabelTableParams(**thresholds, seed=1))
    swept = sweep(store, min_age_hours=0)
    assert set(swept.folders) == {between.folder, table.folder}
    assert damaged_objects(store, first) == damaged_objects(store, last) == {}
    release = readers.read_cyto_release("v1", store.url)
    assert len(list(release.iter_images())) == release.num_images > 0
    assert {size.prefix for size in measure(store)} >= {"cytoimagenet/crops", "cytoimagenet/releases"}
