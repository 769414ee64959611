"""Sources become standard rows: real tables need only a recipe, and what is refused is reported until it is repaired."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cem_assets.catalog.microscopy import terms
from cem_assets.cytoimagenet.columns import LABEL_COLUMNS, split_values
from cem_assets.cytoimagenet.sources.stage import REPORT, file_of, page_of, standardize_source
from cem_assets.cytoimagenet.tables import METADATA_SCHEMA, read_frame
from cem_assets.errors import Fault, fault_of
from cem_assets.store.assets import SOURCE_METADATA
from cem_assets.store.manifests import committed_partitions, current_manifest, damaged_objects, manifest_numbers
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cytoimagenet.example_sources import (
    EVERY_IMAGE,
    PLATE,
    facts_of,
    killed_after,
    plate,
    png,
    put_shipped,
    put_source,
    quarantined,
    rows_of,
    take_in,
)
from cem_assets_tests.datasets import cells

IDR0036 = "metadata/idr0036-gustafsdottir-cellpainting/idr0036-screenA-library.txt"
IDR0035 = "metadata/idr0035-caie-drugresponse/idr0035-screenA-annotation.csv"
IDR0013 = ("idr0013-screenB-library.txt", "idr0013-screenB-processed.txt")
HISTORY = Path(__file__).parents[1] / "recipes" / "history.toml"
TINY = png(cells((40, 40)))


def lines_of(path: Path, separator: str = ",") -> list[dict[str, str]]:
    """Read a table in the simplest way."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))


def term(column: str, value: str) -> str:
    """Write a value in the form that rows have."""
    plain = " ".join(value.split()).lower()
    return terms().get(column, {}).get(plain, plain)


def dropped_of_source(store: Store, source: str) -> dict[str, str]:
    manifest = current_manifest(store, SOURCE_METADATA, source)
    frame = read_frame(store, manifest, "_dropped/part-00000.parquet")
    return dict(zip(frame["what"], frame["reason"], strict=True))


# Real tables


def test_cell_painting_wells_are_found_from_their_images_with_the_shipped_recipe_alone(store: Store, test_data):
    wells = [("20585", "a01", 1), ("20585", "p24", 2), ("20646", "B12", 1)]
    folders = {"Hoechst": 1, "ERSyto": 2, "ERSytoBleed": 3, "Ph_golgi": 4, "Mito": 5}
    images = {
        f"{plate_}-{folder}/IXMtest_{well}_s{site}_w{number}0A1B.tif": b"never opened here"
        for plate_, well, site in wells
        for folder, number in folders.items()
    }
    put_shipped(store, "idr0036", {"idr0036-screenA-library.txt": test_data / IDR0036, **images, "20585-DAPI/x.tif": b"x"})
    manifest = take_in(store, "idr0036")["idr0036"]
    rows = rows_of(store, "idr0036")
    table = {(line["Plate"], line["Well"]): line for line in lines_of(test_data / IDR0036, "\t")}
    assert manifest.counts == {"rows": 3, "rows_with_images": 3, "dropped": len(table) - 3 + 1}
    for plate_, well, _ in wells:
        line = table[plate_, f"{well[0].upper()}{int(well[1:])}"]
        found = rows[rows["files"].map(lambda files, key=f"{plate_}-Hoechst/IXMtest_{well}_": files[0].startswith(key))]
        assert len(found) == 1
        row = found.iloc[0]
        assert row["compound"] == term("compound", line["Compound Name"]) != ""
        assert (row["organism"], row["cell_type"], row["gene"]) == ("human", "u2os", "")
        assert row["channels"].startswith("f_nucleus|f_er|f_nucleoli|") and len(row["files"]) == len(row["sha256"]) == 5
        assert "golgi apparatus" in split_values(row["cell_visible"]) and row["microscopy"] == "fluorescence"
    dropped = dropped_of_source(store, "idr0036")
    assert dropped["20585-DAPI/x.tif"] == "its path does not match the recipe's pattern of images"
    assert list(dropped.values()).count("no image belongs to it") == len(table) - 3


def test_tables_may_come_before_their_images(local_store: Store, test_data):
    put_shipped(local_store, "idr0036", {"idr0036-screenA-library.txt": test_data / IDR0036})
    manifest = take_in(local_store, "idr0036")["idr0036"]
    rows = rows_of(local_store, "idr0036")
    lines = lines_of(test_data / IDR0036, "\t")
    expected = {f"{line['Plate']}_{line['Well']}": term("compound", line["Compound Name"]) for line in lines}
    assert dict(zip(rows["filename"], rows["compound"], strict=True)) == expected and len(expected) == 7680
    assert set(rows["organism"]) == {"human"} and set(rows["files"]) == {()} and set(rows["sha256"]) == {()}
    assert manifest.counts == {"rows": 7680, "rows_with_images": 0, "dropped": 0}
    assert any("there are no image files" in note for note in manifest.details["report"]["notes"])
    local_store.put("inbox/idr0036/20585-Mito/IXMtest_C07_s1_w50A.tif", TINY)
    assert take_in(local_store, "idr0036")["idr0036"].counts == {"rows": 1, "rows_with_images": 1, "dropped": 7679}


def test_mitosis_screen_keeps_wells_that_passed_with_their_phenotypes(local_store: Store, test_data):
    files = {name: test_data / "metadata/idr0013-neumann-mitocheck" / name for name in IDR0013}
    put_shipped(local_store, "idr0013", files)
    manifest = take_in(local_store, "idr0013")["idr0013"]
    library = lines_of(files[IDR0013[0]], "\t")
    results = {line["Plate_Well"]: line for line in lines_of(files[IDR0013[1]], "\t")}
    kept = [line for line in library if line["Control Type"].lower() != "empty well"]
    passed = [line for line in kept if line["Quality Control"].lower() == "true"]
    assert manifest.details["report"]["dropped"] == {
        "an empty well": len(library) - len(kept),
        "failed quality control": len(kept) - len(passed),
    }
    expected = []
    for line in passed:
        result = results.get(line["Plate_Well"], {})
        shown = [result.get(f"Phenotype {n}") or "" for n in range(1, 10)]
        cut = [text.removesuffix(" (manual)").removesuffix(" (automatic)").lower() for text in shown if text]
        gene = f"{line['Gene Symbol'].lower()} targeted" if line["Gene Symbol"] else ""
        expected.append((line["siRNA Identifier"].lower(), gene, "|".join(dict.fromkeys(cut))))
    rows = rows_of(local_store, "idr0013")
    assert sorted(zip(rows["sirna"], rows["gene"], rows["phenotype"], strict=True)) == sorted(expected)


def test_jump_wells_are_joined_with_orfs_and_crispr_guides(local_store: Store, test_data):
    folder = test_data / "metadata/jump_cp"
    with gzip.open(folder / "well.csv.gz", "rt") as file:
        lines = [
            line for number, line in enumerate(file) if number % 60 == 0
        ]  # 12,000 of 740,000 lines, beginning with the header
    guides = lines_of(folder / "crispr.csv.gz")
    crispr_plate = next(line for line in lines_of(folder / "plate.csv.gz") if line["Metadata_PlateType"] == "CRISPR")
    place = f"{crispr_plate['Metadata_Source']},{crispr_plate['Metadata_Plate']}"
    # The wells of the test data end before the CRISPR plates, so some of their guides are put into wells here.
    lines += [
        f"{place},{chr(65 + n % 16)}{n // 16 + 1:02d},{guide['Metadata_JCP2022']}\n" for n, guide in enumerate(guides[:300])
    ]
    files = {name: folder / name for name in ("plate.csv.gz", "orf.csv.gz", "crispr.csv.gz", "compound_source.csv.gz")}
    put_shipped(local_store, "jump_cp", {"well.csv": "".join(lines).encode(), **files})
    take_in(local_store, "jump_cp")
    symbols = {line["Metadata_JCP2022"]: line["Metadata_Symbol"] for line in [*lines_of(folder / "orf.csv.gz"), *guides]}
    controls = {"na", "no-guide", "non-targeting", "bfp", "hcred", "luciferase", "lacz", "egfp"}
    wells = [line for line in csv.DictReader(lines) if line["Metadata_JCP2022"] != "JCP2022_999999"]
    expected = []
    for line in wells:
        reagent = line["Metadata_JCP2022"]
        symbol = symbols.get(reagent, "").lower()
        gene = f"{symbol} targeted" if symbol and symbol not in controls else ""
        number = reagent.removeprefix("JCP2022_")
        expected.append((gene, number.isdecimal() and int(number) < 800_000))
    rows = rows_of(local_store, "jump_cp")
    assert sorted(zip(rows["gene"], rows["compound"] != "", strict=True)) == sorted(expected)
    assert "dmso" in set(rows["compound"]) and "a2m targeted" in set(rows["gene"])
    kinds = [sum(gene != "" for gene, _ in expected), sum(is_compound for _, is_compound in expected)]
    assert min(kinds) > 500, "both kinds of reagent are in the sample"


@pytest.mark.soak
def test_all_wells_of_jump_are_taken_in(local_store: Store, test_data):
    folder = test_data / "metadata/jump_cp"
    files = {f"{name}.csv.gz": folder / f"{name}.csv.gz" for name in ("well", "plate", "compound_source", "orf", "crispr")}
    put_shipped(local_store, "jump_cp", files)
    manifest = take_in(local_store, "jump_cp")["jump_cp"]
    num_wells = len(lines_of(folder / "well.csv.gz"))
    assert manifest.counts["rows"] + manifest.counts["dropped"] == num_wells > 700_000


def test_tables_of_the_reference_are_read_by_one_recipe(local_store: Store, test_data):
    folder = test_data / "metadata/cytoimagenet_history"
    files = {path.name: path for path in sorted(folder.glob("*_metadata.csv"))}
    put_source(local_store, "history", files, HISTORY.read_text())
    take_in(local_store, "history")
    lines = [line for path in files.values() for line in lines_of(path)]
    rows = rows_of(local_store, "history")
    assert len(rows) == len({(line["path"], line["filename"]) for line in lines}) > 10_000
    kinds = {value for cell in rows["cell_type"].unique() for value in split_values(cell)}
    assert kinds == {"u2os", "mcf7", "a549", "red blood cell", "white blood cell"} and set(rows["organism"]) == {"human"}


def test_the_benchmark_is_taken_in_as_a_test_set(local_store: Store, test_data):
    put_shipped(local_store, "idr0035", {"idr0035-screenA-annotation.csv": test_data / IDR0035})
    manifest = take_in(local_store, "idr0035")["idr0035"]
    assert manifest.details["facts"]["role"] == "test" and manifest.counts["rows"] == 3300
    assert "microtubule stabilizers" in set(rows_of(local_store, "idr0035")["phenotype"])


def test_real_images_are_found_by_the_names_of_their_archive(store: Store, test_data):
    folder = test_data / "fluorescence/bbbc013_sbs"
    put_shipped(store, "bbbc013", {path.name: path for path in folder.iterdir()})
    manifest = take_in(store, "bbbc013")["bbbc013"]
    rows = rows_of(store, "bbbc013")
    expected = sorted(path.name for path in folder.glob("Channel2-*.tif"))
    assert rows["files"].tolist() == [(name,) for name in expected] and rows["filename"].tolist() == expected
    assert rows["idx"].tolist() == [f"bbbc013-{n}" for n in range(6)]
    assert set(rows["cell_visible"]) == {"nucleus"} and set(rows["channels"]) == {"f_nucleus"}
    assert manifest.details["facts"]["citation"].startswith("Image set BBBC013v1")
    assert len({digest for (digest,) in rows["sha256"]}) == 6


# What is committed


def test_rows_carry_files_digests_and_licence_and_reasons_lie_beside_them(store: Store):
    more = {"images/Z99.png": b"x", "images/B01_s1_w1.png": b"x", "notes.md": b"x", "images/A01_s1_w7.png": b"x"}
    plate(store, "own", {"A01": "dmso", "A02": "taxol"}, channels=2, more=more)
    manifest = take_in(store, "own")["own"]
    assert damaged_objects(store, manifest) == {} and manifest.counts == {"rows": 4, "rows_with_images": 4, "dropped": 4}
    rows = rows_of(store, "own")
    assert list(rows.columns) == METADATA_SCHEMA.names and not rows.isna().any().any()
    assert rows["files"].tolist()[0] == ("images/A01_s1_w1.png", "images/A01_s1_w2.png")
    for files, digests in zip(rows["files"], rows["sha256"], strict=True):
        assert list(digests) == [store.sha256(f"inbox/own/{file_of(name)}") for name in files]
    assert set(rows["source"]) == {"own"} and set(rows["licence"]) == {"CC0-1.0"}
    assert dropped_of_source(store, "own") == {
        "images/A01_s1_w7.png": "its channel '7' is not in the recipe",
        "images/Z99.png": "its path does not match the recipe's pattern of images",
        "images/B01_s1_w1.png": "no row of the tables belongs to it",
        "notes.md": "neither a table nor an image that the recipe uses",
    }
    assert b'"num_images": 4' in store.read(f"{manifest.folder}/{REPORT}")
    assert quarantined(store, "own") is None


@pytest.mark.parametrize(
    ("name", "file", "page"),
    [("a/b.tif#2", "a/b.tif", 1), ("a/b.tif", "a/b.tif", None), ("a#1.tif", "a#1.tif", None), ("a#1.tif#12", "a#1.tif", 11)],
)
def test_a_page_is_told_from_its_file(name, file, page):
    assert (file_of(name), page_of(name)) == (file, page)


def test_rows_for_one_image_are_merged_and_images_of_one_name_are_not_lost(local_store: Store):
    """Two treatments of a well are one row. Of two fields with the same name from a template, one is left out with a reason."""
    plate(
        local_store, "merged", {"A01": "dmso"}, sites=1, more={"wells.csv": b"Well,Cell,Drug\nA01,u2os,taxol\nA01,u2os,dmso\n"}
    )
    sections = PLATE + 'filename = { template = "{Well}" }\n'
    files = {f"images/A01_s{site}_w1.png": png(cells((40, 40), site)) for site in (1, 2)}
    put_source(local_store, "renamed", {"wells.csv": b"Well,Cell,Drug\nA01,u2os,dmso\n", **files}, sections)
    manifests = take_in(local_store, "merged", "renamed")
    merged = rows_of(local_store, "merged")
    assert len(merged) == 1 and set(split_values(merged["compound"][0])) == {"dmso", "taxol"}
    rows, dropped = rows_of(local_store, "renamed"), dropped_of_source(local_store, "renamed")
    assert len(rows) == manifests["renamed"].counts["rows_with_images"]
    taken = {name for files in rows["files"] for name in files}
    assert taken | set(dropped) == set(files), "every file is either an image or left out with a reason"


def shuffled(text: bytes, seed: int) -> bytes:
    head, *lines = text.decode().splitlines()
    order = np.random.default_rng(seed).permutation(len(lines))
    return ("\n".join([head, *(lines[n] for n in order)]) + "\n").encode()


def test_the_order_of_a_tables_lines_does_not_matter(local_store: Store):
    wells = {f"{row}{column:02d}": f"drug {column}" for row in "ABC" for column in range(1, 5)}
    plate(local_store, "own", wells, sites=1)
    table = local_store.read("inbox/own/wells.csv") + b"A01,u2os,another\nA02,u2os,drug 0\n"
    local_store.put("inbox/own/wells.csv", table)
    take_in(local_store, "own")
    before = rows_of(local_store, "own")
    for seed in range(3):
        local_store.put("inbox/own/wells.csv", shuffled(table, seed))
        take_in(local_store, "own")
        pd.testing.assert_frame_equal(rows_of(local_store, "own"), before)


LISTED = """
[[tables]]
name = "fields"
files = ["fields.csv"]
[images]
[[channels]]
file = "{dna}"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
file = "{actin}"
name = "f_actin"
cell_visible = "actin"
[columns]
compound = { column = "Drug" }
"""


def test_images_that_a_table_lists_keep_their_names_when_lines_are_added(local_store: Store):
    """The split into training and validation depends on path and name, so neither may depend on the order of lines."""
    files = {f"{n}_{c}.png": png(cells((40, 40), 10 * n + k)) for n in range(1, 5) for k, c in enumerate(("dna", "actin"))}
    lines = [f"{n}_dna.png,{n}_actin.png,drug {n}" for n in range(1, 5)]
    for source, chosen in (("few", lines[1:3]), ("all", lines), ("turned", lines[::-1])):
        table = "dna,actin,Drug\n" + "\n".join(chosen) + "\n"
        put_source(local_store, source, {"fields.csv": table.encode(), **files}, LISTED)
    take_in(local_store, "few", "all", "turned")
    names = {
        s: dict(zip(rows["files"], rows["filename"], strict=True))
        for s in ("few", "all", "turned")
        for rows in [rows_of(local_store, s)]
    }
    assert len(set(names["all"].values())) == 4
    assert names["turned"] == names["all"] and names["few"].items() <= names["all"].items()


# Again, and changed


def test_equal_inputs_are_equal_digests_and_nothing_is_done_twice(local_store: Store, tmp_path):
    other = open_store(str(tmp_path / "other"))
    for store in (local_store, other):
        plate(store, "own", {"A01": "dmso", "A02": "taxol"})
    first = standardize_source(local_store, "own", "run 1")
    assert first.is_new and first.manifest.digest == take_in(other, "own")["own"].digest
    again = standardize_source(local_store, "own", "run 2")
    assert not again.is_new and manifest_numbers(local_store, f"{SOURCE_METADATA}/own") == [1]


@pytest.mark.parametrize("change", ["table", "image", "more", "recipe", "licence"])
def test_a_changed_source_is_a_new_manifest(local_store: Store, change):
    plate(local_store, "own", {"A01": "dmso", "A02": "taxol"})
    before = take_in(local_store, "own")["own"]
    match change:
        case "table":
            local_store.put("inbox/own/wells.csv", b"Well,Cell,Drug\nA01,u2os,dmso\nA02,hela,taxol\n")
        case "image":
            local_store.put("inbox/own/images/A01_s1_w1.png", TINY)
        case "more":
            plate(local_store, "own", {"A01": "dmso", "A02": "taxol", "B01": "taxol"})
        case _:
            toml = local_store.read("inbox/own/source.toml")
            pair = (b"Homo sapiens", b"Mus musculus") if change == "recipe" else (b"CC0-1.0", b"CC BY 4.0")
            local_store.put("inbox/own/source.toml", toml.replace(*pair))
    after = standardize_source(local_store, "own")
    assert after.is_new and after.manifest.number == 2 and after.manifest.digest != before.digest
    assert damaged_objects(local_store, before) == {}, "what was there stays until it is swept"


@pytest.mark.parametrize("moment", range(4))
def test_a_killed_run_leaves_nothing_visible_and_is_taken_up(local_store: Store, tmp_path, monkeypatch, moment):
    undisturbed = open_store(str(tmp_path / "undisturbed"))
    for store in (local_store, undisturbed):
        plate(store, "own", {"A01": "dmso"})
    with killed_after(moment, monkeypatch):
        standardize_source(local_store, "own")
    assert current_manifest(local_store, SOURCE_METADATA, "own") is None
    assert committed_partitions(local_store, SOURCE_METADATA) == []
    assert take_in(local_store, "own")["own"].digest == take_in(undisturbed, "own")["own"].digest


# Refused


def broken(store: Store, how: str) -> None:
    """Break a plate that is in the inbox."""
    toml = store.read("inbox/own/source.toml").decode()
    changed = {
        "no toml": "name = ",
        "another name": toml.replace('name = "own"', 'name = "theirs"'),
        "unknown recipe": facts_of("own") + 'recipe = "idr9999"\n',
        "unknown reader": toml.replace('files = ["wells.csv"]', 'files = ["wells.csv"]\nreader = "exec"'),
        "no such table": toml.replace("wells.csv", "plates.csv"),
        "no such column": toml.replace('column = "Drug"', 'column = "Medicine"'),
        "no such group": toml.replace('Well = "{well}"', 'Well = "{plate}"'),
        "no row left": toml.replace("images/(?P<well>", "pictures/(?P<well>"),
    }
    if how in changed:
        store.put("inbox/own/source.toml", changed[how].encode())
    elif how == "no files":
        store.delete(item.key for item in store.walk("inbox/own") if not item.key.endswith(".toml"))
    elif how == "no toml file":
        store.delete(["inbox/own/source.toml"])
    else:
        store.put("inbox/own/wells.csv", {"no table": b"\x00\x01\x02", "empty table": b"Well,Cell,Drug\n"}[how])


REFUSALS = {
    "no toml": "inbox/own/source.toml is not valid TOML",
    "another name": "says name = 'theirs', but its folder is 'own'",
    "unknown recipe": "recipe = 'idr9999'; expected one of",
    "unknown reader": "names reader.s. exec; expected one of bbbc041_json",
    "no such table": "no file matches plates.csv of table 'wells'; the files are images/A01_s1_w1.png",
    "no such column": "compound comes from 'Medicine', which is in neither the tables nor the images' pattern",
    "no such group": "'plate'",
    "no row left": "no image belongs to it",
    "no files": "has no files beside its source.toml",
    "no table": "wells.csv",
    "empty table": "own.*wells.csv|has no row left",
}


@pytest.mark.parametrize("how", REFUSALS)
@pytest.mark.parametrize("was_there", [False, True])
def test_what_is_refused_is_told_in_quarantine_until_it_is_repaired(local_store: Store, how, was_there):
    store = local_store
    plate(store, "own", {"A01": "dmso", "A02": "taxol"})
    before = take_in(store, "own")["own"] if was_there else None
    broken(store, how)
    with pytest.raises(ValueError, match=REFUSALS[how]) as found:
        standardize_source(store, "own")
    report = quarantined(store, "own")
    assert report["is_refused"] and report["rejections"] == [{"what": "source.toml", "reason": str(found.value)}]
    page = store.read("quarantine/own/report.md").decode()
    assert "stay in `inbox/own/`" in page and "materialize `cytoimagenet/source_metadata`" in page
    current = current_manifest(store, SOURCE_METADATA, "own")
    assert current == before, "what was committed before stays current"
    plate(store, "own", {"A01": "dmso", "A02": "taxol"})
    assert take_in(store, "own")["own"].counts["rows"] == 4
    assert quarantined(store, "own") is None and list(store.walk("quarantine")) == []


def test_a_source_that_is_not_there_is_told(local_store: Store):
    plate(local_store, "own", {"A01": "dmso"})
    broken(local_store, "no toml file")
    with pytest.raises(FileNotFoundError, match="inbox/own/source.toml is missing"):
        standardize_source(local_store, "own")
    assert quarantined(local_store, "own")["is_refused"]


def test_a_bug_of_ours_is_not_reported_as_bad_data(local_store: Store, monkeypatch):
    def check(rows: pd.DataFrame, source: str) -> None:
        raise ValueError("operands could not be broadcast together")

    plate(local_store, "own", {"A01": "dmso"})
    monkeypatch.setattr("cem_assets.cytoimagenet.sources.stage.check_metadata", check)
    with pytest.raises(ValueError, match="operands") as found:
        standardize_source(local_store, "own")
    assert fault_of(found.value) == Fault.bug and quarantined(local_store, "own") is None
    assert current_manifest(local_store, SOURCE_METADATA, "own") is None


@pytest.mark.parametrize("name", ["..", "../own", "", "a//b"])
def test_keys_that_are_no_names_leave_no_report(local_store: Store, name):
    with pytest.raises(ValueError, match="is not allowed"):
        standardize_source(local_store, name)
    assert list(local_store.walk("quarantine")) == []


def test_names_that_escape_are_refused_and_the_rest_goes_on(s3_store: Store):
    store = s3_store
    plate(store, "own", {"A01": "dmso"}, sites=1)
    base = store.url.removeprefix("s3://")
    for name in ("images/A01\\..\\..\\A01_s2_w1.png", "images/A01_s3\x1b_w1.png"):
        store.fs.pipe_file(f"{base}/inbox/own/{name}", TINY)
    manifest = take_in(store, "own")["own"]
    assert manifest.counts["rows"] == 1 and manifest.counts["dropped"] == 2
    report = quarantined(store, "own")
    assert not report["is_refused"] and all("Rename it." in item["reason"] for item in report["rejections"])
    assert "The rest of the dataset went on." in store.read("quarantine/own/report.md").decode()
    for name in ("images/A01\\..\\..\\A01_s2_w1.png", "images/A01_s3\x1b_w1.png"):
        store.fs.rm_file(f"{base}/inbox/own/{name}")
    take_in(store, "own")
    assert quarantined(store, "own") is None


def test_every_kind_of_column_obeys_the_schema_whatever_cells_say(local_store: Store):
    """Cells with separators, blanks, capitals, very long text and markup become plain values."""
    drugs = ["  Taxol  ", "a|B| |a", "NA", "<script>x</script>", "x" * 5000, "naïve Größe", "|", "=1+1"]
    wells = [f"A{number:02d}" for number in range(1, len(drugs) + 1)]
    table = "Well,Cell,Drug\n" + "".join(f'{well},U-2 OS,"{drug}"\n' for well, drug in zip(wells, drugs, strict=True))
    plate(local_store, "own", dict.fromkeys(wells, "x"), sites=1, more={"wells.csv": table.encode()}, shape=(40, 40))
    take_in(local_store, "own")
    rows = rows_of(local_store, "own")
    assert rows["compound"].tolist() == [
        "taxol", "a|b", "", "<script>x</script>", "x" * 200, "naïve größe", "", "=1+1",
    ]  # fmt: skip
    assert set(rows["cell_type"]) == {"u2os"}
    assert all(rows[column].map(lambda cell: cell == cell.lower()).all() for column in LABEL_COLUMNS)


def test_a_source_without_tables_is_its_images(local_store: Store, test_data):
    folder = test_data / "fluorescence/stardist"
    put_source(local_store, "own", {path.name: path for path in folder.glob("img*.tif")}, EVERY_IMAGE)
    take_in(local_store, "own")
    rows = rows_of(local_store, "own")
    assert rows["filename"].tolist() == ["img2d.tif", "img3d.tif"] and rows["path"].tolist() == ["own", "own"]
    assert rows["microscopy"].tolist() == ["", ""]
