"""The tick of every sensor and schedule with 10, 1,000 and 5,000 datasets (and labels), on local disk and on S3.

Every partition is committed and current, so a tick has to find out that there is nothing to do. The same is measured for as
many datasets, up to 1,000, that wait in the inbox. The longest tick of a whole pass counts, and a tick over 10 s is too long.
The first pass of the inbox sees everything for the first time. So do schedules, because their ticks have no cursor.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from cem_assets.definitions import build_definitions
from cem_assets.platform.attempts import MAX_REQUESTS
from cem_assets.platform.partitions import cyto_labels, em_datasets, microscopy_sources
from cem_assets.platform.resources import StoreResource
from cem_assets.store import manifest_facts
from cem_assets.store.store import Store, open_store
from perf.s3_server import s3_bucket
from perf.tick_stores import UnsyncedStore, fill_chain, fill_cytoimagenet, fill_inbox, names_of
from perf.timing import Measured

GOAL_SECONDS = 10.0
MAX_TICKS = 400
ARRIVAL_TICKS = 20
"""Ticks of 25 runs each that are measured; later ones repeat them."""
SENSORS = ("inbox", "reconciliation", "cytoimagenet", "weights", "benchmarks", "tracking_outbox", "freshness_alerts")
SCHEDULES = ("releases", "cytoimagenet_releases", "catalogue", "maintenance")


class Ticker:
    """A store, a Dagster instance and the sensors' cursors. Runs that ticks request are not started."""

    def __init__(self, store: Store, instance: dg.DagsterInstance) -> None:
        self.store, self.instance = store, instance
        self.definitions = build_definitions(store.url)
        self.repository = self.definitions.get_repository_def()
        self.cursors: dict[str, str | None] = {}

    def tick(self, name: str) -> tuple[float, Any]:
        """Tick a sensor or a schedule; return its seconds and what came of it."""
        resources = {"store": StoreResource(url=self.store.url)}
        if name in SCHEDULES:
            with dg.build_schedule_context(
                self.instance, scheduled_execution_time=datetime(2026, 11, 21, tzinfo=UTC), resources=resources
            ) as context:
                started = time.perf_counter()
                result = self.repository.get_schedule_def(name).evaluate_tick(context)
                return time.perf_counter() - started, result
        with dg.build_sensor_context(
            self.instance, cursor=self.cursors.get(name), resources=resources, sensor_name=name, definitions=self.definitions
        ) as context:
            started = time.perf_counter()
            with dg.partition_loading_context(dynamic_partitions_store=self.instance):
                result = self.repository.get_sensor_def(name).evaluate_tick(context)
            seconds = time.perf_counter() - started
        self.cursors[name] = result.cursor
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        return seconds, result

    def whole_pass(self, name: str, max_ticks: int = MAX_TICKS) -> tuple[list[float], int]:
        """Tick until the cursor is back at its beginning; return the seconds of every tick and the number of requested runs."""
        seconds, num_asked = [], 0
        while True:
            took, result = self.tick(name)
            seconds.append(took)
            num_asked += len(result.run_requests or [])
            if name in SCHEDULES or _is_at_start(self.cursors.get(name)) or len(seconds) >= max_ticks:
                assert len(seconds) < MAX_TICKS, f"{name} does not come to an end; its cursor is {self.cursors.get(name)}"
                return seconds, num_asked


def _is_at_start(cursor: str | None) -> bool:
    """Tell whether a sensor continues at the first partition, whatever else its cursor holds."""
    if not cursor or not cursor.startswith("{"):
        return not cursor
    places = json.loads(cursor)
    return not any(places.get(key) for key in ("after", "source", "label"))


def measure_store(store: Store, writer: Store, num: int, where: str) -> list[Measured]:
    """Measure every tick of a store of `num` datasets, sources (a tenth) and labels."""
    fill_chain(writer, num)
    num_sources = max(1, num // 10)
    fill_cytoimagenet(writer, num_sources, num)
    rows = []
    with dg.DagsterInstance.local_temp() as instance:
        instance.add_dynamic_partitions(str(em_datasets.name), names_of(num))
        ticker = Ticker(store, instance)
        for name in (*SENSORS, *SCHEDULES):
            if name in SCHEDULES or name == SENSORS[0]:  # forget manifests, as in a process that was just started
                manifest_facts._memory = manifest_facts._Memory(manifest_facts.MAX_BYTES)
            first, num_asked = ticker.whole_pass(name)
            # The inbox sensor sees these datasets for the first time. Nothing is missing, so it may not request runs.
            assert num_asked == 0 or name == "maintenance", f"{name} asked for {num_asked} runs, though nothing is missing"
            again, _ = ticker.whole_pass(name)
            note = f"all current; a pass is {len(again)} tick(s), {sum(again):.1f} s (first {len(first)}, {sum(first):.1f} s)"
            rows.append(_row(f"tick of {name}, {num:,} partitions, {where}", max(first + again), note))
        assert len(instance.get_dynamic_partitions(str(microscopy_sources.name))) == num_sources
        assert len(instance.get_dynamic_partitions(str(cyto_labels.name))) == num
    return rows


def measure_arrivals(store: Store, writer: Store, num: int, where: str) -> list[Measured]:
    """Measure the inbox sensor while `num` datasets wait that it has not seen yet."""
    fill_inbox(writer, names_of(num))
    with dg.DagsterInstance.local_temp() as instance:
        # The daemon adds a tick's partitions before its requests. Here they must be there before the tick.
        instance.add_dynamic_partitions(str(em_datasets.name), names_of(num))
        ticker = Ticker(store, instance)
        seconds, num_asked = ticker.whole_pass("inbox", ARRIVAL_TICKS)
        assert num_asked == min(num, ARRIVAL_TICKS * MAX_REQUESTS)
    note = f"{len(seconds)} tick(s), {sum(seconds):.1f} s, ask for {num_asked:,} runs"
    return [_row(f"tick of inbox, {num:,} new datasets, {where}", max(seconds), note)]


def _row(work: str, seconds: float, note: str) -> Measured:
    """Make a row. Its ratio says how many such ticks would fit into the time that one tick may take."""
    return Measured(work, "ticks/s", 1 / seconds, 1 / GOAL_SECONDS, f"one tick in {GOAL_SECONDS:g} s", 1, note)


def measure(is_quick: bool = False) -> list[Measured]:
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    rows, removals = [], []
    for num in (10, 100) if is_quick else (10, 1000, 5000):
        for measured in measures(num):
            folder = tempfile.mkdtemp()
            try:
                rows += measured(open_store(folder), UnsyncedStore(folder), num, "local disk")
            finally:  # deleting 100,000 files takes half a minute, in the background
                removals.append(subprocess.Popen(["rm", "-rf", folder]))
    try:
        with s3_bucket("memstore") as bucket:
            for num in (10,) if is_quick else (10, 1000, 5000):
                for measured in measures(num):
                    store = open_store(f"s3://{bucket}/{measured.__name__}-{num}")
                    rows += measured(store, store, num, "S3")
    except RuntimeError as error:
        print(f"  {error}", flush=True)
    for removal in removals:
        removal.wait()
    return rows


def measures(num: int) -> tuple[Callable[[Store, Store, int, str], list[Measured]], ...]:
    """Return what is measured at a size. Arrivals are left out at large sizes, because their first ticks would be the same."""
    return (measure_store, measure_arrivals) if num <= 1000 else (measure_store,)
