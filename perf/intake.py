"""The cost of a dataset apart from its voxels: a small dataset through the chain in Dagster, and Dagster's share of the time.

One warm process takes small datasets through the whole chain. Once everything is up to date, a run costs only Dagster and our
own look at the store, so it is compared with an asset that does nothing. Last, such a run is measured in a process of its own,
as launched runs are, in CPU seconds.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from cem_assets import environment
from cem_assets.cem.assets import CHAIN
from cem_assets.cem.phantom import em_phantom
from cem_assets.cli.runs import chain_until, run_job
from cem_assets.platform.partitions import em_datasets
from cem_assets.platform.resources import StoreResource
from cem_assets.store.store import Store, open_store
from perf.raw_table import DESCRIPTION
from perf.timing import Measured, best_seconds

NUM_DATASETS = 6
UP_TO_DATE = "up to date, nothing was computed"
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_EMPTY_RUN = """
import dagster as dg
days = dg.DynamicPartitionsDefinition(name="days")
empty = dg.asset(name="empty", partitions_def=days)(lambda: None)
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("days", ["d0"])
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    assert dg.materialize([empty], instance=instance, partition_key="d0", run_config=quiet).success
"""
"""A program with an asset that does nothing. It imports only Dagster."""


@dg.asset(partitions_def=em_datasets)
def empty() -> None:
    """Do nothing, to measure what Dagster itself takes for a partition."""


def put_dataset(store: Store, number: int) -> None:
    """Write a dataset of four slices to the inbox; each number gives other voxels."""
    voxels = em_phantom((4, 224, 224), 3).voxels
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {224 - number} 224 4\nencoding: raw\n\n".encode()
    store.put(f"inbox/d{number}/v.nrrd", header + voxels[:, :, number:].tobytes())
    text = DESCRIPTION.replace('"v"', f'"d{number}"').replace("[8, 8, 8]", "[40, 8, 8]")
    store.put(f"inbox/d{number}/dataset.toml", text.encode())


def partition_row(instance: dg.DagsterInstance, store: Store, num_repeats: int) -> Measured:
    """Materialize a partition of every asset of the chain that is up to date, and of an empty asset, in turns."""
    resources = {"store": StoreResource(url=store.url)}

    def one(asset: dg.AssetsDefinition) -> dg.ExecuteInProcessResult:
        result = dg.materialize([asset], instance=instance, partition_key="d0", resources=resources, run_config=_QUIET)
        assert result.success
        return result

    for asset in CHAIN:  # below, only runs that find everything up to date are timed
        (event,) = one(asset).asset_materializations_for_node(asset.node_def.name)
        assert event.metadata["outcome"].value == UP_TO_DATE
    calls: list[Callable[[], object]] = [lambda asset=asset: one(asset) for asset in (empty, *CHAIN)]
    beside, *ours = best_seconds(*calls, repeats=num_repeats)
    names = [asset.key.path[-1] for asset in CHAIN]
    cheapest = min(zip(ours, names, strict=True))
    listed = ", ".join(f"{name} {1000 * spent:.0f}" for name, spent in zip(names, ours, strict=True))
    note = (
        f"{1000 * cheapest[0]:.0f} ms beside {1000 * beside:.0f} ms; all of them in ms, pictures for the UI included: {listed}"
    )
    work = f"an up-to-date partition of {cheapest[1]} in Dagster"
    return Measured(work, "partitions/s", 1 / cheapest[0], 1 / beside, "an empty asset", 0, note)


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Run a command; return the CPU seconds, user and system, of its process and those it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def launched_row(store: Store, folder: Path, num_repeats: int) -> Measured:
    """Run an up-to-date dataset, and an empty asset, in processes of their own on a Dagster home with SQLite."""
    shutil.copytree(f"{store.url}/inbox/d0", folder / "d0")
    ingest = [sys.executable, "-m", "cem_assets.cli", "ingest", str(folder / "d0"), "--until", "filtered"]
    commands = {"ours": ingest, "empty": [sys.executable, "-c", _EMPTY_RUN]}
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(num_repeats):
        for name, command in commands.items():
            home = folder / f"home-{name}"
            home.mkdir(exist_ok=True)
            spent = cpu_seconds(command, {environment.DAGSTER_HOME.name: str(home), environment.ROOT.name: store.url})
            best[name] = min(best[name], spent)
    note = f"five assets that are up to date; an empty asset takes {best['empty']:.1f} CPU s; user and system, imports included"
    return Measured("one run in a process of its own", "CPU s", best["ours"], 0, "-", 0, note)


def measure(is_quick: bool = False) -> list[Measured]:
    import torch

    from cem_assets.cem.classifier.network import build_classifier

    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.ephemeral() as instance:
        store = open_store(f"{folder}/store")
        weights = Path(folder) / "weights.pth"
        torch.save(build_classifier().state_dict(), weights)
        config = {"cem/patch_classifier": {"source": "file", "file": str(weights)}}
        assert run_job(instance, store.url, "cem_patch_classifier", config=config).success
        seconds = []
        num_datasets = 1 if is_quick else NUM_DATASETS
        for number in range(num_datasets + 1):
            put_dataset(store, number)
            started = time.perf_counter()
            assert run_job(instance, store.url, "cem_chain", chain_until("filtered"), f"d{number}").success
            seconds.append(time.perf_counter() - started)
        per_hour = 3600 / (sum(seconds[1:]) / num_datasets)  # the first dataset pays for imports and compilation
        return [
            Measured("datasets of 4 patches, whole chain in Dagster", "datasets/h", per_hour, 0, "-", 0),
            partition_row(instance, store, 1 if is_quick else 10),
            launched_row(store, Path(folder), 1 if is_quick else 3),
        ]
