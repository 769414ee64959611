"""Pretraining from shards on a local disk: images/s of the whole pipeline, and what limits it.

Three things are measured in turn in one run: (1) the real loop, `cem_assets.pretraining.training.loop.train`, fed by
`cem_assets.pixels.reader` with its cache on disk; (2) the same step, augmentation included, on a random batch that is already
on the device, of which the loop should reach 90 %; (3) the same step fed by `perf.per_image_pipeline`: PIL images one at a
time, in as many worker processes as there are cores. On a GPU with 16 cores the loop should be 5 times as fast. The shards
(phantom patches, at most 35 MB) are written to a temporary folder and are in the page cache when they are read.

    python -m perf.training --method swav --seconds 60 --out swav.json

This needs torch 2.11 or newer, but neither Dagster nor MLflow. Size `full` should end within 8 minutes on one GPU, compiling
included; size `small` is for a CPU, where the step itself is the limit. On a CPU that others use too, set
OMP_WAIT_POLICY=passive: threads that wait for each other actively make everything several times slower there.
"""

import argparse
import contextlib
import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cem_assets.cem.phantom import em_phantom
from cem_assets.encoders import pick_device
from cem_assets.pixels.batch import Batch
from cem_assets.pixels.image_cells import SIDE_PX
from cem_assets.pixels.reader import BatchStream, TrainingSource
from cem_assets.pretraining.data.epochs import epoch_order, share
from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.methods.params import MethodParams, params_for
from cem_assets.pretraining.methods.registry import build_method
from cem_assets.pretraining.training.loop import LoopSettings, train
from cem_assets.pretraining.views.augmentations import SUPERVISED, AugmentationParams, BatchAugmentation
from cem_assets.store.images import image_column
from cem_assets.store.parquet import IMAGE_ROW_GROUP, parquet_bytes, schema_of
from cem_assets.store.store import open_store
from perf.machine import about_training, num_cores
from perf.per_image_pipeline import CellsOfShards, PerImageViews, per_image_loader
from perf.step_profile import Step, bound_by, profiled, take_apart, wait_for
from perf.timing import Measured

METHODS = ("moco", "swav", "supervised")
SIDES = ("whole pipeline", "resident batch", "per image", "views alone", "views alone, per image")
COMPARED = (
    ("whole pipeline", "resident batch"),
    ("whole pipeline", "per image"),
    ("views alone", "views alone, per image"),
)
GOAL_RESIDENT, GOAL_PER_IMAGE = 0.9, 5.0
NUM_CLASSES = 894
"""Of CytoImageNet."""

_WARM_UP_STEPS = 2
_STEPS_OF_EPOCH = 4096
_NUM_SAMPLES = {"full": 500_000, "small": 4096, "quick": 4096, "tiny": 512}
"""Number of patches that the method is built for; it decides only the length of queues."""
_NUM_PATCHES = {"full": 1024, "small": 256, "quick": 64, "tiny": 64}
_NUM_TURNS = {"full": 3, "small": 5, "quick": 1, "tiny": 1}
_VIEWS = {
    "small": {"moco": ((2, 64, (0.2, 1.0)),), "swav": ((2, 64, (0.14, 1.0)), (6, 32, (0.05, 0.14))),
              "supervised": ((1, 64, (1.0, 1.0)),)},
    "tiny": {"moco": ((2, 32, (0.2, 1.0)),), "swav": ((2, 32, (0.14, 1.0)), (6, 16, (0.05, 0.14))),
             "supervised": ((1, 32, (1.0, 1.0)),)},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A method, its parameters, and the size of the measurement."""

    method: str
    size: str
    arch: str
    params: MethodParams
    augmentation: AugmentationParams

    def build(self) -> Method:
        num_classes = NUM_CLASSES if self.method == "supervised" else 0
        return build_method(self.params, self.arch, _NUM_SAMPLES[self.size], num_classes)

    def make_views(self) -> BatchAugmentation:
        return BatchAugmentation(self.params.crops, self.augmentation, self.params.mean, self.params.std)

    def make_views_per_image(self) -> PerImageViews:
        return PerImageViews(self.params.crops, self.augmentation, self.params.mean, self.params.std)


def case_of(method: str, size: str) -> Case:
    """Return a case: `full` is the preset for one large GPU, `small` has batches of 32 of 64 px for a CPU, `quick` has batches
    of 16 of 32 px to see that it runs, and `tiny` is for a test."""
    # As in later epochs: SwAV's queue is in use, and its prototypes are trained.
    running: dict[str, Any] = {"queue_start_epoch": 0, "freeze_iterations": 0} if method == "swav" else {}
    arch = "resnet18"
    if size == "full":
        params = params_for(method, "single_gpu", **running)
        arch = "efficientnet_b0" if method == "supervised" else "resnet50"
    else:
        crops = tuple(
            {"num": num, "size_px": side, "scale": scale}
            for num, side, scale in _VIEWS["small" if size == "small" else "tiny"][method]
        )
        running |= {"crops": crops, "batch_size": {"tiny": 8, "quick": 16, "small": 32}[size]}
        params = params_for(method, "smoke", **running)
    return Case(method, size, arch, params, SUPERVISED if method == "supervised" else AugmentationParams())


@dataclass(frozen=True)
class Input:
    """Shards of two datasets, opened both ways, and the rows of a long epoch in batches."""

    source: TrainingSource
    cells: CellsOfShards
    batches: list[NDArray[np.int64]]
    num_bytes: int

    def rows(self) -> list[int]:
        return np.concatenate(self.batches).tolist()


def write_shards(root: Path, num_patches: int) -> list[Path]:
    """Write two shards of phantom patches as cem/filtered_patches does, without the columns that are not read here."""
    depth = num_patches // 16
    voxels = em_phantom((depth, 448, 448), 4).voxels
    places = np.random.default_rng(0).integers(0, (depth, 224, 224), (2, num_patches // 2, 3))
    schema = schema_of(("dataset", pa.string()), ("image", image_column([], []).type))
    shards = []
    for number, corners in enumerate(places.tolist()):
        images = [voxels[z, y : y + SIDE_PX, x : x + SIDE_PX] for z, y, x in corners]
        column = image_column([str(n) for n in range(len(images))], images)
        table = pa.table([pa.array([f"dataset{number}"] * len(images)), column], schema=schema)
        shards.append(root / f"part-{number:05d}.parquet")
        shards[-1].write_bytes(parquet_bytes([table], schema, IMAGE_ROW_GROUP))
    return shards


def make_input(root: Path, case: Case) -> Input:
    shards = write_shards(root, _NUM_PATCHES[case.size])
    source = TrainingSource.open(open_store(str(root)), [shard.name for shard in shards], root / "cache")
    params, sizes = case.params, source.class_sizes()
    num_draws = -(-_STEPS_OF_EPOCH * params.batch_size // source.num_rows)
    order = np.concatenate([epoch_order(sizes, params.weight_gamma, params.seed, draw) for draw in range(num_draws)])
    batches = share(order, batch_size=params.batch_size)
    return Input(source, CellsOfShards(shards, case.make_views_per_image()), batches, sum(s.stat().st_size for s in shards))


class Stopwatch:
    """Times the steps that `train` reports, beginning after the warm-up, and the waits for their batches."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.waited = 0.0
        self.marks: list[tuple[float, int, float]] = []

    def progress(self, step: int, _: int) -> None:
        if step >= _WARM_UP_STEPS:
            self.marks.append((time.perf_counter(), step, self.waited))

    def should_stop(self) -> bool:
        return bool(self.marks) and time.perf_counter() - self.marks[0][0] >= self.seconds

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        with contextlib.closing(iter(batches)) as stream:
            while True:
                started = time.perf_counter()
                batch = next(stream, None)
                self.waited += time.perf_counter() - started
                if batch is None:
                    return
                yield batch


def run_loop(
    case: Case, method: Method, data: Input, device: torch.device, seconds: float, compile_backend: str | None
) -> tuple[float, float]:
    """Run the real loop; return images/s and the share of the time that it waited for batches."""
    watch = Stopwatch(seconds)
    epochs = train(
        method,
        lambda epoch, start: watch.watched(BatchStream(data.source, data.batches[start:], start)),
        lambda epoch: len(data.batches),
        case.make_views(),
        device,
        settings=LoopSettings(compile_backend=compile_backend),
        progress=watch.progress,
        should_stop=watch.should_stop,
    )
    for _ in epochs:  # usually the time is over before an epoch ends
        pass
    # All marks are made at the same place of a step, so the device lags behind equally at each of them.
    (began, first, waited_before), (ended, last, waited) = watch.marks[0], watch.marks[-1]
    return (last - first) * case.params.batch_size / (ended - began), (waited - waited_before) / (ended - began)


def run_steps(make: Callable[[], None], batch_size: int, seconds: float, device: torch.device, at_once: int) -> float:
    """Time a function that makes a step, after a warm-up and `at_once` times between looks at the clock; return images/s."""
    for _ in range(max(at_once, _WARM_UP_STEPS)):
        make()
    wait_for(device)
    started, num = time.perf_counter(), 0
    while num == 0 or time.perf_counter() - started < seconds:
        for _ in range(at_once):
            make()
        wait_for(device)
        num += at_once
    return num * batch_size / (time.perf_counter() - started)


def run_resident(case: Case, step: Step, device: torch.device, seconds: float) -> float:
    """Augment and train on one random batch that is already on the device; return images/s."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (case.params.batch_size, SIDE_PX, SIDE_PX), generator=generator, dtype=torch.uint8).to(device)
    labels = torch.randint(2, (case.params.batch_size,), generator=generator).to(device)
    augmentation = case.make_views()

    def make() -> None:
        with torch.no_grad():
            views = augmentation(images, step.number)
        step(views, labels)

    return run_steps(make, case.params.batch_size, seconds, device, 16 if device.type == "cuda" else 1)


def run_per_image(case: Case, step: Step | None, data: Input, device: torch.device, seconds: float) -> float:
    """Train on views that processes make of one image at a time; return images/s. Without a step, only take the views."""
    num_workers, is_cuda = num_cores(), device.type == "cuda"
    stream = iter(per_image_loader(data.cells, data.rows(), case.params.batch_size, num_workers, is_pinned=is_cuda))

    def make() -> None:
        views, labels = next(stream)
        if step is not None:
            step([view.to(device, non_blocking=True) for view in views], labels.to(device, non_blocking=True))

    # Every worker makes one batch at a time, so batches come in bursts; only whole bursts are timed.
    return run_steps(make, case.params.batch_size, seconds, device, num_workers)


def run_views(case: Case, data: Input, device: torch.device, seconds: float) -> float:
    """Read and augment without training; return images/s."""
    augmentation = case.make_views()
    with contextlib.closing(iter(BatchStream(data.source, data.batches))) as stream:

        def make() -> None:
            augmentation(torch.from_numpy(next(stream).images).to(device), 0)

        return run_steps(make, case.params.batch_size, seconds, device, 8)


def peak_memory(device: torch.device) -> dict[str, int]:
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"device_allocated_bytes": allocated, "device_reserved_bytes": reserved}
    return {"process_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def run_case(
    case: Case,
    device: torch.device,
    seconds: float,
    num_turns: int | None = None,
    *,
    is_compiled: bool = False,
    is_profiled: bool = True,
) -> dict[str, Any]:
    """Measure a method, all sides in turn. Each side gets `seconds` over all turns."""
    num_turns = num_turns or _NUM_TURNS[case.size]
    turn = seconds / num_turns
    turns: dict[str, list[float]] = {name: [] for name in SIDES}
    waits = []
    with tempfile.TemporaryDirectory() as folder, _fastest_convolutions(device):
        data = make_input(Path(folder), case)
        started = time.perf_counter()
        data.source.fill_cache()
        first_pass = data.source.num_rows / (time.perf_counter() - started)
        method, step, memory = case.build(), None, {}
        for number in range(num_turns):
            # Networks stay compiled, so `Step` uses the compiled ones as well.
            backend = "inductor" if is_compiled and number == 0 else None
            speed, waited = run_loop(case, method, data, device, turn, backend)
            turns["whole pipeline"].append(speed)
            waits.append(waited)
            if step is None:
                memory = peak_memory(device)  # before the other sides allocate memory
                step = Step(method, device)
            turns["resident batch"].append(run_resident(case, step, device, turn))
            turns["per image"].append(run_per_image(case, step, data, device, turn))
            turns["views alone"].append(run_views(case, data, device, turn / 4))
            turns["views alone, per image"].append(run_per_image(case, None, data, device, turn / 4))
            gc.collect()  # so that the worker processes end
        assert step is not None
        best = {name: max(found) for name, found in turns.items()}
        waiting = float(np.median(waits))
        report = {
            "method": case.method,
            "size": case.size,
            "arch": case.arch,
            "params": case.params.model_dump(mode="json"),
            "is_compiled": is_compiled,
            "is_measured_on_gpu": device.type == "cuda",
            "num_workers_per_image": num_cores(),
            "input_bytes": data.num_bytes,
            "images_per_second": best,
            "turns": turns,
            "ratios": {f"{ours} / {peer}": median_ratio(turns[ours], turns[peer]) for ours, peer in COMPARED},
            "goals": {"whole pipeline / resident batch": GOAL_RESIDENT, "whole pipeline / per image": GOAL_PER_IMAGE},
            "first_pass_images_per_second": first_pass,
            "peak_memory": memory,
            "reading_wait_share": waiting,
        }
        if is_profiled:
            step_ms = 1000 * case.params.batch_size / best["whole pipeline"]
            report |= taken_apart(case, step, data, device, waiting, step_ms)
    return report


def median_ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """Compare within turns, because other work on the machine slows both sides of a turn alike."""
    return float(np.median(np.array(ours) / np.array(peer)))


def taken_apart(case: Case, step: Step, data: Input, device: torch.device, waiting: float, step_ms: float) -> dict[str, Any]:
    """Say where the time of a step goes, and what limits it."""
    num_steps = 16 if device.type == "cuda" else 3
    section_ms = take_apart(step, BatchStream(data.source, data.batches), case.make_views(), num_steps, device)
    table, busy_ms = profiled(step, BatchStream(data.source, data.batches), case.make_views(), 3, device)
    busy = busy_ms / step_ms if device.type == "cuda" else None
    return {
        "step_ms": step_ms,
        "section_ms": section_ms,
        "device_busy_share": busy,
        "bound_by": bound_by(waiting, busy, section_ms),
        "profile": table,
    }


@contextlib.contextmanager
def _fastest_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose its fastest algorithms for every side, as the loop does."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def measure(is_quick: bool = False) -> list[Measured]:
    """Measure the small cases on the CPU, for the table of all benchmarks."""
    rows = []
    size, seconds, num_turns = ("quick", 0.2, 1) if is_quick else ("small", 8.0, 2)
    for method in METHODS:
        case = case_of(method, size)
        side = max(spec.size_px for spec in case.params.crops)
        found = run_case(case, torch.device("cpu"), seconds, num_turns, is_profiled=False)
        speed = found["images_per_second"]
        views, views_per_image = speed["views alone"], speed["views alone, per image"]
        what, beside = f"training, {method}, {side} px on the CPU", f"PIL + DataLoader, {num_cores()} processes"
        rows += [
            Measured(what, "images/s", speed["whole pipeline"], speed["resident batch"], "the step alone", GOAL_RESIDENT),
            Measured(what, "images/s", speed["whole pipeline"], speed["per image"], beside, 0),
            Measured(f"views for {method}, no training", "images/s", views, views_per_image, beside, 0),
        ]
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m perf.training", description="Speed of pretraining on this machine.")
    parser.add_argument("--method", choices=METHODS, default="moco")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=tuple(_NUM_PATCHES), help="full on a GPU, small on a CPU unless told")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each side, over all turns")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--out", type=Path, help="JSON with everything, the profile included")
    chosen = parser.parse_args(arguments)
    device = pick_device(chosen.device)
    size = chosen.size or ("full" if device.type == "cuda" else "small")
    found = run_case(case_of(chosen.method, size), device, chosen.seconds, is_compiled=chosen.compile)
    command = " ".join(["python -m perf.training", *(sys.argv[1:] if arguments is None else arguments)])
    about = {"command": command, "when": datetime.now(UTC).isoformat(timespec="seconds"), **about_training(device)}
    report = {**about, **found}
    if chosen.out:
        chosen.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k not in {"params", "profile"}}, indent=1), report["profile"])
    return report


if __name__ == "__main__":
    main()
