"""What must be true of committed analyses: whole objects, and numbers within the bounds of what they measure."""

import math
from collections.abc import Mapping

from cem_assets.analyses.results import ANALYSES, results_of
from cem_assets.execution.checks import Outcome
from cem_assets.store.assets import COMPARISONS, DATASET_DISTANCES
from cem_assets.store.manifests import Manifest, current_manifest, damaged_objects
from cem_assets.store.store import Store

_SLACK = 1e-6
_CORRELATIONS = ("best_correlation", "best_held_out", "consensus_correlation", "consensus_held_out")


def _bounds(asset: str, number: str) -> tuple[float, float]:
    if asset == DATASET_DISTANCES:
        return 0.0, math.inf
    if number.endswith("_drop"):
        return 0.0, 2.0
    return (-1.0, 1.0) if number.startswith(_CORRELATIONS) else (0.0, 1.0)


def _problems(store: Store, asset: str, manifest: Manifest) -> list[str]:
    where = manifest.inputs.partition
    found = [f"{where}/{name}: {trouble}" for name, trouble in damaged_objects(store, manifest).items()]
    numbers: Mapping[str, float | None] = manifest.details["numbers"]
    for name, value in numbers.items():
        low, high = _bounds(asset, name)
        if value is not None and not low - _SLACK <= value <= high + _SLACK:
            found.append(f"{where}: {name} is {value:g}, expected {low:g} to {high:g}")
    return found


def analyses_are_whole(store: Store, weights: str, asset: str) -> Outcome:
    """Every result of these weights is whole, and its numbers are within the bounds of what they measure."""
    results = results_of(store, asset, weights)
    problems = [problem for manifest in results for problem in _problems(store, asset, manifest)]
    facts = {"results": len(results), "numbers": sum(len(one.details["numbers"]) for one in results)}
    if problems:
        told = "; ".join(problems[:5])
        return Outcome(False, f"{len(problems)} problem(s): {told}. Materialize {asset}, partition {weights!r}, again.", facts)
    return Outcome(True, f"{len(results)} result(s) of {weights} are whole", facts)


def comparisons_are_whole(store: Store, _: str = "") -> Outcome:
    """Every object that the current comparisons list is there, with its size and sha256."""
    problems: list[str] = []
    num = 0
    for analysis in ANALYSES:
        for setting in store.folders(f"{COMPARISONS}/{analysis}"):
            manifest = current_manifest(store, COMPARISONS, f"{analysis}/{setting}")
            if manifest is not None:
                num += 1
                problems += [f"{analysis}/{setting}/{name}: {why}" for name, why in damaged_objects(store, manifest).items()]
    if problems:
        told = "; ".join(problems[:5])
        return Outcome(False, f"{len(problems)} damaged: {told}. Materialize {COMPARISONS} again.", {"comparisons": num})
    return Outcome(True, f"{num} comparison(s) are whole", {"comparisons": num})
