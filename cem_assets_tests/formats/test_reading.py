"""Every variant of every format gives the voxels that were written, in (z, y, x)."""

import bz2
import gzip
from pathlib import Path

import h5py
import imagecodecs
import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from cem_assets.catalog.description import DatasetDescription
from cem_assets.formats import FORMATS, kind_of, open_file
from cem_assets.formats.zarr.stores import open_zarr
from cem_assets.sources.files.unpacking import unpack
from cem_assets.store.store import Store, open_store
from cem_assets_tests.formats.ser_files import ser_bytes

EVERYTHING = slice(None)
NUMBER_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def described(**more) -> DatasetDescription:
    return DatasetDescription(name="d", kind="volume", voxel_size_nm=(8, 8, 8), licence="x", citation="x", **more)


def voxels(dtype="uint8", shape=(5, 70, 90), seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def whole(path: Path, scratch: Path, **more) -> np.ndarray:
    opened = open_file(path, scratch, described(**more))
    z, y, x = opened.source.shape
    box = (slice(0, z), slice(0, y), slice(0, x))
    assert opened.source.missing(box) is None
    out = opened.source.read(box)
    assert out.shape == opened.source.shape and out.dtype == opened.source.dtype and out.dtype.isnative
    part = opened.source.read((slice(z // 2, z), slice(1, min(9, y)), slice(3, min(40, x))))
    assert np.array_equal(part, out[z // 2 :, 1:9, 3:40])
    return out


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


# TIFF


@pytest.mark.parametrize("dtype", NUMBER_TYPES)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_stacks_of_every_number_type_and_byte_order(tmp_path, scratch, dtype, byteorder):
    data = voxels(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        data.astype(np.dtype(dtype).newbyteorder(byteorder)),
        byteorder=byteorder,
        metadata=None,
        photometric="minisblack",
    )
    assert np.array_equal(whole(tmp_path / "a.tif", scratch), data)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zstd"},
        {"compression": "packbits"},
        {"tile": (16, 32)},
        {"tile": (32, 32), "compression": "zlib"},
        {"rowsperstrip": 7},
        {"bigtiff": True, "compression": "lzw"},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"metadata": {"axes": "ZYX"}},
        {"ome": True, "metadata": {"axes": "ZYX"}, "tile": (32, 32), "compression": "zlib"},
    ],
    ids=str,
)
def test_tiff_variants(tmp_path, scratch, options):
    data = voxels("uint16")
    tifffile.imwrite(tmp_path / "a.tif", data, **{"photometric": "minisblack", **options})
    assert np.array_equal(whole(tmp_path / "a.tif", scratch), data)


def test_a_single_page_is_an_image(tmp_path, scratch):
    tifffile.imwrite(tmp_path / "a.tif", voxels()[0])
    opened = open_file(tmp_path / "a.tif", scratch, described())
    assert opened.is_image and opened.source.shape == (1, 70, 90)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_gray_saved_as_rgb_in_tiff(tmp_path, scratch, planar):
    data = voxels()[0]
    axis = -1 if planar == "contig" else 0
    tifffile.imwrite(tmp_path / "a.tif", np.stack([data] * 3, axis=axis), photometric="rgb", planarconfig=planar)
    assert np.array_equal(whole(tmp_path / "a.tif", scratch)[0], data)


def test_rgb_stacks_become_gray_slices(tmp_path, scratch):
    data = voxels()
    tifffile.imwrite(tmp_path / "a.tif", np.stack([data] * 3, axis=-1), photometric="rgb", metadata=None)
    assert np.array_equal(whole(tmp_path / "a.tif", scratch), data)


def test_palette_white_is_zero_and_one_bit_tiff(tmp_path, scratch):
    data = voxels()[0]
    ramp = np.repeat((np.arange(256) * 257).astype(np.uint16)[None], 3, axis=0)
    tifffile.imwrite(tmp_path / "p.tif", data, photometric="palette", colormap=ramp)
    assert np.array_equal(whole(tmp_path / "p.tif", scratch)[0] // 257, data)
    tifffile.imwrite(tmp_path / "w.tif", data, photometric="miniswhite")
    assert np.array_equal(whole(tmp_path / "w.tif", scratch)[0], 255 - data)
    tifffile.imwrite(tmp_path / "b.tif", data > 100, photometric="minisblack")
    assert np.array_equal(whole(tmp_path / "b.tif", scratch)[0], np.where(data > 100, 255, 0))


def test_channels_of_a_hyperstack_are_taken_by_number(tmp_path, scratch):
    data = np.stack([voxels(seed=n, shape=(5, 32, 40)) for n in range(2)], axis=1)  # ZCYX
    for options in ({"imagej": True}, {"ome": True, "metadata": {"axes": "ZCYX"}}):
        tifffile.imwrite(tmp_path / "a.tif", data, **{"photometric": "minisblack", **options})
        assert np.array_equal(whole(tmp_path / "a.tif", scratch, channel=1), data[:, 1])


def test_voxel_size_of_imagej_stacks_is_recorded(tmp_path, scratch):
    tifffile.imwrite(
        tmp_path / "a.tif",
        voxels(),
        imagej=True,
        resolution=(1 / 4.0, 1 / 5.0),
        metadata={"spacing": 50.0, "unit": "nm", "axes": "ZYX"},
    )
    found = open_file(tmp_path / "a.tif", scratch, described()).header_voxel_size_nm
    assert found == pytest.approx((50.0, 5.0, 4.0))


# PNG and JPEG


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK"])
def test_pillow_modes(tmp_path, scratch, mode):
    data = voxels()[0] if mode != "1" else (voxels()[0] > 128) * np.uint8(255)
    if mode == "I;16":
        data = voxels("uint16")[0]
        Image.fromarray(data).save(tmp_path / "a.png")
    elif mode == "CMYK":
        data = np.full((70, 90), 130, np.uint8)
        Image.fromarray(data).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
        assert np.abs(whole(tmp_path / "a.jpg", scratch)[0].astype(int) - 130).max() <= 3
        return
    else:
        Image.fromarray(data).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(whole(tmp_path / "a.png", scratch)[0], data)


def test_16_bit_colour_png_keeps_its_16_bits(tmp_path, scratch):
    data = voxels("uint16")[0]
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.stack([data] * 3, axis=-1)))
    assert np.array_equal(whole(tmp_path / "a.png", scratch)[0], data)


def test_jpeg_is_close_to_what_was_saved(tmp_path, scratch):
    data = np.linspace(0, 255, 70 * 90).reshape(70, 90).astype(np.uint8)
    Image.fromarray(data).save(tmp_path / "a.jpeg", quality=95)
    assert np.abs(whole(tmp_path / "a.jpeg", scratch)[0].astype(int) - data).max() < 12


# MRC


def write_mrc(path: Path, data: np.ndarray, change=None) -> None:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
        file.voxel_size = (46.0, 46.0, 450.0)
    if change is not None:
        raw = bytearray(path.read_bytes())
        change(raw)
        path.write_bytes(bytes(raw))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
def test_mrc_modes(tmp_path, scratch, dtype):
    data = voxels(dtype)
    write_mrc(tmp_path / "a.mrc", data)
    assert np.array_equal(whole(tmp_path / "a.mrc", scratch), data)
    assert open_file(tmp_path / "a.mrc", scratch, described()).header_voxel_size_nm == pytest.approx((45.0, 4.6, 4.6))


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_mrc_map_and_rec(tmp_path, scratch, suffix, pack):
    data = voxels("int16")
    write_mrc(tmp_path / "plain.mrc", data)
    for name in ("a.map", "a.rec"):
        (tmp_path / f"{name}{suffix}").write_bytes(pack((tmp_path / "plain.mrc").read_bytes()))
        assert np.array_equal(whole(tmp_path / f"{name}{suffix}", scratch), data)


def test_mrc_bytes_that_imod_marks_as_unsigned(tmp_path, scratch):
    data = voxels("uint8")

    def stamp(raw):
        raw[152:156] = (1146047817).to_bytes(4, "little")
        raw[156:160] = (0).to_bytes(4, "little")

    write_mrc(tmp_path / "a.mrc", data.view(np.int8), stamp)
    assert np.array_equal(whole(tmp_path / "a.mrc", scratch), data)


@pytest.mark.parametrize("codes", [(1, 2, 3), (3, 1, 2), (2, 1, 3), (2, 3, 1)])
def test_mrc_axis_orders(tmp_path, scratch, codes):
    data = voxels("int16", (5, 70, 90))  # z, y, x
    # The codes name the axis (1 is x, 2 is y, 3 is z) of columns, rows and sections; sections vary slowest.
    on_disk = data.transpose([{1: 2, 2: 1, 3: 0}[code] for code in reversed(codes)])

    def order(raw):
        raw[64:76] = b"".join(code.to_bytes(4, "little") for code in codes)

    write_mrc(tmp_path / "a.mrc", np.ascontiguousarray(on_disk), order)
    assert np.array_equal(whole(tmp_path / "a.mrc", scratch), data)


def test_mrc_without_stamp_with_negative_cell_and_extended_header(tmp_path, scratch):
    data = voxels("int16")

    def odd(raw):
        raw[208:216] = bytes(8)
        raw[40:44] = np.float32(-100).tobytes()
        raw[92:96] = (4096).to_bytes(4, "little")
        raw[1024:1024] = bytes(4096)

    write_mrc(tmp_path / "a.mrc", data, odd)
    assert np.array_equal(whole(tmp_path / "a.mrc", scratch), data)


def test_big_endian_mrc(tmp_path, scratch):
    data = voxels("int16")
    write_mrc(tmp_path / "a.mrc", data)
    with mrcfile.open(tmp_path / "a.mrc") as file:
        header = file.header.copy()
    swapped = header.astype(header.dtype.newbyteorder(">"))
    swapped["machst"] = [0x11, 0x11, 0, 0]
    (tmp_path / "b.mrc").write_bytes(swapped.tobytes() + data.astype(">i2").tobytes())
    assert np.array_equal(whole(tmp_path / "b.mrc", scratch), data)


# NRRD, NIfTI


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_nrrd_encodings(tmp_path, scratch, encoding, dtype):
    data = voxels(dtype, (4, 20, 30))
    nrrd.write(str(tmp_path / "a.nrrd"), data.T, {"encoding": encoding})
    assert np.allclose(whole(tmp_path / "a.nrrd", scratch), data)


def test_nrrd_big_endian_spacing_and_detached_data(tmp_path, scratch):
    data = voxels("uint16", (4, 20, 30))
    fields = ["type: uint16", "dimension: 3", "sizes: 30 20 4", "endian: big", "encoding: raw", "spacings: 4 5 50"]
    text = "\n".join(["NRRD0004", *fields, 'space units: "nm" "nm" "nm"\n'])
    (tmp_path / "a.nrrd").write_bytes(text.encode() + b"\n" + data.astype(">u2").tobytes())
    assert np.array_equal(whole(tmp_path / "a.nrrd", scratch), data)
    (tmp_path / "b.nhdr").write_bytes(text.encode() + b"data file: b.raw\n")
    (tmp_path / "b.raw").write_bytes(data.astype(">u2").tobytes())
    assert np.array_equal(whole(tmp_path / "b.nhdr", scratch), data)
    assert open_file(tmp_path / "b.nhdr", scratch, described()).header_voxel_size_nm == (50, 5, 4)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_nifti(tmp_path, scratch, kind, suffix, dtype):
    data = voxels(dtype)
    image = kind(data.T, np.diag([0.004, 0.005, 0.05, 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / f"a{suffix}")
    assert np.array_equal(whole(tmp_path / f"a{suffix}", scratch), data)
    found = open_file(tmp_path / f"a{suffix}", scratch, described()).header_voxel_size_nm
    assert found == pytest.approx((50_000, 5000, 4000), rel=1e-5)


def test_nifti_slope_and_intercept_are_applied(tmp_path, scratch):
    data = voxels("int16")
    image = nibabel.Nifti1Image(data.T, np.eye(4))
    image.header.set_slope_inter(2.0, -7.0)
    nibabel.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    assert np.frombuffer(raw[112:120], "<f4").tolist() == [2.0, -7.0]
    stored = np.frombuffer(raw[352:], "<i2").reshape(data.shape)
    assert np.allclose(whole(tmp_path / "a.nii", scratch), stored * 2.0 - 7.0)


# HDF5


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (2, 16, 16), "compression": "gzip"}, {"compression": "lzf", "shuffle": True}]
)
def test_hdf5_layouts(tmp_path, scratch, options):
    data = voxels("uint16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("volumes/raw", data=data, **options)
        file.create_dataset("volumes/labels", data=np.zeros_like(data))
    assert np.array_equal(whole(tmp_path / "a.h5", scratch, hdf5_dataset="/volumes/raw"), data)


def test_the_only_array_needs_no_name_and_leading_axes_of_one_are_dropped(tmp_path, scratch):
    data = voxels()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["t"] = np.arange(5)
        file["x"] = data[None, None]
    assert np.array_equal(whole(tmp_path / "a.hdf5", scratch), data)


def test_a_channel_of_four_axes(tmp_path, scratch):
    data = voxels(shape=(3, 5, 70, 90))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = data
    assert np.array_equal(whole(tmp_path / "a.h5", scratch, channel=2), data[2])


def test_chunks_that_were_never_written_are_missing_not_zero(tmp_path, scratch):
    data = voxels("uint16", (8, 32, 32))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("x", shape=data.shape, dtype="u2", chunks=(4, 16, 16))
        array[:4] = data[:4]
        array[4:, :16, 16:] = data[4:, :16, 16:]
    source = open_file(tmp_path / "a.h5", scratch, described()).source
    expected = np.zeros(data.shape, bool)
    expected[4:] = True
    expected[4:, :16, 16:] = False
    box = (slice(0, 8), slice(0, 32), slice(0, 32))
    assert np.array_equal(source.missing(box), expected)
    assert np.array_equal(source.missing((slice(2, 7), slice(10, 20), slice(5, 30))), expected[2:7, 10:20, 5:30])
    assert source.missing((slice(0, 4), slice(0, 32), slice(0, 32))) is None
    assert np.array_equal(source.read(box)[~expected], data[~expected])


# Zarr


def box_of(source):
    return tuple(slice(0, side) for side in source.shape)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_zarr_arrays(store: Store, tmp_path, zarr_format, dtype):
    data = voxels(dtype)

    def write(path):
        zarr.create_array(path, data=data, chunks=(2, 32, 32), zarr_format=zarr_format)

    upload(store, "inbox/d/a.zarr", tmp_path, write)
    source = open_zarr(store, "inbox/d/a.zarr", None).source
    assert np.array_equal(source.read(box_of(source)), data) and source.missing(box_of(source)) is None
    assert source.dtype == dtype


def upload(store: Store, key: str, tmp_path: Path, write) -> None:
    folder = tmp_path / "local.zarr"
    write(str(folder))
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            store.put(f"{key}/{file.relative_to(folder).as_posix()}", file)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_takes_the_finest_scale_and_its_voxel_size(store: Store, tmp_path, version):
    data = voxels("uint8", (1, 1, 6, 40, 50))

    def write(path):
        axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
        axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        scales = [
            {
                "path": f"s{n}",
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 0.05 * 2**n, 0.004 * 2**n, 0.004 * 2**n]}],
            }
            for n in range(2)
        ]
        multiscales = [{"version": version, "axes": axes, "datasets": scales}]
        attributes = (
            {"multiscales": multiscales} if version == "0.4" else {"ome": {"version": version, "multiscales": multiscales}}
        )
        group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3, attributes=attributes)
        group.create_array("s0", data=data, chunks=(1, 1, 2, 16, 16))
        group.create_array("s1", data=data[..., ::2, ::2, ::2], chunks=(1, 1, 2, 16, 16))

    upload(store, "inbox/d/a.ome.zarr", tmp_path, write)
    opened = open_zarr(store, "inbox/d/a.ome.zarr", None)
    assert np.array_equal(opened.source.read(box_of(opened.source)), data[0, 0])
    assert opened.header_voxel_size_nm == pytest.approx((50, 4, 4))


def test_one_of_several_arrays_by_name(local_store: Store):
    data = voxels()
    group = zarr.open_group(local_store.url_of("inbox/d/a.zarr"), mode="w")
    group.create_array("volumes/raw", data=data)
    group.create_array("volumes/labels", data=data // 2)
    source = open_zarr(local_store, "inbox/d/a.zarr", "volumes/raw").source
    assert np.array_equal(source.read(box_of(source)), data)


@pytest.mark.parametrize("sharded", [False, True])
def test_absent_chunks_of_foreign_zarr_are_missing_not_zero(store: Store, tmp_path, sharded):
    data = voxels("uint16", (8, 32, 32), seed=1)
    data[0, 0, 0] = 0  # a zero that was written is not missing

    def write(path):
        shards = (8, 32, 32) if sharded else None
        array = zarr.create_array(path, shape=data.shape, dtype="u2", chunks=(4, 16, 16), shards=shards, fill_value=0)
        array[:4] = data[:4]
        array[4:, :16, 16:] = data[4:, :16, 16:]

    upload(store, "inbox/d/a.zarr", tmp_path, write)
    source = open_zarr(store, "inbox/d/a.zarr", None).source
    expected = np.zeros(data.shape, bool)
    expected[4:] = True
    expected[4:, :16, 16:] = False
    box = box_of(source)
    assert np.array_equal(source.missing(box), expected)
    assert np.array_equal(source.read(box)[~expected], data[~expected])
    assert source.missing((slice(0, 4), slice(0, 32), slice(0, 32))) is None


# Real files


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("em_formats/rosettasciio/HAADFscan.mrc", (1, 16, 16), "uint16"),
        ("em_formats/rosettasciio/ROI_Random_Scan_movie.mrc", (348, 16, 16), "uint16"),
        ("em_formats/rosettasciio/multi_signal.dm3", (1, 512, 512), "uint16"),
        ("em_formats/rosettasciio/test_STEM_image.dm3", (1, 68, 68), "uint32"),
        ("em_formats/rosettasciio/test_dm_image_um_unit.dm3", (1, 68, 68), "int32"),
        ("em_formats/rosettasciio/128x128_TEM_acquire-sum1_1.ser", (1, 128, 128), "int32"),
        ("em_formats/rosettasciio/64x64x5_TEM_preview_1.ser", (5, 64, 64), "float32"),
        ("em_formats/rosettasciio/test_loading_image_saved_with_imageJ_stack_no_scale.tif", (2, 68, 68), "float32"),
        ("em_formats/rosettasciio/olympus_SIS.tif", (1, 101, 112), "uint8"),
        ("em_formats/rosettasciio/test_loading_image_saved_with_DM.tif", (1, 68, 68), "int32"),
        ("em_formats/rosettasciio/test_loading_image_saved_with_imageJ_stack.tif", (2, 68, 68), "float32"),
        ("em3d_raw/emdb_small_maps/EMD-3001.map", (73, 25, 43), "float32"),
        ("em3d_raw/emdb_small_maps/EMD-3001.map.bz2", (73, 25, 43), "float32"),
        ("em3d_raw/emdb_small_maps/emd_3197.map.gz", (20, 20, 20), "float32"),
        ("em3d_labelled/gala_fibsem/train-image.h5", (50, 100, 200), "uint8"),
        ("em3d_labelled/gala_fibsem/train-p1.lzf.h5", (50, 100, 200), "float32"),
        ("em3d_labelled/gala_snemi_mini/train-probabilities.tif", (32, 160, 160), "uint8"),
        ("em3d_labelled/urocell_masks/mito_binary_fib1-0-0-0.nii.gz", (256, 256, 256), "float32"),
        ("em3d_labelled/vnc_sstem_stack1/raw/00.tif", (1, 1024, 1024), "uint8"),
        ("em2d/cem_dataset_examples/occlusion/example5.tiff", (1, 224, 138), "uint8"),
        ("em2d/cem_dataset_examples/correlation/images/er.png", (1, 224, 224), "uint8"),
        ("em2d_labelled/axondeepseg/tem_image_rgb.png", (1, 344, 436), "uint8"),
        ("fluorescence/cellprofiler_tests/NikonTIF.tif", (1, 731, 805), "uint8"),
        ("fluorescence/cellprofiler_tests/MetamorphImage.tif", (1, 520, 696), "uint16"),
    ],
)
def test_real_files(test_data, scratch, name, shape, dtype):
    opened = open_file(test_data / name, scratch, described())
    assert opened.source.shape == shape and opened.source.dtype == dtype
    values = opened.source.read(tuple(slice(0, side) for side in shape))
    assert values.std() > 0


def test_a_real_image_in_an_archive_is_unpacked_and_read(test_data, scratch, tmp_path):
    unpack(test_data / "em_formats/rosettasciio/TVIPS_bin4.zip", tmp_path / "out")
    opened = open_file(tmp_path / "out/TVIPS_bin4.tif", scratch, described())
    values = opened.source.read(tuple(slice(0, side) for side in opened.source.shape))
    assert values.shape == (1, 1024, 1024) and values.dtype == np.uint8 and values.std() > 0


@pytest.mark.parametrize("version", [0x210, 0x220])
@pytest.mark.parametrize("dtype", NUMBER_TYPES)
def test_tia_series(tmp_path, scratch, dtype, version):
    data = voxels(dtype)
    (tmp_path / "a.ser").write_bytes(ser_bytes(data, version, metres=(5e-9, 4e-9)))
    assert np.array_equal(whole(tmp_path / "a.ser", scratch), data)
    opened = open_file(tmp_path / "a.ser", scratch, described())
    assert opened.header_voxel_size_nm == pytest.approx((5, 5, 4)) and not opened.is_image
    (tmp_path / "b.ser").write_bytes(ser_bytes(data[:1], version))
    assert open_file(tmp_path / "b.ser", scratch, described()).is_image


def test_packed_and_plain_maps_hold_the_same_voxels(test_data, scratch):
    folder = test_data / "em3d_raw/emdb_small_maps"
    first = whole(folder / "EMD-3001.map", scratch)
    assert np.array_equal(first, whole(folder / "emd_3001.map.gz", scratch))
    assert np.array_equal(first, whole(folder / "EMD-3001.map.bz2", scratch))
    with mrcfile.open(folder / "EMD-3001.map", permissive=True) as file:
        assert np.array_equal(first, file.data.transpose(2, 0, 1))  # columns are z, rows x, sections y


def test_a_stack_and_its_slices_hold_the_same_voxels(test_data, scratch):
    folder = test_data / "em3d_labelled/gala_fibsem"
    stack = whole(folder / "test-image.h5", scratch)
    for number in (0, 17, 49):
        assert np.array_equal(stack[number], whole(folder / f"test-image-png/im{number:02d}.png", scratch)[0])


def test_kinds_are_read_from_names():
    assert kind_of("a.b.MRC.GZ") == kind_of("a.b.mrc.gz").__class__("MRC", "gzip", "a.b")
    assert kind_of("x.tiff").stem == "x" and kind_of("README") is None and kind_of("x.gz") is None
    assert len({suffix for suffixes, _ in FORMATS.values() for suffix in suffixes}) == sum(len(s) for s, _ in FORMATS.values())


def test_dm4_stacks(tmp_path, scratch):
    from nionswift_plugin.DM_IO import dm3_image_utils, parse_dm3

    data = voxels("int16", (4, 20, 30))
    image = dm3_image_utils.ndarray_to_imagedatadict(data)
    with open(tmp_path / "a.dm4", "wb") as handle:
        parse_dm3.dm_write_header(handle, 4, {"ImageList": [{"ImageData": image}]})
    assert np.array_equal(whole(tmp_path / "a.dm4", scratch), data)


def test_stores_open_by_url(tmp_path):
    assert open_store(str(tmp_path)).is_local


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 18])
def test_numbers_written_as_text_may_lie_across_blocks(tmp_path, scratch, monkeypatch, block):
    from cem_assets.formats import headers

    monkeypatch.setattr(headers, "_TEXT_BLOCK", block)
    data = voxels("int16", (2, 3, 4))
    text = "\n".join(" ".join(map(str, row)) for row in data.reshape(-1, 4).tolist())
    header = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 3 2\nencoding: ascii\n\n"
    for end in ("", "\n"):
        (tmp_path / "a.nrrd").write_text(f"{header}{text}{end}")
        found = open_file(tmp_path / "a.nrrd", scratch, described()).source
        assert np.array_equal(found.read((slice(0, 2), slice(0, 3), slice(0, 4))), data)


@pytest.mark.parametrize("options", [{"tile": (16, 32)}, {"rowsperstrip": 7}, {"tile": (48, 16), "compression": "zlib"}])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_large_pages_are_decoded_in_pieces_to_the_same_voxels(tmp_path, scratch, monkeypatch, options, dtype):
    from cem_assets.formats import arrays, tiff

    data = voxels(dtype, (3, 70, 90))
    compressed = {"compression": "zlib", **options}
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata=None, byteorder=">", **compressed)
    monkeypatch.setattr(tiff, "_PAGE_BYTES_HELD", 100)
    monkeypatch.setattr(arrays, "_MAPPED_BYTES", 1000)
    monkeypatch.setattr(tiff, "_decoded", lambda *args: pytest.fail("a page was decoded whole"))
    assert np.array_equal(whole(tmp_path / "a.tif", scratch), data)
