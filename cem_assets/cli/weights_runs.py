"""Runs `cem-assets weights ...`: it lists, trains, extends and stops weights. The UI launches the same job."""

import json
from collections.abc import Sequence
from typing import Any

from cem_assets.catalog.weights import TrainedWeights
from cem_assets.cli.runs import Listener, failures, open_instance, run_job
from cem_assets.errors import DataError
from cem_assets.pretraining.plan import RUNS
from cem_assets.pretraining.rows import known_weights
from cem_assets.pretraining.training.runs import read_status, request_stop
from cem_assets.pretraining.weights.importing import availability
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import current_manifest
from cem_assets.store.store import Store


def weights_lines(store: Store) -> list[str]:
    """List every row of the catalogue with its kind, its network and the state of its weights."""
    rows = [("name", "kind", "network", "state")]
    for name, row in known_weights(store).items():
        manifest = current_manifest(store, WEIGHTS, name)
        if manifest is not None:
            epoch = manifest.details["epoch"]
            state = f"committed {manifest.digest[:12]}" + (f", {epoch} epochs" if epoch else "")
        elif isinstance(row, TrainedWeights):
            state = "not trained yet"
        else:
            found = availability(store, row)
            state = found.reason if found.is_available else f"not available: {found.reason}"
        for run in store.children(f"{WEIGHTS}/{name}/{RUNS}"):
            status = read_status(store, f"{WEIGHTS}/{name}/{RUNS}/{run}")
            if status is not None and status.state != "finished":
                state += f"; {status.state} at epoch {status.epoch} of {status.num_epochs} ({status.updated})"
        rows.append((name, row.kind, row.arch, state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {d}" for a, b, c, d in rows]


def parsed_settings(words: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` words; a value that is not JSON is plain text.

    Raises:
        DataError: A word has no name or no "=".
    """
    found: dict[str, Any] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or not name:
            raise DataError(f"{word!r} is no setting; expected name=value, such as epochs=300 or dtype=bfloat16.")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


def train_weights_row(store: Store, name: str, config: dict[str, Any], listener: Listener | None = None) -> tuple[str, ...]:
    """Materialize weights in this process; an interrupt keeps the state of the training.

    Args:
        name: Name of a row of the catalogue.
        config: Configuration of the asset, such as {"params": {"epochs": 300}, "num_processes": 2}.

    Returns:
        Descriptions of failures; empty where there are none.

    Raises:
        DataError: The catalogue has no such row.
    """
    rows = known_weights(store)
    if name not in rows:
        raise DataError(f"the catalogue has no row of weights {name!r}; expected one of {', '.join(rows)}.")
    with open_instance() as instance:
        result = run_job(
            instance, store.url, "pretraining_weights", partition=name, config={WEIGHTS: config}, listener=listener
        )
    return () if result.success else tuple(failures(result))


def stop_training(store: Store, name: str) -> list[str]:
    """Ask the training of some weights to save its state and end, on any machine.

    Returns:
        A line for each run that got the request.

    Raises:
        DataError: There is no running training of these weights.
    """
    asked = []
    for run in store.children(f"{WEIGHTS}/{name}/{RUNS}"):
        folder = f"{WEIGHTS}/{name}/{RUNS}/{run}"
        status = read_status(store, folder)
        if status is not None and status.state == "training":
            request_stop(store, folder, "cem-assets weights stop")
            asked.append(f"{name}: asked to stop after epoch {status.epoch} of {status.num_epochs}; seen within seconds")
    if not asked:
        raise DataError(f"no training of {name!r} is under way in {store.url}; cem-assets weights lists what there is.")
    return asked
