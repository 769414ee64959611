"""The label table over several sources obeys the rules and has no benchmarks or repeated files, whatever the order of work."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS, split_values
from cem_assets.cytoimagenet.labels.stage import (
    CANDIDATES,
    EXCLUDED,
    LABELS,
    TABLE,
    LabelTableParams,
    label_entries,
    label_key,
    label_rows,
    make_label_table,
)
from cem_assets.cytoimagenet.tables import LABEL_TABLE_SCHEMA, read_frame
from cem_assets.execution.local import LocalEngine
from cem_assets.store.assets import LABEL_TABLE
from cem_assets.store.manifests import canonical_json, current_manifest, manifest_numbers
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cytoimagenet.example_sources import (
    EVERY_IMAGE,
    label,
    plate,
    png,
    put_shipped,
    put_source,
    rows_of,
    take_in,
)
from cem_assets_tests.cytoimagenet.example_sources import LABELS as SMALL
from cem_assets_tests.cytoimagenet.labels.oracle import oracle
from cem_assets_tests.cytoimagenet.sources.test_stage import HISTORY, IDR0013, IDR0035, IDR0036, shuffled
from cem_assets_tests.datasets import cells

REAL = LabelTableParams(with_images_only=False, min_images=60, max_images=200, presample_images=2000)
SOURCES = ("bbbc021", "history", "idr0013", "idr0035", "idr0036")
WELLS = {f"{row}{column:02d}": f"drug {column}" for row in "ABC" for column in range(1, 5)}


def put_real_tables(store: Store, data: Path) -> None:
    metadata = data / "metadata"
    put_shipped(store, "idr0036", {"idr0036-screenA-library.txt": data / IDR0036})
    put_shipped(store, "idr0035", {"idr0035-screenA-annotation.csv": data / IDR0035})
    put_shipped(store, "idr0013", {name: metadata / "idr0013-neumann-mitocheck" / name for name in IDR0013})
    tables = ("BBBC021_v1_image.csv.gz", "BBBC021_v1_moa.csv")
    put_shipped(store, "bbbc021", {name: metadata / "bbbc021" / name for name in tables})
    history = {path.name: path for path in sorted((metadata / "cytoimagenet_history").glob("bbbc*_metadata.csv"))}
    put_source(store, "history", history, HISTORY.read_text())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Store:
    """A store with real tables of four screens and of the reference, and their label table. Tests must only read it."""
    store = open_store(str(tmp_path_factory.mktemp("real")))
    put_real_tables(store, test_data)
    take_in(store, *SOURCES)
    make_label_table(store, REAL)
    return store


def chosen_of(store: Store) -> pd.DataFrame:
    return read_frame(store, current_manifest(store, LABEL_TABLE), TABLE)


def excluded_of(store: Store) -> pd.DataFrame:
    return read_frame(store, current_manifest(store, LABEL_TABLE), EXCLUDED)


# Real tables


def test_benchmarks_are_left_out_whole_and_with_a_reason(real: Store):
    excluded, chosen = excluded_of(real), chosen_of(real)
    for source in ("bbbc021", "idr0035"):
        rows = rows_of(real, source)
        found = excluded[excluded["source"] == source]
        assert set(found["idx"]) == set(rows["idx"]) and len(found) == len(rows) > 3000
        assert set(found["reason"]) == {"its source is a test set"}
    assert set(chosen["source"]) == {"history", "idr0013", "idr0036"}


def test_every_row_follows_the_rules_of_a_slow_assignment(real: Store):
    left_out = set(excluded_of(real)["idx"])
    rows = pd.concat([rows_of(real, source) for source in SOURCES], ignore_index=True)
    rows = rows[~rows["idx"].isin(left_out)]
    expected = oracle(rows, REAL)
    chosen = chosen_of(real)
    found = {str(name): (group["category"].iloc[0], set(group["idx"])) for name, group in chosen.groupby("label")}
    assert found == expected and len(found) > 10
    assert {category for category, _ in found.values()} >= {"phenotype", "sirna", "cell_type", "organism", "compound"}
    candidates = read_frame(real, current_manifest(real, LABEL_TABLE), CANDIDATES).set_index("label")
    assert {"sampled", "too few left"} <= set(candidates["outcome"])
    for name, (category, members) in found.items():
        value = candidates.loc[name, "value"]
        assert len(members) == candidates.loc[name, "num_images"] and REAL.min_images <= len(members) <= REAL.max_images
        assert all(value in split_values(cell) for cell in rows[rows["idx"].isin(members)][category])
    assert not chosen["idx"].duplicated().any()


def test_chosen_rows_are_the_sources_rows_unchanged(real: Store):
    chosen = chosen_of(real)
    assert list(chosen.columns) == LABEL_TABLE_SCHEMA.names
    for source, group in chosen.groupby("source"):
        rows = rows_of(real, str(source)).set_index("idx")
        found = group.drop(columns=["label", "category"]).set_index("idx")
        pd.testing.assert_frame_equal(found, rows.loc[found.index], check_like=True)


def test_keys_row_groups_and_digests_agree(real: Store):
    manifest = current_manifest(real, LABEL_TABLE)
    entries = list(label_entries(real, manifest).values())
    file = pq.ParquetFile(real.open(f"{manifest.folder}/{TABLE}"))
    assert file.num_row_groups == len(entries) == manifest.counts["labels"]
    chosen, start = chosen_of(real), 0
    for number, entry in enumerate(entries):
        group = label_rows(real, manifest, entry)
        assert entry.group == number and len(group) == entry.num_images
        assert set(group["label"]) == {entry.label} and set(group["category"]) == {entry.category}
        assert entry.key == label_key(entry.label, entry.category)
        body = canonical_json([list(row) for row in group.itertuples(index=False)])
        assert entry.digest == hashlib.sha256(body).hexdigest()
        expected = chosen.iloc[start : start + len(group)].reset_index(drop=True)
        pd.testing.assert_frame_equal(group, expected)
        start += len(group)
    assert start == len(chosen) == manifest.counts["images"]
    assert {item.name for item in manifest.objects} == {TABLE, LABELS, CANDIDATES, EXCLUDED}


def test_counts_and_reasons_are_told(real: Store):
    manifest = current_manifest(real, LABEL_TABLE)
    assert manifest.counts["rows"] == sum(len(rows_of(real, source)) for source in SOURCES)
    assert manifest.counts["sources"] == 5 and manifest.counts["excluded"] == len(excluded_of(real))
    told = manifest.details["excluded_by_reason"]
    assert told["bbbc021: its source is a test set"] == len(rows_of(real, "bbbc021"))
    assert sum(told.values()) == manifest.counts["excluded"]
    chosen = chosen_of(real)
    for source, facts in manifest.details["sources"].items():
        assert facts["num_images"] == (chosen["source"] == source).sum() and facts["citation"]
    by_category = chosen.drop_duplicates("label")["category"].value_counts().to_dict()
    assert manifest.details["labels_by_category"] == by_category


def test_two_workers_and_shuffled_lines_give_the_same_table(real: Store, tmp_path, test_data):
    expected = current_manifest(real, LABEL_TABLE)
    again = open_store(str(tmp_path / "again"))
    for item in real.walk("cytoimagenet/source_metadata"):
        again.put(item.key, Path(real.url_of(item.key)))
    assert make_label_table(again, REAL, engine=LocalEngine(2)).manifest.digest == expected.digest
    turned = open_store(str(tmp_path / "turned"))
    put_real_tables(turned, test_data)
    for source in ("idr0013", "idr0036"):
        for item in list(turned.walk(f"inbox/{source}")):
            if item.key.endswith(".txt"):
                turned.put(item.key, shuffled(turned.read(item.key), 5))
    take_in(turned, *SOURCES)
    make_label_table(turned, REAL)
    for name in (TABLE, LABELS, CANDIDATES):
        shown, known = (read_frame(store, current_manifest(store, LABEL_TABLE), name) for store in (turned, real))
        pd.testing.assert_frame_equal(shown, known)


def test_another_seed_draws_other_images_of_the_same_labels(real: Store, tmp_path):
    other = open_store(str(tmp_path / "other"))
    for item in real.walk("cytoimagenet/source_metadata"):
        other.put(item.key, Path(real.url_of(item.key)))
    make_label_table(other, REAL.model_copy(update={"seed": 1}))
    one, two = chosen_of(real), chosen_of(other)
    drawn = [set(table.loc[table["label"] == "hela", "idx"]) for table in (one, two)]
    assert [len(images) for images in drawn] == [REAL.max_images] * 2 and drawn[0] != drawn[1]


# What may not be chosen


def test_images_of_test_sets_are_recognised_by_every_name_they_have(local_store: Store):
    wells = {"A01": "dmso", "A02": "dmso", "A03": "dmso"}
    plate(local_store, "plain", wells, seed=1)
    plate(local_store, "benchmark", wells, seed=2, role="test")
    plate(local_store, "titled", wells, seed=3, title="BBBC021v1 again")
    plate(local_store, "linked", wells, seed=4, source_url="https://idr.openmicroscopy.org/search/?query=Name:idr0035")
    plate(local_store, "idr0035", wells, seed=5)
    names = ("plain", "benchmark", "titled", "linked", "idr0035", "mixed", "treated")
    files = {f"{folder}/B0{n}.png": png(cells((40, 40), n)) for folder in ("Week1_22123", "ours") for n in range(4)}
    put_source(local_store, "mixed", {**files, "ours/COOS-7_x.png": png(cells((40, 40), 9))}, EVERY_IMAGE)
    plate(local_store, "treated", dict.fromkeys(wells, "coos7"), seed=6)  # a compound may have the name of a test set
    take_in(local_store, *names)
    label(local_store)
    excluded = excluded_of(local_store)
    reasons = {str(name): set(group["reason"]) for name, group in excluded.groupby("source")}
    assert reasons == {
        "benchmark": {"its source is a test set"},
        "titled": {"its source is the test set bbbc021"},
        "linked": {"its source is the test set bbbc021"},
        "idr0035": {"its source is the test set bbbc021"},
        "mixed": {"its path is one of the test set bbbc021", "its filename is one of the test set coos7"},
    }
    assert excluded.groupby("source").size().to_dict() == {"benchmark": 6, "titled": 6, "linked": 6, "idr0035": 6, "mixed": 5}
    assert set(chosen_of(local_store)["source"]) == {"plain", "treated", "mixed"}


def test_images_without_files_count_only_where_wanted(local_store: Store):
    wells = {"A01": "dmso", "A02": "dmso", "A03": "taxol", "A04": "taxol"}
    plate(local_store, "own", wells)
    table = local_store.read("inbox/own/wells.csv") + b"B01,u2os,dmso\nB02,u2os,dmso\n"
    toml = local_store.read("inbox/own/source.toml").replace(b"[images]\n", b"[images]\nis_required = false\n")
    local_store.put("inbox/own/wells.csv", table)
    local_store.put("inbox/own/source.toml", toml)
    take_in(local_store, "own")
    assert label(local_store)["dmso"].num_images == 4
    assert set(excluded_of(local_store)["reason"]) == {"the source has no image file for it"}
    assert label(local_store, SMALL.model_copy(update={"with_images_only": False}))["dmso"].num_images == 6


def test_one_row_of_those_with_the_same_files_is_kept(local_store: Store):
    """Two archives may have the same image; pages of one file are different images."""
    wells = {"A01": "dmso", "A02": "dmso", "A03": "taxol", "A04": "taxol"}
    plate(local_store, "first", wells)
    plate(local_store, "mirror", wells, more={"images/A02_s1_w1.png": png(cells((150, 160), 7777))})
    take_in(local_store, "first", "mirror")
    label(local_store)
    excluded = excluded_of(local_store)
    files = {source: rows_of(local_store, source).set_index("idx")["sha256"] for source in ("first", "mirror")}
    assert set(excluded["source"]) == {"mirror"} and len(excluded) == 7
    for idx, reason in zip(excluded["idx"], excluded["reason"], strict=True):
        twin = reason.removeprefix("its files are those of ")
        assert files["mirror"][idx] == files["first"][twin]
    told = current_manifest(local_store, LABEL_TABLE).details["excluded_by_reason"]
    assert told == {"mirror: its files are those of another row": 7}


def test_a_small_table_is_that_of_the_slow_assignment_after_exclusion(local_store: Store):
    plate(local_store, "one", WELLS, channels=2)
    plate(local_store, "two", dict.fromkeys(WELLS, "drug 1"), sites=1, cell_type="hela", seed=1)
    plate(local_store, "again", WELLS, channels=2)
    take_in(local_store, "one", "two", "again")
    params = LabelTableParams(min_images=3, max_images=5, presample_images=9, seed=3)
    entries = label(local_store, params)
    rows = pd.concat([rows_of(local_store, source) for source in ("one", "two", "again")])
    rows = rows[~rows["idx"].isin(excluded_of(local_store)["idx"])]
    expected = oracle(rows, params)
    chosen = chosen_of(local_store)
    assert {str(n): (g["category"].iloc[0], set(g["idx"])) for n, g in chosen.groupby("label")} == expected
    assert set(entries) == set(expected)
    # "one" and "again" have the same files; of each pair the first by idx stays.
    assert set(rows["source"]) == {"again", "two"}


def test_the_table_depends_on_neither_the_order_of_lines_nor_of_sources(tmp_path):
    order = " ".join(np.random.default_rng(1).permutation(list(WELLS)))
    objects = []
    for name in ("plain", "other"):
        store = open_store(str(tmp_path / name))
        sources = [("a", 0), ("b", 1), ("c", 2)]
        for source, number in sources if name == "plain" else sources[::-1]:
            plate(store, source, WELLS, sites=1, seed=number, order="" if name == "plain" else order)
            take_in(store, source)
        objects.append([(item.name, item.sha256) for item in make_label_table(store, SMALL).manifest.objects])
    assert objects[0] == objects[1]


def test_nothing_is_done_twice_and_a_new_source_is_a_new_table(local_store: Store):
    plate(local_store, "one", WELLS, sites=1)
    take_in(local_store, "one")
    first = make_label_table(local_store, SMALL)
    again = make_label_table(local_store, SMALL)
    assert first.is_new and not again.is_new and manifest_numbers(local_store, LABEL_TABLE) == [1]
    before = set(label(local_store))
    plate(local_store, "two", {"A01": "drug 9", "A02": "drug 9"}, seed=1)
    take_in(local_store, "two")
    assert set(label(local_store)) == before | {"drug 9"}
    assert current_manifest(local_store, LABEL_TABLE).number == 2


def test_labels_that_do_not_change_keep_their_digest_when_sources_come(local_store: Store):
    """Otherwise every crop would have to be cut again when a source is added."""
    plate(local_store, "one", WELLS)
    take_in(local_store, "one")
    before = label(local_store)
    plate(local_store, "two", dict.fromkeys(WELLS, "drug 9"), seed=1, cell_type="hela")
    take_in(local_store, "two")
    after = label(local_store)
    for name in ("drug 1", "drug 2", "drug 3", "drug 4"):
        assert (before[name].key, before[name].digest) == (after[name].key, after[name].digest)


# Nothing to label


def test_nothing_to_label_is_told(local_store: Store):
    with pytest.raises(
        ValueError, match="no source is committed; materialize a partition of cytoimagenet/source_metadata first"
    ):
        make_label_table(local_store)
    plate(local_store, "own", {"A01": "dmso", "A02": "taxol"})
    take_in(local_store, "own")
    with pytest.raises(
        ValueError, match=r"no label has 287 images among 4 rows of 1 source\(s\); .* Add more sources, or lower min_images"
    ):
        make_label_table(local_store)
    assert current_manifest(local_store, LABEL_TABLE) is None


def test_only_test_sets_are_nothing_to_label(local_store: Store):
    plate(local_store, "own", {"A01": "dmso", "A02": "taxol"}, role="test")
    take_in(local_store, "own")
    with pytest.raises(ValueError, match=r"no label has 4 images among 0 rows of 1 source\(s\)"):
        make_label_table(local_store, SMALL)


def test_two_sources_of_one_short_name_are_told(local_store: Store):
    plate(local_store, "one", WELLS, sites=1, dir_name="screen")
    plate(local_store, "two", WELLS, sites=1, dir_name="screen", seed=1)
    take_in(local_store, "one", "two")
    with pytest.raises(ValueError, match=r"one, two .*dir_name = 'screen'"):
        make_label_table(local_store, SMALL)


# Names of labels


@pytest.mark.parametrize(
    ("label_name", "category"),
    [
        ("dmso", "compound"),
        ("a/b\\c:..", "compound"),
        ("日本語", "phenotype"),
        ("", "gene"),
        ("x" * 300, "compound"),
        ("..", "sirna"),
    ],
)
def test_keys_are_plain_and_tell_labels_apart(label_name, category):
    key = label_key(label_name, category)
    assert key.replace("-", "").isalnum() and key.isascii() and len(key) <= 49 and key == key.lower()
    others = [label_key(label_name, other) for other in LABEL_COLUMNS if other != category]
    assert key not in others and key != label_key(f"{label_name}!", category)


def test_a_value_of_two_columns_is_two_labels(local_store: Store):
    wells = {"A01": "actin", "A02": "actin", "B01": "dmso", "B02": "dmso"}
    plate(local_store, "own", wells, cell_type="actin")
    take_in(local_store, "own")
    entries = label(local_store, LabelTableParams(min_images=2, max_images=2, presample_images=2))
    assert entries["actin"].category == "compound" and entries["actin (cell_type)"].category == "cell_type"
    assert entries["actin"].key != entries["actin (cell_type)"].key
