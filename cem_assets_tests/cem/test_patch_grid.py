"""The patch grid and the public names of patches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.cem.patch_grid import (
    PatchPlace,
    cell_spans,
    index_digits,
    is_anisotropic,
    num_cells,
    parse_patch_name,
    patch_name,
    rejected_plane,
)


@pytest.mark.parametrize(
    ("side", "spans"),
    [
        (64, [(0, 64)]),
        (223, [(0, 223)]),
        (224, [(0, 224)]),
        (335, [(0, 224)]),
        (336, [(0, 224), (224, 336)]),  # 1.5 rounds to even: 2
        (560, [(0, 224), (224, 448)]),  # 2.5 rounds to even: 2
        (561, [(0, 224), (224, 448), (448, 561)]),
        (1024, [(0, 224), (224, 448), (448, 672), (672, 896), (896, 1024)]),
    ],
)
def test_grid_along_a_side(side, spans):
    assert cell_spans(side) == spans


@given(st.integers(1, 100_000))
def test_patches_never_overlap_never_leave_the_side_and_lose_less_than_half_a_patch(side):
    spans = cell_spans(side)
    assert len(spans) == num_cells(side) >= 1
    assert all(0 <= a < b <= side and b - a <= 224 and a % 224 == 0 for a, b in spans)
    assert side - spans[-1][1] <= 112


@pytest.mark.parametrize(
    ("count", "digits"), [(1, 1), (2, 1), (3, 1), (10, 1), (11, 1), (12, 2), (20, 2), (101, 2), (102, 3), (1001, 3), (1002, 4)]
)
def test_digits_of_slice_indices(count, digits):
    assert index_digits(count) == digits


def test_the_last_slice_may_be_one_digit_wider():
    assert patch_name(PatchPlace("v", 0, 100, 0, 224, 0, 224), 101) == "v-LOC-0_100_0-224_0-224"
    assert patch_name(PatchPlace("v", 0, 99, 0, 224, 0, 224), 101) == "v-LOC-0_99_0-224_0-224"


@pytest.mark.parametrize(
    ("place", "slices", "name"),
    [
        (PatchPlace("vnc", 0, 7, 224, 448, 0, 224), 20, "vnc-LOC-0_07_224-448_0-224"),
        (PatchPlace("img", -1, 0, 0, 224, 224, 400), 1, "img-LOC-2d-0-224_224-400"),
        (PatchPlace("a-LOC-b", 2, 3, 0, 64, 0, 64), 500, "a-LOC-b-LOC-2_003_0-64_0-64"),
    ],
)
def test_names(place, slices, name):
    assert patch_name(place, slices) == name
    assert parse_patch_name(name) == place


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30),
    st.sampled_from([-1, 0, 1, 2]),
    st.integers(0, 5000),
    st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
)
def test_parsing_undoes_naming(volume, axis, index, corners):
    place = PatchPlace(volume, axis, index if axis >= 0 else 0, *corners)
    assert parse_patch_name(patch_name(place, 5001)) == place


@pytest.mark.parametrize(
    "name", ["", "v", "v-LOC-", "v-LOC-3_0_0-1_0-1", "v-LOC-0_0_0-1", "-LOC-2d-0-1_0-1", "v-LOC-0_x_0-1_0-1"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="does not have the form"):
        parse_patch_name(name)


def test_boxes_are_one_voxel_thick_along_the_axis():
    assert PatchPlace("v", 0, 5, 1, 2, 3, 4).box() == (slice(5, 6), slice(1, 2), slice(3, 4))
    assert PatchPlace("v", 1, 5, 1, 2, 3, 4).box() == (slice(1, 2), slice(5, 6), slice(3, 4))
    assert PatchPlace("v", 2, 5, 1, 2, 3, 4).box() == (slice(1, 2), slice(3, 4), slice(5, 6))
    assert PatchPlace("i", -1, 0, 1, 2, 3, 4).box() == (slice(0, 1), slice(1, 2), slice(3, 4))


@pytest.mark.parametrize(
    ("voxel", "flag"),
    [((8, 8, 8), False), ((10, 8, 8), False), ((10.1, 8, 8), True), ((6, 8, 8), False), ((45, 4.6, 4.6), True)],
)
def test_anisotropy_is_more_than_a_quarter_of_x(voxel, flag):
    assert is_anisotropic(voxel) is flag


def test_planes_under_64_px_are_rejected_with_the_reason():
    shape = (63, 64, 500)
    assert rejected_plane(shape, 0) is None
    assert rejected_plane(shape, 1) == "the xz plane is 63 x 500 px; expected sides of at least 64 px"
    assert "the yz plane is 63 x 64 px" in rejected_plane(shape, 2)
