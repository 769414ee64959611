"""Labels people give to patches: one small object for each answer, and the label table that is made of them.

An answer is an event, `cem/patch_labels/events/<dataset>/<annotator>/<id>.json`: written once, never changed.
Taking one back is another event. What holds at the moment, who agrees with whom and the table
`cem/patch_labels/<dataset>.parquet`, which training reads (`cem_assets.cem.classifier.stage`), are all folded
from the events. The page that asks for the answers is `cem_assets.web`.
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
"""Training takes the first three columns; label is good, bad, or none where as many say one as the other."""


def _safe_dataset(name: str) -> str:
    if problem := check_dataset_name(name):
        raise DataError(problem)
    return name


def check_annotator(name: str) -> str:
    """Return an annotator's name unchanged, or refuse one that cannot be part of a key.

    Raises:
        DataError: The name has other characters than letters, digits and inner `.`, `_`, `@`, `-`, or over 64.
    """
    if not _ANNOTATOR.fullmatch(name) or ".." in name:
        raise DataError(
            f"annotator {name[:80]!r} is not allowed; expected 1 to 64 of A-Z, a-z, 0-9, and inside '.', '_', '@', '-'. "
            "Give another name."
        )
    return name


def check_event_id(event_id: str) -> str:
    """Return an event's id unchanged, or refuse one that is not of the form `<13 digits, ms since 1970>-<16 hex>`."""
    if not _ID.fullmatch(event_id):
        raise DataError(f"event id {event_id[:80]!r} is not allowed; expected 13 digits (ms since 1970), '-', 16 hex digits")
    return event_id


class LabelEvent(BaseModel):
    """One answer of one person about one patch.

    Attributes:
        event_id: Time of the answer in ms since 1970 and 64 random bits; equal ids are the same answer sent twice.
        dataset, name: The patch.
        label: "good", "bad" or "skip"; "undo" takes an earlier event back.
        undoes: Id of that event, of the same annotator and patch; empty for the other labels.
        annotator: Who answered.
        classifier: Digest of the classifier whose scores chose the patch; empty where none did.
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
                f"label {self.label!r} with undoes {self.undoes[:80]!r}; expected an event id for undo, else nothing"
            )
        return self

    @property
    def answered_ms(self) -> int:
        """When it was answered, by the annotator's clock, in ms since 1970."""
        return int(self.event_id[:13])

    @property
    def key(self) -> str:
        """Where it lies in the store."""
        return f"{EVENTS}/{self.dataset}/{self.annotator}/{self.event_id}.json"

    def to_bytes(self) -> bytes:
        """Serialize; equal events have equal bytes."""
        time = datetime.fromtimestamp(self.answered_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return canonical_json({**self.model_dump(), "time": time})


def record_event(store: Store, event: LabelEvent) -> None:
    """Write an event; writing the same one again changes nothing.

    Raises:
        DataError: Another event has the same id.
        OSError: The store cannot be written.
    """
    if not store.create(event.key, event.to_bytes()):
        raise DataError(f"{event.key} holds another answer than the one sent; expected a new id for a new answer.")


def read_event(store: Store, item: StoredObject) -> LabelEvent:
    """Read one event.

    Raises:
        DataError: The object is no event, or lies under another name than its own.
    """
    remedy = "Move it out of the store, or restore it from a copy."
    if item.num_bytes > MAX_EVENT_BYTES:
        raise DataError(f"{item.key} has {item.num_bytes} bytes; expected a label event of at most {MAX_EVENT_BYTES}. {remedy}")
    try:
        content = json.loads(store.read(item.key))
        if not isinstance(content, dict):
            raise TypeError(f"found {type(content).__name__}")
        content.pop("time", None)
        event = LabelEvent.model_validate(content)
    except (ValidationError, ValueError, TypeError) as error:
        raise DataError(f"{item.key} is no label event: {str(error)[:300]}. {remedy}") from error
    if event.key != item.key:
        raise DataError(f"{item.key} holds the event of {event.key}; expected its own. {remedy}")
    return event


class LabelLog:
    """The events of one dataset, read once each; safe to use from several threads.

    Args:
        dataset: Whose.
    """

    def __init__(self, store: Store, dataset: str) -> None:
        self._store, self._dataset = store, _safe_dataset(dataset)
        self._events: dict[str, LabelEvent] = {}
        self._lock = threading.Lock()

    def refresh(self) -> int:
        """Read what others have written since.

        Returns:
            How many events were new.

        Raises:
            DataError: Objects are no events; all are named.
        """
        with self._lock:
            seen = set(self._events)
        listed = self._store.walk(f"{EVENTS}/{self._dataset}")
        fresh = [item for item in listed if item.key.endswith(".json") and item.key not in seen]
        problems: list[str] = []

        def read(item: StoredObject) -> LabelEvent | None:
            try:
                return read_event(self._store, item)
            except ValueError as error:
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
        """Write an event to the store, then remember it; when this returns, it is kept.

        Raises:
            DataError: It is about another dataset, or another event has the same id.
        """
        if event.dataset != self._dataset:
            raise DataError(f"the answer is about dataset {event.dataset!r}; expected {self._dataset!r}")
        record_event(self._store, event)
        with self._lock:
            self._events[event.key] = event

    def events(self) -> list[LabelEvent]:
        """Return all events known, in order of id and annotator."""
        with self._lock:
            found = list(self._events.values())
        return sorted(found, key=lambda event: (event.event_id, event.annotator))


def current_labels(events: Iterable[LabelEvent]) -> dict[tuple[str, str], LabelEvent]:
    """Fold events into what every annotator says now of every patch; the order they come in does not matter.

    Args:
        events: Of one dataset.

    Returns:
        By (annotator, name) the newest event that was not taken back: good, bad or skip.
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
    """How far annotators agree on the patches that at least two of them call good or bad.

    Attributes:
        num_shared: Such patches.
        observed: Mean over them of the share of pairs of annotators that say the same; None without any.
        kappa: Cohen's kappa, where exactly two annotators share patches and chance alone does not explain all.
        conflicts: Names of the patches on which not all say the same, in order.
    """

    num_shared: int
    observed: float | None
    kappa: float | None
    conflicts: tuple[str, ...]


def agreement(labels: Mapping[tuple[str, str], str]) -> Agreement:
    """Measure how far annotators agree.

    Args:
        labels: By (annotator, name); what is neither good nor bad does not count.

    Returns:
        The agreement; `observed` is the mean pairwise agreement of Fleiss (1971), equation 2, with as many
        annotators for each patch as there are, where Fleiss has a fixed number; kappa as in Cohen (1960).
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
    """Bring what annotators say into one label for each patch.

    Args:
        dataset: Whose patches.
        labels: "good", "bad" or "skip" by (annotator, name).

    Returns:
        Columns of `TABLE_SCHEMA`, in order of name; patches that were only skipped have no row. The label is what
        more annotators say, and none where as many say good as bad.
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
        key: Where.
        num_good, num_bad, num_none: Patches of each label.
        conflicts: Patches that annotators do not agree on, in order of name; some of them are none, in others one
            label has the majority.
    """

    key: str
    num_good: int
    num_bad: int
    num_none: int
    conflicts: tuple[str, ...]

    def lines(self) -> list[str]:
        """Say it in words."""
        found = [f"{self.key}: {self.num_good:,} good, {self.num_bad:,} bad, {self.num_none:,} undecided (none)"]
        if self.conflicts:
            shown = ", ".join(self.conflicts[:MAX_SHOWN]) + (", ..." if len(self.conflicts) > MAX_SHOWN else "")
            found.append(f"annotators do not agree on {len(self.conflicts):,} patch(es): {shown}")
        return found


def label_table_key(dataset: str) -> str:
    """Return where the table folded from a dataset's events lies."""
    return f"{LABELS}/{_safe_dataset(dataset)}.parquet"


def write_label_table(store: Store, dataset: str) -> WrittenTable | None:
    """Fold all events of a dataset into its label table; the events stay.

    Args:
        dataset: Whose.

    Returns:
        What was written; None where there are no events.

    Raises:
        DataError: A table that was not folded from events has that name, or events cannot be read.
    """
    key = label_table_key(dataset)
    log = LabelLog(store, dataset)
    if not log.refresh():
        return None
    if store.stat(key) is not None and not _is_folded(store.read(key)):
        raise DataError(
            f"{key} was put there by hand; expected a table folded from label events, or none. Give it another name beside it."
        )
    schema = TABLE_SCHEMA.with_metadata({**TABLE_SCHEMA.metadata, _ORIGIN_KEY: _ORIGIN})
    while True:
        labels = {place: str(event.label) for place, event in current_labels(log.events()).items()}
        table = label_table(dataset, labels)
        store.put(key, parquet_bytes([pa.Table.from_pandas(table, schema, preserve_index=False)], schema))
        # Another session may have answered, and written its table, between our listing and our writing.
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
