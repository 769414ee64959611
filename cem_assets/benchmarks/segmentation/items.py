"""Images of a prepared segmentation benchmark as training and testing take them: planes held in memory, volumes on scratch.

How they are stored is `cem_assets.benchmarks.data.segmentation_sets`; who uses them is
`cem_assets.benchmarks.segmentation.stage`.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from cem_assets.benchmarks.data.segmentation_sets import PreparedBenchmark, PreparedItem
from cem_assets.benchmarks.segmentation.params import EvaluationRule, SegmentationParams
from cem_assets.errors import DataError
from cem_assets.formats.arrays import require_disk
from cem_assets.store.scratch import scratch_folder

if TYPE_CHECKING:
    from cem_assets.benchmarks.segmentation.inference import LabelledImage, Predictor

Plane = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Image and mask, uint8 (height, width)."""
_COPY_PX = 112
"""Slices copied at once: as deep as a chunk of a stored volume."""
_MAX_NAMED = 5


def rules_of(benchmark: PreparedBenchmark, params: SegmentationParams) -> dict[str, EvaluationRule]:
    """Say how the test images of every part are predicted and scored.

    Args:
        benchmark: Prepared.
        params: With `test_mode` "mixed" the parts of a union bring their own rules.

    Raises:
        DataError: A part has no rule.
    """
    if params.test_mode != "mixed":
        return {part: params.evaluation_rule() for part in benchmark.parts}
    told = benchmark.manifest.details.get("rules") or {}
    if lacking := [part or "its own images" for part in benchmark.parts if part not in told]:
        raise DataError(
            f'benchmark {benchmark.name!r} has test_mode "mixed", but no rule for {", ".join(lacking)}; name the rule of every '
            "part in its union, and prepare it again."
        )
    return {
        part: EvaluationRule(**{**told[part], "scored_classes": tuple(told[part]["scored_classes"])})
        for part in benchmark.parts
    }


def check_items(benchmark: PreparedBenchmark, rules: dict[str, EvaluationRule], num_labels: int) -> None:
    """Refuse what training or testing would stumble over hours later.

    Args:
        benchmark: Prepared.
        rules: Of `rules_of`.
        num_labels: Class numbers are 0..num_labels - 1.

    Raises:
        DataError: There is nothing to train or test on, an image does not fit its rule, or labels are no known class;
            the first ones are named.
    """
    problems = [f"there is nothing in the split {split!r}" for split in ("train", "test") if not benchmark.items(split)]
    for item in benchmark.items("test"):
        rule = rules[item.part]
        if item.is_volume != (rule.mode != "2d"):
            wanted = '"2d"' if not item.is_volume else '"stack" or "orthoplane"'
            problems.append(
                f"test image {item.name} is {item.shape}, and is tested as {rule.mode!r}; expected test_mode {wanted}"
            )
        # A class the network does not know may say where a volume is labelled, and no more.
        if any(item.label_counts[num_labels:]) and not (rule.mask_unlabelled and item.is_volume):
            problems.append(f"test image {item.name} has labels above {num_labels - 1}; set num_classes, or relabel it")
    problems += [
        f"training image {item.name} has labels above {num_labels - 1}; set num_classes, or relabel it"
        for item in benchmark.items("train")
        if any(item.label_counts[num_labels:])
    ]
    for part, rule in rules.items():
        tests = benchmark.items("test", part)
        if unknown := [number for number in rule.scored_classes if number >= num_labels]:
            problems.append(f"the rule of {part or 'its images'} scores classes {unknown}; expected numbers below {num_labels}")
        elif tests and not any(item.label_counts[number] for item in tests for number in rule.scored_classes):
            problems.append(f"no test image{f' of {part}' if part else ''} has a label of classes {rule.scored_classes}")
    if problems:
        shown = "; ".join(problems[:_MAX_NAMED]) + (
            f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        )
        raise DataError(f"benchmark {benchmark.name!r} cannot be scored: {shown}.")


class TrainingPlanes(Sequence[Plane]):
    """The training images of a benchmark; volumes as their planes, along z, or along all axes for "orthoplane"."""

    def __init__(self, items: Sequence[PreparedItem], rules: dict[str, EvaluationRule], cache_bytes: int) -> None:
        """Read them, where they fit.

        Args:
            items: Of the split, in order.
            rules: By part.
            cache_bytes: Up to this size they are held in memory; larger sets are read plane by plane whenever one is asked for.
        """
        self._items = items
        self._places: list[tuple[int, int, int]] = []
        for number, item in enumerate(items):
            if not item.is_volume:
                self._places.append((number, -1, 0))
                continue
            for axis in (0, 1, 2) if rules[item.part].mode == "orthoplane" else (0,):
                self._places += [(number, axis, index) for index in range(item.shape[axis])]
        self._held: dict[int, Plane] = {}
        if 2 * sum(prod(item.shape) for item in items) <= cache_bytes:
            for number in sorted(range(len(items)), key=lambda number: items[number].place):  # as they lie in the store
                self._held[number] = _whole(items[number].image), _whole(items[number].mask)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, row: int) -> Plane: ...
    @overload
    def __getitem__(self, row: slice) -> list[Plane]: ...
    def __getitem__(self, row: int | slice) -> Plane | list[Plane]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        number, axis, index = self._places[row]
        item = self._items[number]
        image, mask = self._held.get(number) or (item.image, item.mask)
        box = ... if axis < 0 else tuple(index if side == axis else slice(None) for side in range(3))
        return np.asarray(image[box]), np.asarray(mask[box])


def _whole(array: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array[...])


def labelled_images(
    items: Sequence[PreparedItem],
    rules: dict[str, EvaluationRule],
    predictor: "Predictor",
    is_mixed: bool,
    before_each: Callable[[int], None] | None = None,
) -> "Generator[LabelledImage, None, None]":
    """Give images as `segmentation_inference.score_images` takes them, one at a time.

    Args:
        items: Of a split; planes of volumes among the validation images are tested one by one.
        rules: By part.
        predictor: Says how large its sums are.
        is_mixed: Whether parts are test sets of their own.
        before_each: Called with the number of every image before it is given.

    Yields:
        Images; a volume's pixels, sums and prediction lie on local scratch until the next one is asked for.
    """
    from cem_assets.benchmarks.segmentation.inference import LabelledImage

    for number, item in enumerate(items):
        if before_each is not None:
            before_each(number)
        test_set, rule = (item.part if is_mixed else ""), rules[item.part]
        if not item.is_volume:
            yield LabelledImage(item.name, item.image, item.mask, test_set, replace(rule, mode="2d"))
            continue
        with scratch_folder("segmentation") as folder:
            yield _volume_on_disk(item, rule, predictor, test_set, folder)


def _volume_on_disk(
    item: PreparedItem, rule: EvaluationRule, predictor: "Predictor", test_set: str, folder: Path
) -> "LabelledImage":
    """Copy a volume, which is read three times over in other slabs than its chunks, and make room for its prediction."""
    from cem_assets.benchmarks.segmentation.inference import LabelledImage

    voxels = prod(item.shape)
    sums = predictor.scratch_shape(item.image) if rule.mode == "orthoplane" else None
    needed = 3 * voxels + (prod(sums) * predictor.scratch_dtype.itemsize if sums else 0)
    require_disk(folder, needed, f"predicting {item.name}")
    image, labels = (_copied(array, folder / name) for name, array in (("image", item.image), ("labels", item.mask)))
    out: Any = np.memmap(folder / "prediction", np.uint8, "w+", shape=item.shape)
    scratch: Any = np.memmap(folder / "sums", predictor.scratch_dtype, "w+", shape=sums) if sums else None
    num_labels = max(2, predictor.params.num_classes)
    if any(item.label_counts[num_labels:]):
        # Labels the network does not know say where it is scored; what it finds there is a mistake.
        out, labels, rule = (
            _MaskedPrediction(out, labels),
            _KnownLabels(labels, num_labels),
            replace(rule, mask_unlabelled=False),
        )
    return LabelledImage(item.name, image, labels, test_set, rule, out, scratch)


def _copied(array: Any, path: Path) -> Any:
    copy = np.memmap(path, np.uint8, "w+", shape=tuple(array.shape))
    for start in range(0, array.shape[0], _COPY_PX):
        copy[start : start + _COPY_PX] = array[start : start + _COPY_PX]
    return copy


class _MaskedPrediction:
    """A prediction that reads as background wherever nothing is labelled."""

    def __init__(self, prediction: Any, labels: Any) -> None:
        self._prediction, self._labels = prediction, labels
        self.shape: tuple[int, ...] = tuple(prediction.shape)

    def __getitem__(self, key: Any) -> Any:
        return np.where(self._labels[key] > 0, self._prediction[key], np.uint8(0))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._prediction[key] = value


class _KnownLabels:
    """Labels that read as background where they are no class of the network."""

    def __init__(self, labels: Any, num_labels: int) -> None:
        self._labels, self._num_labels = labels, num_labels
        self.shape: tuple[int, ...] = tuple(labels.shape)

    def __getitem__(self, key: Any) -> Any:
        found = self._labels[key]
        return np.where(found < self._num_labels, found, np.uint8(0))

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("labels are read only")


def pictured_planes(items: Sequence[PreparedItem], max_pictures: int) -> dict[int, list[int]]:
    """Choose what is drawn: parts and their images in turn, then more slices of volumes.

    Args:
        items: Of the test split.
        max_pictures: How many planes.

    Returns:
        By number of an image its slices, evenly spaced; [0] for a plane.
    """
    depths = [item.shape[0] if item.is_volume else 1 for item in items]
    chosen: Counter[int] = Counter()
    parts = [[number for number, item in enumerate(items) if item.part == part] for part in sorted({i.part for i in items})]
    while chosen.total() < max_pictures:
        rooms = [[number for number in part if chosen[number] < depths[number]] for part in parts]
        takes = [min(room, key=lambda number: chosen[number]) for room in rooms if room]
        if not takes:
            break
        chosen.update(takes[: max_pictures - chosen.total()])
    return {number: [int((n + 0.5) * depths[number] / num) for n in range(num)] for number, num in sorted(chosen.items())}
