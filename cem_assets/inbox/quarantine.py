"""Reports of what was refused: `quarantine/<dataset>/report.json` and `report.md`.

The refused files stay in the inbox. The report says what was expected, what was found and the remedy, and is removed when all
of the dataset can be used.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from cem_assets.errors import DataError
from cem_assets.inbox.datasets import INBOX, Rejection, shown_path
from cem_assets.store.assets import VOLUMES
from cem_assets.store.store import Store, check_key

QUARANTINE = "quarantine"


def report_key(dataset: str) -> str:
    """Return the key of a dataset's report in Markdown; the one in JSON is beside it."""
    return check_key(f"{QUARANTINE}/{dataset}/report.md")


def write_report(store: Store, dataset: str, rejections: Sequence[Rejection], is_refused: bool, asset: str = VOLUMES) -> None:
    """Write the report of a dataset, which replaces an earlier one.

    Args:
        dataset: Its name; a name that cannot be a folder gets no report.
        is_refused: Whether nothing of the dataset could be used.
        asset: The asset to materialize after the repair.
    """
    try:
        key = report_key(dataset)
    except DataError:
        return  # the name cannot be a folder, which the run's own error says
    now = datetime.now(UTC).isoformat(timespec="seconds")
    body = {
        "dataset": dataset,
        "is_refused": is_refused,
        "written": now,
        "rejections": [{"what": item.what, "reason": item.reason} for item in rejections],
    }
    outcome = "Nothing in it could be used." if is_refused else "The rest of the dataset went on."
    lines = [
        f"# {dataset}: {len(rejections)} refused",
        "",
        f"{outcome} The files stay in `{INBOX}/{dataset}/`. Repair or replace them there, then materialize `{asset}`.",
        "",
    ]
    lines += [f"- `{shown_path(item.what)}`: {' '.join(item.reason.split())}" for item in rejections]
    store.put(key.replace(".md", ".json"), json.dumps(body, indent=1, ensure_ascii=False).encode())
    store.put(key, ("\n".join(lines) + "\n").encode())


def clear_report(store: Store, dataset: str) -> None:
    """Remove the report of a dataset that can be used as a whole now."""
    key = report_key(dataset)
    there = [name for name in (key, key.replace(".md", ".json")) if store.size(name) is not None]
    store.delete(there)
