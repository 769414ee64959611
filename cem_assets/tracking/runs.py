"""Tracking of long trainings, which never wait for MLflow and lose no events.

A training logs to the run that `open_tracked_run` returns. Every call writes an entry to the store and returns; a thread sends
the entries to MLflow. Entries that are left after a killed process or a day without MLflow are sent by the same run when it is
resumed, or by `cem_assets.tracking.outbox.drain_outbox`. That module describes the entries in the store.
`cem_assets.tracking.mlflow.log_run` is for runs that are logged once, at their end.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from cem_assets.store.store import Store, check_key
from cem_assets.tracking.mlflow import KEY_TAG, Metric, RunLink, TrackingEvent, TrackingServer
from cem_assets.tracking.outbox import OUTBOX, Lease, append_entry, check_run_key, deliver_entry, next_number, waiting_entries

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_POINTS_AT_ONCE = 1000
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0
_BUSY_PAUSE_S = 2.0
_NAME_PART = re.compile(r"[\w.+=@, -]+")


class TrackedRun:
    """A training run in MLflow, which several processes and machines may continue in turn; see `open_tracked_run`.

    Calls write to the store and return. They raise the errors of the store, and a ValueError for events that MLflow could never
    accept. Several threads may use it. As a context manager it finishes the run if that was not done (as FAILED after an
    exception, KILLED after an interruption) and closes it.
    """

    def __init__(self, store: Store, key: str, experiment: str, run_name: str) -> None:
        self._store, self._key, self._experiment, self._run_name = store, key, experiment, run_name
        self._number = next_number(store, key)
        self._lock = threading.Lock()
        self._is_finished = False
        self._link: RunLink | None = None
        self._wake, self._linked, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._deadline = math.inf
        self._lease = Lease(store, key, "run")
        self._server: TrackingServer | None = None
        self._sender = threading.Thread(target=self._send, name=f"tracking-{key[:8]}", daemon=True)

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Log points of curves with the current time; values may be infinite or NaN."""
        points = [
            (point.key, float(point.value) if math.isfinite(point.value) else str(float(point.value)), int(point.step))
            for point in metrics
        ]
        for start in range(0, len(points), _POINTS_AT_ONCE):
            self._append("metrics", {"points": points[start : start + _POINTS_AT_ONCE]})

    def log_artifact(self, name: str, data: bytes) -> None:
        """Log a file, such as `views/epoch_001.png`; a file of the same name is replaced."""
        self._append("artifact", {"name": _checked_name(name)}, data)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; tags of the same name are replaced."""
        self._append("tags", {"tags": _checked_tags(tags)})

    def register_model(self, name: str, folder: str, tags: Mapping[str, str], description: str) -> None:
        """Make a version of a registered model from artifacts that were logged before.

        Args:
            name: The registered model, which is made if it does not exist.
            folder: The folder of the artifacts in the run.
            tags: Tags of the version. Its `digest` is that of the weights; there is one version for each digest.
            description: The description of the version.
        """
        if not tags.get("digest"):
            raise ValueError(
                f"model {name!r} has no tag 'digest'; expected the digest of its weights, by which it is made once"
            )
        if not re.fullmatch(r"[\w. -]+", name):
            raise ValueError(f"model name {name!r} is not allowed; expected letters, digits, '_', '.', '-' and blanks")
        body = {"name": name, "folder": _checked_name(folder), "tags": _checked_tags(tags), "description": description}
        self._append("model", body)

    def set_alias(self, name: str, digest: str, alias: str, group: str) -> None:
        """Give a version of a registered model an alias, and remove the alias from every other model of the group.

        Args:
            name: The registered model.
            digest: The `digest` of the version, which `register_model` made before.
            alias: Such as `champion`. It is also the name of the tag that holds a model's group.
            group: A set of models of which one version has the alias.
        """
        for what, text in (("alias", alias), ("group", group)):
            if not re.fullmatch(r"[A-Za-z][\w-]*", text, re.ASCII):
                raise ValueError(f"{what} {text!r} is not allowed; expected letters, digits, '_' and '-', a letter first")
        self._append("alias", {"name": name, "digest": digest, "alias": alias, "group": group})

    def finish(self, status: Status) -> None:
        """Set how the run ended; opening the key again sets it back to running."""
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"status {status!r} is unknown; expected FINISHED, FAILED or KILLED")
        self._append("finish", {"status": status})
        self._is_finished = True

    def link(self, wait_s: float = 5.0) -> RunLink | None:
        """Return a link to the run, or None if MLflow was not reached within `wait_s`."""
        self._linked.wait(wait_s)
        return self._link

    def close(self, wait_s: float = 10.0) -> None:
        """Stop delivering after at most `wait_s`; `drain_outbox` delivers the rest. Closing twice does no harm."""
        self._deadline = time.monotonic() + wait_s
        self._closing.set()
        self._wake.set()
        if self._sender.is_alive():
            self._sender.join(wait_s + _FIRST_PAUSE_S)  # the thread needs this time to notice, and to release the lease
        if left := len(waiting_entries(self._store, self._key)):
            logger.warning("%d entries for MLflow wait in %s; drain_outbox delivers them.", left, f"{OUTBOX}/{self._key}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is not None and not self._is_finished:
                self.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            elif not self._is_finished:
                self.finish("FINISHED")
            self.close()
        except Exception:
            if error is None:
                raise
            # The error that ended the run matters more than the one about logging its end.
            logger.warning("the end of tracked run %s could not be written to the store", self._key, exc_info=True)

    def _append(self, kind: str, body: Mapping[str, Any], data: bytes = b"") -> None:
        now_ms = int(time.time() * 1000)
        event = TrackingEvent(self._key, self._experiment, self._run_name, kind, now_ms, body, data)
        with self._lock:
            self._number = append_entry(self._store, self._key, self._number, event)
        self._wake.set()

    def _send(self) -> None:
        """Deliver entries until the run is closed; trouble is logged once for each outage, and delivery is tried again."""
        pause_s, is_down = _FIRST_PAUSE_S, False
        while True:
            self._wake.clear()
            trouble, is_done = "", False
            try:
                is_done = self._deliver()
            except Exception as error:  # noqa: BLE001  no error of MLflow, the store or the network may stop the training
                trouble = str(error) if isinstance(error, ConnectionError) else f"{type(error).__name__}: {error}"
            if trouble and not is_down:
                logger.warning(
                    "tracking cannot be delivered (%s); entries wait in %s/%s until it can.", trouble, OUTBOX, self._key
                )
            elif is_down and not trouble:
                logger.info("tracking of %s is delivered again.", self._key)
            is_down = bool(trouble)
            if self._closing.is_set() and (is_done or time.monotonic() > self._deadline):
                break
            if is_done:
                pause_s = _FIRST_PAUSE_S
                self._wake.wait()
            elif self._closing.is_set():  # `close` waits, so attempts follow each other quickly
                time.sleep(max(0.0, min(_FIRST_PAUSE_S, self._deadline - time.monotonic())))
            else:
                self._closing.wait(pause_s if trouble else _BUSY_PAUSE_S)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S) if trouble else _FIRST_PAUSE_S
        with suppress(Exception):  # a lease that cannot be released expires by itself
            self._lease.release()

    def _deliver(self) -> bool:
        """Deliver the waiting entries; return whether all were delivered."""
        self._server = self._server or TrackingServer()
        while entries := waiting_entries(self._store, self._key):
            for entry in entries:
                if time.monotonic() > self._deadline or not self._lease.hold():
                    return False
                self._found(deliver_entry(self._store, self._server, entry, self._closing.wait))
        if self._link is None and not self._closing.is_set():  # another process has delivered the first entries
            self._found(self._server.find(self._key, self._experiment))
        return True

    def _found(self, link: RunLink | None) -> None:
        if link is not None:
            self._link = link
            self._linked.set()


def open_tracked_run(
    store: Store,
    key: str,
    experiment: str,
    run_name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
) -> TrackedRun:
    """Open a run that is tracked while it goes on, or continue one.

    MLflow may be down meanwhile. The same key always continues the same MLflow run, which is found by the tag `cem_assets.key`
    and set back to RUNNING. MLflow refuses new values for known parameters. A parameter that changed when the run was resumed
    keeps its first value there, and the tag `param.<name>` has the new one.

    Args:
        store: The store that holds the outbox.
        key: A hexadecimal digest that identifies the training run.
        experiment: The MLflow experiment, which is made if it does not exist.
        run_name: The name in MLflow's list of runs; that of the first opening is kept.
        parameters: Values that are logged as text.
        tags: Tags that are set again at every opening.

    Returns:
        The run, whose thread is delivering already.

    Raises:
        OSError: The store cannot be written.
    """
    if not experiment.strip():
        raise ValueError(
            f"experiment {experiment!r} of tracked run {key} has no name; expected one such as 'pretraining/mocov2'"
        )
    body = {"parameters": {str(name): str(value) for name, value in parameters.items()}, "tags": _checked_tags(tags)}
    run = TrackedRun(store, check_run_key(key), experiment, run_name)
    run._append("open", body)
    run._sender.start()
    return run


def _checked_name(name: str) -> str:
    for part in check_key(name).split("/"):
        if not _NAME_PART.fullmatch(part):
            raise ValueError(f"artifact name {name!r} is not allowed; expected letters, digits and '_.+=@,- ' between '/'")
    return name


def _checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    if KEY_TAG in tags:
        raise ValueError(f"tag {KEY_TAG!r} is how the run is found again; expected other names")
    return {str(name): str(value) for name, value in tags.items()}
