"""Examines the environment: store, MLflow, GPU, disk and versions. Each finding of a problem says what to do."""

import os
import platform
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

from cem_assets import __version__, environment
from cem_assets.errors import DataError
from cem_assets.execution.choice import unfit_nodes
from cem_assets.execution.local import EngineChoice, default_num_workers, engine_choice
from cem_assets.execution.ray import RayEngine, nodes_of_cluster, stall_seconds
from cem_assets.imaging.dhash import self_test
from cem_assets.store.commits import installed_versions
from cem_assets.store.store import Store, open_store
from cem_assets.tracking.mlflow import tracking_uri

_LOW_DISK = 5 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one examination.

    Attributes:
        is_well: True or False; None for a fact that is neither good nor bad.
        text: What was found, with the remedy where there is a problem.
    """

    subject: str
    is_well: bool | None
    text: str


def examine() -> list[Finding]:
    """Examine everything that the platform needs on this machine."""
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")  # a person waits for the answer
    versions = installed_versions("dagster", "mlflow", "torch", "s3fs", "imagehash")
    return [
        Finding(
            "version",
            None,
            f"cem_assets {__version__}, " + ", ".join(f"{k} {v}" for k, v in versions.items() if k != "cem-assets"),
        ),
        Finding("machine", None, f"{platform.machine()}, {default_num_workers()} worker(s)"),
        *_examine_store(),
        _examine_engine(),
        _examine_disk(),
        _examine_hash(),
        _examine_gpu(),
        _examine_mlflow(),
    ]


def _examine_store() -> list[Finding]:
    try:
        store = open_store()
    except DataError as error:
        return [Finding("store", False, str(error))]
    try:
        return [Finding("store", *_probe(store)), *_free(store)]
    except Exception as error:  # noqa: BLE001  every store has its own errors; all of them are the finding
        text = f"{store.url} cannot be used: {type(error).__name__}: {error}. Check {environment.ROOT} and the AWS_* variables"
        return [Finding("store", False, text)]


def _probe(store: Store) -> tuple[bool, str]:
    """Write, read, list, create exclusively and delete a small object."""
    key = f"doctor/{uuid.uuid4().hex}"
    started = time.monotonic()
    store.put(key, b"probe")
    try:
        is_read = store.read(key) == b"probe"
        is_listed = key in {item.key for item in store.walk("doctor")}
        is_exclusive = not store.create(key, b"other") and store.create(f"{key}-2", b"new")
    finally:
        store.delete([key, f"{key}-2"])
    seconds = time.monotonic() - started
    if not (is_read and is_listed):
        return False, f"{store.url} does not give back what was written; use a store with read-after-write consistency"
    if not is_exclusive:
        return (
            False,
            f"{store.url} ignores exclusive creation (If-None-Match: *); two runs could overwrite each other's manifests",
        )
    return True, f"{store.url} is readable and writable, exclusive creation works ({1000 * seconds:.0f} ms)"


def _examine_engine() -> Finding:
    try:
        if engine_choice() == EngineChoice.local:
            return Finding(
                "engine", None, f"local, {default_num_workers()} process(es); {environment.ENGINE}=ray takes a Ray cluster"
            )
        problems = unfit_nodes(RayEngine(stall_seconds=stall_seconds()), open_store())
        nodes = nodes_of_cluster()
    except (ValueError, RuntimeError, OSError) as error:
        return Finding("engine", False, str(error))
    listing = ", ".join(f"{node.address} ({node.num_cpus} CPU, {node.num_gpus} GPU)" for node in nodes)
    if problems:
        told = "; ".join(f"{address} {text}" for address, text in problems.items())
        return Finding(
            "engine", False, f"ray, nodes {listing}, of which some cannot take part: {told}; see docs/distributed.md"
        )
    return Finding("engine", True, f"ray, nodes {listing}; all of them read the store and have the versions of this machine")


def _free(store: Store) -> list[Finding]:
    if not store.is_local:
        return []
    free = shutil.disk_usage(store.url if Path(store.url).exists() else ".").free
    return [Finding("disk of the store", free > _LOW_DISK, f"{free / 2**30:.0f} GiB free" + _remedy(free, "free some space"))]


def _examine_disk() -> Finding:
    folder = environment.text(environment.SCRATCH) or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {free / 2**30:.0f} GiB free"
    return Finding("scratch", free > _LOW_DISK, text + _remedy(free, f"point {environment.SCRATCH} to a larger disk"))


def _remedy(free: int, text: str) -> str:
    return "" if free > _LOW_DISK else f"; {text}"


def _examine_hash() -> Finding:
    if self_test():
        return Finding("dHash", True, "the fast path equals imagehash under the installed Pillow")
    return Finding(
        "dHash", False, "the installed Pillow is not the pinned one: hashing falls back to imagehash; run make install"
    )


def _examine_gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", None, "none; networks run on the CPU")
    name, memory = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
    return Finding("GPU", True, f"{torch.cuda.device_count()} x {name}, {memory / 2**30:.0f} GiB")


def _examine_mlflow() -> Finding:
    uri = tracking_uri()
    if not uri.startswith("http"):
        return Finding(
            "MLflow", True, f"{uri.split('@')[-1]} (a local file; set {environment.MLFLOW_TRACKING_URI} to share it)"
        )
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5) as answer:  # noqa: S310  http, checked above
            return Finding("MLflow", answer.status == 200, f"{uri} answers")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding("MLflow", False, f"{uri} does not answer ({error}); data is still committed, but runs are not tracked")
