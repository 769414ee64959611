"""The chain to deduplicated patches on many volumes, one after another in one warm process: GB/h, memory, bytes written.

A separate process generates the volumes between the timed parts. Each volume is deleted with everything made of it before the
next one is generated, so the disk holds one dataset at a time. A volume consists of copies of one phantom brick, turned,
mirrored and rolled in another way for every cell and dataset, so that no two cells are the same and all compress as noisy EM
does. The filter is measured on some of the exemplars and extrapolated; its rows say so.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cem_assets import environment
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams, choose_exemplars, cut_and_hash
from cem_assets.cem.phantom import em_phantom
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store, open_store
from perf.raw_table import DESCRIPTION
from perf.timing import Measured

SHAPE, NUM_DATASETS, NUM_SCORED = (410, 512, 512), 200, 2000
QUICK_SHAPE, QUICK_NUM_DATASETS, QUICK_NUM_SCORED = (240, 256, 512), 2, 48
QUICK_SCORED_SHAPE = (80, 256, 512)
LIMIT_SECONDS = 600.0
"""No further dataset is begun after this time, which includes generation; the rest is extrapolated."""
NUM_WORKERS = 2
_SIDE = 224


@lru_cache(maxsize=1)
def _brick() -> np.ndarray:
    return em_phantom((_SIDE, _SIDE, _SIDE), 5).voxels


def write_dataset(root: str, shape: tuple[int, int, int], number: int) -> None:
    """Write dataset `v` of a store's inbox; the same number gives the same voxels."""
    generator = np.random.default_rng(number)
    voxels = np.empty(shape, np.uint8)
    for corner in np.ndindex(*(math.ceil(side / _SIDE) for side in shape)):
        start = [index * _SIDE for index in corner]
        target = voxels[tuple(slice(at, at + _SIDE) for at in start)]
        turned = np.flip(_brick().transpose(generator.permutation(3)), np.flatnonzero(generator.integers(0, 2, 3)))
        shifts = tuple(int(shift) for shift in generator.integers(0, _SIDE, 3))
        target[...] = np.roll(turned, shifts, (0, 1, 2))[tuple(slice(0, side) for side in target.shape)]
    inbox = Path(root) / "inbox" / "v"
    inbox.mkdir(parents=True)
    sizes = " ".join(str(side) for side in reversed(shape))
    with (inbox / "v.nrrd").open("wb") as handle:
        handle.write(f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nencoding: raw\n\n".encode())
        voxels.tofile(handle)
    (inbox / "dataset.toml").write_text(DESCRIPTION)


def num_raw_patches(shape: tuple[int, int, int]) -> int:
    """Count the patches that three planes must give. A side has as many cells as its length in patches, rounded."""
    cells = [max(1, round(side / _SIDE)) for side in shape]
    return sum(shape[axis] * math.prod(cells[:axis] + cells[axis + 1 :]) for axis in range(3))


def _num_rows(store: Store, manifest: Manifest, folder: str) -> int:
    """Count rows in the files themselves."""
    names = [item.name for item in manifest.objects if item.name.rpartition("/")[0] == folder]
    return sum(pq.read_metadata(store.url_of(f"{manifest.folder}/{name}")).num_rows for name in names)


def to_deduplicated(store: Store, shape: tuple[int, int, int]) -> tuple[dict[str, float], int]:
    """Take dataset `v` through three stages; return the seconds of each and the number of exemplars."""
    times = [time.perf_counter()]
    volumes = standardize_dataset(store, "v").manifest
    times.append(time.perf_counter())
    raw = cut_and_hash(store, "v", PatchifyParams()).manifest
    times.append(time.perf_counter())
    chosen = choose_exemplars(store, "v", DedupParams()).manifest
    times.append(time.perf_counter())
    expected = num_raw_patches(shape)
    assert volumes.counts["voxels"] == math.prod(shape) and not volumes.counts["rejected"]
    assert raw.counts["patches"] == expected == _num_rows(store, raw, "")
    num_exemplars = _num_rows(store, chosen, "")
    assert num_exemplars == chosen.counts["exemplars"]
    assert num_exemplars + _num_rows(store, chosen, "_duplicates") == expected
    seconds = (after - before for before, after in pairwise(times))
    return dict(zip(("volumes", "raw patches", "deduplicated"), seconds, strict=True)), num_exemplars


def read_proc(name: str) -> Mapping[str, int]:
    """Read the figures of a file of /proc/self by name."""
    lines = (line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines())
    return {parts[0].rstrip(":"): int(parts[1]) for parts in lines if len(parts) > 1 and parts[1].isdecimal()}


def score_some(
    folder: Path, write: Callable[[str, int, tuple[int, int, int]], None], shape: tuple[int, int, int], num: int
) -> tuple[float, int]:
    """Score and filter at least `num` exemplars of further datasets; return the seconds and how many exemplars there were."""
    import torch

    from cem_assets.cem.classifier.network import build_classifier
    from cem_assets.cem.classifier.params import ClassifierParams, ScoreParams
    from cem_assets.cem.classifier.stage import ClassifierSource, Origin, make_classifier
    from cem_assets.cem.filter.params import FilterParams
    from cem_assets.cem.filter.stage import keep_informative, score_patches

    torch.manual_seed(0)
    weights = folder / "weights.pth"
    torch.save(build_classifier().state_dict(), weights)
    seconds, num_scored, number = 0.0, 0, 0
    while num_scored < num:
        root = str(folder / f"scored{number}")
        write(root, number, shape)
        store = open_store(root)
        make_classifier(store, ClassifierSource(source=Origin.file, file=str(weights)), ClassifierParams(device="cpu"))
        _, num_exemplars = to_deduplicated(store, shape)
        started = time.perf_counter()
        scores = score_patches(store, "v", ScoreParams(device="cpu")).manifest
        kept = keep_informative(store, "v", FilterParams()).manifest
        seconds += time.perf_counter() - started
        assert _num_rows(store, scores, "") == num_exemplars
        assert kept.counts["patches"] == _num_rows(store, kept, "") <= num_exemplars
        shutil.rmtree(root)
        num_scored += num_exemplars
        number += 1
    return seconds, num_scored


def measure(is_quick: bool = False) -> list[Measured]:
    shape = QUICK_SHAPE if is_quick else SHAPE
    num_datasets = QUICK_NUM_DATASETS if is_quick else NUM_DATASETS
    os.environ[environment.WORKERS.name] = str(NUM_WORKERS)
    seconds = dict.fromkeys(("volumes", "raw patches", "deduplicated"), 0.0)
    num_done = num_exemplars = num_stored = num_read = num_written = 0
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as base,
        ProcessPoolExecutor(1, get_context("spawn")) as writer,
    ):
        folder = Path(base)

        def write(root: str, number: int, of_shape: tuple[int, int, int] = shape) -> None:
            writer.submit(write_dataset, root, of_shape, number).result()

        write(str(folder / "warm"), 0, QUICK_SHAPE)  # the first dataset pays for imports and compilation
        to_deduplicated(open_store(str(folder / "warm")), QUICK_SHAPE)
        shutil.rmtree(folder / "warm")
        while num_done < num_datasets and time.monotonic() - began < LIMIT_SECONDS:
            root = str(folder / f"d{num_done}")
            write(root, num_done)
            before = read_proc("io")
            store = open_store(root)
            found, exemplars = to_deduplicated(store, shape)
            after = read_proc("io")
            num_read += after["rchar"] - before["rchar"]
            num_written += after["wchar"] - before["wchar"]
            num_stored += sum(item.num_bytes for item in store.walk("cem"))
            num_exemplars += exemplars
            seconds = {stage: seconds[stage] + found[stage] for stage in seconds}
            shutil.rmtree(root)
            num_done += 1
        peak = read_proc("status")["VmHWM"] / 1024
        scored = (QUICK_SCORED_SHAPE, QUICK_NUM_SCORED) if is_quick else (SHAPE, NUM_SCORED)
        scoring, num_scored = score_some(folder, write, *scored)
        peak_scoring = read_proc("status")["VmHWM"] / 1024
    num_bytes = num_done * math.prod(shape)
    together = sum(seconds.values())
    filtering = scoring / num_scored * num_exemplars
    done = f"{num_done} datasets of {math.prod(shape) / 2**20:.0f} MiB, one after another, {NUM_WORKERS} workers, on disk"
    if num_done < num_datasets:
        gib, minutes = math.prod(shape) / 2**30, together * num_datasets / num_done / 60
        done = (
            f"{num_done * gib:.1f} of {num_datasets * gib:.1f} GiB done within {LIMIT_SECONDS / 60:.0f} minutes; "
            f"all would take {minutes:.0f} (extrapolated); {done}"
        )
    share = ", ".join(f"{stage} {spent / together:.0%}" for stage, spent in seconds.items())

    def rate(work: str, spent: float, note: str) -> Measured:
        return Measured(work, "GB/h", num_bytes / 1e9 / spent * 3600, 0, "-", 0, note)

    told = f"extrapolated from {num_scored:,} patches at {num_scored / scoring:.0f} patches/s on the CPU"
    return [
        rate("chain, source to volumes", seconds["volumes"], done),
        rate("chain, volumes to raw patches", seconds["raw patches"], f"{num_raw_patches(shape) * num_done:,} patches"),
        rate("chain, raw to deduplicated patches", seconds["deduplicated"], f"{num_exemplars:,} exemplars"),
        rate("chain, source to deduplicated patches", together, f"{together:.0f} s: {share}"),
        rate("chain, deduplicated to filtered patches", filtering, told),
        rate("chain, source to filtered patches", together + filtering, f"its filter {told}"),
        Measured(
            "chain to deduplicated, peak memory of the process",
            "MiB",
            peak,
            0,
            "-",
            0,
            f"same run; {peak_scoring:.0f} with the filter (torch)",
        ),
        Measured(
            "chain to deduplicated, bytes written per byte of the source",
            "B/B",
            num_written / num_bytes,
            0,
            "-",
            0,
            f"by system calls; {num_read / num_bytes:.2f} read; {num_stored / num_bytes:.2f} stay in the store",
        ),
    ]
