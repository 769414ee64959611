"""Test images are recognised by name and by content; images that only look like them are not held back."""

import csv
import gzip
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from cem_assets.cytoimagenet.held_out.guard import (
    ORIENTATIONS,
    FingerprintIndex,
    GuardParams,
    fingerprint,
    fingerprint_orientations,
    guarded_set,
    guarded_texts,
    load_rules,
    parse_rules,
    turned,
)
from cem_assets.errors import DataError
from cem_assets.imaging.dhash import imagehash_dhash

# By name


@pytest.mark.parametrize(
    ("text", "test_set"),
    [
        ("bbbc021", "bbbc021"),
        ("Broad Bioimage Benchmark Collection BBBC021v1", "bbbc021"),
        ("images/BBBC021_v1_images_Week1_22123/B02_s1_w1.tif", "bbbc021"),
        ("BBBC-021", "bbbc021"),
        ("s3://lab/copy_of_bbbc021/plates", "bbbc021"),
        ("Week10_40111", "bbbc021"),
        ("/data/week4/week4_27481/G10_s1_w1.tif", "bbbc021"),
        ("idr0035-caie-drugresponse", "bbbc021"),
        ("IDR 0035", "bbbc021"),
        ("idr0035", "bbbc021"),
        ("Caie DrugResponse screenA", "bbbc021"),
        ("COOS-7", "coos7"),
        ("data/coos7/test3.hdf5", "coos7"),
        ("The Cells Out Of Sample (COOS) dataset", "coos7"),
        ("cells_out_of_sample", "coos7"),
        ("CYCLoPs", "cyclops"),
        ("yeast/cyclops/plate1/0001.png", "cyclops"),
        ("CyCLOPS Wt2", "cyclops"),
        ("cyclops_images", "cyclops"),
        ("CYCLoPs database", "cyclops"),
        ("http://cyclops.ccbr.utoronto.ca/images", "cyclops"),
        ("Collection of Yeast Cells Localization Patterns", "cyclops"),
    ],
)
def test_test_sets_are_known_by_name(text, test_set):
    assert guarded_set(["", "some title", text], load_rules()) == test_set


@pytest.mark.parametrize(
    "text",
    [
        "bbbc022", "bbbc0210", "bbbc02", "bbbc013", "xbbbc021", "idr0036-gustafsdottir-cellpainting", "idr00350", "idr3500",
        "Week1_2212", "Week1_221234", "midweek1_22123", "week 3", "Caie", "drug response", "coos", "coos-70", "COOS Bay",
        "cyclopropane", "cyclopropylmethyl", "cyclopamine", "cyclopentolate", "cyclosporin a", "cyclophilin",
        "1-aminocyclopropane-1-carboxylate synthase", "cyclops targeted", "cyclops mutant", "gene/cyclopsin",
        "Cyclops strenuus", "encyclops/image", "CYCL1", "COQ7", "", "cells out of focus", "Human U2OS cells (out of focus)",
    ],
)  # fmt: skip
def test_names_that_only_look_alike_are_let_through(text):
    assert guarded_set([text], load_rules()) is None


def test_the_order_of_texts_does_not_matter():
    texts = ["coos7", "bbbc021", "x"]
    assert {guarded_set(order, load_rules()) for order in itertools.permutations(texts)} == {"bbbc021"}
    assert guarded_set([], load_rules()) is None


def test_every_plate_and_file_of_bbbc021_is_known(test_data):
    with gzip.open(test_data / "metadata/bbbc021/BBBC021_v1_image.csv.gz", "rt") as handle:
        rows = list(csv.DictReader(handle))
    texts = {row["Image_Metadata_Plate_DAPI"] for row in rows} | {row["Image_PathName_Actin"] for row in rows}
    assert len(texts) > 100 and all(guarded_set([text], load_rules()) == "bbbc021" for text in texts)
    with open(test_data / "metadata/idr0035-caie-drugresponse/idr0035-screenA-annotation.csv", encoding="utf-8") as handle:
        plates = {row["Plate"] for row in csv.DictReader(handle)}
    assert len(plates) > 50 and all(guarded_set([plate], load_rules()) == "bbbc021" for plate in plates)


def test_no_cell_of_other_sources_tables_is_taken_for_a_test_set(test_data):
    cells: set[str] = set()
    for path in [
        *(test_data / "metadata/jump_cp").glob("*.csv.gz"),
        *(test_data / "metadata/idr0036-gustafsdottir-cellpainting").glob("*.txt"),
        *(test_data / "metadata/idr0013-neumann-mitocheck").glob("*.txt"),
    ]:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        cells.update(re.split(r"[,\t\r\n]", text.decode("utf-8", "replace")))
    assert len(cells) > 50_000
    assert [cell for cell in sorted(cells) if guarded_set([cell], load_rules())] == []


def test_of_the_datasets_of_cytoimagenet_only_bbbc021_is_guarded(test_data):
    table = pd.read_csv(test_data / "metadata/cytoimagenet_history/datasets_info.csv", dtype=str, keep_default_na=False)
    texts = table[["database", "name", "link", "dir_name", "download"]]
    guarded = {row[1] for row in texts.itertuples(index=False) if guarded_set(row, load_rules())}
    assert len(table) > 60 and guarded == {"Human MCF7 cells – compound-profiling experiment"}


def test_every_rule_says_why():
    assert {rule.test_set for rule in load_rules()} == {"bbbc021", "coos7", "cyclops"}
    assert all(len(rule.why) > 20 for rule in load_rules())


def test_wrong_rules_are_all_named():
    text = """
    [[rule]]
    test_set = "a"
    pattern = "("
    why = "because"
    [[rule]]
    test_set = "b"
    why = ""
    [[rule]]
    test_set = "c"
    pattern = "x*"
    why = "because"
    """
    with pytest.raises(DataError, match=r"rule 1 \(a\).*rule 2: pattern, why missing.*rule 3 \(c\).*matches every text"):
        parse_rules(text)
    with pytest.raises(DataError, match="nothing would be guarded"):
        parse_rules("")
    with pytest.raises(DataError, match="are not valid TOML"):
        parse_rules("[[rule]")
    with pytest.raises(DataError, match=r"expected a list of tables, each headed \[\[rule\]\]"):
        parse_rules("rule = ['bbbc021']")


# By content


def to_8_bits(image: np.ndarray, low: float = 0.1, high: float = 99.9) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    bounds = np.percentile(image, (low, high))
    return np.rint(np.clip((image - bounds[0]) * 255 / (bounds[1] - bounds[0]), 0, 255)).astype(np.uint8)


def top_8_bits(image: np.ndarray) -> np.ndarray:
    return (image >> max(0, int(image.max()).bit_length() - 8)).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return np.asarray(Image.open(sink))


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def read_gray(path: Path) -> dict[str, np.ndarray]:
    """Read a picture of any kind, and return the planes of a stack one by one."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        with Image.open(path) as picture:
            return {"": np.asarray(picture if picture.mode.startswith("I") else picture.convert("L"))}
    array = tifffile.imread(path)
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        return {"": np.rint(array[..., :3].mean(axis=-1)).astype(array.dtype)}
    return {f"#{n}": plane for n, plane in enumerate(array[:5])} if array.ndim == 3 else {"": array}


@pytest.fixture(scope="module")
def pictures(test_data) -> dict[str, np.ndarray]:
    """Return real pictures in their own bit depth. One image of CellProfiler is left out, because it is noise around 235."""
    folder = test_data / "fluorescence"
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_picture = path.suffix.lower() in (".tif", ".png", ".jpg") and "mask" not in name and path.stem != "5channel"
        if is_picture:
            found |= {f"{name}{plane}": image for plane, image in read_gray(path).items()}
    assert len(found) == 82 and sum(image.dtype == np.uint16 for image in found.values()) == 12
    return found


@pytest.fixture(scope="module")
def index(pictures) -> FingerprintIndex:
    return FingerprintIndex.from_images((name, to_8_bits(image)) for name, image in pictures.items())


def scene(name: str) -> str:
    """Tell which pictures show the same place: stains of a field, frames of a film, planes of a stack."""
    if "TrackObjects" in name or "img3d" in name or "ExampleFly" in name or "ExampleHuman" in name:
        return re.sub(r"_000\d\.tif|#\d|_[DFR]\.TIF|d\d\.tif", "", name)
    return re.sub(r"Channel ?[12]|_w[12]_.*", "", name)


COPIES = {
    "the same": to_8_bits,
    "JPEG 90": lambda image: jpeg(to_8_bits(image), 90),
    "JPEG 75": lambda image: jpeg(to_8_bits(image), 75),
    "half the size": lambda image: resized(to_8_bits(image), 0.5),
    "0.8 times the size": lambda image: resized(to_8_bits(image), 0.8),
    "1.25 times the size": lambda image: resized(to_8_bits(image), 1.25),
    "half the size, JPEG 75": lambda image: jpeg(resized(to_8_bits(image), 0.5), 75),
    "the whole range of values": lambda image: to_8_bits(image, 0, 100),
    "the top 8 bits": top_8_bits,
    "gamma 0.8": lambda image: np.rint((to_8_bits(image) / 255) ** 0.8 * 255).astype(np.uint8),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_real_images_are_found(pictures, index, how):
    found = index.find_all([fingerprint(COPIES[how](image)) for image in pictures.values()])
    assert [match and match.name for match in found] == list(pictures)
    assert {match.orientation for match in found} == {"unchanged"}


@pytest.mark.parametrize("orientation", range(8))
def test_flipped_and_turned_jpegs_are_found_and_told(pictures, index, orientation):
    names = list(pictures)[::3]
    copies = [jpeg(turned(to_8_bits(pictures[name]), orientation), 75) for name in names]
    found = index.find_all([fingerprint(copy) for copy in copies])
    assert [(match.name, match.orientation) for match in found] == [(name, ORIENTATIONS[orientation]) for name in names]


def test_unrelated_real_images_are_no_copies_by_a_margin(pictures, index):
    names, hashes, thumbnails = index.to_arrays()
    scenes = np.array([scene(name) for name in names])
    prints = [fingerprint(to_8_bits(image)) for image in pictures.values()]
    closest = 0.0
    for asked in np.unique(scenes):
        others = scenes != asked
        rest = FingerprintIndex(
            [n for n, other in zip(names, others, strict=True) if other], *(a[others] for a in (hashes, thumbnails))
        )
        own = [each for each, other in zip(prints, others, strict=True) if not other]
        assert rest.find_all(own) == [None] * len(own)
        near = rest.find_all(own, GuardParams(max_distance=64, min_correlation=0.01, min_detail=-1))
        closest = max([closest, *(match.correlation for match in near if match)])
    assert 0.68 < closest < 0.69  # the module's docstring gives this figure


def test_neighbouring_wells_and_other_stains_are_no_copies(pictures, index):
    wells = [name for name in pictures if name.startswith("bbbc013")]
    assert len(wells) == 12
    found = index.find_all([fingerprint(pictures[name]) for name in wells])
    assert [match.name for match in found] == wells


def blobs(seed: int, shape=(120, 150)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for _ in range(12):
        centre_y, centre_x, radius = generator.uniform(0, shape[0]), generator.uniform(0, shape[1]), generator.uniform(4, 16)
        image += generator.uniform(0.3, 1) * np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / radius**2)
    return np.rint(image / image.max() * 255).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 7), st.floats(0.2, 1), st.integers(0, 50))
def test_any_orientation_and_linear_change_of_contrast_is_found(seed, orientation, gain, offset):
    image = blobs(seed)
    index = FingerprintIndex.from_images([("a", blobs(seed + 20_000)), ("b", image), ("c", blobs(seed + 30_000))])
    changed = np.clip(np.rint(image * gain * 0.8 + offset), 0, 255).astype(np.uint8)
    match = index.find(turned(changed, orientation))
    assert match is not None and (match.name, match.orientation) == ("b", ORIENTATIONS[orientation])
    assert match.correlation > 0.99


def by_definition(index: FingerprintIndex, image: np.ndarray, params: GuardParams) -> tuple | None:
    """Compare with every stored hash and compute every correlation one by one, which is slow."""
    names, hashes, thumbnails = index.to_arrays()
    asked = fingerprint(image)
    found = []
    for row, name in enumerate(names):
        for orientation in range(8):
            distance = (int(hashes[row, orientation]) ^ asked.dhash).bit_count()
            pair = asked.thumbnail.ravel(), turned(thumbnails[row], orientation).ravel()
            if distance <= params.max_distance and all(vector.std() for vector in pair):
                correlation = float(np.corrcoef(*pair)[0, 1])
                squares = [vector.reshape(32, 32).astype(float) for vector in pair]
                fine = [(s - ndimage.uniform_filter(s, 3))[1:-1, 1:-1].ravel() for s in squares]
                detail = float(np.corrcoef(*fine)[0, 1])
                if correlation >= params.min_correlation and detail >= params.min_detail:
                    found.append((round(correlation, 6), -distance, name, ORIENTATIONS[orientation]))
    return max(found) if found else None


@pytest.mark.parametrize(
    "params",
    [
        GuardParams(),
        GuardParams(max_distance=30, min_correlation=0.3, min_detail=0.1),
        GuardParams(max_distance=64, min_correlation=0.01, min_detail=-1),
    ],
)
def test_find_equals_the_definition(params):
    index = FingerprintIndex.from_images((f"{n}", blobs(n)) for n in range(12))
    for asked in [blobs(3), turned(blobs(5), 6), blobs(99), jpeg(blobs(7), 40)]:
        match, expected = index.find(asked, params), by_definition(index, asked, params)
        given_back = match and (round(match.correlation, 6), -match.distance, match.name, match.orientation)
        assert given_back == expected


def test_the_hash_is_the_dhash_of_the_normalised_image():
    image = (blobs(1, (224, 224)) // 2 + 40).astype(np.uint8)
    low, high = np.percentile(image, (0.1, 99.9), method="inverted_cdf")
    stretched = np.rint(np.clip((image.astype(float) - low) * 255 / (high - low), 0, 255)).astype(np.uint8)
    found = fingerprint(image)
    assert found.dhash == imagehash_dhash(stretched)
    assert np.abs(found.thumbnail - stretched.reshape(32, 7, 32, 7).mean(axis=(1, 3))).max() <= 0.5


def test_orientations_are_those_of_the_turned_image():
    image = blobs(2, (224, 224))
    prints = fingerprint_orientations(image)
    for orientation, each in enumerate(prints):
        alone = fingerprint(turned(image, orientation))
        assert each.dhash == alone.dhash and np.array_equal(each.thumbnail, alone.thumbnail)
    assert len({each.dhash for each in prints}) == 8


def test_empty_fields_under_one_lamp_are_no_copies_of_each_other():
    def empty(seed: int) -> np.ndarray:
        y, x = np.mgrid[-1:1:256j, -1:1:256j]
        light = 160 * (1 - 0.2 * (x**2 + y**2) + 0.05 * x)
        return np.rint(light + np.random.default_rng(seed).normal(0, 4, light.shape)).astype(np.uint8)

    index = FingerprintIndex.from_images([("empty", empty(0))])
    alike = index.find(empty(1), GuardParams(min_detail=-1, min_correlation=0.9))
    assert alike is not None and alike.correlation > 0.95
    assert index.find(empty(1), GuardParams(min_correlation=0.9)) is None
    assert index.find(jpeg(empty(0), 90)) is not None


@pytest.mark.parametrize("value", [0, 130, 255])
def test_images_without_contrast_are_copies_of_nothing(value):
    flat = np.full((80, 90), value, np.uint8)
    index = FingerprintIndex.from_images([("black", np.zeros((70, 70), np.uint8)), ("flat", flat)])
    assert index.find(flat) is None
    assert not fingerprint(flat).thumbnail.any()


def test_a_few_bright_pixels_are_contrast():
    image = np.zeros((300, 300), np.uint8)
    image[40:44, 200:204] = 9
    assert fingerprint(image).thumbnail.max() > 0


def test_an_index_survives_its_arrays():
    index = FingerprintIndex.from_images((f"{n}", blobs(n)) for n in range(5))
    names, hashes, thumbnails = index.to_arrays()
    assert (hashes.dtype, hashes.shape, thumbnails.dtype, thumbnails.shape) == (np.uint64, (5, 8), np.uint8, (5, 32, 32))
    again = FingerprintIndex(names, hashes, thumbnails)
    asked = turned(blobs(4), 3)
    assert len(again) == 5 and again.find(asked) == index.find(asked) and again.find(asked) is not None


def test_an_empty_index_finds_nothing():
    index = FingerprintIndex.from_images([])
    assert len(index) == 0 and index.find(blobs(0)) is None and index.find_all([]) == []


def test_arrays_that_are_no_index_are_refused_with_all_reasons():
    with pytest.raises(
        ValueError, match=r"dhashes is int64 \(2, 8\), expected uint64 \(2, 8\); thumbnails is uint8 \(1, 32, 32\)"
    ):
        FingerprintIndex(["a", "b"], np.zeros((2, 8), np.int64), np.zeros((1, 32, 32), np.uint8))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)])
def test_other_arrays_have_no_fingerprint(image):
    with pytest.raises(ValueError, match="uint8 images of shape"):
        fingerprint(image)


@pytest.mark.parametrize("bad", [{"max_distance": -1}, {"max_distance": 65}, {"min_correlation": 0}, {"min_correlation": 1.1}])
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(ValidationError):
        GuardParams(**bad)


def test_many_texts_are_judged_as_each_for_itself():
    rules = load_rules()
    texts = ["Week1_22123/a.tif", "plain", "cyclops", "cyclopamine", "IDR0035", "coos-7", "bbbc0210", "BBBC021_v1", ""]
    texts.append("x/cyclops/y")
    assert guarded_texts(texts, rules) == {text: guarded_set([text], rules) for text in texts if guarded_set([text], rules)}
    assert len(guarded_texts(texts, rules)) == 6
