"""A small dataset through the whole chain in Dagster, one process: what a dataset costs besides its voxels."""

import tempfile
import time
from pathlib import Path

import dagster as dg

from cem_assets.cem.phantom import em_phantom
from cem_assets.runs import chain_until, run_job
from cem_assets.storage.store import open_store
from perf.raw_table import DESCRIPTION
from perf.timing import Measured

NUM_DATASETS = 6


def measure(is_quick: bool = False) -> list[Measured]:
    import torch

    from cem_assets.cem.classifier import build_classifier

    voxels = em_phantom((4, 224, 224), 3).voxels
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.ephemeral() as instance:
        store = open_store(f"{folder}/store")
        weights = Path(folder) / "weights.pth"
        torch.save(build_classifier().state_dict(), weights)
        config = {"cem/patch_classifier": {"source": "file", "file": str(weights)}}
        assert run_job(instance, store.url, "cem_patch_classifier", config=config).success
        for number in range(NUM_DATASETS + 1):
            header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {224 - number} 224 4\nencoding: raw\n\n".encode()
            store.put(f"inbox/d{number}/v.nrrd", header + voxels[:, :, number:].tobytes())
            text = DESCRIPTION.replace('"v"', f'"d{number}"').replace("[8, 8, 8]", "[40, 8, 8]")
            store.put(f"inbox/d{number}/dataset.toml", text.encode())
        seconds = []
        for number in range(NUM_DATASETS + 1):
            started = time.perf_counter()
            assert run_job(instance, store.url, "cem_chain", chain_until("filtered"), f"d{number}").success
            seconds.append(time.perf_counter() - started)
    per_hour = 3600 / (sum(seconds[1:]) / NUM_DATASETS)  # the first one imports and compiles
    return [Measured("datasets of 4 patches, whole chain in Dagster", "datasets/h", per_hour, 0, "-", 0)]
