"""The pretraining loop: a generator of epoch results that knows nothing of Dagster, MLflow and stores.

A stream brings the batches (`cem_assets.pretraining.data.epochs` orders the rows, `cem_assets.pixels.reader` reads their
pixels). They become views on the device, and a method of `cem_assets.pretraining.methods.registry` learns from them. The state
goes to a `checkpoints.CheckpointStore`. Several processes run the same loop after joining with `distributed.process_group`.

**Resuming.** A checkpoint holds the whole state of the method (with its queues) and of the optimiser, the epoch and the number
of its batches that are done, the sums from which the epoch's means are computed, and the results of earlier epochs. It holds
no states of random generators, because none outlives a step: augmentation and dropout get a new seed in every step, from the
run's seed and the step's number (and the rank, for dropout). Other code that draws random numbers in the process therefore
does not change a run, and on the CPU a resumed run equals the uninterrupted one bit by bit. Every rank holds the same state
after a step, so the checkpoint of the first rank serves all of them, also with another number of processes.

**Determinism.** Runs are equal bit by bit on one type of device, with one build of torch and one number of threads, because
sums are split among threads. On a GPU, cuDNN's weight gradients and torch's scatter and index kernels add numbers in a varying
order, and the fastest convolution is chosen by timing, so two runs drift apart as if they had two seeds.
`torch.use_deterministic_algorithms(True)` with `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment makes a GPU run
repeatable, but slower. Both are settings of the whole process, so the caller makes them; the loop then does not choose
convolutions by timing.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cem_assets.errors import DataError
from cem_assets.pixels.batch import Batch
from cem_assets.pretraining import distributed
from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.methods.schedules import learning_rate
from cem_assets.pretraining.training.checkpoints import (
    FORMAT,
    CheckpointStore,
    EpochResult,
    Progress,
    encode_state,
    identity,
    read_checkpoint,
    restore_method,
    results_of,
)

__all__ = ["Augmentation", "EpochResult", "LoopSettings", "StreamOfEpoch", "train"]

logger = logging.getLogger(__name__)

_GPU_SYNC_STEPS = 16


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop that do not change what is learned.

    Attributes:
        checkpoint_interval_s: Time after which the state is saved at the next exchange; it is also saved at the end of every
            epoch.
        sync_steps: Number of steps after which the loop waits for the device, and the processes tell each other whether to
            stop. None means 1 on the CPU and 16 on a GPU, whose queue of work should not run empty.
        compile_backend: Backend of torch.compile for the networks, such as "inductor"; None does not compile them.
    """

    checkpoint_interval_s: float = 600.0
    sync_steps: int | None = None
    compile_backend: str | None = None

    def __post_init__(self) -> None:
        if not self.checkpoint_interval_s >= 0 or (self.sync_steps is not None and self.sync_steps < 1):
            raise ValueError(
                f"checkpoint_interval_s is {self.checkpoint_interval_s} and sync_steps {self.sync_steps}; "
                "expected at least 0 and 1."
            )


class Augmentation(Protocol):
    """Makes views of a batch, as `cem_assets.pretraining.views.augmentations.BatchAugmentation` does."""

    def __call__(
        self, images: torch.Tensor, generator_seed: int, first: int = 0, num_all: int | None = None
    ) -> list[torch.Tensor]:
        """Turn uint8 (n, h, w) into views; the images are those from `first` on of a batch of `num_all`."""
        ...


class StreamOfEpoch(Protocol):
    """Opens the stream of this process's batches of an epoch, from a batch on."""

    def __call__(self, epoch: int, start_batch: int) -> Iterable[Batch]:
        """Return the batches from number `start_batch` on; epochs and batches are counted from 0."""
        ...


def train(
    method: Method,
    stream_of_epoch: StreamOfEpoch,
    num_batches: Callable[[int], int],
    augmentation: Augmentation,
    device: torch.device,
    checkpoint: CheckpointStore | None = None,
    settings: LoopSettings | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    should_stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[EpochResult]:
    """Train a method in place, from its newest checkpoint where there is one; each value of the generator is an epoch.

    A value comes after the checkpoint of its epoch is saved. A finished run yields nothing; it continues when its parameters
    ask for more epochs, with the schedules of the longer run.

    Args:
        method: A method of `registry.build_method`, whose `params` determine what is learned. It is moved to the device.
        stream_of_epoch: Opens the batches of this process. A stream that has a `close` is closed at the end of the epoch.
        num_batches: Number of batches of an epoch (counted from 0), the same on every process. The learning rate takes the
            number of the first epoch as the length of all.
        augmentation: Makes views on the device.
        checkpoint: Keeps the state; None keeps none. Only the first process uses it.
        settings: None takes the defaults.
        progress: Called at every exchange with the steps done and the steps of the whole run.
        evaluate: Called on every process at the end of an epoch with its number (1 for the first); the numbers that it returns
            become part of the result. It may put the method into evaluation mode.
        should_stop: Called at every exchange; once it returns True on any process, the state is saved and the generator ends.
        clock: Returns seconds, for intervals and speeds.

    Yields:
        The result of every epoch that this call finished.

    Raises:
        DataError: The checkpoint is damaged or belongs to another run, and the text names what differs; or the loss or a
            weight is not finite, and the text names the step. The last good checkpoint is kept.
        RuntimeError: A stream ended early.
    """
    run = _Run(method, num_batches, augmentation, device, checkpoint, settings or LoopSettings(), clock)
    run.resume()
    run.compile()
    while run.state.epoch < method.params.epochs:
        run.start_epoch()
        # The epoch is a call of its own, because its settings of the process must not outlast it across a yield.
        if not run.epoch(stream_of_epoch, progress, should_stop):
            return
        yield run.finish_epoch(evaluate)
        if run.is_stopping:
            return


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        method: Method,
        num_batches: Callable[[int], int],
        augmentation: Augmentation,
        device: torch.device,
        checkpoint: CheckpointStore | None,
        settings: LoopSettings,
        clock: Callable[[], float],
    ) -> None:
        self.method = method
        method.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.augmentation = augmentation
        self.device = device
        self.checkpoint = checkpoint
        self.settings = settings
        self.clock = clock
        self.num_batches = num_batches
        self.steps_per_epoch = num_batches(0)
        if self.steps_per_epoch < 1:
            raise DataError("an epoch has no batch; expected at least one. Lower batch_size, or train on more patches.")
        self.total_steps = sum(num_batches(epoch) for epoch in range(method.params.epochs))
        self.sync_steps = settings.sync_steps or (_GPU_SYNC_STEPS if device.type == "cuda" else 1)
        self.is_fused = True if device.type == "cuda" else None
        self.optimizer = method.build_optimizer(fused=self.is_fused)
        self.trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self.state = Progress()
        self.is_due = self.is_stopping = False
        self.saved_step: int | None = None
        self.saved_at = self.epoch_began = clock()

    def compile(self) -> None:
        if self.settings.compile_backend is None:
            return
        for network in self.method.children():
            if any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
                network.compile(backend=self.settings.compile_backend)  # in place, so the names of weights stay

    def resume(self) -> None:
        loaded = None
        if self.checkpoint is not None:
            data = self.checkpoint.load() if distributed.is_main_process() else None
            loaded = distributed.bytes_from_main(data, self.device)
        if loaded is None:
            distributed.copy_from_main(self.method)
            return
        content = read_checkpoint(loaded)
        restore_method(self.method, content)
        for group in content["optimizer"]["param_groups"]:
            group["fused"] = self.is_fused  # a run may be resumed on another kind of device
        self.optimizer.load_state_dict(content["optimizer"])
        self.state = Progress(
            content["epoch"],
            content["batch"],
            content["step"],
            content["seconds"],
            counts=content["counts"],
            results=results_of(content),
        )
        rank, size, kept = distributed.rank(), distributed.world_size(), content["sums"].to(self.device)
        mine = kept[rank] if len(kept) == size else kept.mean(dim=0)  # the sums of another number of processes are averaged
        self.state.sums = dict(zip(sorted(self.state.counts), mine, strict=True))
        self.saved_step = self.state.step
        logger.info("resumed at epoch %d, batch %d, step %d", self.state.epoch + 1, self.state.batch, self.state.step)

    def save(self) -> None:
        """Check that the state is finite, and save it; every process calls this at the same step."""
        tensors = [*_tensors(self.method.state_dict()), *_tensors(self.optimizer.state_dict()["state"])]
        is_good = [torch.isfinite(tensor).all().to(self.device) for tensor in tensors if tensor.is_floating_point()]
        if not bool(torch.stack(is_good).all()):
            raise DataError(f"weights are not finite after step {self.state.step}. {self.remedy()}")
        sums = torch.empty((distributed.world_size(), 0), dtype=torch.float64)
        if self.state.sums:
            sums = torch.stack(distributed.gather_from_ranks(self.state.stacked()))
        if self.checkpoint is not None and distributed.is_main_process():
            content = {
                "format": FORMAT,
                **identity(self.method),
                "epoch": self.state.epoch,
                "batch": self.state.batch,
                "step": self.state.step,
                "seconds": self.state.seconds + (self.clock() - self.epoch_began if self.state.batch else 0.0),
                "sums": sums,
                "counts": self.state.counts,
                "results": [asdict(result) for result in self.state.results],
                "state": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            self.checkpoint.save(encode_state(content))
        self.saved_step = self.state.step if self.checkpoint is not None else None
        self.saved_at, self.is_due = self.clock(), False

    def remedy(self) -> str:
        kept = "no checkpoint was kept yet" if self.saved_step is None else f"the checkpoint of step {self.saved_step} was kept"
        return (
            f"Training stopped; {kept}. Resume it; if this happens again, train in float32, or start again with a lower "
            "learning rate."
        )

    def start_epoch(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.method.train()
        self.epoch_began = self.clock()

    def epoch(
        self,
        stream_of_epoch: StreamOfEpoch,
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> bool:
        """Train to the end of the epoch; return False if the training was stopped before."""
        state, num = self.state, self.num_batches(self.state.epoch)
        if state.batch >= num:
            return True
        bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        with _closing(stream_of_epoch(state.epoch, state.batch)) as stream, _fastest_convolutions(self.device):
            while state.batch < num:
                batch = next(stream, None)
                if batch is None:
                    raise RuntimeError(
                        f"the stream of epoch {state.epoch + 1} ended after {state.batch} of {num} batches. "
                        "Expected as many as num_batches returns."
                    )
                loss, indicators = self.compute_loss(batch)
                bad_step = torch.where((bad_step < 0) & ~torch.isfinite(loss.detach()), state.step, bad_step)
                is_sync = (state.step + 1) % self.sync_steps == 0 or state.batch + 1 == num
                if is_sync:
                    self.exchange(bad_step, should_stop)
                self.step(loss)
                state.add({"loss": loss, **indicators})
                state.batch, state.step = state.batch + 1, state.step + 1
                if is_sync and progress is not None:
                    progress(state.step, self.total_steps)
                if state.batch < num and (self.is_due or self.is_stopping):
                    self.save()
                if state.batch < num and self.is_stopping:
                    return False
        return True

    def exchange(self, bad_step: torch.Tensor, should_stop: Callable[[], bool] | None) -> None:
        """Agree with the other processes whether all losses are finite, and whether to save the state and to stop."""
        is_due = self.checkpoint is not None and self.clock() - self.saved_at >= self.settings.checkpoint_interval_s
        wanted = [int(is_due and distributed.is_main_process()), int(should_stop is not None and should_stop())]
        flags = torch.cat([bad_step.view(1), torch.tensor(wanted, device=self.device)])
        bad, due, stop = distributed.max_over_ranks(flags).tolist()
        if bad >= 0:
            raise DataError(f"the loss of step {bad + 1} is not finite. {self.remedy()}")
        self.is_due, self.is_stopping = bool(due), bool(stop)

    def compute_loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        params, step, rank = self.method.params, self.state.step, distributed.rank()
        images = _to_device(batch.images, self.device)
        labels = _to_device(batch.labels, self.device) if self.method.num_classes else None
        num, ranks = len(images), distributed.world_size()
        if num * ranks != params.batch_size:
            raise ValueError(
                f"a batch has {num} images on each of {ranks} processes; expected {params.batch_size} over all. "
                "Share out batches of the size that the parameters say."
            )
        with torch.no_grad():
            views = self.augmentation(images, _seed(params.seed, step, 0), rank * num, num * ranks)
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            torch.autocast(self.device.type, torch.bfloat16, enabled=params.dtype == "bfloat16"),
        ):
            torch.manual_seed(_seed(params.seed, step, 1 + rank))
            return self.method.compute_loss(views, labels, step, self.state.epoch)

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(self.trained)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.method.after_step(self.state.step)

    def learning_rate(self) -> float:
        # The step is computed from epoch and batch, because epochs may differ by a batch and schedules must not drift.
        step = self.state.epoch * self.steps_per_epoch + min(self.state.batch, self.steps_per_epoch - 1)
        return learning_rate(self.method.params, step, self.steps_per_epoch)

    def finish_epoch(self, evaluate: Callable[[int], Mapping[str, float]] | None) -> EpochResult:
        state = self.state
        means = state.means()
        seconds = state.seconds + self.clock() - self.epoch_began
        num_images = state.batch * self.method.params.batch_size
        rate = self.optimizer.param_groups[0]["lr"]
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        loss = means.pop("loss")
        if self.is_due and evaluate is not None:  # an evaluation may take long
            self.save()
        indicators = {**means, **({} if evaluate is None else evaluate(state.epoch + 1))}
        speed = num_images / max(seconds, 1e-9)
        result = EpochResult(state.epoch + 1, state.step, loss, rate, speed, seconds, memory, indicators)
        self.state = Progress(epoch=state.epoch + 1, step=state.step, results=[*state.results, result])
        self.save()
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _seed(seed: int, step: int, stream: int) -> int:
    """Derive the seed of one stream of random numbers in one step; it is below 2**63."""
    return int(np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def _closing(source: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
    """Iterate over a stream and close it at the end, so that its threads do not outlive a stopped epoch."""
    stream = iter(source)
    try:
        yield stream
    finally:
        for opened in (stream, source):
            if hasattr(opened, "close"):
                opened.close()


@contextlib.contextmanager
def _fastest_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose its algorithms by timing, unless torch is set to deterministic algorithms."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (device.type == "cuda" and not torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
