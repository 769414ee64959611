"""A run launcher that notices dead runs. With Dagster's default launcher they would count as started for ever.

Runs are processes of the code server. When it is killed together with them, or its machine goes away, nobody reports their end.
Dagster's run monitoring then asks the launcher, and this one asks the code server whether it still has the run. Both
dagster.yaml files name it. On Kubernetes the launcher of the Helm chart asks the cluster instead.

Dagster has no public way to answer run monitoring or to ask a code server for its runs, so this module uses modules of Dagster
that are not public; pyproject.toml pins Dagster's minor version for it. `cem_assets_tests/platform/test_launcher.py` fails when
Dagster's own launcher can do this; then remove this module, and its name from both dagster.yaml files.
"""

import json
import time

from dagster import DagsterRun, DefaultRunLauncher, deserialize_value
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

SILENT_SECONDS = 120.0
"""A run that logged something within this time counts as alive, no matter what the code server answers."""
_TIMEOUT_SECONDS = 10


class WatchedRunLauncher(DefaultRunLauncher):  # type: ignore[misc,unused-ignore]
    """Launches runs as Dagster's default launcher does, and can tell whether they are alive."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Tell whether the process of a started run is alive.

        Returns:
            RUNNING if the code server has the run, or if the run logged something lately; otherwise FAILED.
        """
        if self._is_known_to_its_server(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        silent = time.time() - self._last_event(run)
        if silent < SILENT_SECONDS:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "its code server does not have it, but it logged something lately"
            )
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            f"its code server does not have the run, which has logged nothing for {silent:.0f} s: its process died",
        )

    def _is_known_to_its_server(self, run: DagsterRun) -> bool:
        from dagster._grpc.client import DagsterGrpcClient
        from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult

        if GRPC_INFO_TAG not in run.tags:
            return False
        place = json.loads(run.tags[GRPC_INFO_TAG])
        client: DagsterGrpcClient = DagsterGrpcClient(
            port=place.get("port"), socket=place.get("socket"), host=place.get("host"), use_ssl=bool(place.get("use_ssl"))
        )
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=_TIMEOUT_SECONDS)
        except DagsterUserCodeUnreachableError:
            return False
        return bool(deserialize_value(answer, CanCancelExecutionResult).can_cancel)

    def _last_event(self, run: DagsterRun) -> float:
        records = self._instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        if records:
            return float(records[0].event_log_entry.timestamp)
        record = self._instance.get_run_record_by_id(run.run_id)
        return float(record.update_timestamp.timestamp()) if record else 0.0
