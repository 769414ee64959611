"""One training step taken apart: how long each part takes, and which operations take the time.

`Step` is the step of the loop in `cem_assets.pretraining.training.loop` without checks of the loss, sums of indicators and the
schedule. Rates of whole pipelines are measured in `perf.training`.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from cem_assets.pixels.batch import Batch
from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.views.augmentations import BatchAugmentation

_TABLE_ROWS = 15


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work, so that a look at the clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Step:
    """The step of a method on views that are on the device. The method must be on the device already."""

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method = method
        self.device = device
        self.optimizer = method.build_optimizer(fused=True if device.type == "cuda" else None)
        self.number = 0

    def __call__(self, views: list[Tensor], labels: Tensor) -> None:
        loss = self.forward(views, labels)
        self.backward(loss)
        self.update()

    def forward(self, views: list[Tensor], labels: Tensor) -> Tensor:
        is_bfloat16 = self.method.params.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bfloat16):
            return self.method.compute_loss(views, labels if self.method.num_classes else None, self.number, 0)[0]

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.method.after_step(self.number)
        self.number += 1


class Sections:
    """Measures the seconds of named parts, which also appear by name in a profile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with record_function(f"[{name}]"):
            started = time.perf_counter()
            yield
            wait_for(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def take_apart(
    step: Step, batches: Iterable[Batch], augmentation: BatchAugmentation, num_steps: int, device: torch.device
) -> dict[str, float]:
    """Make steps whose parts wait for each other; return the milliseconds that each part takes in a step.

    The sum is longer than a step of the loop, in which the device and the readers work at the same time.
    """
    section = Sections(device)
    for number, batch in enumerate(_timed(batches, section, num_steps)):
        with section("copy to the device"):
            images, labels = (torch.from_numpy(array).to(device) for array in (batch.images, batch.labels))
        with section("augmentation"), torch.no_grad():
            views = augmentation(images, number)
        with section("forward"):
            loss = step.forward(views, labels)
        with section("backward"):
            step.backward(loss)
        with section("optimiser"):
            step.update()
    return {name: 1000 * seconds / num_steps for name, seconds in section.seconds.items()}


def _timed(batches: Iterable[Batch], section: Sections, num: int) -> Iterator[Batch]:
    with contextlib.closing(iter(batches)) as stream:
        next(stream)  # the first batch starts the readers
        wait_for(section.device)
        for _ in range(num):
            with section("reading wait"):
                batch = next(stream)
            yield batch


def profiled(
    step: Step, batches: Iterable[Batch], augmentation: BatchAugmentation, num_steps: int, device: torch.device
) -> tuple[str, float]:
    """Profile some steps; return a table of the top operations and the milliseconds a step in which a GPU computed (else 0)."""
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as made:
        take_apart(step, batches, augmentation, num_steps, device)
    averages = made.key_averages()
    by = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    table = averages.table(sort_by=by, row_limit=_TABLE_ROWS, max_name_column_width=60)
    # Kernels are separate entries of type CUDA. The ranges of our sections appear there too and are left out.
    on_device = [event for event in averages if event.device_type == torch.autograd.DeviceType.CUDA]
    busy_us = sum(event.self_device_time_total for event in on_device if not event.is_user_annotation)
    return table, busy_us / 1000 / num_steps


def bound_by(waiting: float, busy: float | None, section_ms: dict[str, float]) -> str:
    """Say in words what limits the speed of a step."""
    if waiting > 0.1:
        return f"reading: the loop waits for batches {waiting:.0%} of its time"
    if busy is not None and busy < 0.8:
        return f"the CPU that launches kernels: the device computes {busy:.0%} of the time"
    computing = {name: ms for name, ms in section_ms.items() if name not in {"reading wait", "copy to the device"}}
    name, most = max(computing.items(), key=lambda item: item[1])
    return f"computing, most of it {name} ({most / sum(section_ms.values()):.0%} of a step); {waiting:.0%} waits for batches"
