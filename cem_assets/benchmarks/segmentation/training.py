"""The loop that trains a segmentation network. It is a generator of results, independent of runs, tracking and stores.

A sampler such as `cem_assets.benchmarks.segmentation.augmentation.CropSampler` makes the batch of each step,
`cem_assets.benchmarks.segmentation.model` makes the network, and a `CheckpointStore` keeps the state.

**Resuming.** A checkpoint holds the network, the optimiser, the number of steps, the loss since the last result and the results
so far. It holds no states of random generators, because they are seeded anew in every step. On a CPU, with the same torch build
and number of threads, a resumed run equals an uninterrupted one bit by bit. On a GPU cuDNN adds in a varying order, unless the
caller sets torch to deterministic algorithms.

Source: `finetune.py` and `train_utils.py` of volume-em/cem-dataset: AdamW on all trained parameters, one cycle of the learning
rate and of the first momentum, binary or weighted cross-entropy.
"""

import contextlib
import io
import logging
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cem_assets.benchmarks.segmentation.augmentation import CropBatch
from cem_assets.benchmarks.segmentation.params import TEST_FIELDS, SegmentationParams
from cem_assets.errors import DataError
from cem_assets.pretraining.training.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the format of these checkpoints; files with another number are refused."""
MAX_BYTES = 4 << 30
"""Largest checkpoint that is read; that of a completely trained U-Net over a ResNet50 takes about 0.4 GiB."""
_CONTENTS = ("format", "params", "step", "loss_sum", "loss_count", "results", "state", "optimizer")
_GPU_SYNC_STEPS = 16


@dataclass(frozen=True)
class SegmentationResult:
    """The state of a training after some steps.

    Attributes:
        step: Number of optimiser steps so far.
        loss: Mean loss since the previous result.
        learning_rate: Learning rate of the last step.
        iou: IoU by class number, NaN for an empty class; empty if there was no evaluation.
    """

    step: int
    loss: float
    learning_rate: float
    iou: dict[int, float]


class Sampler(Protocol):
    """Makes the batch of any step; the same step always gives the same batch."""

    def __call__(self, step: int) -> CropBatch:
        """Return normalised images, float32 (n, 1, h, w), and masks, uint8 (n, h, w); steps are counted from 0."""
        ...


def one_cycle(step: int, iters: int, peak: float) -> tuple[float, float]:
    """Return the learning rate and the first momentum of a step; steps are counted from 0.

    The rate rises from peak / 25 to the peak during the first 30 % of all `iters` steps, and falls to peak / 250,000, both
    along half a cosine. The momentum falls from 0.95 to 0.85 and rises again.

    Source: the defaults of torch.optim.lr_scheduler.OneCycleLR, as a pure function, so a resumed run needs no state for it.
    """
    top, last = 0.3 * iters - 1, iters - 1

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    lowest = peak / 25 / 1e4
    if step <= top:
        return between(peak / 25, peak, step / top), between(0.95, 0.85, step / top)
    share = (step - top) / (last - top)
    return between(peak, lowest, share), between(0.85, 0.95, share)


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor, params: SegmentationParams) -> torch.Tensor:
    """Compute the loss of logits.

    Args:
        logits: float (n, num_classes, h, w).
        masks: uint8 (n, h, w), class numbers.

    Returns:
        float32 (): binary cross-entropy for one class, or else the mean cross-entropy, weighted by the class of each pixel.
    """
    if params.num_classes == 1:
        return functional.binary_cross_entropy_with_logits(logits.float().squeeze(1), masks.float())
    weight = torch.tensor(params.class_weights, device=logits.device) if params.class_weights else None
    loss = functional.cross_entropy(logits.float(), masks.long(), weight, reduction="none")
    # This is the mean of cross_entropy, except that it is 0 instead of undefined if no pixel of the batch has a weight.
    total = torch.full_like(loss[0, 0, 0], loss.numel()) if weight is None else weight[masks.long()].sum()
    return loss.sum() / total.clamp_min(torch.finfo(torch.float32).tiny)


def train_segmentation(
    model: nn.Module,
    sampler: Sampler,
    params: SegmentationParams,
    device: torch.device,
    checkpoint: CheckpointStore | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    evaluate_every: int | None = None,
    evaluate: Callable[[nn.Module], Mapping[int, float]] | None = None,
    checkpoint_interval_s: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[SegmentationResult]:
    """Train a model in place, and continue from the newest checkpoint if there is one.

    A result is yielded every `evaluate_every` steps and after the last step, once its checkpoint is saved. If the checkpoint is
    that of a finished run, nothing is yielded, and the model gets the weights of the checkpoint. `results_of` returns the
    results of earlier calls.

    Args:
        model: The network, such as one of `cem_assets.benchmarks.segmentation.model.build_unet`; it is moved to the device.
        checkpoint: Keeps the state; None keeps nothing.
        progress: Called with the number of steps so far, and of all steps.
        should_stop: Called after every step on a CPU and after every 16 steps on a GPU. When it returns True, the state is
            saved and the generator ends.
        evaluate_every: Number of steps between two results; None for one result at the end.
        evaluate: Called with the model in evaluation mode; returns the IoU by class.
        checkpoint_interval_s: The state is saved with every result, and besides at least this often.
        clock: Returns a time in seconds, for the interval.

    Raises:
        DataError: The checkpoint is damaged or of another run, where the error says what differs. Or the loss or a weight is
            not finite; then the error names the step, and the last good checkpoint is kept.
    """
    if evaluate_every is not None and evaluate_every < 1:
        raise ValueError(f"evaluate_every is {evaluate_every}; expected at least 1, or None for one result at the end.")
    run = _Run(model, params, device, checkpoint, clock)
    run.resume()
    is_stopping = False
    while run.step < params.iters and not is_stopping:
        every = evaluate_every or params.iters
        end = min(params.iters, (run.step // every + 1) * every)
        model.train()
        while run.step < end and not is_stopping:
            run.train_step(sampler)
            if run.step % run.sync_steps and run.step < end:
                continue
            run.check_loss()
            if progress is not None:
                progress(run.step, params.iters)
            is_stopping = should_stop is not None and should_stop()
            if run.step < end and (is_stopping or clock() - run.saved_at >= checkpoint_interval_s):
                run.save()
        if run.step == end:
            yield run.finish(evaluate)


class _Run:
    """One call of `train_segmentation`."""

    def __init__(
        self,
        model: nn.Module,
        params: SegmentationParams,
        device: torch.device,
        checkpoint: CheckpointStore | None,
        clock: Callable[[], float],
    ) -> None:
        self.model = model
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params = params
        self.device = device
        self.checkpoint = checkpoint
        self.clock = clock
        self.sync_steps = _GPU_SYNC_STEPS if device.type == "cuda" else 1
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=params.lr, weight_decay=params.weight_decay)
        self.step = self.loss_count = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.results: list[SegmentationResult] = []
        self.saved_step: int | None = None
        self.saved_at = clock()

    def resume(self) -> None:
        data = self.checkpoint.load() if self.checkpoint is not None else None
        if data is None:
            return
        content = restore_model(self.model, data, self.params)
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.loss_count = content["step"], content["loss_count"]
        self.loss_sum = content["loss_sum"].to(self.device)
        self.results = _results(content)
        self.saved_step = self.step
        logger.info("resumed after step %d of %d", self.step, self.params.iters)

    def train_step(self, sampler: Sampler) -> None:
        images, masks = (_to_device(array, self.device) for array in sampler(self.step))
        rate, momentum = one_cycle(self.step, self.params.iters, self.params.lr)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, group["betas"][1])
        with _seeded(self.params.seed, self.step, self.device):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.dtype == "bfloat16"):
                logits = self.model(images.contiguous(memory_format=torch.channels_last))
            loss = segmentation_loss(logits, masks, self.params)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        value = loss.detach().double()
        self.bad_step = torch.where((self.bad_step < 0) & ~torch.isfinite(value), self.step, self.bad_step)
        self.loss_sum = self.loss_sum + value
        self.step, self.loss_count = self.step + 1, self.loss_count + 1

    def check_loss(self) -> None:
        bad = int(self.bad_step)
        if bad >= 0:
            raise DataError(f"the loss of step {bad + 1} is not finite. {self.remedy()}")

    def remedy(self) -> str:
        kept = "no checkpoint was kept yet" if self.saved_step is None else f"the checkpoint of step {self.saved_step} was kept"
        return f"Training stopped; {kept}. Check the images for wrong values, or train again with a lower learning rate (`lr`)."

    def save(self) -> None:
        """Save the state, after checking that all weights are finite."""
        kept = [*self.model.state_dict().values(), *_tensors(self.optimizer.state_dict()["state"])]
        floating = [tensor for tensor in kept if tensor.is_floating_point()]
        if not bool(torch.stack([torch.isfinite(tensor).all().to(self.device) for tensor in floating]).all()):
            raise DataError(f"weights are not finite after step {self.step}. {self.remedy()}")
        if self.checkpoint is not None:
            content = {
                "format": FORMAT,
                "params": self.params.model_dump(mode="json"),
                "step": self.step,
                "loss_sum": self.loss_sum.cpu(),
                "loss_count": self.loss_count,
                "results": [asdict(result) for result in self.results],
                "state": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            sink = io.BytesIO()
            torch.save(content, sink)
            self.checkpoint.save(sink.getvalue())
            self.saved_step = self.step
        self.saved_at = self.clock()

    def finish(self, evaluate: Callable[[nn.Module], Mapping[int, float]] | None) -> SegmentationResult:
        iou: dict[int, float] = {}
        if evaluate is not None:
            self.model.eval()
            iou = {int(number): float(value) for number, value in evaluate(self.model).items()}
        rate, _ = one_cycle(self.step - 1, self.params.iters, self.params.lr)
        result = SegmentationResult(self.step, float(self.loss_sum) / max(1, self.loss_count), rate, iou)
        self.results.append(result)
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        self.save()
        return result


def restore_model(model: nn.Module, data: bytes, params: SegmentationParams) -> dict[str, Any]:
    """Load the weights of a network from a checkpoint, to continue the training or to test it.

    Args:
        model: A network of the same architecture, which is changed in place.
        data: The bytes that a `CheckpointStore` holds.
        params: The parameters of the run; the `TEST_FIELDS` may differ.

    Returns:
        The whole content of the checkpoint; `step` is the number of steps so far.

    Raises:
        DataError: The checkpoint is damaged or of another run; the error says what differs.
    """
    content = _decode(data)
    mine = params.model_dump(mode="json")
    problems = [
        f"{name} is {content['params'].get(name)!r}, expected {value!r}"
        for name, value in mine.items()
        if name not in TEST_FIELDS and content["params"].get(name) != value
    ]
    if not problems:
        try:
            model.load_state_dict(content["state"])
        except RuntimeError as error:
            problems.append(str(error).replace("\n", " ")[:500])
    if problems:
        raise DataError(
            f"the checkpoint is of another run: {'; '.join(problems)}. Continue with that run's parameters, or start a new run."
        )
    return content


def results_of(data: bytes) -> list[SegmentationResult]:
    """Return all results of the run of a checkpoint, including those of earlier calls."""
    return _results(_decode(data))


def _results(content: Mapping[str, Any]) -> list[SegmentationResult]:
    return [SegmentationResult(**result) for result in content["results"]]


def _decode(data: bytes) -> dict[str, Any]:
    remedy = "Start a new run, or copy the checkpoint again from its source."
    if len(data) > MAX_BYTES:
        raise DataError(f"the checkpoint has {len(data):,} bytes; expected at most {MAX_BYTES:,}. {remedy}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # compressed records could grow without limit
            if sum(record.file_size for record in archive.infolist()) > len(data):
                raise DataError("its records are larger than the file")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"the checkpoint cannot be read: {reason}. {remedy}") from error
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or any(name not in content for name in _CONTENTS)
        or not isinstance(content["params"], dict)
    ):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"the checkpoint holds {found}; expected format {FORMAT} with {', '.join(_CONTENTS)}. {remedy}")
    return content


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _to_device(array: Any, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextlib.contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed random layers of the network, such as dropout, by the step, and restore the process's random generators."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence((seed, 2, step)).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield
