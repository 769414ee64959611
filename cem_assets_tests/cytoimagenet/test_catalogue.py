"""The shipped catalogue: rows, recipes and terms, patterns on documented file names, and recipes on the real tables."""

import json
import re
import time
import tomllib
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.catalog.microscopy import microscopy_sources, recipe_text, terms
from cem_assets.cytoimagenet.columns import LABEL_COLUMNS, split_values
from cem_assets.cytoimagenet.held_out.guard import guarded_set, load_rules
from cem_assets.cytoimagenet.sources.recipe import Recipe, SourceFacts, parse_recipe, parse_toml
from cem_assets.cytoimagenet.sources.schema import check_metadata
from cem_assets.cytoimagenet.sources.special_tables import MAX_JSON_BYTES, SPECIAL_READERS, bbbc041_json
from cem_assets.cytoimagenet.sources.standardize import Standardized, standardize
from cem_assets.formats.tables.metadata import read_metadata_table

DOCS = Path(__file__).parents[2] / "docs/microscopy_sources.md"
NAMES = sorted(microscopy_sources())

# The 40 sources in CytoImageNet's list, named by their links.
SEED = {
    "Broad Bioimage Benchmark Collection": (
        "bbbc005 bbbc006 bbbc010 bbbc011 bbbc012 bbbc013 bbbc014 bbbc015 bbbc017 bbbc020 bbbc022 bbbc025 bbbc026 bbbc038 "
        "bbbc041 bbbc045 bbbc048 bbbc051"
    ),
    "Cell Image Library": "cil_kinome",
    "Image Data Resource": (
        "idr0003 idr0009 idr0016 idr0017 idr0021 idr0037 idr0041 idr0067 idr0072 idr0080 idr0081 idr0088 idr0093"
    ),
    "Kaggle": "kag_cell_cycle kag_hpa kag_hpa_single kag_leukemia",
    "Recursion": "rec_rxrx1 rec_rxrx19a rec_rxrx19b rec_rxrx2",
}
MORE = {"idr0013", "idr0035", "idr0036", "jump_cp", "bbbc021"}

# Source, documented or observed path, and the groups that the pattern must find.
EXAMPLES = [
    ("bbbc005", "BBBC005_v1_images/SIMCEPImages_A14_C57_F1_s21_w1.TIF", {"well": "A14", "blur": "1", "channel": "1"}),
    (
        "bbbc006",
        "BBBC006_v1_images_z_16/mcf-z-stacks-03212011_h15_s1_w2c4ea9a91-6aa9-4dd0-a084-90a3d3c95c4e.tif",
        {"plane": "16", "well": "h15", "site": "1", "channel": "2"},
    ),
    (
        "bbbc010",
        "BBBC010_v2_images/1649_1109_0003_Amp5-1_B_20070424_C01_w1_10E01AFB-34C4-416E-A9D3-51B90AB53728.tif",
        {"row": "C", "column": "01", "channel": "1"},
    ),
    ("bbbc013", "BBBC013_v1_images_bmp/Channel1-96-H-12.BMP", {"channel": "1", "row": "H", "column": "12"}),
    ("bbbc013", "Channel2-01-A-01.tif", {"channel": "2", "row": "A", "column": "01"}),
    ("bbbc014", "BBBC014_v1_images/Channel 1-29-C-05-00.Bmp", {"channel": "1", "row": "C", "column": "05"}),
    ("bbbc015", "BBBC015_v1_images/82_1_0.JPG", {"well": "82", "field": "1", "channel": "0"}),
    (
        "bbbc017",
        "NIRHTa-001/AS_09125_050116110001_A01f00d2.DIB",
        {"plate": "001", "well": "A01", "field": "00", "channel": "2"},
    ),
    ("bbbc020", "BBBC020_v1_images/jw-1h 1/jw-1h 1_c5.TIF", {"image": "jw-1h 1", "channel": "5"}),
    (
        "bbbc025",
        "37983_Mito/cellpaintingfollowup-reimage_f08_s8_w50c9e4dbf-b710-488a-94f8-fb769a829474.tif",
        {"plate": "37983", "well": "f08", "site": "8", "channel": "Mito"},
    ),
    (
        "bbbc025",
        "37983_ERSytoBleed/cellpaintingfollowup-reimage_f08_s8_w30c9e4dbf.tif",
        {"channel": "ERSytoBleed"},
    ),
    (
        "bbbc026",
        "ADSASS092408-GHAD2-D6-20x_M13_s9_w1A6744A2F-9F54-4857-A50E-3C685A6461F1.png",
        {"well": "M13", "site": "9"},
    ),
    ("bbbc038", f"stage1_train/{'0a' * 32}/images/{'0a' * 32}.png", {"image": "0a" * 32}),
    ("bbbc045", "Stained_Montages/Donor 1/Neutrophils/12_Ch5.tif", {"kind": "Neutrophils", "montage": "12", "channel": "5"}),
    ("bbbc048", "CellCycle/Telophase/21_Ch3.ome.jpg", {"phase": "Telophase", "cell": "21", "channel": "3"}),
    (
        "bbbc051",
        "CD45.1/All_3D/object_7013_3385__3548__18_1.tif",
        {"marker": "CD45.1", "object": "object_7013_3385__3548__18_1"},
    ),
    ("cil_kinome", "53547.tif", {"image": "53547"}),
    (
        "idr0003",
        "201301120/Images/DTT/p10/--W00001--P00002--Z00000--T00000--GFP.tif",
        {"condition": "DTT", "plate": "p10", "well": "1", "field": "2", "channel": "GFP"},
    ),
    (
        "idr0009",
        "VSVG/0001-03--2005-08-01/data/--W00384--P00001--Z00000--T00000--nucleus-dapi.tif",
        {"plate": "0001-03--2005-08-01", "well": "384", "channel": "nucleus-dapi"},
    ),
    (
        "idr0013",
        "LTValidMitosisSon384Plate07_06--ex2009_04_08--sp2009_01_30--tt17--c4/hdf5/00010_01_t005.tif",
        {"plate": "LTValidMitosisSon384Plate07_06", "well": "10", "position": "01"},
    ),
    (
        "idr0016",
        "24277-ERSyto/cdp2bioactives_a01_s1_w258f6ca69-31e9-4a86-8e44-8c5ff1e0daa1.tif",
        {"plate": "24277", "channel": "ERSyto", "row": "a", "column": "01", "field": "1"},
    ),
    (
        "idr0017",
        "2011-11-17_X-Man_LOPAC_X01_LP_S01_1/A - 1(fld 1 wv DAPI - DAPI).tif",
        {"folder": "2011-11-17_X-Man_LOPAC_X01_LP_S01_1", "row": "A", "column": "1", "channel": "DAPI"},
    ),
    ("idr0021", "CDK5RAP2-C/x/Centrin_PCNT_SIR_PRJ.dv.tif", {"image": "Centrin_PCNT_SIR_PRJ.dv"}),
    ("idr0021", "CDK5RAP2-C/x/ALX_SIR_PRJ_615_525_xx.tif", {"image": "ALX_SIR_PRJ_615_525_xx.tif"}),
    (
        "idr0035",
        "Week5_29301/Week5_130707_F07_s4_w14630311A-B986-491A-9BF5-7927CEA8500B.tif",
        {"plate": "Week5_29301", "row": "F", "column": "07", "field": "4", "channel": "1"},
    ),
    ("idr0035", "Week4/Week4_27481/G10_s1_w43CD51CBC-2370.tif", {"plate": "Week4_27481", "row": "G", "channel": "4"}),
    (
        "idr0036",
        "20585-ERSytoBleed/IXMtest_A01_s1_w3FD54227A-6BE4-460B-8E2C-54B8709F6E33.tif",
        {"plate": "20585", "channel": "ERSytoBleed", "row": "A", "column": "01", "field": "1"},
    ),
    (
        "idr0037",
        "images/2014-05-28_Experiment 5 HipSci_OC__2014-05-28T15_07_33-Measurement1/Images/r02c03f01p01-ch4sk1fk1fl1.tiff",
        {"plate": "2014-05-28_Experiment 5 HipSci_OC", "measurement": "Measurement1", "row": "02", "channel": "4"},
    ),
    (
        "idr0041",
        "140411_KIF11_MitoSys1/cell0008_R0007/rawtif/TR1_W0001_P0002_T0001.tif",
        {"set": "140411_KIF11_MitoSys1", "cell": "cell0008_R0007", "frame": "T0001"},
    ),
    (
        "idr0072",
        "UpLoadtoIDR/VAMP1_DEG_GREEN/20120523/Meas_01/B03-1-2.tif",
        {"plate": "VAMP1_DEG_GREEN/20120523/Meas_01", "row": "B", "column": "3", "channel": "2"},
    ),
    (
        "idr0080",
        "SQ00014610__2016-06-16T00_38_35-Measurement2/Images/A10-f01-ch1.tiff",
        {"plate": "SQ00014610", "column": "10"},
    ),
    (
        "idr0081",
        "Data_UZH/Screen/BSF018292-1A/TimePoint_1/BSF018292-1A_P24_w2.TIF",
        {"plate": "BSF018292-1A", "row": "P", "column": "24", "channel": "2"},
    ),
    (
        "idr0088",
        "p170915PPS073/PpsL05HepG2TubARelA_PPS073_20170916_150825/110000251230/110000251230_B02_T0001F001L01A03Z01C03.tif",
        {"location": "p170915PPS073/PpsL05HepG2TubARelA_PPS073_20170916_150825", "row": "B", "column": "02", "channel": "03"},
    ),
    (
        "idr0093",
        "01_batch/002/plate_C11_T0001F009L01A01Z01C04.tif",
        {"plate": "002", "row": "C", "column": "11", "field": "009", "channel": "04"},
    ),
    (
        "jump_cp",
        "source_4/images/2021_04_26_Batch1/images/BR00117035__2021-05-02T16_02_51-Measurement1/A01-1-DNA.tif",
        {"source": "source_4", "plate": "BR00117035", "well": "A01", "channel": "DNA"},
    ),
    ("kag_cell_cycle", "nematode cells/nematode cells/mitosis/IMG_1715-1.jpg", {"phase": "mitosis", "image": "IMG_1715-1"}),
    (
        "kag_hpa",
        "train/ff2943c0-bbbe-11e8-b2ba-ac1f6b6435d0_green.png",
        {"image": "ff2943c0-bbbe-11e8-b2ba-ac1f6b6435d0", "channel": "green"},
    ),
    (
        "kag_hpa_single",
        "train/8da2b354-bbae-11e8-b2ba-ac1f6b6435d0_yellow.png",
        {"image": "8da2b354-bbae-11e8-b2ba-ac1f6b6435d0", "channel": "yellow"},
    ),
    ("kag_leukemia", "C-NMC_Leukemia/training_data/fold_0/all/UID_11_10_1_all.bmp", {"image": "UID_11_10_1", "label": "all"}),
    ("kag_leukemia", "C-NMC_test_final_phase_data/1107.bmp", {"image": "1107", "label": None}),
    (
        "rec_rxrx1",
        "rxrx1/images/HUVEC-1/Plate1/M23_s2_w3.png",
        {"experiment": "HUVEC-1", "plate": "1", "well": "M23", "site": "2", "channel": "3"},
    ),
    ("rec_rxrx19a", "RxRx19a/images/HRCE-1/Plate12/AA02_s2_w5.png", {"plate": "12", "well": "AA02", "channel": "5"}),
    ("rec_rxrx19b", "rxrx19b/images/HUVEC-1/Plate1/AA02_s1_w3.png", {"well": "AA02", "site": "1", "channel": "3"}),
    ("rec_rxrx2", "rxrx2/images/HUVEC-1/Plate1/AA02_s2_w6.png", {"experiment": "HUVEC-1", "channel": "6"}),
]
# Files beside the images, which the patterns must not match.
NOT_IMAGES = [
    ("bbbc005", "BBBC005_v1_ground_truth/SIMCEPImages_A14_C57_F1_s21_w1.TIF"),
    ("bbbc010", "BBBC010_v1_foreground/A01_binary.png"),
    ("bbbc020", "BBBC020_v1_images/jw-1h 1/jw-1h 1_(c1+c5).TIF"),
    ("bbbc020", "BBC020_v1_outlines_nuclei/jw-15min 5_c5_43.TIF"),
    ("bbbc038", f"stage1_train/{'0a' * 32}/masks/{'0b' * 32}.png"),
    ("idr0081", "BSF018292-1A/TimePoint_1/BSF018292-1A_P24_w2_thumb.TIF"),
    ("rec_rxrx19a", "RxRx19a/images/HRCE-1/Plate12/AA02_s2_w6.png"),
]


def recipe_of(name: str) -> Recipe:
    return parse_recipe(parse_toml(recipe_text(name), name), name)


def facts_of(name: str) -> SourceFacts:
    row = microscopy_sources()[name]
    fields = {field: getattr(row, field) for field in SourceFacts.model_fields}
    return SourceFacts.model_validate(fields)


def image_pattern(name: str) -> re.Pattern[str]:
    images = recipe_of(name).images
    assert images is not None
    return re.compile(images.pattern)


def run(name: str, tables: dict[str, pd.DataFrame], paths: list[str]) -> Standardized:
    found = standardize(recipe_of(name), facts_of(name), tables, paths, terms())
    check_metadata(found.rows, name)
    return found


def counts(cells: pd.Series) -> dict[str, int]:
    return dict(Counter(value for cell in cells for value in split_values(cell)))


def test_every_source_of_the_list_is_there_and_in_its_database():
    rows = microscopy_sources()
    assert {name: len(keys.split()) for name, keys in SEED.items()} == {
        "Broad Bioimage Benchmark Collection": 18,
        "Cell Image Library": 1,
        "Image Data Resource": 13,
        "Kaggle": 4,
        "Recursion": 4,
    }
    expected = {key: database for database, keys in SEED.items() for key in keys.split()}
    assert {key: rows[key].database for key in expected} == expected
    assert set(rows) == set(expected) | MORE


@pytest.mark.parametrize("name", NAMES)
def test_rows_say_what_a_source_needs(name):
    row = microscopy_sources()[name]
    assert re.fullmatch(r"[a-z0-9_-]+", row.name)
    assert not row.is_enabled
    assert row.role == ("test" if name in {"bbbc021", "idr0035"} else "training")
    assert row.tried in {"tables and images", "tables", "images", "documentation"}
    assert all((row.title, row.dir_name, row.citation, row.note))
    assert all(url.startswith(("http://", "https://")) for url in (row.source_url, row.images_url, *row.tables_urls))
    assert facts_of(name).licence == row.licence


@pytest.mark.parametrize("name", NAMES)
def test_recipes_parse_and_say_what_they_were_tried_on(name):
    recipe = recipe_of(name)
    assert {table.reader for table in recipe.tables} - {""} <= set(SPECIAL_READERS)
    head = recipe_text(name).decode().splitlines()
    comment = [line for line in head[:4] if line.startswith("# ")]
    assert len(comment) >= 3
    assert any(line.startswith("# Tried: ") for line in comment)
    assert "organism" in recipe.columns
    if "assumption" in microscopy_sources()[name].note:
        assert "ASSUMED" in "\n".join(comment)
        assert recipe.images is not None
        assert recipe.images.is_required


def test_every_recipe_of_the_folder_has_a_row():
    folder = Path(__file__).parents[2] / "cem_assets/catalog/microscopy"
    assert sorted(path.stem for path in folder.glob("*.toml")) == NAMES


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(KeyError, match="idr0036"):
        recipe_text("../idr0036")


def test_indices_are_named_as_the_published_ones():
    """The short name is the key, as in `bbbc041-14631`."""
    assert {row.name: row.dir_name for row in microscopy_sources().values()} == {name: name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_benchmarks_are_guarded_and_nothing_else(name):
    row = microscopy_sources()[name]
    texts = (row.name, row.database, row.title, row.dir_name, row.source_url)
    assert guarded_set(texts, load_rules()) == ("bbbc021" if row.role == "test" else None)


@pytest.mark.parametrize(("name", "path", "groups"), EXAMPLES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(EXAMPLES)])
def test_patterns_match_documented_names(name, path, groups):
    match = image_pattern(name).search(path)
    assert match is not None
    found = match.groupdict()
    assert {key: found[key] for key in groups} == groups
    keys = {channel.key.casefold() for channel in recipe_of(name).channels}
    assert (found.get("channel") or "").casefold() in keys


@pytest.mark.parametrize(("name", "path"), NOT_IMAGES)
def test_patterns_leave_masks_and_merged_pictures_out(name, path):
    assert image_pattern(name).search(path) is None


def test_every_pattern_with_channels_has_an_example():
    shown = {name for name, *_ in EXAMPLES}
    lacking = {name for name in NAMES if (images := recipe_of(name).images) and images.pattern and name not in shown}
    assert lacking == {"bbbc011", "bbbc012"}  # the names of their files are not documented


@pytest.mark.parametrize("name", sorted({name for name, *_ in EXAMPLES}))
def test_patterns_do_not_stall_on_long_paths(name):
    """Anybody can put files into the inbox; stores allow paths of about 1,000 characters."""
    pattern = image_pattern(name)
    example = next(path for other, path, _ in EXAMPLES if other == name)
    start = time.process_time()
    for path in (
        "a/" * 500,
        "_" * 1000,
        "1" * 1000,
        "A01_" * 250,
        "-" * 1000,
        f"{example}/"[:100] * 10,
        f"{example} "[-50:] * 20,
    ):
        pattern.search(f"{path}x")
    assert time.process_time() - start < 5


def test_terms_are_lower_case_and_final():
    assert set(terms()) <= {*LABEL_COLUMNS, "microscopy"}
    for column, replacements in terms().items():
        for value, term in replacements.items():
            assert value == " ".join(value.lower().split()), (column, value)
            assert term == term.lower()
            assert split_values(term), (column, value)
            assert all(replacements.get(part, part) == part for part in split_values(term)), (column, value)


@pytest.mark.parametrize(
    ("column", "value", "term"),
    [
        ("cell_type", "neutrophil", "white blood cell"),
        ("cell_type", "u-2 os", "u2os"),
        ("cell_visible", "gpcr", "cell membrane"),
        ("cell_visible", "nuclei", "nucleus"),
        ("organism", "saccharomyces cerevisiae", "yeast"),
        ("compound", "dimethyl sulfoxide", "dmso"),
        ("microscopy", "confocal (?)", "confocal"),
    ],
)
def test_terms_merge_what_sources_call_otherwise(column, value, term):
    assert terms()[column][value] == term


def test_terms_cannot_be_changed_by_their_users():
    terms()["organism"].clear()
    assert terms()["organism"]["homo sapiens"] == "human"


@pytest.mark.parametrize("name", NAMES)
def test_values_written_in_recipes_are_terms_already(name):
    for column, specs in recipe_of(name).columns.items():
        known = terms().get(column, {})
        for spec in specs:
            for text in (spec.value, *spec.map.values(), *spec.flags.values()):
                assert all(known.get(value, value) == value for value in split_values(text.lower())), (name, column, text)
    for channel in recipe_of(name).channels:
        known = terms()["cell_visible"]
        assert all(known.get(value, value) == value for value in split_values(channel.cell_visible)), (name, channel)


def test_bbbc041_json_gives_a_row_per_image():
    records = [
        {
            "image": {"checksum": "0", "pathname": "/images/a.png", "shape": {"r": 1200, "c": 1600, "channels": 3}},
            "objects": [
                {"bounding_box": {"minimum": {"r": 1, "c": 2}, "maximum": {"r": 3, "c": 4}}, "category": "red blood cell"},
                {"bounding_box": {"minimum": {"r": 1, "c": 2}, "maximum": {"r": 3, "c": 4}}, "category": "ring"},
                {"category": "red blood cell"},
            ],
        },
        {"image": {"pathname": "/images/b.jpg"}, "objects": [{"category": "leukocyte"}]},
        {"image": {"pathname": "/images/c.jpg"}, "objects": []},
    ]
    table = bbbc041_json(json.dumps(records).encode())
    assert table.to_dict("list") == {
        "pathname": ["/images/a.png", "/images/b.jpg", "/images/c.jpg"],
        "categories": ["red blood cell|ring", "leukocyte", ""],
    }
    found = run("bbbc041", {"images": table}, ["malaria/images/a.png", "malaria/images/b.jpg", "malaria/images/d.jpg"])
    assert found.rows["cell_type"].tolist() == ["red blood cell", "white blood cell"]
    assert found.rows["phenotype"].tolist() == ["infected (rings)", ""]
    assert found.report["unmapped"] == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"image": 1}', "dict; expected a list"),
        (b"[1, 2, 3]", r"image 1: it has no image.pathname; image 2"),
        (b'[{"image": {"pathname": 7}, "objects": []}]', "image.pathname is 7; expected text"),
        (b'[{"image": {"pathname": " "}, "objects": []}]', "expected text"),
        (b'[{"image": {"pathname": "a"}, "objects": {"a": 1}}]', "objects are dict; expected a list"),
        (b'[{"image": {"pathname": "a"}, "objects": [{"category": "a|b"}]}]', "without '|'"),
        (b'[{"image": {"pathname": "a"}, "objects": ["ring"]}]', "has no category"),
        (b"[" + b"1," * 50 + b"1]", "and 46 more"),
    ],
)
def test_bbbc041_json_of_another_form_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        bbbc041_json(content)


def test_bbbc041_json_of_huge_size_is_refused_before_it_is_parsed():
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_JSON_BYTES + 1

    with pytest.raises(ValueError, match="bytes; expected at most"):
        bbbc041_json(Huge(b"[]"))


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "objects", "pathname", "category"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_ANY_JSON)
def test_bbbc041_json_refuses_or_reads_whatever_json_says(value):
    try:
        table = bbbc041_json(json.dumps(value).encode())
    except ValueError:
        return
    assert isinstance(value, list)
    assert len(table) == len(value)
    assert list(table.columns) == ["pathname", "categories"]


def _well(well: str) -> str:
    return f"{well[0]}{int(well[1:]):02d}"


def test_idr0013_on_its_own_tables(test_data):
    folder = test_data / "metadata/idr0013-neumann-mitocheck"
    wells = read_metadata_table(folder / "idr0013-screenB-library.txt").frame
    results = read_metadata_table(folder / "idr0013-screenB-processed.txt").frame
    paths = [
        f"{plate}--ex2009--sp2009--tt17--c4/hdf5/{int(number):05d}_01.tif"
        for plate, number in zip(wells["Plate"], wells["Well Number"], strict=True)
    ]
    found = run("idr0013", {"wells": wells, "results": results}, paths)
    kept = wells[(wells["Control Type"] != "empty well") & (wells["Quality Control"] == "TRUE")]
    assert len(found.rows) == len(kept) == 9597
    assert found.report["dropped"]["an empty well"] == 584
    assert set(found.rows["organism"]) == {"human"}
    assert set(found.rows["cell_type"]) == {"hela"}
    assert set(found.rows["cell_visible"]) == {"nucleus"}
    assert counts(found.rows["sirna"])["s21911"] == (kept["siRNA Identifier"] == "s21911").sum()
    assert counts(found.rows["gene"])["incenp targeted"] == (kept["Gene Symbol"] == "INCENP").sum()
    # The columns of the results tell it without the recipe.
    seen = results[results["Plate_Well"].isin(kept["Plate_Well"])]
    assert counts(found.rows["phenotype"])["polylobed"] == (seen["Phenotype 7"] == "polylobed (automatic)").sum()
    assert len(counts(found.rows["phenotype"])) == 9


def test_idr0035_on_its_own_table(test_data):
    wells = read_metadata_table(test_data / "metadata/idr0035-caie-drugresponse/idr0035-screenA-annotation.csv").frame
    paths = [
        f"{plate}/x_{_well(well)}_s{site}_w{channel}0A.tif"
        for plate, well in zip(wells["Plate"], wells["Well"], strict=True)
        for site in (1, 2)
        for channel in (1, 2, 4)
    ]
    rows = run("idr0035", {"wells": wells}, paths).rows
    assert len(rows) == 2 * len(wells) == 6600
    assert set(rows["cell_visible"]) == {"nucleus|microtubules|actin"}
    assert set(rows["cell_type"]) == {"mcf7"}
    compounds, mechanisms = counts(rows["compound"]), counts(rows["phenotype"])
    assert (compounds["dmso"], compounds["taxol"]) == (2 * 330, 2 * 354)
    assert mechanisms["microtubule stabilizers"] == 2 * 357
    assert "dmso" not in mechanisms
    rules = load_rules()
    assert {guarded_set(texts, rules) for texts in rows[["path", "dir_name"]].itertuples(index=False)} == {"bbbc021"}


def test_idr0036_on_its_own_table(test_data):
    wells = read_metadata_table(test_data / "metadata/idr0036-gustafsdottir-cellpainting/idr0036-screenA-library.txt").frame
    channels = ("ERSyto", "ERSytoBleed", "Hoechst", "Mito", "Ph_golgi")
    paths = [
        f"{plate}-{channel}/IXMtest_{_well(well)}_s1_w{number}0A.tif"
        for plate, well in zip(wells["Plate"], wells["Well"], strict=True)
        for number, channel in enumerate(channels, 1)
    ]
    found = run("idr0036", {"wells": wells}, paths)
    assert found.dropped.empty
    assert len(found.rows) == len(wells) == 7680
    assert {len(files) for files in found.rows["files"]} == {5}
    assert set(found.rows["cell_type"]) == {"u2os"}
    seen = counts(found.rows["compound"])
    assert seen["dmso"] == 1280
    assert seen["estradiol"] == (wells["Compound Name"] == "ESTRADIOL").sum()


def test_bbbc021_on_its_own_tables(test_data):
    folder = test_data / "metadata/bbbc021"
    fields = read_metadata_table(folder / "BBBC021_v1_image.csv.gz").frame
    mechanisms = read_metadata_table(folder / "BBBC021_v1_moa_CR_line_ends.csv").frame
    stains = ("DAPI", "Tubulin", "Actin")
    paths = [
        f"bbbc021/{folder}/{name}"
        for stain in stains
        for folder, name in zip(fields[f"Image_PathName_{stain}"], fields[f"Image_FileName_{stain}"], strict=True)
    ]
    rows = run("bbbc021", {"fields": fields, "mechanisms": mechanisms}, paths).rows
    assert len(rows) == len(fields) == 13200
    assert {len(files) for files in rows["files"]} == {3}
    told = fields.merge(
        mechanisms.assign(dose=mechanisms["concentration"].astype(float)),
        left_on=["Image_Metadata_Compound", fields["Image_Metadata_Concentration"].astype(float)],
        right_on=["compound", "dose"],
    )
    expected = told["moa"].str.lower().value_counts().drop("dmso").to_dict()
    assert counts(rows["phenotype"]) == expected
    assert counts(rows["compound"])["dmso"] == 1320


def test_jump_cp_on_some_plates_of_its_tables(test_data):
    folder = test_data / "metadata/jump_cp"
    files = {"plates": "plate", "compounds": "compound_source", "orf": "orf", "crispr": "crispr"}
    tables = {name: read_metadata_table(folder / f"{file}.csv.gz").frame for name, file in files.items()}
    wells = read_metadata_table(folder / "well.csv.gz").frame
    kinds = tables["plates"].drop_duplicates("Metadata_PlateType").set_index("Metadata_PlateType")["Metadata_Plate"]
    orf_plates = set(tables["plates"].loc[tables["plates"]["Metadata_PlateType"] == "ORF", "Metadata_Plate"].iloc[:3])
    wells = wells[wells["Metadata_Plate"].isin({kinds["COMPOUND"], kinds["TARGET2"]} | orf_plates)]
    batches = dict(zip(tables["plates"]["Metadata_Plate"], tables["plates"]["Metadata_Batch"], strict=True))
    paths = [
        f"{source}/images/{batches[plate]}/images/{plate}__2021/{well}-1-{channel}.tif"
        for source, plate, well in zip(wells["Metadata_Source"], wells["Metadata_Plate"], wells["Metadata_Well"], strict=True)
        for channel in ("DNA", "ER", "RNA", "AGP", "Mito")
    ]
    found = run("jump_cp", {"wells": wells, **tables}, paths)
    is_empty = wells["Metadata_JCP2022"] == "JCP2022_999999"
    assert len(found.rows) == (~is_empty).sum() > 1000
    assert counts(found.rows["compound"])["dmso"] == (wells["Metadata_JCP2022"] == "JCP2022_033924").sum()
    symbols = dict(zip(tables["orf"]["Metadata_JCP2022"], tables["orf"]["Metadata_Symbol"], strict=True))
    controls = {"BFP", "HcRed", "LUCIFERASE", "LacZ", "eGFP"}
    expected = Counter(
        f"{symbols[key].lower()} targeted"
        for key in wells["Metadata_JCP2022"]
        if symbols.get(key, "NA") not in controls | {"NA"}
    )
    assert counts(found.rows["gene"]) == expected
    assert not any(value.startswith("jcp2022_9") for value in counts(found.rows["compound"]))


def test_bbbc013_on_its_own_images(test_data):
    folder = test_data / "fluorescence/bbbc013_sbs"
    found = run("bbbc013", {}, sorted(path.name for path in folder.glob("*.tif")))
    assert found.rows["filename"].tolist() == [f"Channel2-{n:02d}-A-{n:02d}.tif" for n in (1, 2, 3, 5, 8, 12)]
    assert set(found.rows["channels"]) == {"f_nucleus"}


def test_bbbc038_takes_images_and_leaves_masks(test_data):
    folder = test_data / "fluorescence/dsb2018_bbbc038"
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    found = run("bbbc038", {}, paths)
    assert sorted(name for files in found.rows["files"] for name in files) == [path for path in paths if "/images/" in path]
    assert found.report["dropped"] == {
        "its path does not match the recipe's pattern of images": sum("/masks/" in path for path in paths)
    }


def test_brightfield_and_fluorescence_of_a_field_are_two_images():
    start = "1649_1109_0003_Amp5-1_B_20070424_C13"
    rows = run("bbbc010", {}, [f"{start}_w1_0A.tif", f"{start}_w2_0B.tif"]).rows
    assert rows[["microscopy", "cell_visible", "phenotype"]].values.tolist() == [
        ["fluorescence", "intestine", "dead"],
        ["brightfield", "", "dead"],
    ]


def test_labels_of_leukemia_follow_the_references_own_table(test_data):
    table = pd.read_csv(test_data / "metadata/cytoimagenet_history/kag_leukemia_metadata.csv", dtype=str, keep_default_na=False)
    rows = run("kag_leukemia", {}, [f"C-NMC/{name}" for name in table["filename"]]).rows
    told = dict(zip(table["filename"], table["phenotype"], strict=True))
    labelled = rows[rows["phenotype"] != ""]
    assert len(labelled) == 7597 + 3583
    assert labelled["phenotype"].tolist() == [told[name] for name in labelled["filename"]]
    assert set(rows["cell_type"]) == {"red blood cell|white blood cell"}


HISTORY = ("bbbc005", "bbbc006", "bbbc013", "bbbc014", "bbbc039", "kag_leukemia")


@pytest.mark.parametrize("name", HISTORY)
def test_history_tables_become_standard_rows(name, test_data):
    text = (Path(__file__).parent / "recipes/history.toml").read_bytes()
    recipe = parse_recipe(parse_toml(text, "history.toml"), "history.toml")
    table = read_metadata_table(test_data / f"metadata/cytoimagenet_history/{name}_metadata.csv").frame
    rows = standardize(recipe, SourceFacts(name=name, licence="see the source"), {"images": table}, [], terms()).rows
    check_metadata(rows, name)
    assert len(rows) == len(table)
    assert set(zip(rows["path"], rows["filename"], strict=True)) == set(zip(table["path"], table["filename"], strict=True))
    assert set(rows["organism"]) == {"human"}
    assert set(rows["cell_type"]) <= {"u2os", "mcf7|a549", "red blood cell|white blood cell"}
    assert set(rows["cell_visible"]) <= {"nucleus", "cell body", ""}
    assert set(rows["microscopy"]) <= {"fluorescence", "confocal", "brightfield"}


@pytest.mark.parametrize("name", ["bbbc006", "bbbc013", "bbbc014"])
def test_recipes_find_every_image_of_the_references_own_list(name, test_data):
    table = pd.read_csv(test_data / f"metadata/cytoimagenet_history/{name}_metadata.csv", dtype=str, keep_default_na=False)
    paths = [f"{Path(folder).name}/{file}" for folder, file in zip(table["path"], table["filename"], strict=True)]
    found = run(name, {}, paths)
    assert found.dropped.empty
    assert len(found.rows) == len(paths) / 2


def test_the_guide_lists_every_source_as_the_catalogue_does():
    lines = {line.split("](")[0][3:]: line for line in DOCS.read_text().splitlines() if line.startswith("| [")}
    assert sorted(lines) == NAMES
    for name, row in microscopy_sources().items():
        assert lines[name] == f"| [{name}]({row.source_url}) | {row.title} | {row.role} | {row.tried} | {row.note} |"


def test_the_guides_examples_are_recipes():
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    whole = [tomllib.loads(block) for block in blocks if 'name = "my_screen"' in block]
    assert len(whole) == 1
    facts = {key: whole[0].pop(key) for key in list(whole[0]) if key in SourceFacts.model_fields}
    assert SourceFacts.model_validate(facts).name == "my_screen"
    assert parse_recipe(whole[0], "the guide").channels[1].microscopy == "brightfield"
    columns = next(block for block in blocks if block.startswith("organism ="))
    table = {"tables": [{"name": "wells", "files": ["wells.csv"]}], "columns": tomllib.loads(columns)}
    assert len(parse_recipe(table, "the guide").columns) == len(tomllib.loads(columns))
