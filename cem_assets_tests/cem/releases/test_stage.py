"""Releases are numbered and complete, and never change."""

import numpy as np
import pandas as pd
import pytest

from cem_assets import readers
from cem_assets.cem.checks import release_is_complete
from cem_assets.cem.releases.stage import list_releases, make_release
from cem_assets.store.manifests import manifest_numbers
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import run_chain
from cem_assets_tests.datasets import volume_dataset


@pytest.fixture
def released(curated_store: Store) -> Store:
    return curated_store


def test_a_release_holds_all_that_is_filtered_and_says_what_is_in_it(released):
    result = make_release(released)
    assert result.is_new and result.manifest.inputs.partition == "v1"
    release = readers.read_release(root=released.url)
    assert release.version == "v1" == readers.list_releases(released.url)[0] and release.digest == result.manifest.digest
    assert release.datasets["dataset"].tolist() == ["cells", "pictures", "twin"]
    assert release.num_patches == release.datasets["num_patches"].sum() == len(release.patches())
    frame = release.patches(["dataset", "name"])
    for dataset in ("cells", "pictures"):
        expected = readers.read_patches(dataset, "filtered", released.url)["name"].tolist()
        assert frame[frame["dataset"] == dataset]["name"].tolist() == expected
    pixels = np.concatenate([image.reshape(-1) for _, image in release.iter_images()]) / 255
    assert release.pixel_mean == pytest.approx(pixels.mean()) and release.pixel_std == pytest.approx(pixels.std())
    assert "| cells |" in release.card and "CC0-1.0" in release.card and "Test et al. 2026" in release.card
    assert release_is_complete(released, result.manifest).passed


def test_shards_are_read_with_pandas_alone(released):
    make_release(released)
    release = readers.read_release("v1", released.url)
    frames = [pd.read_parquet(url, columns=["name"]) for url in release.shards]
    assert sum(map(len, frames)) == release.num_patches


def test_near_copies_across_datasets_are_listed_at_the_strict_distance(released):
    manifest = make_release(released).manifest
    url = f"{released.url_of(manifest.folder)}/cross_dataset_duplicates.parquet"
    table = pd.read_parquet(url)
    assert len(table) == manifest.counts["cross_dataset_pairs"] > 0
    assert set(table["dataset"]) == {"cells"} and set(table["other_dataset"]) == {"twin"} and table["distance"].max() <= 4
    same = table[table["distance"] == 0]
    assert (same["name"] == same["other_name"]).any()


def test_nothing_new_filtered_means_no_new_release(released):
    first = make_release(released)
    again = make_release(released)
    assert not again.is_new and again.manifest.digest == first.manifest.digest and len(list_releases(released)) == 1


def test_a_release_never_changes_when_its_datasets_do(released):
    first = make_release(released).manifest
    before = released.read(f"{first.folder}/release.json")
    patches = readers.read_release("v1", released.url).patches(["name"])
    volume_dataset(released, "cells", seed=4)
    run_chain(released, "cells", until="filtered", threshold=0.0)
    second = make_release(released).manifest
    assert second.inputs.partition == "v2" and readers.list_releases(released.url) == ["v1", "v2"]
    assert released.read(f"{first.folder}/release.json") == before and manifest_numbers(released, "cem/releases/v1") == [1]
    pd.testing.assert_frame_equal(patches, readers.read_release("v1", released.url).patches(["name"]))
    assert release_is_complete(released, first).passed
    assert readers.read_release(root=released.url).version == "v2"


def test_some_datasets_under_a_chosen_name(released):
    manifest = make_release(released, "cem-small.1", ["pictures"]).manifest
    assert readers.read_release("cem-small.1", released.url).datasets["dataset"].tolist() == ["pictures"]
    assert not make_release(released, "cem-small.1", ["pictures"]).is_new
    with pytest.raises(FileExistsError, match="release 'cem-small.1' exists with other contents, and releases never change"):
        make_release(released, "cem-small.1")
    assert manifest.counts["datasets"] == 1


def test_a_version_taken_by_another_run_meanwhile_is_passed_over(released, monkeypatch):
    from cem_assets.cem.releases import stage as cem_releases

    real = cem_releases._commit
    raced = []

    def race(store, version, *rest):
        if not raced:
            raced.append(make_release_of_another_run(store))
        return real(store, version, *rest)

    def make_release_of_another_run(store):
        monkeypatch.setattr(cem_releases, "_commit", real)
        manifest = make_release(store, datasets=["pictures"]).manifest
        monkeypatch.setattr(cem_releases, "_commit", race)
        return manifest

    monkeypatch.setattr(cem_releases, "_commit", race)
    mine = make_release(released).manifest
    assert raced[0].inputs.partition == "v1" and mine.inputs.partition == "v2"
    assert [release.details["sequence"] for release in list_releases(released)] == [1, 2]


def test_lost_shards_are_noticed(released):
    manifest = make_release(released).manifest
    first = manifest.details["contents"][0]
    released.delete([f"{first['folder']}/{first['objects'][0]['name']}"])
    outcome = release_is_complete(released, manifest)
    assert (
        not outcome.passed and "1 of 3 objects are missing or changed, such as cells/part-00000.parquet" in outcome.description
    )


def test_nothing_to_release_is_told(local_store: Store):
    with pytest.raises(ValueError, match="there is nothing to release: no partition of cem/filtered_patches is committed"):
        make_release(local_store)
    with pytest.raises(FileNotFoundError, match="has no release yet"):
        readers.read_release(root=local_store.url)
    with pytest.raises(ValueError, match="release version 'A B' is not allowed"):
        make_release(local_store, "A B")
