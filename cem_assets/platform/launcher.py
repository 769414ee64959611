"""A run launcher that notices dead runs: Dagster's default one cannot tell, and they would stay started for ever.

Runs are processes of the code server. When it is killed with them, or its machine goes away, nobody reports the
end; run monitoring asks the launcher, and this one asks the code server whether it still has the run. Named in both
dagster.yaml; on Kubernetes the chart's launcher knows better and is used instead.
"""

import json
import time
from typing import TYPE_CHECKING

from dagster import DagsterRun, DefaultRunLauncher, deserialize_value
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

if TYPE_CHECKING:
    pass

SILENT_SECONDS = 120.0
"""A run that logged something within this time is alive, whatever the code server says."""
_TIMEOUT_SECONDS = 10


class WatchedRunLauncher(DefaultRunLauncher):  # type: ignore[misc,unused-ignore]
    """Launches runs as Dagster's default launcher does, and can tell whether they are alive."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Tell whether a run's process is alive.

        Args:
            run: A run that is started.

        Returns:
            RUNNING where its code server has it, or where it logged something lately; else FAILED.
        """
        if self._is_known_to_its_server(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        silent = time.time() - self._last_event(run)
        if silent < SILENT_SECONDS:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "its code server does not know it, but it logged something lately"
            )
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            f"its code server does not know the run (any more), and it has been silent for {silent:.0f} s: its process died",
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
