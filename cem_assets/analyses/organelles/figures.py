"""Draws feature maps beside masks, and how well weights find organelles, as PNG bytes; equal results give equal bytes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cem_assets.analyses.figures import COLOURS, fitting_png, show_gray
from cem_assets.analyses.organelles.consensus import Consensus
from cem_assets.analyses.organelles.correlation import MaskAgreement, enlarged
from cem_assets.imaging.charts import plain_label, small_figure


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
        agreement: Result of `measure_agreement` for all of these.
        consensus: Result of `measure_consensus`.
        num: Number of images shown, from the first on.

    Returns:
        A PNG of at most `MAX_BYTES`: images in the upper row, the channel in the middle, the mean of channels in the lower,
        each with its correlation with the mask.

    Raises:
        ValueError: Images, masks, maps and correlations differ in number or size.
    """
    num_correlated = len(agreement.correlations)
    if not len(images) == len(masks) == len(maps) == num_correlated or num < 1:
        raise ValueError(
            f"{len(images)} images, {len(masks)} masks, {len(maps)} maps and correlations of {num_correlated}; expected as many"
        )
    if any(image.shape != mask.shape for image, mask in zip(images, masks, strict=True)):
        raise ValueError("an image and its mask differ in size; expected masks of the images' own sizes")
    num_shown, best = min(num, len(images)), agreement.best_channel
    figure = small_figure(0.7 + 1.5 * max(num_shown, 2), 5.4)
    rows = [
        _told("best channel", f"no. {best}", agreement.best_correlation, agreement.held_out_correlation),
        _told(f"mean of {len(consensus.channels)}", "channels", consensus.correlations.mean(), consensus.held_out.mean()),
    ]
    figure.suptitle(plain_label(title, 80), fontsize=9)
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


def organelles_png(scores: Mapping[str, Mapping[str, tuple[float, float]]], title: str, label: str) -> bytes:
    """Draw how well weights find each organelle: a bar, and a dot for the value on images that were left out of the choice.

    Args:
        scores: By name of the weights, then of the organelle: the correlation, and the held-out one (NaN where there is none).
        label: Label of the axis.

    Returns:
        A PNG of at most `cem_assets.imaging.gallery.MAX_BYTES`.

    Raises:
        DataError: There is nothing to draw.
    """
    organelles = list(dict.fromkeys(name for found in scores.values() for name in found))
    if not organelles:
        raise ValueError("there are no scores to draw; expected those of one organelle and one encoder at least")
    figure = small_figure(min(11.0, 2.0 + 0.9 * len(organelles) * max(1.0, 0.45 * len(scores))), 3.3)
    axes = figure.add_subplot()
    width = 0.8 / len(scores)
    places = np.arange(len(organelles))
    for number, (weights, found) in enumerate(scores.items()):
        x = places - 0.4 + (number + 0.5) * width
        values = [found.get(name, (math.nan, math.nan)) for name in organelles]
        colour = COLOURS[number % len(COLOURS)]
        axes.bar(x, [value for value, _ in values], width * 0.92, color=colour, label=plain_label(weights, 28))
        axes.scatter(x, [held for _, held in values], s=26, color="white", edgecolors="black", linewidths=0.9, zorder=3)
    axes.axhline(0, color="black", linewidth=0.7)
    axes.set_xticks(places, [plain_label(name.replace("_", " "), 22) for name in organelles], fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(plain_label(title, 90), fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    dot = Line2D([], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor="black", markersize=5)
    figure.legend(
        [*handles, dot], [*labels, "chosen on other images"], loc="outside lower center", ncols=3, fontsize=7, frameon=False
    )
    return fitting_png(figure)
