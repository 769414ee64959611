"""What runs automatically: the inbox sensor, the reconciliation sensor, and the schedule of releases.

The state of the store decides what is missing or stale (`cem_assets.cem.reconciliation`). Dagster's runs only tell which work
is being done or was tried already. Every tick has a time limit, and the next tick continues where it stopped.
"""

import json
import time
from collections.abc import Iterator, Mapping
from itertools import islice

import dagster as dg

from cem_assets import environment
from cem_assets.cem.jobs import cem_chain, cem_release
from cem_assets.cem.reconciliation import (
    DatasetState,
    Work,
    classifier_digest,
    is_release_due,
    look_at_all,
    look_at_these,
    needed_work,
)
from cem_assets.cem.settings import Settings, read_settings
from cem_assets.errors import DataError
from cem_assets.inbox.datasets import Arrival, Rejection, arrivals, read_description
from cem_assets.inbox.quarantine import report_key, write_report
from cem_assets.platform.attempts import MAX_REQUESTS, TICK_SECONDS, UNFINISHED, WORK_TAG, Attempt, attempt_at
from cem_assets.platform.partitions import em_datasets, missing_partitions
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import RELEASES, VOLUMES
from cem_assets.store.store import Store

_STEP = 128
"""Number of datasets of the inbox that are looked at together. On a slow store, this must not take much longer than
TICK_SECONDS."""
GRACE_SECONDS = 120.0
"""For so long after a dataset arrived, reconciliation leaves it to the inbox sensor if it had no run yet."""


def run_request(work: Work, settings: Settings, attempt: Attempt) -> dg.RunRequest:
    """Make the request of a run that does some work, with the parameters from the settings."""
    config = {asset: settings.config(work.dataset, asset) for asset in work.assets}
    return dg.RunRequest(
        run_key=f"{work.dataset}:{work.key}:{attempt.number}",
        job_name=cem_chain.name,
        partition_key=work.dataset,
        asset_selection=[dg.AssetKey(asset.split("/")) for asset in work.assets],
        run_config={"ops": {asset.replace("/", "__"): {"config": values} for asset, values in config.items() if values}},
        tags={
            WORK_TAG: work.key,
            "cem_assets/reason": "; ".join(f"{asset.removeprefix('cem/')}: {text}" for asset, text in work.reasons.items()),
            **attempt.tags,
        },
    )


@dg.sensor(
    name="inbox",
    job=cem_chain,
    minimum_interval_seconds=environment.whole_number(environment.INBOX_SECONDS, lowest=0),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests the chain for every dataset in inbox/ whose dataset.toml, which is written last, is new or changed.",
)
def inbox_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """Look for datasets that arrived or changed since the last look."""
    opened = store.open()
    cursor = json.loads(context.cursor or "{}")
    seen: dict[str, str] = cursor.get("seen", {})
    settings, classifier = read_settings(opened), classifier_digest(opened)
    requests: list[dg.RunRequest] = []
    partitions: list[str] = []
    observations: list[dg.AssetObservation] = []
    started, after = time.monotonic(), str(cursor.get("after", ""))
    for arrival, state in _looked_at(opened, seen, after):
        # The cursor moves past every dataset, whether it is new or not.
        after = arrival.dataset
        if state is not None:
            works = needed_work([state], classifier, settings)
            # The description of a committed and current dataset was checked before, unless the dataset was uploaded again.
            is_settled = VOLUMES in state.committed and not works and arrival.dataset not in seen
            problem = None if is_settled else _problem(opened, arrival)
            if problem is not None:
                observations.append(_refused(opened, arrival.dataset, problem))
            else:
                partitions.append(arrival.dataset)
                requests += [run_request(work, settings, Attempt()) for work in works]
            seen[arrival.dataset] = arrival.fingerprint[:8]
        if len(requests) >= MAX_REQUESTS or time.monotonic() - started > TICK_SECONDS:
            break
    else:
        after = ""
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"nothing new among {len(seen):,} datasets of the inbox",
        cursor=json.dumps({"after": after, "seen": seen}, separators=(",", ":")),
        dynamic_partitions_requests=missing_partitions(context.instance, em_datasets, partitions),
        asset_events=observations,
    )


def _looked_at(store: Store, seen: Mapping[str, str], after: str) -> Iterator[tuple[Arrival, DatasetState | None]]:
    """Yield the datasets of the inbox after a name, and the states of those that are new or were uploaded again."""
    found = arrivals(store, after)
    while step := list(islice(found, _STEP)):
        news = [arrival for arrival in step if seen.get(arrival.dataset) != arrival.fingerprint[:8]]
        states = {state.dataset: state for state in look_at_these(store, news, after, len(step))}
        after = step[-1].dataset
        yield from ((arrival, states.get(arrival.dataset)) for arrival in step)


def _problem(store: Store, arrival: Arrival) -> str | None:
    try:
        read_description(store, arrival.dataset)
    except (DataError, FileNotFoundError) as error:
        write_report(store, arrival.dataset, [Rejection("dataset.toml", str(error))], is_refused=True)
        return str(error)
    return None


def _refused(store: Store, dataset: str, problem: str) -> dg.AssetObservation:
    return dg.AssetObservation(
        asset_key=VOLUMES.split("/"),
        description=f"{dataset} was refused: {problem.splitlines()[0]}",
        metadata={
            "dataset": dataset,
            "problem": dg.MetadataValue.md(f"```\n{problem}\n```"),
            "quarantine report": dg.MetadataValue.path(store.url_of(report_key(dataset))),
        },
    )


@dg.sensor(
    name="reconciliation",
    job=cem_chain,
    minimum_interval_seconds=environment.whole_number(environment.RECONCILIATION_SECONDS, lowest=0),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Compares what the store has with what it should have, and requests runs for what is missing or stale.",
)
def reconciliation_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """Look at as many datasets after the cursor as a tick has time for."""
    opened = store.open()
    settings, classifier = read_settings(opened), classifier_digest(opened)
    requests: list[dg.RunRequest] = []
    waiting: list[str] = []
    partitions: list[str] = []
    started, after, num_looked = time.monotonic(), _place_of(context.cursor or ""), 0
    for state in look_at_all(opened, after):
        dataset, arrival = state.dataset, state.arrival
        after = dataset
        num_looked += 1
        works = needed_work([state], classifier, settings)
        # The description of a committed and current dataset was checked before. Reading it takes two requests, so it is only
        # read if there is work to do.
        if VOLUMES in state.committed and not works:
            partitions.append(dataset)
        elif works and (arrival is None or _is_described(opened, dataset)):
            partitions.append(dataset)
            for work in works:
                attempt = _attempt(context.instance, work, arrival)
                if attempt.why_not is None:
                    requests.append(run_request(work, settings, attempt))
                else:
                    waiting.append(f"{dataset} ({attempt.why_not})")
        if len(requests) >= MAX_REQUESTS or time.monotonic() - started > TICK_SECONDS:
            break
    else:
        after = ""
    told = f"looked at {num_looked:,} datasets; no work to request"
    if waiting:
        told += f"; waiting: {', '.join(waiting[:10])}{' and more' if len(waiting) > 10 else ''}"
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else told,
        # The cursor is never an empty text. Dagster would take that for no cursor and keep the last one, so the sensor would
        # never begin from the start again.
        cursor=json.dumps({"after": after}),
        dynamic_partitions_requests=missing_partitions(context.instance, em_datasets, partitions),
    )


def _place_of(cursor: str) -> str:
    """Return the name in the cursor after which to continue. Earlier versions wrote the bare name."""
    return str(json.loads(cursor)["after"]) if cursor.startswith("{") else cursor


def _is_described(store: Store, dataset: str) -> bool:
    try:
        read_description(store, dataset)
    except (DataError, FileNotFoundError):
        return False  # the inbox sensor writes the report
    return True


def _attempt(instance: dg.DagsterInstance, work: Work, arrival: Arrival | None) -> Attempt:
    """Return the attempt at some work that would be next, and the reason if it should not be made now."""
    of_dataset = {"dagster/partition": work.dataset}
    if instance.get_run_records(dg.RunsFilter(job_name=cem_chain.name, tags=of_dataset, statuses=UNFINISHED), limit=1):
        return Attempt(why_not="a run is under way")
    is_new = arrival is not None and time.time() - arrival.modified < GRACE_SECONDS
    if is_new and not instance.get_run_records(dg.RunsFilter(job_name=cem_chain.name, tags=of_dataset), limit=1):
        return Attempt(why_not="it just arrived; the inbox sensor takes it in")
    return attempt_at(instance, cem_chain.name, work.dataset, work.key, work.is_look_only)


@dg.schedule(
    name="releases",
    job=cem_release,
    cron_schedule=environment.text(environment.RELEASE_CRON),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Makes a release if filtered partitions changed since the last one (CEM_ASSETS_RELEASE_CRON).",
)
def release_schedule(context: dg.ScheduleEvaluationContext, store: StoreResource) -> dg.RunRequest | dg.SkipReason:
    """Request a release if one is due."""
    if context.instance.get_run_records(dg.RunsFilter(job_name=cem_release.name, statuses=UNFINISHED), limit=1):
        return dg.SkipReason("a release is being made")
    # Once a week the release is materialized even if none is due: the newest one is checked again, and shown as fresh.
    event = context.instance.get_latest_materialization_event(dg.AssetKey(RELEASES.split("/")))
    is_fresh = event is not None and time.time() - event.timestamp < 7 * 24 * 3600
    if not is_release_due(store.open()) and (is_fresh or event is None):
        return dg.SkipReason("the newest release has all filtered patches as they are now")
    return dg.RunRequest()
