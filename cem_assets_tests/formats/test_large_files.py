"""Files of every format that are larger than the memory allowed for them are standardized within that memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cem_assets.store.store import open_store
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox, toml
from cem_assets_tests.formats.large_files import WRITERS

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc"
)

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
from cem_assets.execution.local import LocalEngine
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.store.store import open_store
def status(key):
    # ru_maxrss begins at the peak of the process that started this one. This value does not, and it can be reset.
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))
store = open_store(sys.argv[1])
standardize_dataset(store, "warm", engine=LocalEngine(1))
grown = {}
for name in sys.argv[2:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS:")
    counts = standardize_dataset(store, name, engine=LocalEngine(1)).manifest.counts
    assert counts["rejected"] == 0, counts
    grown[name] = [(status("VmHWM:") - before) >> 10, counts["voxels"]]
print(json.dumps(grown))
"""


def peaks(folder: Path, names: list[str]) -> dict[str, list[int]]:
    """Standardize datasets one after the other in a new process; return by how many MiB its peak grew, and the voxels."""
    put_in_inbox(open_store(str(folder)), "warm", {"v.nrrd": nrrd_bytes(cells((230, 300, 300)))}, toml("warm"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    words = [sys.executable, "-c", SCRIPT, str(folder), *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_dataset(folder: Path, name: str, format_name: str, shape, **more: str) -> None:
    inbox = folder / "inbox" / name
    inbox.mkdir(parents=True)
    file, write = WRITERS[format_name]
    write(inbox / file, shape)
    (inbox / "dataset.toml").write_text(toml(name, "video" if format_name == "AVI" else "volume", **more))


def named(format_name: str) -> str:
    return format_name.lower().replace(", ", "_").replace(" ", "_")


QUICK = ["MRC", "TIFF, tiled", "TIFF, one page", "HDF5", "Zarr", "AVI"]
"""The formats that are fast to write; the soak test has all of them."""


def test_files_of_64_mib_are_never_held_whole(tmp_path):
    shape = (128, 512, 1024)
    for name in QUICK:
        write_dataset(tmp_path, named(name), name, shape, intensity='"dtype_range"')
    found = peaks(tmp_path, [named(name) for name in QUICK])
    print(found)
    assert all(voxels > 0.9 * np.prod(shape) for _, voxels in found.values())
    # Bricks take some 50 MiB. With a whole file in memory beside them it is 110 MiB and more.
    assert max(grown for grown, _ in found.values()) < 80, found


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_files_of_two_gib_are_standardized_in_an_eighth_of_their_size(tmp_path, name):
    shape = (256, 512, 1024) if name == "NRRD, ascii" else (1024, 1024, 2048)
    write_dataset(tmp_path, "large", name, shape)
    found = peaks(tmp_path, ["large"])
    print(name, found)
    assert found["large"][0] < 256, found


def test_cubes_and_binning_of_a_large_file_take_no_more(tmp_path):
    shape = (192, 512, 1024)
    write_dataset(tmp_path, "binned", "NRRD", shape, target_voxel_size_nm="16.0")
    write_dataset(tmp_path, "sampled", "NRRD", shape, sampling="{ cube_px = 128, gigabytes = 0.01 }")
    found = peaks(tmp_path, ["binned", "sampled"])
    print(found)
    assert found["binned"][1] == np.prod(shape) // 8 and 0.7e7 < found["sampled"][1] <= 1e7
    assert max(grown for grown, _ in found.values()) < 72, found
