"""Pictures of CytoImageNet for people, as bytes small enough for an event's metadata, and distances between classes.

Class grids, sizes of labels, scales and sources of crops, and maps of features, as the paper (arXiv:2111.11646) looks at
its data. What is shown is chosen by the stages; galleries and charts of any room are in `cem_assets.imaging.gallery`.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from cem_assets.errors import DataError
from cem_assets.imaging.gallery import MAX_BYTES, Tile, figure_png, gallery_jpeg

MAX_ENTRIES = 20
"""Sources or labels told apart in one chart; the last place goes to "other" where there are more."""
MIN_UMAP = 10
"""Images below which a map is made by PCA: UMAP's graph of neighbours needs more."""
_TILE_PX = 112
_CAPTION_CHARACTERS = 18
_NAME_CHARACTERS = 34
_MAX_COLUMNS = 8
_OTHER = "#c8c8c8"
_COLOURS = (
    *(colormaps["tab20"](place) for place in (0, 2, 4, 6, 8, 10, 12, 16, 18)), colormaps["tab20b"](0),
    *(colormaps["tab20"](place) for place in (1, 3, 5, 7, 9, 11, 13, 17, 19)), colormaps["tab20b"](13),
)  # fmt: skip
"""Dark ones first, no gray: that is for the rest."""


def class_grid(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> bytes:
    """Draw pictures side by side, each with its class under it.

    Args:
        images: uint8 (height, width), any sizes; small ones are enlarged.
        captions: One for each; long ones are shortened.

    Returns:
        A JPEG of at most `MAX_BYTES`.

    Raises:
        DataError: There are more or fewer captions than images.
    """
    if len(images) != len(captions):
        raise DataError(f"{len(images)} images have {len(captions)} captions; expected one for each")
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
    """Cut the middle out of long texts: titles of one archive often begin alike."""
    if len(text) <= num_characters:
        return text
    tail = (num_characters - 2) // 3
    return f"{text[: num_characters - 2 - tail].rstrip()}..{text[-tail:].lstrip()}"


def _plain(text: str, num_characters: int = _NAME_CHARACTERS) -> str:
    """Shorten a name, and keep matplotlib from reading mathematics between dollar signs."""
    return _short(text, num_characters).replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _fitting_png(figure: Figure) -> bytes:
    """Render a figure; where it is larger than `MAX_BYTES`, in fewer colours, then at lower resolutions."""
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
        sizes: Columns label, category, num_images.
        threshold: Smallest number of images a label may have; marked.

    Returns:
        A PNG of at most `MAX_BYTES`.
    """
    order = sorted(counts, key=lambda category: (-counts[category], category))
    figure = _figure(7.6, 2.9)
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
    """Choose the most frequent values, ties by name, `MAX_ENTRIES` at most with "other".

    Returns:
        The values; int64 (n,), the place of each value among them, and one past them for the rest; how many make up the rest.
    """
    frequent = pd.Series(list(values), dtype="object").value_counts()
    ordered = sorted(frequent.index, key=lambda value: (-frequent[value], value))
    chosen = ordered if len(ordered) <= MAX_ENTRIES else ordered[: MAX_ENTRIES - 1]
    places = {value: place for place, value in enumerate(chosen)}
    return chosen, np.array([places.get(value, len(chosen)) for value in values], dtype=np.int64), len(ordered) - len(chosen)


def scales_and_sources_png(scaling: Sequence[float], source: Sequence[str]) -> bytes:
    """Draw how many crops come from each source, stacked by scale.

    Args:
        scaling: (n,), the side of each crop as a share of its image's, such as 0.25.
        source: (n,), where each crop's image comes from.

    Returns:
        A PNG of at most `MAX_BYTES`: a bar for each of the largest sources, and one for all others.

    Raises:
        DataError: The lengths differ.
    """
    if len(scaling) != len(source):
        raise DataError(f"{len(scaling)} scales for {len(source)} sources; expected one of each per crop")
    names, places, num_others = _told_apart(source)
    shown = [_plain(name) for name in names] + ([f"other ({num_others:,} sources)"] if num_others else [])
    scales = np.asarray(scaling, dtype=np.float64)
    distinct = np.unique(scales)[::-1]
    figure = _figure(6.4, 1.3 + 0.24 * max(len(shown), 3))
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


def cosine_distances(features: NDArray[np.floating], labels: Sequence[str]) -> pd.DataFrame:
    """Measure how close images of a class are to each other and to those of all other classes.

    Args:
        features: (n, d), floating.
        labels: (n,).

    Returns:
        Columns label (sorted), num_images, within: mean cosine distance (1 - cosine) over all pairs of the class, NaN for a
        single image; between: over all pairs of one image of the class and one of any other, NaN where there is no other.

    Raises:
        DataError: The lengths differ, or a feature vector is zero, NaN or infinite.

    Source: the mean pairwise distances of CytoImageNet (arXiv:2111.11646). Exact without going over pairs: the sum of all
    cosines between two groups of unit vectors is the product of the groups' sums. O(n d) time, float64.
    """
    if features.ndim != 2 or len(features) != len(labels):
        raise DataError(f"features of shape {features.shape} for {len(labels)} labels; expected (n, d) and n labels")
    vectors = features.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    if len(bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))):
        raise DataError(
            f"{len(bad)} of {len(vectors)} feature vectors are zero, NaN or infinite and have no direction, the first in row "
            f"{bad[0]}; leave these images out"
        )
    units = vectors / norms[:, None]
    names, places = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), units.shape[1]))
    np.add.at(sums, places, units)
    num = np.bincount(places, minlength=len(names)).astype(np.float64)
    total = sums.sum(axis=0)
    own = (sums**2).sum(axis=1)
    num_within, num_between = num * (num - 1), num * (len(units) - num)
    none = np.full(len(names), np.nan)
    # Every unit vector's product with itself is one of the num**2 products; it is no pair.
    within = 1 - np.divide(own - num, num_within, out=none.copy(), where=num_within > 0)
    between = 1 - np.divide(sums @ total - own, num_between, out=none.copy(), where=num_between > 0)
    return pd.DataFrame(
        {
            "label": names.astype(object),
            "num_images": num.astype(np.int64),
            "within": np.clip(within, 0.0, 2.0),
            "between": np.clip(between, 0.0, 2.0),
        }
    )


def class_map_png(points: NDArray[np.floating], labels: Sequence[str], title: str) -> bytes:
    """Draw images as points, coloured by label, source or scale.

    Args:
        points: (n, 2), of `umap_points`.
        labels: (n,); the most frequent get a colour each, the rest is gray.

    Returns:
        A PNG of at most `MAX_BYTES`.

    Raises:
        DataError: Points and labels do not fit each other.
    """
    if points.shape != (len(labels), 2):
        raise DataError(f"points of shape {points.shape} for {len(labels)} labels; expected ({len(labels)}, 2)")
    names, places, num_others = _told_apart(labels)
    figure = _figure(7.2, 4.4)
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


def umap_points(features: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """Lay images out on a plane so that those with similar features lie together.

    Args:
        features: (n, d), finite.
        seed: Of the embedding; with it and one thread the result is always the same on one machine.

    Returns:
        float32 (n, 2): UMAP by cosine distance, with 15 neighbours or as many as there are. Below `MIN_UMAP` images the two
        principal components of the unit vectors instead, each with the sign that makes its largest entry positive.

    Raises:
        DataError: Features are not (n, d), or not finite.
    """
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(f"features of shape {features.shape}; expected (n, d) with finite numbers only")
    if len(features) < MIN_UMAP:
        return _principal_points(features)
    import umap  # type: ignore[import-untyped]

    num_neighbors = min(15, len(features) - 1)
    embedding = umap.UMAP(n_components=2, n_neighbors=num_neighbors, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(embedding.fit_transform(features.astype(np.float32)), dtype=np.float32)


def _principal_points(features: NDArray[np.floating]) -> NDArray[np.float32]:
    out = np.zeros((len(features), 2), np.float32)
    if not features.size:
        return out
    vectors = features.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    left, strength, _ = np.linalg.svd(units - units.mean(axis=0), full_matrices=False)
    scores = (left * strength)[:, :2]
    largest = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    out[:, : scores.shape[1]] = scores * np.where(largest < 0, -1.0, 1.0)
    return out
