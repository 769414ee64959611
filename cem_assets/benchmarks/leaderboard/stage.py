"""Stage `benchmarks/leaderboard`: all scores as one table, with plots, published figures, and what changed."""

import logging
import time
from typing import Any

import pandas as pd

from cem_assets.benchmarks.leaderboard.card import leaderboard_card
from cem_assets.benchmarks.leaderboard.changes import best_by_release, changes_between
from cem_assets.benchmarks.leaderboard.standings import WeightsInfo, make_standings
from cem_assets.benchmarks.leaderboard.stored import CARD, CSV, TABLE, read_standings, standings_bytes
from cem_assets.benchmarks.rows import known_benchmarks
from cem_assets.benchmarks.scores.stored import read_scores
from cem_assets.cem.releases.stage import list_releases
from cem_assets.cytoimagenet.releases.stage import list_cyto_releases
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.pretraining.rows import stored_weights_rows
from cem_assets.store.assets import BENCHMARK_SCORES, CODE_VERSIONS, LEADERBOARD, WEIGHTS
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, Manifest, current_manifest, manifest_numbers, read_manifest
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

_BEFORE = "leaderboard before"
"""Name of the previous leaderboard among the inputs of the next one."""
_HISTORY = 3
"""How many of the newest leaderboards are tried as the one to compare with."""


def make_leaderboard(store: Store, run_id: str = "", progress: Progress = no_progress) -> StageResult:
    """Compare all scores of a store.

    Returns:
        The committed leaderboard: `leaderboard.parquet`, `leaderboard.csv`, `README.md`, and one PNG for each benchmark that
        has a score. If the current leaderboard was made from the same scores, weights and benchmarks, it is returned as not
        new. In a store without scores the leaderboard holds the published figures.

    Raises:
        DataError: Scores cannot be compared, or the store's settings of benchmarks or weights are not valid.
    """
    started = time.monotonic()
    benchmarks = known_benchmarks(store)
    scores = read_scores(store)
    infos = _weights_infos(store, sorted(set(scores["weights"])))
    upstream = {
        f"{BENCHMARK_SCORES}/{row.benchmark}/{row.weights}/{row.parameters}-s{row.seed}": str(row.digest)
        for row in scores.drop_duplicates("folder").itertuples()
    }
    parameters: dict[str, Any] = {
        "weights": {name: [info.arch, info.is_random, info.digest] for name, info in infos.items()},
        "benchmarks": {
            name: {
                "title": row.title,
                "citation": row.citation,
                "gate": [row.is_gated, row.is_saturated, row.tolerance],
                "published": [[f.weights, f.measure, f.value, f.error, f.subset, f.source] for f in row.published],
            }
            for name, row in benchmarks.items()
        },
    }
    history = _history(store)
    if history and _same(history[0], parameters, upstream):
        newest = history.pop(0)  # if its files are damaged, they are made again from the leaderboard before it
        if (known := begin(store, newest.inputs, run_id).up_to_date) is not None:
            return known
    before = next((item for item in history if store.size(f"{item.folder}/{TABLE}") is not None), None)
    previous = None if before is None else read_standings(store, before)
    if before is not None:
        upstream[_BEFORE] = before.digest
    stage = begin(store, Inputs(LEADERBOARD, "", CODE_VERSIONS[LEADERBOARD], parameters, upstream), run_id, started)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    table = make_standings(scores, infos, benchmarks, previous)
    changes = None if previous is None else changes_between(table, previous)
    releases = best_by_release(table, [m.inputs.folder for m in (*list_releases(store), *list_cyto_releases(store))])
    commit.write(TABLE, standings_bytes(table))
    commit.write(CSV, table.to_csv(index=False, float_format="%.6f", lineterminator="\n").encode())
    ours = table[~table["is_published"]]
    scored = sorted(set(ours["benchmark"]))
    pictures = {}
    for number, name in enumerate(scored, 1):
        pictures[name] = _draw(commit, name, table, benchmarks[name].title if name in benchmarks else name)
        progress(number, len(scored))
    commit.write(CARD, leaderboard_card(table, benchmarks, changes, releases, pictures).encode())
    counts = {
        "scores": len(scores),
        "runs": len(upstream) - (before is not None),
        "entries": len(ours),
        "weights": int(ours["weights"].nunique()),
        "benchmarks": len(scored),
        "published": int(table["is_published"].sum()),
        "superseded": int(ours["is_superseded"].sum()),
        "changes": 0 if changes is None else len(changes),
    }
    return stage.finish(counts, {"leaders": _leaders(ours), "changes": _records(changes)})


def _history(store: Store) -> list[Manifest]:
    """List the newest leaderboards whose manifests can be read, newest first."""
    found = []
    for number in reversed(manifest_numbers(store, LEADERBOARD)):
        try:
            found.append(read_manifest(store, LEADERBOARD, number))
        except DataError as error:  # a damaged manifest must not prevent its own replacement
            logger.warning("%s", error)
        if len(found) == _HISTORY:
            break
    return found


def _same(before: Manifest, parameters: dict[str, Any], upstream: dict[str, str]) -> bool:
    known = {name: digest for name, digest in before.inputs.upstream.items() if name != _BEFORE}
    is_method = before.inputs.code_version == CODE_VERSIONS[LEADERBOARD]
    return is_method and known == upstream and dict(before.inputs.parameters) == parameters


def _weights_infos(store: Store, names: list[str]) -> dict[str, WeightsInfo]:
    """Look up the weights of every name in the scores; names joined by "+" are fused features."""
    rows = stored_weights_rows(store)
    found = {}
    for name in names:
        archs, is_random, digests = set(), True, []
        for part in name.split("+"):
            row, manifest = rows.get(part), current_manifest(store, WEIGHTS, part)
            details = manifest.details if manifest else {}
            archs.add(str(details.get("arch", row.arch if row else "")))
            is_random &= details.get("method", row.method if row else "") == "random"
            digests.append(manifest.digest if manifest else "")
        digest = "+".join(digests) if all(digests) else ""
        found[name] = WeightsInfo(archs.pop() if len(archs) == 1 else "", is_random, digest)
    return found


def _draw(commit: Commit, name: str, table: pd.DataFrame, title: str) -> str:
    from cem_assets.benchmarks.leaderboard.pictures import standings_png

    file = f"{name}.png"
    commit.write(file, standings_png(table[table["benchmark"] == name], title))
    return file


def _leaders(ours: pd.DataFrame) -> list[dict[str, Any]]:
    best = ours[(ours["rank"] == 1) & ours["is_main"]]
    return _records(best[["benchmark", "test_set", "metric", "iterations", "opened", "weights", "mean"]])


def _records(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Return rows as JSON values; missing numbers become None."""
    if table is None:
        return []
    plain = table.astype(object).where(table.notna(), None)
    return [{str(key): _plain(value) for key, value in row.items()} for row in plain.to_dict("records")]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
