"""Which files make which volume, stack or image, and which cannot be used."""

import errno

import numpy as np
import pytest
import tifffile
from PIL import Image

from cem_assets.catalog.description import DatasetDescription
from cem_assets.formats.stacks import natural_key
from cem_assets.inbox.datasets import InboxDataset, InboxFile
from cem_assets.inbox.intake import holds_one_image, intakes, slice_candidates


def dataset(*paths: str, kind: str = "volume") -> InboxDataset:
    size = {"pixel_size_nm": (4, 4)} if kind == "images" else {"voxel_size_nm": (8, 8, 8)}
    about = DatasetDescription(name="d", kind=kind, licence="x", citation="x", **size)
    return InboxDataset(about, tuple(InboxFile(path, 1, "0") for path in (*sorted(paths), "dataset.toml")), ())


def sorted_into(*paths: str, kind: str = "volume", images=lambda path: True):
    about = dataset(*paths, kind=kind)
    found, refused = intakes(about, {path: images(path) for path in slice_candidates(about)})
    return {item.name: (item.kind, item.paths) for item in found}, {item.what: item.reason for item in refused}


def test_each_volume_file_is_one_volume():
    found, refused = sorted_into("b.nrrd", "a.mrc.gz", "c.nii.gz", "x.h5", images=lambda path: False)
    assert found == {
        "a": ("file", ("a.mrc.gz",)),
        "b": ("file", ("b.nrrd",)),
        "c": ("file", ("c.nii.gz",)),
        "x": ("file", ("x.h5",)),
    }
    assert refused == {}


def test_a_folder_of_slices_is_one_volume_named_after_the_dataset_in_natural_order():
    found, refused = sorted_into("s10.png", "s9.png", "s100.png", "S1.tif")
    assert found == {"d": ("stack", ("S1.tif", "s9.png", "s10.png", "s100.png"))} and refused == {}


def test_each_folder_of_slices_is_a_volume_named_after_the_folder():
    found, _ = sorted_into("a/1.png", "a/2.png", "b/c/1.png")
    assert found == {"a": ("stack", ("a/1.png", "a/2.png")), "b-c": ("stack", ("b/c/1.png",))}


def test_slices_among_volumes_are_refused_and_the_volumes_go_on():
    found, refused = sorted_into("v.tif", "s.png", images=lambda path: path == "s.png")
    assert found == {"v": ("file", ("v.tif",))}
    assert "a single 2D image among 1 volume file(s)" in refused["s.png"] and "folder of their own" in refused["s.png"]


def test_every_file_of_an_image_set_is_an_image():
    found, _ = sorted_into("a 1.png", "--b,2.tif", "x/c.dm3", kind="images")
    assert set(found) == {"a 1", "--b,2", "x-c"} and all(kind == "file" for kind, _ in found.values())


def test_zarr_folders_are_volumes_and_their_insides_are_not():
    found, refused = sorted_into(
        "a.ome.zarr/zarr.json", "a.ome.zarr/0/zarr.json", "a.ome.zarr/0/c/0/0/0", "b.zarr/.zarray", "b.zarr/0.0.0"
    )
    assert found == {"a": ("zarr", ("a.ome.zarr",)), "b": ("zarr", ("b.zarr",))} and refused == {}


def test_sidecars_are_passed_over_and_other_files_refused():
    found, refused = sorted_into("v.nrrd", "README.md", "notes.txt", "meta.json", "a.xyz", "noext", images=lambda path: False)
    assert set(found) == {"v"} and set(refused) == {"a.xyz", "noext"}
    assert all("no suffix of a known format; expected one of .ali" in reason for reason in refused.values())


def test_names_that_collide_are_refused_but_the_first():
    found, refused = sorted_into("v.mrc", "v.nrrd", images=lambda path: False)
    assert found == {"v": ("file", ("v.mrc",))}
    assert refused["v.nrrd"] == "it would be named 'v' like 'v.mrc'; expected distinct names. Rename one of them."


def test_names_too_long_are_refused():
    found, refused = sorted_into("x" * 200 + ".nrrd", images=lambda path: False)
    assert found == {} and "its name has 200 characters; expected at most 160" in next(iter(refused.values()))


def test_equal_letters_in_two_encodings_are_one_name():
    found, refused = sorted_into("z\u00f6.nrrd", "zo\u0308.nrrd", images=lambda path: False)
    assert list(found) == ["z\u00f6"] and len(refused) == 1


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["a10", "a9", "a1"], ["a1", "a9", "a10"]),
        (["2", "10", "b", "a2", "a10"], ["2", "10", "a2", "a10", "b"]),
        (["1²", "1"], ["1", "1²"]),
    ],
)
def test_natural_order(names, ordered):
    assert sorted(names, key=natural_key) == ordered


def test_stacks_and_images_are_told_apart_by_their_headers(tmp_path):
    about = dataset("x.tif").description
    data = np.zeros((3, 20, 20), np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", data, photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "shaped.tif", data, photometric="minisblack")
    tifffile.imwrite(tmp_path / "one.tif", data[0])
    Image.fromarray(data[0]).save(tmp_path / "one.png")
    (tmp_path / "broken.tif").write_bytes(b"II*\0garbage")
    answers = {path.name: holds_one_image(path, tmp_path, about) for path in tmp_path.iterdir() if path.is_file()}
    assert answers == {"stack.tif": False, "shaped.tif": False, "one.tif": True, "one.png": True, "broken.tif": True}


@pytest.mark.parametrize(
    ("error", "passes"), [(KeyError("tag"), False), (MemoryError(), True), (OSError(errno.EIO, "disk"), True)]
)
def test_only_damage_of_the_file_itself_is_left_to_its_opener(tmp_path, monkeypatch, error, passes):
    tifffile.imwrite(tmp_path / "one.tif", np.zeros((4, 5), np.uint8))

    def broken(self: object) -> object:
        raise error

    monkeypatch.setattr(tifffile.TiffFile, "is_imagej", property(broken), raising=False)
    about = dataset("one.tif").description
    if passes:
        with pytest.raises(type(error)):
            holds_one_image(tmp_path / "one.tif", tmp_path, about)
    else:
        assert holds_one_image(tmp_path / "one.tif", tmp_path, about)
