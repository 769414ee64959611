"""The commit protocol: content is complete or invisible, commits can be repeated and repaired, one of several writers wins."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from cem_assets.errors import DataError
from cem_assets.store import manifests
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import (
    Inputs,
    committed_partitions,
    current_manifest,
    damaged_objects,
    find_manifest,
    manifest_numbers,
    read_manifest,
    require_manifest,
)
from cem_assets.store.parquet import parquet_file, read_parts
from cem_assets.store.store import Store

INPUTS = Inputs("cem/raw_patches", "vnc", "1", {"spacing": 1}, {"cem/volumes/vnc": "abc"}, {"pillow": "13"})


def commit_once(store: Store, inputs: Inputs = INPUTS, run: str = "run", **objects: bytes):
    commit = Commit(store, inputs, run)
    for name, data in (objects or {"a.parquet": b"aa", "b.parquet": b"b"}).items():
        commit.write(name, data)
    return commit.finish({"rows": 2}, {"note": [1, None, 0.5]})


def test_nothing_is_visible_before_the_manifest(store: Store):
    commit = Commit(store, INPUTS)
    commit.write("a.parquet", b"aa")
    assert current_manifest(store, "cem/raw_patches", "vnc") is None
    assert committed_partitions(store, "cem/raw_patches") == []
    commit.finish({})
    assert committed_partitions(store, "cem/raw_patches") == ["vnc"]


def test_a_manifest_is_read_back_as_it_was_written(store: Store):
    written = commit_once(store)
    read = require_manifest(store, "cem/raw_patches", "vnc")
    assert read.digest == written.digest and read.number == 1 and read.objects == written.objects
    assert read.counts == {"rows": 2} and read.details == {"note": [1, None, 0.5]} and read.num_bytes == 3
    assert store.read(f"{read.folder}/a.parquet") == b"aa"
    assert read.folder == f"cem/raw_patches/vnc/{INPUTS.content}" and read.key == "cem/raw_patches/vnc/_manifests/1.json"


def test_a_damaged_table_is_named(store: Store):
    manifest = commit_once(store)
    with pytest.raises(DataError, match=f"{manifest.folder}/a.parquet is damaged"):
        list(read_parts(store, manifest))
    with (
        store.open(f"{manifest.folder}/a.parquet") as handle,
        pytest.raises(DataError, match=r"a\.parquet is damaged: .*materialize"),
    ):
        parquet_file(handle)


def test_digests_leave_out_runs_times_and_hosts(store: Store, tmp_path):
    first = commit_once(store, run="one")
    second = commit_once(Store(str(tmp_path / "elsewhere")), run="two")
    assert first.digest == second.digest and first.run != second.run


@pytest.mark.parametrize(
    "change",
    [
        {"code_version": "2"},
        {"parameters": {"spacing": 2}},
        {"upstream": {"x": "y"}},
        {"pins": {"pillow": "14"}},
        {"partition": "b"},
    ],
)
def test_other_inputs_are_other_content(change):
    from dataclasses import replace

    assert replace(INPUTS, **change).content != INPUTS.content


def test_equal_inputs_are_up_to_date_and_commit_nothing(store: Store):
    first = commit_once(store)
    again = Commit(store, INPUTS)
    assert again.up_to_date is not None and again.up_to_date.digest == first.digest
    assert manifest_numbers(store, INPUTS.folder) == [1]


def test_a_killed_run_is_taken_up_where_it_stopped(store: Store):
    killed = Commit(store, INPUTS, "killed")
    killed.write("a.parquet", b"aa")
    killed.write("stray.parquet", b"of a plan that is no more")
    again = Commit(store, INPUTS, "again")
    assert again.up_to_date is None and again.has("a.parquet") and not again.has("b.parquet")
    again.adopt("a.parquet")
    again.write("b.parquet", b"b")
    manifest = again.finish({"rows": 2}, {"note": [1, None, 0.5]})
    assert {item.key.rsplit("/", 1)[-1] for item in store.walk(manifest.folder)} == {"a.parquet", "b.parquet"}
    assert manifest.digest == commit_once(Store(f"{store.url}-undisturbed")).digest


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_damage_is_found_and_only_what_is_damaged_is_written_again(store: Store, damage):
    first = commit_once(store)
    key = f"{first.folder}/a.parquet"
    if damage == "missing":
        store.delete([key])
    else:
        store.put(key, b"a" if damage == "shorter" else b"ax")
    assert set(damaged_objects(store, first)) == {"a.parquet"}
    repair = Commit(store, INPUTS)
    assert repair.up_to_date is None and not repair.has("a.parquet") and repair.has("b.parquet")
    repair.write("a.parquet", b"aa")
    repair.adopt("b.parquet")
    second = repair.finish({"rows": 2}, {"note": [1, None, 0.5]})
    assert second.digest == first.digest and second.number == 1, "repaired, not committed again"
    assert damaged_objects(store, second) == {}


def test_sizes_are_compared_for_all_objects_and_bytes_for_the_chosen(local_store: Store):
    manifest = commit_once(local_store)
    local_store.put(f"{manifest.folder}/a.parquet", b"ax")
    assert damaged_objects(local_store, manifest, ["b.parquet"]) == {}
    assert "sha256" in damaged_objects(local_store, manifest, ["a.parquet"])["a.parquet"]


def test_racing_commits_both_leave_whole_results_and_numbers_are_distinct(store: Store):
    variants = [Inputs("cem/x", "p", "1", {"n": n}) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda inputs: commit_once(store, inputs), variants))
    assert sorted(manifest.number for manifest in found) == [1, 2, 3, 4, 5, 6]
    latest = current_manifest(store, "cem/x", "p")
    assert latest is not None and latest.number == 6
    for manifest in found:
        assert damaged_objects(store, manifest) == {}
        assert find_manifest(store, "cem/x", "p", manifest.digest).number == manifest.number


def test_a_final_manifest_is_the_only_one_for_ever(store: Store):
    inputs = [Inputs("cem/releases", "v1", "1", {"n": n}) for n in range(2)]
    Commit(store, inputs[0]).finish({}, is_final=True)
    with pytest.raises(FileExistsError, match="never changes"):
        Commit(store, inputs[1]).finish({}, is_final=True)
    assert manifest_numbers(store, "cem/releases/v1") == [1]


def test_many_objects_are_listed_in_a_table_beside_the_manifest(store: Store, monkeypatch):
    monkeypatch.setattr(manifests, "INLINE_OBJECTS", 3)
    small = commit_once(store)
    objects = {f"{n}.bin": b"%d" % n for n in range(10)}
    large = commit_once(store, Inputs("cem/x", "p", "1"), **objects)
    assert len(json.loads(store.read(small.key))["objects"]) == 2
    body = json.loads(store.read(large.key))
    assert "objects" not in body and body["objects_table"].startswith("cem/x/p/_manifests/objects-")
    assert read_manifest(store, "cem/x/p", 1).objects == large.objects


def test_a_manifest_that_was_tampered_with_is_refused_and_can_be_replaced(store: Store):
    manifest = commit_once(store)
    text = store.read(manifest.key).replace(b'"rows": 2', b'"rows": 3')
    store.put(manifest.key, text)
    with pytest.raises(ValueError, match="does not match its own digest"):
        require_manifest(store, "cem/raw_patches", "vnc")
    again = commit_once(store)
    assert again.number == 2 and require_manifest(store, "cem/raw_patches", "vnc").digest == manifest.digest


def test_a_manifest_of_a_later_format_says_so(store: Store):
    manifest = commit_once(store)
    store.put(manifest.key, store.read(manifest.key).replace(b'"format": 1', b'"format": 9'))
    with pytest.raises(ValueError, match="has format 9; this version of cem_assets reads format 1"):
        require_manifest(store, "cem/raw_patches", "vnc")


def test_what_was_never_committed_says_what_to_materialize(store: Store):
    commit_once(store)
    with pytest.raises(
        FileNotFoundError, match=r"partition 'other' has nothing committed .* materialize it first. Committed partitions: vnc"
    ):
        require_manifest(store, "cem/raw_patches", "other")
    with pytest.raises(FileNotFoundError, match="no manifest with digest 123"):
        find_manifest(store, "cem/raw_patches", "vnc", "123")


def test_numbers_are_compared_as_numbers(store: Store):
    for n in range(11):
        commit_once(store, Inputs("cem/x", "p", "1", {"n": n}))
    latest = current_manifest(store, "cem/x", "p")
    assert latest is not None and latest.number == 11 and latest.inputs.parameters == {"n": 10}
