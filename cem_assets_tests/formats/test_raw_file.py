"""Voxels in plain order: every box, number type and order of axes is read right, by rows and by mapping."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.formats import arrays
from cem_assets.formats.arrays import RawFile


@st.composite
def reads(draw):
    sides = draw(st.tuples(*[st.integers(1, 12)] * 3))
    order = draw(st.permutations((0, 1, 2)))
    shape = tuple(sides[axis] for axis in order)
    box = []
    for side in shape:
        start = draw(st.integers(0, side - 1))
        box.append(slice(start, draw(st.integers(start + 1, side))))
    return sides, tuple(order), tuple(box)


@settings(max_examples=80, deadline=None)
@given(read=reads(), dtype=st.sampled_from(["|u1", "<u2", ">u2", ">f4", "<i8"]), buffer=st.sampled_from([1, 40, 1 << 18]))
@pytest.mark.parametrize("whole_rows", [0, 1 << 20], ids=["mapped", "whole rows"])
def test_a_box_is_what_lies_there(tmp_path_factory, whole_rows, read, dtype, buffer):
    sides, order, box = read
    data = np.random.default_rng(3).integers(0, 255, sides).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "voxels.raw"
    path.write_bytes(b"header" + data.tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_WHOLE_ROW_BYTES", whole_rows)
        patch.setattr(arrays, "_ROWS_BUFFER_BYTES", buffer)
        patch.setattr(arrays, "_MAPPED_BYTES", max(buffer, 1))
        patch.setattr(arrays, "_SLICES_AT_ONCE", 2)
        found = RawFile(path, 6, sides, dtype, order).read(box)
    assert np.array_equal(found, data.transpose(order)[box]) and found.dtype.isnative


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_never_zeros(tmp_path):
    path = tmp_path / "voxels.raw"
    path.write_bytes(bytes(range(1, 101)))
    source = RawFile(path, 0, (4, 5, 5), "|u1").check_length("voxels.raw")
    os.truncate(path, 60)
    assert source.read((slice(0, 2), slice(0, 5), slice(0, 5))).min() == 1
    with pytest.raises(ValueError, match=r"voxels\.raw ended at byte 60 while it was read"):
        source.read((slice(0, 4), slice(0, 5), slice(1, 5)))
