"""Sources that do not answer: a record of each, `quarantine/sources/<name>.json`, while mirrors and earlier bytes serve on.

Written when a source's own address failed, whether a mirror stood in or not; removed when it works again. What was refused of
arrived data is `cem_assets.inbox.quarantine`.
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
        name: Row of a catalogue.
        url: Address that failed.
        reason: In words.
        date: When it failed last, ISO 8601 in UTC.
        since: When it failed first without having worked since.
        count: Failed runs since then.
        served_by: Mirror that stood in the last time; empty where none did.
    """

    name: str
    url: str
    reason: str
    date: str
    since: str
    count: int
    served_by: str = ""


def health_key(name: str) -> str:
    """Return where the record of a source lies."""
    return check_key(f"{SOURCES}/{name}.json")


def record_trouble(store: Store, name: str, url: str, reason: str, served_by: str = "") -> SourceTrouble:
    """Write down that a source's own address failed.

    Args:
        name: Row of a catalogue.
        url: Address that failed.
        reason: In words.
        served_by: Mirror that stood in, if any.

    Returns:
        The record, which counts on from an earlier one.
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
        DataError: A record is damaged; remove it.
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
