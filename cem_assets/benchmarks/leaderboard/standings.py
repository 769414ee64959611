"""Standings: scores become one row per entry, ranked among comparable entries, beside published figures and older standings.

An entry is all scores of some weights with equal parameters, over all seeds. A measure is a benchmark's test set and metric. A
setting is how training was done: the iterations, the layers that were opened for training, and the version of the method.
Entries of the same measure and the same setting are comparable.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from cem_assets.catalog.benchmarks import AnyBenchmark, PublishedScore
from cem_assets.errors import DataError

MEASURE = ["benchmark", "test_set", "metric"]
SETTING = ["iterations", "opened", "code_version"]
ENTRY = [
    *MEASURE,
    "iterations",
    "finetune_layer",
    "code_version",
    "weights",
    "weights_digest",
    "release",
    "release_digest",
    "parameters",
]
DTYPES: dict[str, str] = {
    "benchmark": "str",
    "test_set": "str",
    "metric": "str",
    "iterations": "int64",
    "opened": "str",
    "code_version": "str",
    "rank": "Int64",
    "weights": "str",
    "mean": "float64",
    "std": "float64",
    "num_seeds": "int64",
    "lowest": "float64",
    "highest": "float64",
    "low": "float64",
    "high": "float64",
    "num": "int64",
    "gain": "float64",
    "relative_gain": "float64",
    "previous": "float64",
    "change": "float64",
    "release": "str",
    "previous_release": "str",
    "previous_release_mean": "float64",
    "release_change": "float64",
    "weights_digest": "str",
    "release_digest": "str",
    "parameters": "str",
    "finetune_layer": "str",
    "is_main": "bool",
    "is_random": "bool",
    "is_superseded": "bool",
    "is_published": "bool",
    "source": "str",
    "note": "str",
}
"""Columns of standings, in order; `make_standings` explains them."""
WHOLE = "all"
"""Name of the test set that holds all test images."""


@dataclass(frozen=True)
class WeightsInfo:
    """What standings need to know about weights.

    Attributes:
        arch: Architecture of the network; empty if it is not known or there are several.
        is_random: Whether they were never trained.
        digest: Digest of the current weights. If it is empty it is not known, and no score counts as superseded.
    """

    arch: str = ""
    is_random: bool = False
    digest: str = ""


_UNKNOWN = WeightsInfo()


def aggregate_seeds(scores: pd.DataFrame, has_test_sets: bool = False) -> pd.DataFrame:
    """Combine the rows of all seeds into one row for each entry.

    Args:
        scores: The columns of `cem_assets.benchmarks.scores.stored.ScoreRow`, in any order; only rows with `is_main` count.
        has_test_sets: Whether the single test sets of a benchmark count too, if they have the metric of its main rows.

    Returns:
        The columns `ENTRY`, is_main, num_seeds, mean, std (with n - 1; NaN for one seed), lowest and highest (over seeds), low
        and high (means of the bounds of the seeds' own intervals) and num (the smallest), sorted by `ENTRY`.

    Raises:
        DataError: Values are not finite, or a seed occurs twice in one entry; the error names the first ten.
    """
    is_counted = scores["is_main"].astype(bool)
    if has_test_sets:
        pairs = list(zip(scores["benchmark"], scores["metric"], strict=True))
        chosen = {pair for pair, is_main in zip(pairs, is_counted, strict=True) if is_main}
        is_single = (scores["class_name"] == "") & (scores["test_set"] != WHOLE)
        is_counted |= is_single & pd.Series([pair in chosen for pair in pairs], index=scores.index, dtype=bool)
    main = scores[is_counted]
    bad = main[~np.isfinite(main["value"].to_numpy(np.float64))]
    twice = main[main.duplicated([*ENTRY, "seed"], keep="first")]
    problems = [f"{_name_of(row)} is {row['value']}" for _, row in bad.iterrows()]
    problems += [f"{_name_of(row)} occurs more than once" for _, row in twice.iterrows()]
    if problems:
        raise DataError(
            f"{len(problems)} score(s) cannot be compared: {'; '.join(problems[:10])}; expected finite values, each once. "
            "Remove or repeat these runs."
        )
    found: pd.DataFrame = (
        main.sort_values([*ENTRY, "seed"])
        .groupby(ENTRY, sort=True)
        .agg(
            is_main=("is_main", "all"),
            num_seeds=("value", "size"),
            mean=("value", "mean"),
            std=("value", "std"),
            lowest=("value", "min"),
            highest=("value", "max"),
            low=("low", "mean"),
            high=("high", "mean"),
            num=("num", "min"),
        )
        .reset_index()
    )
    return found


def _name_of(row: "pd.Series[Any]") -> str:
    return f"{row['benchmark']}/{row['weights']}/{row['parameters']}-s{row['seed']} ({row['test_set']}, {row['metric']})"


def place_in_settings(entries: pd.DataFrame, random_weights: frozenset[str] | set[str]) -> pd.DataFrame:
    """Add a column `opened`, in which comparable entries agree.

    A random encoder is always trained completely, so it is comparable with any entry of as many iterations, and its row is
    repeated in each of their settings. If no other entry has its number of iterations, its setting is that of its own layers.

    Args:
        entries: From `aggregate_seeds`.
        random_weights: Names of weights that were never trained.

    Returns:
        The same columns and `opened`, the layers opened in the setting; `finetune_layer` are the entry's own layers.
    """
    is_random = entries["weights"].isin(random_weights)
    trained = entries[~is_random]
    trained = trained.assign(opened=trained["finetune_layer"])  # not of `entries`: an empty table would get rows of NaN
    key = [*MEASURE, "iterations", "code_version"]
    settings = trained[[*key, "opened"]].drop_duplicates()
    untrained = entries[is_random].merge(settings, on=key, how="left")
    untrained["opened"] = untrained["opened"].fillna(untrained["finetune_layer"])
    placed: pd.DataFrame = pd.concat([part for part in (trained, untrained) if len(part)] or [trained], ignore_index=True)
    return placed


def settings_of(entries: pd.DataFrame) -> list[tuple[int, str, str, pd.DataFrame]]:
    """Split standings by setting, in their order, into iterations, layers opened, version and rows.

    Standings without rows become one blank setting.
    """
    groups = [(int(key[0]), str(key[1]), str(key[2]), group) for key, group in _grouped(entries, SETTING)]
    return groups or [(0, "", "", entries)]


def _grouped(table: pd.DataFrame, by: list[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    for key, group in table.groupby(by, sort=False):
        yield cast("tuple[Any, ...]", key), group


def partner_of(parameters: str, others: pd.DataFrame) -> "pd.Series[Any] | None":
    """Choose the row that an entry is compared with: one of equal parameters before others, then the best mean.

    Parameters can differ between comparable entries, because the pixel norms of the weights are parameters.
    """
    if others.empty:
        return None
    same = others[others["parameters"] == parameters]
    pool = same if len(same) else others
    chosen: pd.Series[Any] = pool.sort_values(["mean", "parameters"], ascending=[False, True], kind="stable").iloc[0]
    return chosen


def make_standings(
    scores: pd.DataFrame,
    weights: Mapping[str, WeightsInfo],
    benchmarks: Mapping[str, AnyBenchmark],
    previous: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Rank weights on every measure, beside published figures and the previous standings.

    Args:
        scores: See `aggregate_seeds`.
        weights: By name; weights that are missing here count as trained and of an unknown network.
        benchmarks: Rows of the catalogue, which hold the published figures.
        previous: The standings before these; None if there are none.

    Returns:
        The columns `DTYPES`. Measures are sorted, with the most iterations first; in each of them come ranked entries, then
        superseded, then published ones.
        `rank`: 1 is best, and ties share the better rank; superseded and published rows have none.
        `gain`, `relative_gain`: over the random encoder of the same network, as a difference and as a share of its mean.
        `previous`, `change`: the mean in the previous standings, and the difference to it.
        `previous_release`, `previous_release_mean`, `release_change`: the last mean of the same weights trained from another
        release, and the difference to it.
        `is_main`: whether the row represents the benchmark; other rows are its single test sets.
        `is_superseded`: whether the weights were replaced since they were scored.
        In published rows `low` and `high` are bounds of the error, and a published gain has no mean.
    """
    placed = place_in_settings(
        aggregate_seeds(scores, has_test_sets=True), {name for name, info in weights.items() if info.is_random}
    )
    infos = [weights.get(str(name), _UNKNOWN) for name in placed["weights"]]
    placed["is_random"] = [info.is_random for info in infos]
    placed["arch"] = [info.arch for info in infos]
    current = pd.Series([info.digest for info in infos], index=placed.index, dtype=object)
    placed["is_superseded"] = (current != "") & (current != placed["weights_digest"])
    placed["is_published"] = False
    standing = placed[~placed["is_superseded"]]
    placed["rank"] = standing.groupby([*MEASURE, *SETTING])["mean"].rank(method="min", ascending=False).astype("Int64")
    placed = placed.assign(gain=np.nan, relative_gain=np.nan)
    for _, group in standing.groupby([*MEASURE, *SETTING], sort=False):
        _add_gains(placed, group)
    placed = _with_history(placed, previous)
    rows = [_published_row(row, figure, placed) for row in benchmarks.values() for figure in row.published]
    table = pd.concat(
        [_typed(part) for part in (placed, _gains_of_published(pd.DataFrame(rows))) if len(part)] or [_typed(placed)]
    )
    ordered: pd.DataFrame = table.sort_values(
        [
            *MEASURE,
            "is_published",
            "iterations",
            "opened",
            "code_version",
            "is_superseded",
            "rank",
            "mean",
            "weights",
            "parameters",
        ],
        ascending=[True, True, True, True, False, True, False, True, True, False, True, True],
        kind="stable",
        ignore_index=True,
    )
    return ordered


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    blank = {"str": "", "int64": 0, "bool": False, "float64": np.nan, "Int64": pd.NA}
    columns = {
        name: frame[name] if name in frame else pd.Series(blank[kind], index=frame.index, dtype=object)
        for name, kind in DTYPES.items()
    }
    typed: pd.DataFrame = pd.DataFrame(columns, index=frame.index).astype(DTYPES)
    return typed


def _add_gains(placed: pd.DataFrame, group: pd.DataFrame) -> None:
    """Write the gains of each entry of a comparable group over the random encoder of its network into `placed`."""
    random = group[group["is_random"]]
    for index, entry in group[~group["is_random"]].iterrows():
        same_network = random[random["arch"] == entry["arch"]] if entry["arch"] else random
        if same_network["arch"].nunique() != 1:
            continue
        base = partner_of(entry["parameters"], same_network)
        if base is not None:
            placed.loc[index, "gain"] = entry["mean"] - base["mean"]
            placed.loc[index, "relative_gain"] = entry["mean"] / base["mean"] - 1 if base["mean"] > 0 else np.nan


def _with_history(placed: pd.DataFrame, previous: pd.DataFrame | None) -> pd.DataFrame:
    placed = placed.assign(
        previous=np.nan, change=np.nan, previous_release="", previous_release_mean=np.nan, release_change=np.nan
    )
    before = standing_rows(previous)
    if before is None:
        return placed
    groups = dict(_grouped(before, [*MEASURE, *SETTING, "weights"]))
    for index, entry in placed[~placed["is_superseded"]].iterrows():
        key = tuple(entry[[*MEASURE, *SETTING, "weights"]])
        old = partner_of(entry["parameters"], groups[key]) if key in groups else None
        if old is None:
            continue
        placed.loc[index, ["previous", "change"]] = [old["mean"], entry["mean"] - old["mean"]]
        is_same = entry["release_digest"] == old["release_digest"]
        name, mean = (old["previous_release"], old["previous_release_mean"]) if is_same else (old["release"], old["mean"])
        if name:
            placed.loc[index, "previous_release"] = name
            placed.loc[index, ["previous_release_mean", "release_change"]] = [mean, entry["mean"] - mean]
    return placed


def standing_rows(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return the rows of our own scores of current weights; None if there are no standings."""
    if table is None or table.empty:
        return None
    kept: pd.DataFrame = table[~table["is_published"] & ~table["is_superseded"]]
    return kept


def _published_row(row: AnyBenchmark, figure: PublishedScore, placed: pd.DataFrame) -> dict[str, Any]:
    """Bring a published figure into our columns; its measure is matched with the metrics scored here if that is unambiguous."""
    measure = figure.measure.lower()
    metric = measure.removeprefix("gain in ").split(" over ")[0].replace(" ", "_")
    mine = placed[placed["benchmark"] == row.name]
    metrics = sorted(set(mine["metric"]))
    if metric not in metrics and len(alike := [name for name in metrics if name.endswith(f"_{metric}")]) == 1:
        metric = alike[0]
    sets = sorted(set(mine["test_set"]))
    # A subset that is not one of our test sets is a remark, such as "mean of the four Perez benchmarks".
    is_name = figure.subset in sets or (bool(figure.subset) and " " not in figure.subset)
    whole = sets[0] if len(sets) == 1 and not is_name else "all"
    value, error = figure.value / 100, figure.error / 100
    is_gain = measure.startswith("gain in ")
    return {
        "benchmark": row.name,
        "test_set": figure.subset if is_name else whole,
        "metric": metric,
        "weights": figure.weights,
        "mean": np.nan if is_gain else value,
        # The gain is a share of the random encoder's IoU; as points, a gain of 73 would leave the random encoder at most 27 %.
        "relative_gain": value if is_gain else np.nan,
        "low": value - error,
        "high": value + error,
        "is_main": False,
        "is_random": figure.weights == "random",
        "is_published": True,
        "source": figure.source,
        "note": "; ".join(text for text in (figure.measure, "" if is_name else figure.subset) if text),
    }


def _gains_of_published(table: pd.DataFrame) -> pd.DataFrame:
    """Add gains to published figures if the figure of the random encoder was published beside them."""
    if table.empty:
        return table
    table["gain"] = np.nan
    for _, group in table.groupby([*MEASURE, "source"], sort=False):
        random = group.loc[group["is_random"], "mean"].dropna()
        if len(random) != 1:
            continue
        others = group.index[~group["is_random"] & group["mean"].notna()]
        table.loc[others, "gain"] = table.loc[others, "mean"] - random.iloc[0]
        table.loc[others, "relative_gain"] = table.loc[others, "mean"] / random.iloc[0] - 1
    return table
