"""Pictures of benchmark scores for people, as PNG bytes: the curve of a training, confusion matrices, maps of features.

Predictions with their errors marked are `cem_assets.benchmarks.segmentation.pictures`.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from cem_assets.benchmarks.transfer.profiles import standardise
from cem_assets.cytoimagenet.class_maps.views import class_map_png, umap_points
from cem_assets.errors import DataError
from cem_assets.imaging.gallery import MAX_BYTES, figure_png

if TYPE_CHECKING:
    from cem_assets.benchmarks.segmentation.training import SegmentationResult

MAX_MAP_ROWS = 3000
"""Samples of a map; of larger tables as many are drawn at random, with the seed."""
_MAX_NUMBERED = 20
_NAME_CHARACTERS = 24
_BLUE, _RED = "#4c72b0", "#c44e52"


def history_png(results: "Sequence[SegmentationResult]", title: str, class_names: Sequence[str]) -> bytes:
    """Draw the loss, and the IoU of every class where it was measured, over optimiser steps.

    Args:
        results: Of a training, in order.
        class_names: By class number.
    """
    figure = Figure(figsize=(5.6, 3.0), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    marker = "o" if len(results) == 1 else None
    axes.plot([result.step for result in results], [result.loss for result in results], color=_BLUE, marker=marker)
    axes.set(xlabel="optimiser steps", ylim=(0, None))
    axes.set_ylabel("loss", color=_BLUE)
    axes.set_title(_plain(title, 80), fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    measured = [result for result in results if result.iou]
    if measured:
        right = axes.twinx()
        for place, number in enumerate(sorted(measured[0].iou)):
            steps, values = [result.step for result in measured], [result.iou[number] for result in measured]
            style = ("-", "--", ":", "-.")[place % 4]
            right.plot(
                steps, values, style, color=_RED, marker="." if len(steps) < 30 else None, label=_plain(class_names[number])
            )
        right.set(ylim=(0, 1))
        right.set_ylabel("IoU", color=_RED)
        right.legend(fontsize=7, frameon=False)
    return figure_png(figure)


def confusion_png(matrix: pd.DataFrame, title: str) -> bytes:
    """Draw a confusion matrix, coloured by the share of each true label.

    Args:
        matrix: Counts; rows are predicted labels, columns true ones.
        title: Above it.

    Returns:
        A PNG of at most `MAX_BYTES`.
    """
    counts = matrix.to_numpy(np.int64)
    shares = counts / np.maximum(counts.sum(axis=0, keepdims=True), 1)
    side = min(10.0, 1.8 + 0.34 * max(counts.shape))
    figure = Figure(figsize=(side + 0.6, side), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if max(counts.shape) <= _MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(counts.shape[1]), [_plain(str(name)) for name in matrix.columns], rotation=90, fontsize=7)
    axes.set_yticks(range(counts.shape[0]), [_plain(str(name)) for name in matrix.index], fontsize=7)
    axes.set(xlabel="true", ylabel="predicted")
    axes.set_title(_plain(title, 80), fontsize=9)
    return _fitting(figure_png(figure))


def feature_map_png(features: NDArray[np.floating], labels: Sequence[str], seed: int, title: str) -> bytes:
    """Lay samples out by UMAP of their standardised features, coloured by label.

    Args:
        features: (n, d); columns that are not finite are left out.
        labels: (n,).
        seed: Of the choice of samples and of the layout.

    Returns:
        A PNG of at most `MAX_BYTES`.

    Raises:
        DataError: No column is finite.
    """
    rows = np.arange(len(features))
    if len(rows) > MAX_MAP_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_MAP_ROWS, replace=False))
    chosen = features[rows]
    chosen = chosen[:, np.isfinite(chosen).all(axis=0)]
    if not chosen.shape[1]:
        raise DataError("no feature is finite in all samples, so there is no map; expected one at least.")
    points = umap_points(standardise(chosen)[0], seed)
    return class_map_png(points, [str(labels[row]) for row in rows.tolist()], title)


def _plain(text: str, length: int = _NAME_CHARACTERS) -> str:
    """Shorten a name, and keep matplotlib from reading formulas in it."""
    short = text if len(text) <= length else f"{text[: length - 3]}..."
    return short.replace("$", r"\$")


def _fitting(data: bytes) -> bytes:
    """Make a PNG smaller until it fits: in fewer colours, then fewer pixels."""
    scale = 1.0
    while len(data) > MAX_BYTES:
        with Image.open(io.BytesIO(data)) as picture:
            size = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
            sink = io.BytesIO()
            reduced = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            reduced.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(sink, "PNG", optimize=True)
        data, scale = sink.getvalue(), 0.8
    return data
