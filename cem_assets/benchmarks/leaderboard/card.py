"""Standings and verdicts as Markdown: the card of the leaderboard and that of a promotion."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cem_assets.benchmarks.leaderboard.gate import PromotionVerdict
from cem_assets.benchmarks.leaderboard.standings import settings_of
from cem_assets.catalog.benchmarks import AnyBenchmark


def leaderboard_card(
    table: pd.DataFrame,
    benchmarks: Mapping[str, AnyBenchmark],
    changes: pd.DataFrame | None,
    by_release: pd.DataFrame,
    pictures: Mapping[str, str],
) -> str:
    """Write the leaderboard's README.

    Args:
        table: From `cem_assets.benchmarks.leaderboard.standings.make_standings`.
        benchmarks: Rows of the catalogue, in the order of the sections.
        changes: From `cem_assets.benchmarks.leaderboard.changes.changes_between`; None for the first leaderboard.
        by_release: From `cem_assets.benchmarks.leaderboard.changes.best_by_release`.
        pictures: File names by benchmark.
    """
    ours = table[~table["is_published"]]
    names = [*benchmarks, *sorted(set(table["benchmark"]) - set(benchmarks))]
    parts = [
        "# Leaderboard",
        f"{ours['weights'].nunique()} weights on {ours['benchmark'].nunique()} benchmarks. Scores in percent: mean ± standard "
        "deviation over seeds, and the range over seeds. Ranks are among entries of the same setting. A random encoder is "
        "trained whole, so it stands in every setting with as many iterations. *Published* rows are figures of others, never "
        "made here; a published gain is relative to the random encoder's score. Gains are over the random encoder of the "
        "same network.",
        "## Changes since the last leaderboard",
        _changes(changes),
        "## Change since the last release",
        "The best weights trained from each release.",
        _by_release(by_release),
    ]
    for name in names:
        rows = table[table["benchmark"] == name]
        if len(rows):
            parts += _section(name, rows, benchmarks.get(name), pictures.get(name, ""))
    return "\n\n".join(parts) + "\n"


def _section(name: str, rows: pd.DataFrame, benchmark: AnyBenchmark | None, picture: str) -> list[str]:
    parts = [f"## {_text(benchmark.title) if benchmark else name}"]
    if benchmark:
        gate = f"gated, tolerance {100 * benchmark.tolerance:g} points" if benchmark.is_gated else "not gated"
        saturated = "; saturated: it hardly tells weights apart" if benchmark.is_saturated else ""
        parts.append(f"`{name}`, {gate}{saturated}. {_text(benchmark.citation)}")
    if picture:
        parts.append(f"![{name}]({picture})")
    for (test_set, metric), measure in rows.groupby(["test_set", "metric"], sort=True):
        published = measure[measure["is_published"]]
        ours = measure[~measure["is_published"]]
        what = str(metric) if test_set == "all" else f"{metric}, {test_set}"
        for iterations, opened, version, group in settings_of(ours):
            setting = f", {iterations:,} iterations, opened: {opened}" if iterations else ""
            setting += f", version {version}" if version else ""
            parts += [f"### {what}{setting}", _scores(group, published)]
            published = published.iloc[:0]  # they used the full number of iterations, so they belong to the first setting only
    return parts


def _scores(ours: pd.DataFrame, published: pd.DataFrame) -> str:
    several = ours["weights"].duplicated(keep=False)
    lines = []
    for (_, row), is_one_of_several in zip(ours.iterrows(), several, strict=True):
        name = f"`{row['weights']}`" + (f" ({row['parameters'][:6]})" if is_one_of_several else "")
        rank = "superseded" if row["is_superseded"] else str(row["rank"])
        seeds = f"{row['num_seeds']} seed{'s' if row['num_seeds'] != 1 else ''}"
        since = _points(row["release_change"]) + (f" ({row['previous_release']})" if row["previous_release"] else "")
        lines.append(
            [
                rank,
                name,
                row["release"],
                _share(row["mean"], row["std"]),
                f"{_share(row['lowest'])} to {_share(row['highest'])}, {seeds}",
                _gain(row),
                _points(row["change"]),
                since,
            ]
        )
    for _, row in published.iterrows():
        note = ", ".join(part for part in (row["note"], row["source"]) if part)
        error = f" ± {50 * (row['high'] - row['low']):.1f}" if row["high"] > row["low"] else ""
        value = f"*{_share(row['mean'])}{error}*" if pd.notna(row["mean"]) else ""
        gain = f"*{100 * row['relative_gain']:+.0f} %{error}*" if not value else f"*{_gain(row)}*" if _gain(row) else ""
        lines.append(["*published*", f"*{row['weights']}*", f"*{note}*", value, "", gain, "", ""])
    head = ["rank", "weights", "trained on, or source", "score", "range", "gain over random", "since last leaderboard"]
    return _table([*head, "since last release"], lines)


def _gain(row: "pd.Series[Any]") -> str:
    if pd.isna(row["gain"]):
        return ""
    relative = f" ({100 * row['relative_gain']:+.0f} %)" if pd.notna(row["relative_gain"]) else ""
    return f"{_points(row['gain'])}{relative}"


def _changes(changes: pd.DataFrame | None) -> str:
    if changes is None:
        return "This is the first leaderboard."
    if changes.empty:
        return "None."
    lines = [
        [_measure(row), f"`{row['weights']}`", row["kind"], _share(row["before"]), _share(row["now"]), _points(row["change"])]
        for _, row in changes.iterrows()
    ]
    return _table(["benchmark", "weights", "kind", "before", "now", "change"], lines)


def _by_release(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "No weights that were trained from a release have scores."
    lines = [
        [_measure(row), row["release"], f"`{row['weights']}`", _share(row["mean"]), _points(row["change"])]
        for _, row in rows.iterrows()
    ]
    return _table(["benchmark", "release", "best weights", "score", "since the release before"], lines)


def promotion_card(name: str, weights: str, digest: str, family: str, champion: str, verdict: PromotionVerdict) -> str:
    """Write the README of a verdict.

    Args:
        name: Name of the record.
        weights: The candidate.
        digest: Digest of the candidate's manifest.
        family: Architecture that the champion is for.
        champion: The champion that the candidate was judged against; empty if there was none.
    """
    lines = [
        [
            _measure(row),
            "yes" if row["is_gated"] else "no",
            _share(row["candidate"]),
            _share(row["champion"]),
            _points(row["change"]),
            f"{100 * row['tolerance']:g}",
            row["outcome"],
        ]
        for _, row in verdict.table.iterrows()
    ]
    head = ["benchmark", "gated", "candidate", "champion", "change", "tolerance", "outcome"]
    parts = [
        f"# Promotion {name}: {weights}",
        f"**{_text(verdict.summary)}**",
        f"Candidate `{weights}`, manifest {digest[:12]}, judged for champion of {family} against "
        + (f"`{champion}`." if champion else "nobody: there was no champion.")
        + " Percent and percentage points; means over seeds.",
        _table(head, lines) if lines else "Nothing was scored.",
    ]
    if verdict.is_overridden:
        parts.append(f"Overridden; the rule alone says: {verdict.decision}. Reason: {_text(verdict.reason)}")
    elif verdict.reason:
        parts.append(f"A reason to override was given and not needed: {_text(verdict.reason)}")
    return "\n\n".join(parts) + "\n"


def _measure(row: "pd.Series[Any]") -> str:
    """Name a benchmark together with the test set, metric and setting of a row."""
    details = ["" if row["test_set"] == "all" else row["test_set"], row["metric"]]
    if pd.notna(row["iterations"]) and row["iterations"]:
        details.append(f"{int(row['iterations']):,} iterations")
    details.append(row.get("opened", row.get("finetune_layer", "")))
    return f"{row['benchmark']} ({', '.join(text for text in details if text)})"


def _share(value: Any, std: Any = None) -> str:
    if pd.isna(value):
        return ""
    return f"{100 * value:.2f}" + (f" ± {100 * std:.2f}" if pd.notna(std) else "")


def _points(value: Any) -> str:
    return "" if pd.isna(value) else f"{100 * value:+.2f}"


def _text(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows)
