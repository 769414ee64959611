"""Small pictures for people: galleries of patches, and charts, as bytes that fit into the metadata of events.

Charts are drawn with matplotlib's object interface, which has no global state.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MAX_BYTES = 100_000
"""The size of the largest picture that is put into an event's metadata."""
TILE_PX = 96
_CAPTION_PX = 14
_GAP_PX = 4
_MAX_FRAMES = 9
_CURVES = (("#4c72b0", "-"), ("#dd8452", "--"), ("#55a868", "-."), ("#8172b3", ":"))
"""Colours that colour-blind people can distinguish, and line styles for gray prints."""


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery.

    Attributes:
        pixels: uint8 (height, width).
        caption: A few words under it.
    """

    pixels: NDArray[np.uint8]
    caption: str = ""


def gallery_jpeg(rows: Sequence[tuple[str, Sequence[Tile]]], tile_px: int = TILE_PX) -> bytes:
    """Draw titled rows of pictures.

    Args:
        rows: (title, tiles) in order; rows without tiles are left out.

    Returns:
        A JPEG of at most `MAX_BYTES`. Its quality and then its size are reduced until it fits.
    """
    shown = [(title, tiles) for title, tiles in rows if tiles]
    columns = max((len(tiles) for _, tiles in shown), default=1)
    captions = any(tile.caption for _, tiles in shown for tile in tiles)
    row_px = tile_px + _GAP_PX + (_CAPTION_PX if captions else 0) + 18
    width = max(columns * (tile_px + _GAP_PX) + _GAP_PX, 240)
    canvas = Image.new("L", (width, max(1, len(shown)) * row_px + _GAP_PX), 255)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    for number, (title, tiles) in enumerate(shown):
        top = number * row_px + _GAP_PX
        draw.text((_GAP_PX, top), title, fill=0, font=font)
        for column, tile in enumerate(tiles):
            left = _GAP_PX + column * (tile_px + _GAP_PX)
            image = Image.fromarray(np.ascontiguousarray(tile.pixels))
            image.thumbnail((tile_px, tile_px))
            canvas.paste(image, (left, top + 16))
            if tile.caption:
                draw.text((left, top + 17 + tile_px), tile.caption, fill=70, font=font)
    for quality in (85, 70, 55, 40):
        sink = io.BytesIO()
        canvas.save(sink, "JPEG", quality=quality)
        if sink.tell() <= MAX_BYTES:
            return sink.getvalue()
    return gallery_jpeg(rows, tile_px * 3 // 4)


def flipbook_webp(
    rows: Sequence[Sequence[tuple[NDArray[np.uint8], str]]], tile_px: int = TILE_PX, frame_ms: int = 180
) -> bytes:
    """Draw stacks of slices side by side as one animation, which runs forwards and backwards for ever.

    Args:
        rows: Rows of (uint8 (slices, height, width), caption). `_MAX_FRAMES` evenly spaced slices of a long stack are shown. A
            stack with fewer slices than the others stops at its last slice.
        frame_ms: For how many milliseconds a slice is shown.

    Returns:
        An animated WebP of at most `MAX_BYTES`. Its quality and then its size are reduced until it fits.
    """
    shown = [row for row in rows if row]
    if not shown:
        raise ValueError("there is no stack to draw; expected at least one.")
    step = tile_px + _GAP_PX
    width, height = max(map(len, shown)) * step + _GAP_PX, len(shown) * (step + _CAPTION_PX) + _GAP_PX
    num_frames = min(_MAX_FRAMES, max(len(stack) for row in shown for stack, _ in row))
    font = ImageFont.load_default(size=11)
    frames = []
    for number in range(num_frames):
        canvas = Image.new("L", (width, height), 255)
        draw = ImageDraw.Draw(canvas)
        for line, row in enumerate(shown):
            for column, (stack, caption) in enumerate(row):
                left, top = _GAP_PX + column * step, _GAP_PX + line * (step + _CAPTION_PX)
                chosen = np.linspace(0, len(stack) - 1, min(len(stack), num_frames)).round().astype(int)
                image = Image.fromarray(np.ascontiguousarray(stack[chosen[min(number, len(chosen) - 1)]]))
                image.thumbnail((tile_px, tile_px))
                canvas.paste(image, (left, top))
                draw.text((left, top + tile_px + 1), caption, fill=70, font=font)
        frames.append(canvas.convert("RGB"))  # WebP has no gray
    frames += frames[-2:0:-1]
    for quality in (75, 60, 45, 30):
        sink = io.BytesIO()
        frames[0].save(
            sink, "WEBP", save_all=True, append_images=frames[1:], duration=frame_ms, loop=0, quality=quality, method=4
        )
        if sink.tell() <= MAX_BYTES:
            return sink.getvalue()
    return flipbook_webp(rows, tile_px * 3 // 4, frame_ms)


def histogram_png(
    values: Sequence[float] | NDArray[np.generic],
    title: str,
    x_label: str,
    num_bins: int = 40,
    mark: float | None = None,
    bounds: tuple[float, float] | None = None,
) -> bytes:
    """Draw a histogram as a PNG of a few KiB.

    Args:
        x_label: The label of the x axis, with the unit.
        mark: The value at which a vertical line is drawn, such as a threshold.
        bounds: The smallest and largest value of the x axis; None takes them from the values.
    """
    figure = Figure(figsize=(4.2, 2.4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(np.asarray(values, dtype=np.float64), bins=num_bins, range=bounds, color="#4c72b0")
    if mark is not None:
        axes.axvline(mark, color="#c44e52", linewidth=1.5)
    axes.set(title=title, xlabel=x_label, ylabel="count")
    return figure_png(figure)


def figure_png(figure: Figure, dpi: float | None = None) -> bytes:
    """Render a matplotlib figure to PNG; equal figures give equal bytes.

    Args:
        dpi: Resolution; None takes the figure's own.
    """
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None}, dpi=dpi or "figure")
    return sink.getvalue()


def roc_figure(false_positive_rate: NDArray[np.float64], true_positive_rate: NDArray[np.float64], auc: float) -> Figure:
    """Draw a ROC curve.

    Args:
        false_positive_rate: float64 (m,), the share of uninformative patches that are kept.
        true_positive_rate: float64 (m,), the share of informative patches that are kept.
        auc: The area under the curve, for the title.
    """
    figure = roc_curves_figure([("", false_positive_rate, true_positive_rate, auc)])
    figure.axes[0].set_title(f"ROC, AUC {auc:.3f}")
    return figure


def roc_curves_figure(curves: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64], float]]) -> Figure:
    """Draw several ROC curves into one chart.

    Args:
        curves: (name, false positive rate, true positive rate, AUC) of each, as for `roc_figure`. Names are in the legend.
    """
    figure = Figure(figsize=(3.6, 3.4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    for number, (name, false_positive_rate, true_positive_rate, auc) in enumerate(curves):
        color, style = _CURVES[number % len(_CURVES)]
        label = f"{name}: AUC {auc:.3f}" if name else None
        axes.plot(false_positive_rate, true_positive_rate, color=color, linestyle=style, linewidth=2, label=label)
    if any(name for name, *_ in curves):
        axes.legend(loc="lower right", fontsize=8)
    axes.set(title="ROC", xlabel="uninformative patches kept", ylabel="informative patches kept", aspect="equal")
    return figure


def confusion_figure(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Draw a confusion matrix.

    Args:
        matrix: int64 (n, n): rows are labels, columns are decisions.
        names: Names of the classes, in order.
    """
    figure = Figure(figsize=(3.4, 3.2), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(matrix, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(matrix):
        light = count > matrix.max() / 2
        axes.text(column, row, str(count), ha="center", va="center", color="white" if light else "black")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(title="confusion", xlabel="decided", ylabel="labelled")
    return figure
