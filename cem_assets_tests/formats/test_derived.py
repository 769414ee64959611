"""Regions and binned volumes are read like any other volume, and cubes are drawn within a budget."""

from dataclasses import dataclass

import numpy as np
import pytest

from cem_assets.catalog.description import LocalSampling
from cem_assets.cem.patches.pixels import open_pixels
from cem_assets.cem.patches.stage import PatchifyParams, cut_and_hash
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.formats import derived as derived_volumes
from cem_assets.formats.derived import BinnedVolume, Region, drawn_cubes, split_box
from cem_assets.imaging.binning import bin_mean
from cem_assets.imaging.intensity import mapping_for
from cem_assets.store.parquet import read_parts
from cem_assets.store.store import Store
from cem_assets_tests.datasets import cells, image_dataset, nrrd_bytes, put_in_inbox, toml


@dataclass(frozen=True, eq=False)
class Held:
    """Voxels in memory, some of which count as missing."""

    voxels: np.ndarray
    mask: np.ndarray | None = None

    @property
    def shape(self):
        return self.voxels.shape

    @property
    def dtype(self):
        return self.voxels.dtype

    def read(self, box):
        return self.voxels[box]

    def missing(self, box):
        return None if self.mask is None or not self.mask[box].any() else self.mask[box]


def box_of(*spans: tuple[int, int]):
    return tuple(slice(*span) for span in spans)


def text_of(name: str) -> str:
    return name.split("-ROI-")[1]


def test_a_region_is_a_volume_of_its_own():
    whole = Held(cells((20, 70, 80)), cells((20, 70, 80)) > 200)
    region = Region(whole, box_of((3, 15), (10, 60), (0, 80)))
    inner = box_of((1, 5), (2, 30), (40, 80))
    assert region.shape == (12, 50, 80)
    assert np.array_equal(region.read(inner), whole.voxels[4:8, 12:40, 40:80])
    assert np.array_equal(region.missing(inner), whole.mask[4:8, 12:40, 40:80])


@pytest.mark.parametrize("most", [1, 100, 5000, 1 << 30])
def test_parts_tile_a_box_and_are_small_enough(most):
    box = box_of((5, 12), (0, 9), (3, 20))
    seen = np.zeros((12, 9, 20), int)
    for part in split_box(box, 8, most):
        seen[part] += 1
        assert seen[part].size * 8 <= most or seen[part].size == 1
    assert seen[box].all() and seen.max() == 1 and seen.sum() == 7 * 9 * 17


@pytest.mark.parametrize("most", [500, 1 << 24])
def test_a_binned_volume_is_the_mean_of_mapped_voxels_whatever_is_read_at_once(monkeypatch, most):
    monkeypatch.setattr(derived_volumes.split_box, "__defaults__", (1, most))
    voxels = cells((13, 30, 41)).astype(np.uint16) * 7
    mask = np.zeros(voxels.shape, bool)
    mask[4, 5, 6] = True
    mapping = mapping_for("percentile", voxels.dtype, voxels, (1, 99), None)
    volume = BinnedVolume(Held(voxels, mask), mapping, (2, 2, 4))
    expected = bin_mean(mapping.apply(voxels)[:12, :, :40], (2, 2, 4))
    assert volume.shape == expected.shape == (6, 15, 10) and volume.dtype == np.uint8
    for box in (box_of((0, 6), (0, 15), (0, 10)), box_of((1, 4), (2, 9), (5, 10))):
        assert np.array_equal(volume.read(box), expected[box])
    assert volume.missing(box_of((0, 6), (0, 15), (0, 10))).nonzero() == (2, 2, 1)
    assert volume.missing(box_of((3, 6), (0, 15), (0, 10))) is None


def test_cubes_without_content_or_with_missing_data_are_left_out_and_counted():
    voxels = np.array(cells((128, 128, 192)), copy=True)
    voxels[voxels == 0] = 1
    voxels[:64, :64, :64] = 0
    mask = np.zeros(voxels.shape, bool)
    mask[100, 100, 100] = True
    drawn = drawn_cubes(Held(voxels, mask), LocalSampling(cube_px=64))
    assert len(drawn.boxes) == 12 - 2
    assert box_of((0, 64), (0, 64), (0, 64)) not in drawn.boxes and box_of((64, 128), (64, 128), (64, 128)) not in drawn.boxes
    assert "10 of 12 cubes of 64 voxels with seed 0 under 5 GB; 1 have less than 70% content" in drawn.notes[0]
    assert "1 touch missing data" in drawn.notes[0]


def test_a_larger_budget_only_adds_and_a_seed_draws_others():
    voxels = Held(np.maximum(cells((128, 192, 192)), 1))
    draws = [drawn_cubes(voxels, LocalSampling(cube_px=64, gigabytes=n * 64**3 / 1e9 + 1e-6)).boxes for n in (2, 5, 9)]
    assert [len(boxes) for boxes in draws] == [2, 5, 9]
    assert draws[2][:5] == draws[1] and draws[1][:2] == draws[0]
    other = drawn_cubes(voxels, LocalSampling(cube_px=64, gigabytes=2 * 64**3 / 1e9 + 1e-6, seed=1)).boxes
    assert other != draws[0]


def test_a_budget_below_one_cube_says_so():
    with pytest.raises(ValueError, match="no cube of it could be taken: .*exceeds the budget.*Check \\[sampling\\]"):
        drawn_cubes(Held(cells((70, 130, 240))), LocalSampling(cube_px=64, gigabytes=1e-6))


def test_cubes_of_a_dataset_become_volumes_named_after_their_place(local_store: Store):
    data = np.maximum(cells((128, 128, 192)), 1)
    about = toml("d", sampling="{ cube_px = 64, gigabytes = 0.0008 }")
    put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(data)}, about)
    result = standardize_dataset(local_store, "d")
    volumes = open_pixels(local_store, "d").volumes
    assert result.manifest.counts["volumes"] == 3 == len(volumes)
    for volume in volumes:
        x, y, z = (tuple(map(int, span[1:].split("-"))) for span in text_of(volume.name).split("_"))
        whole = box_of(*((0, side) for side in volume.shape))
        assert volume.name.startswith("v-ROI-x") and np.array_equal(volume.read(whole), data[box_of(z, y, x)])
        assert volume.record.notes[0].startswith("sampled: 3 of 12 cubes")
    raw = cut_and_hash(local_store, "d", PatchifyParams()).manifest
    names = [name for table in read_parts(local_store, raw, ["name"]) for name in table["name"].to_pylist()]
    assert {name.split("-LOC-")[0] for name in names} == {volume.name for volume in volumes}


def test_a_blank_cube_is_refused_by_name_and_the_others_go_on(local_store: Store):
    data = np.maximum(cells((64, 64, 128)), 1)
    data[:, :, :64] = 9
    put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(data)}, toml("d", sampling="{ cube_px = 64 }"))
    manifest = standardize_dataset(local_store, "d").manifest
    assert manifest.counts["volumes"] == 1 and manifest.counts["rejected"] == 1


def test_a_binned_dataset_has_the_oracles_voxels_and_says_so(local_store: Store):
    data = cells((131, 461, 470))
    put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(data)}, toml("d", target_voxel_size_nm="17"))
    standardize_dataset(local_store, "d")
    volume = open_pixels(local_store, "d").volumes[0]
    blocks = data[:130, :460].reshape(65, 2, 230, 2, 235, 2).astype(float)
    expected = np.floor(blocks.mean(axis=(1, 3, 5)) + 0.5)
    assert volume.shape == expected.shape and volume.record.voxel_size_nm == (16, 16, 16)
    assert np.array_equal(volume.read(box_of((0, 65), (0, 224), (0, 224))), expected[:, :224, :224])
    assert np.array_equal(volume.read(box_of((0, 65), (224, 230), (224, 235))), expected[:, 224:, 224:])
    assert volume.record.notes == (
        "binned by [2, 2, 2] (z, y, x), means rounded with halves up, from [131, 461, 470] voxels of [8.0, 8.0, 8.0] nm",
    )


def test_images_are_binned_to_the_target_too(local_store: Store, tmp_path):
    image_dataset(local_store, tmp_path, num=2)
    local_store.put("inbox/pictures/dataset.toml", toml("pictures", "images", target_voxel_size_nm="8").encode())
    manifest = standardize_dataset(local_store, "pictures").manifest
    rows = [
        row
        for table in read_parts(local_store, manifest, ["height", "width", "pixel_size_x_nm", "notes"])
        for row in table.to_pylist()
    ]
    assert [(row["height"], row["width"]) for row in rows] == [(150, 150), (112, 250)]
    assert all(row["pixel_size_x_nm"] == 8 and "binned by [1, 2, 2]" in row["notes"] for row in rows)
