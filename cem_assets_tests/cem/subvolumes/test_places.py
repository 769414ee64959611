"""Places of subvolumes: centred on patches, complete, seeded, with limited overlap, and the same as those of a slow oracle."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cem_assets.cem.patch_grid import PatchPlace, parse_patch_name, patch_name
from cem_assets.cem.subvolumes.places import Placement, Skipped, SubvolumeParams, place_subvolumes, shared_voxels

SHAPES = {"a": (40, 62, 70), "b-LOC-b": (26, 26, 26)}
"""Small shapes, so that an oracle can fill whole volumes. Their patches have 24 px instead of 224 px."""
LOOSE = {"limit": 10_000, "max_overlap": 1.0}


def small_spans(side: int) -> list[tuple[int, int]]:
    return [(start, min(start + 24, side)) for start in range(0, side, 24)]


def patches_of(shapes, spacing: int = 4) -> list[str]:
    """Name patches on every plane, with the given spacing of slices."""
    return [
        patch_name(PatchPlace(volume, axis, index, *rows, *columns), shape[axis])
        for volume, shape in shapes.items()
        for axis in range(3)
        for index in range(0, shape[axis], spacing)
        for rows in small_spans(shape[0 if axis else 1])
        for columns in small_spans(shape[1 if axis == 2 else 2])
    ]


def covered(low, high, shape) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def oracle(patches: list[str], shapes, params: SubvolumeParams, is_whole=None) -> tuple[list[str], dict[str, Skipped]]:
    """Choose by the definition: voxel masks of every pair, one patch after the other in the order of a keyed hash."""
    key = params.seed.to_bytes(8, "big")
    order = sorted(patches, key=lambda name: hashlib.blake2b(name.encode(), key=key, digest_size=16).digest())
    kept: list[tuple[str, str, np.ndarray]] = []
    skipped: dict[str, Skipped] = {}
    for name in order:
        if len(kept) == params.limit:
            skipped[name] = Skipped.over_limit
            continue
        place = parse_patch_name(name)
        shape = shapes[place.volume]
        sides = [
            (place.y0 + (place.y1 - place.y0 - params.side_px) // 2, params.side_px),
            (place.x0 + (place.x1 - place.x0 - params.side_px) // 2, params.side_px),
        ]
        sides.insert(place.axis, (place.index - params.num_slices // 2, params.num_slices))
        if any(start < 0 or start + size > room for (start, size), room in zip(sides, shape, strict=True)):
            skipped[name] = Skipped.no_context
            continue
        low, high = [start for start, _ in sides], [start + size for start, size in sides]
        mask = covered(low, high, shape)
        others = [other for _, volume, other in kept if volume == place.volume]
        if any((mask & other).sum() > params.max_overlap * min(mask.sum(), other.sum()) for other in others):
            skipped[name] = Skipped.overlap
        elif is_whole is not None and not is_whole(place.volume, tuple(slice(a, b) for a, b in zip(low, high, strict=True))):
            skipped[name] = Skipped.no_data
        else:
            kept.append((name, place.volume, mask))
    return [name for name, _, _ in kept], skipped


@pytest.mark.parametrize(
    ("num_slices", "side_px", "max_overlap", "limit"),
    [(5, 24, 0.0, 60), (5, 20, 0.21, 60), (3, 30, 0.34, 10), (24, 24, 0.5, 60), (9, 16, 1.0, 90)],
)
def test_what_is_chosen_and_why_not_is_what_the_definition_says(num_slices, side_px, max_overlap, limit):
    patches = patches_of(SHAPES)
    params = SubvolumeParams(num_slices=num_slices, side_px=side_px, max_overlap=max_overlap, limit=limit, seed=3)
    placed = place_subvolumes(patches, SHAPES, params)
    kept, skipped = oracle(patches, SHAPES, params)
    assert [item.patch for item in placed.subvolumes] == kept and len(kept) > 3
    assert dict(placed.skipped) == skipped and [name for name, _ in placed.skipped] == [n for n in patches if n in skipped]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 29), st.integers(0, 20), st.integers(0, 20)),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    st.sampled_from([(1, 16), (3, 16), (16, 16)]),
    st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9]),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_any_patches_are_placed_as_the_definition_says(rows, size, max_overlap, limit, seed):
    shapes = {"v": (30, 30, 30)}
    names = [patch_name(PatchPlace("v", axis, index, y, y + 12, x, x + 9), 30) for axis, index, y, x in rows]
    params = SubvolumeParams(num_slices=size[0], side_px=size[1], max_overlap=max_overlap, limit=limit, seed=seed)

    def is_whole(volume, box):
        return not (box[0].start <= 15 < box[0].stop and box[1].start <= 3 < box[1].stop)

    placed = place_subvolumes(names, shapes, params, is_whole)
    kept, skipped = oracle(names, shapes, params, is_whole)
    assert [item.patch for item in placed.subvolumes] == kept and dict(placed.skipped) == skipped


@pytest.mark.parametrize(
    ("patch", "name", "low", "high"),
    [
        ("vnc-LOC-0_07_224-448_0-224", "vnc-LOC-0_5-10_224-448_0-224", (5, 224, 0), (10, 448, 224)),
        ("vnc-LOC-1_100_0-224_224-448", "vnc-LOC-1_98-103_0-224_224-448", (0, 98, 224), (224, 103, 448)),
        ("vnc-LOC-2_100_0-224_224-448", "vnc-LOC-2_98-103_0-224_224-448", (0, 224, 98), (224, 448, 103)),
        ("v-ROI-x0-1_y0-1_z0-1-LOC-0_2_0-224_0-224", "v-ROI-x0-1_y0-1_z0-1-LOC-0_0-5_0-224_0-224", (0, 0, 0), (5, 224, 224)),
    ],
)
def test_a_flipbook_keeps_its_patchs_name_with_the_slices_in_it(patch, name, low, high):
    volume = patch.rpartition("-LOC-")[0]
    (found,) = place_subvolumes([patch], {volume: (500, 500, 500)}, SubvolumeParams()).subvolumes
    assert (found.name, found.patch, found.low, found.high) == (name, patch, low, high)


def test_cubes_have_the_patch_at_half_their_depth():
    params = SubvolumeParams(num_slices=224)
    placed = place_subvolumes(["v-LOC-0_112_0-224_0-224"], {"v": (224, 224, 224)}, params)
    assert placed.subvolumes[0].low == (0, 0, 0) and placed.subvolumes[0].high == (224, 224, 224)


@pytest.mark.parametrize(
    ("patch", "is_cut"),
    [
        ("v-LOC-0_01_0-224_0-224", False),
        ("v-LOC-0_02_0-224_0-224", True),
        ("v-LOC-0_97_0-224_0-224", True),
        ("v-LOC-0_98_0-224_0-224", False),
        ("v-LOC-0_50_224-400_0-224", False),  # cut at the border: 176 px
    ],
)
def test_what_lacks_context_by_one_slice_is_skipped_and_told(patch, is_cut):
    placed = place_subvolumes([patch], {"v": (100, 400, 400)}, SubvolumeParams())
    assert len(placed.subvolumes) == is_cut
    assert placed.skipped == (() if is_cut else ((patch, Skipped.no_context),))


def test_patches_of_images_have_no_subvolumes():
    names = ["im-LOC-2d-0-224_0-224", "im-LOC-2d-0-224_224-448"]
    assert place_subvolumes(names, {}, SubvolumeParams()) == Placement((), tuple((name, Skipped.flat) for name in names))


def test_the_default_lets_flipbooks_cross_but_not_share_a_slice():
    shapes = {"v": (224, 224, 224)}
    crossing = ["v-LOC-0_100_0-224_0-224", "v-LOC-1_100_0-224_0-224", "v-LOC-2_100_0-224_0-224"]
    assert len(place_subvolumes(crossing, shapes, SubvolumeParams()).subvolumes) == 3
    assert len(place_subvolumes(crossing, shapes, SubvolumeParams(max_overlap=0)).subvolumes) == 1
    for distance, count in ((4, 1), (5, 2)):
        pair = ["v-LOC-0_100_0-224_0-224", f"v-LOC-0_{100 + distance}_0-224_0-224"]
        assert len(place_subvolumes(pair, shapes, SubvolumeParams()).subvolumes) == count


def test_a_larger_limit_only_adds_and_another_seed_chooses_others():
    patches = patches_of(SHAPES)

    def chosen(limit, seed=0):
        params = SubvolumeParams(num_slices=5, side_px=20, limit=limit, seed=seed)
        return [item.name for item in place_subvolumes(patches, SHAPES, params).subvolumes]

    most = chosen(10_000)
    assert all(chosen(limit) == most[:limit] for limit in (1, 4, 9, 15)) and len(most) > 15
    assert chosen(9, seed=1) != most[:9]
    assert len(set(most)) == len(most)


def test_the_order_of_the_patches_does_not_matter():
    patches = patches_of(SHAPES)
    params = SubvolumeParams(num_slices=5, side_px=20, limit=12)
    shuffled = np.random.default_rng(0).permutation(patches).tolist()
    assert place_subvolumes(patches, SHAPES, params).subvolumes == place_subvolumes(shuffled, SHAPES, params).subvolumes


def test_a_place_that_lacks_data_is_not_in_the_way_of_others():
    pair = ["v-LOC-0_100_0-224_0-224", "v-LOC-0_102_0-224_0-224"]
    shapes = {"v": (224, 224, 224)}
    first = place_subvolumes(pair, shapes, SubvolumeParams()).subvolumes[0]
    placed = place_subvolumes(pair, shapes, SubvolumeParams(), lambda volume, box: box != first.box)
    (other,) = placed.subvolumes
    assert other.patch != first.patch and placed.skipped == ((first.patch, Skipped.no_data),)


@given(*[st.tuples(*[st.integers(0, 6)] * 3)] * 4)
def test_shared_voxels_are_those_of_both_boxes(low, size, other_low, other_size):
    high, other_high = (tuple(np.add(*pair).tolist()) for pair in ((low, size), (other_low, other_size)))
    shape = (13, 13, 13)
    expected = (covered(low, high, shape) & covered(other_low, other_high, shape)).sum()
    assert shared_voxels(low, high, other_low, other_high) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_slices": 4}, "num_slices is 4; expected an odd number"),
        ({"num_slices": 224, "side_px": 128}, r"or side_px \(128\) for cubes"),
        ({"num_slices": 1023, "side_px": 1024}, "expected at most 67108864"),
        ({"max_overlap": 1.1}, "max_overlap"),
        ({"form": "png"}, "ome-zarr"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        SubvolumeParams(**values)


def test_a_patch_of_an_unknown_volume_is_an_error_that_names_those_there_are():
    with pytest.raises(KeyError, match="belongs to volume 'w', which the dataset does not have; it has 'v'"):
        place_subvolumes(["w-LOC-0_50_0-224_0-224"], {"v": (100, 300, 300)}, SubvolumeParams(**LOOSE))
