"""Whose fault an error is that comes up while a file is decoded: the file's, the machine's, the disk's, or ours."""

import errno
import inspect
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cem_assets.catalog.description import DatasetDescription
from cem_assets.errors import DataError, Fault, fault_of
from cem_assets.formats import FORMATS, open_file
from cem_assets.formats.decoding import decoding, is_fault_of_file
from cem_assets.formats.tiff import tiff_file

DESCRIPTION = DatasetDescription(name="d", kind="volume", voxel_size_nm=(8, 8, 8), licence="x", citation="x")


class LibraryError(Exception):
    """An exception class of a library's own."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8), photometric="minisblack")
    return tmp_path / "a.tif"


def opened_with(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Open a TIFF file while tifffile raises an error."""

    def broken(self: object) -> object:
        raise error

    monkeypatch.setattr(tifffile.TiffFile, "series", property(broken))
    open_file(image, tmp_path, DESCRIPTION)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad value"), KeyError("tag"), IndexError("none"), RuntimeError("odd"), struct.error("short"),
        TypeError("no"), AssertionError("must"), LibraryError("its own"), EOFError("end"), OSError("bare"),
        OSError(errno.EINVAL, "offset below 0"), RecursionError("deep"), ZeroDivisionError("by zero"),
    ],
)  # fmt: skip
def test_what_a_library_raises_is_the_files_fault_and_names_it(image, tmp_path, monkeypatch, error):
    with pytest.raises(DataError, match=r"^a\.tif cannot be read as TIFF: .* Copy it again from its source\.$") as caught:
        opened_with(image, tmp_path, monkeypatch, error)
    assert type(error).__name__ in str(caught.value) and caught.value.__cause__ is error
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (MemoryError(), Fault.machine),
        (OSError(errno.ENOSPC, "full"), Fault.machine),
        (OSError(errno.EIO, "broken disk"), Fault.store),
        (FileNotFoundError(errno.ENOENT, "gone"), Fault.store),
    ],
)
def test_lack_of_memory_and_trouble_of_the_disk_are_not_the_files_fault(image, tmp_path, monkeypatch, error, fault):
    with pytest.raises(type(error)) as caught:
        opened_with(image, tmp_path, monkeypatch, error)
    assert caught.value is error and fault_of(caught.value) == fault


@pytest.mark.parametrize(
    "mistake",
    [
        "np.zeros(3).reshape(2)",
        "np.concatenate([])",
        "{}['key']",
        "int('x')",
        "None.shape",
        "json.loads('{')",
        "struct.pack('B', -1)",
    ],
)
def test_a_mistake_of_our_own_is_a_bug_and_never_bad_data(image, tmp_path, monkeypatch, mistake):
    ours: dict[str, object] = {"__name__": "cem_assets.formats.new"}
    exec(f"import json, struct\nimport numpy as np\ndef open_new(path, scratch, description):\n    {mistake}", ours)
    monkeypatch.setitem(FORMATS, "TIFF", ((".tif",), ours["open_new"]))
    with pytest.raises(Exception) as caught:
        open_file(image, tmp_path, DESCRIPTION)
    assert fault_of(caught.value) == Fault.bug and not is_fault_of_file(caught.value)


def test_an_error_in_words_that_does_not_name_the_file_gets_its_name(tmp_path):
    with (
        pytest.raises(DataError, match=r"^b\.h5 cannot be read as HDF5: sizes differ\. Repair it\.$"),
        decoding(tmp_path / "b.h5", "HDF5"),
    ):
        raise DataError("sizes differ. Repair it.")
    with pytest.raises(DataError, match=r"^b\.h5 is empty$"), decoding(tmp_path / "b.h5", "HDF5"):
        raise DataError("b.h5 is empty")


# Why `_multifile` of tifffile is used


def test_tifffile_still_has_no_public_way_to_leave_other_files_alone():
    names = inspect.signature(tifffile.TiffFile).parameters
    assert "_multifile" in names, "tifffile's private argument is gone: look for another way to read one file of an OME-TIFF"
    public = [name for name in names if "multifile" in name and not name.startswith("_")]
    assert not public, f"tifffile has a public argument now: use {public[0]} in formats/tiff.py"


def test_a_file_of_several_is_read_without_the_others(tmp_path, monkeypatch):
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="5" SizeY="4" SizeZ="2" SizeC="1" '
        'SizeT="1"><TiffData IFD="0" FirstZ="0"><UUID FileName="a.ome.tif">urn:uuid:a</UUID></TiffData>'
        '<TiffData IFD="0" FirstZ="1"><UUID FileName="b.ome.tif">urn:uuid:b</UUID></TiffData></Pixels></Image></OME>'
    )
    for number, name in enumerate(("a.ome.tif", "b.ome.tif"), 1):
        data = np.full((4, 5), number, np.uint8)
        tifffile.imwrite(tmp_path / name, data, photometric="minisblack", description=xml, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as both:
        assert both.series[0].shape == (2, 4, 5), "tifffile itself reads the other file as well"
    with tiff_file(tmp_path / "a.ome.tif") as alone:
        assert alone.is_ome and alone.series[0].shape == (4, 5)
    source = open_file(tmp_path / "a.ome.tif", tmp_path, DESCRIPTION).source
    assert source.shape == (1, 4, 5) and (source.read((slice(0, 1), slice(0, 4), slice(0, 5))) == 1).all()
