"""Named preparation of benchmarks: which steps there are, which parameters they take, and running them in order.

A row of the catalogue names steps of `STEPS` in order. One item is in memory at a time.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

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
"""Steps that change each voxel by its own value only, so that a volume can be read and changed a few planes at a time."""


def paired_name(stem: str, which: str, *, image: str = "^(.*)$", mask: str = "^(.*)$", is_number: bool = False) -> str:
    """Step `rename_pairs`: find the name that an image and its masks share.

    Args:
        stem: File name without suffix.
        which: "image" or "mask".
        image: Regular expression for names of images; its first group is the shared name.
        mask: The same for names of masks.
        is_number: Whether the shared name is a number, so that 0007 and 7 are the same name.

    Raises:
        DataError: The name does not match, or is not a number.
    """
    pattern = image if which == "image" else mask
    match = re.search(pattern, stem)
    if match is None or not match.lastindex:
        raise DataError(
            f"the name {stem!r} does not match {pattern!r} of rename_pairs; rename the file or correct the pattern."
        )
    if not is_number:
        return match[1]
    try:
        return str(int(match[1]))
    except ValueError as error:
        raise DataError(
            f"the name {stem!r} has {match[1]!r} where rename_pairs expects a number; rename the file or correct the pattern."
        ) from error


def step_problems(name: str, parameters: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a step's name or parameters, before any file is read."""
    if name != "rename_pairs" and name not in STEPS:
        return [f"step {name!r} is not known; expected one of rename_pairs, {', '.join(STEPS)}"]
    function: Callable[..., Any] = paired_name if name == "rename_pairs" else STEPS[name]
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    problems = [
        f"step {name}: unknown parameter {key!r}; expected {', '.join(known)}" for key in parameters if key not in known
    ]
    missing = [key for key, p in known.items() if p.default is p.empty and key not in parameters]
    problems += [f"step {name}: parameter {key!r} is missing" for key in missing]
    for key, value in parameters.items():
        if key in known and (problem := _type_problem(value, known[key].annotation)):
            problems.append(f"step {name}: {key} is {value!r:.80}; {problem}")
    if name == "relabel" and (bad := [old for old in _keys(parameters.get("values")) if not re.fullmatch(r"-?\d+", str(old))]):
        problems.append(f"step relabel: values has the keys {', '.join(map(repr, bad))}; expected whole numbers")
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


def _keys(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Mapping) else []


def _type_problem(value: Any, annotation: Any) -> str:
    """Say how a value differs from the type of a step's parameter; empty if it fits."""
    try:
        TypeAdapter(annotation).validate_python(_with_whole_numbers(value), strict=True)
    except ValidationError as error:
        found = [(".".join(str(key) for key in item["loc"]), item["msg"]) for item in error.errors()]
        return "; ".join(f"{place}: {message}" if place else message for place, message in found)
    return ""


def _with_whole_numbers(value: Any) -> Any:
    """Turn floats without decimals into integers, because 2.0 is as good as 2 wherever a whole number is expected."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _with_whole_numbers(one) for key, one in value.items()}
    return [_with_whole_numbers(one) for one in value] if isinstance(value, list | tuple) else value


def prepare(items: Iterable[Item], steps: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Item]:
    """Take items through steps lazily, one after the other.

    Args:
        steps: Pairs of a key of `STEPS` and its parameters, in order.

    Yields:
        The results of the last step, in order.
    """
    if not steps:
        yield from items
        return
    (name, parameters), rest = steps[0], steps[1:]
    for item in items:
        yield from prepare(STEPS[name](item, **parameters), rest)


def finished(item: Item, num_classes: int) -> Item:
    """Check that the steps prepared an item completely, and return it with a mask of uint8.

    Args:
        num_classes: Values of the mask must be 0 to num_classes - 1.

    Raises:
        DataError: The image is not uint8, or the mask has another shape or values that are no class. The error names the step
            that is missing.
    """
    mask = item.mask
    if item.image.dtype != np.uint8:
        raise DataError(f"{item.name}: its image is {item.image.dtype}; expected uint8. Add the step scale_image.")
    if mask.shape != item.image.shape:
        raise DataError(f"{item.name}: its mask has sizes {mask.shape}, the image {item.image.shape}; expected the same.")
    if min(item.image.shape) < 1:
        raise DataError(f"{item.name} has sizes {item.image.shape}; expected none of them 0.")
    with np.errstate(invalid="ignore"):  # NaN is refused below
        whole = mask.astype(np.uint8, copy=False)
    if not 0 <= mask.min() <= mask.max() < num_classes or (mask.dtype.kind == "f" and (whole != mask).any()):
        raise DataError(
            f"{item.name}: its mask has values {found_values(mask)}; expected whole numbers 0 to {num_classes - 1}. Add the "
            "step binarise, levels_to_classes or relabel, or name more classes."
        )
    return replace(item, image=np.ascontiguousarray(item.image), maps=(np.ascontiguousarray(whole),))
