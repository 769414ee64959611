"""Draws occlusion maps as PNG bytes small enough for an event's metadata; equal results give equal bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cem_assets.analyses.figures import fitting_png, show_gray
from cem_assets.analyses.occlusion.maps import OcclusionMap
from cem_assets.imaging.charts import plain_label, small_figure


def occlusion_png(
    images: Sequence[NDArray[np.uint8]], maps: Mapping[str, Sequence[OcclusionMap]], title: str, num: int = 6
) -> bytes:
    """Draw images beside what covering their parts does, a column for each encoder.

    Args:
        images: uint8 (height, width) each.
        maps: Occlusion maps by name of the weights, one for each image.
        num: Number of images shown, from the first on.

    Returns:
        A PNG of at most `MAX_BYTES`; dark red is the largest drop of each map, which is written above it.

    Raises:
        ValueError: There is no image, or maps differ from the images in number or size.
    """
    problems = [] if images and maps and num > 0 else ["expected one image and one encoder at least"]
    for name, found in maps.items():
        if [item.pixel_drops.shape for item in found] != [image.shape for image in images]:
            problems.append(f"{name} has {len(found)} maps for {len(images)} images, or of other sizes")
    if problems:
        raise ValueError(f"these maps cannot be drawn: {'; '.join(problems)}.")
    shown = images[:num]
    figure = small_figure(max(4.0, 1.6 * (1 + len(maps)) + 0.2), 0.6 + 1.75 * len(shown))
    figure.suptitle(plain_label(title, 80), fontsize=9)
    panels = figure.subplots(len(shown), 1 + len(maps), squeeze=False)
    for row, image in enumerate(shown):
        show_gray(panels[row, 0], image)
        panels[row, 0].set_title("image" if row == 0 else "", fontsize=7)
        for column, (name, found) in enumerate(maps.items(), start=1):
            drops, axes = found[row].pixel_drops, panels[row, column]
            show_gray(axes, image)
            axes.imshow(drops, cmap="Reds", alpha=0.55, vmin=0, vmax=float(drops.max()) or 1.0, interpolation="nearest")
            axes.set_title((f"{plain_label(name, 22)}\n" if row == 0 else "") + f"up to {drops.max():.2g}", fontsize=7)
    figure.supxlabel("darkest red: the largest drop of each map, told above it; no red: no drop", fontsize=7)
    return fitting_png(figure)
