"""Differences between two standings, and between the scores of weights trained from different releases.

`cem_assets.cem.releases.changes` compares the data of two releases.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cem_assets.benchmarks.leaderboard.standings import MEASURE, SETTING, standing_rows

_ROUNDING = 1e-9


def changes_between(now: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """List the differences between two standings in their main rows, without published and superseded ones.

    Returns:
        `MEASURE`, `SETTING`, weights, parameters, kind ("new", "gone", "changed"), before, now and change, sorted by these.
        Entries that did not change are left out. `partner_of` chooses which entries of the same weights are compared.
    """
    key = [*MEASURE, *SETTING, "weights"]
    new, old = standing_rows(now[now["is_main"]]), standing_rows(before[before["is_main"]])
    rows: list[dict[str, Any]] = []
    seen = set() if new is None else {tuple(row) for row in new[key].itertuples(index=False)}
    for _, entry in (new if new is not None else now.iloc[:0]).iterrows():
        if pd.isna(entry["previous"]):
            rows.append({**entry[[*key, "parameters"]], "kind": "new", "before": np.nan, "now": entry["mean"]})
        elif abs(entry["change"]) > _ROUNDING:
            rows.append({**entry[[*key, "parameters"]], "kind": "changed", "before": entry["previous"], "now": entry["mean"]})
    for _, entry in (old if old is not None else before.iloc[:0]).iterrows():
        if tuple(entry[key]) not in seen:
            rows.append({**entry[[*key, "parameters"]], "kind": "gone", "before": entry["mean"], "now": np.nan})
    table = pd.DataFrame(rows, columns=[*key, "parameters", "kind", "before", "now"])
    table["change"] = table["now"].astype("float64") - table["before"].astype("float64")
    ordered: pd.DataFrame = table.sort_values([*key, "parameters"], ignore_index=True)
    return ordered


def best_by_release(table: pd.DataFrame, releases: Sequence[str]) -> pd.DataFrame:
    """Compare releases by the best weights trained from each, for every measure and setting.

    Args:
        table: Standings. Their main rows count, except for fused weights, and so do the means of earlier releases in them.
        releases: Names such as "cem/releases/v2", oldest first; other releases come last, by name.

    Returns:
        `MEASURE`, `SETTING`, release, weights, mean and change. The change is that since the release before of the same data
        set, and NaN for the first one.
    """
    ours = table[table["is_main"] & ~table["release"].str.contains("+", regex=False)]
    carried = ours[ours["previous_release"] != ""]
    carried = carried.assign(release=carried["previous_release"], mean=carried["previous_release_mean"])
    every = pd.concat([ours[ours["release"] != ""], carried])[[*MEASURE, *SETTING, "release", "weights", "mean"]]
    place = {name: number for number, name in enumerate(releases)}
    every["order"] = [place.get(name, len(place)) for name in every["release"]]
    every["data"] = [name.rpartition("/")[0] for name in every["release"]]
    group = [*MEASURE, *SETTING, "data"]
    every = every.sort_values([*group, "order", "release", "mean", "weights"], ascending=[True] * 9 + [False, True])
    best = every.drop_duplicates([*group, "release"], ignore_index=True)
    best["change"] = best.groupby(group)["mean"].diff()
    found: pd.DataFrame = best.drop(columns=["order", "data"])
    return found
