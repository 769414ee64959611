"""The promotion gate: whether weights may become champion, judged by their scores beside the champion's.

The rule is that the score on no gated benchmark, among those that both were scored on, may have fallen by more than its
tolerance, and that there is at least one such benchmark.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from cem_assets.benchmarks.leaderboard.standings import MEASURE, aggregate_seeds, partner_of
from cem_assets.errors import DataError

Decision = Literal["promoted", "refused", "undecided"]
NO_GATE = "not gated"
FELL = "fell by more than its tolerance"
_LAYERS = ("", "none", "layer4", "layer3", "layer2", "layer1", "all")
_ROUNDING = 1e-9
_COLUMNS = [*MEASURE, "iterations", "finetune_layer", "candidate", "champion", "change", "tolerance", "is_gated", "outcome"]


@dataclass(frozen=True)
class GateRule:
    """How one benchmark is judged.

    Attributes:
        is_gated: Whether a lower score on it keeps weights from becoming champion.
        tolerance: How far a score may fall, as a fraction; 0.02 is two points of accuracy or IoU.
    """

    is_gated: bool
    tolerance: float


@dataclass(frozen=True)
class PromotionVerdict:
    """The verdict of the gate.

    Attributes:
        decision: The decision of the rule: "promoted", "refused", or "undecided" if there is nothing to judge by.
        is_promoted: Whether the weights become champion, by the rule or by an override.
        is_overridden: Whether they become champion against the rule.
        reason: Why a person overrides the rule, in that person's words; kept even if it was not needed.
        summary: The decision in words.
        table: One row for each measure that the candidate or the champion has: benchmark, test_set, metric, the iterations and
            finetune_layer that were compared, candidate, champion, change, tolerance, is_gated, and the outcome in words.
        missing: For each gated benchmark that was not compared, the reason.
    """

    decision: Decision
    is_promoted: bool
    is_overridden: bool
    reason: str
    summary: str
    table: pd.DataFrame
    missing: Mapping[str, str]


def judge_promotion(
    candidate: pd.DataFrame,
    champion: pd.DataFrame | None,
    rules: Mapping[str, GateRule],
    reason: str = "",
) -> PromotionVerdict:
    """Judge whether weights may become champion.

    Means over seeds are compared, in the setting (iterations, layers opened, version of the method) that both were scored in.
    If there are several, the one with the most iterations counts, then the one with the fewest layers opened. If both have
    several parameters in that setting, equal parameters are compared, or else the best of each. Every test set of a benchmark
    is judged, and a fall on any of them counts.

    Args:
        candidate: Scores of the weights, with the columns of `cem_assets.benchmarks.scores.stored.ScoreRow`.
        champion: Scores of the champion. None if there is no champion yet; then any score on a gated benchmark is enough.
        rules: By benchmark; a benchmark without a rule is listed but never decides.
        reason: Overrides the rule if it is not blank.

    Raises:
        DataError: Scores are not finite or occur twice, or a tolerance is not in 0..1.
    """
    if bad := [f"{name}: {rule.tolerance}" for name, rule in rules.items() if not 0 <= rule.tolerance <= 1]:
        raise DataError(f"tolerances are fractions from 0 to 1, such as 0.02; found {', '.join(bad)}. Correct the catalogue.")
    mine = aggregate_seeds(candidate)
    its = aggregate_seeds(champion) if champion is not None else None
    measures = mine[MEASURE] if its is None else pd.concat([mine[MEASURE], its[MEASURE]])
    rows = [_compared(measure, mine, its, rules) for measure in sorted(set(measures.itertuples(index=False, name=None)))]
    table = pd.DataFrame(rows, columns=_COLUMNS).astype({"iterations": "Int64", "is_gated": "bool"})
    missing = _missing(table, mine, its, rules)
    decision, summary = _decision(table, its is None, missing)
    reason = reason.strip()
    is_overridden = bool(reason) and decision != "promoted"
    if is_overridden:
        summary = f"Promoted by override, against the rule. Reason: {reason} The rule says: {summary}"
    return PromotionVerdict(decision, decision == "promoted" or is_overridden, is_overridden, reason, summary, table, missing)


def _compared(
    measure: tuple[str, ...], mine: pd.DataFrame, its: pd.DataFrame | None, rules: Mapping[str, GateRule]
) -> dict[str, Any]:
    rule = rules.get(measure[0], GateRule(False, 0.0))
    found: dict[str, Any] = {
        **dict(zip(MEASURE, measure, strict=True)),
        "iterations": None,
        "finetune_layer": "",
        "candidate": np.nan,
        "champion": np.nan,
        "change": np.nan,
        "tolerance": rule.tolerance,
        "is_gated": rule.is_gated,
    }
    ours, theirs = _of(mine, measure), None if its is None else _of(its, measure)
    if theirs is None or ours.empty or theirs.empty:
        for name, entries in (("candidate", ours), ("champion", theirs)):
            if entries is not None and len(entries):
                _, chosen = _settings(entries)[0]
                found[name] = chosen["mean"].max()
                found |= {"iterations": int(chosen["iterations"].iloc[0]), "finetune_layer": chosen["finetune_layer"].iloc[0]}
        who = "there is no champion yet" if theirs is None else f"no score of the {'candidate' if ours.empty else 'champion'}"
        return {**found, "outcome": who}
    shared = dict(_settings(theirs))
    pairs = [(entries, shared[key]) for key, entries in _settings(ours) if key in shared]
    if not pairs:
        return {**found, "outcome": "scored at different settings only"}
    entry, other = _pair(*pairs[0])
    change = float(entry["mean"] - other["mean"])
    if change < -rule.tolerance - _ROUNDING:
        outcome = FELL
    elif change < -_ROUNDING:
        outcome = "fell within its tolerance"
    else:
        outcome = "rose" if change > _ROUNDING else "the same"
    return found | {
        "iterations": int(entry["iterations"]),
        "finetune_layer": entry["finetune_layer"],
        "candidate": entry["mean"],
        "champion": other["mean"],
        "change": change,
        "outcome": outcome if rule.is_gated else f"{outcome} ({NO_GATE})",
    }


def _of(entries: pd.DataFrame, measure: tuple[str, ...]) -> pd.DataFrame:
    return entries[(entries[MEASURE] == list(measure)).all(axis=1)]


def _settings(entries: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Split entries by setting, the preferred setting first."""
    groups = list(entries.groupby(["iterations", "finetune_layer", "code_version"]))

    def place(item: tuple[Any, pd.DataFrame]) -> tuple[Any, ...]:
        iterations, layer, version = item[0]
        return -iterations, _LAYERS.index(layer) if layer in _LAYERS else len(_LAYERS), str(version)

    return sorted(groups, key=place)


def _pair(ours: pd.DataFrame, theirs: pd.DataFrame) -> "tuple[pd.Series[Any], pd.Series[Any]]":
    """Choose the rows to compare: those with equal parameters and the champion's best mean, or else the best of each."""
    same = theirs[theirs["parameters"].isin(ours["parameters"])]
    other = (same if len(same) else theirs).sort_values(["mean", "parameters"], ascending=[False, True]).iloc[0]
    entry = partner_of(str(other["parameters"]), ours)
    assert entry is not None
    return entry, other


def _missing(
    table: pd.DataFrame, mine: pd.DataFrame, its: pd.DataFrame | None, rules: Mapping[str, GateRule]
) -> dict[str, str]:
    """Give the reason for every gated benchmark that was not compared."""
    found = {}
    for name in sorted(name for name, rule in rules.items() if rule.is_gated):
        has_mine = name in set(mine["benchmark"])
        if its is None:
            why = "" if has_mine else "no score of the candidate"
        elif table.loc[(table["benchmark"] == name), "change"].notna().any():
            why = ""
        elif has_mine and name in set(its["benchmark"]):
            why = "scored at different settings or test sets only"
        elif has_mine:
            why = "no score of the champion"
        else:
            why = "no score of the candidate" if name in set(its["benchmark"]) else "no score of either"
        if why:
            found[name] = why
    return found


def _decision(table: pd.DataFrame, is_first: bool, missing: Mapping[str, str]) -> tuple[Decision, str]:
    gated = table[table["is_gated"]]
    lacking = f" Not compared: {'; '.join(f'{name} ({why})' for name, why in missing.items())}." if missing else ""
    if is_first:
        if gated.empty:
            return "undecided", f"Undecided: the candidate has no score on a gated benchmark.{lacking}"
        return "promoted", f"Promoted: there is no champion yet, and {_listed(gated)} was scored.{lacking}"
    compared = gated[gated["change"].notna()]
    if compared.empty:
        return "undecided", f"Undecided: no gated benchmark was scored for both.{lacking}"
    fallen = compared[compared["outcome"] == FELL]
    if len(fallen):
        told = "; ".join(
            f"{row['benchmark']}{_set(row)} {row['champion']:.4f} -> {row['candidate']:.4f} "
            f"({100 * row['change']:+.2f} points, tolerance {100 * row['tolerance']:g})"
            for _, row in fallen.iterrows()
        )
        return "refused", f"Refused: {told}.{lacking}"
    return "promoted", f"Promoted: none of {_listed(compared)} fell by more than its tolerance.{lacking}"


def _set(row: "pd.Series[Any]") -> str:
    return "" if row["test_set"] == "all" else f" ({row['test_set']})"


def _listed(rows: pd.DataFrame) -> str:
    return ", ".join(sorted(set(rows["benchmark"])))
