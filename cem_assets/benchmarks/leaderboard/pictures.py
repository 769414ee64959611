"""The plot of one benchmark's standings: a dot for every entry with its range over seeds, and published values apart."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cem_assets.benchmarks.leaderboard.standings import settings_of
from cem_assets.imaging.charts import fitting_png, plain_label
from cem_assets.imaging.gallery import figure_png

MAX_PANELS = 8
MAX_ENTRIES = 25
"""Largest number of entries in a panel: the published and the random ones, and the best of the others."""
_BLUE, _GRAY, _RED = "#4c72b0", "#8c8c8c", "#c44e52"
_NAME_CHARACTERS = 34


def standings_png(table: pd.DataFrame, title: str) -> bytes:
    """Draw the standings of one benchmark.

    Args:
        table: The benchmark's rows of `cem_assets.benchmarks.leaderboard.standings.make_standings`.

    Returns:
        A PNG of at most `MAX_BYTES`; equal tables give equal bytes. It has a panel for each measure and setting, of which the
        first `MAX_PANELS` are drawn, and a panel of gains over random initialisation if gains were published. Scores are in
        percent, with the range over seeds. The random encoder is gray. Published values are red and hollow, and stand in the
        panel of the setting with the most iterations.
    """
    panels = _panels(table)
    shown = panels[:MAX_PANELS]
    num_columns = min(2, max(1, len(shown)))
    num_rows = max(1, math.ceil(len(shown) / num_columns))
    tallest = max((len(rows) for _, rows, _ in shown), default=1)
    figure = Figure(figsize=(5.2 * num_columns, 0.9 + num_rows * (0.9 + 0.21 * tallest)), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    rest = f"\n{len(panels) - len(shown)} more in the table" if len(panels) > len(shown) else ""
    figure.suptitle(plain_label(title, 90) + rest, fontsize=10)
    axes_of = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (name, rows, column) in zip(axes_of, shown, strict=False):
        _draw(axes, name, rows, column)
    for axes in axes_of[len(shown) :]:
        axes.set_visible(False)
    if not shown:
        figure.text(0.5, 0.4, "no scores yet", ha="center")
    figure.legend(handles=_legend(table), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return fitting_png(figure_png(figure), 32)


def _panels(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """List the panels: title, rows from the best down, and the column that is drawn."""
    found: list[tuple[str, pd.DataFrame, str]] = []
    kept = table[~table["is_superseded"]]
    for (test_set, metric), rows in kept.groupby(["test_set", "metric"], sort=True):
        measure = metric if test_set == "all" else f"{metric}, {test_set}"
        ours, published = rows[~rows["is_published"]], rows[rows["is_published"]]
        gains = published[published["mean"].isna()]
        groups = settings_of(ours)
        for number, (iterations, opened, version, group) in enumerate(groups):
            if number:  # published scores used the full number of iterations, so they belong to the first setting only
                published, gains = published.iloc[:0], gains.iloc[:0]
            setting = f"{iterations:,} iterations, opened: {opened}" if iterations else ""
            if len(groups) > 1:
                setting = ", ".join(part for part in (setting, f"version {version}") if part)
            name = f"{measure}\n{setting}" if setting else str(measure)
            scores = _best(group, published, "mean")
            if len(scores):
                found.append((f"{name}\n", scores, "mean"))
            if len(gains):
                found.append(
                    (
                        f"gain in {metric} over random initialisation\n{setting}\n",
                        _best(group, gains, "relative_gain"),
                        "relative_gain",
                    )
                )
    return found


def _best(ours: pd.DataFrame, published: pd.DataFrame, column: str) -> pd.DataFrame:
    rows = pd.concat([part for part in (ours, published) if len(part)] or [ours])
    rows = rows[rows[column].notna()].sort_values(
        [column, "weights", "parameters"], ascending=[False, True, True], kind="stable"
    )
    if len(rows) <= MAX_ENTRIES:
        return rows
    is_fixed = (rows["is_random"] | rows["is_published"]).to_numpy()
    num_free = max(0, MAX_ENTRIES - int(is_fixed.sum()))
    return rows[is_fixed | (np.cumsum(~is_fixed) <= num_free)]


def _draw(axes: Axes, name: str, rows: pd.DataFrame, column: str) -> None:
    labels = []
    for place, (_, row) in enumerate(rows.iterrows()):
        value = 100 * float(row[column])
        colour = _RED if row["is_published"] else _GRAY if row["is_random"] else _BLUE
        ends = ("low", "high") if row["is_published"] else ("lowest", "highest")
        if column == "mean" or row["is_published"]:
            low, high = (100 * float(row[end]) for end in ends)
            axes.plot([low, high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        if row["is_published"]:
            axes.plot(value, place, marker="D", markersize=5, color=colour, fillstyle="none", linestyle="none")
        else:
            axes.plot(value, place, marker="o", markersize=5, color=colour, linestyle="none")
        axes.annotate(f"{value:.1f}", (value, place), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=6)
        label = f"{row['weights']} (published)" if row["is_published"] else str(row["weights"])
        labels.append(plain_label(label, _NAME_CHARACTERS))
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.8)
    axes.margins(x=0.08)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("%", fontsize=7)
    axes.set_title(plain_label(name.strip(), 120), fontsize=8)


def _legend(table: pd.DataFrame) -> list[Line2D]:
    handles = [Line2D([], [], color=_BLUE, marker="o", markersize=4, label="mean and range over seeds")]
    if table["is_random"].any():
        handles.append(Line2D([], [], color=_GRAY, marker="o", markersize=4, label="random encoder"))
    if table["is_published"].any():
        handles.append(Line2D([], [], color=_RED, marker="D", markersize=4, fillstyle="none", label="published elsewhere"))
    return handles
