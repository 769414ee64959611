"""What every asset body shares: explained failures, progress, and metadata that people can look at."""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from cem_assets.execution.stage import Progress, StageResult, logged_progress
from cem_assets.store.faults import is_transient
from cem_assets.store.store import Store

MAX_RETRIES = 3
RETRY_DELAY_SECONDS = 10.0
"""Before the first retry; doubled for each one after it. For trouble with the store or the network only."""

FAULT_TAG = "cem_assets/fault"
"""Tag of runs that failed because of their data: the same work is not asked for again until something changed."""

_listeners: list[Any] = []


@contextmanager
def explained(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, metadata: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Turn errors of the data into failures in words, and trouble with the store into a later retry.

    Args:
        context: Of the step.
        metadata: Shown with a failure, such as a link to the quarantine report.
    """
    try:
        yield
    except Exception as error:
        if is_transient(error):
            wait = RETRY_DELAY_SECONDS * 2**context.retry_number
            context.log.warning(f"the store or the network is in trouble ({type(error).__name__}: {error})")
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait) from error
        if isinstance(error, ValueError | KeyError | OSError | RuntimeError):
            message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            if not isinstance(error, OSError):  # a full disk, say, is no fault of the data
                context.instance.add_run_tags(context.run_id, {FAULT_TAG: "data"})
            raise dg.Failure(description=message, allow_retries=False, metadata=metadata) from error
        raise


@contextmanager
def progress_listener(listener: Any) -> Iterator[None]:
    """Send progress of steps in this process to a listener `(asset, partition, done, total)` as well."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def progress_of(context: dg.AssetExecutionContext, what: str) -> Progress:
    """Report progress as log lines, and to whoever listens in this process.

    Args:
        context: Of the asset.
        what: What is counted.
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


def materialized(
    store: Store, result: StageResult, pictures: Mapping[str, bytes], rate: tuple[str, int] | None = None
) -> dg.MaterializeResult[Any]:
    """Describe a stage's result to Dagster.

    Args:
        store: Where it lies.
        result: Of the stage.
        pictures: By metadata label.
        rate: What was worked off and how much, for a throughput.

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
    metadata |= {label: picture(data) for label, data in pictures.items()}
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(manifest.digest))
