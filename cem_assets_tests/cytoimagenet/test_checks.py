"""The checks of CytoImageNet pass on what the stages write, and fail on every kind of damage that they look for."""

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cem_assets.cytoimagenet.checks import (
    crops_add_up,
    cyto_release_is_complete,
    labels_obey_rules,
    metadata_obeys_schema,
    no_test_images,
)
from cem_assets.cytoimagenet.crops.stage import DROPPED
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.labels.stage import TABLE, label_entries
from cem_assets.cytoimagenet.releases.stage import METADATA, list_cyto_releases
from cem_assets.cytoimagenet.tables import LABEL_TABLE_SCHEMA, METADATA_SCHEMA, frame_bytes, read_frame, to_arrow
from cem_assets.execution.checks import objects_match_manifest
from cem_assets.store.assets import CROPS, LABEL_TABLE, SOURCE_METADATA
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Manifest, current_manifest, require_manifest
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.store import Store
from cem_assets_tests.cytoimagenet.example_sources import crop, keys_of, label, plate, take_in


def recommit(store: Store, asset: str, partition: str, change: Callable[[str, bytes], bytes], **more) -> Manifest:
    """Commit changed objects in place of the current ones, as a faulty stage would."""
    old = require_manifest(store, asset, partition)
    objects = {item.name: store.read(f"{old.folder}/{item.name}") for item in old.objects}
    store.delete([item.key for item in store.walk(old.inputs.folder)])
    commit = Commit(store, old.inputs)
    for name, data in objects.items():
        commit.write(name, change(name, data))
    return commit.finish({**old.counts, **more.get("counts", {})}, {**old.details, **more.get("details", {})})


def test_everything_holds_for_what_the_stages_wrote(done: Store):
    for source in ("one", "two"):
        outcome = metadata_obeys_schema(done, source)
        assert outcome.passed and outcome.facts["rows"] == len(
            read_frame(done, require_manifest(done, SOURCE_METADATA, source), TABLE)
        )
        assert objects_match_manifest(done, SOURCE_METADATA, source).passed
    outcome = labels_obey_rules(done)
    assert outcome.passed and outcome.facts == {"labels": len(keys_of(done)), "problems": 0}
    for key in keys_of(done).values():
        for check in (crops_add_up, no_test_images):
            assert check(done, key).passed, check(done, key)
        assert objects_match_manifest(done, CROPS, key).passed
    outcome = cyto_release_is_complete(done)
    assert outcome.passed and outcome.description.startswith("v1: ")


# Metadata


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("compound", "Taxol", "column compound: has capital letters"),
        ("cell_type", "u2os|u2os", "column cell_type: has empty, repeated or padded values"),
        ("organism", "human | mouse", "column organism: has empty, repeated or padded values"),
        ("gene", "plk1", "column gene: lacks ' targeted'"),
        ("idx", "one", "column idx"),
        ("idx", "one-1", "column idx"),
        ("filename", "", "column filename"),
        ("microscopy", None, "column microscopy"),
    ],
)
def test_metadata_that_breaks_the_schema_is_told(settled: Store, column, cell, message):
    def change(name: str, data: bytes) -> bytes:
        if name != TABLE:
            return data
        table = pq.read_table(io.BytesIO(data))
        cells = table[column].to_pylist()
        cells[0] = cell
        changed = table.set_column(table.schema.get_field_index(column), column, pa.array(cells, pa.string()))
        return parquet_bytes([changed], METADATA_SCHEMA)

    recommit(settled, SOURCE_METADATA, "one", change)
    outcome = metadata_obeys_schema(settled, "one")
    assert (
        not outcome.passed and message in outcome.description and "the metadata of one breaks its schema" in outcome.description
    )


# Labels


def relabel(store: Store, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the rows of the label table, but keep its row groups."""
    manifest = require_manifest(store, LABEL_TABLE)
    sizes = [entry.num_images for entry in label_entries(store, manifest).values()]

    def changed(name: str, data: bytes) -> bytes:
        if name != TABLE:
            return data
        frame = change(read_frame(store, manifest, TABLE))
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        ends = [*starts[1:], len(frame)]
        groups = (to_arrow(frame.iloc[a:b], LABEL_TABLE_SCHEMA) for a, b in zip(starts, ends, strict=True))
        return parquet_bytes(groups, LABEL_TABLE_SCHEMA, 0)

    # The table is read here, before `recommit` deletes the old objects.
    data = changed(TABLE, b"")
    recommit(store, LABEL_TABLE, "", lambda name, old: data if name == TABLE else old)


def with_cell(column: str, row: int, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return change


def test_rows_that_do_not_hold_their_label_are_told(settled: Store):
    category = read_frame(settled, require_manifest(settled, LABEL_TABLE), TABLE)["category"][0]
    relabel(settled, with_cell(category, 0, "something else"))
    outcome = labels_obey_rules(settled)
    assert not outcome.passed and "1 row(s) do not have its value" in outcome.description and outcome.facts["problems"] == 1


def test_images_chosen_twice_are_told(settled: Store):
    frame = read_frame(settled, require_manifest(settled, LABEL_TABLE), TABLE)
    relabel(settled, with_cell("idx", len(frame) - 1, frame["idx"][0]))
    outcome = labels_obey_rules(settled)
    assert not outcome.passed and "1 image(s) are chosen twice" in outcome.description


def test_labels_of_a_wrong_size_are_told(settled: Store):
    relabel(settled, lambda frame: frame.iloc[:-1])
    outcome = labels_obey_rules(settled)
    assert not outcome.passed and "3 rows; expected 4 to 60" in outcome.description


def test_rows_of_test_sets_are_told(settled: Store):
    relabel(settled, with_cell("source", 0, "bbbc021"))
    outcome = labels_obey_rules(settled)
    assert not outcome.passed and "images of the test set bbbc021" in outcome.description


# Crops


def recrop(store: Store, change: Callable[[pa.Table], pa.Table], **more) -> str:
    key = keys_of(store)["dmso"]

    def changed(name: str, data: bytes) -> bytes:
        if name != "part-00000.parquet":
            return data
        table = pq.read_table(io.BytesIO(data))
        return parquet_bytes([change(table)], table.schema)

    recommit(store, CROPS, key, changed, **more)
    return key


def replaced(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    cells = table[column].to_pylist()
    cells[row] = value
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(place), pa.array(cells, table.schema.field(place).type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(1), "the manifest says"),
        (lambda table: replaced(table, "x_max", 0, 9), "1 window(s) differ in size from their images"),
        (lambda table: replaced(table, "height", 2, 9), "1 window(s) differ in size from their images"),
        (
            lambda table: replaced(table, "pixel_sha256", 1, table["pixel_sha256"][0].as_py()),
            "1 image(s) have the pixels of another one",
        ),
        (lambda table: replaced(table, "filename", 1, table["filename"][0].as_py()), "1 the name of another one"),
    ],
)
def test_crops_that_do_not_add_up_are_told(settled: Store, change, message):
    outcome = crops_add_up(settled, recrop(settled, change))
    assert not outcome.passed and message in outcome.description


def test_crops_lost_without_a_reason_are_told(settled: Store):
    key = keys_of(settled)["dmso"]
    counts = require_manifest(settled, CROPS, key).counts
    recrop(settled, lambda table: table, counts={"crops_cut": counts["crops_cut"] + 1})
    outcome = crops_add_up(settled, key)
    assert not outcome.passed and f"the manifest says {counts['images']} and {counts['crops_cut'] + 1}" in outcome.description


def test_crops_dropped_with_a_reason_add_up(settled: Store):
    settled.put("inbox/one/images/A01_s1_w1.png", b"no image any more")
    settled.delete(["inbox/one/images/A02_s1_w2.png"])
    take_in(settled, "one")
    label(settled)
    manifests = crop(settled)
    assert any(manifest.counts["dropped"] for manifest in manifests.values())
    for key in keys_of(settled).values():
        outcome = crops_add_up(settled, key)
        dropped = len(read_frame(settled, require_manifest(settled, CROPS, key), DROPPED))
        assert outcome.passed and f"{dropped} dropped" in outcome.description


def test_crops_that_were_not_compared_with_the_test_images_of_now_are_told(settled: Store):
    key = keys_of(settled)["dmso"]
    plate(settled, "benchmark", {"A01": "x"}, seed=9, role="test")
    take_in(settled, "benchmark")
    fingerprint_test_images(settled)
    outcome = no_test_images(settled, key)
    assert not outcome.passed and "test images changed since these crops were made" in outcome.description
    crop(settled)
    assert no_test_images(settled, key).passed


def test_crops_of_a_source_called_like_a_test_set_are_told(settled: Store):
    key = keys_of(settled)["dmso"]
    sources = require_manifest(settled, CROPS, key).details["sources"]
    recrop(settled, lambda table: table, details={"sources": {**sources, "idr0035": next(iter(sources.values()))}})
    outcome = no_test_images(settled, key)
    assert not outcome.passed and "there are images of test sets: idr0035" in outcome.description


# Releases


@pytest.mark.parametrize("damage", ["shard gone", "shard shorter", "table changed", "card gone", "table lost"])
def test_damage_to_a_release_is_told(settled: Store, damage):
    (release,) = list_cyto_releases(settled)
    shard = f"{require_manifest(settled, CROPS, keys_of(settled)['dmso']).folder}/part-00000.parquet"
    table = f"{release.folder}/{METADATA}"
    match damage:
        case "shard gone":
            settled.delete([shard])
        case "shard shorter":
            settled.put(shard, settled.read(shard)[:-1])
        case "table changed":
            settled.put(table, settled.read(table)[:-1] + b"x")
        case "card gone":
            settled.delete([f"{release.folder}/README.md"])
        case _:
            settled.delete([table])
    outcome = cyto_release_is_complete(settled)
    told = {"shard gone": shard, "shard shorter": shard, "card gone": "README.md: missing"}.get(damage, METADATA)
    assert not outcome.passed and told in outcome.description


def test_a_release_whose_table_lacks_rows_is_told(settled: Store):
    (release,) = list_cyto_releases(settled)
    frame = read_frame(settled, release, METADATA)

    def change(name: str, data: bytes) -> bytes:
        schema = pq.read_schema(io.BytesIO(data)) if name == METADATA else None
        return frame_bytes(frame.iloc[:-2], schema) if schema is not None else data

    recommit(settled, "cytoimagenet/releases", "v1", change)
    outcome = cyto_release_is_complete(settled)
    assert (
        not outcome.passed
        and f"its table has {len(frame) - 2:,} rows, and its labels {len(frame):,} images" in outcome.description
    )


def test_no_release_is_told(local_store: Store):
    outcome = cyto_release_is_complete(local_store)
    assert not outcome.passed and outcome.description == "there is no release"


def test_checks_only_look(done: Store):
    before = {item.key: (item.num_bytes, item.modified) for folder in ("inbox", "cytoimagenet") for item in done.walk(folder)}
    metadata_obeys_schema(done, "one")
    labels_obey_rules(done)
    for key in keys_of(done).values():
        crops_add_up(done, key)
        no_test_images(done, key)
    cyto_release_is_complete(done)
    after = {item.key: (item.num_bytes, item.modified) for folder in ("inbox", "cytoimagenet") for item in done.walk(folder)}
    assert before == after and Path(done.url).is_dir() and current_manifest(done, LABEL_TABLE).number == 1
