"""The fluorescence phantom depends only on its seed, its tables describe it, and its classes differ."""

import csv
import io

import numpy as np
import pytest
from scipy import ndimage

from cem_assets.cytoimagenet.held_out.guard import guarded_set, load_rules
from cem_assets.cytoimagenet.phantom.drawing import Look, draw_cells
from cem_assets.cytoimagenet.phantom.screens import PhantomField, PhantomSource, draw_field, phantom_sources

Drawn = list[tuple[PhantomField, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def sources() -> dict[str, PhantomSource]:
    return {source.name: source for source in phantom_sources(0)}


@pytest.fixture(scope="module")
def drawn(sources) -> dict[str, Drawn]:
    return {name: [(field, draw_field(field)) for field in source.fields] for name, source in sources.items()}


def rows_of(data: bytes, separator: str) -> list[list[str]]:
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    return list(csv.reader(io.StringIO(text), delimiter=separator))


def by_name(rows: list[list[str]]) -> list[dict[str, str]]:
    head = rows[0]
    return [dict(zip(head, row + [""] * (len(head) - len(row)), strict=True)) for row in rows[1:]]


def test_equal_seeds_give_equal_sources_and_pixels(sources):
    again = phantom_sources(0)
    assert again == tuple(sources.values())
    for source in again:
        field = source.fields[3]
        first, second = draw_field(field), draw_field(field)
        assert list(first) == list(field.channel_files)
        assert all(np.array_equal(first[channel], second[channel]) for channel in first)


def test_another_seed_gives_other_tables_and_pixels(sources):
    for mine, other in zip(sources.values(), phantom_sources(1), strict=True):
        assert [f.channel_files for f in mine.fields] == [f.channel_files for f in other.fields]
        assert all(mine.tables[name] != other.tables[name] for name in mine.tables)
        assert all(a.seed != b.seed for a, b in zip(mine.fields, other.fields, strict=True))
        place = next(n for n, pair in enumerate(zip(mine.fields, other.fields, strict=True)) if not any(f.fault for f in pair))
        a, b = draw_field(mine.fields[place]), draw_field(other.fields[place])
        assert not np.array_equal(a["dna"], b["dna"])


def test_a_field_does_not_depend_on_those_drawn_before(sources, drawn):
    for name, source in sources.items():
        again = draw_field(source.fields[-1])
        assert all(np.array_equal(image, again[channel]) for channel, image in drawn[name][-1][1].items())


def test_no_two_fields_share_a_seed_a_place_or_a_file(sources):
    fields = [field for source in sources.values() for field in source.fields]
    assert 240 <= len(fields) <= 320
    assert len({field.seed for field in fields}) == len(fields)
    assert len({(field.plate, field.well, field.site) for field in fields}) == len(fields)
    paths = [path for field in fields for path in set(field.channel_files.values())]
    assert len(set(paths)) == len(paths) == 112 * 4 + 112 * 2 + 80
    assert all(not path.startswith("/") and ".." not in path for path in paths)


@pytest.mark.parametrize(
    ("name", "channels", "shape", "dtype"),
    [
        ("phantom_painting", ["dna", "er", "actin", "mito"], (288, 320), np.uint16),
        ("phantom_knockdown", ["dna", "tubulin"], (256, 256), np.uint16),
        ("phantom_lineup", ["dna", "actin", "er"], (300, 300), np.uint8),
    ],
)
def test_sizes_channels_and_bits(drawn, name, channels, shape, dtype):
    for field, images in drawn[name]:
        assert list(images) == channels
        for image in images.values():
            assert image.shape == shape == field.shape_px and image.dtype == dtype == np.dtype(field.dtype)
            assert image.max() <= 4095
    # Real 12-bit data differ from 8-bit data: they use most of the range in steps of one.
    if dtype == np.uint16:
        values = np.unique(np.concatenate([images["dna"].ravel() for field, images in drawn[name] if not field.fault]))
        assert values.max() > 2000 and len(values) > 1500


def test_pages_of_one_file_are_told_by_equal_paths(sources):
    for field in sources["phantom_lineup"].fields:
        assert len(set(field.channel_files.values())) == 1 and len(field.channel_files) == 3


def test_wells_and_compounds_join_to_what_fields_say(sources):
    source = sources["phantom_painting"]
    assert b"\n" not in source.tables["compounds.txt"] and source.tables["compounds.txt"].count(b"\r") == 8
    compounds = {row["Compound_ID"]: row for row in by_name(rows_of(source.tables["compounds.txt"], "\t"))}
    wells = {(row["Plate"], row["Well"]): row for row in by_name(rows_of(source.tables["wells.csv"], ","))}
    assert len(compounds) == 7 and len(wells) == 56
    for field in source.fields:
        row = wells[field.plate, field.well]
        assert compounds[row["Compound_ID"]]["Compound_Name"] == field.compound
        assert row["Cell_Line"] == field.cell_type == "U2OS"
        assert all(f"{field.plate}_{field.well}_s{field.site}_w" in path for path in field.channel_files.values())


def test_genes_and_sirnas_are_in_the_library(sources):
    source = sources["phantom_knockdown"]
    assert source.tables["library.txt"].startswith(b"\xef\xbb\xbfPlate\t")
    wells = {(row["Plate"], row["Well"]): row for row in by_name(rows_of(source.tables["library.txt"], "\t"))}
    for field in source.fields:
        row = wells[field.plate, field.well]
        told = row["Gene Symbol"], row["siRNA Identifier"], row["Characteristics [Cell Line]"]
        assert told == (field.gene, field.sirna, field.cell_type)
        assert (row["Control Type"] == "negative control") == (field.gene == "")
    assert {field.plate for field in source.fields if field.sirna} == {"SI202"}
    assert len({(field.gene, field.sirna) for field in source.fields if field.sirna}) == 6


def test_the_table_without_a_header_names_every_file(sources):
    source = sources["phantom_lineup"]
    rows = rows_of(source.tables["images.csv"], ",")
    told = [(f.channel_files["dna"], f.plate, f.well, str(f.site), f.cell_type, "Homo sapiens") for f in source.fields]
    assert [tuple(row) for row in rows] == told


def test_every_class_has_as_many_fields_as_the_others(sources):
    for name, key, each in (
        ("phantom_painting", "compound", 16),
        ("phantom_knockdown", "gene", 16),
        ("phantom_lineup", "cell_type", 20),
    ):
        values = [getattr(field, key) for field in sources[name].fields]
        assert {values.count(value) for value in values} == {each}


def test_each_source_has_one_field_that_is_out_of_order(drawn):
    def normalised(image: np.ndarray) -> np.ndarray:
        low, high = np.percentile(image, (0.1, 99.9))
        return np.clip((image - low) * 255 / max(high - low, 1), 0, 255)

    odd = {field.fault: images for pairs in drawn.values() for field, images in pairs if field.fault}
    assert set(odd) == {"black", "saturated", "uniform"}
    assert sum(bool(field.fault) for pairs in drawn.values() for field, _ in pairs) == 3
    for black in odd["black"].values():
        assert np.percentile(black, 75) == 0 < black.max() and np.percentile(normalised(black), 75) == 0
    for saturated in odd["saturated"].values():
        assert (saturated == 4095).mean() > 0.99 and normalised(saturated).mean() >= 254
    for uniform in odd["uniform"].values():
        assert len(np.unique(uniform)) == 1 and 0 < uniform[0, 0] < 255


def statistics(images: dict[str, np.ndarray]) -> list[float]:
    """Measure number, size, solidity and brightness of nuclei, and the mean of every channel."""
    dna = ndimage.gaussian_filter(images["dna"].astype(np.float64), 1)
    top = np.percentile(dna, 1) + 0.25 * (np.percentile(dna, 99.7) - np.percentile(dna, 1))
    labels, num = ndimage.label(dna > top)
    sizes = ndimage.sum_labels(labels > 0, labels, np.arange(1, num + 1))
    whole = sizes > 40
    edges = ((labels > 0) & ~ndimage.binary_erosion(labels > 0)).sum()
    shape = edges / np.sqrt(max(sizes[whole].sum(), 1) * max(whole.sum(), 1))
    grain = dna[labels > 0].std() / dna[labels > 0].mean()
    return [whole.sum(), np.median(sizes[whole]), shape, grain, *(np.log(image.mean()) for image in images.values())]


@pytest.mark.parametrize(
    ("name", "key", "least"),
    [("phantom_painting", "compound", 0.9), ("phantom_knockdown", "gene", 0.85), ("phantom_lineup", "cell_type", 0.9)],
)
def test_classes_are_told_apart_by_simple_statistics(drawn, name, key, least):
    pairs = [(getattr(field, key), statistics(images)) for field, images in drawn[name] if not field.fault]
    labels, values = np.array([label for label, _ in pairs]), np.array([value for _, value in pairs])
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    num_right = 0
    for row, label in enumerate(labels):  # the nearest mean, computed without the field itself
        others = np.arange(len(labels)) != row
        means = {each: values[others & (labels == each)].mean(axis=0) for each in np.unique(labels)}
        num_right += min(means, key=lambda each: float(np.linalg.norm(values[row] - means[each]))) == label
    assert num_right / len(labels) >= least


def test_light_falls_off_and_noise_grows_with_light():
    images = [
        draw_cells(np.random.default_rng(n), Look(num_cells=0.01), (256, 256), ("tubulin",))["tubulin"] for n in range(12)
    ]
    mean = np.mean(images, axis=0)
    assert mean[112:144, 112:144].mean() > 1.15 * np.mean([mean[y, x] for y in (0, 5, 250, 255) for x in (0, 5, 250, 255)])
    flat = draw_cells(
        np.random.default_rng(5), Look(nucleus_px=40.0, cell_px=60.0, num_cells=3, grain=0.0), (256, 256), ("dna",)
    )["dna"]
    steps = np.diff(flat, axis=1) / np.sqrt(2)
    level = ndimage.uniform_filter(flat, 15)[:, 1:]
    for low, high in ((0, 300), (1100, 3000)):  # backgrounds, and the insides of nuclei, away from edges
        chosen = (level > low) & (level < high) & (ndimage.uniform_filter(np.abs(steps), 15) < 60)
        expected = 1.6 * level[chosen].mean() + 25
        assert chosen.sum() > 1000 and 0.8 * expected < steps[chosen].var() < 1.3 * expected


def test_channels_nobody_draws_are_refused():
    with pytest.raises(ValueError, match="channels golgi, rna are not drawn; expected some of dna, er"):
        draw_cells(np.random.default_rng(0), Look(), (64, 64), ("dna", "rna", "golgi"))


def test_no_source_is_taken_for_a_benchmark_test_set(sources):
    for source in sources.values():
        for field in source.fields:
            texts = [source.name, source.title, field.plate, field.compound, field.gene, *field.channel_files.values()]
            assert guarded_set(texts, load_rules()) is None
