"""Pictures of a segmentation as PNG bytes: predictions with right and wrong pixels in colours, and the curve of a training.

Predictions are drawn as single planes; `cem_assets.benchmarks.segmentation.items` chooses the planes of a volume.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from cem_assets.benchmarks.scores.pictures import short_label
from cem_assets.imaging.gallery import MAX_BYTES, figure_png

if TYPE_CHECKING:
    from cem_assets.benchmarks.segmentation.training import SegmentationResult

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS = (0, 158, 115), (213, 94, 0), (0, 114, 178), (204, 121, 167)
"""Green, orange, blue and pink of the palette of Okabe and Ito, which colour-blind people can distinguish."""
_SMALLEST_PX = 32
_BLUE, _RED = "#4c72b0", "#c44e52"


def mark_errors(
    image: NDArray[np.uint8], prediction: NDArray[Any], labels: NDArray[Any], opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Colour the pixels of an image by whether their prediction is right.

    Args:
        image: uint8 (h, w).
        prediction: Class numbers (h, w); 0 is background.
        labels: Class numbers (h, w).
        opacity: Opacity of the colours over the image, 0 to 1.

    Returns:
        uint8 (h, w, 3). A pixel is green if the right class was found, orange if background was predicted as a class, blue if a
        class was predicted as background, and pink if one class was predicted as another. Background that was predicted as
        background stays gray.
    """
    if not image.shape == prediction.shape == labels.shape or image.ndim != 2:
        raise ValueError(
            f"image, prediction and labels are {image.shape}, {prediction.shape} and {labels.shape}; expected one size (h, w)."
        )
    found, known = prediction > 0, labels > 0
    marked = np.repeat(image[:, :, None], 3, axis=2).astype(np.float32)
    for where, colour in (
        (found & (prediction == labels), TRUE_POSITIVE),
        (found & ~known, FALSE_POSITIVE),
        (~found & known, FALSE_NEGATIVE),
        (found & known & (prediction != labels), WRONG_CLASS),
    ):
        marked[where] = (1 - opacity) * marked[where] + opacity * np.array(colour, np.float32)
    return np.rint(marked).astype(np.uint8)


def errors_png(
    image: NDArray[np.uint8],
    prediction: NDArray[Any],
    labels: NDArray[Any],
    *,
    side_px: int = 512,
    max_bytes: int = MAX_BYTES,
) -> bytes:
    """Draw a prediction over its image; see `mark_errors` for the colours.

    Args:
        image: uint8 (h, w).
        prediction: Class numbers (h, w).
        labels: Class numbers (h, w).
        side_px: Longest side of the picture; a smaller image keeps its size.
        max_bytes: The picture is reduced until it is not larger than this, but not below a side of 32 px.
    """
    whole = Image.fromarray(mark_errors(image, prediction, labels))
    while True:
        picture = whole.copy()
        picture.thumbnail((side_px, side_px))
        sink = io.BytesIO()
        picture.save(sink, "PNG", optimize=True)
        if sink.tell() <= max_bytes or side_px <= _SMALLEST_PX:
            return sink.getvalue()
        side_px = max(_SMALLEST_PX, min(side_px, max(whole.size)) * 3 // 4)


def history_png(results: "Sequence[SegmentationResult]", title: str, class_names: Sequence[str]) -> bytes:
    """Draw the loss over optimiser steps, and the IoU of every class at the steps where it was measured."""
    figure = Figure(figsize=(5.6, 3.0), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    marker = "o" if len(results) == 1 else None
    axes.plot([result.step for result in results], [result.loss for result in results], color=_BLUE, marker=marker)
    axes.set(xlabel="optimiser steps", ylim=(0, None))
    axes.set_ylabel("loss", color=_BLUE)
    axes.set_title(short_label(title, 80), fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    measured = [result for result in results if result.iou]
    if measured:
        right = axes.twinx()
        for place, number in enumerate(sorted(measured[0].iou)):
            steps, values = [result.step for result in measured], [result.iou[number] for result in measured]
            style = ("-", "--", ":", "-.")[place % 4]
            right.plot(
                steps,
                values,
                style,
                color=_RED,
                marker="." if len(steps) < 30 else None,
                label=short_label(class_names[number]),
            )
        right.set(ylim=(0, 1))
        right.set_ylabel("IoU", color=_RED)
        right.legend(fontsize=7, frameon=False)
    return figure_png(figure)
