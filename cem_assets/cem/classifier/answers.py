"""Labels that people give to patches: one small object for each answer, and the label table that is made of them.

An answer is stored as an event, `cem/patch_labels/events/<dataset>/<annotator>/<id>.json`, which is written once and never
changed. Taking an answer back is another event. The current labels, the agreement of annotators, and the table
`cem/patch_labels/<dataset>.parquet`, which training reads (`cem_assets.cem.classifier.stage`), are all computed from the
events. `cem_assets.web` serves the page on which people answer.
"""

import io
import itertools
import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cem_assets.catalog.description import check_dataset_name
from cem_assets.errors import DataError
from cem_assets.store.assets import LABELS
from cem_assets.store.manifests import canonical_json
from cem_assets.store.parquet import parquet_bytes, schema_of
from cem_assets.store.store import Store, StoredObject

logger = logging.getLogger(__name__)

EVENTS = f"{LABELS}/events"
MAX_EVENT_BYTES = 1 << 14
MAX_SHOWN = 5
_ID = re.compile(r"(?P<ms>\d{13})-[0-9a-f]{16}")
_ANNOTATOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")
_ORIGIN_KEY, _ORIGIN = b"cem_assets", b"folded from label events"
_READING_THREADS = 16

TABLE_SCHEMA = schema_of(
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("label", pa.string()),
    ("num_good", pa.int64()),
    ("num_bad", pa.int64()),
    ("num_skipped", pa.int64()),
)
"""Training uses the first three columns. The label is good, bad, or none if as many annotators say good as bad."""


def _safe_dataset(name: str) -> str:
    if problem := check_dataset_name(name):
        raise DataError(problem)
    return name


def check_annotator(name: str) -> str:
    """Return an annotator's name unchanged, or refuse it if it cannot be part of a key.

    Raises:
        DataError: The name has other characters than letters, digits and inner `.`, `_`, `@`, `-`, or more than 64 of them.
    """
    if not _ANNOTATOR.fullmatch(name) or ".." in name:
        raise DataError(
            f"annotator {name[:80]!r} is not allowed; expected 1 to 64 of A-Z, a-z, 0-9, and inside '.', '_', '@', '-'. "
            "Give another name."
        )
    return name


def check_event_id(event_id: str) -> str:
    """Return an event's id unchanged, or refuse it if it does not have the form `<13 digits, ms since 1970>-<16 hex>`."""
    if not _ID.fullmatch(event_id):
        raise DataError(f"event id {event_id[:80]!r} is not allowed; expected 13 digits (ms since 1970), '-', 16 hex digits.")
    return event_id


class LabelEvent(BaseModel):
    """One answer of one person about one patch.

    Attributes:
        event_id: Time of the answer in ms since 1970, and 64 random bits. Events with equal ids are the same answer that was
            sent twice.
        dataset, name: Dataset and name of the patch.
        label: "good", "bad" or "skip"; "undo" takes an earlier event back.
        undoes: Id of that earlier event of the same annotator and patch; empty for the other labels.
        annotator: Name of the person who answered.
        classifier: Digest of the classifier by whose scores the patch was chosen; empty if none was used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: Annotated[str, AfterValidator(check_event_id)]
    dataset: Annotated[str, AfterValidator(_safe_dataset)]
    name: Annotated[str, Field(min_length=1, max_length=1024)]
    label: Literal["good", "bad", "skip", "undo"]
    undoes: str = ""
    annotator: Annotated[str, AfterValidator(check_annotator)]
    classifier: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{64})?$")] = ""

    @model_validator(mode="after")
    def _undo_names_an_event(self) -> Self:
        if (self.label == "undo") != bool(_ID.fullmatch(self.undoes)):
            raise DataError(
                f"label {self.label!r} with undoes {self.undoes[:80]!r}; expected an event id for undo, and nothing otherwise."
            )
        return self

    @property
    def answered_ms(self) -> int:
        """Time of the answer by the annotator's clock, in ms since 1970."""
        return int(self.event_id[:13])

    @property
    def key(self) -> str:
        """Key of the event in the store."""
        return f"{EVENTS}/{self.dataset}/{self.annotator}/{self.event_id}.json"

    def to_bytes(self) -> bytes:
        """Serialize the event. Equal events have equal bytes."""
        time = datetime.fromtimestamp(self.answered_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return canonical_json({**self.model_dump(), "time": time})


def record_event(store: Store, event: LabelEvent) -> None:
    """Write an event. Writing the same event again changes nothing.

    Raises:
        DataError: Another event has the same id.
        OSError: The store cannot be written to.
    """
    if not store.create(event.key, event.to_bytes()):
        raise DataError(f"{event.key} holds another answer than the one that was sent; expected a new id for a new answer.")


def read_event(store: Store, item: StoredObject) -> LabelEvent:
    """Read one event.

    Raises:
        DataError: The object is not an event, or its key is not the key of its event.
    """
    remedy = "Move it out of the store, or restore it from a copy."
    if item.num_bytes > MAX_EVENT_BYTES:
        raise DataError(f"{item.key} has {item.num_bytes} bytes; expected a label event of at most {MAX_EVENT_BYTES}. {remedy}")
    data = store.read(item.key)
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise TypeError(f"found {type(content).__name__}")
        content.pop("time", None)
        event = LabelEvent.model_validate(content)
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{item.key} is no label event: {str(error)[:300]}. {remedy}") from error
    if event.key != item.key:
        raise DataError(f"{item.key} holds the event of {event.key}; expected its own. {remedy}")
    return event


class LabelLog:
    """The events of one dataset, each of which is read once. Several threads may use it at the same time."""

    def __init__(self, store: Store, dataset: str) -> None:
        self._store, self._dataset = store, _safe_dataset(dataset)
        self._events: dict[str, LabelEvent] = {}
        self._lock = threading.Lock()

    def refresh(self) -> int:
        """Read the events that others wrote since the last call.

        Returns:
            The number of new events.

        Raises:
            DataError: Some objects are not events; the error says how many, and names the first ones.
        """
        with self._lock:
            seen = set(self._events)
        listed = self._store.walk(f"{EVENTS}/{self._dataset}")
        fresh = [item for item in listed if item.key.endswith(".json") and item.key not in seen]
        problems: list[str] = []

        def read(item: StoredObject) -> LabelEvent | None:
            try:
                return read_event(self._store, item)
            except DataError as error:
                problems.append(str(error))
                return None

        with ThreadPoolExecutor(_READING_THREADS) as pool:
            found = [event for event in pool.map(read, fresh) if event is not None]
        if problems:
            shown = "\n  ".join(sorted(problems)[:MAX_SHOWN])
            raise DataError(f"{len(problems)} label event(s) of {self._dataset} cannot be read:\n  {shown}")
        with self._lock:
            self._events |= {event.key: event for event in found}
        return len(found)

    def append(self, event: LabelEvent) -> None:
        """Write an event to the store and add it to the log. When this returns, the event is stored.

        Raises:
            DataError: The event is about another dataset, or another event has the same id.
        """
        if event.dataset != self._dataset:
            raise DataError(f"the answer is about dataset {event.dataset!r}; expected {self._dataset!r}")
        record_event(self._store, event)
        with self._lock:
            self._events[event.key] = event

    def events(self) -> list[LabelEvent]:
        """Return all events that were read or written so far, in order of id and annotator."""
        with self._lock:
            found = list(self._events.values())
        return sorted(found, key=lambda event: (event.event_id, event.annotator))


def current_labels(events: Iterable[LabelEvent]) -> dict[tuple[str, str], LabelEvent]:
    """Find the current answer of every annotator for every patch.

    Args:
        events: Events of one dataset, in any order.

    Returns:
        By (annotator, name), the newest event (good, bad or skip) that was not taken back.
    """
    listed = sorted(events, key=lambda event: event.event_id)
    undone = {(event.annotator, event.name, event.undoes) for event in listed if event.label == "undo"}
    return {
        (event.annotator, event.name): event
        for event in listed
        if event.label != "undo" and (event.annotator, event.name, event.event_id) not in undone
    }


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree on the patches that at least two of them label good or bad.

    Attributes:
        num_shared: Number of these patches.
        observed: Mean over these patches of the share of pairs of annotators that agree; None if there are no such patches.
        kappa: Cohen's kappa; None unless exactly two annotators share patches, or if they must agree by chance alone.
        conflicts: Names of the patches on which annotators disagree, in order.
    """

    num_shared: int
    observed: float | None
    kappa: float | None
    conflicts: tuple[str, ...]


def agreement(labels: Mapping[tuple[str, str], str]) -> Agreement:
    """Measure how far annotators agree.

    Args:
        labels: Label by (annotator, name). Labels other than good and bad are ignored.

    Returns:
        The agreement. `observed` is the mean pairwise agreement of Fleiss (1971), equation 2, but with a number of annotators
        that may differ from patch to patch, where Fleiss has a fixed number. `kappa` is that of Cohen (1960).
    """
    by_name: dict[str, dict[str, str]] = {}
    for (annotator, name), label in labels.items():
        if label in ("good", "bad"):
            by_name.setdefault(name, {})[annotator] = label
    shared = {name: said for name, said in by_name.items() if len(said) > 1}
    if not shared:
        return Agreement(0, None, None, ())
    shares = []
    for said in shared.values():
        pairs = list(itertools.combinations(said.values(), 2))
        shares.append(sum(first == second for first, second in pairs) / len(pairs))
    observed = sum(shares) / len(shares)
    annotators = sorted({annotator for said in shared.values() for annotator in said})
    kappa = None
    if len(annotators) == 2:
        good = [sum(said[annotator] == "good" for said in shared.values()) / len(shared) for annotator in annotators]
        by_chance = good[0] * good[1] + (1 - good[0]) * (1 - good[1])
        kappa = (observed - by_chance) / (1 - by_chance) if by_chance < 1 else None
    conflicts = tuple(sorted(name for name, said in shared.items() if len(set(said.values())) > 1))
    return Agreement(len(shared), observed, kappa, conflicts)


def label_table(dataset: str, labels: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Combine the answers of all annotators into one label for each patch.

    Args:
        labels: "good", "bad" or "skip" by (annotator, name).

    Returns:
        The columns of `TABLE_SCHEMA`, in order of name. Patches that were only skipped have no row. The label is that of the
        majority, and "none" if as many annotators say good as bad.
    """
    counts: dict[str, dict[str, int]] = {}
    for (_, name), label in labels.items():
        counts.setdefault(name, {"good": 0, "bad": 0, "skip": 0})[label] += 1
    rows: list[dict[str, Any]] = []
    for name in sorted(counts):
        good, bad, skipped = (counts[name][label] for label in ("good", "bad", "skip"))
        if good + bad:
            label = "good" if good > bad else "bad" if bad > good else "none"
            rows.append({"dataset": dataset, "name": name, "label": label})
            rows[-1] |= {"num_good": good, "num_bad": bad, "num_skipped": skipped}
    return pd.DataFrame(rows, columns=TABLE_SCHEMA.names)


@dataclass(frozen=True)
class WrittenTable:
    """A label table as it was written.

    Attributes:
        num_good, num_bad, num_none: Number of patches with each label.
        conflicts: Names of patches on which annotators disagree, in order. Their label is that of the majority, or "none".
    """

    key: str
    num_good: int
    num_bad: int
    num_none: int
    conflicts: tuple[str, ...]

    def lines(self) -> list[str]:
        """Describe the table in one or two lines."""
        found = [f"{self.key}: {self.num_good:,} good, {self.num_bad:,} bad, {self.num_none:,} undecided (none)"]
        if self.conflicts:
            shown = ", ".join(self.conflicts[:MAX_SHOWN]) + (", ..." if len(self.conflicts) > MAX_SHOWN else "")
            found.append(f"annotators do not agree on {len(self.conflicts):,} patch(es): {shown}")
        return found


def label_table_key(dataset: str) -> str:
    """Return the key of the label table that is made from a dataset's events."""
    return f"{LABELS}/{_safe_dataset(dataset)}.parquet"


def write_label_table(store: Store, dataset: str) -> WrittenTable | None:
    """Make the label table of a dataset from all its events, which stay in the store.

    Returns:
        A description of the table, or None if there are no events.

    Raises:
        DataError: A table with this name was put there by hand, or events cannot be read.
    """
    key = label_table_key(dataset)
    log = LabelLog(store, dataset)
    if not log.refresh():
        return None
    if store.stat(key) is not None and not _is_folded(store.read(key)):
        raise DataError(
            f"{key} was put there by hand; expected a table made from label events, or none. Give your table another name."
        )
    schema = TABLE_SCHEMA.with_metadata({**TABLE_SCHEMA.metadata, _ORIGIN_KEY: _ORIGIN})
    while True:
        labels = {place: str(event.label) for place, event in current_labels(log.events()).items()}
        table = label_table(dataset, labels)
        store.put(key, parquet_bytes([pa.Table.from_pandas(table, schema, preserve_index=False)], schema))
        # Somebody else may have answered, and written the table, between our listing and our writing.
        if not log.refresh():
            break
    num = table["label"].value_counts()
    num_good, num_bad, num_none = (int(num.get(label, 0)) for label in ("good", "bad", "none"))
    written = WrittenTable(key, num_good, num_bad, num_none, agreement(labels).conflicts)
    if written.conflicts:
        logger.warning("label table of %s: %s", dataset, written.lines()[1])
    return written


def _is_folded(data: bytes) -> bool:
    try:
        metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
    except pa.ArrowException:
        return False
    return bool(metadata.get(_ORIGIN_KEY) == _ORIGIN)
