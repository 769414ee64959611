"""Microscopy sources in the inbox: descriptions, shipped recipes, digests, and the tables that a recipe names."""

import json
from pathlib import Path

import pytest

from cem_assets.catalog.microscopy import microscopy_sources
from cem_assets.cytoimagenet.sources.inbox import (
    EXAMPLE,
    SOURCE_TOML,
    parse_source,
    read_inbox_source,
    read_source_description,
    read_source_tables,
    register_source,
)
from cem_assets.cytoimagenet.sources.recipe import MAX_TOML_BYTES
from cem_assets.errors import DataError, Fault, fault_of
from cem_assets.inbox.datasets import arrival_of
from cem_assets.store.store import Store
from cem_assets_tests.cytoimagenet.example_sources import PLATE, facts_of, plate, put_source

HEAD = facts_of("own")
TABLES = """
[[tables]]
name = "wells"
files = ["wells*.csv"]
[[tables]]
name = "drugs"
files = ["drugs.tsv", "drugs.txt"]
[[joins]]
table = "drugs"
on = { Drug = "id" }
[columns]
compound = { column = "name" }
"""


def test_the_example_in_every_message_is_a_source():
    description = parse_source(EXAMPLE.encode(), "example")
    assert description.facts.name == "my_screen" and description.recipe.tables[0].files == ("wells.csv",)


@pytest.mark.parametrize("name", sorted(microscopy_sources()))
def test_every_recipe_we_ship_can_be_named(name):
    row = microscopy_sources()[name]
    description = parse_source(f'name = "{name}"\nrecipe = "{name}"\n'.encode(), "x")
    assert description.recipe.columns
    for key in ("database", "title", "licence", "citation", "role"):
        assert getattr(description.facts, key) == getattr(row, key), key


def test_what_the_catalogue_knows_may_be_written_over():
    text = b'name = "mine"\nrecipe = "idr0035"\nrole = "training"\nlicence = "CC0-1.0"\ndir_name = "mine"\n'
    facts = parse_source(text, "x").facts
    assert (facts.name, facts.role, facts.licence, facts.dir_name) == ("mine", "training", "CC0-1.0", "mine")
    assert facts.title == microscopy_sources()["idr0035"].title
    assert parse_source(b'name = "mine"\nrecipe = "idr0035"\n', "x").facts.role == "test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not valid TOML in UTF-8"),
        (b"\xff\xfe\x00", "is not valid TOML in UTF-8"),
        ("#" * (MAX_TOML_BYTES + 1), "expected at most 262144. Shorten it"),
        (facts_of("own", licence="").replace('licence = ""\n', "") + PLATE, r"licence: Field required(.|\n)*An example:"),
        (facts_of("own", licence="") + PLATE, "licence: String should have at least 1 character"),
        (facts_of("My Screen") + PLATE, "name: String should match"),
        (facts_of("../up") + PLATE, "name: String should match"),
        (facts_of("a" * 65) + PLATE, "name: String should match"),
        (facts_of("own", role="benchmark") + PLATE, "role: Input should be 'training' or 'test'"),
        (HEAD + 'recipe = "idr9999"\n', "recipe = 'idr9999'; expected one of bbbc005, .*idr0036.*, or sections in its place"),
        (HEAD + 'recipe = "idr0036"\n' + PLATE, "recipe = 'idr0036' and also the sections channels, columns, images, tables"),
        (HEAD + PLATE + "[colums]\n", "colums: Extra inputs"),
        (HEAD + PLATE.partition("[columns]")[0], "columns: Field required"),
        (HEAD + PLATE.replace('files = ["wells.csv"]', 'files = ["wells.csv"]\nreader = "pickle"'), "names reader.s. pickle"),
        (HEAD + PLATE.replace("'images/", "'(images/"), "is not a valid regular expression"),
        (HEAD + PLATE.replace("'images/", "'x{99999999999999999999}images/"), "is not a valid regular expression"),
        (HEAD + 'recipe = ["idr0036"]\n', r"recipe = \['idr0036'\]; expected one of bbbc005"),
        (HEAD + "missing = " + "[" * 20_000, "is not valid TOML in UTF-8"),
        (HEAD, "columns: Field required"),
    ],
)  # fmt: skip
def test_descriptions_that_break_rules_say_which(text, message):
    with pytest.raises(DataError, match=message) as found:
        parse_source(text if isinstance(text, bytes) else text.encode(), "inbox/own/source.toml")
    assert "inbox/own/source.toml" in str(found.value)


def test_all_that_is_wrong_is_told_at_once():
    text = HEAD + PLATE.replace("organism", "organisms").replace('cell_visible = "actin"', "is_used = 7").replace(
        "files", "fils"
    )
    with pytest.raises(DataError) as found:
        parse_source(text.encode(), "x")
    for part in ("organisms", "is_used", "fils"):
        assert part in str(found.value), part


def test_equal_meaning_is_an_equal_digest():
    one = parse_source((HEAD + PLATE).encode(), "x").digest
    lines = HEAD.strip().split("\n")
    reordered = "# a comment\n" + "\n".join(lines[::-1]) + "\n" + PLATE.replace('"wells"', "'wells'")
    assert parse_source(b"\xef\xbb\xbf" + reordered.encode(), "x").digest == one
    for other in (HEAD.replace("2026", "2027") + PLATE, HEAD + PLATE.replace("Homo sapiens", "Mus musculus")):
        assert parse_source(other.encode(), "x").digest != one


# Folders


def test_a_source_is_complete_when_its_description_is_there(store: Store):
    store.put("inbox/own/wells.csv", b"Well\nA01\n")
    assert arrival_of(store, "own", SOURCE_TOML) is None
    with pytest.raises(FileNotFoundError, match=r"inbox/own/source.toml is missing .* written last. An example:"):
        read_source_description(store, "own")
    plate(store, "own", {"A01": "dmso"}, sites=1)
    assert arrival_of(store, "own", SOURCE_TOML) is not None
    found = read_inbox_source(store, "own")
    assert [item.path for item in found.files] == ["images/A01_s1_w1.png", "source.toml", "wells.csv"]
    assert found.rejections == ()


def test_a_description_too_large_is_not_read(local_store: Store, monkeypatch):
    put_source(local_store, "own", {"wells.csv": b"Well\nA01\n"}, "#" * MAX_TOML_BYTES)
    monkeypatch.setattr(Store, "read", lambda self, key: pytest.fail(f"{key} was read"))
    with pytest.raises(ValueError, match="expected at most 262144. Shorten it"):
        read_source_description(local_store, "own")


def test_two_folders_cannot_be_one_source(local_store: Store):
    plate(local_store, "first", {"A01": "dmso"}, sites=1)
    local_store.put("inbox/second/wells.csv", b"Well\n")
    local_store.put("inbox/second/source.toml", local_store.read("inbox/first/source.toml"))
    with pytest.raises(ValueError, match="inbox/second/source.toml says name = 'first', but its folder is 'second'"):
        read_inbox_source(local_store, "second")


def test_a_source_without_files_is_refused(local_store: Store):
    put_source(local_store, "own", {}, PLATE)
    with pytest.raises(ValueError, match="source 'own' has no files beside its source.toml"):
        read_inbox_source(local_store, "own")


@pytest.mark.parametrize("name", ["..", "../x", "", "a//b"])
def test_partition_keys_that_are_no_names_touch_nothing(local_store: Store, name):
    with pytest.raises(ValueError, match="is not allowed"):
        read_inbox_source(local_store, name)
    assert list(local_store.walk("inbox")) == []


def test_names_that_could_do_harm_are_refused_and_the_rest_goes_on(s3_store: Store):
    plate(s3_store, "own", {"A01": "dmso"}, sites=1)
    base = s3_store.url.removeprefix("s3://")
    for name in ("images/a\\b.png", "images/b\tc.png", "x" * 300 + ".png"):
        s3_store.fs.pipe_file(f"{base}/inbox/own/{name}", b"1")
    found = read_inbox_source(s3_store, "own")
    assert len(found.files) == 3 and len(found.rejections) == 3
    assert all("Rename it." in item.reason and item.what.isprintable() for item in found.rejections)


@pytest.mark.parametrize(
    ("change", "is_another"),
    [("contents", True), ("name", True), ("more", True), ("facts", True), ("junk", False), ("comment", False)],
)
def test_the_digest_changes_with_what_matters(local_store: Store, change, is_another):
    plate(local_store, "own", {"A01": "dmso"}, sites=1)
    before = read_inbox_source(local_store, "own").digest
    toml = local_store.read("inbox/own/source.toml")
    match change:
        case "contents":
            local_store.put("inbox/own/wells.csv", b"Well,Cell,Drug\nA01,u2os,taxol\n")
        case "name":
            local_store.put("inbox/own/more.csv", local_store.read("inbox/own/wells.csv"))
            local_store.delete(["inbox/own/wells.csv"])
        case "more":
            local_store.put("inbox/own/notes.txt", b"x")
        case "facts":
            local_store.put("inbox/own/source.toml", toml.replace(b"CC0-1.0", b"CC BY 4.0"))
        case "junk":
            local_store.put("inbox/own/images/.DS_Store", b"x")
        case _:
            local_store.put("inbox/own/source.toml", b"# moved to a new disk\n" + toml)
    assert (read_inbox_source(local_store, "own").digest != before) == is_another


# Tables


def tables_of(store: Store, files: dict[str, bytes], sections: str = TABLES):
    put_source(store, "own", files, sections)
    return read_source_tables(store, read_inbox_source(store, "own"))


def test_tables_are_read_as_text_and_several_files_put_together(store: Store):
    files = {
        "wells_1.csv": b"Well,Drug\nA01,007\n",
        "later/wells_2.csv": b"Drug;Well;Dose\n1e5;A02;NA\n",
        "drugs.txt": b"id\tname\r007\tDMSO\r1e5\ttaxol\r",
        "notes.md": b"# not a table",
    }
    tables, notes, rejections = tables_of(store, files)
    assert tables["wells"].to_dict("records") == [
        {"Drug": "1e5", "Well": "A02", "Dose": "NA"},
        {"Drug": "007", "Well": "A01", "Dose": ""},
    ]
    assert tables["drugs"]["name"].tolist() == ["DMSO", "taxol"]
    assert sorted(notes) == ["drugs.txt", "later/wells_2.csv", "wells_1.csv"] and rejections == []
    assert "separator semicolon (detected)" in notes["later/wells_2.csv"]


def test_rows_that_cannot_be_read_are_told_by_line(local_store: Store):
    files = {"wells.csv": b"Well,Drug\nA01,x\nA02,x,y,z\nA03,x\n", "drugs.tsv": b"id\tname\nx\tDMSO\n"}
    tables, _, rejections = tables_of(local_store, files)
    assert tables["wells"]["Well"].tolist() == ["A01", "A03"]
    assert [item.what for item in rejections] == ["wells.csv line 3"] and rejections[0].reason


def test_every_table_that_is_missing_or_unreadable_is_told(local_store: Store):
    with pytest.raises(ValueError) as found:
        tables_of(local_store, {"wells.csv": b"\x00\x01\x02binary", "other.csv": b"a,b\n1,2\n"})
    text = str(found.value)
    assert "no file matches drugs.tsv or drugs.txt of table 'drugs'; the files are other.csv, wells.csv" in text
    assert "source 'own': " in text and "wells.csv" in text.partition("no file matches")[0]


def test_a_reader_of_its_own_reads_what_is_no_table(local_store: Store):
    images = [
        {"image": {"pathname": "/images/a.png"}, "objects": [{"category": "trophozoite"}, {"category": "red blood cell"}]},
        {"image": {"pathname": "/images/b.png"}, "objects": []},
    ]
    sections = """
[[tables]]
name = "images"
files = ["training.json"]
reader = "bbbc041_json"
[columns]
phenotype = { column = "categories" }
"""
    tables, notes, _ = tables_of(local_store, {"training.json": json.dumps(images).encode()}, sections)
    assert tables["images"]["categories"].tolist() == ["red blood cell|trophozoite", ""]
    assert notes == {"training.json": ["read as bbbc041_json"]}
    with pytest.raises(DataError, match=r"source 'own': .*is not valid JSON"):
        tables_of(local_store, {"training.json": b"[{"}, sections)
    with pytest.raises(DataError, match="its image.pathname is .* expected text in valid Unicode"):  # half a character
        tables_of(local_store, {"training.json": rb'[{"image": {"pathname": "/images/\ud800.png"}}]'}, sections)


def test_a_bug_in_reading_a_table_is_not_reported_as_a_bad_table(local_store: Store, monkeypatch):
    def read(path: Path, options: object) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr("cem_assets.cytoimagenet.sources.inbox.read_metadata_table", read)
    with pytest.raises(ValueError, match="^operands could not be broadcast together$") as found:
        tables_of(local_store, {"wells.csv": b"Well,Drug\nA01,x\n", "drugs.tsv": b"id\tname\nx\tDMSO\n"})
    assert fault_of(found.value) == Fault.bug


# Registering a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    (path / "images").mkdir(parents=True)
    (path / "wells.csv").write_bytes(b"Well,Cell,Drug\nA01,u2os,dmso\n")
    (path / "images" / "A01_s1_w1.png").write_bytes(b"1")
    (path / "source.toml").write_text("# ours\n" + facts_of("mine") + PLATE)
    return path


def test_registering_copies_the_files_and_the_description_last(store: Store, folder, monkeypatch):
    order = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, key, data: (order.append(key), put(self, key, data))[1])
    assert register_source(store, folder) == "mine"
    assert order[-1] == "inbox/mine/source.toml" and len(order) == 3
    assert register_source(store, folder) == "mine" and len(order) == 3, "nothing is copied twice"
    assert read_inbox_source(store, "mine").files[0].path == "images/A01_s1_w1.png"


def test_a_name_given_wins_and_comments_stay(local_store: Store, folder):
    assert register_source(local_store, folder, "other") == "other"
    assert local_store.read("inbox/other/source.toml").startswith(b"# ours\n")
    assert read_source_description(local_store, "other").facts.name == "other"
    with pytest.raises(ValueError, match="name: String should match"):
        register_source(local_store, folder, "../x")


@pytest.mark.parametrize("text", [b'name = "mine', b"\xff\xfe", b"#" * (MAX_TOML_BYTES + 1)])
def test_a_name_cannot_be_given_to_what_is_no_toml(local_store: Store, folder, text):
    (folder / "source.toml").write_bytes(text)
    with pytest.raises(DataError, match=r"mine/source.toml (is not valid TOML|has .* expected at most)"):
        register_source(local_store, folder, "other")
    assert list(local_store.walk("inbox")) == []


def test_another_source_of_the_same_name_needs_a_word(local_store: Store, folder):
    register_source(local_store, folder)
    (folder / "wells.csv").write_bytes(b"Well,Cell,Drug\nA01,u2os,taxol\n")
    with pytest.raises(FileExistsError, match=r"'mine' already, with other files. .*--replace"):
        register_source(local_store, folder)
    assert b"dmso" in local_store.read("inbox/mine/wells.csv")
    register_source(local_store, folder, replace=True)
    assert b"taxol" in local_store.read("inbox/mine/wells.csv")


def test_folders_without_a_description_and_links_that_lead_out_are_refused(local_store: Store, tmp_path, folder):
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "s.png").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="s.png is a link that leads out of"):
        register_source(local_store, folder)
    (folder / "source.toml").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no source.toml; write one beside the tables. An example:"):
        register_source(local_store, folder)
    assert list(local_store.walk("inbox")) == []
