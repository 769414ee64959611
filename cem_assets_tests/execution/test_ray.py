"""The engine of a Ray cluster, on a real one of two nodes: the same bytes as by the local engine, even if parts of it die."""

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cem_assets.execution.choice import chosen_engine
from cem_assets.execution.local import EngineChoice, engine_choice
from cem_assets.execution.ray import stall_seconds
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cem.chain import import_classifier, run_chain
from cem_assets_tests.conftest import S3
from cem_assets_tests.cytoimagenet.example_sources import WELLS, crop, label, plate, take_in
from cem_assets_tests.datasets import image_dataset, volume_dataset
from cem_assets_tests.services.ray_cluster import RayCluster, find_python

HEAD, OTHER = "127.0.0.2", "127.0.0.3"
_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ray_cluster(s3: S3) -> Iterator[RayCluster]:
    """Two nodes of one CPU each, whose environment has the keys of the S3 server; the head is never killed."""
    python, reason = find_python()
    if python is None:
        pytest.skip(reason)
    cluster = RayCluster(python)
    try:
        cluster.start(HEAD, 1)
        cluster.start(OTHER, 1)
        cluster.wait()
        yield cluster
    finally:
        cluster.stop()


def start(cluster: RayCluster, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **cluster.client_environment()}
    return subprocess.Popen(
        [str(cluster.python), "-m", "cem_assets_tests.execution.ray_runs", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT, env=environment,
    )  # fmt: skip


def answer(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(process.communicate()[1][-3000:])


def chain_digests(store: Store, dataset: str) -> list[str]:
    """Run the chain on the local engine."""
    return [result.manifest.digest for result in run_chain(store, dataset, "filtered", 0.0).values()]


def test_results_errors_and_stalls_are_those_of_an_engine(ray_cluster: RayCluster):
    told = answer(start(ray_cluster, "faults", "memory://bucket/elsewhere"))
    assert told["before"] == [0, 1, 2, 3, 4] and told["error"] == ["ValueError", "five"]
    assert told["taken"] <= 5  # two nodes of one CPU have two items each in flight, and one more was taken
    assert "finished none of 1 item(s) in 2 s" in told["stall"] and f"{OTHER}: 1 CPU(s)" in told["stall"]
    assert f"{OTHER}: cannot read the store" in told["store"] and f"{HEAD}: cannot read the store" in told["store"]
    assert "AWS_*" in told["store"]


def test_crops_are_those_of_the_local_engine(ray_cluster: RayCluster, local_store: Store):
    plate(local_store, "bbbc", WELLS)
    take_in(local_store, "bbbc")
    label(local_store)
    there = answer(start(ray_cluster, "crops", local_store.url))
    for item in list(local_store.walk("cytoimagenet/crops")):
        local_store.delete([item.key])
    assert there == {name: manifest.digest for name, manifest in crop(local_store).items()} and there


@pytest.mark.soak  # takes minutes on two busy cores; the kills below test the same code on a folder
def test_a_remote_store_gives_the_same_chain_whether_files_travel_or_not(
    ray_cluster: RayCluster, s3_store: Store, local_store: Store, weights: Path, tmp_path: Path
):
    for store in (s3_store, local_store):
        import_classifier(store, weights)
        volume_dataset(store)  # its file is copied to this machine first, so the local engine processes its bricks
        image_dataset(store, tmp_path)  # each node copies the images it works on
    there = answer(start(ray_cluster, "chain", s3_store.url, "cells", "pictures"))
    assert there == {name: chain_digests(local_store, name) for name in ("cells", "pictures")}


def test_a_killed_process_and_a_killed_node_change_nothing(
    ray_cluster: RayCluster, local_store: Store, weights: Path, tmp_path: Path
):
    store = open_store(str(tmp_path / "killed"))
    for one in (store, local_store):
        import_classifier(one, weights)
        volume_dataset(one, shape=(130, 230, 700))
    slow = start(ray_cluster, "slow", "16", "0.5")
    wait_for(slow, "at 2")
    ray_cluster.kill_one_worker(OTHER)
    told = answer(slow)
    assert told["found"] == [n * n for n in range(16)]
    run = start(ray_cluster, "chain", store.url, "cells")
    wait_for(run, "at 1")
    ray_cluster.kill(OTHER)
    there = answer(run)
    assert there == {"cells": chain_digests(local_store, "cells")}


def test_the_choice_of_engine_is_the_runs_then_the_variables(monkeypatch: pytest.MonkeyPatch, local_store: Store):
    assert engine_choice() == EngineChoice.local and chosen_engine(local_store) is None
    monkeypatch.setenv("CEM_ASSETS_ENGINE", "ray")
    assert engine_choice() == EngineChoice.ray
    assert chosen_engine(local_store, EngineChoice.local) is None
    monkeypatch.setenv("CEM_ASSETS_ENGINE", "dask")
    with pytest.raises(ValueError, match="CEM_ASSETS_ENGINE is 'dask'; expected local or ray"):
        engine_choice()
    monkeypatch.setenv("CEM_ASSETS_RAY_STALL_SECONDS", "-3")
    with pytest.raises(ValueError, match=r"CEM_ASSETS_RAY_STALL_SECONDS is '-3'; expected a number of seconds above 0"):
        stall_seconds()


def test_without_ray_the_remedy_is_told(local_store: Store):
    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed in this environment")
    with pytest.raises(RuntimeError, match=r"Ray is not installed here\. Install the extra `ray` \(make install-ray"):
        chosen_engine(local_store, EngineChoice.ray)
