"""What differs between two standings, and between releases.

Standings themselves are `cem_assets.benchmarks.leaderboard.standings`; what changed in a release's data is
`cem_assets.cem.releases.changes`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cem_assets.benchmarks.leaderboard.standings import MEASURE, SETTING, standing_rows

_ROUNDING = 1e-9


def changes_between(now: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """List what differs between two standings: their main rows, published and superseded ones aside.

    Returns:
        `MEASURE`, `SETTING`, weights, parameters, kind ("new", "gone", "changed"), before, now and change, in order;
        entries that did not change are left out. Entries of the same weights are compared as `partner_of` says.
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
    """Compare releases by the best weights trained from each, measure by measure and setting by setting.

    Args:
        table: Standings, of which main rows count, fused weights aside; means of earlier releases that they carry along
            count too.
        releases: Names such as "cem/releases/v2", oldest first; others are put last, by name.

    Returns:
        `MEASURE`, `SETTING`, release, weights, mean and change (since the release before of the same data set; NaN for the
        first), in order.
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
