"""Which classifier is in use: only a choice changes it, choices are kept, and old and damaged records do no harm."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from cem_assets.cem.classifier.stored import (
    CHOICES,
    WEIGHTS,
    choose_classifier,
    classifier_in_use,
    find_classifier,
    keep_in_use,
    known_classifiers,
    read_choices,
)
from cem_assets.store.assets import CLASSIFIER
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.store import Store


def commit(store: Store, word: str) -> Manifest:
    made = Commit(store, Inputs(CLASSIFIER, "", "1", {"word": word}))
    made.write(WEIGHTS, word.encode())
    return made.finish({"parameters": 1}, {"provenance": {"source": "file", "origin": word, "sha256": "0" * 64}})


def in_use(store: Store) -> str:
    found = classifier_in_use(store)
    assert found is not None
    return found.digest


def test_only_a_choice_changes_what_is_in_use(store: Store):
    assert classifier_in_use(store) is None and known_classifiers(store) == []
    keep_in_use(store, None)
    first = commit(store, "first")
    assert in_use(store) == first.digest
    keep_in_use(store, first)
    second = commit(store, "second")
    assert in_use(store) == first.digest
    assert choose_classifier(store, second.digest[:12], "ann", "better") == (second, True)
    assert in_use(store) == second.digest
    assert choose_classifier(store, "newest", "ann") == (second, False), "nothing changes, nothing is recorded"
    choose_classifier(store, first.digest, "zoe", "back")
    assert [(choice.digest, choice.by, choice.reason) for choice in read_choices(store)] == [
        (first.digest, "cem_assets", "the first classifier of the store"),
        (second.digest, "ann", "better"),
        (first.digest, "zoe", "back"),
    ]
    keep_in_use(store, second)  # there is a choice already, so this records none
    assert in_use(store) == first.digest
    assert [(item.manifest.digest, item.is_in_use, item.is_there) for item in known_classifiers(store)] == [
        (second.digest, False, True),
        (first.digest, True, True),
    ]


def test_in_a_store_without_choices_the_newest_is_in_use(local_store: Store):
    commit(local_store, "first")
    second = commit(local_store, "second")
    assert in_use(local_store) == second.digest


def test_choices_of_many_at_once_are_all_kept(local_store: Store):
    manifests = [commit(local_store, str(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda manifest: choose_classifier(local_store, manifest.digest, "x"), manifests))
    chosen = [choice.digest for choice in read_choices(local_store)]
    assert sorted(chosen) == sorted(manifest.digest for manifest in manifests)
    assert in_use(local_store) == chosen[-1]


def test_what_cannot_be_chosen_is_said(local_store: Store):
    made = commit(local_store, "first")
    with pytest.raises(ValueError, match='is no digest of a classifier; expected "newest" or at least its first 8'):
        find_classifier(local_store, "../x")
    with pytest.raises(FileNotFoundError, match=f"has digest 00000000; there are: {made.digest[:12]}"):
        choose_classifier(local_store, "00000000", "x")
    local_store.delete([f"{made.folder}/{WEIGHTS}"])
    with pytest.raises(FileNotFoundError, match="are not in .* any more"):
        choose_classifier(local_store, made.digest, "x")
    assert read_choices(local_store) == []


@pytest.mark.parametrize("text", [b"", b"[]", b'{"digest": "x"}', b"x" * 20_000, b"[" * 5000])
def test_a_broken_choice_is_told_and_a_new_one_mends_it(local_store: Store, text, caplog):
    made = commit(local_store, "first")
    local_store.put(f"{CHOICES}/1.json", text)
    with pytest.raises(ValueError, match=r"_choices/1.json .*expected a choice|_choices/1.json is not a choice"):
        classifier_in_use(local_store)
    choose_classifier(local_store, made.digest, "ann")
    assert in_use(local_store) == made.digest


def test_a_chosen_classifier_that_is_gone_is_told(local_store: Store):
    choice = {"digest": "a" * 64, "by": "x", "reason": "", "time": ""}
    local_store.put(f"{CHOICES}/1.json", json.dumps(choice).encode())
    with pytest.raises(FileNotFoundError, match="classifier aaaaaaaaaaaa that was chosen for scores has no manifest"):
        classifier_in_use(local_store)
