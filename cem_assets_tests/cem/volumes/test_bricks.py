"""Bricks give exactly the patches of the definition, which cuts the whole volume slice by slice and patch by patch."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.cem.patch_grid import cell_spans, parse_patch_name
from cem_assets.cem.volumes.bricks import (
    ALL_PLANES,
    XY_ONLY,
    brick_boxes,
    brick_groups,
    brick_shape,
    count_brick_patches,
    count_patches,
    cut_patches,
    group_by_brick,
    hash_brick,
    hash_image,
    names_of,
)
from cem_assets.imaging.dhash import imagehash_dhash


class InMemory:
    """A `Readable` volume in memory."""

    def __init__(self, voxels, planes, mask=None, name="v"):
        self.voxels, self.planes, self.mask, self.name, self.shape = voxels, planes, mask, name, voxels.shape

    def read(self, box):
        return self.voxels[box]

    def missing(self, box):
        if self.mask is None or not self.mask[box].any():
            return None
        return self.mask[box]


def by_definition(voxels, planes, spacing=1, name="v"):
    """Cut the whole volume as the published scripts do, including the last slice."""
    found = {}
    for axis in planes:
        sides = voxels.shape[:axis] + voxels.shape[axis + 1 :]
        if min(sides) < 64:
            continue
        digits = max(1, int(np.ceil(np.log10(voxels.shape[axis] - 1)))) if voxels.shape[axis] > 2 else 1
        for index in range(0, voxels.shape[axis], spacing):
            plane = np.take(voxels, index, axis=axis)
            for y in range(max(1, round(sides[0] / 224))):
                for x in range(max(1, round(sides[1] / 224))):
                    y0, y1, x0, x1 = y * 224, min(y * 224 + 224, sides[0]), x * 224, min(x * 224 + 224, sides[1])
                    found[f"{name}-LOC-{axis}_{str(index).zfill(digits)}_{y0}-{y1}_{x0}-{x1}"] = plane[y0:y1, x0:x1]
    return found


def by_bricks(volume, spacing=1):
    names, hashes = [], []
    for box in brick_boxes(volume.shape, volume.planes):
        rows = hash_brick(volume, box, spacing)
        assert len(rows) == count_brick_patches(volume.shape, volume.planes, box, spacing)
        names += names_of(volume.name, volume.shape, rows.place)
        hashes += rows.dhash.tolist()
    assert len(set(names)) == len(names)
    return dict(zip(names, hashes, strict=True))


@pytest.mark.parametrize(
    ("shape", "planes", "spacing"),
    [
        ((70, 230, 336), ALL_PLANES, 1),
        ((240, 64, 100), ALL_PLANES, 7),
        ((40, 120, 120), ALL_PLANES, 1),
        ((5, 500, 700), XY_ONLY, 1),
        ((9, 100, 1900), XY_ONLY, 2),
        ((1, 300, 300), XY_ONLY, 1),
    ],
)
def test_every_patch_of_the_definition_and_no_other(shape, planes, spacing):
    voxels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = by_definition(voxels, planes, spacing)
    found = by_bricks(InMemory(voxels, planes), spacing)
    assert found.keys() == expected.keys()
    assert len(found) == count_patches(shape, planes, spacing)
    for name in list(expected)[:: max(1, len(expected) // 60)]:
        assert found[name] == imagehash_dhash(expected[name])


def test_planes_too_thin_give_nothing():
    voxels = np.zeros((3, 50, 50), np.uint8)
    assert by_bricks(InMemory(voxels, ALL_PLANES)) == {} and count_patches(voxels.shape, ALL_PLANES) == 0


@settings(max_examples=60)
@given(st.tuples(*[st.integers(1, 2000)] * 3), st.sampled_from([ALL_PLANES, XY_ONLY]), st.integers(1, 50))
def test_bricks_tile_the_volume_and_their_counts_add_up(shape, planes, spacing):
    boxes = brick_boxes(shape, planes)
    assert sum(np.prod([s.stop - s.start for s in box], dtype=object) for box in boxes) == np.prod(shape, dtype=object)
    assert sum(count_brick_patches(shape, planes, box, spacing) for box in boxes) == count_patches(shape, planes, spacing)
    assert np.prod(brick_shape(shape, planes)) <= 1 << 24


@pytest.mark.parametrize("planes", [ALL_PLANES, XY_ONLY])
def test_pixels_are_found_again_from_the_place(planes):
    voxels = np.random.default_rng(1).integers(0, 256, (230, 240, 350), dtype=np.uint8)
    volume = InMemory(voxels, planes)
    rows = [hash_brick(volume, box) for box in brick_boxes(volume.shape, planes)]
    place = np.concatenate([row.place for row in rows])[::97]
    place = np.random.default_rng(0).permutation(place)
    seen = np.zeros(len(place), int)
    for box, group in group_by_brick(volume.shape, planes, place):
        for row, patch in zip(group, cut_patches(volume.read(box), box, place[group]), strict=True):
            name = names_of("v", volume.shape, place[[row]])[0]
            assert np.array_equal(patch, voxels[parse_patch_name(name).box()].reshape(patch.shape))
            seen[row] += 1
    assert (seen == 1).all()


def test_patches_that_touch_missing_voxels_are_counted():
    voxels = np.random.default_rng(1).integers(0, 256, (70, 224, 448), dtype=np.uint8)
    mask = np.zeros(voxels.shape, bool)
    mask[10, 5:15, 5:25] = True
    volume = InMemory(voxels, ALL_PLANES, mask)
    hit = {}
    for box in brick_boxes(volume.shape, ALL_PLANES):
        rows = hash_brick(volume, box)
        hit |= dict(zip(names_of("v", volume.shape, rows.place), rows.num_missing.tolist(), strict=True))
    touched = {name for name, count in hit.items() if count}
    expected = {name for name, patch in by_definition(mask, ALL_PLANES).items() if patch.any()}
    assert touched == expected and len(touched) == 1 + 10 + 20


def test_images_are_cut_row_by_row():
    pixels = np.random.default_rng(2).integers(0, 256, (500, 340), dtype=np.uint8)
    rows = hash_image(pixels)
    expected = [(-1, 0, y0, y1, x0, x1) for y0, y1 in cell_spans(500) for x0, x1 in cell_spans(340)]
    assert [tuple(row) for row in rows.place.tolist()] == expected
    for (_, _, y0, y1, x0, x1), value in zip(expected, rows.dhash.tolist(), strict=True):
        assert value == imagehash_dhash(pixels[y0:y1, x0:x1])
    assert names_of("i", (1, 500, 340), rows.place)[-1] == "i-LOC-2d-224-448_224-340"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.tuples(*[st.integers(1, 700)] * 3), most=st.integers(1, 5))
def test_groups_hold_every_brick_once_and_only_neighbours(data, shape, most):
    boxes = brick_boxes(shape, ALL_PLANES)
    written = data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    groups = brick_groups(boxes, written, most)
    assert [box for group in groups for box in group.boxes] == boxes
    assert [group.is_written for group in groups for _ in group.boxes] == written
    for group in groups:
        assert 1 <= len(group.boxes) <= most and len({(str(box[0]), str(box[1])) for box in group.boxes}) == 1
        assert all(left[2].stop == right[2].start for left, right in zip(group.boxes, group.boxes[1:], strict=False))
    for left, right in itertools.pairwise(groups):  # no group is smaller than it has to be
        is_end = left.boxes[-1][2].stop == shape[2] or left.is_written != right.is_written
        assert len(left.boxes) == most or is_end
