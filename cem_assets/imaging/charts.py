"""What the charts of all product lines share: a small figure, a PNG that fits into an event's metadata, short labels."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cem_assets.imaging.gallery import MAX_BYTES


def small_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches, at 90 dots per inch."""
    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def fitting_png(
    data: bytes,
    num_colours: int,
    scales: Sequence[float] = (1.0, 0.8, 0.6, 0.45, 0.3),
    method: Image.Quantize = Image.Quantize.MAXCOVERAGE,
) -> bytes:
    """Reduce a PNG that is larger than `MAX_BYTES`: first its colours, then its size. Smaller ones stay as they are.

    The picture is shrunk instead of drawn again, because drawing many axes takes seconds.

    Args:
        num_colours: Colours that are kept, at most 256.
        scales: Sizes that are tried, relative to the picture's own.
        method: How Pillow chooses the colours.

    Returns:
        The first version that fits, or the smallest one.
    """
    if len(data) <= MAX_BYTES:
        return data
    with Image.open(io.BytesIO(data)) as picture:
        whole = picture.convert("RGB")
    for scale in scales:
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        smaller = whole if scale == 1 else whole.resize(size, Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        smaller.quantize(num_colours, method, dither=Image.Dither.NONE).save(sink, "PNG", optimize=True)
        data = sink.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data


def plain_label(text: str, num_characters: int, is_end_kept: bool = False) -> str:
    """Shorten a label, and escape dollar signs so that matplotlib does not read formulas in it.

    Args:
        is_end_kept: Whether the middle is cut out instead of the end, because names of one origin often begin alike.
    """
    if len(text) > num_characters:
        tail = (num_characters - 2) // 3 if is_end_kept else 0
        end = text[-tail:].lstrip() if tail else ""
        text = f"{text[: num_characters - 2 - tail].rstrip()}..{end}"
    return text.replace("$", r"\$")
