"""MLflow: the only file that imports it, and only when something is logged (it takes seconds).

Tracking never decides the fate of data: weights are committed first, and a tracking server that is down
costs a warning, not the run.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_METRICS_AT_ONCE = 1000
_MAX_VALUE = 6000
"""Characters MLflow takes for the value of a parameter."""


@dataclass(frozen=True)
class Metric:
    """One value of a curve: name, value, step."""

    key: str
    value: float
    step: int


@dataclass(frozen=True)
class RunLink:
    """Where a logged run can be looked at.

    Attributes:
        run_id: MLflow's.
        url: Address in the MLflow UI, or the tracking URI where there is no server.
    """

    run_id: str
    url: str


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else a SQLite file under `./.cem_assets/mlflow`."""
    configured = os.environ.get(URI_VARIABLE)
    if configured:
        return configured
    folder = Path(".cem_assets/mlflow").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db"


def log_run(
    experiment: str,
    run_name: str,
    parameters: Mapping[str, Any],
    metrics: Sequence[Metric],
    artifacts: Mapping[str, bytes],
    tags: Mapping[str, str],
) -> RunLink | None:
    """Log one finished run.

    Args:
        experiment: MLflow experiment, made where it does not exist.
        run_name: Shown in the list of runs.
        parameters: Flat values.
        metrics: Curves and final values, in any order.
        artifacts: Files by name, such as pictures and JSON.
        tags: Such as the manifest's digest.

    Returns:
        The link to it; None where MLflow could not be reached, which is logged as a warning.
    """
    # One retry only: by default the client keeps a dead server company for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = tracking_uri()
    try:
        import mlflow
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param, RunTag

        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else _create_experiment(client, experiment, uri)
        run = client.create_run(experiment_id, run_name=run_name)
        run_id = str(run.info.run_id)
        client.log_batch(
            run_id,
            params=[Param(key, str(value)[:_MAX_VALUE]) for key, value in parameters.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        now = int(run.info.start_time)
        points = [MlflowMetric(metric.key, metric.value, now, metric.step) for metric in metrics]
        for start in range(0, len(points), _METRICS_AT_ONCE):
            client.log_batch(run_id, metrics=points[start : start + _METRICS_AT_ONCE])
        _log_artifacts(client, run_id, artifacts)
        client.set_terminated(run_id)
    except Exception as error:  # noqa: BLE001  MLflow raises its own and every transport's errors; none may cost a committed result
        logger.warning(
            "MLflow at %s could not be written (%s: %s); the data is committed, only its tracking is missing. Check %s and "
            "materialize the asset again to log it.",
            _without_password(uri),
            type(error).__name__,
            _without_secret(str(error), uri),
            URI_VARIABLE,
        )
        return None
    base = uri if uri.startswith("http") else os.environ.get("CEM_ASSETS_MLFLOW_UI", "")
    url = f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}" if base else _without_password(uri)
    return RunLink(run_id, url)


def _create_experiment(client: Any, name: str, uri: str) -> str:
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _log_artifacts(client: Any, run_id: str, artifacts: Mapping[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cem_assets-mlflow-") as folder:
        for name, data in artifacts.items():
            (Path(folder) / name).write_bytes(data)
        client.log_artifacts(run_id, folder)


def _without_secret(text: str, uri: str) -> str:
    """Cut the user and password of a tracking URI out of a message that quotes it."""
    user = urlsplit(uri).netloc.rpartition("@")[0]
    return text.replace(f"{user}@", "") if user else text


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}"
