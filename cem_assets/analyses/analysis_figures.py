"""Pictures of the analyses as PNG bytes small enough for an event's metadata; equal results give equal bytes.

Galleries and charts of any room are in `cem_assets.imaging.gallery`.
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

from cem_assets.analyses.invariance import FiringRates
from cem_assets.analyses.mask_correlation import MaskAgreement, enlarged
from cem_assets.analyses.occlusion import OcclusionMap
from cem_assets.analyses.transformations import TRANSFORMATIONS
from cem_assets.imaging.gallery import MAX_BYTES, figure_png

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")
_SCALES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2)
_MAX_NUMBERED = 12
"""Largest table of distances with its numbers written into the cells."""


def firing_rates_png(results: Mapping[str, Mapping[str, FiringRates]], title: str) -> bytes:
    """Draw mean firing rates over strengths, a panel for each transformation, a curve for each encoder.

    Args:
        results: By name of the weights, what `measure_invariance` gave.
        title: Above all.

    Returns:
        A PNG of at most `MAX_BYTES`. A dashed line is the rate that chance would give, a dotted one the unchanged image.

    Raises:
        ValueError: There is no result.
    """
    names = [name for name in TRANSFORMATIONS if any(name in rates for rates in results.values())]
    if not names:
        raise ValueError("there are no firing rates to draw; expected those of one encoder at least")
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = _figure(2.7 * num_columns, 0.8 + 1.9 * num_rows)
    figure.suptitle(_plain(title, 80), fontsize=10)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        for number, (weights, found) in enumerate(results.items()):
            if name not in found:
                continue
            rates = found[name]
            order = np.argsort(rates.strengths, kind="stable")
            colour = _COLOURS[number % len(_COLOURS)]
            axes.plot(
                np.asarray(rates.strengths)[order],
                rates.mean_rates[order],
                color=colour,
                linestyle="-" if number < len(_COLOURS) else "-.",
                linewidth=1.4,
                marker="o",
                markersize=2.5,
                label=_plain(weights, 28),
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
    return _fitting_png(figure)


def occlusion_png(
    images: Sequence[NDArray[np.uint8]], maps: Mapping[str, Sequence[OcclusionMap]], title: str, num: int = 6
) -> bytes:
    """Draw images beside what covering their parts does, a column for each encoder.

    Args:
        images: uint8 (height, width) each.
        maps: By name of the weights, one for each image.
        title: Above all.
        num: Images shown, the first.

    Returns:
        A PNG of at most `MAX_BYTES`; dark red is each map's own largest drop, which is told above it.

    Raises:
        ValueError: There is no image, or maps are not as many as images or of another size.
    """
    problems = [] if images and maps and num > 0 else ["expected one image and one encoder at least"]
    for name, found in maps.items():
        if [item.pixel_drops.shape for item in found] != [image.shape for image in images]:
            problems.append(f"{name} has {len(found)} maps for {len(images)} images, or of other sizes")
    if problems:
        raise ValueError(f"these maps cannot be drawn: {'; '.join(problems)}.")
    shown = images[:num]
    figure = _figure(1.6 * (1 + len(maps)) + 0.2, 0.4 + 1.75 * len(shown))
    figure.suptitle(_plain(title, 80), fontsize=9)
    panels = figure.subplots(len(shown), 1 + len(maps), squeeze=False)
    for row, image in enumerate(shown):
        _show_gray(panels[row, 0], image)
        panels[row, 0].set_title("image" if row == 0 else "", fontsize=7)
        for column, (name, found) in enumerate(maps.items(), start=1):
            drops, axes = found[row].pixel_drops, panels[row, column]
            _show_gray(axes, image)
            axes.imshow(drops, cmap="Reds", alpha=0.55, vmin=0, vmax=float(drops.max()) or 1.0, interpolation="nearest")
            axes.set_title((f"{_plain(name, 22)}\n" if row == 0 else "") + f"up to {drops.max():.2g}", fontsize=7)
    return _fitting_png(figure)


def agreement_png(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.float32]],
    agreement: MaskAgreement,
    title: str,
    num: int = 8,
) -> bytes:
    """Draw images with the outlines of their masks beside the channel that correlates best.

    Args:
        images: uint8 (height, width) each.
        masks: bool of the same sizes.
        maps: float32 (channels, rows, columns) of each, as `layer_maps` gives them.
        agreement: What `measure_agreement` found of all of these.
        title: Above all.
        num: Images shown, the first.

    Returns:
        A PNG of at most `MAX_BYTES`: images in the upper row, the channel in the lower, each with its correlation.

    Raises:
        ValueError: Numbers or sizes differ.
    """
    num_correlated = len(agreement.correlations)
    if not len(images) == len(masks) == len(maps) == num_correlated or num < 1:
        raise ValueError(
            f"{len(images)} images, {len(masks)} masks, {len(maps)} maps and correlations of {num_correlated}; expected as many"
        )
    if any(image.shape != mask.shape for image, mask in zip(images, masks, strict=True)):
        raise ValueError("an image and its mask differ in size; expected masks of the images' own sizes")
    num_shown, best = min(num, len(images)), agreement.best_channel
    figure = _figure(0.2 + 1.5 * num_shown, 3.8)
    held_out = "" if math.isnan(agreement.held_out_correlation) else f", held out {agreement.held_out_correlation:.2f}"
    told = f"channel {best}: mean correlation {agreement.best_correlation:.2f}{held_out}; best IoU {agreement.best_iou:.2f}"
    figure.suptitle(f"{_plain(title, 80)}\n{told}", fontsize=8)
    panels = figure.subplots(2, num_shown, squeeze=False)
    for number in range(num_shown):
        upper, lower = panels[:, number]
        _show_gray(upper, images[number])
        upper.contour(masks[number], levels=[0.5], colors="#c44e52", linewidths=0.8)
        lower.imshow(enlarged(maps[number][best : best + 1], *masks[number].shape)[0], cmap="viridis", interpolation="nearest")
        lower.contour(masks[number], levels=[0.5], colors="white", linewidths=0.6)
        lower.set_axis_off()
        lower.set_title(f"r {agreement.correlations[number, best]:.2f}", fontsize=7)
    return _fitting_png(figure)


def distances_png(names: Sequence[str], distances: NDArray[np.float64], title: str) -> bytes:
    """Draw a table of distances between datasets.

    Args:
        names: Of the datasets.
        distances: float64 (n, n), squared Fréchet distances; NaN is left white.
        title: Above all.

    Returns:
        A PNG of at most `MAX_BYTES`; dark is near. Small tables have numbers in their cells.

    Raises:
        ValueError: The table does not fit the names.
    """
    if not names or distances.shape != (len(names), len(names)):
        raise ValueError(f"distances have shape {distances.shape} for {len(names)} names; expected one row and column for each")
    side = 1.6 + max(1.8, min(0.42 if len(names) <= _MAX_NUMBERED else 0.16, 7 / len(names)) * len(names))
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    shown = axes.imshow(distances, cmap="Blues_r", interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.8)
    if len(names) <= _MAX_NUMBERED:
        middle = np.nanmean(distances) if np.isfinite(distances).any() else 0.0
        for (row, column), value in np.ndenumerate(distances):
            if np.isfinite(value):
                colour = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=6.5, color=colour)
    if len(names) <= 50:
        shortened = [_plain(name, 24) for name in names]
        axes.set_xticks(range(len(names)), shortened, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), shortened, fontsize=7)
    axes.set_title(_plain(title, 60), fontsize=9)
    return _fitting_png(figure)


def _show_gray(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _fitting_png(figure: Figure) -> bytes:
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
        smaller.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(sink, "PNG", optimize=True)
        data = sink.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data


def _plain(text: str, num_characters: int) -> str:
    """Shorten a name, and keep matplotlib from reading mathematics between dollar signs."""
    if len(text) > num_characters:
        text = f"{text[: num_characters - 2].rstrip()}.."
    return text.replace("$", r"\$")
