"""Carries out a training plan with the loop of `cem_assets.pretraining.training.loop`.

One process or many run the same function; the first one writes checkpoints, tracks and reports. The result is a finished
checkpoint, from which `cem_assets.pretraining.weights.results` makes weights. `cem_assets.pretraining.assets` starts several
processes with `cem_assets.pretraining.training.worker`.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.errors import DataError, fault_of
from cem_assets.execution.stage import Progress, no_progress
from cem_assets.pretraining.data.release_data import TrainingData, open_training_data
from cem_assets.pretraining.plan import TrainingPlan
from cem_assets.pretraining.training.environment import environment_of
from cem_assets.pretraining.training.figures import curves_png, views_png
from cem_assets.pretraining.training.runs import RunStatus, StoreCheckpoints, stop_watch, withdraw_stop, write_status
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import Metric, RunLink
from cem_assets.tracking.runs import TrackedRun, open_tracked_run

if TYPE_CHECKING:
    import torch

    from cem_assets.pretraining.methods.base import Method
    from cem_assets.pretraining.methods.supervised import Supervised
    from cem_assets.pretraining.training.checkpoints import EpochResult
    from cem_assets.pretraining.views.augmentations import BatchAugmentation

logger = logging.getLogger(__name__)

NUM_VIEWED = 6
"""Images whose augmented views are shown."""
_HELD_OUT_SHARE = 0.2


class LoopParams(BaseModel):
    """How a training runs. Nothing here changes what is learned, except for the rounding of a device or of a batch's split.

    Attributes:
        device: "auto" (GPUs where there are any), "cpu", or "cuda".
        num_processes: Processes that share each batch; 0 for one on each GPU, or one where there is none.
        checkpoint_interval_s: A killed training loses at most so many seconds.
        num_threads: Number of threads of torch in each process, on a CPU; 0 leaves torch's choice.
        is_compiled: Whether networks are compiled by torch.compile; costs minutes at the start.
        num_knn_images: Number of images whose nearest neighbours are evaluated after an epoch; 0 for none.
        evaluate_every: Epochs between two such evaluations; the last epoch always has one.
    """

    model_config = ConfigDict(frozen=True)

    device: str = "auto"
    num_processes: int = Field(0, ge=0, le=1024)
    checkpoint_interval_s: float = Field(600.0, ge=0)
    num_threads: int = Field(0, ge=0, le=1024)
    is_compiled: bool = False
    num_knn_images: int = Field(2500, ge=0, le=100_000)
    evaluate_every: int = Field(1, ge=1)


@dataclass(frozen=True)
class TrainingOutcome:
    """How a call of `train_weights` ended.

    Attributes:
        is_finished: Whether all epochs are done; otherwise it was stopped, and goes on from its checkpoint.
        results: Results of all epochs done, of earlier calls too.
        link: Link to the run in MLflow; None where MLflow was not reached.
    """

    is_finished: bool
    results: "tuple[EpochResult, ...]"
    link: RunLink | None


def train_weights(
    store: Store,
    plan: TrainingPlan,
    loop: LoopParams,
    device: "torch.device",
    *,
    progress: Progress = no_progress,
    on_epoch: "Callable[[EpochResult], None] | None" = None,
    should_stop: Callable[[], bool] | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainingOutcome:
    """Train until all epochs are done or a stop is requested; continues from the checkpoint where there is one.

    Args:
        device: Device of this process, which has joined the others where there are any.
        on_epoch: Called with every epoch's result, on the first process.
        should_stop: Called from time to time, on every process.
        tags: More tags of the MLflow run, such as the Dagster run.

    Returns:
        How it ended.

    Raises:
        FileNotFoundError: The release is gone.
        DataError: The release or the number of processes does not fit, or the checkpoint is of another run.
        DataError: The loss is not finite; the last good checkpoint stays.
    """
    import torch

    from cem_assets.pretraining import distributed
    from cem_assets.pretraining.training.checkpoints import finished_epochs
    from cem_assets.pretraining.training.loop import LoopSettings, train

    if loop.num_threads and device.type == "cpu":
        torch.set_num_threads(loop.num_threads)
    data = open_training_data(store, plan)
    method = build_plan_method(plan, data)
    augmentation = build_augmentation(plan)
    rank, world = distributed.rank(), distributed.world_size()
    is_main = distributed.is_main_process()
    if plan.params.batch_size % world:
        raise DataError(
            f"a batch of {plan.params.batch_size} images cannot be divided evenly among {world} processes; expected a multiple "
            "of their number. Set num_processes, or another batch_size."
        )
    checkpoints = StoreCheckpoints(store, plan.folder)
    before = checkpoints.load() if is_main else None
    results = list(finished_epochs(before)) if before else []
    if results and results[-1].epoch > plan.params.epochs:
        raise DataError(
            f"the training of {plan.name!r} has done {results[-1].epoch} epochs already, and {plan.params.epochs} were asked "
            "for; expected at least as many. Ask for more, or give the row another name."
        )
    if is_main and results and results[-1].epoch == plan.params.epochs:
        before = None  # nothing to resume, so its memory is freed
    watch = stop_watch(store, plan.folder)

    def is_stop_wanted() -> bool:
        return (should_stop is not None and should_stop()) or (is_main and watch())

    settings = LoopSettings(loop.checkpoint_interval_s, compile_backend="inductor" if loop.is_compiled else None)
    del before
    with ExitStack() as stack:
        if is_main:
            withdraw_stop(store, plan.folder)  # of an earlier time
            plan.write(store)
            run = stack.enter_context(_tracked(store, plan, data, device, world, dict(tags or {})))
            run.log_artifact("views.png", first_views(data, plan))
            report = _Report(store, plan, run, results)
            report.status("training")
        evaluate = _Evaluation(method, data, plan, loop, device, is_main)
        try:
            epochs = train(
                method,
                lambda epoch, start: data.stream(epoch, start, rank, world),
                data.num_batches,
                augmentation,
                device,
                checkpoints,
                settings,
                progress=progress if is_main else None,
                evaluate=evaluate,
                should_stop=is_stop_wanted,
            )
            for result in epochs:
                results.append(result)
                if is_main:
                    report.epoch(result)
                    if on_epoch is not None:
                        on_epoch(result)
        except BaseException as error:
            if is_main:
                report.status("failed", f"{type(error).__name__}: {error}", fault_of(error))
                run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        is_finished = bool(results) and results[-1].epoch >= plan.params.epochs
        if not is_main:
            return TrainingOutcome(is_finished, tuple(results), None)
        if is_finished:
            run.log_artifact("curves.png", curves_png(results, f"{plan.name}: {plan.method}, {plan.arch}"))
        report.status("finished" if is_finished else "stopped", "" if is_finished else "a stop was asked for")
        run.finish("FINISHED" if is_finished else "KILLED")
        return TrainingOutcome(is_finished, tuple(results), run.link())


def build_plan_method(plan: TrainingPlan, data: TrainingData) -> "Method":
    """Build a plan's method, with the queue lengths and the classes that its data allow."""
    from cem_assets.pretraining.methods.registry import build_method

    num_classes = len(data.classes) if plan.method == "supervised" else 0
    return build_method(plan.params, plan.arch, len(data.rows), num_classes)


def build_augmentation(plan: TrainingPlan) -> "BatchAugmentation":
    """Make the views of a plan's method: those of the CEM scripts, or CytoImageNet's rotations for supervised training."""
    from cem_assets.pretraining.methods.params import views
    from cem_assets.pretraining.views.augmentations import SUPERVISED, AugmentationParams, BatchAugmentation

    drawn = SUPERVISED if plan.method == "supervised" else AugmentationParams()
    return BatchAugmentation(views(plan.params), drawn, plan.params.mean, plan.params.std)


class _Evaluation:
    """Evaluates an epoch on the first process, by nearest neighbours or on the validation images."""

    def __init__(
        self,
        method: "Method",
        data: TrainingData,
        plan: TrainingPlan,
        loop: LoopParams,
        device: "torch.device",
        is_main: bool,
    ) -> None:
        self.method, self.data, self.plan, self.loop, self.device = method, data, plan, loop, device
        self.is_active = is_main
        self.images: Any = None

    def __call__(self, epoch: int) -> dict[str, float]:
        if not self.is_active or (epoch % self.loop.evaluate_every and epoch != self.plan.params.epochs):
            return {}
        return self._classify() if self.plan.method == "supervised" else self._neighbours()

    def _dtype(self) -> "torch.dtype":
        import torch

        return torch.bfloat16 if self.plan.params.dtype == "bfloat16" else torch.float32

    def _neighbours(self) -> dict[str, float]:
        from cem_assets.pretraining.training.knn import encode_images, hold_out, measure_knn

        if not self.loop.num_knn_images:
            return {}
        if self.images is None:
            rows = self.data.sample(self.loop.num_knn_images, self.plan.params.seed)
            pixels, _ = self.data.source.read_rows(rows)
            labels = self.data.labels[rows]
            self.images = pixels, labels, hold_out(labels, _HELD_OUT_SHARE, self.plan.params.seed)
        pixels, labels, (bank, queries) = self.images
        if not len(queries):
            return {}
        norms = (self.plan.params.mean, self.plan.params.std)
        features = encode_images(
            self.method.encoder, _views_sized(pixels, self.plan), norms, self.device, batch_size=64, dtype=self._dtype()
        )
        found = measure_knn(features[bank], labels[bank], features[queries], labels[queries])
        return {"knn_accuracy": found.accuracy, "knn_chance": found.chance, "knn_feature_std": found.feature_std}

    def _classify(self) -> dict[str, float]:
        from cem_assets.pretraining.training.classification import evaluate_classifier

        if not len(self.data.validation):
            return {}
        data = self.data
        classifier = cast("Supervised", self.method)
        batches = data.validation_batches()
        result = evaluate_classifier(
            classifier, batches, data.classes, data.categories, norms_of(self.plan), self.device, self._dtype()
        )
        return {"validation_loss": result.loss, "validation_top1": result.top1, "validation_top5": result.top5}


def norms_of(plan: TrainingPlan) -> tuple[float, float]:
    """Return mean and deviation of pixels, on a scale of 0 to 1."""
    return plan.params.mean, plan.params.std


def _views_sized(pixels: "np.ndarray[Any, np.dtype[np.uint8]]", plan: TrainingPlan) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Resize images to the largest views, because a network trained on small views does badly on sizes it never saw."""
    import torch
    from torch.nn import functional

    from cem_assets.pretraining.methods.params import views

    side = views(plan.params)[0].size_px
    if pixels.shape[1:] == (side, side):
        return pixels
    small = functional.interpolate(torch.from_numpy(pixels)[:, None].float(), (side, side), mode="bilinear", antialias=True)
    return np.asarray(small[:, 0].round().clamp(0, 255).to(torch.uint8).numpy())


class _Report:
    """Reports of the first process while it trains: to MLflow, and to the status in the store."""

    def __init__(self, store: Store, plan: TrainingPlan, run: TrackedRun, results: "list[EpochResult]") -> None:
        self.store, self.plan, self.run, self.results = store, plan, run, results

    def epoch(self, result: "EpochResult") -> None:
        values = {
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "images_per_second": result.images_per_second,
            "gpu_memory_gib": result.gpu_memory_bytes / 2**30,
            "epoch_seconds": result.seconds,
            **result.indicators,
        }
        self.run.log_metrics([Metric(name, float(value), result.epoch) for name, value in sorted(values.items())])
        self.status("training")

    def status(self, state: str, message: str = "", fault: str = "") -> None:
        last = self.results[-1] if self.results else None
        write_status(
            self.store,
            self.plan.folder,
            RunStatus(
                state=state,
                epoch=last.epoch if last else 0,
                num_epochs=self.plan.params.epochs,
                step=last.step if last else 0,
                loss=last.loss if last else None,
                images_per_second=last.images_per_second if last else None,
                message=message[:500],
                fault=fault,
            ),
        )


def _tracked(
    store: Store, plan: TrainingPlan, data: TrainingData, device: "torch.device", world: int, tags: dict[str, str]
) -> TrackedRun:
    params = plan.params.model_dump(mode="json")
    parameters = {
        "arch": plan.arch,
        "method": plan.method,
        "release": plan.release,
        "release_digest": plan.digest,
        "subset": plan.subset or "all",
        "num_images": len(data.rows),
        "num_validation": len(data.validation),
        "num_classes": len(data.classes),
        **params,
    }
    about = {"cem_assets.weights": plan.name, "cem_assets.run": plan.run, "release": plan.release, **environment_of(device)}
    about["num_processes"] = str(world)
    return open_tracked_run(store, plan.run, f"{WEIGHTS.split('/')[0]}/{plan.method}", plan.name, parameters, about | tags)


def first_views(data: TrainingData, plan: TrainingPlan) -> bytes:
    """Draw some images of a release beside their augmented views, as a PNG."""
    import torch

    rows = data.rows[np.linspace(0, len(data.rows) - 1, NUM_VIEWED).astype(np.int64)]
    images, _ = data.source.read_rows(rows)
    with torch.no_grad():
        views = build_augmentation(plan)(torch.from_numpy(images), plan.params.seed)
    return views_png(images, [view.numpy() for view in views], *norms_of(plan), num=NUM_VIEWED)


def choose_num_processes(loop: LoopParams) -> int:
    """Decide how many processes train: the given number, else one for each GPU, else one."""
    if loop.num_processes:
        return loop.num_processes
    if loop.device == "cpu" or ":" in loop.device:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def epoch_line(plan: TrainingPlan, result: "EpochResult") -> str:
    """Describe the result of an epoch in one line."""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(result.indicators.items()))
    return (
        f"{plan.name}: epoch {result.epoch} of {plan.params.epochs}: loss {result.loss:.4f}, "
        f"{result.images_per_second:,.0f} images/s{', ' if shown else ''}{shown}"
    )


def results_json(results: "tuple[EpochResult, ...]") -> list[dict[str, Any]]:
    """Return the results of epochs as plain values, without times and memory, so that equal trainings give equal text."""
    kept = ("epoch", "step", "loss", "learning_rate", "indicators")
    return [{name: getattr(result, name) for name in kept} for result in results]
