"""Scores and filtered patches: kept or dropped with a reason, continued after a kill, and readable by other tools."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cem_assets import readers
from cem_assets.cem.classifier.params import ScoreParams
from cem_assets.cem.filter import stage as cem_filter
from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative, score_patches
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.store import parquet
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import SCORING, import_classifier, run_chain
from cem_assets_tests.datasets import image_dataset, volume_dataset


@pytest.fixture
def scored(curated_local: Store) -> tuple[Store, float]:
    """A dataset that was scored with fixed random weights, and the median of its scores."""
    curated_local.delete([item.key for item in curated_local.walk("cem/filtered_patches/cells")])
    scores = readers.read_patches("cells", "scores", curated_local.url)["informative"]
    return curated_local, float(scores.median())


def test_every_exemplar_is_scored_and_keeps_its_columns(scored):
    store, _ = scored
    exemplars = readers.read_patches("cells", "deduplicated", store.url)
    scores = readers.read_patches("cells", "scores", store.url)
    pd.testing.assert_frame_equal(scores[exemplars.columns], exemplars)
    assert scores["informative"].between(0, 1).all() and scores["informative"].nunique() > 1
    assert np.allclose(scores["informative"], 1 / (1 + np.exp(-scores["logit"])), atol=1e-6)


def test_scores_do_not_depend_on_how_the_rows_are_read(scored, monkeypatch):
    store, _ = scored
    first = readers.read_patches("cells", "scores", store.url)
    store.delete([item.key for item in store.walk("cem/patch_scores/cells")])
    monkeypatch.setattr(cem_filter, "_READ_BATCHES", 1)
    score_patches(store, "cells", SCORING)
    assert np.allclose(first["logit"], readers.read_patches("cells", "scores", store.url)["logit"], atol=1e-4)


def test_a_killed_scoring_is_taken_up_after_its_last_whole_part(scored, monkeypatch):
    store, _ = scored
    store.delete([item.key for item in store.walk("cem/patch_scores/cells")])
    monkeypatch.setattr(cem_filter, "_SCORED_PER_PART", 16)
    reference = score_patches(store, "cells", SCORING).manifest
    assert len(reference.objects) >= 2
    store.delete([reference.key, f"{reference.folder}/{reference.objects[-1].name}"])
    done = []
    again = score_patches(store, "cells", SCORING, progress=lambda count, total: done.append(count)).manifest
    assert again.digest == reference.digest
    assert min(done) > 16 * (len(reference.objects) - 2), "earlier parts were not scored again"


def test_scores_that_are_up_to_date_need_neither_weights_nor_volumes(scored, monkeypatch):
    store, _ = scored

    def fails(*_):
        raise AssertionError("nothing heavy is read before the stage knows whether there is work")

    for name in ("read_classifier", "pixels_behind"):
        monkeypatch.setattr(cem_filter, name, fails)
    result = score_patches(store, "cells", SCORING)
    assert not result.is_new and len(readers.read_patches("cells", "scores", store.url)) == result.manifest.counts["patches"]


def test_the_threshold_divides_kept_from_dropped_without_a_second_inference(scored):
    store, middle = scored
    scores = readers.read_patches("cells", "scores", store.url)
    for threshold in (middle, 0.0, 1.0):
        result = keep_informative(store, "cells", FilterParams(threshold=threshold))
        kept = readers.read_patches("cells", "filtered", store.url)
        expected = scores[scores["informative"] > np.float32(threshold)]
        assert kept["name"].tolist() == expected["name"].tolist()
        assert result.manifest.counts["dropped"] == len(scores) - len(expected)
        dropped = pd.read_parquet(f"{store.url_of(result.manifest.folder)}/_dropped/part-00000.parquet")
        assert set(dropped["name"]) == set(scores["name"]) - set(kept["name"]) and set(dropped["reason"]) <= {"uninformative"}
    assert len(readers.list_releases(store.url)) == 0


def test_pixels_of_every_stage_are_the_same(scored):
    store, middle = scored
    keep_informative(store, "cells", FilterParams(threshold=middle))
    raw = dict(readers.iter_images("cells", "raw", store.url))
    for stage in ("deduplicated", "scores", "filtered"):
        found = dict(readers.iter_images("cells", stage, store.url))
        assert found and all(np.array_equal(image, raw[name]) for name, image in found.items())


def test_pandas_reads_the_documented_path_and_nothing_else(scored):
    store, middle = scored
    keep_informative(store, "cells", FilterParams(threshold=middle))
    path = readers.content_url("filtered", "cells", store.url)
    frame = pd.read_parquet(path)
    assert frame["name"].tolist() == readers.read_patches("cells", "filtered", store.url)["name"].tolist()
    image = Image.open(io.BytesIO(frame["image"][0]["bytes"]))
    assert image.mode == "L" and frame["image"][0]["path"] == f"{frame['name'][0]}.tiff"


def test_shards_are_cut_at_a_fixed_number_of_patches_and_taken_up_after_a_kill(scored, monkeypatch):
    store, _ = scored
    monkeypatch.setattr(cem_filter, "PATCHES_PER_SHARD", 7)
    monkeypatch.setattr(parquet, "IMAGE_ROW_GROUP", 3)
    reference = keep_informative(store, "cells", FilterParams(threshold=0)).manifest
    shards = reference.find(".parquet")
    assert len(shards) == reference.counts["shards"] > 1
    store.delete([reference.key, f"{reference.folder}/{shards[1].name}"])
    again = keep_informative(store, "cells", FilterParams(threshold=0)).manifest
    assert again.digest == reference.digest


def test_pixel_sums_are_exact(scored):
    store, _ = scored
    manifest = keep_informative(store, "cells", FilterParams(threshold=0)).manifest
    pixels = np.concatenate([image.reshape(-1) for _, image in readers.iter_images("cells", "filtered", store.url)]).astype(
        np.int64
    )
    assert manifest.details["pixels"] == {"count": pixels.size, "total": pixels.sum(), "squares": (pixels**2).sum()}


def test_images_go_through_the_whole_chain(store: Store, tmp_path, weights):
    image_dataset(store, tmp_path)
    import_classifier(store, weights)
    results = run_chain(store, "pictures", threshold=0.0)
    assert results["filtered"].manifest.counts["patches"] == results["deduplicated"].manifest.counts["exemplars"] > 0
    assert {name.split("-LOC-")[0] for name, _ in readers.iter_images("pictures", "filtered", store.url)} <= {
        f"im {n}" for n in range(5)
    }


def test_newer_volumes_do_not_mix_with_older_tables(scored):
    store, _ = scored
    before = dict(readers.iter_images("cells", "deduplicated", store.url))
    volume_dataset(store, seed=5)
    standardize_dataset(store, "cells")
    keep_informative(store, "cells", FilterParams(threshold=0))
    after = dict(readers.iter_images("cells", "filtered", store.url))
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_without_a_classifier_the_ways_to_get_one_are_told(local_store: Store):
    volume_dataset(local_store)
    run_chain(local_store, "cells", until="deduplicated")
    with pytest.raises(FileNotFoundError) as caught:
        score_patches(local_store, "cells", ScoreParams())
    for part in ("Zenodo record 6458015", "CEM_ASSETS_CLASSIFIER_WEIGHTS", "sha256", "cem/patch_labels/", 'source = "labels"'):
        assert part in str(caught.value)


def test_a_gpu_that_is_not_there_is_told(scored):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    store, _ = scored
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        score_patches(store, "cells", ScoreParams(device="cuda"))


def test_a_limit_keeps_a_seeded_choice_and_a_larger_one_only_adds(scored):
    store, middle = scored
    informative = set(readers.read_patches("cells", "scores", store.url).query("informative > @middle")["name"])
    kept, choices = [], [(3, 0), (7, 0), (10**6, 0), (3, 1)]
    for limit, seed in choices:
        manifest = keep_informative(store, "cells", FilterParams(threshold=middle, max_patches=limit, seed=seed)).manifest
        found = set(readers.read_patches("cells", "filtered", store.url)["name"])
        dropped = pd.read_parquet(f"{store.url_of(manifest.folder)}/_dropped/part-00000.parquet")
        over = set(dropped.loc[dropped["reason"] == "over max_patches", "name"])
        assert found <= informative and len(found) == min(limit, len(informative)) and over == informative - found
        assert manifest.counts["over_max_patches"] == len(over) and manifest.counts["patches"] == len(found)
        assert set(dropped.loc[dropped["reason"] == "uninformative", "name"]).isdisjoint(informative)
        kept.append(found)
    assert kept[0] < kept[1] < kept[2] == informative and kept[3] != kept[0]


def test_a_limit_that_is_not_set_leaves_no_trace(scored):
    store, middle = scored
    manifest = keep_informative(store, "cells", FilterParams(threshold=middle)).manifest
    assert dict(manifest.inputs.parameters) == {"threshold": middle} and "over_max_patches" not in manifest.counts
    assert FilterParams(seed=3).model_dump() == {"threshold": 0.5} == FilterParams().model_dump(mode="json", exclude={"device"})
    assert FilterParams(max_patches=2).model_dump() == {"threshold": 0.5, "max_patches": 2, "seed": 0}
