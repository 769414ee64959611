"""What the functions of all assets share: handling of errors, progress, and metadata that people look at in the UI."""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from cem_assets import __version__, environment
from cem_assets.errors import Fault, fault_of, may_pass, needs_fewer_workers
from cem_assets.execution.local import default_num_workers, fewer_workers
from cem_assets.execution.stage import Progress, StageResult, logged_progress
from cem_assets.store.store import Store

MAX_RETRIES = 3
"""Retries of a step after trouble that may pass: the store, the network, memory."""
RETRY_DELAY_SECONDS = 10.0
"""Pause before the first retry; it doubles for each later one."""

FAULT_TAG = "cem_assets/fault"
"""Tag of failed runs that says whose fault it was, one of `cem_assets.errors.Fault`. `platform.attempts` decides by it what is
requested again, and when."""

VERSION_TAG = "cem_assets/version"
"""Tag of runs that failed because of a bug: the version of this package, so that the work is repeated after an upgrade."""

SHARE_TAG = "cem_assets/workers_divided_by"
"""Tag of runs that repeat work for which memory or disk ran out. They start so many times fewer worker processes."""

_RETRY_TAG = "dagster/retry_number"
"""Dagster's own tag of a run that replaces one whose process died, most often because memory ran out."""

_listeners: list[Any] = []
_divisors: dict[tuple[str, str], int] = {}
"""By how much the workers of a step's next attempt are divided, by run and step. Only steps that ran out of memory have one."""


@contextmanager
def explained(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, metadata: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Decide what happens after an error in a step, by whose fault the error is.

    - Where the data are at fault, the step fails with the error's own words. It is not repeated until the data change.
    - Where the store or the network is in trouble, the step is tried again after a delay, and fails when the trouble stays.
    - Where memory ran out, the step is tried again with half as many worker processes each time, and the log says so. A full
      disk fails the step; the next run of the same work uses half as many workers.
    - Everything else is a bug in this package. The step fails with its traceback, and the log asks for a report.

    A failed run gets the tag `cem_assets/fault`.

    Args:
        metadata: Shown with the failure, such as a link to the quarantine report.
    """
    divisor = _workers_divided_by(context)
    if divisor > 1:
        usual = default_num_workers()
        context.log.warning(
            "an earlier attempt ran out of memory or disk, or its process died; this one uses "
            f"{max(1, usual // divisor)} worker process(es) instead of {usual} ({environment.WORKERS})"
        )
    try:
        with fewer_workers(divisor):
            yield
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as error:
        fault = fault_of(error)
        if may_pass(error) and context.retry_number < MAX_RETRIES:
            wait = RETRY_DELAY_SECONDS * 2**context.retry_number
            if needs_fewer_workers(error):
                _divisors[_step_of(context)] = divisor * 2
            trouble = "this machine is out of memory" if fault == Fault.machine else "the store or the network is in trouble"
            context.log.warning(f"{trouble}; trying again in {wait:.0f} s ({type(error).__name__}: {error})")
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait) from error
        tags = {FAULT_TAG: str(fault)}
        if needs_fewer_workers(error):
            tags[SHARE_TAG] = str(divisor * 2)
        if fault == Fault.bug:
            tags[VERSION_TAG] = __version__
        context.instance.add_run_tags(context.run_id, tags)
        if fault == Fault.bug:
            context.log.error(
                "this is a bug in cem_assets, not a fault of the data: please report it with the traceback below. The work is "
                "repeated after an upgrade."
            )
            raise
        raise dg.Failure(description=str(error), allow_retries=False, metadata=metadata) from error


def _step_of(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> tuple[str, str]:
    return context.run_id, str(context.op_execution_context.op_handle)


def _workers_divided_by(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> int:
    """Return by what the number of workers is divided, in this step's own retries and in runs that repeat a failed one."""
    if (divisor := _divisors.get(_step_of(context))) is not None:
        return divisor
    tags = context.run.tags
    asked, died = tags.get(SHARE_TAG, ""), tags.get(_RETRY_TAG, "")
    by_tag = int(asked) if asked.isdecimal() else 1
    by_deaths = 1 << min(int(died) if died.isdecimal() else 0, 5)
    return max(1, by_tag, by_deaths)


@contextmanager
def progress_listener(listener: Any) -> Iterator[None]:
    """Call a listener with `(asset, partition, done, total)` as steps of this process make progress."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def progress_of(context: dg.AssetExecutionContext, what: str) -> Progress:
    """Return a function that reports progress in the log, and to the listeners of this process.

    Args:
        what: The things that are counted, such as "bricks hashed".
    """
    asset = context.asset_key.to_user_string()
    partition = context.partition_key if context.has_partition_key else ""
    logged = logged_progress(context.log.info, f"{partition} {what}".strip())

    def report(done: int, total: int) -> None:
        logged(done, total)
        for listener in _listeners:
            listener(asset, partition, done, total)

    return report


def picture(data: bytes) -> dg.MarkdownMetadataValue:
    """Make metadata that shows a PNG, JPEG or WebP in the UI."""
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if is_webp else "jpeg"
    return dg.MetadataValue.md(f"![picture](data:image/{kind};base64,{base64.b64encode(data).decode()})")


def card(text: str, max_chars: int = 60_000) -> dg.MarkdownMetadataValue:
    """Make metadata that shows a model or dataset card, without the YAML header that Hugging Face reads."""
    return dg.MetadataValue.md(text.split("---\n", 2)[-1][:max_chars])


def materialized(
    store: Store,
    result: StageResult,
    pictures: Mapping[str, bytes] | None = None,
    rate: tuple[str, int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult[Any]:
    """Describe a stage's result to Dagster.

    Args:
        pictures: PNG, JPEG or WebP bytes by metadata label.
        rate: The things that were worked through and their number, such as ("patches", 1200). Their number per second is
            shown.
        extra: Further metadata, shown last.

    Returns:
        Counts, bytes, parameters, pictures and links, with the manifest's digest as data version.
    """
    manifest = result.manifest
    metadata: dict[str, Any] = {name: dg.MetadataValue.int(int(count)) for name, count in manifest.counts.items()}
    metadata |= {
        "bytes": dg.MetadataValue.int(manifest.num_bytes),
        "seconds": dg.MetadataValue.float(round(result.seconds, 3)),
        "content": dg.MetadataValue.path(store.url_of(manifest.folder)),
        "manifest": dg.MetadataValue.path(store.url_of(manifest.key)),
        "digest": dg.MetadataValue.text(manifest.digest),
        "outcome": dg.MetadataValue.text("new" if result.is_new else "up to date, nothing was computed"),
    }
    if manifest.inputs.parameters:
        metadata["parameters"] = dg.MetadataValue.json(dict(manifest.inputs.parameters))
    if result.is_new and rate is not None and result.seconds > 0:
        metadata[f"{rate[0]} per second"] = dg.MetadataValue.float(round(rate[1] / result.seconds, 1))
    metadata |= {label: picture(data) for label, data in (pictures or {}).items()}
    metadata |= extra or {}
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(manifest.digest))
