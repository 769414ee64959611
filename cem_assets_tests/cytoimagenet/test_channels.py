"""Gray images equal the definition with numpy.percentile in float64, bit by bit."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cem_assets.cytoimagenet.channels import gray_of_colour, histogram, merge_channels, merge_image, percentiles_of_counts
from cem_assets.errors import DataError

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64")


def unit_by_definition(plane) -> np.ndarray:
    """Clip to the 0.1 and 99.9 percentiles of the finite pixels, and scale to 0..1 in float64."""
    numbers = np.asarray(plane).astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(numbers.shape)
    low, high = np.percentile(numbers[finite], (0.1, 99.9))
    if low == high:
        return np.zeros(numbers.shape)
    clean = np.where(finite, numbers, low)
    return (np.clip(clean, low, high) - low) / (high - low)


def gray_by_definition(planes, is_colour=False) -> np.ndarray:
    if is_colour:
        unit = unit_by_definition(np.mean([plane.astype(np.float64) for plane in planes], axis=0))
    else:
        unit = np.mean([unit_by_definition(plane) for plane in planes], axis=0)
    return np.rint(unit * 255).astype(np.uint8)


def plane(dtype="uint16", shape=(61, 83), seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (generator.standard_normal(shape) * 100).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def real_images(folder: Path) -> dict[str, tuple[list[np.ndarray], bool]]:
    """Return fluorescence and colour images of several sources as (planes, is_colour), by name."""
    examples, sbs = folder / "fluorescence/cellprofiler_examples", folder / "fluorescence/bbbc013_sbs"
    groups = {
        "fly": sorted((examples / "ExampleFly").glob("*.TIF")),
        "human": sorted((examples / "ExampleHuman").glob("*.tif")),
        "worms": sorted((examples / "ExampleUntangleWorms").glob("*.tif")),
        "vitra": sorted((examples / "ExampleVitraImages").glob("*.tif")),
        "12 bits": sorted((examples / "ExampleSpeckles").glob("*.tif")),
        "offset by 32,768": sorted((examples / "ExampleIlluminationCorrection").glob("*.tif")),
        "u2os 1": [sbs / "Channel1-01-A-01.tif", sbs / "Channel2-01-A-01.tif"],
        "u2os 12": [sbs / "Channel1-12-A-12.tif", sbs / "Channel2-12-A-12.tif"],
        "stardist": [folder / "fluorescence/stardist/img2d.tif"],
    }
    images = {name: ([tifffile.imread(path) for path in paths], False) for name, paths in groups.items()}
    colour = [examples / "ExampleUntangleWormsBrightField/WT_orig.png"]
    colour += sorted((folder / "fluorescence/dsb2018_bbbc038").glob("*/images/*.png"))[:12]
    for path in colour:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        images[path.stem[:12]] = ([pixels[..., channel] for channel in range(3)], True)
    assert len(images) == 22 and all(planes for planes, _ in images.values())
    return images


# Percentiles


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_planes_of_every_number_type_are_normalised_as_defined(dtype, order):
    for shape in ((1, 1), (1, 2), (3, 5), (61, 83), (200, 301)):
        for seed in range(3):
            data = plane(dtype, shape, seed).astype(np.dtype(dtype).newbyteorder(order))
            assert np.array_equal(merge_channels([data]), gray_by_definition([data]))


@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "float32"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
            elements=hnp.from_dtype(np.dtype(dtype), min_value=-100, max_value=120, allow_nan=False)
            if np.dtype(dtype).kind != "u"
            else None,
        )
    )
)
def test_any_plane_is_normalised_as_defined(data):
    assert np.array_equal(merge_channels([data]), gray_by_definition([data]))


@given(hnp.arrays("uint8", st.integers(1, 3000)), st.floats(0, 100))
def test_percentiles_of_counts_equal_those_of_the_values(values, percent):
    assert percentiles_of_counts(histogram(values), [percent, 50]) == np.percentile(values, [percent, 50]).tolist()


@pytest.mark.parametrize("dtype", INTEGERS[:4])
def test_histograms_count_every_value_from_the_smallest(dtype):
    data = plane(dtype, (37, 41))
    smallest = int(np.iinfo(dtype).min)
    expected = np.bincount(data.astype(np.int64).ravel() - smallest, minlength=1 << (8 * data.itemsize))
    assert histogram(data).tolist() == expected.tolist()


def test_histograms_of_other_types_are_refused():
    with pytest.raises(ValueError, match="8- and 16-bit integers; found float32"):
        histogram(plane("float32"))


def test_pixels_that_are_not_finite_count_for_nothing_and_become_zero():
    data = plane("float32", (50, 60)) + 1000
    data[3, 4], data[5, 6], data[7, 8] = np.nan, np.inf, -np.inf
    gray = merge_channels([data])
    assert not gray[[3, 5, 7], [4, 6, 8]].any() and np.array_equal(gray, gray_by_definition([data]))
    assert np.array_equal(
        merge_channels([data, plane("uint8", (50, 60))]), gray_by_definition([data, plane("uint8", (50, 60))])
    )


def test_a_plane_without_a_finite_pixel_becomes_zeros():
    assert not merge_channels([np.full((4, 5), np.nan, np.float32)]).any()


def test_values_too_large_to_subtract_become_zeros_and_not_noise():
    data = np.tile([[-1.7e308, 1.7e308]], (20, 20))
    assert not merge_channels([data]).any() and not merge_channels([data, data]).any()


# Normalisation


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("value", [0, 7, 100])
def test_a_uniform_plane_becomes_zeros(dtype, value):
    data = np.full((30, 40), value, dtype)
    assert not merge_channels([data]).any()


def test_a_plane_uniform_but_for_rare_pixels_becomes_zeros():
    data = np.full((100, 100), 9, np.uint16)
    data[0, :5], data[1, :5] = 0, 65535
    assert not merge_channels([data]).any()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_values_outside_the_bounds_saturate(dtype):
    data = np.arange(10_000).reshape(100, 100).astype(dtype)
    gray = merge_channels([data]).ravel()
    assert not gray[:10].any() and (gray[-10:] == 255).all()
    assert (np.diff(gray.astype(int)) >= 0).all() and (np.unique(gray) == np.arange(256)).all()


# Merging


def three_tenths(dtype="uint16") -> np.ndarray:
    """Make a plane with the percentiles 0 and 10, and one pixel of 3, which becomes 0.3 * 255 = 76.5."""
    data = np.zeros((40, 50), dtype)
    data[:20] = 10
    data[30, 30] = 3
    return data


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_halves_are_rounded_to_the_even_level(dtype):
    data = three_tenths(dtype)
    assert merge_channels([data])[30, 30] == 76 == merge_channels([data, data])[30, 30]
    assert gray_of_colour([data, data, data])[30, 30] == 76


@pytest.mark.parametrize(
    "dtypes",
    [("uint8",) * 2, ("uint16",) * 5, ("uint8", "uint16", "float32"), ("int16", "int8"), ("float64", "int32", "uint64")],
    ids="-".join,
)
@pytest.mark.parametrize("shape", [(1, 1), (61, 83), (181, 182), (260, 301)])
def test_merged_channels_equal_the_definition(dtypes, shape):
    planes = [plane(dtype, shape, seed) for seed, dtype in enumerate(dtypes)]
    merged = merge_channels(planes)
    assert merged.dtype == np.uint8 and merged.flags.c_contiguous
    assert np.array_equal(merged, gray_by_definition(planes))


@pytest.mark.parametrize("dtypes", [("uint8",) * 3, ("uint16",) * 3, ("uint8", "float32", "int16")], ids="-".join)
def test_colour_is_averaged_before_it_is_normalised(dtypes):
    planes = [plane(dtype, (181, 182), seed) // (1 + seed) for seed, dtype in enumerate(dtypes)]
    assert np.array_equal(gray_of_colour(planes), gray_by_definition(planes, is_colour=True))
    assert np.array_equal(merge_image(planes, is_colour=True), gray_by_definition(planes, is_colour=True))
    assert np.array_equal(merge_image(planes, is_colour=False), gray_by_definition(planes))
    assert not np.array_equal(gray_by_definition(planes, is_colour=True), gray_by_definition(planes))


def test_a_channel_without_contrast_counts_as_zeros():
    data = three_tenths()
    merged = merge_channels([data, np.full_like(data, 500)])
    assert merged.max() == 128 and np.array_equal(merged, gray_by_definition([data, np.zeros_like(data)]))


def test_views_byte_orders_and_read_only_planes_give_the_same():
    pixels = plane("uint16", (70, 90, 2))
    expected = gray_by_definition([pixels[..., 0], pixels[..., 1]])
    read_only = pixels[..., 0].copy()
    read_only.setflags(write=False)
    assert np.array_equal(merge_channels([pixels[..., 0], pixels[..., 1]]), expected)
    assert np.array_equal(merge_channels([read_only, pixels[..., 1].astype(">u2")]), expected)


def test_inputs_are_left_alone():
    planes = [plane("uint8", seed=seed) for seed in range(3)]
    before = [data.copy() for data in planes]
    merge_channels(planes)
    gray_of_colour(planes)
    assert all(np.array_equal(data, old) for data, old in zip(planes, before, strict=True))


@pytest.mark.parametrize(
    ("planes", "is_colour", "message"),
    [
        ([], False, "found no planes"),
        ([plane(), plane(shape=(61, 84))], False, "found 61 x 83, 61 x 84"),
        ([plane(shape=(4, 5, 3))], False, r"found shape \(4, 5, 3\)"),
        ([plane(shape=(0, 5))], False, r"found shape \(0, 5\)"),
        ([np.zeros((4, 5), np.complex64)], False, "of complex64"),
        ([np.zeros((4, 5), np.bool_)], False, "of bool"),
        ([np.zeros((4, 5), object)], False, "of object"),
        ([plane(), plane()], True, "found 2"),
        ([plane()] * 4, True, "found 4; leave alpha out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused(planes, is_colour, message):
    with pytest.raises(DataError, match=message):
        merge_image(planes, is_colour)


def test_real_images_equal_the_definition(test_data):
    for name, (planes, is_colour) in real_images(test_data).items():
        merged = merge_image(planes, is_colour)
        assert np.array_equal(merged, gray_by_definition(planes, is_colour)), name
        assert merged.min() <= 5 and merged.std() > 1, name
