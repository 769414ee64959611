"""Recipes on small tables and paths give one row per image, and a reason for everything that is left out."""

import pandas as pd
import pytest

from cem_assets.cytoimagenet.columns import STANDARD_COLUMNS
from cem_assets.cytoimagenet.sources.recipe import SourceFacts, parse_recipe, parse_toml
from cem_assets.cytoimagenet.sources.schema import check_metadata
from cem_assets.cytoimagenet.sources.standardize import Standardized, standardize
from cem_assets.cytoimagenet.sources.values import fill
from cem_assets.errors import DataError

FACTS = SourceFacts(name="plates", database="own", title="Plates of ours", dir_name="our", licence="CC0 1.0")
WELLS = pd.DataFrame(
    {
        "Plate": ["P1", "P1", "P1", "P2"],
        "Well": ["A01", "A02", "A03", "A01"],
        "Drug": ["x1", "x2", "x9", "X1"],
        "QC": ["pass", "PASS", "fail", "pass"],
        "Organism": ["Homo sapiens", "Homo sapiens", "Mus musculus", "NA"],
        "Symbols": ["PLK1;KIF11", "", "TP53", "plk1"],
        "Score death": ["0.9", "", "0.1", "0.2"],
        "Score mitosis": ["0.7", "0.6", "0", "n/a"],
    },
    dtype="str",
)
DRUGS = pd.DataFrame({"id": ["X1", "x2"], "name": ["DMSO", "Taxol"], "Well": ["no", "no"]}, dtype="str")
PATHS = [
    "images/P1/A01_f1_w1.tif", "images/P1/A01_f1_w2.tif", "images/P1/A01_f2_w1.tif", "images/P1/A01_f1_w3.tif",
    "images/P1/a02_f1_w2.tif", "images/P2/A01_f1_w1.tif", "images/P9/A01_f1_w1.tif", "images/overview.png",
    "images/P1/A01_f1_w9.tif",
]  # fmt: skip
RECIPE = r"""
[[tables]]
name = "wells"
files = ["wells.csv"]
keep = [{ column = "QC", is_in = ["pass"], reason = "failed quality control" }]
[[tables]]
name = "drugs"
files = ["drugs.csv"]
[[joins]]
table = "drugs"
on = { Drug = "id" }
[images]
pattern = 'images/(?P<plate>P\d)/(?P<well>[A-Pa-p]\d\d)_f(?P<field>\d)_w(?P<channel>\d)\.tif$'
on = { Plate = "{plate}", Well = "{well}" }
[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nuclei"
[[channels]]
key = "2"
name = "f_actin"
cell_visible = "actin"
[[channels]]
key = "3"
name = "brightfield"
microscopy = "brightfield"
[columns]
organism = { column = "Organism", map = { "homo sapiens" = "human" }, is_complete = true }
cell_type = { value = "U2OS" }
compound = { column = "name" }
gene = { column = "Symbols", split = ";" }
phenotype = { flags = { "Score death" = "dead", "Score mitosis" = "mitosis" }, at_least = 0.6 }
"""
TERMS = {"cell_visible": {"nuclei": "nucleus"}, "organism": {"mus musculus": "mouse"}}


def run(text: str = RECIPE, paths: list[str] = PATHS, **tables: pd.DataFrame) -> Standardized:
    recipe = parse_recipe(parse_toml(text.encode(), "plates.toml"), "plates.toml")
    return standardize(recipe, FACTS, {"wells": WELLS, "drugs": DRUGS, **tables}, paths, TERMS)


def test_tables_and_images_become_one_row_per_image():
    found = run()
    check_metadata(found.rows, "plates")
    assert list(found.rows.columns) == [*STANDARD_COLUMNS, "files"]
    rows = found.rows.set_index(["path", "filename"])
    first = rows.loc[("plates/images/P1", "P1_A01_1#fluorescence")]
    assert first["files"] == ("images/P1/A01_f1_w1.tif", "images/P1/A01_f1_w2.tif")
    assert first["channels"] == "f_nucleus|f_actin"
    assert first["cell_visible"] == "nucleus|actin"
    assert (first["organism"], first["cell_type"], first["compound"]) == ("human", "u2os", "dmso")
    assert first["gene"] == "plk1 targeted|kif11 targeted"
    assert first["phenotype"] == "dead|mitosis"
    assert (first["database"], first["name"], first["dir_name"]) == ("own", "Plates of ours", "our")


def test_brightfield_is_a_row_of_its_own():
    rows = run().rows
    bright = rows[rows["microscopy"] == "brightfield"]
    assert bright["files"].tolist() == [("images/P1/A01_f1_w3.tif",)]
    assert bright["filename"].tolist() == ["A01_f1_w3.tif#brightfield"]
    assert bright["cell_visible"].tolist() == [""]


def test_everything_left_out_keeps_its_reason():
    found = run()
    dropped = dict(zip(found.dropped["what"], found.dropped["reason"], strict=True))
    assert dropped == {
        "wells row 3": "failed quality control",
        "images/P9/A01_f1_w1.tif": "no row of the tables belongs to it",
        "images/overview.png": "its path does not match the recipe's pattern of images",
        "images/P1/A01_f1_w9.tif": "its channel '9' is not in the recipe",
    }


def test_the_report_counts_rows_reasons_and_gaps():
    report = run().report
    assert report["num_rows_read"] == {"wells": 4, "drugs": 2}
    assert report["num_rows"] == 5
    assert report["unmapped"] == {}
    assert report["missing"]["organism"] == pytest.approx(0.2)  # "NA" of plate P2
    assert report["dropped"]["failed quality control"] == 1


def test_values_that_a_complete_map_lacks_are_told():
    report = run(RECIPE.replace('is_in = ["pass"]', 'is_in = ["pass", "fail"]'), [*PATHS, "images/P1/A03_f1_w1.tif"]).report
    assert report["unmapped"] == {"organism": {"Mus musculus": 1}}


def test_tables_without_any_image_give_rows_that_the_images_will_join():
    found = run(paths=[])
    check_metadata(found.rows, "plates")
    assert found.rows["files"].tolist() == [()] * 6
    assert found.rows["filename"].tolist() == [
        f"{well}#{kind}" for well in ("P1_A01", "P1_A02", "P2_A01") for kind in ("brightfield", "fluorescence")
    ]
    fluorescence = found.rows[found.rows["microscopy"] == "fluorescence"]
    assert set(fluorescence["cell_visible"]) == {"nucleus|actin"}
    assert "no image files" in found.report["notes"][-1]


def test_wells_without_images_are_dropped_with_a_reason():
    dropped = run(paths=["images/P1/A01_f1_w1.tif"]).dropped
    assert set(dropped.loc[dropped["reason"] == "no image belongs to it", "what"]) == {"wells row 2", "wells row 4"}


def test_indices_follow_path_and_name_whatever_the_order_of_rows():
    one = run().rows
    other = run(wells=WELLS.iloc[::-1].reset_index(drop=True), paths=PATHS[::-1]).rows
    pd.testing.assert_frame_equal(one, other)
    assert one["idx"].tolist() == [f"our-{n}" for n in range(5)]


TABLE_ONLY = """
[[tables]]
name = "wells"
files = ["wells.csv"]
[columns]
filename = { template = "{Plate}_{Well}" }
path = { value = "plates" }
compound = { column = "Drug" }
"""


def test_a_source_may_have_tables_only():
    recipe = parse_recipe(parse_toml(TABLE_ONLY.encode(), "t"), "t")
    rows = standardize(recipe, FACTS, {"wells": WELLS}, [], {}).rows
    assert rows["filename"].tolist() == ["P1_A01", "P1_A02", "P1_A03", "P2_A01"]
    assert rows["files"].tolist() == [()] * 4
    assert rows["compound"].tolist() == ["x1", "x2", "x9", "x1"]


def test_two_rows_for_one_image_are_merged():
    table = pd.DataFrame({"Plate": ["P", "P", "P"], "Well": ["A1", "A1", "A2"], "Drug": ["a", "b", "c"]}, dtype="str")
    recipe = parse_recipe(parse_toml(TABLE_ONLY.encode(), "t"), "t")
    rows = standardize(recipe, FACTS, {"wells": table}, [], {}).rows
    assert rows["compound"].tolist() == ["a|b", "c"]


LISTED = """
[[tables]]
name = "wells"
files = ["wells.csv"]
[images]
[[channels]]
file = "{folder}/{dapi}"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
file = "{folder}/{gfp}"
name = "f_gfp"
is_used = false
[columns]
organism = { value = "human" }
cell_type = { column = "cells", split = "list" }
"""


def test_tables_may_name_the_files_themselves():
    table = pd.DataFrame(
        {"folder": ["w1", "w1", "w2"], "dapi": ["a.tif", "b.tif", "a.tif"], "gfp": ["g.tif"] * 3,
         "cells": ["['red blood cell', 'white blood cell']", "hela", "[odd"]}, dtype="str"
    )  # fmt: skip
    recipe = parse_recipe(parse_toml(LISTED.encode(), "t"), "t")
    found = standardize(recipe, FACTS, {"wells": table}, ["data/W1/a.tif", "data/w1/b.tif", "x/w1/b.tif"], {})
    assert found.rows["files"].tolist() == [("data/W1/a.tif",)]
    assert found.rows["cell_type"].tolist() == ["red blood cell|white blood cell"]
    assert found.dropped["what"].tolist() == ["wells row 2", "wells row 3"]  # one is ambiguous, the other is missing


PAGES = r"""
[images]
pattern = '(?P<well>[A-H]\d)\.tif$'
is_pages = true
[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
key = "2"
name = "f_other"
is_used = false
[[channels]]
key = "3"
name = "f_actin"
cell_visible = "actin"
[columns]
organism = { value = "yeast" }
phenotype = { column = "well", map = { "a1" = "wildtype", "a2" = "mutant" } }
"""


def test_channels_may_be_pages_of_one_file():
    recipe = parse_recipe(parse_toml(PAGES.encode(), "t"), "t")
    rows = standardize(recipe, FACTS, {}, ["A1.tif", "x/A2.tif"], {}).rows
    assert rows["files"].tolist() == [("A1.tif#1", "A1.tif#3"), ("x/A2.tif#1", "x/A2.tif#3")]
    assert rows["phenotype"].tolist() == ["wildtype", "mutant"]
    assert rows["channels"].tolist() == ["f_nucleus|f_actin"] * 2


@pytest.mark.parametrize(("key", "shown"), [("0", "'0', '3'"), ("", "'', '3'"), ("first", "'first', '3'")])
def test_pages_have_numbers_from_one(key, shown):
    text = PAGES.replace('key = "1"', f'key = "{key}"')
    with pytest.raises(DataError, match=f"needs a page number as its key, counted from 1; found {shown}"):
        parse_recipe(parse_toml(text.encode(), "t"), "t")


def test_numbers_too_long_to_rewrite_stay_and_templates_cannot_ask_for_them():
    cells = ["007", "1" * 5000]
    frame = pd.DataFrame({"n": cells}, dtype="str")
    assert fill("{n:d}", frame, "a name") == ["7", "1" * 5000]
    for how in ("099999999999d", "1001d"):
        with pytest.raises(DataError, match="asks for numbers of more than 1000 digits"):
            fill(f"{{n:{how}}}", frame, "a name")


def test_numbers_in_templates_can_be_padded():
    table = pd.DataFrame({"row": ["A", "B"], "col": ["1", "12"], "Drug": ["a", "b"]}, dtype="str")
    text = r"""
[[tables]]
name = "wells"
files = ["w"]
[images]
pattern = '(?P<well>\w\d\d)\.tif$'
on = { "{row}{col:02d}" = "{well}" }
[columns]
compound = { column = "Drug" }
"""
    rows = standardize(
        parse_recipe(parse_toml(text.encode(), "t"), "t"), FACTS, {"wells": table}, ["A01.tif", "B12.tif"], {}
    ).rows
    assert rows["compound"].tolist() == ["a", "b"]


@pytest.mark.parametrize(("option", "compounds"), [("", ["dmso|other", "taxol"]), ("is_first_only = true", ["dmso", "taxol"])])
def test_a_key_with_several_partners_gives_all_or_the_first(option, compounds):
    drugs = pd.concat([DRUGS, pd.DataFrame({"id": ["x1"], "name": ["Other"], "Well": [""]}, dtype="str")], ignore_index=True)
    text = RECIPE.replace('on = { Drug = "id" }', f'on = {{ Drug = "id" }}\n{option}')
    rows = run(text, paths=[PATHS[0], PATHS[4]], drugs=drugs).rows
    assert rows["compound"].tolist() == compounds


def test_rows_may_be_numbers_in_file_names():
    table = pd.DataFrame({"Well": ["B3", "AA12"], "Drug": ["a", "b"]}, dtype="str")
    text = r"""
[[tables]]
name = "wells"
files = ["w"]
[images]
pattern = 'r(?P<row>\d+)c(?P<col>\d+)\.tif$'
on = { Well = "{row:A}{col:d}" }
[columns]
compound = { column = "Drug" }
path = { column = "row", pattern = "0*(\\d+)", map = { "27" = "last" } }
"""
    rows = standardize(
        parse_recipe(parse_toml(text.encode(), "t"), "t"), FACTS, {"wells": table}, ["r02c03.tif", "r27c12.tif"], {}
    ).rows
    assert rows["compound"].tolist() == ["a", "b"]
    assert rows["path"].tolist() == ["2", "last"]


def test_values_may_depend_on_a_condition_and_come_from_several_columns():
    text = TABLE_ONLY.replace(
        'compound = { column = "Drug" }',
        'compound = { column = "Drug", when = { column = "QC", is_in = ["pass"] }, drop = ["x2"] }\n'
        'sirna = [{ column = "Symbols", pattern = "^(T\\\\w+)" }, { column = "Plate" }]\n',
    )
    rows = standardize(parse_recipe(parse_toml(text.encode(), "t"), "t"), FACTS, {"wells": WELLS}, [], {}).rows
    assert rows["compound"].tolist() == ["x1", "", "", "x1"]
    assert rows["sirna"].tolist() == ["p1", "p1", "tp53|p1", "p2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[columns]", "[colums]"), "colums: Extra inputs"),
        (('on = { Drug = "id" }', 'on = { Drug = "ident" }'), "no column 'ident'; it has id, name, Well"),
        (('column = "name"', 'column = "nam"'), "compound comes from 'nam'"),
        (('table = "drugs"', 'table = "drogs"'), "'drogs' names no table"),
        (("(?P<channel>", "(?P<chanel>"), "need a group"),
        (('pattern = \'images', "pattern = '(images"), "not a valid regular expression"),
        (('cell_type = { value = "U2OS" }', 'cell_type = { value = "a", column = "b" }'), "found value, column"),
        (('cell_type = { value = "U2OS" }', 'cell_line = { value = "a" }'), "cell_line"),
    ],
)  # fmt: skip
def test_wrong_recipes_are_refused_in_words(change, message):
    with pytest.raises(ValueError, match=message):
        run(RECIPE.replace(*change))


def test_the_schema_names_columns_rules_and_examples():
    rows = run().rows
    rows.loc[0, "compound"] = "Taxol"
    rows.loc[1, "organism"] = "human||mouse"
    rows.loc[2, "cell_type"] = "a|b|a"
    rows.loc[3, "idx"] = rows.loc[4, "idx"]
    with pytest.raises(ValueError, match="breaks its schema") as caught:
        check_metadata(rows, "plates")
    for part in ("compound: has capital", "organism: has empty", "cell_type: has empty, repeated", "column idx"):
        assert part in str(caught.value)
