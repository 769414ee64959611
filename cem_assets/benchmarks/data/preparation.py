"""Named preparation of benchmarks: which steps there are, what they may be given, and running them in order.

A row of the catalogue names steps of `STEPS` in order; one item is in memory at a time. The steps themselves are
`cem_assets.benchmarks.data.steps`. Reading files is `cem_assets.benchmarks.data.files`; where prepared items lie
is `cem_assets.benchmarks.data.segmentation_sets`.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cem_assets.benchmarks.data.steps import (
    Item,
    binarise,
    combine_label_maps,
    crop_missing_data,
    cut_patches,
    drop_padding,
    found_values,
    levels_to_classes,
    relabel,
    scale_image,
    slice_volumes,
)
from cem_assets.errors import DataError

Step = Callable[..., Iterator[Item]]

STEPS: dict[str, Step] = {
    "binarise": binarise,
    "levels_to_classes": levels_to_classes,
    "relabel": relabel,
    "combine_label_maps": combine_label_maps,
    "scale_image": scale_image,
    "crop_missing_data": crop_missing_data,
    "slice_volumes": slice_volumes,
    "cut_patches": cut_patches,
    "drop_padding": drop_padding,
}
VOXELWISE = frozenset({"binarise", "levels_to_classes", "relabel"})
"""Steps that look at one voxel at a time, so that a volume can be read and changed a few planes at a time."""


def paired_name(stem: str, which: str, *, image: str = "^(.*)$", mask: str = "^(.*)$", is_number: bool = False) -> str:
    """Step `rename_pairs`: the name an image and its masks share.

    Args:
        stem: File name without suffix.
        which: "image" or "mask".
        image: Regular expression of images; its first group is the name.
        mask: That of masks.
        is_number: Whether the name is a number, so that 0007 and 7 are one.

    Raises:
        DataError: The name does not match.
    """
    pattern = image if which == "image" else mask
    match = re.search(pattern, stem)
    if match is None or not match.lastindex:
        raise DataError(
            f"the name {stem!r} does not match {pattern!r} of rename_pairs; rename the file or correct the pattern."
        )
    return str(int(match[1])) if is_number else match[1]


def step_problems(name: str, parameters: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a step's name or parameters, before any file is read."""
    if name != "rename_pairs" and name not in STEPS:
        return [f"step {name!r} is not known; expected one of rename_pairs, {', '.join(STEPS)}"]
    function: Callable[..., Any] = paired_name if name == "rename_pairs" else STEPS[name]
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    problems = [
        f"step {name}: unknown parameter {key!r}; expected {', '.join(known)}" for key in parameters if key not in known
    ]
    missing = [key for key, p in known.items() if p.default is p.empty and key not in parameters]
    problems += [f"step {name}: parameter {key!r} is missing" for key in missing]
    if name == "rename_pairs":
        for key in ("image", "mask"):
            try:
                num_groups = re.compile(str(parameters.get(key, "()"))).groups
            except re.error as error:
                problems.append(f"step rename_pairs: {key} is no regular expression: {error}")
                continue
            if not num_groups:
                problems.append(f"step rename_pairs: {key} needs a group around the name, such as (.*)")
    return problems


def prepare(items: Iterable[Item], steps: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Item]:
    """Take items through steps, one after the other, lazily.

    Args:
        items: Any.
        steps: (key of `STEPS`, parameters), in order.

    Yields:
        What the last step gives, in order.
    """
    if not steps:
        yield from items
        return
    (name, parameters), rest = steps[0], steps[1:]
    for item in items:
        yield from prepare(STEPS[name](item, **parameters), rest)


def finished(item: Item, num_classes: int) -> Item:
    """Check that an item is prepared, and return it with a mask of uint8.

    Args:
        item: What the steps gave.
        num_classes: Values a mask may have, 0 and up.

    Raises:
        DataError: The image is not uint8, the mask has another shape, or values that are no class; says the step to add.
    """
    mask = item.mask
    if item.image.dtype != np.uint8:
        raise DataError(f"{item.name}: its image is {item.image.dtype}; expected uint8. Add the step scale_image.")
    if mask.shape != item.image.shape:
        raise DataError(f"{item.name}: its mask has sizes {mask.shape}, the image {item.image.shape}; expected the same.")
    if min(item.image.shape) < 1:
        raise DataError(f"{item.name} has sizes {item.image.shape}; expected none of them 0.")
    with np.errstate(invalid="ignore"):  # NaN is told below
        whole = mask.astype(np.uint8, copy=False)
    if not 0 <= mask.min() <= mask.max() < num_classes or (mask.dtype.kind == "f" and (whole != mask).any()):
        raise DataError(
            f"{item.name}: its mask has values {found_values(mask)}; expected whole numbers 0 to {num_classes - 1}. Add the "
            "step binarise, levels_to_classes or relabel, or name more classes."
        )
    return replace(item, image=np.ascontiguousarray(item.image), maps=(np.ascontiguousarray(whole),))
