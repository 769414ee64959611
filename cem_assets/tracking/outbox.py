"""The outbox of tracking: events of runs, in the store until MLflow has them.

One object per event under `tracking/outbox/<key>/`, numbered in order, an artifact's bytes beside it. Entries are
deleted when MLflow has them: delivery is at least once, and every event can be written twice. One process at a time
delivers a key, under a lease in `tracking/senders/<key>/`, so that the newer of two tags or states wins; where a lease
lapses under a process that sleeps, or clocks are more than a minute apart, two may deliver at once, which can cost no
more than that. What MLflow refuses goes to `tracking/refused/<key>/` with the reason, out of the way of what follows.

What fills the outbox is `cem_assets.tracking.runs`; what an event does to MLflow is
`cem_assets.tracking.mlflow.TrackingServer`.
"""

import hashlib
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from cem_assets.errors import DataError
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import RunLink, TrackingEvent, TrackingServer

logger = logging.getLogger(__name__)

OUTBOX = "tracking/outbox"
REFUSED = "tracking/refused"
SENDERS = "tracking/senders"

_MAX_REFUSALS = 3
_REFUSAL_PAUSE_S = 0.5
_LEASE_S, _RENEW_S = 60.0, 10.0
_ORPHAN_S = 86400.0
"""Bytes without an entry are of a process killed between the two writes; younger ones may get theirs yet."""
_KEY = re.compile(r"[0-9a-f]{8,128}")
_ENTRY = re.compile(r"[0-9]+\.json")
_ATTACHED = re.compile(r"[0-9]+\.[0-9a-f]{16}\.bin")


@dataclass(frozen=True)
class Drained:
    """What emptying the outbox came to.

    Attributes:
        num_delivered: Entries MLflow has now; refused ones are not among them.
        num_left: Entries that still wait, among them those of running processes that deliver their own.
        trouble: Why MLflow took no more; empty where it did not fail.
    """

    num_delivered: int
    num_left: int
    trouble: str = ""


class Lease:
    """The right to deliver a key's entries: the newest object of a folder, held by renewing it.

    Args:
        key: Of the run.
        role: A `run` takes the lease of an earlier process of the same run when it first asks; a `drain` waits.
    """

    def __init__(self, store: Store, key: str, role: Literal["run", "drain"]) -> None:
        self._store, self._folder, self._role = store, f"{SENDERS}/{key}", role
        self._content = f"{role} {uuid.uuid4().hex}".encode()
        self._object, self._renewed, self._is_first = "", -math.inf, True

    def hold(self) -> bool:
        """Take or renew the lease; False where somebody else has it."""
        now = time.monotonic()
        if self._object and now - self._renewed < _RENEW_S:
            return True
        listed = [f"{self._folder}/{name}" for name in self._store.children(self._folder)]
        last = listed[-1] if listed else ""
        holder = self._holder(last) if last else b""
        if holder == self._content and last == self._object and now - self._renewed < _LEASE_S / 2:
            self._store.put(self._object, self._content)  # nobody takes over a lease this young
        else:
            if last and not self._is_free(last, holder):
                self._object = ""
                return False
            wanted = f"{self._folder}/{int(last.rsplit('/', 1)[1]) + 1 if last else 1:012d}"
            if not self._store.create(wanted, self._content):
                self._object = ""
                return False
            self._store.delete(listed)
            self._object = wanted
        self._renewed, self._is_first = now, False
        return True

    def _holder(self, last: str) -> bytes:
        try:
            return self._store.read(last)
        except FileNotFoundError:  # given back or taken over this moment
            return b""

    def _is_free(self, last: str, holder: bytes) -> bool:
        found = self._store.stat(last)
        if not holder or found is None:
            return False  # the next try sees who has it
        # Who opens a run anew is its process from now on: the one before has been killed or is about to be.
        is_predecessor = self._role == "run" and self._is_first and holder.startswith(b"run ")
        return holder == self._content or is_predecessor or time.time() - found.modified > _LEASE_S

    def release(self) -> None:
        """Give it back; fine where it is not held."""
        if self._object:
            self._store.delete([self._object])
            self._object = ""


def check_run_key(key: str) -> str:
    """Return the key of a run unchanged, or raise ValueError where it is no hex digest."""
    if not _KEY.fullmatch(key):
        raise DataError(f"key {key!r} of a tracked run is not allowed; expected a hex digest of 8 to 128 digits")
    return key


def next_number(store: Store, key: str) -> int:
    """Return a number for the next entry, behind all that wait.

    Numbers are milliseconds at least, so that none comes back after the outbox was empty: a process that was
    about to delete a delivered entry must not delete a new one.
    """
    names = [name for folder in (OUTBOX, REFUSED) for name in store.children(f"{folder}/{key}") if _ENTRY.fullmatch(name)]
    return max([int(time.time() * 1000), *(int(name.split(".")[0]) + 1 for name in names)])


def append_entry(store: Store, key: str, number: int, event: TrackingEvent) -> int:
    """Write an event into the outbox, whole once this returns.

    Args:
        key: Of the run.
        number: Wanted; the next free one is taken.
        event: What happened.

    Returns:
        The number behind it.
    """
    folder = f"{OUTBOX}/{key}"
    record: dict[str, Any] = {
        "kind": event.kind,
        "experiment": event.experiment,
        "run_name": event.run_name,
        "time_ms": event.time_ms,
        "body": event.body,
    }
    while True:
        if event.kind == "artifact":
            record["data"] = f"{number:015d}.{hashlib.sha256(event.data).hexdigest()[:16]}.bin"
            store.put(f"{folder}/{record['data']}", event.data)
        try:
            is_written = store.create(f"{folder}/{number:015d}.json", json.dumps(record, allow_nan=False).encode())
        except FileNotFoundError:  # another entry stood there and was delivered this moment
            is_written = False
        number += 1
        if is_written:
            return number


def waiting_entries(store: Store, key: str) -> list[str]:
    """List a key's entries in order."""
    return [f"{OUTBOX}/{key}/{name}" for name in store.children(f"{OUTBOX}/{key}") if _ENTRY.fullmatch(name)]


def deliver_entry(store: Store, server: TrackingServer, entry: str, pause: Callable[[float], object]) -> RunLink | None:
    """Deliver one entry and delete it, or move it aside where MLflow keeps refusing it.

    Args:
        server: MLflow.
        entry: Key of the object.
        pause: Waits for some seconds between refusals.

    Returns:
        The run; None where the entry was refused or somebody else had delivered it.

    Raises:
        ConnectionError: MLflow is down.
    """
    folder, key = entry.rsplit("/", 1)[0], entry.split("/")[-2]
    try:
        text = store.read(entry)
    except FileNotFoundError:
        return None
    attached, reason, link = "", "", None
    for attempt in range(_MAX_REFUSALS):
        if attempt:
            pause(_REFUSAL_PAUSE_S * attempt)
        try:
            record = json.loads(text)
            if "data" in record:
                if not _ATTACHED.fullmatch(record["data"]):
                    raise DataError(f"its bytes have the odd name {record['data']!r}")
                attached = f"{folder}/{record['data']}"
            data = store.read(attached) if attached else b""
        except FileNotFoundError:
            if store.stat(entry) is None:  # delivered by somebody else meanwhile
                return None
            reason = f"its bytes {attached} are gone"
            continue
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it is damaged: {error}"
            continue
        try:
            fields = (record["experiment"], record["run_name"], record["kind"], record["time_ms"], record["body"])
            link = server.write(TrackingEvent(key, *fields, data))
            break
        except (ValueError, KeyError) as error:
            reason = str(error)
    if link is None:
        _set_aside(store, entry, text, attached, reason)
    # The entry goes first: bytes without an entry do no harm, an entry without its bytes would be refused.
    store.delete([entry])
    if attached:
        store.delete([attached])
    return link


def _set_aside(store: Store, entry: str, text: bytes, attached: str, reason: str) -> None:
    if attached:
        with suppress(FileNotFoundError):
            store.put(attached.replace(OUTBOX, REFUSED, 1), store.read(attached))
    target = entry.replace(OUTBOX, REFUSED, 1)
    refused = {"reason": reason, "entry": text.decode(errors="replace")}
    store.put(target, json.dumps(refused, indent=1).encode())
    logger.warning("%s was refused %d times (%s); it is kept as %s.", entry, _MAX_REFUSALS, reason, target)


def drain_outbox(store: Store, budget_s: float = 30.0) -> Drained:
    """Write to MLflow what killed and finished processes left; for a sensor.

    One listing where nothing waits. Keys whose own process delivers are passed over.

    Args:
        budget_s: No entry is begun later than this.

    Returns:
        What it came to; MLflow being down is told there, not raised.
    """
    deadline = time.monotonic() + budget_s
    keys = [key for key in store.children(OUTBOX) if _KEY.fullmatch(key)]
    if not keys:
        return Drained(0, 0)
    server, num_delivered, num_left, trouble = TrackingServer(), 0, 0, ""
    for key in keys:
        entries = waiting_entries(store, key)
        lease = Lease(store, key, "drain")
        try:
            for position, entry in enumerate(entries):
                if trouble or time.monotonic() > deadline or not lease.hold():
                    num_left += len(entries) - position
                    break
                try:
                    num_delivered += deliver_entry(store, server, entry, time.sleep) is not None
                except ConnectionError as error:
                    trouble = str(error)
                    num_left += len(entries) - position
                    break
        finally:
            lease.release()
        if not entries:
            _delete_orphans(store, key)
    return Drained(num_delivered, num_left, trouble)


def _delete_orphans(store: Store, key: str) -> None:
    old = [item.key for item in store.walk(f"{OUTBOX}/{key}") if time.time() - item.modified > _ORPHAN_S]
    if not waiting_entries(store, key):
        store.delete(old)
