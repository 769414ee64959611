"""Runs assets from Python, in this process and in the Dagster instance that the UI shows.

The command line and the demo use it. The UI and the sensors launch the same jobs through Dagster itself.
"""

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import dagster as dg

from cem_assets import environment
from cem_assets.definitions import build_definitions
from cem_assets.errors import DataError
from cem_assets.platform.launcher import WatchedRunLauncher
from cem_assets.platform.partitions import benchmark_rows, cyto_labels, em_datasets, microscopy_sources, weights_rows
from cem_assets.platform.steps import progress_listener
from cem_assets.store.assets import FILTERED, RELEASES, STAGES, asset_of

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

Listener = Callable[[str, str, int, int], None]
"""Called with (asset, partition, done, total)."""

_PARTITIONS = {
    "benchmark_data": benchmark_rows,
    "cyto_sources": microscopy_sources,
    "cyto_crops": cyto_labels,
    "pretraining_weights": weights_rows,
    "analyses": weights_rows,
}
"""Partitions of jobs; the others are over EM datasets."""

_LAUNCHER_OF_0_1_0 = b"cem_assets.defs.launcher"
"""The module of the run launcher that 0.1.0 wrote into dagster.yaml. Dagster does not start with a module that is gone."""

UNTIL = (*STAGES, "releases")
"""Stages at which a chain may end."""


def dagster_home() -> Path:
    """Return DAGSTER_HOME, by default `./.cem_assets/dagster`; the folder is made where it is missing."""
    home = Path(environment.text(environment.DAGSTER_HOME)).resolve()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.write_bytes(files("cem_assets").joinpath("dagster.yaml").read_bytes())
    elif _LAUNCHER_OF_0_1_0 in (text := settings.read_bytes()):
        settings.write_bytes(text.replace(_LAUNCHER_OF_0_1_0, WatchedRunLauncher.__module__.encode()))
    environment.export(environment.DAGSTER_HOME, str(home))
    return home


def open_instance() -> dg.DagsterInstance:
    """Open the Dagster instance in `dagster_home()`."""
    dagster_home()
    return dg.DagsterInstance.get()


def chain_until(until: str) -> list[str]:
    """List the partitioned assets of the chain up to a stage.

    Args:
        until: One of `UNTIL`, or an asset's name; "releases" means all of them.

    Raises:
        DataError: The name is not known.
    """
    last = FILTERED if until in ("releases", RELEASES) else asset_of(until)
    assets = list(STAGES.values())
    return assets[: assets.index(last) + 1]


def run_job(
    instance: dg.DagsterInstance,
    store_url: str,
    job: str,
    assets: list[str] | None = None,
    partition: str | None = None,
    config: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
) -> dg.ExecuteInProcessResult:
    """Run a job in this process.

    Args:
        assets: Names of the job's assets that are materialized; None for all of them.
        partition: Partition key of partitioned jobs; it is added to Dagster's partitions where it is new.
        config: Configuration by asset name, such as {"cem/patch_classifier": {"epochs": 8}}.

    Returns:
        Dagster's result; `success` is False where a step or a blocking check failed.

    Raises:
        DataError: The configuration has names or types that the assets do not have.
    """
    if isinstance(partition, dg.MultiPartitionKey):
        for name, definition in (("benchmark", benchmark_rows), ("weights", weights_rows)):
            instance.add_dynamic_partitions(str(definition.name), [partition.keys_by_dimension[name]])
    elif partition is not None:
        instance.add_dynamic_partitions(str(_PARTITIONS.get(job, em_datasets).name), [partition])
    built = build_definitions(store_url).resolve_job_def(job)
    ops = {name.replace("/", "__"): {"config": dict(values)} for name, values in (config or {}).items()}
    with progress_listener(listener or (lambda *_: None)):
        try:
            return built.execute_in_process(
                run_config={**_QUIET, "ops": ops},
                instance=instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(name.split("/")) for name in assets] if assets else None,
                raise_on_error=False,
            )
        except dg.DagsterInvalidConfigError as error:  # people give the configuration, for example with --set
            raise DataError(f"the configuration of {job} cannot be used: {error}") from error


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """List why a run failed: the messages of its steps, and the blocking checks that did not pass."""
    messages = []
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            metadata = data.user_failure_data
            text = metadata.description if metadata and metadata.description else None
            cause = data.error.cause if data.error and data.error.cause else data.error
            messages.append(f"{event.step_key}: {text or (cause.message.strip() if cause else 'failed')}")
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
            name = evaluation.asset_key.to_user_string()
            messages.append(f"check {evaluation.check_name} of {name}: {evaluation.description}")
    return list(dict.fromkeys(messages))
