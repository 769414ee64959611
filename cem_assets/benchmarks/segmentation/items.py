"""Images of a prepared segmentation benchmark for training and testing: planes in memory, and volumes on the scratch disk.

`cem_assets.benchmarks.data.segmentation_sets` stores them.
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
from cem_assets.benchmarks.segmentation.augmentation import ImageAndMask
from cem_assets.benchmarks.segmentation.params import EvaluationRule, SegmentationParams
from cem_assets.errors import DataError
from cem_assets.formats.arrays import require_disk
from cem_assets.store.scratch import scratch_folder

if TYPE_CHECKING:
    from cem_assets.benchmarks.segmentation.inference import LabelledImage, Predictor

_COPY_PX = 112
"""Number of slices that are copied at once, which is the depth of a chunk of a stored volume."""
_MAX_NAMED = 5


def rules_of(benchmark: PreparedBenchmark, params: SegmentationParams) -> dict[str, EvaluationRule]:
    """Return the rule by which the test images of every part are predicted and scored.

    With the test mode "mixed" the parts of a union have their own rules.

    Raises:
        DataError: A part has no rule.
    """
    if params.test_mode != "mixed":
        return {part: params.evaluation_rule() for part in benchmark.parts}
    recorded = benchmark.manifest.details.get("rules") or {}
    if lacking := [part or "its own images" for part in benchmark.parts if part not in recorded]:
        raise DataError(
            f'benchmark {benchmark.name!r} has test_mode "mixed", but no rule for {", ".join(lacking)}. Add the rule of every '
            "part to its union, and prepare it again."
        )
    return {
        part: EvaluationRule(**{**recorded[part], "scored_classes": tuple(recorded[part]["scored_classes"])})
        for part in benchmark.parts
    }


def check_items(benchmark: PreparedBenchmark, rules: dict[str, EvaluationRule], num_labels: int) -> None:
    """Refuse a benchmark for which training or testing would fail hours later.

    Args:
        rules: The result of `rules_of`.
        num_labels: Class numbers are 0..num_labels - 1.

    Raises:
        DataError: There is nothing to train or test on, an image does not fit its rule, or a label is not a known class; the
            error lists the first problems.
    """
    problems = [f"there is nothing in the split {split!r}" for split in ("train", "test") if not benchmark.items(split)]
    for item in benchmark.items("test"):
        rule = rules[item.part]
        if item.is_volume != (rule.mode != "2d"):
            wanted = '"2d"' if not item.is_volume else '"stack" or "orthoplane"'
            problems.append(
                f"test image {item.name} is {item.shape}, and is tested as {rule.mode!r}; expected test_mode {wanted}"
            )
        # A class that the network does not know may only mark where a volume is labelled.
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


class TrainingPlanes(Sequence[ImageAndMask]):
    """The training images of a benchmark. A volume is all its planes along z, or along all three axes for "orthoplane"."""

    def __init__(self, items: Sequence[PreparedItem], rules: dict[str, EvaluationRule], cache_bytes: int) -> None:
        """Read the images, if they fit into memory.

        Args:
            items: The items of the split, in order.
            rules: The rule of each part.
            cache_bytes: Images up to this total size are held in memory. From larger sets each plane is read when it is needed.
        """
        self._items = items
        self._places: list[tuple[int, int, int]] = []
        for number, item in enumerate(items):
            if not item.is_volume:
                self._places.append((number, -1, 0))
                continue
            for axis in (0, 1, 2) if rules[item.part].mode == "orthoplane" else (0,):
                self._places += [(number, axis, index) for index in range(item.shape[axis])]
        self._held: dict[int, ImageAndMask] = {}
        if 2 * sum(prod(item.shape) for item in items) <= cache_bytes:
            for number in sorted(range(len(items)), key=lambda number: items[number].place):  # in their order in the store
                self._held[number] = _whole(items[number].image), _whole(items[number].mask)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, row: int) -> ImageAndMask: ...
    @overload
    def __getitem__(self, row: slice) -> list[ImageAndMask]: ...
    def __getitem__(self, row: int | slice) -> ImageAndMask | list[ImageAndMask]:
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
    """Yield images for `cem_assets.benchmarks.segmentation.inference.score_images`, one at a time.

    The pixels, sums and prediction of a volume are on the local scratch disk until the next image is requested.

    Args:
        items: The items of a split.
        rules: The rule of each part.
        is_mixed: Whether each part is a test set of its own.
        before_each: Called with the number of every image before it is yielded.
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
    """Copy a volume, which is read three times in slabs across its chunks, to the scratch disk, and reserve its prediction."""
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
        # Labels that the network does not know mark where it is scored, and whatever it finds there is wrong.
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
    """A prediction that is read as background wherever nothing is labelled."""

    def __init__(self, prediction: Any, labels: Any) -> None:
        self._prediction, self._labels = prediction, labels
        self.shape: tuple[int, ...] = tuple(prediction.shape)

    def __getitem__(self, key: Any) -> Any:
        return np.where(self._labels[key] > 0, self._prediction[key], np.uint8(0))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._prediction[key] = value


class _KnownLabels:
    """Labels that are read as background where they are not a class of the network."""

    def __init__(self, labels: Any, num_labels: int) -> None:
        self._labels, self._num_labels = labels, num_labels
        self.shape: tuple[int, ...] = tuple(labels.shape)

    def __getitem__(self, key: Any) -> Any:
        found = self._labels[key]
        return np.where(found < self._num_labels, found, np.uint8(0))

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("labels cannot be changed")


def pictured_planes(items: Sequence[PreparedItem], max_pictures: int) -> dict[int, list[int]]:
    """Choose up to `max_pictures` planes of test images to draw: of all parts and their images in turn, then more of volumes.

    Returns:
        The evenly spaced slices of each chosen image, by its number; [0] for an image that is a plane.
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
