"""Stages on a Ray cluster, as a program for the Python that has Ray.

python -m cem_assets_tests.execution.ray_runs chain ROOT DATASET...   volumes, raw, scores and filtered through the cluster
python -m cem_assets_tests.execution.ray_runs crops ROOT              every label of a store
python -m cem_assets_tests.execution.ray_runs slow NUM SECONDS        NUM items of SECONDS each; counts as stalled after 8 s
python -m cem_assets_tests.execution.ray_runs faults ROOT             errors of several kinds, and their texts

It prints lines "at DONE" as work goes on, and JSON as the last line.
"""

import json
import sys
import time
from typing import Any

from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative, score_patches
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams, choose_exemplars, cut_and_hash
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.labels.stage import label_entries
from cem_assets.execution.choice import chosen_engine
from cem_assets.execution.local import EngineChoice
from cem_assets.execution.ray import RayEngine
from cem_assets.store.assets import LABEL_TABLE
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import open_store
from cem_assets_tests.cem.chain import SCORING


def at(done: int, _total: int = 0) -> None:
    print(f"at {done}", flush=True)


def slow_square(item: tuple[int, float]) -> int:
    number, seconds = item
    time.sleep(seconds)
    return number * number


def fail_at_five(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number


def run_chain(root: str, datasets: list[str]) -> Any:
    store = open_store(root)
    engine = chosen_engine(store, EngineChoice.ray)
    digests = {}
    for dataset in datasets:
        digests[dataset] = [
            standardize_dataset(store, dataset, engine=engine, progress=at).manifest.digest,
            cut_and_hash(store, dataset, PatchifyParams(), engine=engine, progress=at).manifest.digest,
            choose_exemplars(store, dataset, DedupParams()).manifest.digest,
            score_patches(store, dataset, SCORING, engine=engine, progress=at).manifest.digest,
            keep_informative(store, dataset, FilterParams(threshold=0.0), engine=engine, progress=at).manifest.digest,
        ]
    return digests


def run_crops(root: str) -> Any:
    store = open_store(root)
    engine = chosen_engine(store, EngineChoice.ray)
    entries = label_entries(store, require_manifest(store, LABEL_TABLE))
    params = CropStageParams(min_images=4)
    return {e.label: make_crops(store, key, params, engine=engine, progress=at).manifest.digest for key, e in entries.items()}


def run_slow(num: str, seconds: str) -> Any:
    found, started, longest, last = [], time.monotonic(), 0.0, time.monotonic()
    for result in RayEngine(stall_seconds=60).map(slow_square, ((n, float(seconds)) for n in range(int(num)))):
        found.append(result)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        at(len(found))
    return {"found": found, "seconds": time.monotonic() - started, "longest_pause": longest}


def run_faults(root: str) -> Any:
    told: dict[str, Any] = {}
    results = RayEngine().map(fail_at_five, iter(range(1000)))
    told["before"] = [next(results) for _ in range(5)]
    try:
        next(results)
    except ValueError as error:
        told["error"] = [type(error).__name__, str(error)]
    taken: list[int] = []
    results = RayEngine().map(slow_square, ((taken.append(n) or n, 0.0) for n in range(1000)))
    next(results)
    results.close()
    told["taken"] = len(taken)
    try:
        list(RayEngine(stall_seconds=2).map(slow_square, [(1, 30.0)]))
    except TimeoutError as error:
        told["stall"] = str(error)
    try:
        chosen_engine(open_store(root), EngineChoice.ray)
    except RuntimeError as error:
        told["store"] = str(error)
    return told


if __name__ == "__main__":
    what, first, *rest = sys.argv[1:]
    runs: dict[str, Any] = {
        "chain": lambda: run_chain(first, rest),
        "crops": lambda: run_crops(first),
        "slow": lambda: run_slow(first, *rest),
        "faults": lambda: run_faults(first),
    }
    print(json.dumps(runs[what]()), flush=True)
