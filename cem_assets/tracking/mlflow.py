"""Logging to MLflow. This is the only module that imports MLflow, and only when something is logged, because it takes seconds.

Data never depend on tracking: weights are committed first, and if MLflow is down, a warning is logged and the run continues.
`log_run` logs one finished run, and `TrackingServer` writes single events. Long trainings use `cem_assets.tracking.runs`, which
keeps events in the store until `TrackingServer` has written them.
"""

import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cem_assets import environment
from cem_assets.errors import DataError
from cem_assets.store.store import check_key

logger = logging.getLogger(__name__)

KEY_TAG = "cem_assets.key"
"""The tag of an MLflow run by which a tracked run is found again."""
_METRICS_AT_ONCE = 1000
_VALUES_AT_ONCE = 100
"""MLflow accepts so many parameters or tags in one batch."""
_MAX_VALUE = 6000
"""MLflow accepts so many characters in the value of a parameter."""
_PROBE_S = 5.0
_REFUSALS = {
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
"""MLflow's error codes for requests that it will never accept. Errors of the set-up, such as wrong credentials and unknown
endpoints, are not among them, because they may pass."""


@dataclass(frozen=True)
class Metric:
    """One value of a curve."""

    key: str
    value: float
    step: int


@dataclass(frozen=True)
class RunLink:
    """A link to a logged run.

    Attributes:
        run_id: The id of the run in MLflow.
        url: The address in the MLflow UI, or the tracking URI if there is no server.
    """

    run_id: str
    url: str


@dataclass(frozen=True)
class TrackingEvent:
    """Something that happened in a tracked run.

    Attributes:
        key: The hexadecimal digest that identifies the run for ever.
        experiment: The MLflow experiment of the run.
        run_name: The name in MLflow's list of runs.
        kind: `open`, `metrics`, `tags`, `artifact`, `model`, `alias` or `finish`.
        time_ms: The time of the event in milliseconds since 1970.
        body: The contents of the event, which depend on its kind; see `TrackingServer`.
        data: The contents of an artifact.
    """

    key: str
    experiment: str
    run_name: str
    kind: str
    time_ms: int
    body: Mapping[str, Any]
    data: bytes = b""


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else a SQLite file under `./.cem_assets/mlflow`."""
    configured = environment.text(environment.MLFLOW_TRACKING_URI)
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
        experiment: The MLflow experiment, which is made if it does not exist.
        run_name: The name in MLflow's list of runs.
        parameters: Values that are logged as text.
        metrics: Curves and final values, in any order.
        artifacts: The contents of files by name, such as pictures and JSON.

    Returns:
        A link to the run. If MLflow could not be reached, a warning is logged and None is returned.
    """
    _set_client_up()
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
    except Exception as error:  # noqa: BLE001  MLflow raises errors of many libraries; none may lose a committed result
        logger.warning(
            "MLflow at %s could not be written (%s: %s); the data is committed, only its tracking is missing. Check %s and "
            "materialize the asset again to log it.",
            _without_password(uri),
            type(error).__name__,
            _without_secret(str(error), uri),
            environment.MLFLOW_TRACKING_URI.name,
        )
        return None
    return _link(uri, experiment_id, run_id)


class TrackingServer:
    """MLflow for the outbox: every event names its run by key, and writing an event twice has the same effect as once.

    The fields of an event's body follow from its kind. `open` has `parameters` and `tags` (texts by name). `metrics` has
    `points` of (name, value, step), where values that are not finite are texts. `tags` has `tags`, and `artifact` has `name`.
    `model` has `name`, `folder`, `tags` (with `digest`) and `description`. `alias` has `name`, `digest`, `alias` and `group`,
    and `finish` has `status`.

    Only one thread may use it at a time. MLflow's SQL stores ignore a metric that exists already (same run, name, step,
    timestamp and value); its old file store does not.
    """

    def __init__(self) -> None:
        self._uri = tracking_uri()
        self._client: Any = None
        self._links: dict[str, RunLink] = {}

    def write(self, event: TrackingEvent) -> RunLink:
        """Write one event and return its run, which is made if MLflow has none with this key.

        Raises:
            ConnectionError: MLflow cannot be reached or used at the moment; a later attempt may succeed.
            DataError: MLflow will never accept this event.
        """
        link = self._links.get(event.key) or self.find(event.key, event.experiment)
        try:
            link = self._links[event.key] = link or self._new_run(event)
            _WRITERS[event.kind](self._client, link.run_id, event)
        except Exception as error:  # noqa: BLE001  MLflow raises errors of many libraries
            self._links.pop(event.key, None)  # the run may have been deleted, so the next event searches it again
            kind = DataError if _is_refusal(error) else ConnectionError
            raise kind(self._described(error)) from None
        return link

    def find(self, key: str, experiment: str) -> RunLink | None:
        """Find the run of a key; return None if there is none.

        Raises:
            ConnectionError: MLflow cannot be reached or used at the moment.
        """
        try:
            self._connect()
            found = self._client.get_experiment_by_name(experiment)
            # Processes that did not know of each other may have made several runs; then all use the oldest.
            runs = found and self._client.search_runs(
                [found.experiment_id],
                f"tags.`{KEY_TAG}` = '{key}'",
                max_results=1,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            )
        except Exception as error:  # noqa: BLE001  the query is always valid, so every error means trouble with MLflow
            raise ConnectionError(self._described(error)) from None
        return _link(self._uri, found.experiment_id, str(runs[0].info.run_id)) if runs else None

    def _connect(self) -> None:
        _require_answer(self._uri)
        if self._client is None:
            _set_client_up()
            import mlflow

            self._client = mlflow.MlflowClient(tracking_uri=self._uri)

    def _new_run(self, event: TrackingEvent) -> RunLink:
        found = self._client.get_experiment_by_name(event.experiment)
        experiment_id = found.experiment_id if found else _create_experiment(self._client, event.experiment, self._uri)
        run = self._client.create_run(
            experiment_id, start_time=event.time_ms, tags={KEY_TAG: event.key}, run_name=event.run_name
        )
        return _link(self._uri, experiment_id, str(run.info.run_id))

    def _described(self, error: Exception) -> str:
        text = _without_secret(str(error), self._uri)
        return f"MLflow at {_without_password(self._uri)}: {type(error).__name__}: {text}"


def _write_opening(client: Any, run_id: str, event: TrackingEvent) -> None:
    from mlflow.entities import Param

    run = client.get_run(run_id)
    known = run.data.params
    parameters = {str(name): str(value)[:_MAX_VALUE] for name, value in event.body["parameters"].items()}
    # MLflow does not let parameters change. A parameter that a resumed run changed becomes a tag, which may change again.
    resumed = {f"param.{name}": value for name, value in parameters.items() if name in known}
    changed = {tag: value for tag, value in resumed.items() if run.data.tags.get(tag, known[tag[6:]]) != value}
    new = [Param(name, value) for name, value in parameters.items() if name not in known]
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    _log_tags(client, run_id, {**event.body["tags"], **changed})
    for start in range(0, len(new), _VALUES_AT_ONCE):
        client.log_batch(run_id, params=new[start : start + _VALUES_AT_ONCE])


def _write_metrics(client: Any, run_id: str, event: TrackingEvent) -> None:
    from mlflow.entities import Metric as MlflowMetric

    points = [MlflowMetric(key, float(value), event.time_ms, int(step)) for key, value, step in event.body["points"]]
    for start in range(0, len(points), _METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=points[start : start + _METRICS_AT_ONCE])


def _write_tags(client: Any, run_id: str, event: TrackingEvent) -> None:
    _log_tags(client, run_id, event.body["tags"])


def _log_tags(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(name, str(value)) for name, value in values.items()]
    for start in range(0, len(tags), _VALUES_AT_ONCE):
        client.log_batch(run_id, tags=tags[start : start + _VALUES_AT_ONCE])


def _write_artifact(client: Any, run_id: str, event: TrackingEvent) -> None:
    _log_artifacts(client, run_id, {check_key(event.body["name"]): event.data})


def _write_model(client: Any, run_id: str, event: TrackingEvent) -> None:
    from mlflow.exceptions import MlflowException

    name, tags = event.body["name"], dict(event.body["tags"])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source, text = f"runs:/{run_id}/{event.body['folder']}", event.body["description"]
    if _version_of(client, name, tags["digest"]) is None:
        client.create_model_version(name, source, run_id, tags, description=text, await_creation_for=0)


def _write_alias(client: Any, run_id: str, event: TrackingEvent) -> None:
    name, digest, alias, group = (event.body[key] for key in ("name", "digest", "alias", "group"))
    if (number := _version_of(client, name, digest)) is None:
        raise DataError(f"model {name!r} has no version whose tag 'digest' is {digest!r}; register it first")
    client.set_registered_model_alias(name, alias, number)  # the new one is set first, so that there always is one
    client.set_registered_model_tag(name, alias, group)
    for other in {model.name for model in _every(client.search_registered_models, f"tags.`{alias}` = '{group}'")} - {name}:
        client.delete_registered_model_alias(other, alias)
        client.delete_registered_model_tag(other, alias)


def _version_of(client: Any, name: str, digest: str) -> Any:
    found = _every(client.search_model_versions, f"name = '{name}'")
    return next((version.version for version in found if version.tags.get("digest") == digest), None)


def _every(search: Callable[..., Any], condition: str, token: str | None = None) -> list[Any]:
    page = search(condition, page_token=token)
    return [*page, *(_every(search, condition, page.token) if page.token else ())]


def _write_end(client: Any, run_id: str, event: TrackingEvent) -> None:
    client.set_terminated(run_id, status=event.body["status"], end_time=event.time_ms)


_WRITERS = {
    "open": _write_opening,
    "metrics": _write_metrics,
    "tags": _write_tags,
    "artifact": _write_artifact,
    "model": _write_model,
    "alias": _write_alias,
    "finish": _write_end,
}


def _is_refusal(error: Exception) -> bool:
    """Tell whether MLflow will never accept an event; other errors mean trouble with MLflow, which may pass."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return str(code) in _REFUSALS
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:  # artifacts are sent over plain HTTP
        return status in (400, 404, 413, 414, 422)
    # Errors about a wrong event, from our code or MLflow's. Some transports raise ValueErrors that are OSErrors as well.
    return isinstance(error, ValueError | KeyError | TypeError) and not isinstance(error, OSError)


def _require_answer(uri: str) -> None:
    """Check that a server answers. MLflow's client would retry, log every attempt, and take seconds to import.

    Raises:
        ConnectionError: Nothing answers at the address, or a proxy reports that the server is down.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{_without_password(uri).rstrip('/')}/health", timeout=_PROBE_S):  # noqa: S310  http, see above
            return
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                raise ConnectionError(f"HTTP status {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # MLflow's client checks certificates, with its own settings
            raise ConnectionError(_without_secret(str(reason), uri)) from None


def _set_client_up() -> None:
    # Without this the client prints the address of each finished run, including the password.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # One retry is enough; by default the client retries for minutes while a server is down.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def _link(uri: str, experiment_id: str, run_id: str) -> RunLink:
    base = uri if uri.startswith("http") else environment.text(environment.MLFLOW_UI)
    shown = _without_password(base or uri)
    return RunLink(run_id, f"{shown.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}" if base else shown)


def _create_experiment(client: Any, name: str, uri: str) -> str:
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _log_artifacts(client: Any, run_id: str, artifacts: Mapping[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cem_assets-mlflow-") as folder:
        for name, data in artifacts.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        client.log_artifacts(run_id, folder)


def _without_secret(text: str, uri: str) -> str:
    """Remove the user and password of a tracking URI from a message that quotes it."""
    user = urlsplit(uri).netloc.rpartition("@")[0]
    return text.replace(f"{user}@", "") if user else text


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}"
