"""Which files of a segmentation benchmark belong to which item, and reading them a few planes at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.benchmarks.data.files import BenchmarkFiles, path_matches
from cem_assets.benchmarks.data.preparation import VOXELWISE, paired_name, prepare
from cem_assets.benchmarks.data.steps import Item
from cem_assets.catalog.benchmarks import LayoutRule, SegmentationBenchmark
from cem_assets.catalog.description import DatasetDescription
from cem_assets.errors import DataError
from cem_assets.formats import expected_suffixes, kind_of, open_file
from cem_assets.formats.arrays import ArraySource
from cem_assets.inbox.datasets import Rejection, shown_path

RENAME = "rename_pairs"
_SLAB = 16
NamedStep = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class FilePlace:
    """A file, or an array inside an HDF5 file.

    Attributes:
        path: Relative to the benchmark's folder.
        array: Path of the array inside the file; None takes the only one.
    """

    path: str
    array: str | None = None


@dataclass(frozen=True)
class ItemFiles:
    """Files of one item; its label maps are in the order of the layout rule."""

    name: str
    split: str
    image: FilePlace
    maps: tuple[FilePlace, ...]


def steps_for(row: SegmentationBenchmark, split: str, part: str) -> list[NamedStep]:
    """List the steps for items of a split and part, without the pairing of names, which comes before."""
    return [(step.step, step.parameters) for step in row.steps if step.step != RENAME and step.applies_to(split, part)]


def matching(paths: Sequence[str], pattern: str) -> list[FilePlace]:
    """List the files that a pattern of `LayoutRule` matches, in order."""
    for alternative in pattern.split("|"):
        glob, _, array = alternative.partition("::")
        if found := [FilePlace(path, array or None) for path in paths if path_matches(path, glob)]:
            return found
    return []


def find_items(row: SegmentationBenchmark, paths: Sequence[str]) -> tuple[list[ItemFiles], list[Rejection]]:
    """Pair images with their masks.

    Args:
        paths: All files of the benchmark.

    Returns:
        Items in order of split and name, and the rejected files: those without a partner, without a name, or with the name of
        another file.
    """
    items: list[ItemFiles] = []
    rejections: list[Rejection] = []
    masks: dict[FilePlace, None] = {}
    used: set[FilePlace] = set()
    for rule in row.layout:
        images = _by_name(row, rule, "image", [place for glob in rule.images for place in matching(paths, glob)], rejections)
        maps = [_by_name(row, rule, "mask", matching(paths, glob), rejections) for glob in rule.masks]
        masks |= dict.fromkeys(place for one in maps for place in one.values())
        for name, image in sorted(images.items()):
            lacking = [glob for glob, one in zip(rule.masks, maps, strict=True) if name not in one]
            if lacking:
                reason = f"has no mask {name!r} among {', '.join(lacking)}. Add it, or take the image away."
                rejections.append(Rejection(shown_path(image.path), reason))
                used |= {one[name] for one in maps if name in one}
                continue
            item = ItemFiles(name, rule.split, image, tuple(one[name] for one in maps))
            used |= set(item.maps)
            items.append(item)
    lonely = [place for place in masks if place not in used]
    reason = "is a mask without an image of its name. Add the image, or take the mask away."
    rejections += [Rejection(shown_path(place.path), reason) for place in lonely]
    order = {"train": 0, "valid": 1, "test": 2}
    return sorted(items, key=lambda item: (order[item.split], item.name)), list(dict.fromkeys(rejections))


def _by_name(
    row: SegmentationBenchmark, rule: LayoutRule, which: str, places: Sequence[FilePlace], rejections: list[Rejection]
) -> dict[str, FilePlace]:
    rename = next((step.parameters for step in row.steps if step.step == RENAME and step.applies_to(rule.split, "")), {})
    found: dict[str, FilePlace] = {}
    for place in places:
        kind = kind_of(PurePosixPath(place.path).name)
        if kind is None:
            reason = f"has no suffix of a known format; expected one of {expected_suffixes()}. Rename or remove it."
            rejections.append(Rejection(shown_path(place.path), reason))
            continue
        try:
            name = paired_name(kind.stem, which, **rename)
        except DataError as error:
            rejections.append(Rejection(shown_path(place.path), str(error)))
            continue
        if name in found:
            reason = f"has the name {name!r} of {shown_path(found[name].path)}; expected each once in {rule.split}. Rename one."
            rejections.append(Rejection(shown_path(place.path), reason))
            continue
        found[name] = place
    return found


def load_item(
    files: BenchmarkFiles, item: ItemFiles, steps: Sequence[NamedStep], scratch: Path
) -> tuple[Item, list[NamedStep]]:
    """Read an item a few planes at a time, and apply those of its first steps that are in `VOXELWISE` to these planes.

    This way an 8-byte mask of a large volume is never in memory as a whole.

    Args:
        steps: All steps of the item.
        scratch: Folder for files that must be unpacked.

    Returns:
        The item, and the steps that were not applied yet.

    Raises:
        DataError: A file cannot be read or lacks voxels, or the sizes of image and mask differ.
    """
    num_early = 0
    while len(item.maps) == 1 and num_early < len(steps) and steps[num_early][0] in VOXELWISE:
        num_early += 1
    with ExitStack() as stack:
        places = (item.image, *item.maps)
        sources = []
        for place in places:  # each in a folder of its own, because images and masks have equal names
            folder = Path(stack.enter_context(TemporaryDirectory(dir=scratch)))
            sources.append(_opened(stack.enter_context(files.local(place.path)), folder, place))
        for place, source in zip(places[1:], sources[1:], strict=True):
            if source.shape != sources[0].shape:
                raise DataError(
                    f"the mask {shown_path(place.path)} has sizes {source.shape}, its image {sources[0].shape} (z, y, x); "
                    "expected the same."
                )
        whole: list[NDArray[Any]] = []
        for box, arrays in _slabs(sources, [place.path for place in places]):
            slab = Item(item.name, item.split, arrays[0], tuple(arrays[1:]))
            (done,) = prepare([slab], steps[:num_early])
            for number, values in enumerate((done.image, *done.maps)):
                if len(whole) == number:
                    whole.append(np.empty(sources[0].shape, values.dtype))
                whole[number][box] = values
    if sources[0].shape[0] == 1:
        whole = [values[0] for values in whole]
    return Item(item.name, item.split, whole[0], tuple(whole[1:])), list(steps[num_early:])


def _opened(path: Path, scratch: Path, place: FilePlace) -> ArraySource:
    description = DatasetDescription(
        name="benchmark",
        kind="volume",
        voxel_size_nm=(1.0, 1.0, 1.0),
        licence="-",
        citation="-",
        hdf5_dataset=place.array,
    )
    return open_file(path, scratch, description).source


def _slabs(sources: Sequence[ArraySource], names: Sequence[str]) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
    depth, height, width = sources[0].shape
    for start in range(0, depth, _SLAB):
        box = (slice(start, min(start + _SLAB, depth)), slice(0, height), slice(0, width))
        arrays = []
        for source, name in zip(sources, names, strict=True):
            if source.missing(box) is not None:
                raise DataError(f"{shown_path(name)} lacks voxels (chunks that were never written). Copy it again.")
            arrays.append(source.read(box))
        yield box[0], arrays
