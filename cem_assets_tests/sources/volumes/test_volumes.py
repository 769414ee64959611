"""Remote volumes are read exactly, voxel by voxel, and nothing absent, refused or in trouble is ever read as zero."""

import bz2
import gzip
import json
import lzma
import shutil
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from cem_assets.errors import DataError
from cem_assets.sources.volumes.inflation import check_blosc, inflate
from cem_assets.sources.volumes.objects import BudgetSpentError, RequestLimits, check_object_key, http_address
from cem_assets.sources.volumes.shards import murmurhash3_x86_128_low64
from cem_assets.sources.volumes.volumes import RemoteVolume, open_remote_volume
from cem_assets_tests.conftest import S3
from cem_assets_tests.services.http_files import HttpFiles, serve_files
from cem_assets_tests.sources.volumes.remote_stores import FORMATS, VOXEL_NM, halved, kind_of_format, textured, write_volume

SHAPE = (50, 71, 90)
FAST = RequestLimits(backoff_seconds=0.001, requests_per_second=1e6, num_attempts=4, timeout_seconds=5)
BOX = (slice(10, 45), slice(0, 71), slice(20, 81))
WHOLE = tuple(slice(0, size) for size in SHAPE)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpFiles]:
    folder = tmp_path_factory.mktemp("served")
    for name in FORMATS:
        write_volume(folder, name, textured(SHAPE, _dtype(name)))
    with serve_files(folder) as files:
        yield files


@pytest.fixture(autouse=True)
def _unspoiled(served: HttpFiles) -> None:
    served.reset()


def _dtype(name: str) -> str:
    return "uint16" if name in ("zarr2", "n5", "zarr3", "precomputed-murmur") else "uint8"


def opened(served: HttpFiles, name: str, scale: int = 0, **options: Any) -> RemoteVolume:
    return open_remote_volume(f"{served.address}/{name}", kind_of_format(name), scale, FAST, **options)


def chunks_of(served: HttpFiles, name: str, scale: int = 0) -> list[Path]:
    """The files of one scale that hold voxels."""
    folder = served.folder / name
    if name.startswith("precomputed"):
        folder = folder / json.loads((folder / "info").read_text())["scales"][scale]["key"]
    else:
        folder = folder / f"s{scale}"
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return sorted(path for path in found if path.suffix != ".json")


@pytest.mark.parametrize("name", FORMATS)
def test_every_voxel_of_every_scale_is_what_was_written(served: HttpFiles, name: str):
    truth = textured(SHAPE, _dtype(name))
    for scale in range(3):
        volume = opened(served, name, scale)
        assert (volume.shape, volume.dtype) == (truth.shape, truth.dtype)
        assert volume.layout.factor == pytest.approx((2.0**scale,) * 3, rel=0.1)
        assert volume.voxel_size_nm == pytest.approx([v * 2**scale for v in VOXEL_NM])
        for box in (tuple(slice(0, n) for n in volume.shape), tuple(slice(n // 3, n // 2 + 1) for n in volume.shape)):
            found = volume.read(box)
            assert found.is_missing is None and found.num_absent == found.num_forbidden == 0
            difference = np.abs(found.voxels.astype(int) - truth[box].astype(int)).max()
            assert difference <= (4 if "jpeg" in name else 0)
        truth = halved(truth)
    assert opened(served, name, -1).scale == 2


@pytest.mark.parametrize("name", ["ome-zarr", "precomputed", "n5", "zarr3-sharded"])
def test_the_kind_is_found_where_it_is_not_given(served: HttpFiles, name: str):
    volume = open_remote_volume(f"{served.address}/{name}", "auto", 1, FAST)
    assert volume.kind in (name, "zarr2", "zarr3") and volume.scale == 1


@pytest.mark.parametrize("name", FORMATS)
def test_an_absent_object_is_a_mask_exactly_where_it_was(served: HttpFiles, name: str, tmp_path: Path):
    removed = chunks_of(served, name)[1]
    path = removed.relative_to(served.folder).as_posix()
    before = opened(served, name).read(WHOLE)
    for status, field in ((404, "num_absent"), (403, "num_forbidden")):
        served.fault = lambda asked, count, status=status: status if asked == path else None
        found = opened(served, name).read(WHOLE)
        assert found.is_missing is not None and 0 < found.is_missing.mean() < 0.8
        assert getattr(found, field) == found.num_absent + found.num_forbidden > 0
        np.testing.assert_array_equal(found.voxels[~found.is_missing], before.voxels[~found.is_missing])
        # The truth has no zeros, so the voxels that are 0 must be exactly the missing ones.
        np.testing.assert_array_equal(found.voxels == 0, found.is_missing)
        elsewhere = np.argwhere(~found.is_missing)[0]
        box = tuple(slice(int(i), int(i) + 1) for i in elsewhere)
        assert opened(served, name).read(box).is_missing is None


@pytest.mark.parametrize("name", ["zarr3-sharded", "precomputed-sharded", "precomputed-murmur"])
def test_a_chunk_that_a_shard_does_not_list_is_absent(served: HttpFiles, name: str, tmp_path: Path):
    import tensorstore as ts

    target = tmp_path / name
    shutil.copytree(served.folder / name, target)
    for path in chunks_of(served, name):
        (target / path.relative_to(served.folder / name)).unlink()
    truth = textured(SHAPE, _dtype(name))
    written = (slice(0, 32), slice(32, 64), slice(0, 32))
    if name.startswith("zarr3"):
        array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{target}/s0/"}}).result()
        array[written].write(truth[written]).result()
    else:
        spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{target}/"}, "scale_index": 0}
        array = ts.open(spec).result()
        x, y, z = array.domain.inclusive_min[:3]
        array[x : x + 32, y + 32 : y + 64, z : z + 32].write(truth[written].transpose()[..., None]).result()
    with serve_files(tmp_path) as files:
        found = open_remote_volume(f"{files.address}/{name}", kind_of_format(name), 0, FAST).read(WHOLE)
    expected = np.ones(SHAPE, bool)
    expected[written] = False
    assert found.is_missing is not None
    np.testing.assert_array_equal(found.is_missing, expected)
    np.testing.assert_array_equal(found.voxels[written], truth[written])


@pytest.mark.parametrize("name", ["ome-zarr", "precomputed-sharded", "zarr3-sharded"])
def test_a_volume_of_which_all_chunks_are_refused_is_no_volume_of_absent_chunks(served: HttpFiles, name: str):
    paths = {path.relative_to(served.folder).as_posix() for path in chunks_of(served, name)}
    served.fault = lambda asked, count: 403 if asked in paths else None
    with pytest.raises(PermissionError, match=r"refused \(403\).*CEM_ASSETS_REMOTE_S3_SIGNED"):
        opened(served, name).read(BOX)


def test_a_refused_box_is_absent_where_other_chunks_can_be_read(served: HttpFiles):
    served.fault = lambda asked, count: 403 if asked == "ome-zarr/s0/0/0/0" else None
    found = opened(served, "ome-zarr").read((slice(0, 9), slice(0, 9), slice(0, 9)))
    assert (found.num_forbidden, found.num_absent) == (1, 0)
    assert found.is_missing is not None and found.is_missing.all()


def test_refused_metadata_are_told_apart_from_absent_ones(served: HttpFiles):
    served.fault = lambda asked, count: 403
    with pytest.raises(PermissionError, match="access to its metadata is refused"):
        opened(served, "ome-zarr")
    served.reset()
    with pytest.raises(FileNotFoundError, match="holds no volume"):
        open_remote_volume(f"{served.address}/nothing", "auto", 0, FAST)
    served.fault = lambda asked, count: 401
    with pytest.raises(PermissionError, match="needs a login"):
        opened(served, "ome-zarr")


@pytest.mark.parametrize("name", ["n5", "zarr3-sharded", "precomputed-murmur"])
@pytest.mark.parametrize("status", [503, 500, 429])
def test_trouble_that_passes_is_waited_out(served: HttpFiles, name: str, status: int):
    expected = opened(served, name).read(BOX).voxels
    served.asked.clear()
    served.fault = lambda asked, count: status if count < 2 else None
    volume = opened(served, name)
    found = volume.read(BOX)
    assert found.is_missing is None and volume.counts.num_retries >= 4
    np.testing.assert_array_equal(found.voxels, expected)


@pytest.mark.parametrize("name", ["n5", "zarr3-sharded", "precomputed-murmur"])
def test_trouble_that_stays_is_an_error(served: HttpFiles, name: str):
    path = chunks_of(served, name)[0].relative_to(served.folder).as_posix()
    served.fault = lambda asked, count: 503 if asked == path else None
    volume = opened(served, name)
    with pytest.raises(ConnectionError, match="could not be fetched in 4 tries: status 503"):
        volume.read(WHOLE)
    # There is one request more where a kept connection was closed by the server; that one does not count as a try.
    assert served.asked[path] - FAST.num_attempts in (0, 1)
    served.reset()
    assert volume.read(BOX).is_missing is None, "the volume is usable again when the server is"


def test_a_server_that_is_gone_is_an_error(tmp_path: Path):
    with serve_files(tmp_path) as files:
        address = files.address
    with pytest.raises(ConnectionError, match="in 4 tries"):
        open_remote_volume(f"{address}/x", "n5", 0, FAST)


@pytest.mark.parametrize("name", [name for name in FORMATS if "jpeg" not in name])
def test_a_damaged_chunk_is_an_error(served: HttpFiles, name: str, tmp_path: Path):
    shutil.copytree(served.folder / name, tmp_path / name)
    path = tmp_path / chunks_of(served, name)[0].relative_to(served.folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with serve_files(tmp_path) as files, pytest.raises(ValueError, match=r"damaged|unpacked|bytes|status 416"):
        open_remote_volume(f"{files.address}/{name}", kind_of_format(name), 0, FAST).read(WHOLE)


@pytest.mark.parametrize(("name", "start"), [("zarr3-sharded", -20), ("zarr3-sharded-start", 0)])
def test_a_damaged_index_of_a_shard_is_an_error(served: HttpFiles, name: str, start: int, tmp_path: Path):
    shutil.copytree(served.folder / name, tmp_path / name)
    path = tmp_path / chunks_of(served, name)[0].relative_to(served.folder)
    data = bytearray(path.read_bytes())
    data[start] ^= 1  # the checksum of the index disagrees from now on
    path.write_bytes(data)
    with serve_files(tmp_path) as files, pytest.raises(ValueError, match="the index of shard .* is damaged at the source"):
        open_remote_volume(f"{files.address}/{name}", "zarr3", 0, FAST).read(WHOLE)


def test_threads_that_read_the_same_box_get_its_voxels(served: HttpFiles):
    volume, truth = opened(served, "zarr3-sharded"), textured(SHAPE)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: volume.read(BOX), range(24)):
            assert found.is_missing is None
            np.testing.assert_array_equal(found.voxels, truth[BOX])


def test_tensorstore_is_not_imported_before_a_volume_is_opened():
    words = [sys.executable, "-c", "import sys, cem_assets.inbox.remote_cubes; print('tensorstore' in sys.modules)"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_chunks_that_the_server_stores_compressed_are_undone(tmp_path: Path, encoding: str):
    truth = textured(SHAPE)
    write_volume(tmp_path, "precomputed", truth, num_scales=1)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(gzip.compress(data) if encoding == "gzip" else imagecodecs.brotli_encode(data))
    with serve_files(tmp_path) as files:
        files.encoding = encoding
        found = open_remote_volume(f"{files.address}/precomputed", "precomputed", 0, FAST).read(BOX)
    np.testing.assert_array_equal(found.voxels, truth[BOX])


def test_a_server_without_ranges_is_told(served: HttpFiles):
    served.has_ranges = False
    assert opened(served, "n5").read(BOX).is_missing is None
    with pytest.raises(ValueError, match="cannot give parts of objects"):
        opened(served, "zarr3-sharded").read(BOX)


def test_the_budget_is_never_exceeded(served: HttpFiles):
    volume = opened(served, "n5", budget_bytes=600_000)
    with pytest.raises(BudgetSpentError, match="left of the byte budget"):
        volume.read(WHOLE)
    assert 0 < volume.counts.num_bytes <= 600_000


def test_only_the_chunks_of_a_box_are_asked_for(served: HttpFiles):
    volume = opened(served, "ome-zarr")
    served.asked.clear()
    found = volume.read((slice(31, 33), slice(0, 32), slice(64, 90)))
    assert set(served.asked) == {"ome-zarr/s0/0/0/2", "ome-zarr/s0/1/0/2"} and found.num_chunks == 2


def _n5(**changes: Any) -> dict[str, Any]:
    return {"dimensions": [9, 9, 9], "blockSize": [4, 4, 4], "dataType": "uint8", "compression": {"type": "raw"}, **changes}


def _precomputed(**changes: Any) -> dict[str, Any]:
    scale = {"key": "s", "size": [9, 9, 9], "resolution": [4, 4, 4], "chunk_sizes": [[4, 4, 4]], "encoding": "raw", **changes}
    return {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]}


def _zarr(**changes: Any) -> dict[str, Any]:
    plain = {"zarr_format": 2, "shape": [9, 9, 9], "chunks": [4, 4, 4], "dtype": "|u1", "compressor": None, "order": "C"}
    return {**plain, "fill_value": 0, "filters": None, **changes}


BYTES = {"name": "bytes"}
SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "hash": "identity",
}  # fmt: skip


def _zarr3(codecs: list[dict[str, Any]], chunk: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk or [3, 3, 3]}}
    plain = {"zarr_format": 3, "node_type": "array", "shape": [9, 9, 9], "data_type": "uint8", "chunk_grid": grid}
    return {**plain, "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "codecs": codecs, **changes}


def _shards(chunk: list[int], **changes: Any) -> dict[str, Any]:
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    configuration = {"chunk_shape": chunk, "codecs": [BYTES], "index_codecs": index, **changes}
    return {"name": "sharding_indexed", "configuration": configuration}


@pytest.mark.parametrize(
    ("file", "metadata", "message"),
    [
        ("attributes.json", _n5(dimensions=[9, 9, -9]), '"dimensions".* Expected integer in the range .* received: -9'),
        ("attributes.json", _n5(dimensions=[9, 9, 0]), "expected .* whole numbers"),
        ("attributes.json", _n5(dimensions=[9, 9, 2**60]), "expected .* whole numbers"),
        ("attributes.json", _n5(dimensions=[9] * 9, blockSize=[1] * 9), "expected at most 8 axes"),
        ("attributes.json", _n5(dimensions=[9, 9, True]), '"dimensions".* Expected integer in the range .* received: true'),
        ("attributes.json", _n5(dimensions=[9] * 3, blockSize=[2**20] * 3), '"blockSize" .* exceeds maximum chunk size'),
        ("attributes.json", _n5(dimensions=[9] * 3, blockSize=[2**10] * 3), "bounded memory"),
        ("attributes.json", _n5(blockSize=[4, 4]), '"blockSize": Array has length 2 but should have length 3'),
        ("attributes.json", _n5(dataType="float64"), "expected one of uint8"),
        ("attributes.json", _n5(compression={"type": "lz4"}), '"compression".* "lz4" is not registered'),
        ("attributes.json", _n5(compression=None), '"compression": Expected object, but received: null'),
        ("attributes.json", {"dimensions": [9, 9, 9]}, "metadata lack or misuse 'blockSize'"),
        ("info", _precomputed(key="../../secret"), "is not allowed"),
        ("info", _precomputed(key="/etc"), "is not allowed"),
        ("info", _precomputed(encoding="compressed_segmentation"), "expected raw, jpeg, png"),
        ("info", _precomputed(resolution=[4, 4, 0]), "expected three positive"),
        ("info", _precomputed(resolution=[4, 4, 10**400]), "int too large"),
        ("info", _precomputed(sharding={"@type": "other"}), '"@type": Expected "neuroglancer_uint64_sharded_v1"'),
        ("info", _precomputed(sharding={**SHARDING, "minishard_bits": 21}), "bounded memory"),
        ("info", _precomputed(sharding={**SHARDING, "shard_bits": 63}), '"shard_bits": Expected integer in the range'),
        (
            "info",
            _precomputed(sharding={**SHARDING, "hash": "md5"}),
            '"hash": Expected one of "identity", "murmurhash3_x86_128"',
        ),
        ("info", {"type": "image", "scales": []}, "no list of 1 to"),
        (".zarray", _zarr(filters=[{"id": "pickle"}]), "expected no filters"),
        (".zarray", _zarr(compressor={"id": "pickle"}), "expected no filters"),
        (".zarray", _zarr(dtype="|O"), "Unsupported zarr dtype"),
        (".zarray", _zarr(dtype="<f4"), "expected one of uint8"),
        (".zarray", _zarr(shape=[1, 9, 9, 9]), '"chunks": Array has length 3 but should have length 4'),
        (".zarray", _zarr(shape=[9, 9, 9, 9], chunks=[4] * 4), "only sizes of 1 before them"),
        ("zarr.json", _zarr3([BYTES, {"name": "blosc"}, {"name": "gzip"}]), "then crc32c"),
        ("zarr.json", _zarr3([BYTES, {"name": "crc32c"}, {"name": "blosc"}]), "then crc32c"),
        ("zarr.json", _zarr3([BYTES, {"name": "pickle"}]), "expected one of gzip"),
        ("zarr.json", _zarr3([_shards([2, 2, 2])]), "does not evenly divide"),
        ("zarr.json", _zarr3([_shards([1, 1, 1]), {"name": "crc32c"}]), "the sharding codec alone"),
        ("zarr.json", _zarr3([_shards([1, 1, 1], codecs=[_shards([1, 1, 1])])]), "then crc32c"),
        ("zarr.json", _zarr3([_shards([1, 1, 1])], [999, 99, 99]), "bounded memory"),
        ("zarr.json", _zarr3([BYTES], storage_transformers=[{"name": "x"}]), "its metadata cannot be used"),
        (".zarray", [1, 2], "expected a JSON object"),
        (".zattrs", {"multiscales": [{"datasets": [{"path": "../up"}]}]}, "is not allowed"),
        (".zattrs", {"other": 1}, "without multiscales"),
    ],
)
def test_hostile_metadata_are_refused_in_words(tmp_path: Path, file: str, metadata: Any, message: str):
    kind = {"attributes.json": "n5", "info": "precomputed", "zarr.json": "zarr3"}.get(file, "zarr2")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / file).write_text(json.dumps(metadata))
    with serve_files(tmp_path) as files, pytest.raises(DataError, match=message):
        open_remote_volume(f"{files.address}/v", kind, 0, FAST)
    assert set(files.asked) <= {f"v/{name}" for name in (file, ".zarray", ".zattrs", "zarr.json")}


def test_a_scale_of_size_0_is_refused(tmp_path: Path):
    for name, side in (("s0", 9), ("s1", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".zarray").write_text(json.dumps(_zarr(shape=[side, 9, 9])))
    (tmp_path / ".zattrs").write_text(json.dumps({"multiscales": [{"datasets": [{"path": "s0"}, {"path": "s1"}]}]}))
    with serve_files(tmp_path) as files, pytest.raises(DataError, match=r"/s1 has shape \(0, 9, 9\)"):
        open_remote_volume(files.address, "zarr2", 0, FAST)


def test_sizes_of_shards_with_a_decimal_point_name_the_same_objects(served: HttpFiles, tmp_path: Path):
    shutil.copytree(served.folder / "zarr3-sharded", tmp_path / "v")
    path = tmp_path / "v" / "s0" / "zarr.json"
    node = json.loads(path.read_text())
    grid = node["chunk_grid"]["configuration"]
    grid["chunk_shape"] = [float(side) for side in grid["chunk_shape"]]
    path.write_text(json.dumps(node))
    with serve_files(tmp_path) as files:
        found = open_remote_volume(f"{files.address}/v", "zarr3", 0, FAST).read(BOX)
    assert found.is_missing is None
    np.testing.assert_array_equal(found.voxels, textured(SHAPE)[BOX])


def _zarr2_compressed(compressor: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    return ".zarray", _zarr(shape=[64] * 3, chunks=[64] * 3, compressor=compressor), "0.0.0"


def _zarr3_compressed(codec: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    return "zarr.json", _zarr3([BYTES, codec], [64] * 3, shape=[64] * 3), "c/0/0/0"


def _n5_compressed(compression: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    return "attributes.json", _n5(dimensions=[64] * 3, blockSize=[64] * 3, compression=compression), "0/0/0"


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "zlib": zlib.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zstd": imagecodecs.zstd_encode, "blosc": imagecodecs.blosc_encode,
}  # fmt: skip
COMPRESSED = {
    "zarr2-zlib": _zarr2_compressed({"id": "zlib", "level": 1}),
    "zarr2-gzip": _zarr2_compressed({"id": "gzip", "level": 1}),
    "zarr2-bz2": _zarr2_compressed({"id": "bz2", "level": 1}),
    "zarr2-zstd": _zarr2_compressed({"id": "zstd", "level": 1}),
    "zarr2-blosc": _zarr2_compressed({"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0}),
    "zarr3-gzip": _zarr3_compressed({"name": "gzip", "configuration": {"level": 1}}),
    "zarr3-zstd": _zarr3_compressed({"name": "zstd", "configuration": {"level": 1}}),
    "zarr3-blosc": _zarr3_compressed(
        {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}}
    ),
    "n5-gzip": _n5_compressed({"type": "gzip"}),
    "n5-zlib": _n5_compressed({"type": "gzip", "useZlib": True}),
    "n5-bz2": _n5_compressed({"type": "bzip2"}),
    "n5-xz": _n5_compressed({"type": "xz"}),
    "n5-zstd": _n5_compressed({"type": "zstd"}),
    "n5-blosc": _n5_compressed({"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0}),
}
"""For each format and compression the name of the metadata file, the metadata, and the name of the only chunk."""

READ_A_BOMB = """
import sys
from cem_assets.sources.volumes.volumes import open_remote_volume
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
volume = open_remote_volume(sys.argv[1], sys.argv[2])
before = peak()
try:
    error = volume.read((slice(0, 64),) * 3).is_missing
except ValueError as caught:
    error = caught
print(peak() - before, error)
"""


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_chunk_that_unpacks_to_more_than_its_voxels_is_refused(tmp_path: Path, name: str):
    kind, compression = name.split("-")
    file, metadata, chunk = COMPRESSED[name]
    (tmp_path / "v" / chunk).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "v" / file).write_text(json.dumps(metadata))
    header = b"\0\0\0\3" + 3 * (64).to_bytes(4, "big") if kind == "n5" else b""
    pack = PACKERS[compression]
    with serve_files(tmp_path) as files:
        (tmp_path / "v" / chunk).write_bytes(header + pack(bytes(64**3)))
        assert not open_remote_volume(f"{files.address}/v", kind, 0, FAST).read((slice(0, 64),) * 3).voxels.any()
        # A chunk has 256 KiB of voxels. The memory of a new process shows that a bomb of 100 MiB is not unpacked.
        (tmp_path / "v" / chunk).write_bytes(header + pack(bytes(100 << 20)))
        words = [sys.executable, "-c", READ_A_BOMB, f"{files.address}/v", kind]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    grown, _, error = done.stdout.partition(" ")
    assert int(grown) < 32 << 20
    assert "is damaged: " in error or "expected at most 262144" in error


def test_a_dictionary_that_a_chunk_claims_takes_no_memory(tmp_path: Path):
    file, metadata, chunk = COMPRESSED["n5-xz"]
    packed = bytearray(lzma.compress(bytes(64**3)))
    assert packed[12:17] == b"\x02\0\x21\x01\x16", "the header of the block names LZMA2 and a dictionary of 8 MiB"
    packed[16] = 40  # 4 GiB
    packed[20:24] = zlib.crc32(packed[12:20]).to_bytes(4, "little")
    (tmp_path / "v" / chunk).parent.mkdir(parents=True)
    (tmp_path / "v" / file).write_text(json.dumps(metadata))
    (tmp_path / "v" / chunk).write_bytes(b"\0\0\0\3" + 3 * (64).to_bytes(4, "big") + packed)
    with serve_files(tmp_path) as files:
        words = [sys.executable, "-c", READ_A_BOMB, f"{files.address}/v", "n5"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    grown, _, error = done.stdout.strip().partition(" ")
    assert int(grown) < 32 << 20 and error == "None"


@pytest.mark.parametrize("encoding", ["gzip", "zlib", "zstd", "br"])
def test_unpacking_ends_at_the_limit(encoding: str):
    pack = {"gzip": gzip.compress, "zlib": zlib.compress, "zstd": imagecodecs.zstd_encode, "br": imagecodecs.brotli_encode}[
        encoding
    ]
    data = bytes(range(256)) * 64
    packed = pack(data)
    assert inflate(encoding, packed, len(data), "it") == data
    for bad, limit in ((packed, len(data) - 1), (packed[: len(packed) // 2], len(data)), (b"\xff" * 40, len(data))):
        with pytest.raises(ValueError, match="it cannot be unpacked"):
            inflate(encoding, bad, limit, "it")


def test_a_blosc_header_is_believed_only_up_to_the_limit():
    packed = imagecodecs.blosc_encode(bytes(1000))
    check_blosc(packed, 1000, "it")
    with pytest.raises(ValueError, match="unpacks to 1000 bytes"):
        check_blosc(packed, 999, "it")
    with pytest.raises(ValueError, match="header"):
        check_blosc(packed[:9], 999, "it")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://open-neurodata/lee/lee16/image", "https://open-neurodata.s3.amazonaws.com/lee/lee16/image"),
        ("s3://a.b/c", "https://s3.amazonaws.com/a.b/c"),
        ("gs://bucket/key/", "https://storage.googleapis.com/bucket/key"),
        ("precomputed://https://host/a", "https://host/a"),
        ("https://s3.embl.de/a/b.n5/setup0", "https://s3.embl.de/a/b.n5/setup0"),
    ],
)
def test_addresses(url: str, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CEM_ASSETS_REMOTE_S3_ENDPOINT", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://our-own-store")
    assert http_address(url) == (expected, False)


@pytest.mark.parametrize(
    "url", ["file:///etc", "ftp://a/b", "s3://", "https://me:secret@host/a", "https://h/a?x=1", "s3://b/../c", "https://[a/b"]
)
def test_other_addresses_are_refused(url: str):
    with pytest.raises(DataError, match="expected|malformed") as caught:
        http_address(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "/a", "a/../b", "a//b", "./a", "a\\b", "a\nb", "a" * 1001])
def test_keys_that_could_leave_the_volume_are_refused(key: str):
    with pytest.raises(ValueError, match="not allowed"):
        check_object_key(key)


def test_a_number_is_hashed_from_exactly_eight_bytes():
    values = {murmurhash3_x86_128_low64(number.to_bytes(8, "little")) for number in range(1000)}
    assert len(values) == 1000  # that they are the right ones, the sharded volume of another writer shows
    with pytest.raises(ValueError, match="8 bytes"):
        murmurhash3_x86_128_low64(b"123")


@pytest.fixture
def remote_bucket(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An OME-Zarr volume on the real S3 server. Anyone may read its objects, but nobody may list them."""
    import s3fs

    write_volume(tmp_path, "ome-zarr", textured(SHAPE))
    fs, place = s3fs.S3FileSystem(skip_instance_cache=True), f"{s3.bucket}/{uuid.uuid4().hex}"
    fs.put(f"{tmp_path}/ome-zarr", f"{place}/ome-zarr", recursive=True)
    for path in fs.find(place):
        fs.chmod(path, acl="public-read")
    monkeypatch.setenv("CEM_ASSETS_REMOTE_S3_ENDPOINT", s3.endpoint)
    return f"s3://{place}/ome-zarr"


def test_a_volume_on_a_real_s3_server_is_read_without_credentials(remote_bucket: str):
    import s3fs

    truth = textured(SHAPE)
    np.testing.assert_array_equal(open_remote_volume(remote_bucket, "ome-zarr", 0, FAST).read(BOX).voxels, truth[BOX])
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    key = f"{remote_bucket.removeprefix('s3://')}/s0/1/1/1"
    fs.rm(key)
    # S3 answers 403 for a missing object to whoever may not list the bucket. This is why 403 counts as absent here.
    found = open_remote_volume(remote_bucket, "ome-zarr", 0, FAST).read(BOX)
    assert (found.num_absent, found.num_forbidden) in ((0, 1), (1, 0)) and found.is_missing is not None
    np.testing.assert_array_equal(found.is_missing, found.voxels == 0)
    np.testing.assert_array_equal(found.voxels[~found.is_missing], truth[BOX][~found.is_missing])


def test_a_private_bucket_is_refused_or_read_with_credentials(remote_bucket: str, monkeypatch: pytest.MonkeyPatch):
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    for path in fs.find(remote_bucket):
        if path.rsplit("/", 1)[-1] not in (".zattrs", ".zarray", ".zgroup"):
            fs.chmod(path, acl="private")
    with pytest.raises(PermissionError, match="CEM_ASSETS_REMOTE_S3_SIGNED"):
        open_remote_volume(remote_bucket, "ome-zarr", 0, FAST).read(BOX)
    monkeypatch.setenv("CEM_ASSETS_REMOTE_S3_SIGNED", "yes")
    found = open_remote_volume(remote_bucket, "ome-zarr", 0, FAST).read(BOX)
    np.testing.assert_array_equal(found.voxels, textured(SHAPE)[BOX])
