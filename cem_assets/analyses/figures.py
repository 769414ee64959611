"""What the figures of all analyses share: a small figure, and a PNG that fits into an event's metadata."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cem_assets.imaging import charts
from cem_assets.imaging.gallery import figure_png

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")
_SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def show_gray(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Show an image on its whole gray scale, without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="auto")  # it smooths where the image becomes smaller
    axes.set_axis_off()


def fitting_png(figure: Figure) -> bytes:
    """Render a figure; where it is larger than `MAX_BYTES`, in few colours, then smaller and smaller."""
    return charts.fitting_png(figure_png(figure), 160, _SCALES, Image.Quantize.MEDIANCUT)
