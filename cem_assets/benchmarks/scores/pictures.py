"""Pictures of benchmark scores as PNG bytes: confusion matrices, and the short names in all pictures of scores."""

import io
import math

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cem_assets.imaging.gallery import MAX_BYTES, figure_png

_MAX_NUMBERED = 20
_NAME_CHARACTERS = 24


def confusion_png(matrix: pd.DataFrame, title: str) -> bytes:
    """Draw a confusion matrix, coloured by the share of each true label, as a PNG of at most `MAX_BYTES`.

    Args:
        matrix: Counts; rows are predicted labels, columns are true labels.
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
    axes.set_xticks(range(counts.shape[1]), [short_label(str(name)) for name in matrix.columns], rotation=90, fontsize=7)
    axes.set_yticks(range(counts.shape[0]), [short_label(str(name)) for name in matrix.index], fontsize=7)
    axes.set(xlabel="true", ylabel="predicted")
    axes.set_title(short_label(title, 80), fontsize=9)
    return _fitting(figure_png(figure))


def short_label(text: str, length: int = _NAME_CHARACTERS) -> str:
    """Shorten a name, and escape dollar signs so that matplotlib does not read formulas in it."""
    short = text if len(text) <= length else f"{text[: length - 3]}..."
    return short.replace("$", r"\$")


def _fitting(data: bytes) -> bytes:
    """Reduce a PNG until it fits: first its colours, then its size."""
    scale = 1.0
    while len(data) > MAX_BYTES:
        with Image.open(io.BytesIO(data)) as picture:
            size = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
            sink = io.BytesIO()
            reduced = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            reduced.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(sink, "PNG", optimize=True)
        data, scale = sink.getvalue(), 0.8
    return data
