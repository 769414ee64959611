"""A volume to its table of raw patches beside the script way: whole volume, PIL and imagehash, one process."""

import tempfile
import time

import numpy as np

from cem_assets.cem.bricks import ALL_PLANES
from cem_assets.cem.phantom import em_phantom
from cem_assets.engine import LocalEngine
from cem_assets.stages.cem_patches import PatchifyParams, cut_and_hash
from cem_assets.stages.cem_volumes import standardize_dataset
from cem_assets.storage.store import open_store
from perf.hashing import by_imagehash
from perf.timing import Measured

SHAPE = (336, 448, 448)
DESCRIPTION = 'name = "v"\nkind = "volume"\nvoxel_size_nm = [8, 8, 8]\nlicence = "CC0-1.0"\ncitation = "phantom"\n'


def script_way(voxels: np.ndarray, every: int) -> int:
    """Cut and hash every n-th slice of each plane, as the published scripts do."""
    count = 0
    for axis in ALL_PLANES:
        for index in range(0, voxels.shape[axis], every):
            plane = np.take(voxels, index, axis=axis)
            patches = [
                plane[y : y + 224, x : x + 224]
                for y in range(0, max(1, round(plane.shape[0] / 224)) * 224, 224)
                for x in range(0, max(1, round(plane.shape[1] / 224)) * 224, 224)
            ]
            count += len(by_imagehash([np.ascontiguousarray(patch) for patch in patches]))
    return count


def measure(is_quick: bool = False) -> list[Measured]:
    voxels = np.tile(em_phantom((112, 224, 224), 2).voxels, (3, 2, 2))
    rows = []
    started = time.perf_counter()
    peer = script_way(voxels, every=8) / (time.perf_counter() - started)
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(folder)
            z, y, x = SHAPE
            header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {x} {y} {z}\nencoding: raw\n\n".encode()
            store.put("inbox/v/v.nrrd", header + voxels.tobytes())
            store.put("inbox/v/dataset.toml", DESCRIPTION.encode())
            engine = LocalEngine(workers)
            started = time.perf_counter()
            standardize_dataset(store, "v", engine=engine)
            middle = time.perf_counter()
            count = cut_and_hash(store, "v", PatchifyParams(), engine=engine).manifest.counts["patches"]
            ended = time.perf_counter()
        what = f"{workers} process(es)"
        rows.append(Measured(f"OME-Zarr -> raw table, {what}", "patches/s", count / (ended - middle), peer, "script way", 0))
        rows.append(
            Measured(f"NRRD -> OME-Zarr -> raw table, {what}", "patches/s", count / (ended - started), peer, "script way", 0)
        )
    return rows
