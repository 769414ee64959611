"""One process of a training that several share, on one machine or many.

The asset starts it on its own machine. To start it by hand or on several nodes, materialize the partition once, which writes
the plan, stop that run, and start:

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        -m cem_assets.pretraining.training.worker --root s3://bucket/prefix --plan pretraining/weights/NAME/_runs/RUN/plan.json

The processes train, write checkpoints to the store and track. The finished checkpoint becomes weights when the partition is
materialized. The exit status is 0 when all epochs are done or a stop was requested by a signal or `cem-assets weights stop`.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cem_assets.errors import Fault, fault_of
from cem_assets.execution.interruptions import signals_as_wish
from cem_assets.execution.stage import logged_progress, no_progress
from cem_assets.pretraining.plan import TrainingPlan, read_plan
from cem_assets.pretraining.training.runs import RunStatus, read_status, write_status
from cem_assets.pretraining.training.stage import LoopParams, epoch_line, train_weights
from cem_assets.store.store import Store, open_store

logger = logging.getLogger(__name__)
_PIPES_VARIABLE = "DAGSTER_PIPES_CONTEXT"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one of the processes that torchrun started, or alone.

    Args:
        arguments: Words after the module's name; None takes the process's own.

    Returns:
        0 when the training is finished or was stopped on request.
    """
    parser = argparse.ArgumentParser(prog="cem_assets.pretraining.training.worker", description="One process of a training.")
    parser.add_argument("--root", help="the store (default: CEM_ASSETS_ROOT)")
    parser.add_argument("--plan", required=True, help="key of the plan in the store")
    parser.add_argument("--loop", default="{}", help="how it runs, JSON of LoopParams")
    parser.add_argument("--tags", default="{}", help="tags of the MLflow run, JSON")
    call = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    store = open_store(call.root)
    plan = read_plan(store, call.plan)
    loop = LoopParams.model_validate_json(call.loop)

    from cem_assets.pretraining.distributed import is_main_process, process_group

    began = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with signals_as_wish() as wish, process_group(loop.device) as device:
            tell = _teller() if is_main_process() else logger.info
            outcome = train_weights(
                store,
                plan,
                loop,
                device,
                progress=logged_progress(tell, f"{plan.name} steps") if is_main_process() else no_progress,
                on_epoch=lambda result: tell(epoch_line(plan, result)),
                should_stop=wish,
                tags=json.loads(call.tags),
            )
            if is_main_process():
                tell("all epochs are done" if outcome.is_finished else "stopped; its state is kept")
    except Exception as error:
        _write_failure(store, plan, error, began)
        raise
    return 0


def _write_failure(store: Store, plan: TrainingPlan, error: Exception, began: str) -> None:
    """Write down why this process failed, unless the training has done that: errors may come up before it begins.

    Any process may know the cause. Only the first one writes errors that look like bugs, because in the others they follow from
    the failure of another process.

    Args:
        began: When this process began, ISO 8601 in UTC; a failure that was written before is of an earlier attempt.
    """
    fault = fault_of(error)
    if fault == Fault.bug and os.environ.get("RANK", "0") != "0":
        return
    status = read_status(store, plan.folder)
    if status is not None and status.state == "failed" and status.updated >= began:
        return
    before = status or RunStatus("failed", 0, plan.params.epochs, 0)
    message = f"{type(error).__name__}: {error}"[:500]
    write_status(store, plan.folder, replace(before, state="failed", message=message, fault=str(fault)))


def _teller() -> Callable[[str], None]:
    """Return a function that logs to Dagster if Dagster started this process, and to standard error otherwise."""
    if _PIPES_VARIABLE not in os.environ:
        return logger.info
    import dagster_pipes

    log: Callable[[str], None] = dagster_pipes.open_dagster_pipes().log.info
    return log


if __name__ == "__main__":
    raise SystemExit(main())
