"""Reconciliation finds exactly what is missing or stale, and nothing if everything is up to date."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.cem.reconciliation import (
    CHAIN,
    Committed,
    DatasetState,
    Reason,
    look_at,
    look_at_all,
    look_at_these,
    needed_work,
)
from cem_assets.cem.settings import SETTINGS, Settings, read_settings
from cem_assets.errors import DataError
from cem_assets.inbox.datasets import Arrival, arrival_of, arrivals
from cem_assets.store.assets import CLASSIFIER, CODE_VERSIONS, DEDUPLICATED, FILTERED, RAW, SCORES, VOLUMES
from cem_assets.store.manifests import current_manifest
from cem_assets.store.s3 import QuickBucket
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import run_chain
from cem_assets_tests.datasets import volume_dataset

DEFAULTS = Settings()
ARRIVAL = Arrival("d", "f", modified=100.0)


def compute(state: DatasetState, assets: tuple[str, ...], settings: Settings, classifier: str | None, tag: str) -> DatasetState:
    """Change a state as the stages would: every manifest names the digests that it was made from."""
    committed = dict(state.committed)
    for asset in assets:
        before = CHAIN[CHAIN.index(asset) - 1] if asset != VOLUMES else None
        upstream = {f"{before}/d": committed[before].digest} if before else {"inbox/d": state.arrival.fingerprint}
        if asset == SCORES:
            upstream[CLASSIFIER] = classifier
        parameters = settings.parameters("d", asset)
        digest = f"{asset}:{sorted(upstream.values())}:{sorted(parameters.items())}:{CODE_VERSIONS[asset]}"
        committed[asset] = Committed(digest, CODE_VERSIONS[asset], parameters, upstream, started=200.0)
    return replace(state, committed=committed)


WHOLE = compute(DatasetState("d", ARRIVAL), CHAIN, Settings(), "c", "0")


def assets_needed(state: DatasetState, classifier: str | None = "c", settings: Settings = DEFAULTS, **more) -> tuple[str, ...]:
    work = needed_work([state], classifier, settings, **more)
    return work[0].assets if work else ()


def without(*assets: str) -> DatasetState:
    return replace(WHOLE, committed={key: item for key, item in WHOLE.committed.items() if key not in assets})


def changed(asset: str, **values) -> DatasetState:
    return replace(WHOLE, committed={**WHOLE.committed, asset: replace(WHOLE.committed[asset], **values)})


def test_nothing_is_needed_when_all_is_well():
    assert needed_work([WHOLE], "c", Settings()) == []


@pytest.mark.parametrize("asset", CHAIN)
def test_what_is_missing_is_computed_with_all_that_follows(asset):
    (work,) = needed_work([without(asset)], "c", Settings())
    assert work.assets == CHAIN[CHAIN.index(asset) :] and work.reasons[asset] == Reason.missing


@pytest.mark.parametrize("asset", CHAIN)
def test_what_lost_objects_is_computed(asset):
    (work,) = needed_work([changed(asset, is_whole=False)], "c", Settings())
    assert work.assets[0] == asset and work.reasons == {asset: Reason.damaged}


@pytest.mark.parametrize("asset", CHAIN[1:])
def test_what_is_made_from_older_data_is_computed(asset):
    before = CHAIN[CHAIN.index(asset) - 1]
    upstream = {**WHOLE.committed[asset].upstream, f"{before}/d": "older"}
    (work,) = needed_work([changed(asset, upstream=upstream)], "c", Settings())
    assert work.assets[0] == asset and work.reasons[asset] == Reason.upstream


def test_a_new_upload_is_looked_at_from_the_beginning():
    (work,) = needed_work([replace(WHOLE, arrival=Arrival("d", "g", 300.0))], "c", Settings())
    assert work.assets == CHAIN and work.reasons == {VOLUMES: Reason.inbox} and work.is_look_only
    (again,) = needed_work([replace(WHOLE, arrival=Arrival("d", "h", 300.0))], "c", Settings())
    assert again.key != work.key


def test_without_a_classifier_the_work_ends_before_scores():
    assert assets_needed(DatasetState("d", ARRIVAL), None) == (VOLUMES, RAW, DEDUPLICATED)
    assert assets_needed(without(SCORES, FILTERED), None) == ()
    assert assets_needed(without(SCORES, FILTERED), "c") == (SCORES, FILTERED)


@pytest.mark.parametrize("asset", [RAW, DEDUPLICATED, FILTERED])
def test_other_parameters_and_older_code_make_stale(asset):
    value = {RAW: {"spacing": 2}, DEDUPLICATED: {"max_distance": 3}, FILTERED: {"threshold": 0.9}}[asset]
    settings = Settings(overrides={("", asset): value})
    (work,) = needed_work([WHOLE], "c", settings)
    assert work.assets[0] == asset and work.reasons == {asset: Reason.parameters}
    assert assets_needed(WHOLE, settings=Settings(overrides={("other", asset): value})) == ()
    assert assets_needed(WHOLE, code_versions={**CODE_VERSIONS, asset: "99"})[0] == asset


def test_scores_stale_by_code_or_classifier_wait_for_the_operator():
    newer = {**CODE_VERSIONS, SCORES: "99"}
    for settings, expected in ((Settings(), ()), (Settings(relaunch_gpu=True), (SCORES, FILTERED))):
        assert assets_needed(WHOLE, "another", settings) == expected
        assert assets_needed(WHOLE, settings=settings, code_versions=newer) == expected


def test_a_dataset_whose_files_were_taken_away_stays_as_it_is():
    assert assets_needed(replace(WHOLE, arrival=None)) == ()
    assert assets_needed(replace(without(RAW), arrival=None))[0] == RAW
    assert assets_needed(DatasetState("d", None)) == ()


@given(
    gone=st.sets(st.sampled_from(CHAIN)),
    damaged=st.sets(st.sampled_from(CHAIN)),
    threshold=st.sampled_from([0.5, 0.7]),
    has_classifier=st.booleans(),
)
def test_one_round_of_the_work_always_suffices(gone, damaged, threshold, has_classifier):
    state = replace(
        WHOLE,
        committed={key: replace(item, is_whole=key not in damaged) for key, item in WHOLE.committed.items() if key not in gone},
    )
    settings = Settings(overrides={("", FILTERED): {"threshold": threshold}})
    classifier = "c" if has_classifier else None
    for work in needed_work([state], classifier, settings):
        state = compute(state, work.assets, settings, classifier, "1")
    assert needed_work([state], classifier, settings) == []


def test_the_store_is_seen_as_it_is(store: Store):
    volume_dataset(store)
    arrival = arrival_of(store, "cells")
    assert [item.dataset for item in arrivals(store)] == ["cells"] and list(arrivals(store, after="cells")) == []
    assert look_at(store, "cells", arrival).committed == {}
    run_chain(store, "cells", until="deduplicated")
    state = look_at(store, "cells", arrival)
    assert set(state.committed) == {VOLUMES, RAW, DEDUPLICATED} and all(item.is_whole for item in state.committed.values())
    assert needed_work([state], None, Settings()) == []
    manifest = current_manifest(store, RAW, "cells")
    store.delete([f"{manifest.folder}/{manifest.objects[-1].name}"])
    (work,) = needed_work([look_at(store, "cells", arrival)], None, Settings())
    assert work.assets == (RAW, DEDUPLICATED) and work.reasons == {RAW: Reason.damaged}
    store.delete([current_manifest(store, VOLUMES, "cells").key])
    assert needed_work([look_at(store, "cells", arrival)], None, Settings())[0].reasons[VOLUMES] == Reason.missing


def test_settings_are_read_with_all_their_problems_at_once(local_store):
    assert read_settings(local_store) == Settings()
    text = b"[parameters.filtered_patches]\nthreshold = 0.6\n[datasets.vnc.filtered_patches]\nthreshold = 0.7\n"
    local_store.put(SETTINGS, text)
    settings = read_settings(local_store)
    assert settings.parameters("x", FILTERED) == {"threshold": 0.6} and settings.parameters("vnc", FILTERED) == {
        "threshold": 0.7
    }
    assert "device" not in settings.parameters("x", SCORES)
    local_store.put(
        SETTINGS, b"relaunch_gpu = 1\nshape = 3\n[parameters.volumes]\n[parameters.filtered_patches]\nthreshold = 2\n"
    )
    with pytest.raises(ValueError, match="4 problem") as caught:
        read_settings(local_store)
    for part in ("relaunch_gpu is 1", "unknown key 'shape'", "'volumes' has no parameters", "filtered_patches.threshold"):
        assert part in str(caught.value)
    for text in (b"a = ", b"a = " + b"[" * 100_000):
        local_store.put(SETTINGS, text)
        with pytest.raises(DataError, match="not valid TOML"):
            read_settings(local_store)


def test_looking_at_all_datasets_says_what_looking_at_each_says(curated_store, monkeypatch):
    store = curated_store
    monkeypatch.setattr("cem_assets.cem.reconciliation._BATCH", 2)
    volume_dataset(store, "cells-2", seed=5)  # before "cells" in the order of keys
    store.put("inbox/unfinished/v.nrrd", b"still uploading")
    store.delete([item.key for item in store.walk("inbox/twin")])
    manifest = current_manifest(store, RAW, "cells")
    store.delete([f"{manifest.folder}/{manifest.objects[0].name}"])
    store.put(current_manifest(store, SCORES, "twin").key, b'{"format": 99}')
    states = list(look_at_all(store))
    assert [state.dataset for state in states] == ["cells-2", "cells", "pictures", "twin"]
    for state in states:
        assert state == look_at(store, state.dataset, arrival_of(store, state.dataset))
    by_name = {state.dataset: state for state in states}
    assert by_name["twin"].arrival is None and SCORES not in by_name["twin"].committed
    assert not by_name["cells"].committed[RAW].is_whole and by_name["cells"].committed[FILTERED].is_whole
    assert by_name["cells-2"].committed == {} and by_name["cells-2"].arrival is not None
    assert list(look_at_all(store, "cells")) == states[2:]
    assert by_name["twin"].unreadable == {SCORES} and by_name["cells"].unreadable == frozenset()
    assert needed_work([by_name["twin"]], "c", read_settings(store))[0].reasons[SCORES] == Reason.unreadable
    arrived = list(arrivals(store))
    expected = [state for state in states if state.arrival is not None]
    for num_passed in (3, 1000):  # close together, and far apart
        assert look_at_these(store, arrived, "", num_passed) == expected
        assert look_at_these(store, arrived[1:], arrived[0].dataset, num_passed) == expected[1:]
        assert look_at_these(store, arrived[:1], "", num_passed) == expected[:1]
    assert look_at_these(store, [], "", 0) == []


def test_a_first_look_at_many_datasets_takes_few_requests(s3_store, monkeypatch):
    asked = []
    pages, call_s3 = QuickBucket.pages, s3_store.fs.call_s3
    monkeypatch.setattr(QuickBucket, "pages", lambda *args: (asked.append(args), pages(*args))[1])
    monkeypatch.setattr(s3_store.fs, "call_s3", lambda *args, **more: (asked.append(args), call_s3(*args, **more))[1])
    arrived = [Arrival(f"d-{number:03d}", "f", 0.0) for number in range(40)]
    assert [state.dataset for state in look_at_these(s3_store, arrived, "", 40)] == [found.dataset for found in arrived]
    assert len(asked) <= 2 * len(CHAIN)
    asked.clear()
    assert len(look_at_these(s3_store, arrived[::20], "", 400)) == 2 and len(asked) == 2 * len(CHAIN), "one each"
