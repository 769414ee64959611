"""Pretraining as a Dagster asset: `pretraining/weights`, one partition for each row of the catalogue."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from pydantic import Field

from cem_assets.catalog.weights import TrainedWeights
from cem_assets.errors import DataError, Fault, OutOfMemoryError, StoreError
from cem_assets.execution.interruptions import signals_as_wish
from cem_assets.execution.stage import StageResult
from cem_assets.platform.assets import GPU_POOL, asset
from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import card, explained, materialized, picture, progress_of
from cem_assets.pretraining.plan import TrainingPlan, contamination_of, make_plan
from cem_assets.pretraining.rows import known_weights
from cem_assets.pretraining.training.runs import RunStatus, read_status
from cem_assets.pretraining.training.stage import LoopParams, choose_num_processes, epoch_line, train_weights
from cem_assets.pretraining.weights.importing import import_weights
from cem_assets.pretraining.weights.results import finish_weights, link_of, trained_already
from cem_assets.store.assets import CYTO_RELEASES, RELEASES, WEIGHTS
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import RunLink

_STOP_SECONDS = 50
"""Time for the processes to save their state after a cancellation; run monitoring gives a run 60 s."""


class WeightsConfig(dg.Config, LoopParams):
    """How weights are trained; imported weights ignore this. See `LoopParams` for the other fields.

    Attributes:
        release: Version or digest of a release instead of the one in the catalogue.
        params: Parameters of the method instead of those in the catalogue, such as {"epochs": 300}. More epochs than were
            done extend the training.
        allow_contaminated: Whether to train on a release that was found to hold test images of benchmarks.
    """

    release: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    allow_contaminated: bool = False


@asset(WEIGHTS, RELEASES, CYTO_RELEASES, kinds={"pytorch", "mlflow"}, partitions=weights_rows, pool=GPU_POOL)
def weights(context: dg.AssetExecutionContext, config: WeightsConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Encoder weights, trained here on a release or taken from a published file.

    A training (MoCoV2, SwAV, supervised) saves its state as it goes on: cancel the run to stop it, materialize the partition
    again to continue, and request more epochs to extend it. The weights come with a model card, curves, and a file that the
    loaders of the published checkpoints accept. If the file of imported weights is missing, the error says where to put it.
    """
    opened, name = store.open(), context.partition_key
    with explained(context):
        rows = known_weights(opened)
        if name not in rows:
            raise DataError(f"weights {name!r} are not in the catalogue; expected one of {', '.join(rows)}.")
        row = rows[name]
        if isinstance(row, TrainedWeights):
            result, link = _trained(context, config, opened, row)
        else:
            result, link = import_weights(opened, row, context.run_id, progress_of(context, "steps")), None
    return materialized(opened, result, extra=_facts(opened, result.manifest, link))


def _trained(
    context: dg.AssetExecutionContext, config: WeightsConfig, store: Store, row: TrainedWeights
) -> tuple[StageResult, RunLink | None]:
    plan = make_plan(store, row, config.release, config.params)
    if trained := trained_already(store, plan):
        return trained, None
    if not config.allow_contaminated and (warning := contamination_of(store, plan)):
        context.log.warning(warning)
    loop = LoopParams(**config.model_dump(include=set(LoopParams.model_fields)))
    num_processes = choose_num_processes(loop)
    context.log.info(
        f"{row.name}: {plan.method}, {plan.arch}, on {plan.release}, {plan.params.epochs} epochs, {num_processes} process(es)"
    )
    link = None
    if num_processes > 1:
        _train_together(context, store, plan, loop, num_processes)
    else:
        link = _train_here(context, store, plan, loop)
    status = read_status(store, plan.folder)
    if status is None or status.state != "finished":
        done = f"{status.epoch} of {status.num_epochs} epochs" if status else "nothing"
        raise dg.DagsterExecutionInterruptedError(
            f"the training of {row.name!r} was stopped after {done} as requested; its state is kept. Materialize it "
            "again to continue."
        )
    return finish_weights(store, plan, row.title, context.run_id), link or link_of(plan)


def _train_here(context: dg.AssetExecutionContext, store: Store, plan: TrainingPlan, loop: LoopParams) -> RunLink | None:
    from cem_assets.encoders import pick_device

    with signals_as_wish() as wish:
        outcome = train_weights(
            store,
            plan,
            loop,
            pick_device(loop.device),
            progress=progress_of(context, "steps"),
            on_epoch=lambda result: context.log.info(epoch_line(plan, result)),
            should_stop=wish,
            tags={"dagster_run": context.run_id},
        )
    wish.deliver()
    return outcome.link


def _train_together(
    context: dg.AssetExecutionContext, store: Store, plan: TrainingPlan, loop: LoopParams, num_processes: int
) -> None:
    """Start one process for each GPU under torchrun; they log to this run, and a cancellation reaches them."""
    words = ["--standalone", f"--nproc-per-node={num_processes}", "-m", "cem_assets.pretraining.training.worker"]
    about = ["--root", store.url, "--plan", plan.write(store), "--loop", loop.model_dump_json()]
    tags = ["--tags", json.dumps({"dagster_run": context.run_id})]
    client = dg.PipesSubprocessClient(termination_timeout_seconds=_STOP_SECONDS)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        client.run(command=[sys.executable, "-m", "torch.distributed.run", *words, *about, *tags], context=context)
    except Exception as error:
        raise _error_of_processes(read_status(store, plan.folder), began) from error


def _error_of_processes(status: RunStatus | None, began: str) -> Exception:
    """Turn the end of the training processes into the error that the first of them wrote down.

    Args:
        began: When they were started, ISO 8601 in UTC; what was written before is of an earlier attempt.
    """
    if status is None or status.state != "failed" or status.updated < began:
        return OutOfMemoryError(
            "a training process ended without a word, most often because memory ran out. The training goes on from its last "
            "checkpoint; lower `batch_size` or `num_processes` if it happens again. The run's log has what the process wrote."
        )
    kinds = {Fault.data: DataError, Fault.store: StoreError, Fault.machine: OutOfMemoryError}
    return kinds.get(Fault(status.fault), RuntimeError)(status.message) if status.fault else RuntimeError(status.message)


def _facts(store: Store, manifest: Manifest, link: RunLink | None) -> dict[str, Any]:
    """Collect what people see beside the counts: curves, the model card, the figures that were measured, the run in MLflow."""
    folder = manifest.folder
    curves = {item.name.removesuffix(".png"): store.read(f"{folder}/{item.name}") for item in manifest.find(".png")}
    facts: dict[str, Any] = {label: picture(data) for label, data in curves.items()}
    facts["model card"] = card(store.read(f"{folder}/README.md").decode())
    facts["arch"], facts["method"] = manifest.details["arch"], manifest.details["method"]
    for name, value in sorted(manifest.details["provenance"].get("figures", {}).items()):
        facts[name] = dg.MetadataValue.float(float(value))
    if link is not None:
        facts["mlflow run"] = dg.MetadataValue.url(link.url) if link.url.startswith("http") else link.url
    return facts
