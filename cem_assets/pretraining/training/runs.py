"""The state of a training run in the store: its checkpoint, its progress, and whether somebody requested a stop.

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
    """The progress of a training run.

    Attributes:
        state: "training", "stopped", "failed" or "finished".
        epoch: Epochs done.
        num_epochs: Epochs wanted.
        step: Optimiser steps made.
        loss: Loss of the last epoch; None before the first is done.
        images_per_second: Images per second of the last epoch.
        updated: When this was written, ISO 8601 in UTC.
        message: Why it stopped or failed.
        fault: Whose fault a failure is (`cem_assets.errors.Fault`); empty otherwise.
    """

    state: str
    epoch: int
    num_epochs: int
    step: int
    loss: float | None = None
    images_per_second: float | None = None
    updated: str = ""
    message: str = ""
    fault: str = ""


class StoreCheckpoints:
    """Keeps the newest state of one run in the store; a `cem_assets.pretraining.training.checkpoints.CheckpointStore`."""

    def __init__(self, store: Store, folder: str) -> None:
        """Set the folder of the run."""
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
    """Write the progress of a run, with the time."""
    about = asdict(status) | {"updated": datetime.now(UTC).isoformat(timespec="seconds")}
    store.put(f"{folder}/{STATUS}", json.dumps(about, indent=1).encode())


def read_status(store: Store, folder: str) -> RunStatus | None:
    """Read the progress of a run; None where it never began, or where the object is not ours."""
    try:
        found: Any = json.loads(store.read(f"{folder}/{STATUS}"))
        return RunStatus(**found)
    except (FileNotFoundError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        return None


def request_stop(store: Store, folder: str, who: str = "") -> None:
    """Request that a run saves its state and ends."""
    about = {"who": who, "asked": datetime.now(UTC).isoformat(timespec="seconds")}
    store.put(f"{folder}/{STOP}", json.dumps(about).encode())


def withdraw_stop(store: Store, folder: str) -> None:
    """Withdraw the request to stop a run."""
    store.delete([f"{folder}/{STOP}"])


def stop_watch(
    store: Store, folder: str, interval_s: float = 5.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bool]:
    """Make a function that tells whether a stop was requested, which asks the store from time to time.

    Args:
        interval_s: Shortest time between two requests to the store.
        clock: Returns seconds.
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
