"""Reconciliation of CytoImageNet finds exactly what is missing or stale, with the reason, and nothing if all is current."""

import json
import time

import pytest

from cem_assets.cytoimagenet import reconciliation as cyto_reconciliation
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.held_out.guard import GuardRule
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.labels.stage import LabelTableParams, label_entries, make_label_table
from cem_assets.cytoimagenet.reconciliation import (
    SETTINGS,
    CytoSettings,
    crop_works,
    label_table_work,
    read_cyto_settings,
    source_work,
)
from cem_assets.cytoimagenet.reconciliation import test_images_work as work_on_test_images
from cem_assets.cytoimagenet.sources.inbox import SOURCE_TOML
from cem_assets.inbox.datasets import arrival_of
from cem_assets.store.assets import CODE_VERSIONS, CROPS, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.manifests import committed_partitions, current_manifest, require_manifest
from cem_assets.store.store import Store
from cem_assets_tests.cytoimagenet.example_sources import CROPPING, LABELS, crop, keys_of, label, plate, take_in

CURRENT = CytoSettings(LABELS, CROPPING)
"""The settings that `chain` uses."""


def needed(store: Store, settings: CytoSettings = CURRENT) -> dict[tuple[str, str], str]:
    """Return the reasons for everything that is needed, by asset and partition."""
    works = [source_work(store, name, arrival_of(store, name, SOURCE_TOML)) for name in store.folders("inbox")]
    works += [work_on_test_images(store), label_table_work(store, settings)]
    works += [work for _, work in crop_works(store, settings)]
    return {(work.asset, work.partition): work.reason for work in works if work is not None}


def test_nothing_is_needed_when_all_is_current(settled: Store):
    assert needed(settled) == {}
    assert [key for key, _ in crop_works(settled, CURRENT)] == sorted(keys_of(settled).values())


def test_nothing_is_needed_in_an_empty_store(local_store: Store):
    assert needed(local_store) == {}


def test_everything_is_needed_step_by_step(local_store: Store):
    plate(local_store, "one", {"A01": "dmso", "A02": "taxol"}, sites=4)
    missing = "nothing is committed"
    assert needed(local_store) == {(SOURCE_METADATA, "one"): missing}
    take_in(local_store, "one")
    assert needed(local_store) == {(LABEL_TABLE, ""): missing}
    label(local_store)
    keys = keys_of(local_store)
    assert needed(local_store) == {(CROPS, key): missing for key in keys.values()} and len(keys) == 2
    crop(local_store)
    assert needed(local_store) == {}


@pytest.mark.parametrize(
    ("asset", "partition"), [(SOURCE_METADATA, "two"), (LABEL_TABLE, ""), (CROPS, "dmso"), (TEST_IMAGES, "")]
)
@pytest.mark.parametrize("damage", ["gone", "shorter", "manifest"])
def test_damaged_partitions_are_made_again(settled: Store, asset, partition, damage):
    key = keys_of(settled)["dmso"] if partition == "dmso" else partition
    manifest = require_manifest(settled, asset, key)
    first = f"{manifest.folder}/part-00000.parquet"
    match damage:
        case "gone":
            settled.delete([first])
        case "shorter":
            settled.put(first, settled.read(first)[:-1])
        case _:
            settled.put(
                manifest.key, settled.read(manifest.key).replace(b'"rows"', b'"lines"').replace(b'"images"', b'"pictures"')
            )
    works = [
        source_work(settled, "two", arrival_of(settled, "two", SOURCE_TOML)) if asset == SOURCE_METADATA else None,
        work_on_test_images(settled) if asset == TEST_IMAGES else None,
        label_table_work(settled, CURRENT) if asset == LABEL_TABLE else None,
        *([work for _, work in crop_works(settled, CURRENT)] if asset == CROPS else []),
    ]
    reasons = {(work.asset, work.partition): work.reason for work in works if work is not None}
    if (asset, damage) == (TEST_IMAGES, "manifest"):
        assert reasons == {}  # there are no test sources, so nothing is needed
    else:
        reason = "its manifest is damaged" if damage == "manifest" else "objects are gone or changed"
        assert reasons == {(asset, key): reason}


def test_a_repair_settles_it(settled: Store):
    for asset, partition in ((SOURCE_METADATA, "two"), (LABEL_TABLE, ""), (CROPS, keys_of(settled)["taxol"])):
        folder = require_manifest(settled, asset, partition).folder
        settled.delete([f"{folder}/part-00000.parquet"])
    take_in(settled, "two")
    label(settled)
    crop(settled)
    assert needed(settled) == {}


def test_files_written_again_are_looked_at_and_found_the_same(settled: Store):
    text = settled.read("inbox/two/source.toml")
    time.sleep(0.02)
    settled.put("inbox/two/source.toml", text)
    work = source_work(settled, "two", arrival_of(settled, "two", SOURCE_TOML))
    assert work.reason == "source.toml was written again" and work.is_look_only
    assert needed(settled) == {(SOURCE_METADATA, "two"): "source.toml was written again"}
    again = take_in(settled, "two")["two"]
    assert again.digest == current_manifest(settled, SOURCE_METADATA, "two").digest
    settled.put("inbox/two/source.toml", text + b"# later\n")
    other = source_work(settled, "two", arrival_of(settled, "two", SOURCE_TOML))
    assert other.key != work.key, "another upload is another work"


def test_a_source_without_its_files_stays_as_it_is(settled: Store):
    settled.delete([item.key for item in settled.walk("inbox/two")])
    assert arrival_of(settled, "two", SOURCE_TOML) is None
    assert source_work(settled, "two", None) is None and needed(settled) == {}


def test_a_changed_source_makes_the_label_table_stale_and_then_only_labels_that_changed(settled: Store):
    before = keys_of(settled)
    plate(settled, "three", {"A01": "dmso", "A02": "dmso"}, seed=2)
    assert needed(settled) == {(SOURCE_METADATA, "three"): "nothing is committed"}
    take_in(settled, "three")
    assert needed(settled) == {(LABEL_TABLE, ""): "what it is made from changed"}
    old = label_entries(settled, require_manifest(settled, LABEL_TABLE))
    label(settled)
    new = label_entries(settled, require_manifest(settled, LABEL_TABLE))
    changed = {key for key, entry in new.items() if key in old and old[key].digest != entry.digest}
    assert changed and changed < set(before.values())
    expected = dict.fromkeys(changed, "what it is made from changed") | dict.fromkeys(new.keys() - old, "nothing is committed")
    assert needed(settled) == {(CROPS, key): reason for key, reason in expected.items()}
    crop(settled)
    assert needed(settled) == {}


def test_a_test_source_makes_test_images_labels_and_then_all_crops_stale(settled: Store):
    plate(settled, "benchmark", {"A01": "x"}, seed=9, role="test")
    take_in(settled, "benchmark")
    stale = "what it is made from changed"
    assert needed(settled) == {(TEST_IMAGES, ""): stale, (LABEL_TABLE, ""): stale}
    fingerprint_test_images(settled)
    label(settled)
    assert needed(settled) == {(CROPS, key): stale for key in keys_of(settled).values()}
    crop(settled)
    assert needed(settled) == {}


def test_other_parameters_are_a_reason(settled: Store):
    other = "other parameters are set"
    seeds = CytoSettings(LABELS.model_copy(update={"seed": 1}), CROPPING)
    assert needed(settled, seeds) == {(LABEL_TABLE, ""): other}
    crops = CytoSettings(LABELS, CROPPING.model_copy(update={"validation_share": 0.2}))
    assert needed(settled, crops) == {(CROPS, key): other for key in keys_of(settled).values()}
    make_label_table(settled, seeds.label_table)
    assert (LABEL_TABLE, "") not in needed(settled, seeds)


@pytest.mark.parametrize("asset", [SOURCE_METADATA, TEST_IMAGES, LABEL_TABLE, CROPS])
def test_older_code_is_a_reason(settled: Store, monkeypatch, asset):
    monkeypatch.setitem(CODE_VERSIONS, asset, "0.9")
    partitions = committed_partitions(settled, asset) if asset in (SOURCE_METADATA, CROPS) else [""]
    assert needed(settled) == {(asset, partition): "it was made by older code" for partition in partitions}


def test_another_list_of_terms_or_test_sets_is_a_reason(settled: Store, monkeypatch):
    other = "other parameters are set"
    with monkeypatch.context() as patched:
        patched.setattr(cyto_reconciliation, "load_rules", lambda: (GuardRule("new", "^new$", "added"),))
        assert needed(settled) == {(LABEL_TABLE, ""): other}
    monkeypatch.setattr(cyto_reconciliation, "terms", lambda: {"organism": {"homo sapiens": "person"}})
    assert needed(settled) == {(SOURCE_METADATA, "one"): other, (SOURCE_METADATA, "two"): other}


def test_works_are_identified_by_state_and_settings(settled: Store):
    settled.delete([item.key for item in settled.walk(CROPS)])
    first = [work for _, work in crop_works(settled, CURRENT)]
    again = [work for _, work in crop_works(settled, CURRENT)]
    assert first == again and len({work.key for work in first}) == len(first) > 2
    other = [work for _, work in crop_works(settled, CytoSettings(LABELS, CropStageParams(min_images=5)))]
    assert not {work.key for work in first} & {work.key for work in other}
    assert not any(work.is_look_only for work in first)


def test_labels_are_looked_at_from_any_place_on(settled: Store):
    keys = sorted(keys_of(settled).values())
    settled.delete([item.key for item in settled.walk(f"{CROPS}/{keys[-1]}")])
    assert [key for key, _ in crop_works(settled, CURRENT, after=keys[0])] == keys[1:]
    assert [(key, work is None) for key, work in crop_works(settled, CURRENT, after=keys[-2])] == [(keys[-1], False)]
    assert list(crop_works(settled, CURRENT, after=keys[-1])) == []


def test_test_images_are_not_needed_where_no_source_is_one(local_store: Store):
    plate(local_store, "one", {"A01": "dmso"})
    take_in(local_store, "one")
    assert work_on_test_images(local_store) is None
    plate(local_store, "benchmark", {"A01": "dmso"}, role="test")
    take_in(local_store, "benchmark")
    assert work_on_test_images(local_store).reason == "nothing is committed"


# Settings


def test_settings_are_the_defaults_where_there_is_no_file(local_store: Store):
    assert read_cyto_settings(local_store) == CytoSettings()
    assert CytoSettings().label_table == LabelTableParams() and CytoSettings().crops == CropStageParams()


def test_settings_are_read_and_given_as_config(local_store: Store):
    text = "\ufeff[label_table]\nmin_images = 100\nmatch = 'substring'\n[crops]\nmin_images = 50\nvalidation_share = 0.2\n"
    local_store.put(SETTINGS, text.encode())
    found = read_cyto_settings(local_store)
    assert found.label_table == LabelTableParams(min_images=100, match="substring")
    assert found.crops == CropStageParams(min_images=50, validation_share=0.2)
    assert found.config == {
        LABEL_TABLE: {"min_images": 100, "match": "substring"},
        CROPS: {"min_images": 50, "validation_share": 0.2},
    }
    assert json.loads(json.dumps(found.config)) == found.config


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[label_table\n", ["is not valid TOML in UTF-8", "An example:"]),
        (b"\xff\xfe", ["is not valid TOML in UTF-8"]),
        ("[labels]\nx = 1\n", ["unknown table 'labels'; expected label_table or crops"]),
        ("[crops]\nmin_image = 3\n", ["crops.min_image is unknown; expected seed, min_crop_px"]),
        ("label_table = 3\n", ["label_table"]),
        ("[crops]\nvalidation_share = 2\n", ["crops.validation_share: Input should be less than or equal to 1"]),
        (
            "[label_table]\nmin_images = 0\nsed = 1\n[crops]\nmin_images = 2000\nseed = 'x'\n[other]\n",
            ["has 4 problem(s)", "label_table.min_images", "label_table.sed is unknown", "crops.seed", "unknown table 'other'"],
        ),
        ("[label_table]\nmin_images = 500\nmax_images = 100\n", ["min_images = 500, max_images = 100"]),
        ("[crops]\nmin_images = 2000\n", ["max_images = 1000; expected at least min_images = 2000"]),
    ],
)  # fmt: skip
def test_everything_that_is_wrong_with_the_settings_is_told_at_once(local_store: Store, text, messages):
    local_store.put(SETTINGS, text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as found:
        read_cyto_settings(local_store)
    for message in (SETTINGS, *messages):
        assert message in str(found.value), message


def test_crops_of_a_label_that_is_gone_are_not_asked_for(settled: Store):
    gone = keys_of(settled)["dmso"]
    plate(settled, "one", {"A01": "taxol", "A02": "taxol", "C01": "", "C02": ""}, channels=2)
    plate(settled, "two", {"A01": "taxol", "A02": "taxol"}, seed=1, cell_type="hela")
    take_in(settled, "one", "two")
    label(settled)
    assert gone not in keys_of(settled).values()
    assert (CROPS, gone) not in needed(settled)
    with pytest.raises(KeyError):
        make_crops(settled, gone, CROPPING)
