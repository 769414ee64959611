"""What runs by itself for CytoImageNet: a sensor that keeps metadata, labels and crops current, and a release schedule.

The sensor notices new sources in the inbox (`inbox/*/source.toml` is written last), and requests metadata, labels and crops
that are missing or stale. `cem_assets.cytoimagenet.reconciliation` decides what is needed.
"""

import json
import time

import dagster as dg

from cem_assets import environment
from cem_assets.cytoimagenet.jobs import cyto_crops, cyto_label_table, cyto_release, cyto_sources, cyto_test_images
from cem_assets.cytoimagenet.reconciliation import (
    CytoSettings,
    CytoWork,
    crop_works,
    label_table_work,
    read_cyto_settings,
    source_works,
    test_images_work,
)
from cem_assets.cytoimagenet.releases.stage import is_cyto_release_due
from cem_assets.platform.attempts import MAX_REQUESTS, TICK_SECONDS, UNFINISHED, WORK_TAG, Attempt, attempt_at
from cem_assets.platform.partitions import cyto_labels, microscopy_sources, missing_partitions
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import CROPS, CYTO_RELEASES, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES

JOBS = {
    SOURCE_METADATA: cyto_sources.name,
    TEST_IMAGES: cyto_test_images.name,
    LABEL_TABLE: cyto_label_table.name,
    CROPS: cyto_crops.name,
}


def cyto_run_request(work: CytoWork, settings: CytoSettings, attempt: Attempt) -> dg.RunRequest:
    """Make the request for the run that does some work."""
    config = settings.config.get(work.asset, {})
    return dg.RunRequest(
        run_key=f"{work.asset}:{work.partition}:{work.key}:{attempt.number}",
        job_name=JOBS[work.asset],
        partition_key=work.partition or None,
        run_config={"ops": {work.asset.replace("/", "__"): {"config": config}}} if config else {},
        tags={WORK_TAG: work.key, "cem_assets/reason": work.reason, **attempt.tags},
    )


class _Tick:
    """One evaluation of the sensor: the runs to request, the work that waits, and when to stop."""

    def __init__(self, instance: dg.DagsterInstance, settings: CytoSettings) -> None:
        self._instance, self._settings, self._started = instance, settings, time.monotonic()
        self.requests: list[dg.RunRequest] = []
        self.waiting: list[str] = []

    def add(self, work: CytoWork) -> None:
        """Request a run for the work, or note why it has to wait."""
        attempt = attempt_at(self._instance, JOBS[work.asset], work.partition, work.key, work.is_look_only)
        if attempt.why_not is None:
            self.requests.append(cyto_run_request(work, self._settings, attempt))
        else:
            self.waiting.append(f"{work.partition or work.asset} ({attempt.why_not})")

    @property
    def is_over(self) -> bool:
        return len(self.requests) >= MAX_REQUESTS or time.monotonic() - self._started > TICK_SECONDS

    def has_runs(self, job: str) -> bool:
        return bool(self._instance.get_run_records(dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1))


@dg.sensor(
    name="cytoimagenet",
    jobs=[cyto_sources, cyto_test_images, cyto_label_table, cyto_crops],
    minimum_interval_seconds=environment.whole_number(environment.RECONCILIATION_SECONDS, lowest=0),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notices microscopy sources in the inbox (inbox/<source>/source.toml), and requests metadata, labels and crops "
    "that are missing or stale.",
)
def cytoimagenet_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """Check the sources, then the label table, then as many crops as one evaluation has time for."""
    opened = store.open()
    settings = read_cyto_settings(opened)
    cursor = json.loads(context.cursor or "{}")
    tick = _Tick(context.instance, settings)
    sources: list[str] = []
    after = str(cursor.get("source", ""))
    is_all = True
    for source, work in source_works(opened, after):
        after = source
        sources.append(source)
        if work is not None:
            tick.add(work)
        if tick.is_over:
            is_all = False
            break
    labels: list[str] = []
    label = str(cursor.get("label", ""))
    if is_all:
        after = ""
        # The label table covers all sources; if it were made while a source is being read, it would be made twice.
        if not tick.requests and not tick.has_runs(JOBS[SOURCE_METADATA]):
            for work in (test_images_work(opened), label_table_work(opened, settings)):
                if work is not None:
                    tick.add(work)
        is_settled = not tick.requests and not any(tick.has_runs(JOBS[asset]) for asset in (LABEL_TABLE, TEST_IMAGES))
        if is_settled:
            for key, work in crop_works(opened, settings, label):
                label = key
                labels.append(key)
                if work is not None:
                    tick.add(work)
                if tick.is_over:
                    break
            else:
                label = ""
    message = f"checked {len(sources):,} sources and {len(labels):,} labels; there is nothing to request"
    if tick.waiting:
        message += f"; waiting: {', '.join(tick.waiting[:10])}{' and more' if len(tick.waiting) > 10 else ''}"
    return dg.SensorResult(
        run_requests=tick.requests,
        skip_reason=None if tick.requests else message,
        cursor=json.dumps({"source": after, "label": label}),
        dynamic_partitions_requests=[
            *missing_partitions(context.instance, microscopy_sources, sources),
            *missing_partitions(context.instance, cyto_labels, labels),
        ],
    )


@dg.schedule(
    name="cytoimagenet_releases",
    job=cyto_release,
    cron_schedule=environment.text(environment.RELEASE_CRON),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Makes a release of CytoImageNet when crops changed since the last one (CEM_ASSETS_RELEASE_CRON).",
)
def cyto_release_schedule(context: dg.ScheduleEvaluationContext, store: StoreResource) -> dg.RunRequest | dg.SkipReason:
    """Request a release if one is due and no crops are being made."""
    for job in (cyto_release.name, cyto_crops.name, cyto_label_table.name):
        if context.instance.get_run_records(dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1):
            return dg.SkipReason(f"a run of {job} is in progress")
    event = context.instance.get_latest_materialization_event(dg.AssetKey(CYTO_RELEASES.split("/")))
    is_fresh = event is not None and time.time() - event.timestamp < 7 * 24 * 3600
    if not is_cyto_release_due(store.open()) and (is_fresh or event is None):
        return dg.SkipReason("the newest release holds all crops that are ready, unchanged")
    return dg.RunRequest()
