"""Intensity policies: which values become 0 and 255, and that the mapping can be undone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.imaging.intensity import (
    SUPPORTED_DTYPES,
    default_policy,
    gray_from_channels,
    mapping_for,
)


def mapped(values, policy, **more):
    values = np.asarray(values)
    return mapping_for(policy, values.dtype, values, **more).apply(values)


def test_uint8_is_taken_as_it_is():
    every = np.arange(256, dtype=np.uint8)
    assert default_policy(every.dtype) == "identity"
    assert np.array_equal(mapped(every, "identity"), every)


def test_int8_is_shifted_not_clipped():
    every = np.arange(-128, 128).astype(np.int8)
    assert mapped(every, "identity").tolist() == list(range(256))
    assert mapped(every, "dtype_range").tolist() == list(range(256))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32"])
def test_dtype_range_uses_the_whole_range_of_the_type(dtype):
    info = np.iinfo(dtype)
    values = np.array([info.min, (info.min + info.max) // 2, info.max], dtype=dtype)
    low, middle, high = mapped(values, "dtype_range").tolist()
    assert (low, high) == (0, 255) and middle in (127, 128)


def test_floats_are_taken_as_0_to_1_by_dtype_range():
    assert mapped(np.array([-1.0, 0.0, 0.5, 1.0, 7.0], np.float32), "dtype_range").tolist() == [0, 0, 128, 255, 255]


def test_12_bit_data_in_uint16_does_not_turn_black():
    values = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    out = mapped(values, default_policy(values.dtype))
    assert out.min() == 0 and out.max() == 255 and 120 < out.mean() < 135


def test_big_endian_gives_the_same_as_little_endian():
    values = np.random.default_rng(1).integers(0, 65536, 1000).astype("<u2")
    assert np.array_equal(mapped(values, "percentile"), mapped(values.astype(">u2"), "percentile"))


def test_values_offset_by_32768_keep_their_contrast():
    values = (32768 + np.arange(1000)).astype(np.uint16)
    out = mapped(values, "percentile")
    assert out[0] == 0 and out[-1] == 255 and len(np.unique(out)) == 256


def test_window_saturates_outside():
    assert mapped(np.array([0, 100, 150, 200, 900], np.uint16), "window", window=(100, 200)).tolist() == [0, 0, 128, 255, 255]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SUPPORTED_DTYPES), st.integers(0, 2**32 - 1))
def test_undoing_gives_back_source_values_within_half_a_step(dtype, seed):
    generator = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind == "f":
        values = (generator.standard_normal(500) * 100).astype(dtype)
    else:
        info = np.iinfo(dtype)
        low, high = max(info.min, -(2**40)), min(info.max, 2**40)
        values = generator.integers(low, high, 500, endpoint=True).astype(dtype)
    mapping = mapping_for("percentile", values.dtype, values, percentiles=(0, 100))
    step = (mapping.high - mapping.low) / 255
    assert np.abs(mapping.undo(mapping.apply(values)) - values.astype(np.float64)).max() <= step * 0.5000001


def test_percentiles_are_those_of_numpy():
    values = np.random.default_rng(3).normal(size=10_000).astype(np.float32)
    mapping = mapping_for("percentile", values.dtype, values)
    assert (mapping.low, mapping.high) == tuple(np.percentile(values.astype(np.float64), [0.1, 99.9]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_errors_that_name_the_place(bad):
    values = np.ones((3, 4, 5), np.float32)
    values[1, 2, 3] = bad
    mapping = mapping_for("window", values.dtype, values, window=(0, 2))
    with pytest.raises(ValueError, match=r"1 values are NaN or infinite, the first at \(1, 2, 3\)"):
        mapping.apply(values)


@pytest.mark.parametrize(
    ("values", "policy", "more", "message"),
    [
        (np.zeros(3, np.complex64), "percentile", {}, "number type is complex64; expected one of uint8"),
        (np.zeros(3, np.uint16), "identity", {}, 'intensity = "identity" needs uint8 or int8 data, found uint16'),
        (np.full(9, 7, np.uint16), "percentile", {}, "percentiles are both 7"),
        (np.array([1.0, np.nan], np.float32), "percentile", {}, "1 of 2 sampled values are NaN or infinite"),
        (np.zeros(0, np.float32), "percentile", {}, "every voxel is marked as missing"),
        (np.zeros(3, np.uint16), "window", {"window": (5, 5)}, "low < high"),
        (np.zeros(3, np.uint16), "window", {}, "needs intensity_window"),
    ],
)
def test_what_cannot_be_mapped_is_said_in_words(values, policy, more, message):
    with pytest.raises(ValueError, match=message):
        mapped(values, policy, **more)


def test_gray_saved_as_colour_is_recognised():
    gray = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    opaque = np.full_like(gray, 255)
    for channels, note in [
        ([gray], "gray"),
        ([gray, opaque], "gray saved as LA"),
        ([gray] * 3, "gray saved as RGB"),
        ([gray] * 3 + [opaque], "gray saved as RGBA"),
    ]:
        out, how = gray_from_channels(np.stack(channels, axis=-1))
        assert how == note and np.array_equal(out, gray)


def test_real_colour_becomes_luminance():
    out, how = gray_from_channels(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))
    assert out.tolist() == [[76, 150, 29]] and how == "colour reduced to luminance"


def test_five_channels_are_refused():
    with pytest.raises(ValueError, match="it has 5 channels; expected 1"):
        gray_from_channels(np.zeros((4, 4, 5), np.uint8))
