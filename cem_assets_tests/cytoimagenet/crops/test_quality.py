"""Every fault that pixels show, on real and on deliberately broken images, compared with the definition."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cem_assets.cytoimagenet.channels import merge_channels, merge_image
from cem_assets.cytoimagenet.crops.crops import CropParams, crop_windows, cut
from cem_assets.cytoimagenet.crops.quality import EXPLAINED, DropReason, pixel_digest, pixel_fault
from cem_assets_tests.cytoimagenet.test_channels import real_images


def fault_by_definition(raw_crop, crop) -> str | None:
    low, high = np.percentile(raw_crop, (0.1, 99.9))
    if low == high:
        return "uniform"
    if len(np.unique(raw_crop)) <= 2 or len(np.unique(crop)) <= 2:
        return "mask"
    if np.percentile(crop, 75) == 0:
        return "dim"
    if crop.mean() <= 1:
        return "dark"
    if crop.mean() >= 254:
        return "bright"
    return None


def faults_of(image: np.ndarray, identity: str) -> list[DropReason | None]:
    """Return the faults of four crops of a gray image, and compare each with the definition."""
    found = []
    for window in crop_windows(*image.shape, 4, identity, CropParams()):
        raw, crop = image[window.slices], cut(image, window)
        found.append(pixel_fault(raw, crop))
        assert found[-1] == fault_by_definition(raw, crop)
    return found


def levels(*shares: tuple[int, int]) -> np.ndarray:
    """Make a crop of 100 x 100 px with given numbers of pixels of each level."""
    crop = np.repeat([level for level, _ in shares], [num for _, num in shares]).astype(np.uint8)
    return np.random.default_rng(0).permutation(crop).reshape(100, 100)


BROKEN = {
    "one level": ([(7, 10_000)], DropReason.uniform),
    "all black": ([(0, 10_000)], DropReason.uniform),
    "uniform but for nine pixels at each end": ([(0, 9), (7, 9_982), (255, 9)], DropReason.uniform),
    "two levels": ([(10, 4_000), (20, 6_000)], DropReason.mask),
    "two levels and rare pixels between, lost when normalised": ([(0, 9), (3, 5_000), (4, 4_982), (9, 9)], DropReason.mask),
    "three quarters black": ([(0, 7_501), (50, 1_000), (200, 1_499)], DropReason.dim),
    "not quite three quarters black": ([(0, 7_499), (50, 1_000), (200, 1_501)], None),
    "nearly all at 0 and 1": ([(0, 6_000), (1, 3_980), (255, 20)], DropReason.dark),
    "nearly all at 254 and 255": ([(0, 20), (254, 3_000), (255, 6_980)], DropReason.bright),
    "three levels, evenly": ([(0, 3_000), (100, 3_000), (255, 4_000)], None),
    # If there are several faults, the first in order is returned.
    "two levels and dim": ([(0, 9_000), (255, 1_000)], DropReason.mask),
    "dim and dark": ([(0, 9_900), (1, 80), (255, 20)], DropReason.dim),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_crops_show_their_fault(name):
    shares, expected = BROKEN[name]
    raw = levels(*shares)
    crop = merge_channels([raw])
    assert pixel_fault(raw, crop) == expected == fault_by_definition(raw, crop)


def test_a_crop_that_normalisation_made_a_mask_is_one():
    raw, crop = levels((3, 5_000), (4, 2_000), (5, 3_000)), levels((0, 5_000), (255, 5_000))
    assert pixel_fault(raw, crop) is DropReason.mask and pixel_fault(raw, raw) is None


@given(
    hnp.arrays(
        "uint8", st.tuples(st.integers(1, 60), st.integers(1, 60)), elements=st.sampled_from([0, 0, 0, 1, 2, 254, 255, 255])
    ),
    st.booleans(),
)
def test_any_crop_is_judged_as_defined(raw, is_normalised):
    crop = merge_channels([raw]) if is_normalised else raw
    assert pixel_fault(raw, crop) == fault_by_definition(raw, crop)


@pytest.mark.parametrize("mean_times_10000", [9_999, 10_000, 10_001, 2_539_999, 2_540_000, 2_540_001])
def test_the_bounds_of_the_mean_belong_to_dark_and_bright(mean_times_10000):
    """Make crops with exactly this mean that are neither masks nor dim."""
    if mean_times_10000 < 20_000:
        crop = levels((0, 6_000), (1, 3_900), (2, 100))
        crop.flat[np.flatnonzero(crop == 2)[:30]] = 190
        reason = DropReason.dark
    else:
        crop = levels((255, 5_000), (254, 4_900), (253, 100))
        crop.flat[np.flatnonzero(crop == 253)[:30]] = 60
        reason = DropReason.bright
    # Pixels in the middle of their range are changed by single levels until the sum is right.
    missing = mean_times_10000 - int(crop.sum())
    step = int(np.sign(missing))
    movable = np.flatnonzero(
        crop == (1 if step > 0 else 2) if mean_times_10000 < 20_000 else crop == (254 if step > 0 else 255)
    )
    assert abs(missing) <= len(movable)
    crop.flat[movable[: abs(missing)]] = (crop.flat[movable[: abs(missing)]].astype(int) + step).astype(np.uint8)
    assert int(crop.sum()) == mean_times_10000
    is_beyond = mean_times_10000 in (10_001, 2_539_999)
    assert pixel_fault(crop, crop) == (None if is_beyond else reason) == fault_by_definition(crop, crop)


def test_real_micrographs_are_kept_but_for_nearly_empty_crops(test_data):
    counts = Counter(
        fault
        for name, (planes, is_colour) in real_images(test_data).items()
        for fault in faults_of(merge_image(planes, is_colour), name)
    )
    assert counts[None] >= 75 and set(counts) <= {None, DropReason.dim, DropReason.mask, DropReason.uniform}


def test_real_masks_are_recognised(test_data):
    folders = sorted((test_data / "fluorescence/dsb2018_bbbc038").glob("*/masks"))[:15]
    for folder in folders:
        masks = [np.asarray(Image.open(path).convert("L")) for path in sorted(folder.glob("*.png"))]
        assert set(faults_of(merge_channels([np.max(masks, axis=0)]), folder.parent.name)) <= {
            DropReason.mask,
            DropReason.uniform,
        }
    one_nucleus = merge_channels([masks[0]])
    assert DropReason.uniform in faults_of(one_nucleus, "one nucleus")


def test_label_images_and_sparse_fields_are_dim(test_data):
    labels = merge_channels([tifffile.imread(test_data / "fluorescence/stardist/mask2d.tif")])
    assert DropReason.dim in faults_of(labels, "mask2d.tif")
    sparse = next((test_data / "fluorescence/dsb2018_bbbc038").glob("29ea4f6e*/images/*.png"))
    assert set(faults_of(merge_channels([np.asarray(Image.open(sparse).convert("L"))]), "sparse")) == {DropReason.dim}


def test_every_reason_has_a_sentence():
    assert set(EXPLAINED) == set(DropReason)
    assert all(sentence.endswith(".") and len(sentence) > 20 for sentence in EXPLAINED.values())
    assert len(set(EXPLAINED.values())) == len(DropReason)


@pytest.mark.parametrize(
    ("raw", "crop"),
    [
        (np.zeros((3, 4), np.uint16), np.zeros((3, 4), np.uint8)),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.float32)),
        (np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8)),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)),
    ],
)
def test_what_is_no_pair_of_crops_is_refused(raw, crop):
    with pytest.raises(ValueError, match="uint8 of the same shape before and after"):
        pixel_fault(raw, crop)


# Duplicates


def test_equal_pixels_have_equal_digests_wherever_they_lie():
    image = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    copy = np.ascontiguousarray(image[20:90, 30:100])
    digest = pixel_digest(copy)
    assert digest == pixel_digest(image[20:90, 30:100]) == pixel_digest(np.asfortranarray(copy))
    assert digest == hashlib.sha256(b"70,70\n" + copy.tobytes()).hexdigest()
    copy[69, 69] ^= 1
    assert pixel_digest(copy) != digest


def test_the_same_bytes_in_another_shape_are_no_duplicate():
    crop = np.arange(72, dtype=np.uint8)
    assert len({pixel_digest(crop.reshape(shape)) for shape in ((8, 9), (9, 8), (1, 72), (72, 1))}) == 4


def test_copies_among_real_crops_are_found(test_data):
    images = [merge_image(planes, is_colour) for planes, is_colour in real_images(test_data).values()]
    crops = [
        cut(image, window) for n, image in enumerate(images) for window in crop_windows(*image.shape, 4, f"i{n}", CropParams())
    ]
    kept = [crop for crop in crops if crop.max()]
    assert len({pixel_digest(crop) for crop in kept}) == len({(crop.shape, crop.tobytes()) for crop in kept})
    assert Counter(map(pixel_digest, [*kept, kept[3].copy()]))[pixel_digest(kept[3])] == 2


@pytest.mark.parametrize("crop", [np.zeros((3, 4), np.uint16), np.zeros((3, 4, 3), np.uint8)])
def test_only_gray_crops_have_digests(crop):
    with pytest.raises(ValueError, match="uint8 with two axes"):
        pixel_digest(crop)
