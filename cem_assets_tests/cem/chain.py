"""The chain without Dagster, as a function, and as a program that can be killed.

python -m cem_assets_tests.cem.chain ROOT DATASET STAGE...
"""

import os
import time
from pathlib import Path

from cem_assets.cem.classifier.params import ClassifierParams, ScoreParams
from cem_assets.cem.classifier.stage import ClassifierSource, Origin, make_classifier
from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative, score_patches
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams, choose_exemplars, cut_and_hash
from cem_assets.cem.releases.stage import make_release
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.execution.stage import StageResult
from cem_assets.store.store import Store, open_store

STAGES = ("volumes", "raw", "deduplicated", "scores", "filtered", "releases")
SCORING = ScoreParams(device="cpu", batch_size=16)


def run_stage(store: Store, dataset: str, stage: str, threshold: float = 0.5) -> StageResult:
    match stage:
        case "volumes":
            return standardize_dataset(store, dataset)
        case "raw":
            return cut_and_hash(store, dataset, PatchifyParams())
        case "deduplicated":
            return choose_exemplars(store, dataset, DedupParams())
        case "scores":
            return score_patches(store, dataset, SCORING)
        case "filtered":
            return keep_informative(store, dataset, FilterParams(threshold=threshold))
        case "releases":
            return make_release(store)
    raise ValueError(stage)


def run_chain(store: Store, dataset: str, until: str = "releases", threshold: float = 0.5) -> dict[str, StageResult]:
    return {stage: run_stage(store, dataset, stage, threshold) for stage in STAGES[: STAGES.index(until) + 1]}


def import_classifier(store: Store, weights: Path) -> StageResult:
    source = ClassifierSource(source=Origin.file, file=str(weights))
    return make_classifier(store, source, ClassifierParams(device="cpu")).stage


def report_chain(url: str, dataset: str, stages: tuple[str, ...], report: Path, environment: dict[str, str]) -> None:
    """Run stages in a separate process, and append a line "stage digest seconds" to a file after each."""
    import torch

    os.environ.update(environment)  # the fork server of this process may have started before the store's keys were set
    torch.set_num_threads(2)  # a fixed number, because network outputs are compared byte for byte
    store = open_store(url)
    report.write_text("began\n")
    for name in stages:
        started = time.monotonic()
        result = run_stage(store, dataset, name, threshold=0.0)
        with open(report, "a") as file:
            file.write(f"{name} {result.manifest.digest} {time.monotonic() - started}\n")
