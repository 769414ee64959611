"""The steps that turn a benchmark's published files into items that a network is trained and tested on.

A step takes one `Item` and its parameters, and returns any number of items. `cem_assets.benchmarks.data.preparation` gives the
steps their names and runs several in order.

Source of the rules: volume-em/cem-dataset, evaluation/setup_benchmarks. A step that differs from it says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError

AXES: dict[str, int] = {"xy": 0, "xz": 1, "yz": 2}
"""For each kind of plane, the axis of (z, y, x) that it is cut along."""
_SHOWN_VALUES = 8


@dataclass(frozen=True)
class Item:
    """One image or volume with its label maps.

    Attributes:
        name: Unique in its split.
        split: "train", "valid" or "test".
        image: (height, width) or (depth, height, width); uint8 after preparation.
        maps: Label maps of the image's shape; after preparation there is one, of uint8.
        part: In a union, the benchmark that the item came from; otherwise empty.
    """

    name: str
    split: str
    image: NDArray[Any]
    maps: tuple[NDArray[Any], ...]
    part: str = ""

    @property
    def mask(self) -> NDArray[Any]:
        """The only label map; a DataError if there are several."""
        if len(self.maps) != 1:
            raise DataError(f"{self.name} has {len(self.maps)} label maps; expected one. Add the step combine_label_maps.")
        return self.maps[0]


_COMPARISONS: dict[str, Callable[[NDArray[Any], Any], NDArray[np.bool_]]] = {
    "greater": np.greater,
    "equal": np.equal,
    "not_equal": np.not_equal,
}
_BINARY_RULES = (*_COMPARISONS, "floor_divide")


def _mapped(item: Item, mask: NDArray[Any]) -> Iterator[Item]:
    yield replace(item, maps=(mask,))


def found_values(values: NDArray[Any]) -> str:
    """List the first few values of an array for a message."""
    shown = np.unique(values)
    return ", ".join(f"{value:g}" for value in shown[:_SHOWN_VALUES]) + (", ..." if len(shown) > _SHOWN_VALUES else "")


def _fits(value: float, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "f":
        return True
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def binarise(item: Item, *, rule: str, value: float) -> Iterator[Item]:
    """Turn the label map into a mask of 0 and 1.

    Args:
        rule: "greater" gives 1 above `value`. "equal" and "not_equal" give 1 where the map is, or is not, `value`.
            "floor_divide" gives the quotient, for maps of 0..value in which only `value` itself counts.
        value: Any number; for a map of integers it must be a number that the map's type can hold.

    Raises:
        DataError: The value cannot occur in the map, or "floor_divide" gives numbers other than 0 and 1.
    """
    mask = item.mask
    if rule not in _BINARY_RULES:
        raise DataError(f"binarise: rule {rule!r} is not known; expected one of {', '.join(_BINARY_RULES)}.")
    if rule == "floor_divide":
        if value <= 0:
            raise DataError(f"binarise: cannot divide by {value}; expected a number above 0.")
        quotient = mask // value
        if quotient.size and (quotient.min() < 0 or quotient.max() > 1):
            raise DataError(
                f"{item.name}: its mask has values {found_values(mask)}; divided by {value} they must be 0 or 1. "
                "Use another rule."
            )
        return _mapped(item, quotient.astype(np.uint8))
    if rule != "greater" and not _fits(value, mask.dtype):
        raise DataError(f"{item.name}: its mask is {mask.dtype}, in which {value} cannot occur. Correct the rule.")
    # Integers are compared as integers, because 2**64 - 1 cannot be represented as a float.
    exact = int(value) if mask.dtype.kind in "iu" and float(value).is_integer() else value
    return _mapped(item, _COMPARISONS[rule](mask, exact).astype(np.uint8))


def levels_to_classes(item: Item, *, thresholds: Sequence[float]) -> Iterator[Item]:
    """Turn gray levels into classes: class k begins at the k-th threshold, and levels below the first are class 0.

    A mask that was drawn in a paint program has up to 256 levels instead of a few; thresholds between the intended levels give
    every pixel its class.

    Raises:
        DataError: The thresholds do not increase, or there are none or more than 255.
    """
    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or not 1 <= len(levels) <= 255 or (np.diff(levels) <= 0).any():
        raise DataError(f"levels_to_classes: thresholds are {list(thresholds)}; expected 1 to 255 rising numbers.")
    return _mapped(item, np.digitize(item.mask, levels).astype(np.uint8))


def relabel(item: Item, *, values: Mapping[str, int], other: int | None = None) -> Iterator[Item]:
    """Replace the values of a label map of whole numbers.

    Args:
        values: The new value for each old one.
        other: The new value for all others; None refuses them.

    Raises:
        DataError: The map has values that are not listed, and `other` is None; or a new value is not in 0..255.
    """
    mask = item.mask
    pairs = {int(old): int(new) for old, new in values.items()}
    if bad := [new for new in (*pairs.values(), *([] if other is None else [other])) if not 0 <= new <= 255]:
        raise DataError(f"relabel: new values are {bad}; expected 0 to 255.")
    present, place = np.unique(mask, return_inverse=True)
    unlisted = [value for value in present.tolist() if value not in pairs]
    if unlisted and other is None:
        raise DataError(
            f"{item.name}: its mask has values {found_values(np.array(unlisted))} that relabel does not list; add them, "
            "or other = 0."
        )
    table = np.array([pairs.get(value, other or 0) for value in present.tolist()], np.uint8)
    return _mapped(item, table[place].reshape(mask.shape))


def combine_label_maps(item: Item, *, values: Sequence[int]) -> Iterator[Item]:
    """Combine binary maps into one mask of classes.

    The reference adds the maps up, each times its value, so that the overlap of two maps becomes a third class. Here the later
    map wins.

    Args:
        item: Has as many maps as there are values, each of 0 and one other number.
        values: Class of each map, in order.

    Raises:
        DataError: The number of maps differs, or a map is not binary.
    """
    if len(values) != len(item.maps) or not all(1 <= value <= 255 for value in values):
        raise DataError(f"{item.name} has {len(item.maps)} label maps; expected one for each of the values {list(values)}.")
    mask = np.zeros(item.image.shape, np.uint8)
    for number, (label_map, value) in enumerate(zip(item.maps, values, strict=True), 1):
        is_labelled = label_map != 0
        labelled = label_map[is_labelled]
        if labelled.size and (labelled != labelled[0]).any():
            raise DataError(
                f"{item.name}: label map {number} has values {found_values(label_map)}; expected 0 and one other number."
            )
        mask[is_labelled] = value
    return _mapped(item, mask)


def scale_image(item: Item, *, rule: str) -> Iterator[Item]:
    """Turn the image into uint8.

    Args:
        rule: "cast" is for values that are in 0..255 already; it cuts off decimals. "min_max" maps the smallest value to 0 and
            the largest to 255 and cuts off decimals, as the reference does with signed 16-bit volumes.

    Raises:
        DataError: A value is NaN or infinite, or does not fit.
    """
    image = item.image
    if rule not in ("cast", "min_max"):
        raise DataError(f"scale_image: rule {rule!r} is not known; expected cast or min_max.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(f"{item.name}: its image has NaN or infinite values; expected numbers. Repair it.")
    low, high = image.min(), image.max()
    if rule == "min_max":
        span = float(high) - float(low)
        scaled = np.zeros(image.shape, np.uint8)
        if span:
            for plane, out in zip(np.atleast_3d(image), np.atleast_3d(scaled), strict=True):  # one plane of floats at a time
                out[...] = (plane.astype(np.float64) - float(low)) / span * 255
    elif low < 0 or high >= 256:
        raise DataError(f'{item.name}: its image has values {low} to {high}; expected 0 to 255. Use rule = "min_max".')
    else:
        scaled = image.astype(np.uint8)
    yield replace(item, image=scaled)


def crop_missing_data(item: Item, *, first: Mapping[str, Sequence[int]]) -> Iterator[Item]:
    """Leave out the first planes of items that have no data there.

    Args:
        first: By name of the item, the first index that is kept along each axis, in the order of the axes.

    Raises:
        DataError: Nothing would be left, or the number of axes differs.
    """
    if item.name not in first:
        yield item
        return
    start = [int(value) for value in first[item.name]]
    if len(start) != item.image.ndim or any(not 0 <= a < size for a, size in zip(start, item.image.shape, strict=False)):
        raise DataError(f"{item.name} has sizes {item.image.shape}; cannot begin at {start}. Correct crop_missing_data.")
    kept = tuple(slice(value, None) for value in start)
    yield replace(item, image=item.image[kept], maps=tuple(label_map[kept] for label_map in item.maps))


def slice_volumes(item: Item, *, axes: Sequence[str], spacing: int = 1) -> Iterator[Item]:
    """Cut a volume into planes; an image stays as it is.

    Planes are named `{item}_{plane}_{index}`. The reference leaves out the last plane of every axis; here it is cut too.

    Args:
        axes: Some of "xy", "xz", "yz".
        spacing: Distance between the planes that are cut; 1 cuts all.

    Raises:
        DataError: An axis is not known, or the spacing is below 1.
    """
    if not axes or any(axis not in AXES for axis in axes) or spacing < 1:
        raise DataError(f"slice_volumes: axes {list(axes)}, spacing {spacing}; expected some of {', '.join(AXES)}, 1 or more.")
    if item.image.ndim == 2:
        yield item
        return
    for name in axes:
        axis = AXES[name]
        digits = len(str(item.image.shape[axis] - 1))
        for index in range(0, item.image.shape[axis], spacing):
            planes = [np.ascontiguousarray(values.take(index, axis)) for values in (item.image, *item.maps)]
            yield replace(item, name=f"{item.name}_{name}_{index:0{digits}}", image=planes[0], maps=tuple(planes[1:]))


def patch_starts(size: int, side_px: int) -> list[int]:
    """List where patches begin along a side of an image.

    They are as few as cover the side, and overlap evenly. A side shorter than a patch gets one smaller patch.

    Args:
        size: Length of the image's side in px.
        side_px: Length of a patch's side.
    """
    num = -(-size // side_px)
    if num == 1:
        return [0]
    overlap = num * side_px - size
    return [n * side_px - n * overlap // (num - 1) for n in range(num)]


def cut_patches(item: Item, *, side_px: int) -> Iterator[Item]:
    """Cut an image into squares, named `{item}_{y}_{x}`; a smaller image stays as it is.

    Raises:
        DataError: The item is a volume, which must be sliced first.
    """
    if item.image.ndim != 2 or side_px < 1:
        raise DataError(f"{item.name} has sizes {item.image.shape}, patches {side_px} px; expected a 2D image. Slice it first.")
    for y in patch_starts(item.image.shape[0], side_px):
        for x in patch_starts(item.image.shape[1], side_px):
            box = (slice(y, y + side_px), slice(x, x + side_px))
            maps = tuple(label_map[box] for label_map in item.maps)
            yield replace(item, name=f"{item.name}_{y}_{x}", image=item.image[box], maps=maps)


def drop_padding(item: Item, *, max_share: float, value: int = 0) -> Iterator[Item]:
    """Drop images that are mostly padding.

    Args:
        max_share: Images of which a larger share has the value are dropped.
        value: The gray level of the padding.
    """
    if not 0 <= max_share <= 1:
        raise DataError(f"drop_padding: max_share is {max_share}; expected 0 to 1.")
    if np.count_nonzero(item.image == value) <= max_share * item.image.size:
        yield item
