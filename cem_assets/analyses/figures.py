"""What the figures of all analyses share: a small figure, and a PNG that fits into an event's metadata."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cem_assets.imaging.gallery import MAX_BYTES, figure_png

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")
_SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def show_gray(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Show an image on its whole gray scale, without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="auto")  # it smooths where the image becomes smaller
    axes.set_axis_off()


def small_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def fitting_png(figure: Figure) -> bytes:
    """Render a figure; where it is larger than `MAX_BYTES`, in few colours, then smaller and smaller."""
    data = figure_png(figure)
    if len(data) <= MAX_BYTES:
        return data
    with Image.open(io.BytesIO(data)) as picture:
        whole = picture.convert("RGB")
    for scale in _SCALES:
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        smaller = whole if scale == 1 else whole.resize(size, Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        smaller.quantize(160, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(sink, "PNG", optimize=True)
        data = sink.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data


def plain_name(text: str, num_characters: int) -> str:
    """Shorten a name, and keep matplotlib from reading mathematics between dollar signs."""
    if len(text) > num_characters:
        text = f"{text[: num_characters - 2].rstrip()}.."
    return text.replace("$", r"\$")
