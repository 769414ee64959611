"""How the channels of an image become one gray image: percentiles, normalisation, average.

`cem_assets.formats` decodes files. `cem_assets.cytoimagenet.sources.image_groups` decides from metadata which files are the
channels of one image, and separates brightfield from fluorescence. `cem_assets.cytoimagenet.crops.crops` cuts the gray image.

All arithmetic is float64 and in the order of the definition, so gray images equal the definition exactly. It is fast because
pixels of 8 and 16 bits have few values: a histogram replaces sorting, and a table per channel replaces arithmetic per pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.imaging.compiled import kernel

LOW_PERCENT, HIGH_PERCENT = 0.1, 99.9
"""Percentiles that become 0 and 1 (CytoImageNet, arXiv:2111.11646)."""

_BLOCK_PX = 1 << 15
"""Number of pixels that are averaged at a time: 256 KiB of float64, which fit into the second-level cache."""
_LANES = 4
"""Number of histograms that are filled in turn. Neighbouring pixels of a background are often equal, and would wait for one
another if they were counted in the same histogram."""


@kernel
def _count(values: Any, first: Any, counts: Any) -> None:
    """Count values minus `first` in the histograms, uint32 (lanes, bins)."""
    whole = values.size - values.size % _LANES
    for i in range(0, whole, _LANES):
        for lane in range(_LANES):
            counts[lane, np.int64(values[i + lane]) - first] += np.uint32(1)
    for i in range(whole, values.size):
        counts[0, np.int64(values[i]) - first] += np.uint32(1)


@kernel
def _add_colours(red: Any, green: Any, blue: Any, total: Any) -> None:
    for y in range(total.shape[0]):
        for x in range(total.shape[1]):
            total[y, x] = np.uint16(red[y, x]) + np.uint16(green[y, x]) + np.uint16(blue[y, x])


@kernel
def _look_up(values: Any, first: Any, table: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = table[np.int64(values[i]) - first]


@kernel
def _add_looked_up(values: Any, first: Any, table: Any, total: Any) -> None:
    for i in range(values.size):
        total[i] += table[np.int64(values[i]) - first]


@kernel
def _average_to_gray(total: Any, num: Any, out: Any) -> None:
    for i in range(total.size):
        out[i] = np.uint8(np.rint(total[i] / num * 255.0))


def histogram(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """Count the values of an array of 8- or 16-bit integers.

    Args:
        values: uint8, int8, uint16 or int16, any shape.

    Returns:
        int64 (256,) or (65536,); bin 0 is the type's smallest value.
    """
    if not _has_few_values(values.dtype):
        raise ValueError(f"histograms are of 8- and 16-bit integers; found {values.dtype}")
    flat = _flat(values)
    return _counted(flat, 1 << (8 * flat.dtype.itemsize))


def _counted(flat: NDArray[Any], num_bins: int) -> NDArray[np.int64]:
    counts = np.zeros((_LANES, num_bins), np.uint32)
    _count(flat, int(np.iinfo(flat.dtype).min), counts)
    return np.asarray(counts.sum(axis=0, dtype=np.int64))


def percentiles_of_counts(counts: NDArray[np.int64], percents: Sequence[float]) -> list[float]:
    """Compute percentiles of counted values 0, 1, 2, ...; they equal `numpy.percentile` of the values themselves.

    Args:
        counts: int64 (bins,), how often each value occurs; at least one value occurs.
        percents: 0 to 100.

    Returns:
        The percentiles, linearly interpolated.
    """
    cumulative = np.cumsum(counts)
    places = [_place(int(cumulative[-1]), percent) for percent in percents]
    found = np.searchsorted(cumulative, [rank for place in places for rank in place[:2]], side="right")
    return [
        _interpolate(float(found[2 * number]), float(found[2 * number + 1]), place[2]) for number, place in enumerate(places)
    ]


def merge_channels(planes: Sequence[NDArray[np.generic]]) -> NDArray[np.uint8]:
    """Average the normalised channels of one image.

    Each plane is normalised to 0..1 by its own percentiles. The mean of all planes is multiplied by 255 and rounded; halves go
    to the even level. A plane without contrast counts as zeros, and so do pixels that are not finite.

    Args:
        planes: One or more planes (y, x) of any integer or floating-point type, in either byte order; their types may differ.

    Returns:
        uint8 (y, x), exactly as defined in float64.

    Raises:
        DataError: There are no planes, their shapes differ, or one of them has other axes or is not of real numbers.

    Source: CytoImageNet (arXiv:2111.11646).
    """
    checked = _same_shape(planes)
    return _gray([_scaling(plane) for plane in checked], checked[0].shape)


def gray_of_colour(planes: Sequence[NDArray[np.generic]]) -> NDArray[np.uint8]:
    """Reduce a colour image to gray: the mean of red, green and blue is normalised as one channel.

    The three are not normalised separately, because that would change the balance of the stains.

    Args:
        planes: Red, green and blue, each (y, x).

    Returns:
        uint8 (y, x), exactly as defined in float64; halves are rounded to the even level.

    Raises:
        DataError: There are not three planes, their shapes differ, or one of them has other axes or is not of real numbers.

    Source: CytoImageNet (arXiv:2111.11646).
    """
    if len(planes) != 3:
        raise DataError(f"a colour image has 3 planes (red, green, blue); found {len(planes)}; leave alpha out")
    checked = _same_shape(planes)
    if all(plane.dtype == np.uint8 for plane in checked):
        total = np.empty(checked[0].shape, np.uint16)
        _add_colours(*checked, total)
        return _gray([_scaling(total, 3.0, 3 * 255 + 1)], total.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.mean([plane.astype(np.float64) for plane in checked], axis=0)
    return _gray([_scaling(mean)], mean.shape)


def merge_image(planes: Sequence[NDArray[np.generic]], is_colour: bool) -> NDArray[np.uint8]:
    """Reduce an image to gray, as a colour image (`gray_of_colour`) or as separate channels (`merge_channels`).

    Args:
        planes: Each (y, x); red, green and blue for a colour image.
        is_colour: Whether the planes are a colour image, such as one of a stained section, and not separate channels.

    Returns:
        uint8 (y, x).

    Raises:
        DataError: `gray_of_colour` or `merge_channels` refuses the planes.
    """
    return gray_of_colour(planes) if is_colour else merge_channels(planes)


@dataclass(frozen=True)
class _Scaling:
    """The pixels of a plane, and how they become 0..1.

    Attributes:
        values: All pixels, flattened.
        table: float64, what `first`, `first` + 1, ... become, if the type has few values; otherwise None.
    """

    values: NDArray[Any]
    low: float
    high: float
    is_finite: bool
    first: int = 0
    table: NDArray[np.float64] | None = None

    @property
    def has_contrast(self) -> bool:
        # The second condition is false only for doubles that are so large that their difference is infinite.
        return self.low < self.high and math.isfinite(self.high - self.low)

    def computed(self, start: int, stop: int) -> NDArray[np.float64]:
        part = self.values[start:stop].astype(np.float64)
        scaled = _to_unit(part, self.low, self.high)
        return scaled if self.is_finite else np.where(np.isfinite(part), scaled, 0.0)

    def add_to(self, total: NDArray[np.float64], start: int) -> None:
        stop = start + total.size
        if self.table is None:
            total += self.computed(start, stop)
        else:
            _add_looked_up(self.values[start:stop], self.first, self.table, total)


def _gray(scalings: Sequence[_Scaling | None], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Average scaled planes; planes without a finite pixel or without contrast count as zeros."""
    out = np.zeros(shape, np.uint8)
    shown = [found for found in scalings if found is not None and found.has_contrast]
    if not shown:
        return out
    flat = out.reshape(-1)
    if len(scalings) == 1 and shown[0].table is not None:
        _look_up(shown[0].values, shown[0].first, np.rint(shown[0].table * 255.0).astype(np.uint8), flat)
        return out
    buffer = np.empty(min(_BLOCK_PX, flat.size), np.float64)
    for start in range(0, flat.size, _BLOCK_PX):
        total = buffer[: flat.size - start]
        total[:] = 0.0
        for found in shown:
            found.add_to(total, start)
        _average_to_gray(total, float(len(scalings)), flat[start : start + _BLOCK_PX])
    return out


def _scaling(plane: NDArray[np.generic], divisor: float = 1.0, num_bins: int | None = None) -> _Scaling | None:
    """Measure the percentiles of a plane.

    Args:
        divisor: The values are divided by this number first.
        num_bins: The values are among the first so many values of their type; None if they can be any value.

    Returns:
        None if no pixel is finite.
    """
    values = _flat(plane)
    if _has_few_values(values.dtype):
        counts = _counted(values, num_bins or 1 << (8 * values.dtype.itemsize))
        smallest = int(np.iinfo(values.dtype).min)
        used = np.flatnonzero(counts)
        start, stop = int(used[0]), int(used[-1]) + 1
        known = (np.arange(start, stop) + smallest) / divisor
        cumulative = np.cumsum(counts[start:stop])
        low, high = _bounds(values.size, lambda ranks: known[np.searchsorted(cumulative, ranks, side="right")])
        table = _to_unit(known, low, high) if low < high else None
        return _Scaling(values, low, high, True, start + smallest, table)
    measured = values
    is_finite = values.dtype.kind != "f" or bool(np.isfinite(values).all())
    if not is_finite:
        measured = values[np.isfinite(values)]
        if not measured.size:
            return None
    low, high = _bounds(measured.size, lambda ranks: np.partition(measured, sorted(set(ranks)))[ranks])
    return _Scaling(values, low, high, is_finite)


def _bounds(num: int, ranked: Any) -> tuple[float, float]:
    """Interpolate the two percentiles; `ranked` returns the values at given places of the sorted pixels."""
    (k, k_next, t), (m, m_next, u) = _place(num, LOW_PERCENT), _place(num, HIGH_PERCENT)
    at = [float(value) for value in ranked([k, k_next, m, m_next])]
    return _interpolate(at[0], at[1], t), _interpolate(at[2], at[3], u)


def _place(num: int, percent: float) -> tuple[int, int, float]:
    """Return the places of the two sorted values around a percentile, and its position between them (NumPy's linear method)."""
    place = (num - 1) * (percent / 100)
    below = math.floor(place)
    return below, min(below + 1, num - 1), place - below


def _interpolate(a: float, b: float, t: float) -> float:
    # NumPy also starts from the nearer end; this makes even the last bit equal.
    return b - (b - a) * (1 - t) if t >= 0.5 else a + (b - a) * t


def _to_unit(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    # Infinite pixels become NaN here, and the caller sets them to 0.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.clip((values - low) / (high - low), 0.0, 1.0))


def _has_few_values(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" and dtype.itemsize <= 2


def _flat(plane: NDArray[np.generic]) -> NDArray[Any]:
    return np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("=")).reshape(-1)


def _plane_of_numbers(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    if plane.ndim != 2 or not plane.size or plane.dtype.kind not in "iuf":
        raise DataError(
            f"a plane has two axes, at least one pixel, and integers or floating-point numbers; found shape {plane.shape} "
            f"of {plane.dtype}; split channels and stacks into planes first"
        )
    return plane


def _same_shape(planes: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    checked = [_plane_of_numbers(plane) for plane in planes]
    shapes = list(dict.fromkeys(plane.shape for plane in checked))
    if len(shapes) != 1:
        found = ", ".join(" x ".join(map(str, shape)) for shape in shapes) or "no planes"
        raise DataError(f"the planes of one image have one shape (y, x); found {found}; group the channels of one field")
    return checked
