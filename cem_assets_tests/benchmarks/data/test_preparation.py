"""Steps of preparation are compared with slow definitions, and refuse input that they cannot take in words."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cem_assets.benchmarks.data.preparation import STEPS, VOXELWISE, finished, paired_name, prepare, step_problems
from cem_assets.benchmarks.data.steps import Item, patch_starts
from cem_assets.errors import DataError

NO_CLEFT = 0xFFFFFFFFFFFFFFFF


def item(mask: Any, image: Any = None, name: str = "a", more: tuple[np.ndarray, ...] = ()) -> Item:
    mask = np.asarray(mask)
    image = np.zeros(mask.shape, np.uint8) if image is None else np.asarray(image)
    return Item(name, "train", image, (mask, *more))


def one(step: str, of: Item, **parameters: Any) -> Item:
    (result,) = prepare([of], [(step, parameters)])
    return result


@pytest.mark.parametrize(
    ("mask", "parameters", "expected"),
    [
        (np.array([[0, 127, 128, 255]], np.uint8), {"rule": "greater", "value": 127}, [[0, 0, 1, 1]]),
        (np.array([[0, 1, 254, 255]], np.uint8), {"rule": "floor_divide", "value": 255}, [[0, 0, 0, 1]]),
        (np.array([[NO_CLEFT, 3, 0, NO_CLEFT - 1]], np.uint64), {"rule": "not_equal", "value": NO_CLEFT}, [[0, 1, 1, 1]]),
        (np.array([[0, 5, 7]], np.int32), {"rule": "equal", "value": 0}, [[1, 0, 0]]),
        (np.array([[0.0, 0.49, 0.51]], np.float32), {"rule": "greater", "value": 0.5}, [[0, 0, 1]]),
        (np.array([[False, True]]), {"rule": "greater", "value": 0}, [[0, 1]]),
    ],
)
def test_a_mask_becomes_0_and_1(mask, parameters, expected):
    found = one("binarise", item(mask), **parameters).mask
    assert found.dtype == np.uint8
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("step", "of", "parameters", "words"),
    [
        (
            "binarise",
            item(np.array([[2, 9]], np.uint8)),
            {"rule": "sometimes", "value": 1},
            "not known; expected one of greater",
        ),
        ("binarise", item(np.array([[2]], np.int32)), {"rule": "not_equal", "value": NO_CLEFT}, "int32, in which"),
        ("binarise", item(np.array([[2, 9]], np.uint8)), {"rule": "floor_divide", "value": 2}, "values 2, 9; divided by 2"),
        ("relabel", item(np.array([[0, 3, 4]])), {"values": {"0": 0}}, "values 3, 4 that relabel does not list"),
        ("relabel", item(np.array([[0]])), {"values": {"0": 300}}, r"\[300\]; expected 0 to 255"),
        ("levels_to_classes", item(np.array([[0]])), {"thresholds": [9, 3]}, "expected 1 to 255 rising"),
        ("combine_label_maps", item(np.array([[0, 1]])), {"values": [1, 2]}, "1 label maps; expected one for each"),
        ("combine_label_maps", item(np.array([[0, 1, 2]])), {"values": [1]}, "values 0, 1, 2; expected 0 and one other"),
        (
            "scale_image",
            item(np.array([[0]]), np.array([[256.0]])),
            {"rule": "cast"},
            "values 256.0 to 256.0; expected 0 to 255",
        ),
        ("scale_image", item(np.array([[0]]), np.array([[np.nan]])), {"rule": "min_max"}, "NaN"),
        ("crop_missing_data", item(np.zeros((4, 4, 4))), {"first": {"a": [0, 4, 0]}}, r"cannot begin at \[0, 4, 0\]"),
        ("crop_missing_data", item(np.zeros((4, 4))), {"first": {"a": [0, 1, 0]}}, "cannot begin"),
        ("slice_volumes", item(np.zeros((2, 2, 2))), {"axes": ["zy"]}, "expected some of xy, xz, yz"),
        ("cut_patches", item(np.zeros((2, 2, 2))), {"side_px": 256}, "Slice it first"),
        ("drop_padding", item(np.zeros((2, 2))), {"max_share": 95}, "expected 0 to 1"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_what_was_found(step, of, parameters, words):
    with pytest.raises(ValueError, match=words):
        list(STEPS[step](of, **parameters))


def test_several_label_maps_must_be_combined_first():
    two = item(np.zeros((2, 2)), more=(np.zeros((2, 2)),))
    with pytest.raises(ValueError, match="2 label maps; expected one. Add the step combine_label_maps"):
        one("binarise", two, rule="greater", value=0)


def test_lysosomes_and_mitochondria_become_classes_and_the_later_map_wins():
    lyso, mito = np.array([[0.0, 1, 0, 1]]), np.array([[0.0, 0, 255, 255]])
    assert one("combine_label_maps", item(lyso, more=(mito,)), values=[1, 2]).mask.tolist() == [[0, 1, 2, 2]]


@given(
    mask=arrays.arrays(np.int16, arrays.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.integers(0, 9)),
    values=st.dictionaries(st.integers(0, 9), st.integers(0, 255)),
    other=st.integers(0, 255),
)
def test_relabelling_is_a_look_up_of_every_voxel(mask, values, other):
    found = one("relabel", item(mask), values={str(old): new for old, new in values.items()}, other=other).mask
    assert found.shape == mask.shape
    for place in np.ndindex(mask.shape):
        assert found[place] == values.get(int(mask[place]), other)


@given(
    mask=arrays.arrays(np.uint8, (5, 7)),
    thresholds=st.lists(st.integers(1, 255), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_gray_levels_become_the_number_of_thresholds_they_reach(mask, thresholds):
    found = one("levels_to_classes", item(mask), thresholds=thresholds).mask
    for place in np.ndindex(mask.shape):
        assert found[place] == sum(mask[place] >= threshold for threshold in thresholds)


def test_a_signed_volume_is_stretched_to_its_own_range_decimals_cut_off():
    volume = np.array([[[-100, 0], [155, 410]]], np.int16)
    assert one("scale_image", item(np.zeros(volume.shape), volume), rule="min_max").image.tolist() == [[[0, 50], [127, 255]]]
    flat = np.full((2, 3), 7, np.uint16)
    assert not one("scale_image", item(np.zeros((2, 3)), flat), rule="min_max").image.any()


def test_floats_that_are_bytes_already_are_cast():
    image = np.array([[0.0, 12.9, 255.0]], np.float32)
    found = one("scale_image", item(np.zeros((1, 3)), image), rule="cast").image
    assert found.dtype == np.uint8 and found.tolist() == [[0, 12, 255]]


def test_planes_without_data_are_left_out_of_the_items_that_have_them():
    volume = np.arange(4 * 60 * 3).reshape(4, 60, 3)
    first = {"fib1-1-0-3": [0, 54, 0]}
    found = one("crop_missing_data", item(volume, volume, "fib1-1-0-3"), first=first)
    assert np.array_equal(found.image, volume[:, 54:]) and np.array_equal(found.mask, volume[:, 54:])
    assert one("crop_missing_data", item(volume, volume, "other"), first=first).image.shape == (4, 60, 3)


def test_a_volume_is_sliced_along_every_axis_the_last_plane_too():
    volume = np.random.default_rng(0).integers(0, 255, (2, 3, 11), np.uint8)
    found = list(STEPS["slice_volumes"](item(volume // 2, volume), axes=["xy", "xz", "yz"]))
    expected = [(f"a_xy_{z}", volume[z]) for z in range(2)]
    expected += [(f"a_xz_{y}", volume[:, y]) for y in range(3)]
    expected += [(f"a_yz_{x:02}", volume[:, :, x]) for x in range(11)]
    assert [one.name for one in found] == [name for name, _ in expected]
    for sliced, (_, plane) in zip(found, expected, strict=True):
        assert np.array_equal(sliced.image, plane) and np.array_equal(sliced.mask, plane // 2)
    spaced = STEPS["slice_volumes"](item(volume, volume), axes=["xy"], spacing=2)
    assert [one.name for one in spaced] == ["a_xy_0"]


def test_images_pass_the_slicing():
    flat = item(np.zeros((4, 5)))
    assert one("slice_volumes", flat, axes=["xy"]) is flat


@given(size=st.integers(1, 2000), side=st.integers(1, 400))
def test_patches_are_the_fewest_that_cover_a_side_and_overlap_evenly(size, side):
    starts = patch_starts(size, side)
    assert len(starts) == -(-size // side)
    covered = np.zeros(size, bool)
    for start in starts:
        assert start >= 0 and (start + side <= size or len(starts) == 1)
        covered[start : start + side] = True
    assert covered.all()
    steps = np.diff(starts)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_patches_begin_where_the_published_script_has_them():
    # Computed by hand from n * 256 minus an even share of the overlap, with decimals cut off.
    assert patch_starts(1024, 256) == [0, 256, 512, 768]
    assert patch_starts(768 + 1, 256) == [0, 256 - 85, 512 - 170, 768 - 255]
    assert patch_starts(244, 256) == [0]


def test_an_image_is_cut_into_patches_and_padding_is_dropped():
    image = np.zeros((300, 256), np.uint8)
    image[250:, :] = 9
    steps = [("cut_patches", {"side_px": 256}), ("drop_padding", {"max_share": 0.95})]
    found = list(prepare([item(image > 0, image)], steps))
    assert [one.name for one in found] == ["a_44_0"]  # of a_0_0 only 6 of 256 rows are not padding
    assert np.array_equal(found[0].image, image[44:]) and np.array_equal(found[0].mask, image[44:] > 0)


def test_exactly_the_allowed_share_of_padding_is_kept():
    image = np.zeros((10, 10), np.uint8)
    image[0, :5] = 1
    assert list(prepare([item(image, image)], [("drop_padding", {"max_share": 0.95})]))
    image[0, 4] = 0
    assert not list(prepare([item(image, image)], [("drop_padding", {"max_share": 0.95})]))


def test_items_are_prepared_one_at_a_time():
    asked = []

    def items():
        for number in range(3):
            asked.append(number)
            yield item(np.zeros((3, 2, 2)), name=str(number))

    stream = prepare(items(), [("slice_volumes", {"axes": ["xy"]}), ("binarise", {"rule": "greater", "value": 0})])
    assert next(stream).name == "0_xy_0" and asked == [0]
    assert [next(stream).name for _ in range(3)] == ["0_xy_1", "0_xy_2", "1_xy_0"] and asked == [0, 1]


@pytest.mark.parametrize("step", sorted(VOXELWISE))
def test_voxelwise_steps_give_the_same_plane_by_plane(step):
    parameters: dict[str, Any] = {
        "binarise": {"rule": "greater", "value": 4},
        "levels_to_classes": {"thresholds": [2, 5]},
        "relabel": {"values": {"1": 7}, "other": 3},
    }[step]
    volume = np.random.default_rng(1).integers(0, 9, (5, 6, 7))
    whole = one(step, item(volume), **parameters).mask
    planes = [one(step, item(volume[z : z + 1]), **parameters).mask for z in range(5)]
    assert np.array_equal(whole, np.concatenate(planes))


@pytest.mark.parametrize(
    ("stem", "which", "rule", "name"),
    [
        ("mask0007", "image", {"image": r"(\d+)$", "mask": r"(\d+)$", "is_number": True}, "7"),
        ("7", "mask", {"image": r"(\d+)$", "mask": r"(\d+)$", "is_number": True}, "7"),
        ("ZT04_orig.012", "image", {"image": r"\.(\d+)$", "mask": r"\.(\d+)$"}, "012"),
        ("train-labels", "mask", {"image": "^(.*)-images$", "mask": "^(.*)-labels$"}, "train"),
        ("any name", "mask", {}, "any name"),
    ],
)
def test_images_and_masks_of_other_names_are_paired_by_a_rule(stem, which, rule, name):
    assert paired_name(stem, which, **rule) == name


def test_a_name_without_a_match_or_number_is_refused():
    with pytest.raises(DataError, match="'preview' does not match"):
        paired_name("preview", "image", image=r"(\d+)$", mask=r"(\d+)$")
    with pytest.raises(DataError, match="'preview' has 'view' where rename_pairs expects a number"):
        paired_name("preview", "image", image="^pre(.*)$", is_number=True)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("binarize", {}, "not known; expected one of rename_pairs, binarise"),
        ("binarise", {"rule": "greater"}, "parameter 'value' is missing"),
        ("binarise", {"rule": "greater", "value": 1, "threshold": 2}, "unknown parameter 'threshold'; expected rule, value"),
        ("binarise", {"rule": "greater", "value": "half"}, "value is 'half'; Input should be a valid number"),
        ("relabel", {"values": {"one": 1}}, "values has the keys 'one'; expected whole numbers"),
        ("relabel", {"values": {"1": 1.5}}, "values is {'1': 1.5}; 1: Input should be a valid integer"),
        ("cut_patches", {"side_px": "256"}, "side_px is '256'; Input should be a valid integer"),
        ("slice_volumes", {"axes": "xy"}, "axes is 'xy'; "),
        ("rename_pairs", {"image": "("}, "image is no regular expression"),
        ("rename_pairs", {"mask": "abc"}, "mask needs a group"),
    ],
)
def test_steps_are_checked_before_any_file_is_read(name, parameters, words):
    assert any(words in problem for problem in step_problems(name, parameters))


def test_right_steps_have_no_problems():
    assert step_problems("binarise", {"rule": "greater", "value": 127}) == []
    assert step_problems("binarise", {"rule": "not_equal", "value": NO_CLEFT}) == []
    assert step_problems("relabel", {"values": {"-1": 2.0}, "other": 0}) == []
    assert step_problems("crop_missing_data", {"first": {"a": [0, 54, 0]}}) == []
    assert step_problems("rename_pairs", {"image": "(.*)", "is_number": True}) == []


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (item(np.zeros((2, 2)), np.zeros((2, 2), np.uint16)), "uint16; expected uint8. Add the step scale_image"),
        (item(np.zeros((2, 3)), np.zeros((2, 2), np.uint8)), r"sizes \(2, 3\), the image \(2, 2\)"),
        (item(np.array([[0, 255]], np.uint8)), "values 0, 255; expected whole numbers 0 to 1"),
        (item(np.array([[0, 0.5]])), "values 0, 0.5; expected whole"),
        (item(np.array([[0, -1]])), "values -1, 0"),
        (item(np.array([[0, np.nan]])), "expected whole"),
        (item(np.array([[0, 257]])), "values 0, 257"),
        (item(np.zeros((0, 2))), "none of them 0"),
    ],
)
def test_an_item_that_is_not_prepared_is_refused_with_the_step_it_lacks(of, words):
    with pytest.raises(ValueError, match=words):
        finished(of, 2)


def test_a_finished_item_has_bytes_of_one_shape():
    done = finished(item(np.array([[0.0, 1.0]], np.float32)), 2)
    assert done.mask.dtype == np.uint8 and done.mask.tolist() == [[0, 1]] and done.mask.flags.c_contiguous
