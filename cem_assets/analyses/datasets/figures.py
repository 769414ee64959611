"""Draws maps of datasets and distances between them, for one encoder or several; equal results give equal PNG bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cem_assets.analyses.figures import COLOURS, fitting_png
from cem_assets.imaging.charts import plain_label, small_figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


_MAX_NUMBERED = 12


_MAX_COLUMNS = 3


def dataset_maps_png(points: Mapping[str, NDArray[np.floating]], labels: Sequence[str], title: str) -> bytes:
    """Draw images as points, a panel for each encoder, a colour and mark for each dataset.

    Args:
        points: (n, 2) by the panel's title.
        labels: (n,), the dataset of each image.

    Returns:
        A PNG of at most `cem_assets.imaging.gallery.MAX_BYTES`.

    Raises:
        ValueError: There is no map, or the numbers of points and labels differ.
    """
    if not points or any(found.shape != (len(labels), 2) for found in points.values()):
        shapes = {name: found.shape for name, found in points.items()}
        raise ValueError(
            f"points of shapes {shapes} for {len(labels)} labels; expected ({len(labels)}, 2) of one encoder at least"
        )
    names = sorted(set(labels))
    of_row = np.array([names.index(label) for label in labels])
    num_columns = min(_MAX_COLUMNS, len(points))
    num_rows = math.ceil(len(points) / num_columns)
    figure = small_figure(3.4 * num_columns + 0.4, 3.3 * num_rows + 0.9)
    figure.suptitle(plain_label(title, 90), fontsize=9)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    area = float(np.clip(6000 / max(len(labels), 1), 3.0, 26.0))
    for axes, (name, found) in zip(panels, points.items(), strict=False):
        for place in range(len(names)):
            chosen = found[of_row == place]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=area, alpha=0.8, linewidths=0, **_look(place))
        axes.set_title(plain_label(name, 44), fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel("first coordinate (no unit)", fontsize=7)
        axes.set_ylabel("second coordinate", fontsize=7)
    for axes in panels[len(points) :]:
        axes.set_visible(False)
    shown = names[: len(COLOURS) * 2]
    handles = [Line2D([], [], linestyle="", markersize=5, **_look(place)) for place in range(len(shown))]
    texts = [plain_label(name, 28) for name in shown]
    if len(names) > len(shown):
        texts[-1] = f"and {len(names) - len(shown) + 1} more"
    figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(shown)), fontsize=7, frameon=False)
    return fitting_png(figure)


def _look(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "marker": _MARKERS[(place // len(COLOURS)) % len(_MARKERS)]}


def distance_tables_png(names: Sequence[str], distances: Mapping[str, NDArray[np.float64]], title: str) -> bytes:
    """Draw tables of distances between datasets, one for each encoder.

    Args:
        names: Names of the datasets.
        distances: float64 (n, n) by name of the weights: squared Fréchet distances; NaN is left white.

    Returns:
        A PNG of at most `cem_assets.imaging.gallery.MAX_BYTES`; dark is near. Each table has its own scale, as distances of
        different encoders have different units.

    Raises:
        ValueError: There is no table, or its shape does not suit the names.
    """
    if not names or not distances or any(table.shape != (len(names), len(names)) for table in distances.values()):
        shapes = {name: table.shape for name, table in distances.items()}
        raise ValueError(f"distances have shapes {shapes} for {len(names)} names; expected a row and column for each")
    side = max(1.7, min(0.46 if len(names) <= _MAX_NUMBERED else 0.16, 7 / len(names)) * len(names))
    num_columns = min(_MAX_COLUMNS, len(distances))
    num_rows = math.ceil(len(distances) / num_columns)
    figure = small_figure((side + 2.0) * num_columns, (side + 1.5) * num_rows + 0.3)
    figure.suptitle(plain_label(title, 90), fontsize=9)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (weights, table) in zip(panels, distances.items(), strict=False):
        shown = axes.imshow(table, cmap="Blues_r", interpolation="nearest", vmin=0)
        bar = figure.colorbar(shown, ax=axes, shrink=0.75)
        bar.set_label("squared distance (units of the features)", fontsize=6)
        bar.ax.tick_params(labelsize=6)
        if len(names) <= _MAX_NUMBERED:
            middle = float(np.nanmax(table)) / 2 if np.isfinite(table).any() else 0.0
            for (row, column), value in np.ndenumerate(table):
                if np.isfinite(value):
                    colour = "white" if value < middle else "black"
                    axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=6.5, color=colour)
        if len(names) <= 50:
            shortened = [plain_label(name, 22) for name in names]
            axes.set_xticks(range(len(names)), shortened, rotation=90, fontsize=7)
            axes.set_yticks(range(len(names)), shortened, fontsize=7)
        axes.set_title(plain_label(weights, 34), fontsize=8)
    for axes in panels[len(distances) :]:
        axes.set_visible(False)
    return fitting_png(figure)
