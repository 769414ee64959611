"""Pictures of CytoImageNet's data for people, as bytes that fit into the metadata of events.

They show what the paper (arXiv:2111.11646) shows of its data: grids of classes, sizes of labels, scales and sources of crops,
and maps of features. `cem_assets.cytoimagenet.previews` and the stages choose what is drawn. Pictures that every product line
uses are in `cem_assets.imaging.gallery`.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from cem_assets.imaging.charts import plain_label, small_figure
from cem_assets.imaging.gallery import MAX_BYTES, Tile, figure_png, gallery_jpeg

MAX_ENTRIES = 20
"""Number of sources or labels with a colour or bar of their own. If there are more, the last place is for "other"."""
_TILE_PX = 112
_CAPTION_CHARACTERS = 18
_NAME_CHARACTERS = 34
_MAX_COLUMNS = 8
_OTHER = "#c8c8c8"
_COLOURS = (
    *(colormaps["tab20"](place) for place in (0, 2, 4, 6, 8, 10, 12, 16, 18)), colormaps["tab20b"](0),
    *(colormaps["tab20"](place) for place in (1, 3, 5, 7, 9, 11, 13, 17, 19)), colormaps["tab20b"](13),
)  # fmt: skip
"""Dark colours first, and no gray, which is for the rest."""


def class_grid(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> bytes:
    """Draw images side by side, each with its class under it.

    Args:
        images: uint8 (height, width) of any sizes; small ones are enlarged.
        captions: One for each image; long ones are shortened.

    Returns:
        A JPEG of at most `MAX_BYTES`.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images have {len(captions)} captions; expected one for each")
    tiles = [
        Tile(_enlarged(image), _short(caption, _CAPTION_CHARACTERS)) for image, caption in zip(images, captions, strict=True)
    ]
    num_columns = min(_MAX_COLUMNS, max(1, math.ceil(math.sqrt(len(tiles) * 1.4))))
    rows = [("", tiles[start : start + num_columns]) for start in range(0, len(tiles), num_columns)]
    return gallery_jpeg(rows, _TILE_PX)


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = _TILE_PX / max(image.shape)
    if factor <= 1:
        return image
    size = tuple(max(1, round(side * factor)) for side in reversed(image.shape))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size[0], size[1]), Image.Resampling.BICUBIC))


def _short(text: str, num_characters: int) -> str:
    """Shorten a text by cutting out its middle, because titles of one archive often begin alike."""
    if len(text) <= num_characters:
        return text
    tail = (num_characters - 2) // 3
    return f"{text[: num_characters - 2 - tail].rstrip()}..{text[-tail:].lstrip()}"


def _plain(text: str, num_characters: int = _NAME_CHARACTERS) -> str:
    return plain_label(text, num_characters, is_end_kept=True)


def _fitting_png(figure: Figure) -> bytes:
    """Render a figure; if it is larger than `MAX_BYTES`, with fewer colours, and then at lower resolutions."""
    data = figure_png(figure)
    for dpi in (90, 72, 56, 44, 32):
        if len(data) <= MAX_BYTES:
            break
        sink = io.BytesIO()
        with Image.open(io.BytesIO(figure_png(figure, dpi))) as picture:
            reduced = picture.convert("RGB").quantize(255, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            reduced.save(sink, "PNG", optimize=True)
        data = sink.getvalue()
    return data


def label_counts_png(counts: Mapping[str, int], sizes: pd.DataFrame, threshold: int) -> bytes:
    """Draw how many labels each category has, and how many images the labels have.

    Args:
        counts: Number of labels by category.
        sizes: Table with the columns label, category, num_images.
        threshold: Smallest number of images that a label may have; it is marked with a line.

    Returns:
        A PNG of at most `MAX_BYTES`.
    """
    order = sorted(counts, key=lambda category: (-counts[category], category))
    figure = small_figure(7.6, 2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    colours = {category: _COLOURS[place % len(_COLOURS)] for place, category in enumerate(order)}
    bars = left.barh(
        range(len(order)), [counts[category] for category in order], color=[colours[category] for category in order]
    )
    left.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8)
    left.set_yticks(range(len(order)), [_plain(category.replace("_", " ")) for category in order])
    left.invert_yaxis()
    left.set_xlim(0, 1.18 * max([1, *counts.values()]))
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    left.set(title=f"{sum(counts.values()):,} label{'' if sum(counts.values()) == 1 else 's'}", xlabel="labels")
    numbers = sizes["num_images"].to_numpy(dtype=np.float64)
    low, high = (min(numbers.min(), threshold), max(numbers.max(), threshold)) if len(numbers) else (threshold, threshold)
    margin = max(0.0, (10 - (high - low)) / 2)
    edges = np.linspace(low - margin, high + margin, 31)
    groups = [numbers[(sizes["category"] == category).to_numpy()] for category in order]
    if order:
        right.hist(groups, bins=edges.tolist(), stacked=True, color=[colours[category] for category in order])
    right.axvline(threshold, color="#c44e52", linewidth=1.5, linestyle="--", label=f"at least {threshold:,}")
    right.legend(fontsize=8, framealpha=0.9)
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    right.set(title="images of a label", xlabel="images", ylabel="labels")
    return _fitting_png(figure)


def _told_apart(values: Sequence[str]) -> tuple[list[str], NDArray[np.int64], int]:
    """Choose the most frequent values, at most `MAX_ENTRIES` together with "other"; equal counts are ordered by name.

    Returns:
        The chosen values; int64 (n,), the index of each value among them, or their number for a value that was not chosen; and
        how many values were not chosen.
    """
    frequent = pd.Series(list(values), dtype="object").value_counts()
    ordered = sorted(frequent.index, key=lambda value: (-frequent[value], value))
    chosen = ordered if len(ordered) <= MAX_ENTRIES else ordered[: MAX_ENTRIES - 1]
    places = {value: place for place, value in enumerate(chosen)}
    return chosen, np.array([places.get(value, len(chosen)) for value in values], dtype=np.int64), len(ordered) - len(chosen)


def scales_and_sources_png(scaling: Sequence[float], source: Sequence[str]) -> bytes:
    """Draw how many crops come from each source, stacked by scale.

    Args:
        scaling: (n,), the side of each crop divided by its image's side, such as 0.25.
        source: (n,), the source of each crop's image.

    Returns:
        A PNG of at most `MAX_BYTES`, with a bar for each of the largest sources, and one for all others.
    """
    if len(scaling) != len(source):
        raise ValueError(f"{len(scaling)} scales for {len(source)} sources; expected one of each per crop")
    names, places, num_others = _told_apart(source)
    shown = [_plain(name) for name in names] + ([f"other ({num_others:,} sources)"] if num_others else [])
    scales = np.asarray(scaling, dtype=np.float64)
    distinct = np.unique(scales)[::-1]
    figure = small_figure(6.4, 1.3 + 0.24 * max(len(shown), 3))
    axes = figure.add_subplot()
    start = np.zeros(len(shown))
    shades = colormaps["viridis"](np.linspace(0.12, 0.92, max(len(distinct), 2)))
    for number, scale in enumerate(distinct.tolist()):
        length = np.bincount(places[scales == scale], minlength=len(shown)).astype(np.float64)
        axes.barh(range(len(shown)), length, left=start, color=shades[number], label=_scale_name(scale))
        start += length
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.invert_yaxis()
    if len(distinct):
        axes.legend(
            title="side of the image", fontsize=8, title_fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False
        )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(title=f"{len(scales):,} crops by source and scale", xlabel="crops")
    return _fitting_png(figure)


def _scale_name(scale: float) -> str:
    inverse = 1 / scale if scale > 0 else 0.0
    if scale == 1:
        return "whole"
    return f"1/{round(inverse)}" if inverse and abs(inverse - round(inverse)) < 1e-6 else f"{scale:.3g}"


def class_map_png(points: NDArray[np.floating], labels: Sequence[str], title: str) -> bytes:
    """Draw images as points, coloured by label, source or scale.

    Args:
        points: (n, 2), as `cem_assets.cytoimagenet.feature_space.umap_points` returns them.
        labels: (n,); the most frequent ones have a colour each, and the rest is gray.

    Returns:
        A PNG of at most `MAX_BYTES`.
    """
    if points.shape != (len(labels), 2):
        raise ValueError(f"points of shape {points.shape} for {len(labels)} labels; expected ({len(labels)}, 2)")
    names, places, num_others = _told_apart(labels)
    figure = small_figure(7.2, 4.4)
    axes = figure.add_subplot()
    area = float(np.clip(9000 / max(len(labels), 1), 2.0, 28.0))
    handles = []
    if num_others:
        rest = points[places == len(names)]
        handles.append(axes.scatter(rest[:, 0], rest[:, 1], s=area, color=_OTHER, linewidths=0, alpha=0.6))
    for place in range(len(names)):
        chosen = points[places == place]
        handles.insert(
            place, axes.scatter(chosen[:, 0], chosen[:, 1], s=area, color=[_COLOURS[place]], linewidths=0, alpha=0.8)
        )
    shown = [_plain(name) for name in names] + ([f"other ({num_others:,})"] if num_others else [])
    if shown:
        legend = axes.legend(
            handles,
            shown,
            fontsize=7.5,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            handletextpad=0.2,
            labelspacing=0.35,
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
                handle.set_sizes([26.0])  # type: ignore[attr-defined]
    axes.set_title(_plain(title, 80))
    axes.set(xticks=[], yticks=[])
    return _fitting_png(figure)
