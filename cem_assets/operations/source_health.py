"""Records of sources that do not answer, `quarantine/sources/<name>.json`, while mirrors and earlier files go on serving.

A record is written when a source's own address failed, also where a mirror stood in, and removed when the address works again.
Reports of data that arrived and were refused are `cem_assets.inbox.quarantine`.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from cem_assets.errors import DataError
from cem_assets.inbox.quarantine import QUARANTINE
from cem_assets.store.manifests import canonical_json
from cem_assets.store.store import Store, check_key

SOURCES = f"{QUARANTINE}/sources"

_MAX_BYTES = 1 << 16
_MAX_REASON = 2000


@dataclass(frozen=True)
class SourceTrouble:
    """A source whose own address failed.

    Attributes:
        name: Name of its row in a catalogue.
        url: The address that failed.
        reason: Why it failed, in words.
        date: When it failed last, ISO 8601 in UTC.
        since: When it failed first since it last worked.
        count: How many runs have failed since then.
        served_by: The mirror that stood in the last time; empty where none did.
    """

    name: str
    url: str
    reason: str
    date: str
    since: str
    count: int
    served_by: str = ""


def health_key(name: str) -> str:
    """Return the key of a source's record."""
    return check_key(f"{SOURCES}/{name}.json")


def record_trouble(store: Store, name: str, url: str, reason: str, served_by: str = "") -> SourceTrouble:
    """Write down that a source's own address failed.

    Args:
        name: Name of its row in a catalogue.
        url: The address that failed.
        reason: Why it failed, in words.
        served_by: The mirror that stood in, if any.

    Returns:
        The record; it continues the count of an earlier one.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = _read(store, name)
    found = SourceTrouble(
        name=name,
        url=url,
        reason=" ".join(reason.split())[:_MAX_REASON],
        date=now,
        since=now if before is None else before.since,
        count=1 if before is None else before.count + 1,
        served_by=served_by,
    )
    store.put(health_key(name), canonical_json(asdict(found)))
    return found


def clear_trouble(store: Store, name: str) -> None:
    """Remove the record of a source that works again."""
    key = health_key(name)
    if store.size(key) is not None:
        store.delete([key])


def source_health(store: Store) -> list[SourceTrouble]:
    """Return the sources in trouble, in order of name.

    Raises:
        DataError: A record is damaged.
    """
    names = [child.removesuffix(".json") for child in store.children(SOURCES) if child.endswith(".json")]
    records = [_read(store, name) for name in names]
    return [record for record in records if record is not None]


def _read(store: Store, name: str) -> SourceTrouble | None:
    key = health_key(name)
    size = store.size(key)
    if size is None:
        return None
    try:
        if size > _MAX_BYTES:
            raise DataError(f"it has {size} bytes")
        data = json.loads(store.read(key))
        texts = {field: str(data[field]) for field in ("url", "reason", "date", "since", "served_by")}
        return SourceTrouble(name=name, count=int(data["count"]), **texts)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{key} is damaged: {type(error).__name__}: {error}. Remove it.") from error
