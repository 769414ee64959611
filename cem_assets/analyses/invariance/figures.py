"""Draws firing rates as PNG bytes small enough for an event's metadata; equal results give equal bytes."""

import math
from collections.abc import Mapping

import numpy as np

from cem_assets.analyses.figures import COLOURS, fitting_png
from cem_assets.analyses.invariance.rates import FiringRates
from cem_assets.analyses.invariance.transformations import TRANSFORMATIONS
from cem_assets.imaging.charts import plain_label, small_figure


def firing_rates_png(results: Mapping[str, Mapping[str, FiringRates]], title: str) -> bytes:
    """Draw mean firing rates over strengths, a panel for each transformation, a curve for each encoder.

    Args:
        results: Results of `measure_invariance` by name of the weights.

    Returns:
        A PNG of at most `MAX_BYTES`. A dashed line is the rate that chance would give, a dotted one the unchanged image.

    Raises:
        DataError: There is no result.
    """
    names = [name for name in TRANSFORMATIONS if any(name in rates for rates in results.values())]
    if not names:
        raise ValueError("there are no firing rates to draw; expected those of one encoder at least")
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = small_figure(2.7 * num_columns, 0.8 + 1.9 * num_rows)
    figure.suptitle(plain_label(title, 80), fontsize=10)
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
                label=plain_label(weights, 28),
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
