"""Image files of light microscopy give the planes that were recorded; damaged ones are refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cem_assets.formats import arrays
from cem_assets.formats.microscopy_images import IMAGE_SUFFIXES, MicroscopyImage, is_image, read_microscopy_image

REMEDIES = ("Copy", "Rename", "Save", "Cut", "Convert", "Split", "save it", "Remove")


def pixels(dtype="uint8", shape=(21, 34), seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def colour(dtype="uint8", channels=3) -> np.ndarray:
    return pixels(dtype, (21, 34, channels), seed=1)


def read(path: Path) -> MicroscopyImage:
    image = read_microscopy_image(path)
    first = image.planes[0]
    for plane in image.planes:
        assert plane.ndim == 2 and (plane.shape, plane.dtype) == (first.shape, first.dtype)
        assert plane.dtype.isnative and plane.flags.c_contiguous and plane.dtype.kind in "iuf"
    assert not image.is_colour or len(image.planes) == 3
    return image


def assert_planes(image: MicroscopyImage, *expected: np.ndarray, is_colour: bool = False) -> None:
    assert (len(image.planes), image.is_colour) == (len(expected), is_colour)
    for plane, wanted in zip(image.planes, expected, strict=True):
        assert plane.dtype == wanted.dtype
        np.testing.assert_array_equal(plane, wanted)


def refused(path: Path, *parts: str) -> str:
    with pytest.raises(ValueError) as caught:
        read_microscopy_image(path)
    message = str(caught.value)
    for part in (path.name, *parts):
        assert part in message, (part, message)
    assert any(remedy in message for remedy in REMEDIES), message
    assert str(path.parent) not in message
    return message


# Real files

REAL = {
    **{
        f"bbbc013_sbs/Channel{channel}-{well}.tif": (1, (640, 640), "uint8", False)
        for channel in (1, 2)
        for well in ("01-A-01", "02-A-02", "03-A-03", "05-A-05", "08-A-08", "12-A-12")
    },
    "cellprofiler_examples/ExampleColocalization/0_1_N_G.png": (1, (1040, 1392), "uint16", False),
    **{f"cellprofiler_examples/ExampleFly/01_POS002_{c}.TIF": (1, (1006, 1000), "uint8", False) for c in "DFR"},
    **{
        f"cellprofiler_examples/ExampleHuman/AS_09125_050116030001_D03f00d{n}.tif": (1, (512, 512), "uint8", False)
        for n in range(3)
    },
    "cellprofiler_examples/ExampleIlluminationCorrection/--W00001--P00001--Z00000--T00000--cherry.tif": (
        1, (1024, 1344), "uint16", False,
    ),
    "cellprofiler_examples/ExampleSpeckles/1-162hrh2ax2.tif": (1, (1000, 1200), "uint16", False),
    **{
        f"cellprofiler_examples/ExampleTrackObjects/DrosophilaEmbryo_GFPHistone_000{n}.tif": (3, (264, 542), "uint8", True)
        for n in range(3)
    },
    "cellprofiler_examples/ExampleUntangleWorms/"
    "1649_1109_0003_Amp5-1_B_20070424_C01_w1_10E01AFB-34C4-416E-A9D3-51B90AB53728.tif": (1, (520, 696), "uint16", False),
    "cellprofiler_examples/ExampleUntangleWorms/"
    "1649_1109_0003_Amp5-1_B_20070424_C01_w2_CB2F18CD-EDF0-4BCD-98CF-3A07E5A582FF.tif": (1, (520, 696), "uint16", False),
    "cellprofiler_examples/ExampleUntangleWormsBrightField/WT_orig.png": (3, (770, 691), "uint8", True),
    "cellprofiler_examples/ExampleVitraImages/Channel 1-01-A-01-00.tif": (1, (1024, 1360), "uint8", False),
    "cellprofiler_examples/ExampleVitraImages/Channel 2-01-A-01-00.tif": (1, (1024, 1360), "uint8", False),
    "cellprofiler_examples/ExampleWoundHealing/DMSO_B5_t0.JPG": (3, (1536, 2304), "uint8", True),
    "cellprofiler_examples/ExampleYeastPatches/1832-48hours-gal-1.JPG": (3, (1200, 1600), "uint8", True),
    "cellprofiler_tests/5channel.tif": (5, (64, 64), "uint8", False),
    "cellprofiler_tests/MetamorphImage.tif": (1, (520, 696), "uint16", False),
    "cellprofiler_tests/NikonTIF.tif": (3, (731, 805), "uint8", True),
    "cellprofiler_tests/iamac01file.c01": (1, (512, 512), "uint16", False),
    "stardist/img2d.tif": (1, (512, 512), "uint16", False),
    "stardist/mask2d.tif": (1, (512, 512), "uint16", False),
    "stardist/img3d.tif": (31, (61, 57), "uint16", False),
    "stardist/mask3d.tif": (31, (61, 57), "uint16", False),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL, ids=lambda name: name.rsplit("/", 1)[-1][:40])
def test_real_images(test_data, name):
    path = test_data / "fluorescence" / name
    image = read(path)
    assert (len(image.planes), image.planes[0].shape, image.planes[0].dtype.name, image.is_colour) == REAL[name]
    if path.suffix.lower() == ".c01":
        stored = zlib.decompress(path.read_bytes()[4:])[52:]
        assert_planes(image, np.frombuffer(stored, "<u2").reshape(512, 512))
        return
    if path.suffix.lower() in (".tif", ".png", ".jpg"):  # another decoder gives the same values
        other = np.asarray(Image.open(path)) if REAL[name][0] < 4 else tifffile.imread(path)
        if other.ndim == 3 and REAL[name][0] < 4:
            other = np.moveaxis(other, -1, 0)[: len(image.planes)]
        assert_planes(
            image, *other.reshape(-1, *image.planes[0].shape).astype(image.planes[0].dtype), is_colour=image.is_colour
        )


def test_every_real_image_is_listed_here(test_data):
    folder = test_data / "fluorescence"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and is_image(path.name)}
    assert {name for name in found if not name.startswith("dsb2018")} == set(REAL)


def test_real_gray_saved_as_rgba_and_its_masks(test_data):
    folders = sorted((test_data / "fluorescence/dsb2018_bbbc038").iterdir())
    folders = [folder for folder in folders if (folder / "images").is_dir()][:15]
    assert len(folders) == 15
    num_gray = 0
    for folder in folders:
        path = next((folder / "images").iterdir())
        image = read(path)
        stored = np.asarray(Image.open(path))
        assert stored.shape[-1] == 4 and "alpha left out" in image.notes
        num_gray += len(image.planes) == 1
        assert_planes(image, *np.moveaxis(stored, -1, 0)[: len(image.planes)], is_colour=len(image.planes) == 3)
        mask = sorted((folder / "masks").iterdir())[0]
        assert_planes(read(mask), np.asarray(Image.open(mask)))
    assert num_gray >= 12


def test_real_palettes_are_gray_and_keep_8_bits(test_data):
    for name, note in (("bbbc013_sbs/Channel1-01-A-01.tif", True), ("cellprofiler_examples/ExampleFly/01_POS002_D.TIF", True)):
        image = read(test_data / "fluorescence" / name)
        with tifffile.TiffFile(test_data / "fluorescence" / name) as tif:
            assert_planes(image, tif.pages[0].asarray())  # the palettes are ramps, in which the index is the gray value
        assert ("gray saved with a palette" in image.notes) is note


# TIFF


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"])
def test_tiff_of_every_number_type_and_byte_order(tmp_path, dtype, byteorder):
    data = pixels(dtype)
    tifffile.imwrite(tmp_path / "a.TIF", data.astype(data.dtype.newbyteorder(byteorder)), byteorder=byteorder)
    assert_planes(read(tmp_path / "a.TIF"), data)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "predictor": True},
        {"compression": "packbits"},
        {"tile": (16, 16), "compression": "zlib"},
        {"rowsperstrip": 5},
        {"bigtiff": True},
        {"imagej": True},
        {"ome": True},
        {"metadata": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["tif", "flex", "stk"])
def test_pages_of_a_tiff_are_planes_in_their_order(tmp_path, options, suffix):
    data = pixels("uint16", (3, 40, 34))
    tifffile.imwrite(tmp_path / f"a.{suffix}", data, **{"photometric": "minisblack", **options})
    assert_planes(read(tmp_path / f"a.{suffix}"), *data)


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True, "metadata": {"axes": "ZCYX"}}])
def test_hyperstacks_give_a_plane_for_each_channel_and_slice(tmp_path, options):
    data = pixels("uint16", (4, 3, 21, 34))
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", **options)
    assert_planes(read(tmp_path / "a.tif"), *data.reshape(-1, 21, 34))


def test_float_planes_keep_nan_and_infinities_and_count_them(tmp_path):
    data = pixels("float32", (2, 21, 34))
    data[0, 3, 4], data[1, 0, 0], data[1, 5, 5] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    image = read(tmp_path / "a.tif")
    assert_planes(image, *data)
    assert image.notes == ("3 pixels are NaN or infinite",)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_colour_tiff_is_three_planes(tmp_path, planar, dtype):
    data = colour(dtype)
    stored = data if planar == "contig" else np.moveaxis(data, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    assert_planes(read(tmp_path / "a.tif"), *np.moveaxis(data, -1, 0), is_colour=True)


def test_gray_tiff_saved_with_more_channels_is_one_plane(tmp_path):
    data = pixels()
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([data] * 3, -1), photometric="rgb")
    tifffile.imwrite(
        tmp_path / "rgba.tif", np.stack([data] * 3 + [pixels(seed=5)], -1), photometric="rgb", extrasamples=["unassalpha"]
    )
    tifffile.imwrite(
        tmp_path / "la.tif", np.stack([data, pixels(seed=5)], -1), photometric="minisblack", extrasamples=["unassalpha"]
    )
    for name in ("rgb", "rgba", "la"):
        image = read(tmp_path / f"{name}.tif")
        assert_planes(image, data)
        assert ("alpha left out" in image.notes) == name.endswith("a")


def test_stacks_of_gray_saved_as_rgb_are_planes_and_stacks_of_colour_are_refused(tmp_path):
    data = pixels("uint8", (3, 21, 34))
    tifffile.imwrite(tmp_path / "a.tif", np.stack([data] * 3, -1), photometric="rgb")
    assert_planes(read(tmp_path / "a.tif"), *data)
    data = np.stack([data, data, pixels("uint8", (3, 21, 34), seed=2)], -1)
    tifffile.imwrite(tmp_path / "b.tif", data, photometric="rgb")
    refused(tmp_path / "b.tif", "has 3 pages, 3 of them in colour")


def test_channels_side_by_side_are_planes_and_an_unnamed_fourth_is_kept_where_it_says_something(tmp_path):
    data = colour(channels=5)
    tifffile.imwrite(tmp_path / "five.tif", data, photometric="minisblack", planarconfig="contig")
    assert_planes(read(tmp_path / "five.tif"), *np.moveaxis(data, -1, 0))
    tifffile.imwrite(tmp_path / "four.tif", data[..., :4], photometric="rgb", extrasamples=["unspecified"])
    assert_planes(read(tmp_path / "four.tif"), *np.moveaxis(data[..., :4], -1, 0))
    data[..., 3] = 255
    tifffile.imwrite(tmp_path / "alpha.tif", data[..., :4], photometric="rgb", extrasamples=["unspecified"])
    assert_planes(read(tmp_path / "alpha.tif"), *np.moveaxis(data[..., :3], -1, 0), is_colour=True)


@pytest.mark.parametrize(
    ("table", "dtype"),
    [
        (np.arange(256), "uint8"),
        (np.arange(256) * 257, "uint8"),
        (np.arange(256) * 256, "uint8"),
        (np.arange(256) * 200, "uint16"),
    ],
)
def test_a_gray_palette_is_one_plane_of_its_colours(tmp_path, table, dtype):
    data = pixels()
    colours = np.repeat(table[None].astype(np.uint16), 3, axis=0)
    colours[:, 7] = (257, 0, 514) if table[1] != 1 else (1, 0, 2)  # a colour that no pixel uses
    colours[:, 7] = colours[:, 7] // 257 * 256 if table[1] == 256 else colours[:, 7]
    data[data == 7] = 8
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="palette", colormap=colours)
    image = read(tmp_path / "a.tif")
    scale = {1: 1, 257: 257, 256: 256, 200: 1}[int(table[1])]
    assert_planes(image, (table // scale)[data].astype(dtype))
    assert image.notes == ("gray saved with a palette",)


def test_a_colour_palette_is_three_planes(tmp_path):
    data, colours = pixels(), pixels("uint8", (3, 256), seed=3).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="palette", colormap=colours * 257)
    assert_planes(read(tmp_path / "a.tif"), *colours[:, data].astype(np.uint8), is_colour=True)
    palette = Image.fromarray(data, "P")
    palette.putpalette(colours.T.astype(np.uint8).tobytes())
    for suffix in ("png", "bmp", "gif"):
        palette.save(tmp_path / f"a.{suffix}")
        assert_planes(read(tmp_path / f"a.{suffix}"), *colours[:, data].astype(np.uint8), is_colour=True)


def test_one_bit_white_is_zero_and_inverted_tiff(tmp_path):
    data = pixels()
    tifffile.imwrite(tmp_path / "b.tif", data > 99, photometric="minisblack")
    assert_planes(read(tmp_path / "b.tif"), np.where(data > 99, 255, 0).astype(np.uint8))
    tifffile.imwrite(tmp_path / "w.tif", data, photometric="miniswhite")
    assert_planes(read(tmp_path / "w.tif"), 255 - data)
    tifffile.imwrite(tmp_path / "bw.tif", data > 99, photometric="miniswhite")
    assert_planes(read(tmp_path / "bw.tif"), np.where(data > 99, 0, 255).astype(np.uint8))


def test_jpeg_inside_tiff(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "g.tif", smooth, compression="jpeg", photometric="minisblack")
    (plane,) = read(tmp_path / "g.tif").planes
    assert np.abs(plane.astype(int) - smooth).max() <= 3
    tifffile.imwrite(
        tmp_path / "c.tif", np.stack([smooth, smooth // 2, 255 - smooth], -1), compression="jpeg", photometric="rgb"
    )
    image = read(tmp_path / "c.tif")
    assert image.is_colour and np.abs(image.planes[0].astype(int) - smooth).max() <= 12


def test_smaller_copies_of_an_image_are_left_out(tmp_path):
    data = pixels("uint16", (64, 80))
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(data, metadata=None)
        tif.write(data[::2, ::2], metadata=None, subfiletype=1)
    image = read(tmp_path / "a.tif")
    assert_planes(image, data)
    assert image.notes == ("1 smaller copies of the image left out",)


def test_pages_of_several_sizes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for side in (20, 30, 40):
            tif.write(pixels(shape=(side, 20)), metadata=None)
    refused(tmp_path / "a.tif", "page 1 is uint8")


def test_colours_of_other_kinds_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", colour(channels=4), photometric="separated")
    refused(tmp_path / "a.tif", "has colours of kind")
    tifffile.imwrite(tmp_path / "c.tif", pixels("float32").astype(np.complex64))
    refused(tmp_path / "c.tif", "complex64")


def metamorph_stack(planes: np.ndarray, num_announced: int) -> bytes:
    """Return a MetaMorph stack: one page that lists the strips of the first plane, and a UIC2 tag that counts the planes."""
    height, width = planes.shape[1:]
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 0), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, height * width * 2), (33629, 5, num_announced, 0)]
    start = 8 + 2 + 12 * len(tags) + 4
    uic = np.tile(np.array([1, 1, 2450000, 0, 2450000, 0], "<u4"), num_announced)
    places = {33629: start, 273: start + uic.nbytes}
    entries = b"".join(struct.pack("<HHII", tag, kind, count, places.get(tag, value)) for tag, kind, count, value in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return head + uic.tobytes() + planes.astype("<u2").tobytes()


def test_a_metamorph_stack_gives_every_plane_and_is_refused_where_they_are_not_there(tmp_path):
    data = pixels("uint16", (4, 21, 34))
    (tmp_path / "a.stk").write_bytes(metamorph_stack(data, 4))
    assert_planes(read(tmp_path / "a.stk"), *data)
    (tmp_path / "b.stk").write_bytes(metamorph_stack(data, 5))
    refused(tmp_path / "b.stk", "is truncated")
    (tmp_path / "c.stk").write_bytes(metamorph_stack(data[:1], 1))
    assert_planes(read(tmp_path / "c.stk"), data[0])


def test_stacks_of_one_page_by_imagej_and_tifffile(tmp_path):
    data = pixels("uint16", (5, 21, 34))
    tifffile.imwrite(tmp_path / "t.tif", data, photometric="minisblack", truncate=True)
    with tifffile.TiffFile(tmp_path / "t.tif") as tif:
        assert len(tif.pages) == 1
    assert_planes(read(tmp_path / "t.tif"), *data)
    description = "ImageJ=1.53\nimages=5\nslices=5\n"
    tifffile.imwrite(tmp_path / "j.tif", data[0], description=description, metadata=None, byteorder=">")
    with open(tmp_path / "j.tif", "ab") as handle:
        pass
    with tifffile.TiffFile(tmp_path / "j.tif") as tif:
        at = tif.pages[0].dataoffsets[0] + data[0].nbytes
        assert at == (tmp_path / "j.tif").stat().st_size
    with open(tmp_path / "j.tif", "ab") as handle:
        handle.write(data[1:].astype(">u2").tobytes())
    assert_planes(read(tmp_path / "j.tif"), *data)


# PNG, JPEG, BMP, GIF


@pytest.mark.parametrize("suffix", ["png", "bmp", "dib", "gif"])
def test_gray_rasters_of_8_bits(tmp_path, suffix):
    data = pixels()
    name = tmp_path / f"a.{suffix.upper()}"
    Image.fromarray(data).save(name, suffix)
    assert_planes(read(name), data)


@pytest.mark.parametrize("suffix", ["png", "bmp", "dib"])
def test_colour_rasters(tmp_path, suffix):
    data = colour()
    Image.fromarray(data).save(tmp_path / f"a.{suffix}")
    assert_planes(read(tmp_path / f"a.{suffix}"), *np.moveaxis(data, -1, 0), is_colour=True)
    gray = pixels()
    Image.fromarray(np.stack([gray] * 3, -1)).save(tmp_path / f"b.{suffix}")
    image = read(tmp_path / f"b.{suffix}")
    assert_planes(image, gray)
    assert image.notes == ("gray saved as RGB",)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_left_out_of_png(tmp_path, mode):
    gray, alpha = pixels(), pixels(seed=9)
    Image.fromarray(np.stack([gray, alpha] if mode == "LA" else [gray, gray, gray, alpha], -1), mode).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png")
    assert_planes(image, gray)
    assert image.notes == (f"gray saved as {mode}", "alpha left out")
    data = colour(channels=4)
    Image.fromarray(data, "RGBA").save(tmp_path / "b.png")
    assert_planes(read(tmp_path / "b.png"), *np.moveaxis(data[..., :3], -1, 0), is_colour=True)


def test_16_bit_png_keeps_its_bits(tmp_path):
    import imagecodecs

    gray, data = pixels("uint16"), colour("uint16", 4)
    for name, stored in (("l", gray), ("la", data[..., :2]), ("rgb", data[..., :3]), ("rgba", data)):
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(stored)))
    assert_planes(read(tmp_path / "l.png"), gray)
    assert_planes(read(tmp_path / "la.png"), data[..., 0])
    for name in ("rgb", "rgba"):
        assert_planes(read(tmp_path / f"{name}.png"), *np.moveaxis(data[..., :3], -1, 0), is_colour=True)
    (tmp_path / "gray.png").write_bytes(imagecodecs.png_encode(np.stack([gray] * 3, -1)))
    assert_planes(read(tmp_path / "gray.png"), gray)


def test_one_bit_and_palette_rasters(tmp_path):
    data = pixels()
    for suffix in ("png", "bmp"):
        Image.fromarray(data > 99).save(tmp_path / f"b.{suffix}")
        assert_planes(read(tmp_path / f"b.{suffix}"), np.where(data > 99, 255, 0).astype(np.uint8))
    inverse = Image.fromarray(data, "P")
    inverse.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3).tobytes())
    for suffix, options in (("png", {}), ("png", {"transparency": 3}), ("gif", {}), ("bmp", {})):
        inverse.save(tmp_path / f"p.{suffix}", **options)
        assert_planes(read(tmp_path / f"p.{suffix}"), 255 - data)


def test_jpeg_is_decoded_as_pillow_does(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "g.JPG", "JPEG", quality=95)
    (plane,) = read(tmp_path / "g.JPG").planes
    assert np.abs(plane.astype(int) - smooth).max() <= 3
    Image.fromarray(np.stack([smooth, smooth // 2, 255 - smooth], -1)).save(tmp_path / "c.jpeg", quality=95)
    image = read(tmp_path / "c.jpeg")
    stored = np.asarray(Image.open(tmp_path / "c.jpeg"))
    assert_planes(image, *np.moveaxis(stored, -1, 0), is_colour=True)
    Image.fromarray(np.stack([smooth] * 4, -1), "CMYK").save(tmp_path / "k.jpg")
    assert "converted from CMYK" in read(tmp_path / "k.jpg").notes


def test_the_first_picture_of_a_camera_file_is_taken_and_animations_are_refused(tmp_path):
    first, second = Image.fromarray(pixels(shape=(64, 64))), Image.fromarray(pixels(shape=(64, 64), seed=4))
    first.save(tmp_path / "m.jpg", "MPO", save_all=True, append_images=[second])
    image = read(tmp_path / "m.jpg")
    assert len(image.planes) == 1 and image.notes == ("previews after the first image left out",)
    for suffix in ("gif", "png"):
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
        refused(tmp_path / f"a.{suffix}", "is an animation")


# Cellomics


def cellomics(stack: np.ndarray, **changed: int) -> bytes:
    num, height, width = stack.shape
    fields = {
        "size": 40,
        "width": width,
        "height": height,
        "planes": num,
        "bits": stack.itemsize * 8,
        "compression": 0,
    } | changed
    head = struct.pack("<IiiHHI", *fields.values()) + struct.pack("<5I3I", 0, 775193, 775193, 0, 0, 0x1F, 0x3E0, 0xFC00)
    return head + stack.astype(stack.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("num_planes", [1, 3])
def test_cellomics_files_packed_and_plain(tmp_path, dtype, num_planes):
    data = pixels(dtype, (num_planes, 21, 34))
    (tmp_path / "a.C01").write_bytes(b"\0\0\0\x10" + zlib.compress(cellomics(data)))
    assert_planes(read(tmp_path / "a.C01"), *data)
    (tmp_path / "a.DIB").write_bytes(cellomics(data))
    assert_planes(read(tmp_path / "a.DIB"), *data)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"width": 35}, ("announces 1470 bytes of pixels, found 1428",)),
        ({"height": 20}, ("announces 1360 bytes of pixels, found more",)),
        ({"bits": 12}, ("12 bits",)),
        ({"size": 12}, ("header of 12 bytes",)),
        ({"width": 0}, ("0 x 21 px",)),
        ({"height": -21}, ("34 x -21 px",)),
        ({"planes": 0}, ("0 planes",)),
        ({"width": 2**31 - 1, "height": 2**31 - 1}, ("decodes to",)),
        ({"width": 20_000, "height": 20_000}, ("decompression bomb",)),
    ],
    ids=str,
)
def test_cellomics_headers_are_checked_against_their_pixels(tmp_path, changed, parts):
    data = pixels("uint16", (1, 21, 34))
    (tmp_path / "a.c01").write_bytes(b"\0\0\0\x10" + zlib.compress(cellomics(data, **changed)))
    refused(tmp_path / "a.c01", *parts)


def test_a_cellomics_bomb_stops_at_the_size_its_header_admits_to(tmp_path):
    data = zlib.compress(cellomics(pixels("uint16", (1, 21, 34))) + bytes(200 << 20), 9)
    (tmp_path / "a.c01").write_bytes(b"\0\0\0\x10" + data)
    refused(tmp_path / "a.c01", "found more")


@pytest.mark.parametrize("keep", [5, 20, 0.5, -1, -4])
def test_truncated_cellomics_files(tmp_path, keep):
    data = b"\0\0\0\x10" + zlib.compress(cellomics(pixels("uint16", (1, 21, 34))))
    (tmp_path / "a.c01").write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    refused(tmp_path / "a.c01")


# Refusals


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Path]:
    """Write a small valid file of every format."""
    folder = tmp_path / "good"
    folder.mkdir()
    data = pixels(shape=(64, 80))
    tifffile.imwrite(folder / "plain.tif", data)
    tifffile.imwrite(folder / "packed.tif", data, compression="zlib")
    for suffix in ("png", "jpg", "bmp", "gif"):
        Image.fromarray(data).save(folder / f"a.{suffix}")
    Image.fromarray(data).save(folder / "a.dib", "DIB")
    (folder / "a.c01").write_bytes(b"\0\0\0\x10" + zlib.compress(cellomics(data[None])))
    return {path.name: path for path in folder.iterdir()}


NAMES = ("plain.tif", "packed.tif", "a.png", "a.jpg", "a.bmp", "a.gif", "a.dib", "a.c01")


@pytest.mark.parametrize("name", NAMES)
def test_empty_truncated_and_random_files(good, tmp_path, name):
    assert read(good[name]).planes[0].shape == (64, 80)
    data, path = good[name].read_bytes(), tmp_path / name
    path.write_bytes(b"")
    refused(path, "is empty (0 bytes)")
    for share in (0.02, 0.3, 0.9):
        path.write_bytes(data[: max(1, int(len(data) * share))])
        refused(path)
    path.write_bytes(np.random.default_rng(5).bytes(5000))
    refused(path, "is of no known format; expected")
    path.write_bytes(b"<html><body>404 Not Found</body></html>\n" * 40)
    refused(path, "is text; expected")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_wrong_suffix_is_told_by_the_contents(good, tmp_path, suffix):
    kinds = {"plain.tif": "TIFF", "a.png": "PNG", "a.jpg": "JPEG", "a.bmp": "BMP", "a.gif": "GIF", "a.c01": "C01"}
    groups = {".tiff": ".tif", ".flex": ".tif", ".stk": ".tif", ".jpeg": ".jpg", ".dib": ".bmp"}
    path = tmp_path / f"wrong{suffix}"
    num_read = 0
    for name, kind in kinds.items():
        path.write_bytes(good[name].read_bytes())
        if good[name].suffix == groups.get(suffix, suffix):
            num_read += len(read(path).planes)
        else:
            refused(path, f"is {kind}; expected", "by its name", "Rename it")
    assert num_read == 1


def test_jpeg_2000_and_unknown_suffixes_are_refused(tmp_path):
    data = io.BytesIO()
    Image.fromarray(pixels(shape=(64, 80))).save(data, "JPEG2000")
    for name in ("a.jpg", "a.tif", "a.png"):
        (tmp_path / name).write_bytes(data.getvalue())
        refused(tmp_path / name, "is JPEG 2000; expected")
    for name in ("a.jp2", "a.txt", "tif", "a.tif.gz"):
        (tmp_path / name).write_bytes(data.getvalue())
        refused(tmp_path / name, "has no suffix of an image", ".c01")


def bomb_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 30_000, 5_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_headers_that_claim_far_more_pixels_than_the_file_can_hold(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(bomb_png())
    refused(tmp_path / "a.png", "decompression bomb")
    head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 30_000, 5_000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(head)
    refused(tmp_path / "a.bmp", "decompression bomb")
    data = io.BytesIO()
    tifffile.imwrite(data, np.zeros((12_000, 12_000), np.uint8), compression="zlib", rowsperstrip=12_000)
    (tmp_path / "a.tif").write_bytes(data.getvalue())
    refused(tmp_path / "a.tif", "decompression bomb")


def test_many_pages_that_are_the_same_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_PLANE_EXPANSION_FROM", 1 << 20)
    page = np.zeros((500, 500), np.uint8)
    data = io.BytesIO()
    tifffile.imwrite(data, np.stack([page] * 30), compression="zlib", metadata=None, photometric="minisblack", rowsperstrip=500)
    (tmp_path / "a.tif").write_bytes(data.getvalue())
    refused(tmp_path / "a.tif", "decompression bomb")


def test_a_tiff_whose_list_of_pages_breaks_off_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(shape=(3, 64, 80)), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        at = tif.pages[1].offset
    data = bytearray((tmp_path / "a.tif").read_bytes())
    position = data.find(struct.pack("<I", at), 8)
    data[position : position + 4] = struct.pack("<I", len(data) + 1000)
    (tmp_path / "a.tif").write_bytes(data)
    refused(tmp_path / "a.tif", "is truncated")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_byte_gives_planes_or_a_value_error(good, tmp_path, data):
    name = data.draw(st.sampled_from(NAMES))
    content = bytearray(good[name].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        read(path)
    except ValueError as error:
        assert str(error).startswith(name), error


def test_names_of_images():
    assert all(is_image(name) for name in ("a.tif", "A.TIFF", "x.BMP", "x.Dib", "--W1.flex", "a b.C01", "a.tar.png", "x.JPG"))
    assert not any(is_image(name) for name in ("a.csv", "png", "a.tif.gz", "a.jp2", "", "a.mrc"))
