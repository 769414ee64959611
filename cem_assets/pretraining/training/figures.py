"""Draws curves, views and confusion matrices of a training as PNG bytes that are small enough for the metadata of an event.

This module does not import torch. `cem_assets.pretraining.training.loop` and
`cem_assets.pretraining.training.classification` measure the numbers; `cem_assets.imaging.gallery` has general galleries and
charts.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cem_assets.imaging.charts import fitting_png, plain_label, small_figure
from cem_assets.imaging.gallery import MAX_BYTES, figure_png

if TYPE_CHECKING:
    from torch import Tensor

    from cem_assets.pretraining.training.checkpoints import EpochResult
    from cem_assets.pretraining.training.classification import ClassificationResult

    Views = Tensor | NDArray[np.floating]

_BLUE = "#4c72b0"
_MAX_COLUMNS = 4
_MAX_NUMBERED = 12
"""Largest confusion matrix with counts written into its cells."""
_MAX_NAMED = 50
"""Largest one with names along its sides."""
_NAME_CHARACTERS = 28
_HEAD_PX = 15
_GAP_PX = 4
_TILES_PX = (112, 96, 80, 64, 48, 32)
_GRAY_LEVELS = (64, 32)


def curves_png(results: "Sequence[EpochResult]", title: str) -> bytes:
    """Draw loss, learning rate and indicators over epochs, each on axes of its own.

    Args:
        results: Results of the epochs done, in order; indicators may come in some epochs only.

    Returns:
        A PNG of at most `MAX_BYTES`: loss, learning rate, then the indicators in order of first occurrence.
    """
    indicators: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        for name, value in result.indicators.items():
            indicators.setdefault(name, []).append((result.epoch, value))
    curves = [
        ("loss", [(result.epoch, result.loss) for result in results]),
        ("learning rate", [(result.epoch, result.learning_rate) for result in results]),
        *((name.replace("_", " "), points) for name, points in indicators.items()),
    ]
    num_columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(curves))))
    num_rows = math.ceil(len(curves) / num_columns)
    figure = small_figure(2.5 * num_columns, 0.4 + 1.75 * num_rows)
    figure.suptitle(plain_label(title, 80, is_end_kept=True), fontsize=10)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True).ravel()
    for axes, (name, points) in zip(panels, curves, strict=False):
        epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
        axes.plot(epochs, values, color=_BLUE, linewidth=1.3, marker="o", markersize=2.5 if len(points) < 40 else 0)
        axes.set_title(plain_label(name, _NAME_CHARACTERS, is_end_kept=True), fontsize=9)
        axes.tick_params(labelsize=7, labelbottom=True)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
        axes.yaxis.get_offset_text().set_fontsize(7)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch", fontsize=8)
    return fitting_png(figure_png(figure), 64)


def views_png(images: NDArray[np.uint8], views: "Sequence[Views]", mean: float, std: float, num: int = 6) -> bytes:
    """Draw images beside their augmented views, which are shown before the normalisation.

    Args:
        images: uint8 (n, height, width).
        views: Float tensors or arrays (n, 1, s, s) of any sizes, normalised; as `BatchAugmentation` gives them.
        mean: Mean of the pixels, on a scale of 0 to 1, with which the views were normalised.
        std: Standard deviation of the pixels, likewise.
        num: Number of images that are shown, from the first of the batch on.

    Returns:
        A PNG with a row for each image, which begins with the image itself. Each column has its name above it, and its size
        where there is room. All tiles have one size. First that size and then the number of gray levels is reduced until the
        PNG has at most `MAX_BYTES`, which always succeeds for fewer than hundreds of pictures.

    Raises:
        ValueError: There is no image, or views are not square or not finite, or their number differs from that of the images.
            The text names all problems.
    """
    arrays = [_array(view[:num]) for view in views]
    problems = [] if len(images) and images.ndim == 3 else [f"images have shape {images.shape}, expected (n, height, width)"]
    if num < 1:
        problems.append(f"num is {num}, expected at least 1")
    for number, (view, array) in enumerate(zip(views, arrays, strict=True)):
        if len(view.shape) != 4 or tuple(view.shape[:2]) != (len(images), 1):
            problems.append(f"view {number} has shape {tuple(view.shape)}, expected ({len(images)}, 1, s, s)")
        elif not np.isfinite(array).all():
            problems.append(f"view {number} has values that are not finite")
    if problems:
        raise ValueError(f"these views cannot be drawn: {'; '.join(problems)}.")
    columns = [("image", images[:num])]
    for number, array in enumerate(arrays):
        pixels = np.rint((array[:, 0].astype(np.float64) * std + mean).clip(0, 1) * 255).astype(np.uint8)
        columns.append((f"view {number + 1}", pixels))
    data = b""
    for levels in _GRAY_LEVELS:
        for tile_px in _TILES_PX:
            data = _montage_png(columns, tile_px, levels)
            if len(data) <= MAX_BYTES:
                return data
    return data


def _array(view: "Views") -> NDArray[Any]:
    """Bring a view to numpy; a tensor may be on any device and of any precision."""
    if isinstance(view, np.ndarray):
        return view
    found: NDArray[Any] = view.detach().float().cpu().numpy()
    return found


def _montage_png(columns: list[tuple[str, NDArray[np.uint8]]], tile_px: int, levels: int) -> bytes:
    pitch = tile_px + _GAP_PX
    width, height = len(columns) * pitch + _GAP_PX, len(columns[0][1]) * pitch + _GAP_PX + _HEAD_PX
    canvas = Image.new("L", (width, height), 255)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=10)
    for column, (name, pictures) in enumerate(columns):
        left = _GAP_PX + column * pitch
        head = f"{name}, {pictures.shape[1]}x{pictures.shape[2]} px"
        draw.text((left, 2), head if draw.textlength(head, font=font) <= tile_px else name, fill=0, font=font)
        for row, picture in enumerate(pictures):
            tile = Image.fromarray(np.ascontiguousarray(picture))
            scale = tile_px / max(tile.size)
            size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
            # Small views are enlarged without smoothing: their pixels are what the network gets.
            how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
            canvas.paste(tile.resize(size, how), (left, _HEAD_PX + _GAP_PX + row * pitch))
    # Fewer levels of gray than the eye tells apart in a preview, as a palette: deflate gains most from that.
    ramp = np.round(np.linspace(0, 255, levels)).astype(np.uint8)
    places = np.round(np.asarray(canvas).astype(np.float64) * ((levels - 1) / 255)).astype(np.uint8)
    picture = Image.fromarray(places)
    picture.putpalette(np.repeat(ramp, 3).tobytes())
    sink = io.BytesIO()
    picture.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def confusion_png(result: "ClassificationResult", max_classes: int = 50) -> bytes:
    """Draw a confusion matrix: by class where they are few, by category where they are many.

    Args:
        max_classes: Largest number of classes that are drawn one by one.

    Returns:
        A PNG of at most `MAX_BYTES`. The shade is the share of the row's images, so that rows with different numbers of images
        can be compared; a row without images is white. Classes are ordered by category, then by number. Small matrices have
        counts in their cells.
    """
    if len(result.classes) <= max_classes:
        order = sorted(range(len(result.classes)), key=lambda number: (result.categories[number], number))
        names, matrix, what = [result.classes[number] for number in order], result.confusion[np.ix_(order, order)], "class"
    else:
        names, what = list(result.per_category), "category"
        belongs = np.array([[name == category for category in result.categories] for name in names], np.int64)
        matrix = belongs @ result.confusion @ belongs.T
    num_of_row = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, num_of_row, out=np.zeros(matrix.shape), where=num_of_row > 0)
    side = 1.6 + max(1.8, min(0.34 if len(names) <= _MAX_NUMBERED else 0.15, 7 / len(names)) * len(names))
    figure = small_figure(side + 0.7, side)
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="share of the row", shrink=0.8)
    if len(names) <= _MAX_NUMBERED:
        _write_counts(axes, matrix, shares)
    if len(names) <= _MAX_NAMED:
        font_size = 7.5 if len(names) <= 25 else 6
        shortened = [plain_label(name, _NAME_CHARACTERS, is_end_kept=True) for name in names]
        axes.set_xticks(range(len(names)), shortened, rotation=90, fontsize=font_size)
        axes.set_yticks(range(len(names)), shortened, fontsize=font_size)
    axes.set_title(f"{result.num_images:,} images by {what}, top-1 {result.top1:.1%}, top-5 {result.top5:.1%}", fontsize=9)
    axes.set(xlabel=f"predicted {what}", ylabel=f"true {what}")
    return fitting_png(figure_png(figure), 64)


def _write_counts(axes: Axes, matrix: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=colour)
