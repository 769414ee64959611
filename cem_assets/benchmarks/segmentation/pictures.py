"""Pictures of a prediction for people: the image with right and wrong pixels coloured, as PNG bytes.

Numbers are `segmentation_metrics`. Of a volume the caller chooses the slices.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cem_assets.errors import DataError

MAX_BYTES = 100_000
"""Largest picture that is put into an event's metadata."""
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS = (0, 158, 115), (213, 94, 0), (0, 114, 178), (204, 121, 167)
"""Green, orange, blue and pink: the palette of Okabe and Ito, told apart by colour-blind people too."""
_SMALLEST_PX = 32


def mark_errors(
    image: NDArray[np.uint8], prediction: NDArray[Any], labels: NDArray[Any], opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Colour the pixels of an image by what became of them.

    Args:
        image: uint8 (h, w).
        prediction: Class numbers (h, w), 0 for background.
        labels: Class numbers (h, w).
        opacity: Of the colours over the image.

    Returns:
        uint8 (h, w, 3): green where the right class was found, orange where background was called something, blue
        where something was missed, pink where one class was taken for another; background rightly left stays gray.

    Raises:
        DataError: Shapes differ.
    """
    if not image.shape == prediction.shape == labels.shape or image.ndim != 2:
        raise DataError(
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
        max_bytes: The picture is made smaller until it fits, down to 32 px.

    Returns:
        A PNG.

    Raises:
        DataError: Shapes differ.
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
