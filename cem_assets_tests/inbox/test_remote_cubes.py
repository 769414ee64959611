"""Cubes of remote volumes go into the inbox: the budget, the voxels, interrupted runs, and missing chunks."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cem_assets import readers
from cem_assets.catalog import EmDataset, RemoteSource
from cem_assets.cem.patches.stage import PatchifyParams, cut_and_hash
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.errors import DataError
from cem_assets.imaging.cube_choice import SamplingParams, candidate_cubes, order_cubes
from cem_assets.inbox.datasets import read_inbox
from cem_assets.inbox.remote_cubes import sample_dataset
from cem_assets.operations.catalogue_intake import fetch_row
from cem_assets.sources.volumes.objects import RequestLimits
from cem_assets.store.store import Store, open_store
from cem_assets_tests.datasets import cells
from cem_assets_tests.services.http_files import HttpFiles, serve_files
from cem_assets_tests.sources.volumes.remote_stores import halved, kind_of_format, textured, write_volume

SHAPE = (160, 200, 240)
CUBE = 64
FORMATS = ("ome-zarr", "zarr2", "zarr3-sharded", "n5", "precomputed", "precomputed-murmur")
FAST = RequestLimits(backoff_seconds=0.001, requests_per_second=1e6, num_attempts=3, timeout_seconds=5)
_ROI = re.compile(r"(?P<v>.+)-ROI-x(\d+)-(\d+)_y(\d+)-(\d+)_z(\d+)-(\d+)")


def truth(dtype: str = "uint8") -> np.ndarray:
    """Noise with an empty part, the padding, which no cube may be taken from."""
    voxels = textured(SHAPE, dtype)
    voxels[:, :, : 2 * CUBE] = 0
    return voxels


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpFiles]:
    folder = tmp_path_factory.mktemp("remote")
    for name in FORMATS:
        write_volume(folder, name, truth("uint16" if name == "n5" else "uint8"), chunk=64)
    with serve_files(folder) as files:
        yield files


@pytest.fixture(autouse=True)
def _unspoiled(served: HttpFiles) -> None:
    served.reset()


def row(served: HttpFiles, name: str, cubes: float = 3.5, scale: int = 0, **changes: Any) -> EmDataset:
    """A catalogue row with a budget of so many cubes of 64 voxels."""
    remote = RemoteSource(f"{served.address}/{name}", kind_of_format(name), scale, True, CUBE, False, 0, cubes * CUBE**3 / 1e9)
    remote = replace(remote, **changes)
    return EmDataset("far", False, "volume", (10.0, 4.0, 4.0), "CC0-1.0", "Test et al. 2026", "", "", "", "", "", {}, remote)


def cubes_of(store: Store, name: str = "far") -> dict[str, np.ndarray]:
    found = {}
    for item in store.walk(f"inbox/{name}"):
        if item.key.endswith(".nrrd"):
            header, _, body = store.read(item.key).partition(b"\n\n")
            fields = dict(line.split(": ") for line in header.decode().splitlines()[1:])
            x, y, z = map(int, fields["sizes"].split())
            found[item.key.rsplit("/", 1)[-1].removesuffix(".nrrd")] = np.frombuffer(body, fields["type"]).reshape(z, y, x)
    return found


def box_of(name: str) -> tuple[slice, slice, slice]:
    match = _ROI.fullmatch(name)
    assert match is not None, name
    x0, x1, y0, y1, z0, z1 = map(int, match.groups()[1:])
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_inverted", [False, True])
def test_cubes_are_the_volume_voxel_by_voxel_within_the_budget(
    served: HttpFiles, local_store: Store, tmp_path: Path, name: str, is_inverted: bool
):
    # Chunks are as large as cubes, so only the cubes and the reference (1/64 of the volume without padding) are downloaded.
    wanted = row(served, name, 8, is_inverted=is_inverted)
    ledger = sample_dataset(local_store, wanted, tmp_path, limits=FAST)
    expected = truth("uint16" if name == "n5" else "uint8")
    cubes = cubes_of(local_store)
    assert len(cubes) == len(ledger["cubes"]) >= 2 and ledger["left_out"] == []
    for cube_name, voxels in cubes.items():
        source = expected[box_of(cube_name)]
        np.testing.assert_array_equal(voxels, np.iinfo(source.dtype).max - source if is_inverted else source)
        assert np.count_nonzero(source) >= 0.7 * source.size, "no cube is mostly padding"
    budget = wanted.remote.gigabytes * 1e9
    assert ledger["cube_bytes"] == sum(voxels.nbytes for voxels in cubes.values()) <= budget
    assert ledger["downloaded_bytes"] <= served.num_bytes <= budget
    assert read_inbox(local_store, "far").description.voxel_size_nm == (10.0, 4.0, 4.0)


def test_a_scale_is_sampled_with_its_own_voxel_size(served: HttpFiles, local_store: Store, tmp_path: Path):
    sample_dataset(local_store, row(served, "ome-zarr", scale=1), tmp_path, limits=FAST)
    assert read_inbox(local_store, "far").description.voxel_size_nm == (20.0, 8.0, 8.0)
    for name, voxels in cubes_of(local_store).items():
        np.testing.assert_array_equal(voxels, halved(truth())[box_of(name)])


def test_the_voxel_size_of_the_metadata_is_taken_where_the_catalogue_has_none(
    served: HttpFiles, local_store: Store, tmp_path: Path
):
    wanted = replace(row(served, "precomputed", scale=1), voxel_size_nm=None)
    sample_dataset(local_store, wanted, tmp_path, limits=FAST)
    assert read_inbox(local_store, "far").description.voxel_size_nm == (20.0, 8.0, 8.0)


def test_the_draw_is_that_of_the_method_and_a_larger_budget_only_adds(served: HttpFiles, local_store: Store, tmp_path: Path):
    few = {name: item.modified for name, item in _sampled(served, local_store, tmp_path, 3.5).items()}
    served.asked.clear()
    many = _sampled(served, local_store, tmp_path, 6.5)
    assert set(few) < set(many) and all(many[name].modified == when for name, when in few.items()), "kept, not fetched again"
    reference = halved(halved(truth()))
    params = SamplingParams(cube_px=CUBE)
    order = order_cubes(candidate_cubes(reference, (4, 4, 4), SHAPE, params), params)
    drawn = [box_of(cube["name"]) for cube in json.loads(local_store.read("inbox/far/sampling.json"))["cubes"]]
    assert drawn == order[: len(drawn)] and len(drawn) == len(many)


def _sampled(served: HttpFiles, store: Store, scratch: Path, cubes: float) -> dict[str, Any]:
    sample_dataset(store, row(served, "zarr2", cubes), scratch, limits=FAST)
    return {item.key: item for item in store.walk("inbox/far") if item.key.endswith(".nrrd")}


def test_a_finished_sample_is_not_fetched_again(served: HttpFiles, local_store: Store, tmp_path: Path):
    sample_dataset(local_store, row(served, "n5"), tmp_path, limits=FAST)
    served.asked.clear()
    sample_dataset(local_store, row(served, "n5"), tmp_path, limits=FAST)
    assert served.asked == {}


def first_cube(served: HttpFiles, name: str, store: Store, scratch: Path) -> str:
    return sample_dataset(store, row(served, name), scratch, limits=FAST)["cubes"][0]["name"]


@pytest.mark.parametrize("status", [404, 403])
def test_a_cube_with_an_absent_chunk_is_left_out_with_the_reason_and_another_is_drawn(
    served: HttpFiles, tmp_path: Path, status: int
):
    gone = first_cube(served, "ome-zarr", open_store(str(tmp_path / "before")), tmp_path)
    z, y, x = (span.start // 64 for span in box_of(gone))
    served.fault = lambda path, count: status if path == f"ome-zarr/s0/{z}/{y}/{x}" else None
    store = open_store(str(tmp_path / "store"))
    ledger = sample_dataset(store, row(served, "ome-zarr"), tmp_path, limits=FAST)
    (left_out,) = ledger["left_out"]
    assert left_out["name"] == gone and "chunk absent at source" in left_out["reason"] and str(status) in left_out["reason"]
    assert gone not in cubes_of(store) and len(cubes_of(store)) >= 2
    for name, voxels in cubes_of(store).items():
        np.testing.assert_array_equal(voxels, truth()[box_of(name)])


def test_trouble_in_the_middle_fails_and_the_next_run_goes_on(served: HttpFiles, tmp_path: Path):
    whole = open_store(str(tmp_path / "whole"))
    expected = sample_dataset(whole, row(served, "n5", 8), tmp_path, limits=FAST)
    last = box_of(expected["cubes"][-1]["name"])
    z, y, x = (span.start // 64 for span in last)
    served.fault = lambda path, count: 503 if path == f"n5/s0/{x}/{y}/{z}" else None
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(ConnectionError, match="status 503"):
        sample_dataset(store, row(served, "n5", 8), tmp_path, limits=FAST)
    assert store.size("inbox/far/dataset.toml") is None, "nothing unfinished is taken in"
    assert len(cubes_of(store)) == len(expected["cubes"]) - 1
    served.reset()
    assert sample_dataset(store, row(served, "n5", 8), tmp_path, limits=FAST) == expected
    assert sum(count for path, count in served.asked.items() if path.startswith("n5/s0/") and "json" not in path) == 1
    assert {item.key: store.sha256(item.key) for item in store.walk("inbox")} == {
        item.key: whole.sha256(item.key) for item in whole.walk("inbox")
    }


def test_a_cube_that_was_damaged_in_the_inbox_is_fetched_again(served: HttpFiles, local_store: Store, tmp_path: Path):
    name = first_cube(served, "zarr2", local_store, tmp_path)
    good = local_store.read(f"inbox/far/{name}.nrrd")
    local_store.put(f"inbox/far/{name}.nrrd", good[:-9])
    local_store.delete(["inbox/far/dataset.toml"])
    sample_dataset(local_store, row(served, "zarr2"), tmp_path, limits=FAST)
    assert local_store.read(f"inbox/far/{name}.nrrd") == good


def test_a_volume_with_nothing_to_take_is_refused_in_words(served: HttpFiles, local_store: Store, tmp_path: Path):
    with pytest.raises(ValueError, match="does not suffice for metadata and reference"):
        sample_dataset(local_store, row(served, "n5", 0.001), tmp_path, limits=FAST)
    served.fault = lambda path, count: 404 if path.startswith("n5/s0/") and "json" not in path else None
    with pytest.raises(ValueError, match="(?s)no cube could be taken.*chunk absent at source"):
        sample_dataset(local_store, row(served, "n5"), tmp_path, limits=FAST)
    served.fault = lambda path, count: 403 if path.startswith("n5/s0/") and "json" not in path else None
    with pytest.raises(PermissionError, match="refused"):
        sample_dataset(open_store(f"{local_store.url}-2"), row(served, "n5"), tmp_path, limits=FAST)


def test_another_dataset_or_sample_of_that_name_is_not_overwritten(served: HttpFiles, local_store: Store, tmp_path: Path):
    local_store.put("inbox/far/dataset.toml", b"x")
    with pytest.raises(FileExistsError, match="no sample"):
        sample_dataset(local_store, row(served, "n5"), tmp_path, limits=FAST)
    local_store.delete(["inbox/far/dataset.toml"])
    sample_dataset(local_store, row(served, "n5"), tmp_path, limits=FAST)
    with pytest.raises(FileExistsError, match="another sample of 'far': invert differ"):
        sample_dataset(local_store, row(served, "n5", is_inverted=True), tmp_path, limits=FAST)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"plan": 3}', b'{"plan": {}}'])
def test_a_damaged_ledger_is_refused_with_its_remedy(served: HttpFiles, local_store: Store, tmp_path: Path, text: bytes):
    local_store.put("inbox/far/sampling.json", text)
    with pytest.raises(DataError, match=r"inbox/far/sampling\.json is damaged: .* Remove inbox/far/\."):
        sample_dataset(local_store, row(served, "n5"), tmp_path, limits=FAST)


def test_a_volume_without_a_pyramid_is_judged_cube_by_cube(local_store: Store, tmp_path: Path):
    write_volume(tmp_path / "one", "n5", truth(), chunk=64, num_scales=1)
    with serve_files(tmp_path / "one") as files:
        ledger = sample_dataset(local_store, row(files, "n5", 20), tmp_path, limits=FAST)
    assert len(ledger["cubes"]) >= 4 and any("of it is content" in item["reason"] for item in ledger["left_out"])
    assert all(np.count_nonzero(voxels) >= 0.7 * voxels.size for voxels in cubes_of(local_store).values())


def test_a_volume_that_is_not_to_be_cropped_is_taken_whole(served: HttpFiles, local_store: Store, tmp_path: Path):
    budget = math.prod(SHAPE) / CUBE**3 + 0.5
    sample_dataset(local_store, row(served, "zarr3-sharded", budget, is_cropped=False), tmp_path, limits=FAST)
    (name,) = cubes_of(local_store)
    assert name == "far"
    np.testing.assert_array_equal(cubes_of(local_store)[name], truth())


def test_samples_go_through_the_normal_chain(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    voxels = cells((112, 112, 336))
    write_volume(tmp_path / "one", "precomputed-sharded", np.ascontiguousarray(voxels), chunk=56)
    with serve_files(tmp_path / "one") as files:
        wanted = replace(row(files, "precomputed-sharded", cube_px=112, gigabytes=0.003), voxel_size_nm=(8.0, 8.0, 8.0))
        monkeypatch.setattr("cem_assets.operations.catalogue_intake.em_datasets", lambda: {"far": wanted})
        assert fetch_row(store, "far") == "far"
    assert len(cubes_of(store)) == 2
    standardize_dataset(store, "far")
    assert set(readers.list_volumes("far", store.url)) == set(cubes_of(store))
    for name in cubes_of(store):
        np.testing.assert_array_equal(readers.open_volume("far", name, store.url)[:], voxels[box_of(name)])
    cut_and_hash(store, "far", PatchifyParams())
    names = readers.read_patches("far", "raw", store.url)["name"]
    assert {name.split("-LOC-")[0] for name in names} == set(cubes_of(store)) and len(names) == 2 * 3 * 112


SCRIPT = """
import json, sys
from pathlib import Path
from cem_assets import readers
from cem_assets.catalog import EmDataset, RemoteSource
from cem_assets.sources.volumes.objects import RequestLimits
from cem_assets.inbox.remote_cubes import sample_dataset
from cem_assets.store.store import open_store
address, name, root, scratch, gigabytes, cube = sys.argv[1:]
kind = "ome-zarr" if name.startswith("ome-zarr") else name.partition("-")[0]
def peak():
    # ru_maxrss would start at the peak of the process that started this one.
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) * 1024
def run(dataset, size):
    remote = RemoteSource(f"{address}/{name}", kind, 0, True, int(cube), False, 0, size)
    row = EmDataset(dataset, False, "volume", (10.0, 4.0, 4.0), "CC0", "T", "", "", "", "", "", {}, remote)
    return sample_dataset(open_store(root), row, Path(scratch), limits=RequestLimits(requests_per_second=1e6))
run("warm", float(gigabytes) / 8)
before = peak()
ledger = run("far", float(gigabytes))
print(json.dumps({"grown": peak() - before, "cube_bytes": ledger["cube_bytes"], "downloaded": ledger["downloaded_bytes"]}))
"""


@contextmanager
def served_from(where: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """Serve a folder by a plain HTTP server or the real S3 server; yield its address and the environment variables for it."""
    if where == "http":
        with serve_files(folder) as files:
            yield files.address, {}
        return
    import s3fs

    s3 = request.getfixturevalue("s3")
    fs, place = s3fs.S3FileSystem(skip_instance_cache=True), f"{s3.bucket}/{uuid.uuid4().hex}"
    fs.put(f"{folder}/", f"{place}/", recursive=True, ACL="public-read")
    try:
        yield f"s3://{place}", {"CEM_ASSETS_REMOTE_S3_ENDPOINT": s3.endpoint}
    finally:
        fs.rm(place, recursive=True)


def measure(
    tmp_path: Path, name: str, where: str, request: pytest.FixtureRequest, shape: tuple[int, int, int], gigabytes: float
) -> dict[str, int]:
    """Take a small sample in a new process, then one eight times as large, and return by how much its memory grew."""
    write_volume(tmp_path / "big", name, textured(shape), chunk=64, num_scales=3)
    with served_from(where, tmp_path / "big", request) as (address, variables):
        places = [address, name, str(tmp_path / "store"), str(tmp_path)]
        words = [sys.executable, "-c", SCRIPT, *places, str(gigabytes), "128"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", **variables}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_sample(tmp_path: Path, voxels: np.ndarray, found: dict[str, int], gigabytes: float) -> None:
    assert 0.5 * gigabytes * 1e9 < found["cube_bytes"] <= gigabytes * 1e9 and found["downloaded"] <= gigabytes * 1e9
    cubes = cubes_of(open_store(str(tmp_path / "store")))
    assert sum(cube.nbytes for cube in cubes.values()) == found["cube_bytes"]
    for name, cube in cubes.items():
        np.testing.assert_array_equal(cube, voxels[box_of(name)])


LARGE = ("zarr2", "zarr3-sharded", "ome-zarr", "n5", "precomputed", "precomputed-sharded")


@pytest.mark.parametrize("where", ["http", "s3"])
@pytest.mark.parametrize("name", ["zarr2-blosc-slash", "zarr3-sharded", "ome-zarr-v3-5d", "n5-blosc", "precomputed"])
def test_a_hundred_megabytes_are_sampled_in_constant_memory(tmp_path: Path, name: str, where: str, request):
    shape = (384, 512, 512)
    found = measure(tmp_path, name, where, request, shape, 0.09)
    check_sample(tmp_path, textured(shape), found, 0.09)
    assert found["grown"] < 32 << 20, f"{found} for 90 MB instead of 11"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("where", ["http", "s3"])
@pytest.mark.parametrize("name", LARGE)
def test_a_gibibyte_is_sampled_in_constant_memory(tmp_path: Path, name: str, where: str, request):
    shape = (1024, 1024, 1024)
    found = measure(tmp_path, name, where, request, shape, 0.9)
    check_sample(tmp_path, textured(shape), found, 0.9)
    assert found["grown"] < 32 << 20, f"{found} for 0.9 GB instead of 0.1"
    shutil.rmtree(tmp_path / "big")  # pytest keeps the folders of passed tests for a while
