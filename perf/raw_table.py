"""A volume to its table of raw patches, beside the way of a script: the whole volume in memory, PIL and imagehash, one process.

Every side runs in a process of its own, with as many cores as its row says, so that its peak memory is its own. Ours first
takes a smaller volume the same way, which pays for imports and compiled kernels. That also matters because some virtual
machines hand out memory that was never used before at only a few hundred MB/s: a rate describes the middle of a volume, not
the first second of a process. Volumes and store are kept in memory where there is room, because disks differ. The published
script is measured too where two environment variables name its place: a folder with `patchify3d.py` of volume-em/cem-dataset,
and a Python that has what it imports (SimpleITK, scikit-image, imagehash).
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from cem_assets.cem.patches.pixels import open_pixels
from cem_assets.cem.patches.stage import PatchifyParams, cut_and_hash
from cem_assets.cem.phantom import em_phantom
from cem_assets.cem.volumes.bricks import ALL_PLANES, brick_boxes
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.cem.volumes.zarr_shards import ZSTD_LEVEL
from cem_assets.imaging.dhash import BrickHashes
from cem_assets.imaging.value_counts import count_values
from cem_assets.store.parquet import read_parts
from cem_assets.store.store import open_store
from perf.hashing import by_imagehash
from perf.timing import Measured

SIDE, QUICK_SIDE = 672, 448
SOURCES = {"NRRD": "v.nrrd", "OME-Zarr": "v.zarr"}
PUBLISHED_FOLDER = "CEM_ASSETS_PUBLISHED_SCRIPTS"
PUBLISHED_PYTHON = "CEM_ASSETS_PUBLISHED_PYTHON"
DESCRIPTION = 'name = "v"\nkind = "volume"\nvoxel_size_nm = [8, 8, 8]\nlicence = "CC0-1.0"\ncitation = "phantom"\n'
_EVERY = 8
"""The script way cuts only every eighth slice; its rate does not depend on their number."""


def write_sources(folder: Path, side: int) -> None:
    """Write a volume of phantom bricks (noise that level 1 of zstd packs to 0.8) as NRRD and as OME-Zarr."""
    import zarr

    voxels = np.tile(em_phantom((224, 224, 224), 2).voxels, (side // 224,) * 3)
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {side} {side} {side}\nencoding: raw\n\n".encode()
    (folder / SOURCES["NRRD"]).write_bytes(header + voxels.tobytes())
    group = zarr.open_group(str(folder / SOURCES["OME-Zarr"]), mode="w")
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [8.0, 8.0, 8.0]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.create_array("0", shape=voxels.shape, chunks=(64, 64, 64), dtype="uint8")[:] = voxels


def script_way(source: Path) -> dict[str, Any]:
    """Follow the definition: read everything, cut every plane, then name and hash each patch."""
    import nrrd
    import zarr

    started = time.perf_counter()
    voxels = nrrd.read(str(source), index_order="C")[0] if source.suffix == ".nrrd" else zarr.open_group(str(source))["0"][:]
    return hash_all(voxels, time.perf_counter() - started)


def hash_all(voxels: Any, reading: float) -> dict[str, Any]:
    """Cut, name and hash. `reading` are the seconds that reading took before."""
    started = time.perf_counter()
    side = len(voxels)
    hashes: dict[str, int] = {}
    for axis in ALL_PLANES:
        for index in range(0, side, _EVERY):
            plane = (voxels[index], voxels[:, index], voxels[:, :, index])[axis]
            for y in range(0, side, 224):
                for x in range(0, side, 224):
                    name = f"v-LOC-{axis}_{index:03d}_{y}-{y + 224}_{x}-{x + 224}"
                    hashes[name] = by_imagehash([plane[y : y + 224, x : x + 224]])[0]
    cutting = time.perf_counter() - started
    return {"seconds": (reading + cutting * _EVERY) / (len(hashes) * _EVERY), "hashes": hashes}


def our_way(source: Path, folder: Path) -> dict[str, Any]:
    """Take a source through the store; return seconds for each patch, from the source and from the standardized volume on."""
    store = open_store(str(folder))
    inbox = folder / "inbox" / "v"
    inbox.mkdir(parents=True)
    shutil.copytree(source, inbox / "v.zarr") if source.is_dir() else shutil.copy(source, inbox)
    (inbox / "dataset.toml").write_text(DESCRIPTION)
    started = time.perf_counter()
    volumes = standardize_dataset(store, "v").manifest
    middle = time.perf_counter()
    manifest = cut_and_hash(store, "v", PatchifyParams()).manifest
    ended = time.perf_counter()
    count = manifest.counts["patches"]
    table = next(read_parts(store, manifest, ["name", "dhash"]))
    wanted = {
        name: value for name, value in zip(*table.to_pydict().values(), strict=True) if int(name.split("_")[1]) % _EVERY == 0
    }
    stored = sum(item.num_bytes for item in volumes.objects)
    assert open_pixels(store, "v").volumes[0].record.num_missing == 0
    return {
        "seconds": (ended - started) / count,
        "hashing_seconds": (ended - middle) / count,
        "hashes": wanted,
        "stored": stored / volumes.counts["voxels"],
    }


def libraries_alone(source: Path, folder: Path) -> dict[str, Any]:
    """Do only what is unavoidable for every brick of an NRRD. No code around these steps can be faster."""
    packer = Zstd(level=ZSTD_LEVEL)
    side = int(re.search(rb"sizes: (\d+)", source.read_bytes()[:200]).group(1))  # type: ignore[union-attr]
    whole = np.memmap(source, np.uint8, "r", source.stat().st_size - side**3, (side, side, side))
    count = 0
    seconds = 0.0
    for number, box in enumerate(brick_boxes(whole.shape, ALL_PLANES)):  # type: ignore[arg-type]
        brick = whole[box].copy()
        chunks = [
            np.ascontiguousarray(brick[z : z + 112, y : y + 112, x : x + 112])
            for z, y, x in itertools.product(range(0, 224, 112), repeat=3)
        ]
        plain = folder / "brick"
        plain.write_bytes(brick)
        started = time.perf_counter()
        digest = hashlib.sha256()
        with open(plain, "rb", buffering=0) as file:
            while block := file.read(1 << 18):
                digest.update(block)
        packed = [packer.encode(chunk) for chunk in chunks]
        for piece in packed:
            digest.update(piece)
        with open(folder / str(number), "wb", buffering=0) as file:
            file.writelines(packed)
        hashes = BrickHashes(brick)
        count += sum(len(hashes.along(axis)) for axis in ALL_PLANES)
        count_values(brick)
        seconds += time.perf_counter() - started
    return {"seconds": seconds / count}


def peak_mib() -> float:
    """Return the peak resident memory of this process, and of the largest of its children that have ended."""
    import resource

    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return (int(own.split()[1]) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def child(way: str, small: Path, source: Path, folder: Path, num_cores: int) -> dict[str, Any]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-num_cores:])
    if way == "script":
        return {**script_way(source), "peak": peak_mib()}
    our_way(small, folder / "warm")
    if way == "libraries":
        return libraries_alone(source, folder)
    return {**our_way(source, folder / "store"), "peak": peak_mib()}


def run_child(way: str, name: str, side: int, base: Path, num_cores: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=base) as folder:
        places = [str(base / str(max(224, side - 224)) / SOURCES[name]), str(base / str(side) / SOURCES[name]), folder]
        command = [sys.executable, "-m", "perf.raw_table", way, *places, str(num_cores)]
        environment = {**os.environ, "CEM_ASSETS_WORKERS": str(num_cores)}
        subprocess.run(command, check=True, env=environment)
        return json.loads((Path(folder) / "result.json").read_text())


def published_row(base: Path) -> list[Measured]:
    """Run the published script on the smallest volume, one process; it also deduplicates and pickles the patches."""
    scripts, python = os.environ.get(PUBLISHED_FOLDER), os.environ.get(PUBLISHED_PYTHON, sys.executable)
    if not scripts:
        return []
    with tempfile.TemporaryDirectory(dir=base) as folder:
        (Path(folder) / "in").mkdir()
        shutil.copy(base / "224" / SOURCES["NRRD"], Path(folder) / "in")
        command = [python, f"{scripts}/patchify3d.py", f"{folder}/in", f"{folder}/out", "--processes", "1"]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        peer = 3 * 223 / (time.perf_counter() - started)
    ours = run_child("ours", "NRRD", 224, base, 1)
    note = "one brick; the script also starts, deduplicates and pickles; ours was warm"
    return [Measured("NRRD -> raw table, one core", "patches/s", 1 / ours["seconds"], peer, "patchify3d.py", 0, note)]


def measure(is_quick: bool = False) -> list[Measured]:
    side = QUICK_SIDE if is_quick else SIDE
    smaller = side - 224
    names = list(SOURCES)[: 1 if is_quick else None]
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 8 * side**3
    with tempfile.TemporaryDirectory(dir=memory if has_room else None) as folder:
        base = Path(folder)
        for each in {224, smaller, side}:
            (base / str(each)).mkdir()
            write_sources(base / str(each), each)
        peers: dict[str, dict[str, Any]] = {}
        ours: dict[tuple[str, int], dict[str, Any]] = {}
        hashing = {1: float("inf"), 2: float("inf")}
        for _ in range(1 if is_quick else 4):  # both sides in turn; the best time of each counts
            for name in names:
                runs: list[tuple[dict[Any, dict[str, Any]], Any, str, int]] = [(peers, name, "script", 1)]
                runs += [(ours, (name, cores), "ours", cores) for cores in (1, 2)]
                for kept, key, way, cores in runs:
                    found = run_child(way, name, side, base, cores)
                    if way == "ours":
                        assert found["hashes"] == peers["NRRD"]["hashes"], "the tables differ"
                        hashing[cores] = min(hashing[cores], found["hashing_seconds"])
                    if key not in kept or found["seconds"] < kept[key]["seconds"]:
                        kept[key] = found
        rows = []
        for cores, goal in ((1, 6), (2, 10)):
            what = "one core" if cores == 1 else "two cores"
            for name in names:
                found, peer = ours[name, cores], peers[name]
                less = "" if is_quick else f"{smaller}^3: {run_child('ours', name, smaller, base, cores)['peak']:.0f}; "
                note = (
                    f"{side}^3; peak {found['peak']:.0f} MiB ({less}script {peer['peak']:.0f}); "
                    f"stored {found['stored']:.2f} of the voxels; {'in memory' if has_room else 'on disk'}; equal hashes"
                )
                rows.append(
                    Measured(
                        f"{name} -> standardized -> raw table, {what}",
                        "patches/s",
                        1 / found["seconds"],
                        1 / peer["seconds"],
                        "script way",
                        goal,
                        note,
                    )
                )
            peer = peers[names[-1]]
            rows.append(
                Measured(
                    f"standardized OME-Zarr -> raw table, {what}",
                    "patches/s",
                    1 / hashing[cores],
                    1 / peer["seconds"],
                    "script way",
                    goal,
                    "same runs",
                )
            )
        peer = peers["NRRD"]
        alone = run_child("libraries", "NRRD", side, base, 1)
        note = (
            "nothing of a pipeline: sha256 of source and shards, zstd, reads, writes, dHash kernels and counts, brick by brick"
        )
        rows.append(
            Measured(
                "what libraries and kernels take for the NRRD, one core",
                "patches/s",
                1 / alone["seconds"],
                1 / peer["seconds"],
                "script way",
                0,
                note,
            )
        )
        return rows + published_row(base)


if __name__ == "__main__":
    way, small, source, target, cores = sys.argv[1:]
    result = child(way, Path(small), Path(source), Path(target), int(cores))
    (Path(target) / "result.json").write_text(json.dumps(result))
