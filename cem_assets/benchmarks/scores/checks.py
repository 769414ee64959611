"""The check of committed scores."""

import math

from cem_assets.benchmarks.scores.stored import read_score_rows, score_keys
from cem_assets.execution.checks import Outcome
from cem_assets.store.assets import BENCHMARK_SCORES
from cem_assets.store.manifests import damaged_objects, require_manifest
from cem_assets.store.store import Store


def scores_are_whole(store: Store, benchmark: str, weights: str) -> Outcome:
    """Every score of these weights on this benchmark is whole, between 0 and 1, and has one main number for each test set."""
    problems = []
    num_runs = num_rows = 0
    for key in score_keys(store, benchmark, weights):
        manifest = require_manifest(store, BENCHMARK_SCORES, key.partition)
        problems += [f"{key.partition}/{name}: {trouble}" for name, trouble in damaged_objects(store, manifest).items()]
        if problems:
            continue
        rows = read_score_rows(store, manifest)
        num_runs, num_rows = num_runs + 1, num_rows + len(rows)
        values = rows["value"].to_numpy(dtype="float64")
        outside = [value for value in values.tolist() if math.isfinite(value) and not 0 <= value <= 1]
        if outside:
            problems.append(f"{key.partition}: scores {outside[:3]} are not between 0 and 1")
        if not rows["is_main"].any():
            problems.append(f"{key.partition}: no row is the main one")
    facts = {"runs": num_runs, "rows": num_rows}
    if problems:
        listing = "; ".join(problems[:5])
        return Outcome(False, f"{len(problems)} problem(s): {listing}. Materialize {BENCHMARK_SCORES} of these again.", facts)
    return Outcome(True, f"{num_runs} score(s) of {num_rows} numbers are whole", facts)
