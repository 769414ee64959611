"""Broken and hostile files give one error, which names the file, what was expected, what was found and the remedy."""

import bz2
import gzip
import io
import json
import pickle
import struct
import zlib
from pathlib import Path

import h5py
import mrcfile
import nibabel
import nrrd
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cem_assets.catalog.description import DatasetDescription
from cem_assets.errors import DataError
from cem_assets.formats import arrays, open_file
from cem_assets.formats.stacks import open_stack, read_plane
from cem_assets.formats.zarr.stores import open_zarr
from cem_assets.store.store import Store
from cem_assets_tests.formats.ser_files import ser_bytes

DESCRIPTION = DatasetDescription(name="d", kind="volume", voxel_size_nm=(8, 8, 8), licence="x", citation="x")
REMEDIES = (
    "Copy",
    "Rename",
    "Save",
    "Remove",
    "Give",
    "Set",
    "Use",
    "Split",
    "Convert",
    "Cut",
    "Check",
    "Repack",
    "Upload",
    "save it",
    "Export",
    "Rewrite",
)


def refused(path: Path, scratch: Path, *parts: str, description: DatasetDescription = DESCRIPTION) -> str:
    """Open and read a file, and return the text of the error that it must give."""
    with pytest.raises(DataError) as caught:
        source = open_file(path, scratch, description).source
        source.read(tuple(slice(0, side) for side in source.shape))
    message = str(caught.value)
    for part in parts:
        assert part in message, (part, message)
    assert path.stem.split(".")[0] in message, message
    assert any(remedy in message for remedy in REMEDIES), message
    assert str(path.parent) not in message, "messages must not name folders of this machine"
    return message


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Path]:
    """Write a small valid file of every format."""
    folder = tmp_path / "good"
    folder.mkdir()
    data = np.random.default_rng(0).integers(0, 200, (6, 40, 50), dtype=np.uint8)
    tifffile.imwrite(folder / "plain.tif", data, photometric="minisblack", metadata=None)
    tifffile.imwrite(folder / "packed.tif", data, photometric="minisblack", metadata=None, compression="zlib")
    tifffile.imwrite(folder / "tiled.tif", data, photometric="minisblack", metadata=None, compression="lzw", tile=(16, 16))
    Image.fromarray(data[0]).save(folder / "a.png")
    Image.fromarray(data[0]).save(folder / "a.jpg")
    with mrcfile.new(folder / "a.mrc") as file:
        file.set_data(data.astype(np.int16))
    nrrd.write(str(folder / "raw.nrrd"), data.T, {"encoding": "raw"})
    nrrd.write(str(folder / "gzip.nrrd"), data.T, {"encoding": "gzip"})
    nibabel.save(nibabel.Nifti1Image(data.T, np.eye(4)), folder / "a.nii")
    nibabel.save(nibabel.Nifti1Image(data.T, np.eye(4)), folder / "b.nii.gz")
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(2, 20, 25), compression="gzip")
    (folder / "a.ser").write_bytes(ser_bytes(data.astype(np.int16)))
    (folder / "c.mrc.bz2").write_bytes(bz2.compress((folder / "a.mrc").read_bytes()))
    from nionswift_plugin.DM_IO import dm3_image_utils, parse_dm3

    for version in (3, 4):
        with open(folder / f"a.dm{version}", "wb") as handle:
            image = dm3_image_utils.ndarray_to_imagedatadict(data.astype(np.int16))
            parse_dm3.dm_write_header(handle, version, {"ImageList": [{"ImageData": image}]})
    return {path.name: path for path in folder.iterdir()}


NAMES = (
    "plain.tif", "packed.tif", "tiled.tif", "a.png", "a.jpg", "a.mrc", "raw.nrrd", "gzip.nrrd", "a.nii", "b.nii.gz", "a.h5",
    "c.mrc.bz2", "a.dm3", "a.dm4", "a.ser",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read(good, scratch, name):
    assert open_file(good[name], scratch, DESCRIPTION).source.shape[1:] == (40, 50)


@pytest.mark.parametrize("name", NAMES)
def test_empty_files(tmp_path, scratch, name):
    path = tmp_path / name
    path.write_bytes(b"")
    refused(path, scratch, "is empty (0 bytes)")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files(good, tmp_path, scratch, name, share):
    path = tmp_path / name
    data = good[name].read_bytes()
    path.write_bytes(data[: max(1, int(len(data) * share))])
    refused(path, scratch)


@pytest.mark.parametrize("name", NAMES)
def test_text_in_place_of_an_image(tmp_path, scratch, name):
    path = tmp_path / name
    path.write_bytes(b"<html><body>404 Not Found</body></html>\n" * 40)
    refused(path, scratch, "is text; expected")


@pytest.mark.parametrize("name", NAMES)
def test_random_bytes(tmp_path, scratch, name):
    path = tmp_path / name
    path.write_bytes(np.random.default_rng(5).bytes(5000))
    refused(path, scratch)


@pytest.mark.parametrize(
    ("name", "found"),
    [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.h5", "HDF5"), ("raw.nrrd", "NRRD"), ("b.nii.gz", "gzip"), ("a.nii", "NIfTI")],
)
def test_a_wrong_suffix_is_told_by_the_contents(good, tmp_path, scratch, name, found):
    path = tmp_path / "wrong.tif"
    path.write_bytes(good[name].read_bytes())
    refused(path, scratch, f"is {found}; expected TIFF by its name", "Rename it")


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gz", "noise.npy"])
def test_unknown_suffixes_list_the_known_ones(tmp_path, scratch, name):
    path = tmp_path / name
    path.write_bytes(b"x")
    refused(path, scratch, "no suffix of a known format", ".tif", ".mrc", "Zarr folder")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), st.integers(0, 2**32), st.integers(1, 12), st.booleans())
def test_flipped_bytes_give_voxels_or_one_error_never_anything_else(good, scratch, tmp_path, name, seed, count, in_header):
    generator = np.random.default_rng(seed)
    data = bytearray(good[name].read_bytes())
    reach = min(len(data), 600) if in_header else len(data)
    for place in generator.integers(0, reach, count):
        data[place] = generator.integers(0, 256)
    path = tmp_path / name
    path.write_bytes(bytes(data))
    try:
        source = open_file(path, scratch, DESCRIPTION).source
        if np.prod(source.shape, dtype=object) < 1 << 24:
            box = tuple(slice(0, side) for side in source.shape)
            source.read(box)
            source.missing(box)
    except DataError as error:
        assert name.split(".")[0] in str(error)


# Decompression bombs


def test_a_png_that_claims_far_more_pixels_than_its_bytes(tmp_path, scratch):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(30_001) * 100, 9)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    refused(path, scratch, "decompression bomb")


def test_a_tiff_that_claims_far_more_pixels_than_its_bytes(tmp_path, scratch):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(
        path, np.zeros((20_000, 20_000), np.uint8), compression="zlib", rowsperstrip=20_000, photometric="minisblack"
    )
    assert path.stat().st_size < 1_000_000
    refused(path, scratch, "decompression bomb")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_packed_file_that_never_ends_is_stopped(tmp_path, scratch, monkeypatch, pack):
    monkeypatch.setattr(arrays, "_FILE_EXPANSION_FROM", 8 << 20)
    path = tmp_path / f"bomb.mrc.{'gz' if pack is gzip.compress else 'bz2'}"
    path.write_bytes(pack(bytes(64 << 20)))
    refused(path, scratch, "decompression bomb")
    assert sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file()) < 32 << 20


def test_an_image_larger_than_the_limit_of_one_plane(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_PLANE_BYTES", 1000)
    path = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), dtype=np.uint8)).save(path)
    refused(path, scratch, "expected at most", "Cut it into tiles")


def test_headers_that_announce_more_than_the_file_holds(tmp_path, scratch):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 100000 100000 1000\nencoding: raw\n\nabc")
    refused(tmp_path / "a.nrrd", scratch, "is truncated", "found 3")
    header = np.zeros(1, mrcfile.dtypes.HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"], header["machst"] = 100_000, 100_000, 1000, [0x44, 0x44, 0, 0]
    (tmp_path / "b.mrc").write_bytes(header.tobytes() + b"abc")
    refused(tmp_path / "b.mrc", scratch, "is truncated")


def test_a_scratch_disk_that_is_too_small_is_no_fault_of_the_data(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr(arrays, "_SPARE_DISK", 1 << 60)
    tifffile.imwrite(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 9, (3, 9, 9), dtype=np.uint8), compression="zlib")
    with pytest.raises(OSError, match=r"needs .* GiB of scratch space .* Point CEM_ASSETS_SCRATCH"):
        open_file(tmp_path / "a.tif", scratch, DESCRIPTION)


# What cannot be one gray volume


def test_pages_of_several_sizes(tmp_path, scratch):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for side in (64, 64, 60):
            file.write(np.zeros((side, 64), np.uint8), contiguous=False, metadata=None)
    refused(tmp_path / "a.tif", scratch, "page 2 is uint8 (60, 64), the first is uint8 (64, 64)")


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_five_channels(tmp_path, scratch, planar):
    data = np.random.default_rng(0).integers(0, 256, (40, 50, 5), dtype=np.uint8)
    data = data if planar == "contig" else np.moveaxis(data, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", planarconfig=planar)
    refused(tmp_path / "a.tif", scratch, "5 channels", "channel = N")


def test_time_and_depth_together(tmp_path, scratch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 4, 20, 20), np.uint8), imagej=True, metadata={"axes": "TZYX"})
    refused(tmp_path / "a.tif", scratch, "expected one stack of slices")


def test_complex_numbers(tmp_path, scratch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), np.complex64), photometric="minisblack")
    refused(tmp_path / "a.tif", scratch, "complex64; expected integers or floats")
    with mrcfile.new(tmp_path / "b.mrc") as file:
        file.set_data(np.zeros((2, 20, 20), np.complex64))
    refused(tmp_path / "b.mrc", scratch, "MRC mode 4; expected one of 0 (int8)")


def test_tiff_strips_without_data_are_no_zeros(tmp_path, scratch):
    path = tmp_path / "a.tif"
    data = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    tifffile.imwrite(path, data, rowsperstrip=16, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = tif.pages.first.tags["StripByteCounts"]
        counts.overwrite([*counts.value[:2], 0, counts.value[3]])
    refused(path, scratch, "lacks strips or tiles")


# HDF5, NRRD and Zarr must not lead to other files


def test_hdf5_that_points_to_other_files(tmp_path, scratch):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((4, 8, 8))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(secret), "/x")
        file["soft"] = h5py.SoftLink("/x")
    refused(tmp_path / "link.h5", scratch, "holds no array")
    (tmp_path / "secret.raw").write_bytes(bytes(256))
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("x", (4, 8, 8), "u1", external=[(str(tmp_path / "secret.raw"), 0, 256)])
    refused(tmp_path / "external.h5", scratch, "keeps its voxels in other files")
    layout = h5py.VirtualLayout((4, 8, 8), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4, 8, 8))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    refused(tmp_path / "virtual.h5", scratch, "keeps its voxels in other files")


def test_hdf5_groups_that_contain_themselves(tmp_path, scratch):
    with h5py.File(tmp_path / "loop.h5", "w") as file:
        group = file.create_group("a")
        group["again"] = group
        group["root"] = file["/"]
        group["x"] = np.ones((4, 8, 8))
    assert open_file(tmp_path / "loop.h5", scratch, DESCRIPTION).source.shape == (4, 8, 8)


def test_hdf5_without_a_clear_choice_lists_its_arrays(tmp_path, scratch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["labels"], file["names"] = np.ones((4, 8, 8)), np.ones((4, 8, 8)), np.ones(3)
        file["text"] = np.full((2, 2), b"x", dtype="S1")
    refused(tmp_path / "a.h5", scratch, "holds 3 arrays", "labels (4, 8, 8), raw (4, 8, 8)", "Set hdf5_dataset")
    named = DESCRIPTION.model_copy(update={"hdf5_dataset": "other"})
    refused(tmp_path / "a.h5", scratch, "has no array 'other'; it has: labels", description=named)
    refused(tmp_path / "a.h5", scratch, "holds |S1", description=DESCRIPTION.model_copy(update={"hdf5_dataset": "text"}))


def test_hdf5_that_was_never_written(tmp_path, scratch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (4, 8, 8), "u1", chunks=(2, 8, 8))
    refused(tmp_path / "a.h5", scratch, "was never written")


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "a/b.raw", "..", "%03d.raw", "LIST"])
def test_nrrd_that_points_out_of_its_folder(tmp_path, scratch, name):
    (tmp_path / "secret.raw").write_bytes(bytes(24))
    folder = tmp_path / "inbox"
    folder.mkdir()
    text = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: raw\ndata file: {name}\n"
    (folder / "a.nhdr").write_bytes(text.encode())
    refused(folder / "a.nhdr", scratch)


def zarr_with(store: Store, change) -> str:
    data = np.arange(24 * 8, dtype="<u2").reshape(3, 8, 8)
    zarr.create_array(store.url_of("inbox/d/a.zarr"), data=data, chunks=(3, 4, 4), zarr_format=2, overwrite=True)
    node = json.loads(store.read("inbox/d/a.zarr/.zarray"))
    change(node)
    store.put("inbox/d/a.zarr/.zarray", json.dumps(node).encode())
    return "inbox/d/a.zarr"


class Evil:
    ran = False

    def __reduce__(self):
        return (exec, ("import cem_assets_tests.formats.test_bad_files as t; t.Evil.ran = True",))


@pytest.mark.parametrize("where", ["compressor", "filters"])
def test_zarr_codecs_that_could_run_code_are_refused_before_anything_is_decoded(local_store, where):
    def plant(node):
        node[where] = {"id": "pickle"} if where == "compressor" else [{"id": "pickle"}]

    key = zarr_with(local_store, plant)
    local_store.put(f"{key}/0.0.0", pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="uses codec 'pickle'; expected one of"):
        open_zarr(local_store, key, None)
    assert Evil.ran is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.update(dtype="|O"), "a.zarr"),
        (lambda n: n.update(dtype="<c8", fill_value=0), "holds complex64|cannot be opened"),
        (lambda n: n.update(shape=[3, 8], chunks=[3]), "a.zarr"),
        (lambda n: n.update(shape=[2, 5, 3, 8, 8], chunks=[1, 1, 3, 4, 4]), r"expected \(z, y, x\).*channel = N"),
        (lambda n: n.update(shape=[0, 8, 8]), "none of them 0"),
        (lambda n: n.update(zarr_format=7), "a.zarr"),
    ],
)
def test_zarr_metadata_that_is_no_volume(local_store, change, message):
    key = zarr_with(local_store, change)
    with pytest.raises(ValueError, match=message):
        open_zarr(local_store, key, None)


def test_zarr_chunks_that_cannot_be_decoded(local_store):
    key = zarr_with(local_store, lambda node: None)
    local_store.put(f"{key}/0.0.0", b"garbage that is no blosc or zstd frame")
    source = open_zarr(local_store, key, None).source
    with pytest.raises(ValueError, match="cannot be decoded"):
        source.read((slice(0, 3), slice(0, 8), slice(0, 8)))


@pytest.mark.parametrize("codec", [numcodecs.Zlib(), numcodecs.GZip(), numcodecs.BZ2(), numcodecs.LZMA(), numcodecs.Zstd()])
@pytest.mark.parametrize("is_cut", [False, True])
def test_zarr_chunks_of_every_compression_that_are_damaged(local_store, codec, is_cut):
    data = np.random.default_rng(0).integers(0, 99, (3, 8, 8), dtype=np.uint8)
    zarr.create_array(local_store.url_of("inbox/d/a.zarr"), data=data, chunks=(3, 8, 8), compressors=codec, zarr_format=2)
    chunk = local_store.read("inbox/d/a.zarr/0.0.0")
    local_store.put("inbox/d/a.zarr/0.0.0", chunk[: len(chunk) // 2] if is_cut else b"\xff" * 6 + chunk[6:])
    source = open_zarr(local_store, "inbox/d/a.zarr", None).source
    with pytest.raises(DataError, match=r"a\.zarr cannot be decoded"):
        source.read((slice(0, 3), slice(0, 8), slice(0, 8)))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"zarr_format": 2}', b"[" * 100_000])
def test_zarr_metadata_that_is_no_json_object(local_store, text):
    key = zarr_with(local_store, lambda node: None)
    local_store.put(f"{key}/.zarray", text)
    with pytest.raises(ValueError, match=r"a\.zarr"):
        open_zarr(local_store, key, None)


def test_a_folder_that_is_no_zarr(local_store):
    local_store.put("inbox/d/b.zarr/readme.txt", b"x")
    with pytest.raises(ValueError, match=r"b\.zarr is no Zarr store"):
        open_zarr(local_store, "inbox/d/b.zarr", None)


def test_a_group_of_arrays_without_a_choice(local_store):
    group = zarr.open_group(local_store.url_of("inbox/d/a.zarr"), mode="w")
    for name in ("raw", "labels"):
        group.create_array(name, data=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"holds 2 arrays \(labels, raw\) .* Set zarr_array"):
        open_zarr(local_store, "inbox/d/a.zarr", None)
    for path in ("other", "../../secret"):
        with pytest.raises(ValueError):
            open_zarr(local_store, "inbox/d/a.zarr", path)


# Stacks of slices


def slices(folder: Path, shapes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, shape in enumerate(shapes):
        path = folder / f"s{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_a_slice_of_another_size_is_named(tmp_path, scratch):
    paths = slices(tmp_path / "s", [(40, 50)] * 5 + [(40, 51)] + [(40, 50)] * 3)
    with pytest.raises(
        ValueError, match=r"volume 'v': slice s5.png is uint8 \(40, 51\); expected uint8 \(40, 50\) like s0.png"
    ):
        open_stack(paths, scratch, DESCRIPTION, "v")


def test_a_damaged_slice_is_named(tmp_path, scratch):
    paths = slices(tmp_path / "s", [(40, 50)] * 5)
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"s3\.png cannot be read as PNG: OSError: image file is truncated"):
        open_stack(paths, scratch, DESCRIPTION, "v")


def test_a_stack_among_slices_is_named(tmp_path, scratch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match=r"a\.tif is a stack of 3 slices; expected one 2D image"):
        read_plane(tmp_path / "a.tif", scratch, DESCRIPTION)


def test_slices_are_put_together_in_order(tmp_path, scratch):
    paths = slices(tmp_path / "s", [(40, 50)] * 30)
    source = open_stack(paths, scratch, DESCRIPTION, "v").source
    out = source.read((slice(0, 30), slice(0, 40), slice(0, 50)))
    for number, path in enumerate(paths):
        assert np.array_equal(out[number], np.asarray(Image.open(path)))


def test_animations_are_refused(tmp_path, scratch):
    frames = [Image.fromarray(np.full((20, 20), n, np.uint8)) for n in (1, 200)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    refused(tmp_path / "a.png", scratch, "is an animation of 2 frames")


def test_nothing_is_left_open_or_unpickled():
    assert Evil.ran is False and io is not None


@pytest.mark.parametrize("name", ["v.h5", "v.zarr"])
def test_chunks_that_do_not_fit_memory_are_refused_before_they_are_read(tmp_path, scratch, monkeypatch, name):
    from cem_assets.formats import arrays
    from cem_assets.formats.zarr.stores import open_zarr
    from cem_assets.store.store import open_store

    monkeypatch.setattr(arrays, "MAX_PLANE_BYTES", 1000)
    data = np.arange(8 * 16 * 16, dtype=np.uint8).reshape(8, 16, 16)
    path = tmp_path / name
    with pytest.raises(ValueError, match="a chunk of .*v.* can only be held in memory whole; expected at most"):
        if name.endswith(".h5"):
            with h5py.File(path, "w") as file:
                file.create_dataset("v", data=data, chunks=(8, 16, 16))
            open_file(path, scratch, DESCRIPTION)
        else:
            zarr.create_array(path, data=data, chunks=(8, 16, 16))
            open_zarr(open_store(str(tmp_path)), name, None)


def test_tia_series_that_are_no_volume(tmp_path, scratch):
    data = np.random.default_rng(0).integers(0, 200, (3, 20, 30), dtype=np.uint8)
    path = tmp_path / "a.ser"
    path.write_bytes(ser_bytes(data, kind=0x4120))
    refused(path, scratch, "spectra", "expected images")
    mixed = bytearray(ser_bytes(data))
    second = mixed.index(data[1].tobytes())
    struct.pack_into("<ii", mixed, second - 8, 20, 30)
    path.write_bytes(mixed)
    refused(path, scratch, "image 1", "expected <u1 (20, 30)")
    struct.pack_into("<ii", mixed, second - 8, 30, -20)
    path.write_bytes(mixed)
    refused(path, scratch, "image 1", "negative")
    struct.pack_into("<hii", mixed, second - 10, 9, 30, 20)
    path.write_bytes(mixed)
    refused(path, scratch, "image 1", "number type 9")
    struct.pack_into("<hii", mixed, second - 10, 1, 1 << 20, 1 << 20)
    path.write_bytes(mixed)
    refused(path, scratch, "image 1", "can only be held in memory whole")
    many = bytearray(ser_bytes(data))
    struct.pack_into("<I", many, 18, 1 << 30)  # the memory that the header claims is not allocated
    path.write_bytes(many)
    refused(path, scratch, "announces", "Copy it again")
