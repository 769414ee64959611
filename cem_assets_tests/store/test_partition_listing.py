"""Listing many partitions at once gives the same result as listing each by itself, in fewer requests."""

import json
from dataclasses import replace
from itertools import islice

import pytest
from cachetools import LRUCache

from cem_assets.inbox.datasets import arrival_of, arrivals
from cem_assets.store import manifest_facts, partition_listing
from cem_assets.store.manifest_facts import MAX_BYTES, committed_facts, current_facts, facts_of, is_whole
from cem_assets.store.manifests import Inputs, Manifest, ManifestObject, canonical_json, current_manifest, write_manifest
from cem_assets.store.partition_listing import list_partition, list_partitions, listing_digest, marked_folders, place
from cem_assets.store.s3 import QuickBucket
from cem_assets.store.store import Store

ASSET = "cem/raw_patches"
# In S3 "a-b/" and "a.b/" come before "a/"; plain names come the other way round.
NAMES = ("a", "a-b", "a.b", "a0", "b", "large", "z-z", "z")


def commit(store: Store, name: str, num_objects: int = 2, version: str = "1", details=None) -> Manifest:
    inputs = Inputs(ASSET, name, version, {"spacing": 1}, {"cem/volumes/" + name: "0"})
    objects = []
    for number in range(num_objects):
        data = f"{name} {number}".encode()
        store.put(f"{inputs.folder}/{inputs.content}/part-{number:05d}", data)
        objects.append(ManifestObject(f"part-{number:05d}", len(data), "0" * 64))
    run = {"id": "", "host": "", "started": "2026-11-28T00:00:00+00:00"}
    return write_manifest(store, Manifest(inputs, 0, tuple(objects), {"rows": 1}, details or {}, {}, run))


@pytest.fixture
def filled(store: Store, monkeypatch) -> Store:
    """Eight partitions: one is large, one was committed twice, and one was killed before its manifest."""
    monkeypatch.setattr(partition_listing, "LARGE_FOLDER", 6)
    monkeypatch.setattr(partition_listing, "_NUM_ALONE", 2)
    for name in NAMES:
        commit(store, name, 9 if name == "large" else 2)
    commit(store, "b", 3, version="2")
    store.put(f"{ASSET}/killed/0123456789abcdef/part-00000", b"no manifest")
    store.put(f"{ASSET}/_runs/x", b"no partition")
    return store


def count_calls(store: Store, monkeypatch) -> list[str]:
    calls = []
    if store.is_s3:
        call_s3 = store.fs.call_s3
        monkeypatch.setattr(store.fs, "call_s3", lambda *args, **more: (calls.append(args[0]), call_s3(*args, **more))[1])
        pages = QuickBucket.pages

        def counting(self, folder, behind):
            for page in pages(self, folder, behind):
                calls.append("a page through obstore")
                yield page

        monkeypatch.setattr(QuickBucket, "pages", counting)
    return calls


def test_a_listing_says_what_asking_for_each_partition_says(filled):
    listings = list(list_partitions(filled, ASSET))
    assert [listing.name for listing in listings] == sorted([*NAMES, "killed"], key=place)
    for listing in listings:
        assert listing == list_partition(filled, ASSET, listing.name)
        manifest = current_manifest(filled, ASSET, listing.name)
        if manifest is None:
            assert listing.name == "killed" and listing.newest is None and list(listing.contents) == ["0123456789abcdef"]
            continue
        assert listing.newest.key == manifest.key
        expected = listing_digest((item.name, item.num_bytes) for item in manifest.objects)
        assert listing.contents[manifest.inputs.content] == expected
    assert len(next(listing for listing in listings if listing.name == "b").contents) == 2


def test_a_listing_goes_on_behind_any_partition(filled):
    ordered = sorted([*NAMES, "killed"], key=place)
    for number, name in enumerate(ordered):
        assert [listing.name for listing in list_partitions(filled, ASSET, name)] == ordered[number + 1 :]
        assert [name for name, _ in marked_folders(filled, ASSET, "x", name)] == ordered[number + 1 :]


def test_many_small_partitions_take_one_request_and_large_ones_one_each(s3_store, monkeypatch):
    for number in range(30):
        commit(s3_store, f"small-{number:02d}")
    calls = count_calls(s3_store, monkeypatch)
    assert len(list(list_partitions(s3_store, ASSET))) == 30
    assert len(calls) <= 3
    calls.clear()
    assert len(list(islice(list_partitions(s3_store, ASSET), 1))) == 1 and len(calls) == 1, "only what is wanted"


def test_facts_are_those_of_the_manifest_and_are_read_once(filled, monkeypatch):
    facts = current_facts(filled, ASSET)
    assert list(facts) == sorted(NAMES)
    for name, found in facts.items():
        manifest = current_manifest(filled, ASSET, name)
        assert (found.inputs, found.digest, found.folder) == (manifest.inputs, manifest.digest, manifest.folder)
        assert (found.counts, found.details, found.run) == (manifest.counts, manifest.details, manifest.run)
    monkeypatch.setattr(manifest_facts, "read_manifest", lambda *_: pytest.fail("read again"))
    assert current_facts(filled, ASSET) == facts


def test_a_manifest_that_was_tampered_with_is_not_remembered_as_good(filled):
    before = current_facts(filled, ASSET)
    key = list_partition(filled, ASSET, "a").newest.key
    filled.put(key, filled.read(key).replace(b'"rows": 1', b'"rows": 22'))
    found = {listing.name: facts for listing, facts in committed_facts(filled, ASSET)}
    assert found.pop("a") is None and found.pop("killed") is None
    assert found == {name: facts for name, facts in before.items() if name != "a"}
    with pytest.raises(ValueError, match="does not match its own digest"):
        current_facts(filled, ASSET)


def without(name: str):
    return lambda body: {key: value for key, value in body.items() if key != name}


DAMAGES = {
    "no inputs": without("inputs"),
    "no objects": without("objects"),
    "no counts": without("counts"),
    "no run": without("run"),
    "no digest": without("digest"),
    "a run that never began": lambda body: {**body, "run": {"id": ""}},
    "a run that began some day": lambda body: {**body, "run": {"started": "some day"}},
    "inputs that are a text": lambda body: {**body, "inputs": "cem"},
    "unknown inputs": lambda body: {**body, "inputs": {**body["inputs"], "what": 1}},
    "objects without names": lambda body: {**body, "objects": [{"num_bytes": 1}]},
    "a list": lambda body: [body],
    "nothing": lambda body: None,
    "a list of objects that is no Parquet": lambda body: {**without("objects")(body), "objects_table": "cem/x.parquet"},
    "a list of objects that is gone": lambda body: {**without("objects")(body), "objects_table": "cem/gone.parquet"},
}


@pytest.mark.parametrize("damage", [*DAMAGES, "half of it", "bytes"])
def test_a_damaged_manifest_is_the_trouble_of_its_partition_alone_and_is_named(local_store, caplog, damage):
    for name in ("a", "b", "c"):
        commit(local_store, name)
    local_store.put("cem/x.parquet", b"PAR1 or not")
    key = list_partition(local_store, ASSET, "b").newest.key
    text = local_store.read(key)
    if damage in DAMAGES:
        text = json.dumps(DAMAGES[damage](json.loads(text))).encode()
    else:
        text = text[: len(text) // 2] if damage == "half of it" else b"\xff\xfe\x00"
    local_store.put(key, text)
    found = {listing.name: facts for listing, facts in committed_facts(local_store, ASSET)}
    assert found["a"] and found["c"] and found["b"] is None
    (record,) = caplog.records
    assert f"manifest {key} is damaged" in record.message
    with pytest.raises(ValueError, match=f"manifest {key} is damaged"):
        current_facts(local_store, ASSET)
    assert commit(local_store, "b").number == 2, "what is made again takes its place"
    assert all(facts for _, facts in committed_facts(local_store, ASSET))


def test_what_is_gone_or_has_another_size_is_damage_and_what_lies_besides_is_not(filled):
    def whole() -> bool:
        listing = list_partition(filled, ASSET, "a")
        return is_whole(filled, listing, facts_of(filled, listing.newest))

    manifest = current_manifest(filled, ASSET, "a")
    assert whole()
    filled.put(f"{manifest.folder}/part-00000.left-behind", b"stray")
    assert whole()
    data = filled.read(f"{manifest.folder}/part-00001")
    filled.put(f"{manifest.folder}/part-00001", data + b"!")
    assert not whole()
    filled.put(f"{manifest.folder}/part-00001", data)
    assert whole()
    filled.delete([f"{manifest.folder}/part-00000"])
    assert not whole()


def test_long_details_are_remembered_by_their_keys(local_store):
    facts = {"sources": {"one": "x" * 5000, "two": 1}, "contents": ["x" * 5000], "sequence": 3}
    commit(local_store, "a", details=facts)
    found = current_facts(local_store, ASSET)["a"].details
    assert list(found["sources"]) == ["one", "two"] and found["contents"] is None and found["sequence"] == 3


def test_the_memory_of_facts_is_bounded_and_the_least_recently_used_leave_first(local_store, monkeypatch):
    listings = []
    for name in "abcd":
        commit(local_store, name)
        listings.append(list_partition(local_store, ASSET, name))
    num_bytes = len(canonical_json(manifest_facts._body(current_manifest(local_store, ASSET, "a"))))
    read, names = manifest_facts.read_manifest, []
    monkeypatch.setattr(
        manifest_facts, "read_manifest", lambda store, folder, n: names.append(folder[-1]) or read(store, folder, n)
    )

    def read_again(order: str, max_bytes: int) -> str:
        monkeypatch.setattr(manifest_facts, "_texts", LRUCache(max_bytes, getsizeof=len))
        names.clear()
        for name in order:
            assert facts_of(local_store, listings["abcd".index(name)].newest).inputs.partition == name
        return "".join(names)

    assert read_again("abcdabcd", MAX_BYTES) == "abcd"
    assert read_again("abcadacb", 3 * num_bytes + 10) == "abcdb", "b was not used for longest when d came"
    assert read_again("aa", num_bytes - 1) == "aa", "what is larger than the bound is not kept"
    assert MAX_BYTES < 1 << 28


def test_arrivals_are_those_of_single_looks(filled):
    for name in NAMES:
        for number in range(12 if name == "large" else 1):
            filled.put(f"inbox/{name}/{number:02d}.tif", b"x")
        if name != "a0":
            filled.put(f"inbox/{name}/dataset.toml", name.encode())
    filled.put("inbox/notes.txt", b"beside the folders")
    found = list(arrivals(filled))
    assert [arrival.dataset for arrival in found] == sorted(set(NAMES) - {"a0"}, key=place)
    assert found == [arrival_of(filled, arrival.dataset) for arrival in found]
    assert replace(found[0], dataset="") != replace(found[1], dataset="")
