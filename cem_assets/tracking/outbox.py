"""The outbox of tracking: events of runs stay in the store until MLflow has them.

`tracking/outbox/<key>/` has one object for each event, numbered in order, and the bytes of artifacts beside them. An entry is
deleted when MLflow has it. So every event is delivered at least once, and may be delivered twice, which does no harm.

One process at a time delivers the entries of a key. It holds a lease in `tracking/senders/<key>/`, so that the newer of two
tags or states is written last. If a process sleeps until its lease expires, or clocks differ by more than a minute, two may
deliver at once; then an older tag or state may be written last, and nothing else can go wrong. Entries that MLflow refuses are
moved to `tracking/refused/<key>/` with the reason, so that they do not block later ones.

`cem_assets.tracking.runs` fills the outbox, and `cem_assets.tracking.mlflow.TrackingServer` writes events to MLflow.
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
"""Bytes without an entry come from a process that was killed between the two writes. Only those older than this are deleted,
because the entry of younger ones may still be written."""
_KEY = re.compile(r"[0-9a-f]{8,128}")
_ENTRY = re.compile(r"[0-9]+\.json")
_ATTACHED = re.compile(r"[0-9]+\.[0-9a-f]{16}\.bin")


@dataclass(frozen=True)
class Drained:
    """The result of emptying the outbox.

    Attributes:
        num_delivered: The number of entries that MLflow has now, without the refused ones.
        num_left: The number of entries that still wait, including those that running processes deliver themselves.
        trouble: Why delivery stopped; empty if MLflow did not fail.
    """

    num_delivered: int
    num_left: int
    trouble: str = ""


class Lease:
    """The right to deliver a key's entries. It is the newest object of a folder, and must be renewed to be kept.

    Args:
        key: The key of the run.
        role: A `run` takes over the lease of an earlier process of the same run at once; a `drain` waits until it expires.
    """

    def __init__(self, store: Store, key: str, role: Literal["run", "drain"]) -> None:
        self._store, self._folder, self._role = store, f"{SENDERS}/{key}", role
        self._content = f"{role} {uuid.uuid4().hex}".encode()
        self._object, self._renewed, self._is_first = "", -math.inf, True

    def hold(self) -> bool:
        """Take or renew the lease; return False if another process has it."""
        now = time.monotonic()
        if self._object and now - self._renewed < _RENEW_S:
            return True
        listed = [f"{self._folder}/{name}" for name in self._store.children(self._folder)]
        last = listed[-1] if listed else ""
        holder = self._holder(last) if last else b""
        if holder == self._content and last == self._object and now - self._renewed < _LEASE_S / 2:
            self._store.put(self._object, self._content)  # no other process takes over a lease that is so young
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
        except FileNotFoundError:  # another process has just released it or taken it over
            return b""

    def _is_free(self, last: str, holder: bytes) -> bool:
        found = self._store.stat(last)
        if not holder or found is None:
            return False  # the next attempt finds out which process has it
        # The process that opens a run anew replaces the one before, which has been killed or is about to be.
        is_predecessor = self._role == "run" and self._is_first and holder.startswith(b"run ")
        return holder == self._content or is_predecessor or time.time() - found.modified > _LEASE_S

    def release(self) -> None:
        """Release the lease; do nothing if it is not held."""
        if self._object:
            self._store.delete([self._object])
            self._object = ""


def check_run_key(key: str) -> str:
    """Return the key of a run unchanged, after checking that it is a hexadecimal digest."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"key {key!r} of a tracked run is not allowed; expected a hex digest of 8 to 128 digits")
    return key


def next_number(store: Store, key: str) -> int:
    """Return a number for the next entry, greater than those of all waiting entries.

    Numbers are at least the time in milliseconds, so that no number is used again after the outbox was empty. Otherwise a
    process that is about to delete a delivered entry might delete a new one.
    """
    names = [name for folder in (OUTBOX, REFUSED) for name in store.children(f"{folder}/{key}") if _ENTRY.fullmatch(name)]
    return max([int(time.time() * 1000), *(int(name.split(".")[0]) + 1 for name in names)])


def append_entry(store: Store, key: str, number: int, event: TrackingEvent) -> int:
    """Write an event into the outbox.

    Args:
        key: The key of the run.
        number: The wanted number of the entry; if it is taken, the next free one is used.

    Returns:
        The number behind that of the entry.
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
        except FileNotFoundError:  # the number was taken by an entry that has been delivered at this moment
            is_written = False
        number += 1
        if is_written:
            return number


def waiting_entries(store: Store, key: str) -> list[str]:
    """List a key's entries in order."""
    return [f"{OUTBOX}/{key}/{name}" for name in store.children(f"{OUTBOX}/{key}") if _ENTRY.fullmatch(name)]


def deliver_entry(store: Store, server: TrackingServer, entry: str, pause: Callable[[float], object]) -> RunLink | None:
    """Deliver one entry and delete it, or move it aside if MLflow refuses it repeatedly.

    Args:
        entry: The key of the entry's object.
        pause: Called with the number of seconds to wait after a refusal.

    Returns:
        The run, or None if the entry was refused or another process had delivered it.

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
            fields = (record["experiment"], record["run_name"], record["kind"], record["time_ms"], record["body"])
            data = store.read(attached) if attached else b""
        except FileNotFoundError:
            if store.stat(entry) is None:  # another process has delivered it meanwhile
                return None
            reason = f"its bytes {attached} are gone"
            continue
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it is damaged: {error}"
            continue
        try:
            link = server.write(TrackingEvent(key, *fields, data))
            break
        except DataError as error:
            reason = str(error)
    if link is None:
        _set_aside(store, entry, text, attached, reason)
    # The entry is deleted first: bytes without an entry do no harm, but an entry without its bytes would be refused.
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
    """Write to MLflow what killed and finished processes left in the outbox; a sensor calls this.

    If nothing waits, this takes one listing. Keys whose own process delivers them are left alone.

    Args:
        budget_s: After so many seconds no further entry is begun.

    Returns:
        The result, which also says whether MLflow is down; that raises no error.
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
