"""The dataset card, the pixel norms over all datasets, and the versions of a release."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.pixel_sums import PixelSums
from cem_assets.cem.releases.card import CrossDatasetDuplicates, ReleasedDataset, dataset_card, licences
from cem_assets.store.versions import check_version, next_version


def released(name: str, licence: str = "CC0", patches: int = 10, **more: str) -> ReleasedDataset:
    about = DatasetDescription(
        name=name,
        kind="volume",
        voxel_size_nm=(8, 8, 8),
        licence=licence,
        citation=more.pop("citation", f"{name} et al."),
        **more,
    )
    counts = {"raw_patches": 100, "deduplicated_patches": 20, "filtered_patches": patches}
    return ReleasedDataset(about, f"digest-{name}", counts, 1000, PixelSums(2, 300, 50_000))


def sums_of(pixels: np.ndarray) -> PixelSums:
    wide = pixels.astype(np.uint64)
    return PixelSums(pixels.size, int(wide.sum()), int((wide * wide).sum()))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=200), st.integers(1, 5))
def test_pooled_norms_equal_those_of_all_pixels(values, pieces):
    pixels = np.array(values, dtype=np.uint8)
    pooled = sum((sums_of(piece) for piece in np.array_split(pixels, pieces)), PixelSums(0, 0, 0))
    scaled = pixels / 255
    assert pooled.norms() == pytest.approx((scaled.mean(), scaled.std()), abs=1e-12)


def test_no_pixels_have_no_norms():
    assert PixelSums(0, 0, 0).norms() == (0.0, 0.0)


def test_the_card_says_what_is_in_it():
    datasets = [released("b", "CC BY 4.0", organism="mouse"), released("a", "CC0", tissue="liver", technique="SBF-SEM")]
    card = dataset_card("v7", datasets, CrossDatasetDuplicates(3, 2, 4), "Judged by X")
    for part in (
        "release v7", "20 informative", "| a | 100 | 20 | 10 |", "| **all** | **200** | **40** | **20** |", "Organisms: mouse",
        "Tissues: liver", "Techniques: SBF-SEM", "| CC BY 4.0 | b |", "| CC0 | a |", "b et al.", "10.7554/eLife.65894",
        "3 pair(s) in 2 dataset(s)", "Judged by X", "Pixel mean 0.58824",
    ):  # fmt: skip
        assert part in card, part


def test_curators_text_cannot_break_the_card():
    card = dataset_card(
        "v1", [released("a", "x | y", citation="<script>alert(1)</script>\n# not a title")], CrossDatasetDuplicates(0, 0, 4), ""
    )
    assert "<script>" not in card and "\n# not a title" not in card and "x \\| y" in card


def test_licences_group_datasets():
    assert licences([released("b", "Z"), released("a", "Z"), released("c", "A")]) == {"A": ["c"], "Z": ["a", "b"]}


@pytest.mark.parametrize(("taken", "version"), [([], "v1"), (["v1", "v10", "v2"], "v11"), (["cem1.5m", "v2", "v3-rc"], "v3")])
def test_versions_count_up(taken, version):
    assert next_version(taken) == version


@pytest.mark.parametrize("version", ["", "V1", "a/b", "..", "v..1", "-v", "x" * 41, "v 1"])
def test_versions_that_are_no_folders_are_refused(version):
    with pytest.raises(ValueError, match="is not allowed; expected 1 to 40"):
        check_version(version)
