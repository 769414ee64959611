"""A platform without a daemon: tests tick sensors and schedules, and run what these request in their own process."""

import dagster as dg

from cem_assets.cem.reconciliation import CHAIN
from cem_assets.definitions import build_definitions
from cem_assets.platform.resources import StoreResource
from cem_assets.store.manifests import manifest_numbers
from cem_assets.store.store import Store


class Platform:
    """A store, a Dagster instance, and the cursors of the sensors."""

    def __init__(self, store: Store, instance: dg.DagsterInstance) -> None:
        self.store, self.instance, self.cursors = store, instance, {}

    def tick(self, sensor) -> dg.SensorResult:
        with dg.build_sensor_context(
            self.instance, cursor=self.cursors.get(sensor.name), resources={"store": StoreResource(url=self.store.url)},
            sensor_name=sensor.name, definitions=build_definitions(self.store.url),
        ) as context:  # fmt: skip
            result = sensor(context)
        if result.cursor:  # like Dagster: an empty cursor does not replace the last one
            self.cursors[sensor.name] = result.cursor
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        return result

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        job = build_definitions(self.store.url).resolve_job_def(request.job_name)
        return job.execute_in_process(
            run_config=request.run_config or {},
            instance=self.instance,
            partition_key=request.partition_key,
            asset_selection=request.asset_selection,
            tags=dict(request.tags),
            raise_on_error=False,
        )

    def tick_and_run(self, sensor) -> dict[str, list[str]]:
        """Tick a sensor and run what it requests; return the requested assets by dataset."""
        asked = {}
        for request in self.tick(sensor).run_requests:
            asked[request.partition_key] = [key.to_user_string() for key in request.asset_selection]
            self.run(request)
        return asked

    def num_commits(self, dataset: str) -> dict[str, int]:
        return {asset: len(manifest_numbers(self.store, f"{asset}/{dataset}")) for asset in CHAIN}
