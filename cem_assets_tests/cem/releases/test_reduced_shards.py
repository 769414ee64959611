"""Copies of shards without some of their rows."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from cem_assets.cem.pixel_sums import PixelSums
from cem_assets.cem.releases.reduced_shards import patch_hashes, write_without
from cem_assets.store.assets import FILTERED
from cem_assets.store.commits import Commit
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.parquet import parquet_bytes, read_parts
from cem_assets.store.store import Store
from cem_assets_tests.pretraining.training_sets import put_filtered, textures


@pytest.fixture
def three_shards(local_store: Store) -> tuple[Manifest, list[np.ndarray]]:
    """A partition of nine patches in three shards of three."""
    images = textures(30.0, 9, 0)
    whole = put_filtered(local_store, "waves", images)
    (table,) = read_parts(local_store, whole)
    commit = Commit(local_store, Inputs(FILTERED, "waves", "1", {"threshold": 0.25}))
    for number in range(3):
        commit.write(f"part-{number:05d}.parquet", parquet_bytes([table.slice(3 * number, 3)], table.schema, 2))
    return commit.finish({"patches": 9}), images


def target(store: Store) -> Commit:
    return Commit(store, Inputs("cem/releases", "v1", "1"))


def names_in(store: Store, commit: Commit, objects) -> list[str]:
    found = []
    for item in objects:
        with store.open(f"{commit.content.folder}/{item.name}") as handle:
            found += pq.ParquetFile(handle).read(columns=["name"])["name"].to_pylist()
    return found


@pytest.mark.parametrize("places", [[0], [1, 4], [3, 4, 5], [0, 8], list(range(9)), list(range(1, 9))])
def test_the_rows_go_the_others_stay_and_the_sums_are_of_those_that_went(local_store: Store, three_shards, places):
    manifest, images = three_shards
    names = [name for name, _ in patch_hashes(local_store, manifest)]
    commit = target(local_store)
    objects, lost = write_without(local_store, commit, manifest, "patches/waves", {names[place] for place in places})
    assert objects and names_in(local_store, commit, objects) == [n for i, n in enumerate(names) if i not in places]
    flat = np.concatenate([images[place].ravel() for place in places]).astype(object)
    assert lost == PixelSums(len(flat), int(flat.sum()), int((flat * flat).sum()))
    for item in objects:
        with local_store.open(f"{commit.content.folder}/{item.name}") as handle:
            for row in pq.ParquetFile(handle).read().to_pylist():
                assert np.array_equal(decode_image(row["image"]["bytes"]), images[names.index(row["name"])])


def test_shards_that_lose_nothing_are_copied_byte_by_byte(local_store: Store, three_shards):
    manifest, _ = three_shards
    names = [name for name, _ in patch_hashes(local_store, manifest)]
    objects, _ = write_without(local_store, target(local_store), manifest, "patches/waves", {names[4]})
    assert [item.sha256 for item in objects][::2] == [item.sha256 for item in manifest.objects][::2]
    assert objects[1].sha256 != manifest.objects[1].sha256


def test_what_a_killed_run_left_is_taken_up(local_store: Store, three_shards, monkeypatch):
    manifest, _ = three_shards
    names = [name for name, _ in patch_hashes(local_store, manifest)]
    expected = write_without(local_store, target(local_store), manifest, "patches/waves", {names[4]})
    left = target(local_store)
    monkeypatch.setattr(left, "write", lambda *_: pytest.fail("it was written already"))
    assert write_without(local_store, left, manifest, "patches/waves", {names[4]}) == expected


def test_a_damaged_shard_is_not_copied(local_store: Store, three_shards):
    manifest, _ = three_shards
    names = [name for name, _ in patch_hashes(local_store, manifest)]
    key = f"{manifest.folder}/part-00002.parquet"
    with local_store.open(key) as handle:
        table = pq.ParquetFile(handle).read()
    local_store.put(key, parquet_bytes([table.slice(1)], table.schema))
    with pytest.raises(ValueError, match=r"its manifest says .*\. Materialize cem/filtered_patches, partition 'waves', again"):
        write_without(local_store, target(local_store), manifest, "patches/waves", {names[0]})
