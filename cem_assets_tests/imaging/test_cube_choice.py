"""Candidates and draw of sparse sampling, compared with simple code written from the definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.imaging.cube_choice import (
    SamplingParams,
    candidate_cubes,
    cube_bytes,
    cube_grid,
    draw_cubes,
    invert_values,
    order_cubes,
    roi_name,
)


def spans(boxes):
    return [tuple((s.start, s.stop) for s in box) for box in boxes]


def slow_candidates(reference, factor, shape, params, is_missing):
    """Count every reference voxel that a cube touches, one by one, for every cube of the grid."""
    found = []
    cube = params.cube_px
    for z in range(0, shape[0], cube):
        for y in range(0, shape[1], cube):
            for x in range(0, shape[2], cube):
                box = [(a, min(a + cube, n)) for a, n in zip((z, y, x), shape, strict=True)]
                if box[0][1] - box[0][0] < params.min_slices:
                    continue
                touched = [
                    [i for i in range(n) if i < b / f and (i + 1) > a / f] or [n - 1]
                    for (a, b), f, n in zip(box, factor, reference.shape, strict=True)
                ]
                voxels = [(i, j, k) for i in touched[0] for j in touched[1] for k in touched[2]]
                good = [v for v in voxels if reference[v] not in params.padding_values and not is_missing[v]]
                if len(good) >= params.min_content * len(voxels):
                    found.append(tuple(box))
    return found


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(1, 100)] * 3),
    factor=st.sampled_from([(1, 1, 1), (2, 2, 2), (4, 8, 8), (1, 16, 16), (3, 3, 3)]),
    content=st.sampled_from([0.0, 0.5, 0.7, 1.0]),
)
def test_candidates_are_those_of_the_definition(seed, shape, factor, content):
    rng = np.random.default_rng(seed)
    small = tuple(max(1, math.ceil(n / f)) for n, f in zip(shape, factor, strict=True))
    reference = rng.integers(0, 4, small).astype(np.uint8)
    reference[: small[0] // 2, : small[1] // 2] = 0
    is_missing = rng.random(small) < 0.1
    params = SamplingParams(cube_px=32, min_content=content, padding_values=(0, 3))
    found = candidate_cubes(reference, factor, shape, params, is_missing)
    assert spans(found) == slow_candidates(reference, factor, shape, params, is_missing)


@pytest.mark.parametrize(("share", "count"), [(0.69, 0), (0.71, 1)])
def test_seventy_percent_of_a_cube_must_be_content(share, count):
    reference = np.zeros((10, 10, 10), np.uint8)
    reference.reshape(-1)[: round(share * 1000)] = 9
    assert len(candidate_cubes(reference, (25.6, 25.6, 25.6), (256, 256, 256), SamplingParams())) == count


def test_cubes_of_fewer_than_five_slices_are_left_out():
    params = SamplingParams(cube_px=256)
    for depth, expected in ((256 + 4, [(0, 256)]), (256 + 5, [(0, 256), (256, 261)]), (4, [])):
        assert cube_grid((depth, 300, 256), params) == (expected, [(0, 256), (256, 300)], [(0, 256)])


def test_a_reference_of_another_volume_is_refused():
    with pytest.raises(ValueError, match="does not cover the volume"):
        candidate_cubes(np.ones((10, 10, 10), np.uint8), (8, 8, 8), (80, 80, 800), SamplingParams())
    with pytest.raises(ValueError, match="three positive numbers"):
        candidate_cubes(np.ones((10, 10, 10), np.uint8), (8, 0, 8), (80, 80, 80), SamplingParams())
    with pytest.raises(ValueError, match="three axes"):
        candidate_cubes(np.ones((10, 10), np.uint8), (8, 8, 8), (80, 80, 80), SamplingParams())


def grid_of(count, side=32):
    return [(slice(0, side), slice(0, side), slice(i * side, (i + 1) * side)) for i in range(count)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_larger_budget_only_adds(few, many, seed):
    boxes, cube = grid_of(40), 32**3
    small, large = (
        draw_cubes(boxes, SamplingParams(gigabytes=(n + 0.5) * cube * 2 / 1e9, seed=seed), itemsize=2)
        for n in sorted((few, many))
    )
    assert len(small) == min(few, many) and len(large) == max(few, many)
    assert spans(large)[: len(small)] == spans(small)
    assert len(set(spans(large))) == len(large)


def test_the_order_depends_on_the_seed_alone():
    boxes = grid_of(40)
    orders = [spans(order_cubes(boxes, SamplingParams(seed=seed))) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert spans(order_cubes(boxes[::-1], SamplingParams(seed=3))) == orders[3]
    firsts = {order[0] for order in orders}
    assert len(firsts) > 10, "every candidate has its chance"


def test_the_draw_is_the_same_on_every_machine():
    drawn = draw_cubes(grid_of(8), SamplingParams(gigabytes=4 * 32**3 / 1e9))
    assert [box[2].start // 32 for box in drawn] == [4, 2, 3, 0]


def test_the_draw_ends_at_the_first_cube_that_does_not_fit():
    boxes = [*grid_of(3), (slice(0, 5), slice(0, 1), slice(0, 1))]
    drawn = draw_cubes(boxes, SamplingParams(gigabytes=(32**3 * 1.5) / 1e9))
    order = spans(order_cubes(boxes, SamplingParams()))
    assert spans(drawn) == order[: len(drawn)] and sum(cube_bytes(box, 1) for box in drawn) <= 32**3 * 1.5


def test_names_are_those_of_the_reference():
    box = (slice(512, 768), slice(0, 256), slice(256, 300))
    assert roi_name("jrc_hela-2", box) == "jrc_hela-2-ROI-x256-300_y0-256_z512-768"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int16"])
def test_inversion_keeps_the_range_and_undoes_itself(dtype):
    info = np.iinfo(dtype)
    values = np.array([info.min, info.min + 1, 0, 5, info.max], dtype)
    inverted = invert_values(values)
    np.testing.assert_array_equal(inverted, (info.max + info.min - values.astype(np.int64)).astype(dtype))
    assert inverted.dtype == values.dtype
    np.testing.assert_array_equal(invert_values(inverted), values)
    with pytest.raises(ValueError, match="cannot be inverted"):
        invert_values(np.zeros(3, np.float32))


@pytest.mark.parametrize("bad", [{"cube_px": 0}, {"min_content": 1.1}, {"gigabytes": 0}, {"seed": -1}, {"colour": 1}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="validation error"):
        SamplingParams(**bad)
