"""Pictures of the analyses as PNG bytes small enough for an event's metadata; equal results give equal bytes.

Figures that set several weights side by side, by dataset or organelle, are `cem_assets.analyses.comparisons.figures`; galleries
and charts of any room are in `cem_assets.imaging.gallery`.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cem_assets.analyses.invariance.rates import FiringRates
from cem_assets.analyses.invariance.transformations import TRANSFORMATIONS
from cem_assets.analyses.occlusion.maps import OcclusionMap
from cem_assets.analyses.organelles.consensus import Consensus
from cem_assets.analyses.organelles.correlation import MaskAgreement, enlarged
from cem_assets.errors import DataError
from cem_assets.imaging.gallery import MAX_BYTES, figure_png

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")
_SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def firing_rates_png(results: Mapping[str, Mapping[str, FiringRates]], title: str) -> bytes:
    """Draw mean firing rates over strengths, a panel for each transformation, a curve for each encoder.

    Args:
        results: By name of the weights, what `measure_invariance` gave.

    Returns:
        A PNG of at most `MAX_BYTES`. A dashed line is the rate that chance would give, a dotted one the unchanged image.

    Raises:
        DataError: There is no result.
    """
    names = [name for name in TRANSFORMATIONS if any(name in rates for rates in results.values())]
    if not names:
        raise DataError("there are no firing rates to draw; expected those of one encoder at least")
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = small_figure(2.7 * num_columns, 0.8 + 1.9 * num_rows)
    figure.suptitle(plain_name(title, 80), fontsize=10)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        for number, (weights, found) in enumerate(results.items()):
            if name not in found:
                continue
            rates = found[name]
            order = np.argsort(rates.strengths, kind="stable")
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                np.asarray(rates.strengths)[order],
                rates.mean_rates[order],
                color=colour,
                linestyle="-" if number < len(COLOURS) else "-.",
                linewidth=1.4,
                marker="o",
                markersize=2.5,
                label=plain_name(weights, 28),
            )
            if rates.is_firing.any():
                axes.axhline(float(rates.global_rates[rates.is_firing].mean()), color=colour, linewidth=0.7, linestyle="--")
        axes.axvline(TRANSFORMATIONS[name].identity, color="#999999", linewidth=0.7, linestyle=":")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(TRANSFORMATIONS[name].unit, fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.tick_params(labelsize=7)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supylabel("mean firing rate", fontsize=8)
    # Each name once, from whichever panel has it: not every encoder is in every panel.
    handles = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=7)
    return fitting_png(figure)


def occlusion_png(
    images: Sequence[NDArray[np.uint8]], maps: Mapping[str, Sequence[OcclusionMap]], title: str, num: int = 6
) -> bytes:
    """Draw images beside what covering their parts does, a column for each encoder.

    Args:
        images: uint8 (height, width) each.
        maps: By name of the weights, one for each image.
        num: Images shown, the first.

    Returns:
        A PNG of at most `MAX_BYTES`; dark red is each map's own largest drop, which is told above it.

    Raises:
        DataError: There is no image, or maps are not as many as images or of another size.
    """
    problems = [] if images and maps and num > 0 else ["expected one image and one encoder at least"]
    for name, found in maps.items():
        if [item.pixel_drops.shape for item in found] != [image.shape for image in images]:
            problems.append(f"{name} has {len(found)} maps for {len(images)} images, or of other sizes")
    if problems:
        raise DataError(f"these maps cannot be drawn: {'; '.join(problems)}.")
    shown = images[:num]
    figure = small_figure(max(4.0, 1.6 * (1 + len(maps)) + 0.2), 0.6 + 1.75 * len(shown))
    figure.suptitle(plain_name(title, 80), fontsize=9)
    panels = figure.subplots(len(shown), 1 + len(maps), squeeze=False)
    for row, image in enumerate(shown):
        show_gray(panels[row, 0], image)
        panels[row, 0].set_title("image" if row == 0 else "", fontsize=7)
        for column, (name, found) in enumerate(maps.items(), start=1):
            drops, axes = found[row].pixel_drops, panels[row, column]
            show_gray(axes, image)
            axes.imshow(drops, cmap="Reds", alpha=0.55, vmin=0, vmax=float(drops.max()) or 1.0, interpolation="nearest")
            axes.set_title((f"{plain_name(name, 22)}\n" if row == 0 else "") + f"up to {drops.max():.2g}", fontsize=7)
    figure.supxlabel("darkest red: the largest drop of each map, told above it; no red: no drop", fontsize=7)
    return fitting_png(figure)


def agreement_png(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.float32]],
    agreement: MaskAgreement,
    consensus: Consensus,
    title: str,
    num: int = 8,
) -> bytes:
    """Draw images with the outlines of their masks above the channel that correlates best, and the mean of the best few.

    Args:
        images: uint8 (height, width) each.
        masks: bool of the same sizes.
        maps: float32 (channels, rows, columns) of each, as `layer_maps` gives them.
        agreement: What `measure_agreement` found of all of these.
        consensus: What `measure_consensus` found.
        num: Images shown, the first.

    Returns:
        A PNG of at most `MAX_BYTES`: images in the upper row, the channel in the middle, the mean of channels in the lower,
        each with its correlation with the mask.

    Raises:
        DataError: Numbers or sizes differ.
    """
    num_correlated = len(agreement.correlations)
    if not len(images) == len(masks) == len(maps) == num_correlated or num < 1:
        raise DataError(
            f"{len(images)} images, {len(masks)} masks, {len(maps)} maps and correlations of {num_correlated}; expected as many"
        )
    if any(image.shape != mask.shape for image, mask in zip(images, masks, strict=True)):
        raise DataError("an image and its mask differ in size; expected masks of the images' own sizes")
    num_shown, best = min(num, len(images)), agreement.best_channel
    figure = small_figure(0.7 + 1.5 * max(num_shown, 2), 5.4)
    rows = [
        _told("best channel", f"no. {best}", agreement.best_correlation, agreement.held_out_correlation),
        _told(f"mean of {len(consensus.channels)}", "channels", consensus.correlations.mean(), consensus.held_out.mean()),
    ]
    figure.suptitle(plain_name(title, 80), fontsize=9)
    panels = figure.subplots(3, num_shown, squeeze=False)
    for number in range(num_shown):
        show_gray(panels[0, number], images[number])
        panels[0, number].contour(masks[number], levels=[0.5], colors="#ff8c1a", linewidths=1.1)
        wide = enlarged(maps[number][best : best + 1], *masks[number].shape)[0]
        values = (wide, consensus.maps[number])
        found = (agreement.correlations[number, best], consensus.correlations[number])
        for axes, shown, correlation in zip(panels[1:, number], values, found, strict=True):
            axes.imshow(shown, cmap="viridis", interpolation="nearest")
            axes.contour(masks[number], levels=[0.5], colors="white", linewidths=0.8)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"r {correlation:.2f}", fontsize=7)
    for axes, text in zip(panels[:, 0], ("image and mask", *rows), strict=True):
        axes.axis("on")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(text, fontsize=7)
    return fitting_png(figure)


def _told(what: str, which: str, correlation: float, held_out: float) -> str:
    text = f"{what}\n{which}\nmean r {correlation:.2f}"
    return text if math.isnan(held_out) else f"{text}\nheld out {held_out:.2f}"


def show_gray(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Show an image on its whole gray scale, without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="auto")  # smooths where it makes smaller
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
