"""The stage `cem/volumes`: what is standardized, what is refused and why, and that the other files are still used."""

import json
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr

from cem_assets import readers
from cem_assets.cem.patches.pixels import open_pixels
from cem_assets.cem.patches.stage import PatchifyParams, cut_and_hash
from cem_assets.cem.volumes import standardize
from cem_assets.cem.volumes.bricks import ALL_PLANES, XY_ONLY
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.cem.volumes.tables import REJECTED_SCHEMA
from cem_assets.errors import DataError
from cem_assets.execution.local import LocalEngine, ThreadEngine
from cem_assets.store.manifests import manifest_numbers
from cem_assets.store.parquet import read_side_table
from cem_assets.store.store import Store
from cem_assets_tests.datasets import (
    cells,
    file_bytes,
    image_dataset,
    nrrd_bytes,
    png_bytes,
    put_in_inbox,
    toml,
    volume_dataset,
)


def tiff_bytes(folder: Path, data: np.ndarray, **options) -> bytes:
    options = {"photometric": "minisblack", "metadata": None, **options}
    return file_bytes(folder, "t.tif", lambda path: tifffile.imwrite(path, data, **options))


def refusals(store: Store, result) -> dict[str, str]:
    table = read_side_table(store, result.manifest, "_rejected", REJECTED_SCHEMA)
    return dict(zip(table["what"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_voxels_are_those_of_the_file(store: Store, tmp_path):
    data = cells((70, 130, 240))
    put_in_inbox(store, "d", {"v.nrrd": nrrd_bytes(data)})
    result = standardize_dataset(store, "d")
    assert result.is_new and result.manifest.counts == {
        "volumes": 1, "images": 0, "voxels": data.size, "patches_expected": 70 + 130 + 240, "rejected": 0,
    }  # fmt: skip
    assert np.array_equal(readers.open_volume("d", root=store.url)[:], data)
    assert readers.list_datasets(store.url) == ["d"] and readers.list_volumes("d", store.url) == ["v"]
    record = open_pixels(store, "d").volumes[0].record
    assert record.voxel_size_nm == (8, 8, 8) and record.planes == ALL_PLANES and record.intensity.policy == "identity"
    assert np.array_equal(record.histogram, np.bincount(data.reshape(-1), minlength=256))


def test_workers_and_stores_do_not_change_a_byte(s3_store, local_store, tmp_path):
    digests = set()
    plain = [Store(str(tmp_path / name)) for name in ("one", "three")]
    engines = [LocalEngine(1), LocalEngine(2), ThreadEngine(1), ThreadEngine(3)]
    for store, engine in zip((local_store, s3_store, *plain), engines, strict=True):
        volume_dataset(store, shape=(100, 300, 470))
        digests.add(standardize_dataset(store, "cells", engine=engine).manifest.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("kind", ["nrrd", "zarr with gaps", "binned"])
def test_bricks_read_together_and_bricks_left_by_a_killed_run_change_no_byte(tmp_path, monkeypatch, kind):
    data = cells((30, 240, 900))
    manifests = []
    for most in (1, 2, 4):
        store = Store(str(tmp_path / f"{kind} {most}"))
        more = {"target_voxel_size_nm": "16.0"} if kind == "binned" else {}
        put_in_inbox(store, "d", {} if kind == "zarr with gaps" else {"v.nrrd": nrrd_bytes(data)}, toml("d", **more))
        if kind == "zarr with gaps":
            array = zarr.create_array(store.url_of("inbox/d/v.zarr"), shape=data.shape, chunks=(30, 100, 100), dtype="u1")
            array[:, :, :350], array[:, :, 500:] = data[:, :, :350], data[:, :, 500:]
        monkeypatch.setattr(standardize, "_most_at_once", lambda source, count, most=most: most)
        manifest = standardize_dataset(store, "d").manifest
        # The state after a run was killed: no manifest, and some of the bricks are missing.
        bricks = [item.name for item in manifest.objects if "/0/c/" in item.name]
        store.delete([f"{manifest.folder}/{name}" for name in bricks[1::3]])
        store.delete(item.key for item in store.walk(f"{manifest.inputs.folder}/_manifests"))
        assert standardize_dataset(store, "d").manifest.digest == manifest.digest
        manifests.append(manifest)
    assert len({manifest.digest for manifest in manifests}) == 1 and len(bricks) > (2 if kind == "binned" else 8)


def test_equal_inputs_are_not_computed_again(local_store: Store, tmp_path):
    volume_dataset(local_store)
    first, second = (standardize_dataset(local_store, "cells") for _ in range(2))
    assert first.is_new and not second.is_new and first.manifest.digest == second.manifest.digest
    assert manifest_numbers(local_store, "cem/volumes/cells") == [1]


def test_a_changed_dataset_is_a_new_version_and_the_old_one_stays(local_store: Store, tmp_path):
    volume_dataset(local_store)
    first = standardize_dataset(local_store, "cells").manifest
    volume_dataset(local_store, seed=9)
    second = standardize_dataset(local_store, "cells").manifest
    assert second.number == 2 and second.digest != first.digest
    assert local_store.size(f"{first.folder}/v.ome.zarr/zarr.json") is not None


def test_the_descriptions_voxel_size_wins_over_the_header(local_store: Store, tmp_path):
    data = tiff_bytes(
        tmp_path, cells((5, 70, 70)), imagej=True, resolution=(1, 1), metadata={"spacing": 1, "unit": "um", "axes": "ZYX"}
    )
    put_in_inbox(local_store, "d", {"v.tif": data}, toml("d", voxel_size_nm="[50, 5, 5]"))
    standardize_dataset(local_store, "d")
    record = open_pixels(local_store, "d").volumes[0].record
    assert record.voxel_size_nm == (50, 5, 5) and record.header_voxel_size_nm == (1000, 1000, 1000)
    assert record.planes == XY_ONLY


@pytest.mark.parametrize(
    ("kind", "voxel", "planes"),
    [("volume", "[8, 8, 8]", ALL_PLANES), ("volume", "[45, 4.6, 4.6]", XY_ONLY), ("video", "[8, 8, 8]", XY_ONLY)],
)
def test_planes_follow_kind_and_voxel_size(local_store: Store, tmp_path, kind, voxel, planes):
    put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(cells((66, 70, 80)))}, toml("d", kind, voxel_size_nm=voxel))
    standardize_dataset(local_store, "d")
    assert open_pixels(local_store, "d").volumes[0].planes == planes


def test_slices_become_one_volume_in_natural_order(store: Store, tmp_path):
    data = cells((12, 70, 80))
    files = {f"s{n}.png": png_bytes(tmp_path, plane) for n, plane in enumerate(data)}
    put_in_inbox(store, "d", files)
    standardize_dataset(store, "d")
    assert np.array_equal(readers.open_volume("d", "d", store.url)[:], data)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_other_number_types_are_mapped_and_can_be_undone(local_store: Store, tmp_path, dtype):
    base = cells((20, 70, 80)).astype(np.float64)
    data = (base - 128).astype(dtype) if dtype[0] == "i" else (base * 13 + 1000).astype(dtype)
    put_in_inbox(local_store, "d", {"v.tif": tiff_bytes(tmp_path, data, compression="zlib")})
    standardize_dataset(local_store, "d")
    record = open_pixels(local_store, "d").volumes[0].record
    assert (record.intensity.policy, record.intensity.dtype) == ("percentile", dtype)
    low, high = np.percentile(data.astype(np.float64), [0.1, 99.9])
    assert (record.intensity.low, record.intensity.high) == pytest.approx((low, high))
    undone = record.intensity.undo(readers.open_volume("d", root=local_store.url)[:])
    assert np.abs(undone - np.clip(data.astype(np.float64), low, high)).max() <= (high - low) / 255 * 0.51


def test_images_become_a_table_with_their_own_mapping_each(store: Store, tmp_path):
    image_dataset(store, tmp_path)
    result = standardize_dataset(store, "pictures")
    assert result.manifest.counts["images"] == 5
    pixels = open_pixels(store, "pictures")
    assert pixels.images is not None and list(pixels.images.sizes()) == [f"im {n}" for n in range(5)]
    assert np.array_equal(pixels.images.read("im 1"), cells((224, 500), 1))
    import pandas as pd

    if store.is_local:
        frame = pd.read_parquet(store.url_of(result.manifest.folder))
        assert frame["file"].tolist() == [f"im {n}.png" for n in range(5)] and set(frame["intensity_policy"]) == {"identity"}


# Refusals


def bad_files(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """Files that cannot be used, each with words that the reason must contain."""
    nan = cells((6, 70, 80)).astype(np.float32)
    nan[3, 4, 5] = np.nan
    infinite = nan.copy()
    infinite[3, 4, 5] = np.inf
    good = tiff_bytes(tmp_path, cells((6, 70, 80)), compression="zlib")
    five = np.random.default_rng(0).integers(0, 255, (70, 80, 5), np.uint8)
    zeros = np.zeros((6, 70, 80), np.uint8)
    return {
        "nan.tif": (tiff_bytes(tmp_path, nan), "NaN or infinite"),
        "infinite.tif": (tiff_bytes(tmp_path, infinite), "NaN or infinite"),
        "zeros.tif": (tiff_bytes(tmp_path, zeros), "constant: every voxel is 0. Zero-filled data mostly comes from a copy"),
        "blank.tif": (tiff_bytes(tmp_path, np.full((6, 70, 80), 77, np.uint8)), "constant: every voxel is 77 (blank)"),
        "flat16.tif": (tiff_bytes(tmp_path, np.full((6, 70, 80), 900, np.uint16)), "percentiles are both 900"),
        "empty.tif": (b"", "is empty (0 bytes)"),
        "cut.tif": (good[: len(good) // 2], "truncated"),
        "text.tif": (b"<html>not found</html>" * 9, "is text; expected TIFF"),
        "png.tif": (png_bytes(tmp_path, cells((70, 80))), "is PNG; expected TIFF"),
        "channels.tif": (tiff_bytes(tmp_path, five, planarconfig="contig"), "5 channels"),
        "what.xyz": (b"?", "no suffix of a known format"),
    }  # fmt: skip


def test_each_bad_file_is_refused_with_its_reason_and_the_rest_goes_on(store: Store, tmp_path):
    bad = bad_files(tmp_path)
    files = {name: data for name, (data, _) in bad.items()}
    data = cells((66, 70, 80))
    put_in_inbox(store, "d", {**files, "good.nrrd": nrrd_bytes(data)})
    # Single images among volumes are refused for being that; with kind "images", the good volume would be refused.
    result = standardize_dataset(store, "d")
    found = refusals(store, result)
    singles = {"empty.tif", "text.tif", "png.tif", "channels.tif"}
    assert set(found) == set(bad)
    for name, (_, words) in bad.items():
        assert ("a single 2D image among" if name in singles else words) in found[name], (name, found[name])
    assert np.array_equal(readers.open_volume("d", "good", store.url)[:], data)
    assert {item.key.split("/")[4] for item in store.walk(result.manifest.folder)} == {
        "_patch_hashes",
        "_rejected",
        "good.ome.zarr",
    }
    report = json.loads(store.read("quarantine/d/report.json"))
    assert {item["what"] for item in report["rejections"]} == set(bad) and report["is_refused"] is False
    text = store.read("quarantine/d/report.md").decode()
    assert "The rest of the dataset went on" in text and "`nan.tif`" in text
    assert store.size("inbox/d/nan.tif") is not None, "refused files stay in the inbox"


@pytest.mark.parametrize(
    "name", ["nan.tif", "zeros.tif", "empty.tif", "cut.tif", "text.tif", "png.tif", "channels.tif", "what.xyz"]
)
def test_a_bad_file_alone_fails_with_one_error(local_store: Store, tmp_path, name):
    data, words = bad_files(tmp_path)[name]
    put_in_inbox(local_store, "d", {name: data})
    with pytest.raises(ValueError, match="has nothing that can be used; 1 file") as caught:
        standardize_dataset(local_store, "d")
    message = str(caught.value)
    assert words in message and "materialize cem/volumes again" in message
    assert (name in message) or ("  - d: " in message), "the file, or the volume made of it, is named"
    assert json.loads(local_store.read("quarantine/d/report.json"))["is_refused"] is True
    assert readers.list_datasets(local_store.url) == []


def test_the_report_goes_away_when_the_dataset_is_mended(local_store: Store, tmp_path):
    put_in_inbox(local_store, "d", {"v.nrrd": b""})
    with pytest.raises(ValueError, match="is empty"):
        standardize_dataset(local_store, "d")
    assert local_store.children("quarantine/d") == ["report.json", "report.md"]
    put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(cells((66, 70, 80)))})
    standardize_dataset(local_store, "d")
    assert local_store.children("quarantine") == []


def test_a_broken_description_is_reported_too(local_store: Store):
    put_in_inbox(local_store, "d", {"a.tif": b"1"}, toml("d", license='"x"'))
    with pytest.raises(ValueError, match='unknown key "license"'):
        standardize_dataset(local_store, "d")
    assert 'unknown key "license"' in local_store.read("quarantine/d/report.md").decode()


def test_a_slice_of_another_size_refuses_the_volume_and_names_the_slice(local_store: Store, tmp_path):
    files = {f"s{n}.png": png_bytes(tmp_path, cells((70, 80 + (n == 3)))) for n in range(6)}
    put_in_inbox(local_store, "d", files)
    with pytest.raises(ValueError, match=r"d: volume 'd': slice s3.png is uint8 \(70, 81\); expected uint8 \(70, 80\)"):
        standardize_dataset(local_store, "d")


def test_bad_images_are_refused_and_the_rest_goes_on(store: Store, tmp_path):
    files = {
        "good.png": png_bytes(tmp_path, cells((100, 100))),
        "cut.png": png_bytes(tmp_path, cells((100, 100)))[:300],
        "blank.png": png_bytes(tmp_path, np.full((100, 100), 9, np.uint8)),
        "stack.tif": tiff_bytes(tmp_path, cells((4, 70, 80))),
        "zero.jpg": b"",
    }
    put_in_inbox(store, "d", files, toml("d", "images"))
    result = standardize_dataset(store, "d")
    found = refusals(store, result)
    assert result.manifest.counts["images"] == 1
    assert (
        "cut.png cannot be read as PNG" in found["cut.png"]
        and "constant" in found["blank.png"]
        and "is empty" in found["zero.jpg"]
    )
    assert 'is a stack of 4 slices; expected one 2D image. Use kind = "volume"' in found["stack.tif"]


# What the source never had


def test_absent_chunks_become_a_mask_and_their_patches_are_rejected_never_zeros(store: Store, tmp_path):
    data = cells((70, 448, 448)) // 2 + 60
    folder = tmp_path / "v.zarr"
    array = zarr.create_array(str(folder), data=data, chunks=(70, 64, 64), fill_value=0)
    del array
    (folder / "c/0/3/5").unlink()
    files = {f"v.zarr/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    put_in_inbox(store, "d", files)
    result = standardize_dataset(store, "d")
    record = open_pixels(store, "d").volumes[0].record
    assert record.num_missing == 70 * 64 * 64 and result.manifest.counts["rejected"] == 0
    out = readers.open_volume("d", root=store.url)[:]
    mask = np.zeros(data.shape, bool)
    mask[:, 192:256, 320:384] = True
    assert np.array_equal(out[~mask], data[~mask]) and (out[mask] == 128).all() and record.histogram[0] == 0
    raw = cut_and_hash(store, "d", PatchifyParams())
    rejected = refusals(store, raw)
    # The hole is in rows 192..255 and columns 320..383. It touches two of four xy cells in every slice, one xz cell in 64
    # slices, and two yz cells, one on either side of row 224, in 64 slices.
    expected = {"0": 2 * 70, "1": 64, "2": 64 * 2}
    counted = {axis: sum(f"-LOC-{axis}_" in name for name in rejected) for axis in "012"}
    assert counted == expected and all("source does not have" in reason for reason in rejected.values())
    assert raw.manifest.counts["patches"] + sum(expected.values()) == result.manifest.counts["patches_expected"]
    for name, image in readers.iter_images("d", "raw", store.url):
        assert not (image == 128).all(), name


def test_a_volume_of_which_nothing_is_there_is_refused(local_store: Store, tmp_path):
    folder = tmp_path / "v.zarr"
    zarr.create_array(str(folder), shape=(70, 70, 70), chunks=(35, 35, 35), dtype="u1")
    files = {f"v.zarr/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    put_in_inbox(local_store, "d", files)
    with pytest.raises(ValueError, match="no voxel of it could be read"):
        standardize_dataset(local_store, "d")


@pytest.mark.parametrize("shards", [None, (64, 64, 64)])
def test_chunks_that_are_larger_than_what_they_hold_are_refused_and_the_rest_goes_on(
    store: Store, tmp_path, shards, monkeypatch
):
    data = cells((64, 70, 128))
    files = {"plain.nrrd": nrrd_bytes(data)}
    for name in ("bad.zarr", "good.zarr"):
        folder = tmp_path / name
        zarr.create_array(str(folder), data=data, chunks=(32, 32, 32), shards=shards)
        files |= {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    swollen = "bad.zarr/c/0/1/1"
    files[swollen] += bytes(4 << 20)
    put_in_inbox(store, "d", files)
    read = Store.read_quickly

    def watched(self: Store, key: str) -> bytes | None:
        assert not key.endswith(swollen), "it is refused before it is fetched"
        return read(self, key)

    monkeypatch.setattr(Store, "read_quickly", watched)
    result = standardize_dataset(store, "d")
    assert result.manifest.counts["volumes"] == 2
    found = refusals(store, result)
    assert f"bad.zarr: c/0/1/1 has {len(files[swollen])} bytes" in found["bad.zarr"] and "Copy it again" in found["bad.zarr"]


def test_a_zarr_v2_store_is_taken_and_so_are_chunks_that_a_filter_makes_larger(store: Store, tmp_path):
    data = cells((64, 70, 128))
    wider = numcodecs.Delta(dtype="u1", astype="i8")
    folder = tmp_path / "v.zarr"
    zarr.create_array(str(folder), data=data, chunks=(32, 64, 64), zarr_format=2, filters=[wider], compressors=None)
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert max(map(len, files.values())) == 8 * 32 * 64 * 64
    put_in_inbox(store, "d", files)
    standardize_dataset(store, "d")
    assert np.array_equal(readers.open_volume("d", root=store.url)[:], data)


def test_unwritten_hdf5_chunks_are_missing_too(local_store: Store, tmp_path):
    data = cells((64, 70, 128))

    def write(path):
        with h5py.File(path, "w") as file:
            array = file.create_dataset("raw", data.shape, "u1", chunks=(64, 70, 64))
            array[:, :, :64] = data[:, :, :64]

    put_in_inbox(local_store, "d", {"v.h5": file_bytes(tmp_path, "v.h5", write)})
    standardize_dataset(local_store, "d")
    record = open_pixels(local_store, "d").volumes[0].record
    assert record.num_missing == 64 * 70 * 64
    raw = cut_and_hash(local_store, "d", PatchifyParams())
    assert raw.manifest.counts == {"patches": 64, "rejected_patches": 64 + 70 + 64, "rejected_planes": 0}


def test_a_plane_under_64_px_is_rejected_with_its_reason_and_the_others_are_cut(local_store: Store, tmp_path):
    put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(cells((40, 100, 120)))})
    standardize_dataset(local_store, "d")
    raw = cut_and_hash(local_store, "d", PatchifyParams())
    assert raw.manifest.counts == {"patches": 40, "rejected_patches": 0, "rejected_planes": 2}
    assert refusals(local_store, raw)["v xz"].startswith("the xz plane is 40 x 120 px; expected sides of at least 64 px")


def test_a_dataset_with_no_plane_large_enough_says_so(local_store: Store, test_data):
    path = test_data / "em3d_raw/emdb_small_maps/EMD-3197.map"
    put_in_inbox(local_store, "d", {path.name: path.read_bytes()})
    standardize_dataset(local_store, "d")
    with pytest.raises(ValueError, match=r"dataset 'd' gives no patches:\n  - EMD-3197 xy: the xy plane is 20 x 20 px"):
        cut_and_hash(local_store, "d", PatchifyParams())


@pytest.mark.parametrize("error", [ValueError("no such axis"), KeyError("x"), MemoryError("cannot allocate 9 GiB")])
@pytest.mark.parametrize("kind", ["volume", "images"])
def test_a_bug_or_a_lack_of_memory_stops_the_stage_and_is_not_written_down_as_bad_data(
    local_store: Store, tmp_path, monkeypatch, kind, error
):
    if kind == "volume":
        put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(cells((66, 70, 80)))})
        place = "cem_assets.cem.volumes.standardize.hash_voxels"
    else:
        put_in_inbox(local_store, "d", {"a.png": png_bytes(tmp_path, cells((100, 100)))}, toml("d", "images"))
        place = "cem_assets.cem.volumes.standardize_images.binning_notes"

    def fails(*_):
        raise error

    monkeypatch.setattr(place, fails)
    with pytest.raises(type(error)) as caught:
        standardize_dataset(local_store, "d", engine=LocalEngine(1))
    assert not isinstance(caught.value, DataError)
    assert local_store.children("quarantine") == [] and local_store.children("cem/volumes/d/_manifests") == []


def test_a_damaged_brick_that_a_killed_run_left_is_written_again(local_store: Store):
    volume_dataset(local_store)
    manifest = standardize_dataset(local_store, "cells").manifest
    (brick, *_) = (item.name for item in manifest.objects if "/0/c/" in item.name)
    data = bytearray(local_store.read(f"{manifest.folder}/{brick}"))
    data[len(data) // 2] ^= 1
    local_store.put(f"{manifest.folder}/{brick}", bytes(data))
    local_store.delete(item.key for item in local_store.walk(f"{manifest.inputs.folder}/_manifests"))
    again = standardize_dataset(local_store, "cells").manifest
    assert again.digest == manifest.digest and again.counts["rejected"] == 0
    assert local_store.children("quarantine") == []


def test_a_store_in_trouble_is_no_refusal(local_store: Store, tmp_path, monkeypatch):
    volume_dataset(local_store)
    put = Store.put

    def fails(self, key, data):
        if key.startswith("cem/"):
            raise OSError(5, "input/output error")
        put(self, key, data)

    monkeypatch.setattr(Store, "put", fails)
    with pytest.raises(OSError, match="input/output error"):
        standardize_dataset(local_store, "cells")
    assert local_store.children("quarantine") == []
