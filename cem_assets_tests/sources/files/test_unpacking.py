"""Sound archives are unpacked byte for byte; bombs, paths that lead out of the folder, and damage leave nothing behind."""

import gzip
import io
import random
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.errors import DataError
from cem_assets.sources.files.unpacking import UnpackLimits, unpack, unpacked_stem

R = random.Random(3)
FILES = {f"a/{'n' * 150 if number == 2 else ''}{number}.bin": R.randbytes(number * 100_003) for number in range(5)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "downloads"
    made.mkdir()
    return made


def zip_file(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name) if name.endswith("/") else name, data)
    return path


def tar_file(path: Path, files: dict[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as archive:
        root = tarfile.TarInfo("./")
        root.type = tarfile.DIRTYPE
        archive.addfile(root)
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, message: str, limits: UnpackLimits | None = None) -> None:
    target = path.parent / "out"
    with pytest.raises(ValueError, match=message):
        unpack(path, target, limits)
    assert sorted(item.name for item in path.parent.iterdir()) == [path.name], "nothing half-unpacked stays"


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".TAR.XZ"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_sound_archive_comes_out_byte_for_byte(folder: Path, suffix: str, form: int):
    path = folder / f"x{suffix}"
    mode = {"z": "w:gz", "2": "w:bz2", "Z": "w:xz"}.get(suffix[-1], "w")
    (zip_file(path, {"a/": b"", **FILES}) if suffix == ".zip" else tar_file(path, FILES, mode, form))
    assert unpack(path, folder / "out") == sorted(FILES)
    assert contents(folder / "out") == FILES
    assert not (folder / "out.part").exists()
    with pytest.raises(FileExistsError, match="is there already"):
        unpack(path, folder / "out")


def test_a_gz_file_of_several_members_comes_out_as_one(folder: Path):
    path = folder / "image.tif.gz"
    path.write_bytes(gzip.compress(b"one" * 1000) + gzip.compress(b"") + gzip.compress(b"two"))
    assert unpack(path, folder / "out") == ["image.tif"]
    assert (folder / "out/image.tif").read_bytes() == b"one" * 1000 + b"two"
    assert [unpacked_stem(name) for name in ("a.nii.gz", "b.tar.gz", "c.ZIP", "d.tif", ".zip")] == [None, "b", "c", None, None]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b", "C:\\evil", "a/\u202eb", "x" * 300])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_members_that_leave_the_folder_are_refused(folder: Path, name: str, suffix: str):
    path = folder / f"x{suffix}"
    if suffix == ".zip":
        zip_file(path, {"good": b"1", name: b"2"})
    else:
        with tarfile.open(path, "w") as archive:
            for item in ("good", name):
                archive.addfile(tarfile.TarInfo(item))
    refused(path, "is not allowed.*Nothing of the archive was kept")
    assert not list(folder.parent.rglob("evil"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_and_devices_are_refused(folder: Path, kind: bytes):
    with tarfile.open(folder / "x.tar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(folder / "x.tar", "is a link, device or sparse file")


def test_a_link_in_a_zip_and_an_encrypted_member_are_refused(folder: Path):
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    refused(folder / "x.zip", "is a link or device")
    data = bytearray(zip_file(folder / "x.zip", {"a": b"1"}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (folder / "x.zip").write_bytes(data)
    refused(folder / "x.zip", "is encrypted")


@pytest.mark.parametrize(
    "names", [("a", "A"), ("caf\u00e9", "cafe\u0301"), ("a/x", "A"), ("x", "x/y"), ("d/stra\u00dfe", "D/STRASSE")]
)
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_names_that_are_one_on_some_disks_are_refused(folder: Path, names: tuple[str, str], suffix: str):
    make = zip_file if suffix == ".zip" else tar_file
    refused(make(folder / f"x{suffix}", dict.fromkeys(names, b"1")), "is there twice")


def test_bombs_are_refused_by_what_comes_out(folder: Path):
    zeros = bytes(90 << 20)
    zip_file(folder / "x.zip", {"a": zeros})
    refused(folder / "x.zip", "unpacks to more than .* expected at most that")
    (folder / "x.zip").unlink()
    (folder / "x.gz").write_bytes(gzip.compress(zeros))
    tracemalloc.start()
    refused(folder / "x.gz", "unpacks to more than 67,108,864 bytes")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20, "it never was in memory as a whole"
    tracemalloc.stop()
    assert unpack(folder / "x.gz", folder / "out", UnpackLimits(max_ratio=2000)) == ["x"]
    refused_folder = folder / "tar"
    refused_folder.mkdir()
    tar_file(refused_folder / "x.tar", {"a": bytes(5000), "b": bytes(6000)})
    refused(refused_folder / "x.tar", "more than 10,000 bytes", UnpackLimits(max_bytes=10_000))


def test_a_zip_that_lies_about_sizes_is_refused(folder: Path):
    data = bytearray(zip_file(folder / "x.zip", {"a": bytes(1 << 20)}).read_bytes())
    at = data.index(b"PK\1\2")
    struct.pack_into("<I", data, at + 24, 10)
    (folder / "x.zip").write_bytes(data)
    refused(folder / "x.zip", "cannot be unpacked: BadZipFile")
    data = bytearray(zip_file(folder / "x.zip", {"a": b"1"}).read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\5\6") + 12, 1 << 30)
    (folder / "x.zip").write_bytes(data)
    refused(folder / "x.zip", "has a directory of 1,073,741,824 bytes")


def test_too_many_members_are_refused(folder: Path):
    files = {f"{number}": b"" for number in range(21)}
    for make, suffix in ((zip_file, ".zip"), (tar_file, ".tar")):
        path = make(folder / f"x{suffix}", files)
        refused(path, "more than 20 members", UnpackLimits(max_members=20))
        path.unlink()


def test_a_header_that_claims_gigabytes_is_not_read(folder: Path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 32
    (folder / "x.tar").write_bytes(member.tobuf() + bytes(1024))
    refused(folder / "x.tar", "a header claims 4,294,967,296 bytes")
    # Headers of headers of headers, for each of which the library calls itself.
    member.size = 0
    (folder / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) * 5000)
    refused(folder / "x.tar", "cannot be unpacked|has no files")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".gz"])
def test_a_cut_archive_is_refused_wherever_it_ends(folder: Path, suffix: str):
    path = folder / f"x{suffix}"
    mode = {"gz": "w:gz", "z2": "w:bz2", "xz": "w:xz"}.get(suffix[-2:], "w")
    files = {"a": R.randbytes(700), "b": R.randbytes(1500)}
    if suffix == ".gz":
        path.write_bytes(gzip.compress(files["b"]))
    else:
        zip_file(path, files) if suffix == ".zip" else tar_file(path, files, mode)
    whole = path.read_bytes()
    # A tar without compression ends with zeros only, so a cut is noticed only where it is inside a member.
    last = 512 + 512 + 1024 + 512 + 1500 if suffix == ".tar" else len(whole)
    for cut in sorted({0, 1, 700, 1300, last // 2, last - 9, last - 1}):
        path.write_bytes(whole[:cut])
        refused(path, "cannot be unpacked|has no files")


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(folder: Path):
    path = tar_file(folder / "x.tar", {"a": bytes(512), "b": b"2"})
    data = bytearray(path.read_bytes())
    data[512 + 512 + 512 + 3] ^= 1  # in the header of b
    path.write_bytes(data)
    refused(path, "a header in the middle is damaged")


def test_other_kinds_are_refused_in_words(folder: Path):
    for name, message in (("x.7z", "7z is not read here"), ("x.rar", "is of no known kind; expected .zip")):
        (folder / name).write_bytes(b"7z\xbc\xaf'\x1c")
        refused(folder / name, message)
        (folder / name).unlink()
    (folder / "x.zip").write_bytes(zlib.compress(b"no zip at all"))
    refused(folder / "x.zip", "cannot be unpacked: BadZipFile: it has no directory")
    refused(zip_file(folder / "x.zip", {}), "has no files")
    nameless = zip_file(folder / "x.zip", {"Qabc": b"x"})
    nameless.write_bytes(nameless.read_bytes().replace(b"Qabc", b"\0abc"))  # zipfile cuts names at the first NUL
    refused(nameless, "has no name")


@settings(max_examples=100)
@given(
    st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.bz2"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_damage_anywhere_leaves_all_or_nothing(suffix: str, damage: list[tuple[float, int]]):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        path = folder / f"x{suffix}"
        files = {"a/b": bytes(range(256)) * 3, "c": b"c" * 600}
        packed = {".tar": "w", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2"}
        (zip_file(path, files) if suffix == ".zip" else tar_file(path, files, packed[suffix]))
        data = bytearray(path.read_bytes())
        for where, change in damage:
            data[int(where * (len(data) - 1))] ^= change
        path.write_bytes(data)
        try:
            names = unpack(path, folder / "out")
        except DataError:
            assert [item.name for item in folder.iterdir()] == [path.name]
        else:
            assert sorted(contents(folder / "out")) == names and not (folder / "out.part").exists()
