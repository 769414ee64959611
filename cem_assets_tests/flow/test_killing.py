"""Runs that are killed at any moment: the store stays readable, and a new run gives the digests of an undisturbed one."""

import multiprocessing
import os
import random
import time
import uuid
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cem_assets.store.assets import STAGES as ASSETS
from cem_assets.store.manifests import current_manifest, damaged_objects
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cem.chain import STAGES, import_classifier, report_chain
from cem_assets_tests.conftest import copy_store
from cem_assets_tests.datasets import volume_dataset

SHAPE = (80, 240, 450)
SOAK_SHAPE = (230, 450, 680)


# Children are forked from a server that has imported torch already, so that most kills hit the work and not the imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "cem_assets_tests.cem.chain", "cem_assets.cem.classifier.network"])


@dataclass(frozen=True)
class Child:
    process: BaseProcess
    report: Path


def start(store: Store, stages: tuple[str, ...], tmp_path: Path) -> Child:
    report = tmp_path / f"report-{uuid.uuid4().hex}"
    process = CONTEXT.Process(target=report_chain, args=(store.url, "cells", stages, report, dict(os.environ)))
    process.start()
    return Child(process, report)


def finish(child: Child) -> tuple[dict[str, str], dict[str, float]]:
    """Wait for a run; return digests and seconds by stage."""
    child.process.join(600)
    assert child.process.exitcode == 0
    lines = [line.split() for line in child.report.read_text().splitlines()[1:]]
    return {stage: digest for stage, digest, _ in lines}, {stage: float(seconds) for stage, _, seconds in lines}


def undisturbed(
    tmp_path: Path, weights: Path, shape: tuple[int, int, int] = SHAPE
) -> tuple[Store, dict[str, str], dict[str, float]]:
    """Run the chain once; return its store, its digests, and the seconds of each stage."""
    store = open_store(str(tmp_path / "undisturbed"))
    volume_dataset(store, shape=shape)
    import_classifier(store, weights)
    return (store, *finish(start(store, STAGES, tmp_path)))


def check_readable(store: Store) -> None:
    """Check that everything that is committed is complete."""
    for asset in (*ASSETS.values(), "cem/patch_classifier"):
        partition = "" if asset == "cem/patch_classifier" else "cells"
        manifest = current_manifest(store, asset, partition)
        if manifest is not None:
            assert damaged_objects(store, manifest) == {}, asset


def kill_after(child: Child, seconds: float) -> bool:
    """Kill a process a while after it began its work; tell whether it was still running."""
    while not child.report.exists() and child.process.exitcode is None:
        time.sleep(0.001)
    child.process.join(seconds)
    if child.process.exitcode is not None:
        return False
    child.process.kill()
    child.process.join()
    return True


def test_the_chain_survives_five_kills_at_random_moments(tmp_path, weights):
    _, expected, seconds = undisturbed(tmp_path, weights)
    draw = random.Random(20261121)
    store = open_store(str(tmp_path / "killed"))
    volume_dataset(store, shape=SHAPE)
    import_classifier(store, weights)
    kills = 0
    # One kill in each fifth of the chain's time, so that every stage has its turn; on a machine whose speed changes some fall
    # behind the end, and are made up for.
    for part in range(12):
        if part >= 5 and kills >= 3:
            break
        moment = (part % 5 + draw.random()) / 5 * sum(seconds.values())
        for item in list(store.walk("cem")):
            if "patch_classifier" not in item.key:
                store.delete([item.key])
        kills += kill_after(start(store, STAGES, tmp_path), moment)
        check_readable(store)
        assert finish(start(store, STAGES, tmp_path))[0] == expected
        check_readable(store)
    assert kills >= 3, "most moments must fall into the run"


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["local", "s3"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_survives_twenty_kills_at_random_moments(tmp_path, weights, stage, kind, request):
    before = STAGES[: STAGES.index(stage)]
    reference, expected, seconds = undisturbed(tmp_path, weights, SOAK_SHAPE)
    draw = random.Random(f"{stage}{kind}")
    kills = 0
    for attempt in range(20):
        store = open_store(str(tmp_path / f"killed-{attempt}"))
        if kind == "s3":
            s3 = request.getfixturevalue("s3")
            store = open_store(f"s3://{s3.bucket}/kill-{stage}-{attempt}")
        copy_store(reference, store)
        drop = [ASSETS[name] for name in STAGES if name in ASSETS and name not in before] + ["cem/releases"]
        for asset in drop:
            store.delete([item.key for item in store.walk(asset)])
        kills += kill_after(start(store, (stage,), tmp_path), draw.random() * seconds[stage])
        check_readable(store)
        assert finish(start(store, (stage,), tmp_path))[0][stage] == expected[stage]
        check_readable(store)
        for prefix in ("cem", "inbox"):  # the servers of the tests are small
            store.delete([item.key for item in store.walk(prefix)])
    assert kills >= 5
