"""The state of a training run in the store: its checkpoint, how far it is, and whether somebody wants it to stop.

A run's folder holds one `checkpoint.pt`, replaced whole (an object appears complete or not at all), `status.json` for
people who look, and `stop.json` while a stop is wanted. None of it is content of a partition: weights are committed
by `cem_assets.pretraining.weights.results`. What a checkpoint holds is `cem_assets.pretraining.training.checkpoints`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cem_assets.store.store import Store

CHECKPOINT = "checkpoint.pt"
STATUS = "status.json"
STOP = "stop.json"


@dataclass(frozen=True)
class RunStatus:
    """How far a training run is.

    Attributes:
        state: "training", "stopped", "failed" or "finished".
        epoch: Epochs done.
        num_epochs: Epochs wanted.
        step: Optimiser steps made.
        loss: Of the last epoch; None before the first is done.
        images_per_second: Of the last epoch.
        updated: When this was written, ISO 8601 in UTC.
        message: Why it stopped or failed.
    """

    state: str
    epoch: int
    num_epochs: int
    step: int
    loss: float | None = None
    images_per_second: float | None = None
    updated: str = ""
    message: str = ""


class StoreCheckpoints:
    """Keeps the newest state of one run in the store; a `cem_assets.pretraining.training.checkpoints.CheckpointStore`."""

    def __init__(self, store: Store, folder: str) -> None:
        """Name the place."""
        self._store = store
        self.key = f"{folder}/{CHECKPOINT}"

    def save(self, data: bytes) -> None:
        """Replace the state; the old one stays until the new one is whole."""
        self._store.put(self.key, data)

    def load(self) -> bytes | None:
        """Return the newest state, None where nothing was saved yet."""
        try:
            return self._store.read(self.key)
        except FileNotFoundError:
            return None


def write_status(store: Store, folder: str, status: RunStatus) -> None:
    """Write how far a run is, with the time."""
    about = asdict(status) | {"updated": datetime.now(UTC).isoformat(timespec="seconds")}
    store.put(f"{folder}/{STATUS}", json.dumps(about, indent=1).encode())


def read_status(store: Store, folder: str) -> RunStatus | None:
    """Read how far a run is; None where it never began, or what is written there is none of ours."""
    try:
        found: Any = json.loads(store.read(f"{folder}/{STATUS}"))
        return RunStatus(**found)
    except (FileNotFoundError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        return None


def request_stop(store: Store, folder: str, who: str = "") -> None:
    """Ask a run to keep its state and end."""
    about = {"who": who, "asked": datetime.now(UTC).isoformat(timespec="seconds")}
    store.put(f"{folder}/{STOP}", json.dumps(about).encode())


def withdraw_stop(store: Store, folder: str) -> None:
    """Forget that a run was to stop."""
    store.delete([f"{folder}/{STOP}"])


def stop_watch(
    store: Store, folder: str, interval_s: float = 5.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bool]:
    """Make a function that tells whether a stop was requested, asking the store now and then.

    Args:
        interval_s: Least time between two questions to the store.
        clock: Seconds.
    """
    asked = clock()
    is_wanted = False

    def is_stop_wanted() -> bool:
        nonlocal asked, is_wanted
        if not is_wanted and clock() - asked >= interval_s:
            asked = clock()
            is_wanted = store.stat(f"{folder}/{STOP}") is not None
        return is_wanted

    return is_stop_wanted
