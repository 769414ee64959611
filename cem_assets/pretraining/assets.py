"""Pretraining as a Dagster asset: `pretraining/weights`, one partition for each row of the catalogue."""

import json
import sys
from typing import Any

import dagster as dg
from pydantic import Field

from cem_assets.catalog.weights import TrainedWeights
from cem_assets.cem.assets import GPU_POOL
from cem_assets.errors import DataError
from cem_assets.execution.interruptions import signals_as_wish
from cem_assets.execution.stage import StageResult
from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, picture, progress_of
from cem_assets.pretraining.training.plan import TrainingPlan, contamination_of, make_plan
from cem_assets.pretraining.training.runs import read_status
from cem_assets.pretraining.training.stage import LoopParams, choose_num_processes, epoch_line, train_weights
from cem_assets.pretraining.weights.importing import import_weights
from cem_assets.pretraining.weights.results import finish_weights, link_of, trained_already
from cem_assets.pretraining.weights.rows import known_weights
from cem_assets.store.assets import CODE_VERSIONS, CYTO_RELEASES, RELEASES, WEIGHTS
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import RunLink

_STOP_SECONDS = 50
"""How long processes have to keep their state after a cancellation; run monitoring gives a run 60 s."""


class WeightsConfig(dg.Config, LoopParams):
    """How weights are trained; rows that are imported need none of it. See `LoopParams` for the rest.

    Attributes:
        release: Version or digest instead of the row's.
        params: Parameters of the method instead of the row's, such as {"epochs": 300}: more epochs than were done extend
            the training.
        allow_contaminated: Whether to train on a release that was found to hold test images of benchmarks.
    """

    release: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    allow_contaminated: bool = False


@dg.asset(
    key=WEIGHTS.split("/"),
    group_name="pretraining",
    deps=[RELEASES.split("/"), CYTO_RELEASES.split("/")],
    partitions_def=weights_rows,
    code_version=CODE_VERSIONS[WEIGHTS],
    kinds={"pytorch", "mlflow"},
    pool=GPU_POOL,
)
def weights(context: dg.AssetExecutionContext, config: WeightsConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Encoder weights, trained here on a release or taken from a published file.

    Trained ones (MoCoV2, SwAV, supervised) keep their state while they train: cancel the run to stop, materialize
    again to go on, ask for more epochs to extend. They come with a model card, curves, and a file that the loaders of
    the published checkpoints take. Imported ones that cannot be had here say what is missing.
    """
    opened, name = store.open(), context.partition_key
    with explained(context):
        rows = known_weights(opened)
        if name not in rows:
            raise DataError(f"weights {name!r} are no row of the catalogue; expected one of {', '.join(rows)}.")
        row = rows[name]
        if isinstance(row, TrainedWeights):
            result, link = _trained(context, config, opened, row)
        else:
            result, link = import_weights(opened, row, context.run_id, progress_of(context, "steps")), None
    return _described(opened, result, link)


def _trained(
    context: dg.AssetExecutionContext, config: WeightsConfig, store: Store, row: TrainedWeights
) -> tuple[StageResult, RunLink | None]:
    plan = make_plan(store, row, config.release, config.params)
    if manifest := trained_already(store, plan):
        return StageResult(manifest, False, 0.0), None
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
            f"the training of {row.name!r} was stopped after {done}, as was asked; its state is kept. Materialize it "
            "again to go on."
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
    client.run(command=[sys.executable, "-m", "torch.distributed.run", *words, *about, *tags], context=context)


def _described(store: Store, result: StageResult, link: RunLink | None) -> dg.MaterializeResult[Any]:
    manifest = result.manifest
    names = [item.name for item in manifest.objects if item.name.endswith(".png")]
    pictures = {name.removesuffix(".png"): store.read(f"{manifest.folder}/{name}") for name in names}
    described = materialized(store, result, {})
    card = store.read(f"{manifest.folder}/README.md").decode()
    extra: dict[str, Any] = {label: picture(data) for label, data in pictures.items()}
    extra["model card"] = dg.MetadataValue.md(card.split("---\n", 2)[-1])
    extra["arch"], extra["method"] = manifest.details["arch"], manifest.details["method"]
    for name, value in sorted(manifest.details["provenance"].get("figures", {}).items()):
        extra[name] = dg.MetadataValue.float(float(value))
    if link is not None:
        extra["mlflow run"] = dg.MetadataValue.url(link.url) if link.url.startswith("http") else link.url
    return described._replace(metadata={**(described.metadata or {}), **extra})
