"""Stage `benchmarks/scores` for segmentation benchmarks: a U-Net is trained over given weights, tested and scored.

A training keeps its state under `_runs` beside the partition, and every later call continues from it.
`cem_assets.benchmarks.segmentation.plan` says what exactly is scored.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from cem_assets.benchmarks.scores.inputs import ALL, RowMaker, finite, main_of, plain_row
from cem_assets.benchmarks.scores.stored import ROWS, ScoreRow, rows_bytes
from cem_assets.benchmarks.segmentation.items import TrainingPlanes, labelled_images, pictured_planes
from cem_assets.benchmarks.segmentation.metrics import iterations_to_share, mask_unlabelled, match_instances
from cem_assets.benchmarks.segmentation.plan import SegmentationPlan
from cem_assets.execution.stage import Beginning, Progress, StageResult, begin, no_progress
from cem_assets.pretraining.training.environment import environment_of
from cem_assets.pretraining.training.runs import RunStatus, StoreCheckpoints, stop_watch, withdraw_stop, write_status
from cem_assets.pretraining.weights.stored import load_encoder_weights
from cem_assets.store.commits import installed_versions
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import Metric
from cem_assets.tracking.runs import TrackedRun, open_tracked_run

if TYPE_CHECKING:
    import torch

    from cem_assets.benchmarks.segmentation.inference import LabelledImage, Predictor, SegmentationScore, Sliceable
    from cem_assets.benchmarks.segmentation.model import SegmentationUnet
    from cem_assets.benchmarks.segmentation.training import SegmentationResult

RESULTS = "results.json"
MODEL = "model.safetensors"
SHARE = 0.95
"""The share of the best IoU for which the number of steps that the training needed is reported."""


def score_segmentation(
    store: Store,
    plan: SegmentationPlan,
    run_id: str = "",
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] | None = None,
    tags: Mapping[str, str] | None = None,
) -> StageResult:
    """Train a network from the newest checkpoint if there is one, test it, and commit its scores.

    Args:
        should_stop: Called after every step on a CPU and after every 16 steps on a GPU, and before every test image. The work
            stops when it returns True.
        tags: Additional tags of the MLflow run.

    Returns:
        The committed partition of `benchmarks/scores`. The state of the training is deleted after the commit.

    Raises:
        DataError: The loss is not finite; the last good state is kept.
        InterruptedError: `should_stop` returned True, or a stop was requested in the store; the state is kept.
    """
    stage = begin(store, plan.inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    import torch

    from cem_assets.benchmarks.segmentation.inference import Predictor
    from cem_assets.benchmarks.segmentation.model import build_unet
    from cem_assets.encoders import pick_device

    asked, params = plan.asked, plan.params
    device = pick_device(asked.device)
    if asked.num_threads and device.type == "cpu":
        torch.set_num_threads(asked.num_threads)
    state = load_encoder_weights(store, plan.weights.name, plan.weights.digest)[0].state
    model = build_unet(
        plan.weights.arch,
        params.num_classes,
        state,
        params.finetune_layer,
        encoder_batchnorm=params.encoder_batchnorm,
        seed=params.seed,
    )
    predictor = Predictor(model, params, device, asked.slab_px, asked.tile_px)
    watch = stop_watch(store, plan.folder)
    withdraw_stop(store, plan.folder)  # an old request must not stop this call

    def is_stop_wanted() -> bool:
        return (should_stop is not None and should_stop()) or watch()

    with _tracked(store, plan, device, dict(tags or {})) as run:
        work = _Scoring(store, plan, predictor, run, progress, is_stop_wanted)
        try:
            results = work.train(model)
            score, pictures = work.test()
            result = work.commit(stage, model, results, score, pictures)
        except InterruptedError as error:
            work.status("stopped", str(error))
            run.finish("KILLED")
            raise
        except BaseException as error:
            work.status("failed", f"{type(error).__name__}: {error}")
            run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        work.status("finished")
        store.delete([work.checkpoints.key])
        run.finish("FINISHED")
    return result


def _tracked(store: Store, plan: SegmentationPlan, device: "torch.device", tags: dict[str, str]) -> TrackedRun:
    key = plan.key
    parameters = {**plan.params.model_dump(mode="json"), "weights": key.weights, "arch": plan.weights.arch}
    about = {
        "cem_assets.benchmark": key.benchmark,
        "cem_assets.weights": key.weights,
        "weights_digest": plan.weights.digest,
        "release": plan.weights.release,
        "partition": key.partition,
        **environment_of(device),
    }
    name = f"{key.weights}, {plan.params.finetune_layer}, seed {key.seed}"
    return open_tracked_run(store, plan.run, f"benchmarks/{key.benchmark}", name, parameters, about | tags)


class _Scoring:
    """One call of `score_segmentation`."""

    def __init__(
        self,
        store: Store,
        plan: SegmentationPlan,
        predictor: "Predictor",
        run: TrackedRun,
        progress: Progress,
        is_stop_wanted: Callable[[], bool],
    ) -> None:
        self.store, self.plan, self.predictor, self.run = store, plan, predictor, run
        self.progress, self.is_stop_wanted = progress, is_stop_wanted
        self.checkpoints = StoreCheckpoints(store, plan.folder)
        self.tests = plan.benchmark.items("test")
        self.history_items = plan.benchmark.items("valid") or self.tests
        self.total = plan.params.iters + len(self.tests)
        self.results: list[SegmentationResult] = []
        self.step = 0

    def train(self, model: "SegmentationUnet") -> "list[SegmentationResult]":
        """Train to the end, and return all points of the curve, including those of earlier calls."""
        from cem_assets.benchmarks.segmentation.augmentation import CropSampler
        from cem_assets.benchmarks.segmentation.training import results_of, train_segmentation

        plan, asked = self.plan, self.plan.asked
        before = self.checkpoints.load()
        self.results = results_of(before) if before else []
        del before
        self.status("training")
        steps = self.results[-1].step if self.results else 0
        if steps < plan.params.iters:
            planes = TrainingPlanes(plan.benchmark.items("train"), dict(plan.rules), asked.cache_mib << 20)
        else:
            planes = TrainingPlanes(plan.benchmark.items("train"), dict(plan.rules), 0)  # already trained, so no image is read
        with closing(CropSampler(planes, plan.params, asked.crop_threads)) as sampler:
            for result in train_segmentation(
                model,
                sampler,
                plan.params,
                self.predictor.device,
                self.checkpoints,
                progress=self._advance,
                should_stop=self.is_stop_wanted,
                evaluate_every=plan.every,
                evaluate=self._evaluate if asked.evaluate_every else None,
                checkpoint_interval_s=asked.checkpoint_interval_s,
            ):
                self.results.append(result)
                self._report(result)
        steps = self.results[-1].step if self.results else 0
        if steps < plan.params.iters:
            raise self._stopped("training")
        return self.results

    def _advance(self, step: int, total: int) -> None:
        del total  # it does not include the test images
        self.step = step
        self.progress(step, self.total)

    def _stopped(self, what: str) -> InterruptedError:
        key = self.plan.key
        return InterruptedError(
            f"{what} of {key.benchmark!r} with {key.weights!r} was stopped on request; its state is kept in "
            f"{self.plan.folder}. Materialize it again to continue."
        )

    def _evaluate(self, model: "torch.nn.Module") -> dict[int, float]:
        from cem_assets.benchmarks.segmentation.inference import score_images

        del model  # the predictor has the same one
        images = labelled_images(self.history_items, dict(self.plan.rules), self.predictor, self.plan.is_mixed)
        with closing(images):
            return score_images(self.predictor, images).class_iou

    def _report(self, result: "SegmentationResult") -> None:
        values = {"loss": result.loss, "learning_rate": result.learning_rate}
        if result.iou:
            values["iou"] = _mean(result.iou)
            values |= {f"iou/{self._class(number)}": value for number, value in result.iou.items()}
        self.run.log_metrics([Metric(name, float(value), result.step) for name, value in values.items()])
        self.status("training")

    def _class(self, number: int) -> str:
        return re.sub(r"[^\w. -]", "_", self.plan.benchmark.classes[number])

    def status(self, state: str, message: str = "") -> None:
        """Write the status of the run, in which optimiser steps stand in the place of epochs."""
        last = self.results[-1] if self.results else None
        step = max(self.step, last.step if last else 0)
        loss = last.loss if last else None
        status = RunStatus(state, step, self.plan.params.iters, step, loss, message=message[:500])
        write_status(self.store, self.plan.folder, status)

    def test(self) -> "tuple[SegmentationScore, dict[str, bytes]]":
        """Predict the test images one by one, and draw some of them as PNG bytes by file name."""
        from cem_assets.benchmarks.segmentation.inference import score_images

        wanted = pictured_planes(self.tests, self.plan.asked.max_pictures)
        drawn: list[bytes] = []
        current = 0

        def before_each(number: int) -> None:
            nonlocal current
            if self.is_stop_wanted():
                raise self._stopped("testing")
            current = number
            self.progress(self.plan.params.iters + number, self.total)

        def seen(image: "LabelledImage", prediction: "Sliceable") -> None:
            drawn.extend(_errors(image, prediction, plane) for plane in wanted.get(current, ()))

        images = labelled_images(self.tests, dict(self.plan.rules), self.predictor, self.plan.is_mixed, before_each)
        with closing(images):
            score = score_images(self.predictor, images, seen)
        self.progress(self.total, self.total)
        return score, {f"errors_{number:02d}.png": data for number, data in enumerate(drawn)}

    def commit(
        self,
        stage: Beginning,
        model: "SegmentationUnet",
        results: "Sequence[SegmentationResult]",
        score: "SegmentationScore",
        pictures: dict[str, bytes],
    ) -> StageResult:
        """Write rows, results and pictures, make them visible, and record them in MLflow."""
        from cem_assets.benchmarks.segmentation.pictures import history_png

        plan, commit = self.plan, stage.commit
        rows = _rows(plan, score)
        title = f"{plan.key.benchmark}, {plan.key.weights}, {plan.params.finetune_layer}, seed {plan.key.seed}"
        pictures = {**pictures, "history.png": history_png(results, title, plan.benchmark.classes)}
        report = finite(_results(plan, results, score, rows))
        commit.write(ROWS, rows_bytes(rows))
        commit.write(RESULTS, json.dumps(report, indent=1, ensure_ascii=False).encode())
        for name, data in pictures.items():
            commit.write(name, data)
            self.run.log_artifact(name, data)
        if plan.asked.keep_model:
            commit.write(MODEL, _model_bytes(model))
        details = {
            "task": "segmentation",
            "title": str(plan.benchmark.manifest.details.get("title", "")),
            "arch": plan.weights.arch,
            "finetune_layer": plan.params.finetune_layer,
            "main": main_of(rows),
            "rows": [plain_row(row) for row in rows],
            "steps_to_share": report["steps_to_share"],
        }
        counts = {"rows": len(rows), "images": len(self.tests), "pictures": len(pictures), "iterations": plan.params.iters}
        versions = installed_versions("torch", "torchvision", "segmentation-models-pytorch")
        result = stage.finish(counts, details, versions)
        self.run.log_artifact(RESULTS, json.dumps(report, indent=1, ensure_ascii=False).encode())
        self.run.log_metrics([Metric(_metric_name(row), row.value, plan.params.iters) for row in rows])
        self.run.log_tags({"scores_digest": result.manifest.digest})
        return result


def _mean(values: Mapping[int, float]) -> float:
    known = [value for value in values.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _metric_name(row: ScoreRow) -> str:
    parts = (
        "test",
        row.metric,
        *((row.test_set,) if row.test_set != ALL else ()),
        *((row.class_name,) if row.class_name else ()),
    )
    return "/".join(re.sub(r"[^\w. -]", "_", part) for part in parts)


def _rows(plan: SegmentationPlan, score: "SegmentationScore") -> list[ScoreRow]:
    """Make the rows: the mean, then the classes over all images, then every test set if there are several."""
    maker = RowMaker(plan.key, (plan.weights,), plan.params.finetune_layer, plan.params.iters)
    classes, items = plan.benchmark.classes, plan.benchmark.items("test")
    rows = [maker.row("iou", score.mean_iou, len(items), is_main=True)]
    rows += [maker.row("iou", iou, len(items), class_name=classes[number]) for number, iou in score.class_iou.items()]
    rows.append(maker.row("image_iou", score.image_iou, len(items)))
    if not plan.is_mixed:
        return rows
    for name in sorted(score.set_iou):
        num, found = len(plan.benchmark.items("test", name)), score.counts[name].iou()
        rows.append(maker.row("iou", score.set_iou[name], num, test_set=name))
        for number in plan.rules[name].scored_classes:
            rows.append(maker.row("iou", float(found[number]), num, test_set=name, class_name=classes[number]))
    return rows


def _results(
    plan: SegmentationPlan, results: "Sequence[SegmentationResult]", score: "SegmentationScore", rows: Sequence[ScoreRow]
) -> dict[str, Any]:
    measured = [(result.step, _mean(result.iou)) for result in results if result.iou]
    steps = iterations_to_share([step for step, _ in measured], [value for _, value in measured], SHARE)
    return {
        "benchmark": plan.key.benchmark,
        "weights": plan.key.weights,
        "seed": plan.key.seed,
        "parameters": plan.params.model_dump(mode="json"),
        "rows": [plain_row(row) for row in rows],
        "pixels": {
            name: {what: getattr(counts, what).tolist() for what in ("shared", "predicted", "labelled")}
            for name, counts in score.counts.items()
        },
        "history": [
            {"step": result.step, "loss": result.loss, "learning_rate": result.learning_rate, "iou": _named(plan, result.iou)}
            for result in results
        ],
        "history_split": ("valid" if plan.benchmark.items("valid") else "test") if measured else "",
        "steps_to_share": {"share": SHARE, "steps": steps},
    }


def _named(plan: SegmentationPlan, iou: Mapping[int, float]) -> dict[str, float]:
    return {plan.benchmark.classes[int(number)]: value for number, value in sorted(iou.items())}


def _errors(image: "LabelledImage", prediction: "Sliceable", plane: int) -> bytes:
    """Draw one plane as it is scored, except that components of a volume are matched only within the plane."""
    from cem_assets.benchmarks.segmentation.pictures import errors_png

    box: Any = plane if len(image.image.shape) == 3 else ...
    pixels, found, labels = (np.asarray(array[box]) for array in (image.image, prediction, image.labels))
    rule = image.rule
    if rule is not None and rule.mask_unlabelled:
        found = mask_unlabelled(found, labels)
    if rule is not None and rule.is_instance_matched:
        found = match_instances(found, labels, rule.scored_classes)
    return errors_png(pixels, found, labels)


def _model_bytes(model: "SegmentationUnet") -> bytes:
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return bytes(save(state))
