"""Standardized volumes: other tools open their OME-Zarr, and absent chunks are never read as zeros."""

import json

import numpy as np
import pytest
from ome_zarr_models.v05.image import Image as OmeImage

from cem_assets.cem.volumes.bricks import ALL_PLANES, XY_ONLY, brick_boxes
from cem_assets.cem.volumes.ome_zarr import (
    StoredVolume,
    VolumeRecord,
    brick_name,
    decode_brick,
    encode_brick,
    metadata_objects,
    open_volume_array,
    volume_folder,
)
from cem_assets.imaging.intensity import IntensityMapping
from cem_assets.store.store import Store


def record(shape, planes, name="v", num_missing=0) -> VolumeRecord:
    mapping = IntensityMapping("percentile", "uint16", 10.5, 4000.25)
    return VolumeRecord(
        name, volume_folder(name), shape, (40.0, 4.6, 4.6), planes, mapping, ("a.tif",), num_missing, (1,) * 256, None, ("n",)
    )


def written(store: Store, voxels: np.ndarray, planes, mask: np.ndarray | None = None) -> StoredVolume:
    about = record(voxels.shape, planes, num_missing=0 if mask is None else int(mask.sum()))
    folder = f"cem/volumes/d/c/{about.folder}"
    for box in brick_boxes(voxels.shape, planes):
        store.put(f"{folder}/{brick_name(voxels.shape, planes, box)}", encode_brick(voxels.shape, planes, box, voxels[box]))
        if mask is not None and mask[box].any():
            data = encode_brick(voxels.shape, planes, box, mask[box].astype(np.uint8))
            store.put(f"{folder}/{brick_name(voxels.shape, planes, box, 'missing')}", data)
    for name, data in metadata_objects(about).items():
        store.put(f"{folder}/{name}", data)
    return StoredVolume(store, "cem/volumes/d/c", about)


@pytest.mark.parametrize(("shape", "planes"), [((70, 230, 336), ALL_PLANES), ((5, 500, 700), XY_ONLY), ((1, 64, 64), XY_ONLY)])
def test_bricks_and_the_whole_array_give_back_the_voxels(store: Store, shape, planes):
    voxels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    volume = written(store, voxels, planes)
    for box in brick_boxes(shape, planes):
        assert np.array_equal(volume.read(box), voxels[box]) and volume.missing(box) is None
    assert np.array_equal(open_volume_array(volume)[:], voxels)


def test_equal_voxels_give_equal_bytes():
    voxels = np.random.default_rng(0).integers(0, 256, (60, 100, 120), dtype=np.uint8)
    box = (slice(0, 60), slice(0, 100), slice(0, 120))
    assert encode_brick(voxels.shape, ALL_PLANES, box, voxels) == encode_brick(voxels.shape, ALL_PLANES, box, voxels.copy())


def test_blank_chunks_are_kept_so_that_absence_means_loss(local_store: Store):
    voxels = np.zeros((230, 230, 230), np.uint8)
    voxels[0, 0, 0] = 1
    volume = written(local_store, voxels, ALL_PLANES)
    assert sum("/0/c/" in item.key for item in local_store.walk("cem")) == 8
    lost = f"{volume.folder}/0/c/1/1/1"
    local_store.delete([lost])
    box = brick_boxes(voxels.shape, ALL_PLANES)[-1]
    with pytest.raises(
        FileNotFoundError, match=r"lacks its brick at \(z, y, x\) = \(224, 224, 224\).*Materialize cem/volumes again"
    ):
        volume.read(box)
    array = open_volume_array(volume)
    assert array[:224, :224, :224].sum() == 1
    with pytest.raises(FileNotFoundError, match="chunk 0/c/1/1/1 is absent"):
        array[225:, 225:, 225:]


def test_damaged_bricks_are_errors_not_other_voxels(store: Store):
    voxels = np.random.default_rng(1).integers(0, 256, (70, 80, 90), dtype=np.uint8)
    volume = written(store, voxels, ALL_PLANES)
    box = brick_boxes(voxels.shape, ALL_PLANES)[0]
    key = f"{volume.folder}/0/c/0/0/0"
    data = bytearray(store.read(key))
    data[len(data) // 3] ^= 0xFF
    store.put(key, bytes(data))
    with pytest.raises(ValueError, match=r"volume 'v': the brick at .* is damaged.*[Mm]aterialize cem/volumes again"):
        volume.read(box)
    with pytest.raises(ValueError, match="damaged"):
        decode_brick(voxels.shape, ALL_PLANES, box, b"")


def test_missing_voxels_are_told_brick_by_brick(store: Store):
    voxels = np.random.default_rng(1).integers(0, 256, (70, 300, 300), dtype=np.uint8)
    mask = np.zeros(voxels.shape, bool)
    mask[5:9, 250:260, 10:20] = True
    volume = written(store, voxels, ALL_PLANES, mask)
    found = np.zeros_like(mask)
    for box in brick_boxes(voxels.shape, ALL_PLANES):
        part = volume.missing(box)
        found[box] = False if part is None else part
    assert np.array_equal(found, mask)


def test_the_metadata_is_valid_ome_zarr_with_voxel_size_and_provenance(local_store: Store):
    import zarr

    volume = written(local_store, np.zeros((5, 500, 700), np.uint8), XY_ONLY)
    group = zarr.open_group(local_store.url_of(volume.folder), mode="r")
    image = OmeImage.from_zarr(group)
    multiscale = image.ome_attributes.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"] and {a.unit for a in multiscale.axes} == {"nanometer"}
    assert multiscale.datasets[0].coordinateTransformations[0].scale == [40.0, 4.6, 4.6]
    about = VolumeRecord.from_json(group.attrs["cem_assets"])
    assert about == volume.record and about.intensity.low == 10.5 and group["0"].dtype == "uint8"


def test_records_survive_json():
    about = record((1, 2, 3), XY_ONLY)
    assert VolumeRecord.from_json(json.loads(json.dumps(about.to_json()))) == about


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("vnc", True),
        ("a.b-c_d", True),
        ("a b", False),
        ("-a", False),
        ("..", False),
        ("a/b", False),
        ("zellkörper", False),
        ("x" * 200, False),
        ("a..b", False),
    ],
)
def test_folders_of_volumes_are_safe_and_distinct(name, plain):
    folder = volume_folder(name)
    assert (folder == f"{name}.ome.zarr") is plain
    assert folder.isascii() and "/" not in folder and ".." not in folder and len(folder) < 100 and not folder.startswith("-")


def test_folders_of_names_that_look_alike_differ():
    assert len({volume_folder(name) for name in ("a b", "a_b", "a,b", "a  b")}) == 4
