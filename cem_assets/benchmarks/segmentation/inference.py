"""Prediction of images and volumes with a trained segmentation network, and scores of whole test sets.

A volume may be larger than memory. It is read and written slab by slab, so it can be anything that is sliced like an array,
such as a Zarr array or a numpy memmap. Every slice goes through the network alone, so the result does not depend on the
thickness of the slabs; on one device it is the same bit by bit. A plane that is too large for the device is predicted in tiles,
with a margin that contains everything a pixel depends on. The result equals that of the whole plane up to the rounding of
float32.
`cem_assets.benchmarks.segmentation.metrics` counts the pixels.

Source: `inference2d.py`, `inference3d.py` and `inference_mixed.py` of volume-em/cem-dataset. They truncate the probabilities of
each plane to 255 / planes levels and add them up in 8 bits, which loses up to one level per plane. Here they are added in
float32; the parameter `rounding="uint8"` does what the scripts do.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from cem_assets.benchmarks.segmentation.metrics import ClassCounts, count_by_rule, mean_image_iou, mean_over_sets
from cem_assets.benchmarks.segmentation.params import FACTOR_PX, EvaluationRule, PredictionMode, SegmentationParams
from cem_assets.errors import DataError

SLAB_PX = 16
"""Number of slices that are read and written at once."""
_AXES: dict[PredictionMode, tuple[int, ...]] = {"stack": (0,), "orthoplane": (0, 1, 2)}


class Sliceable(Protocol):
    """An array that is read and written by slices: a numpy array, a memmap or a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        ...

    def __getitem__(self, key: Any) -> Any: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


@dataclass(frozen=True)
class Predictor:
    """A trained network that predicts classes.

    Attributes:
        model: Makes logits (n, num_classes, h, w) from images (n, 1, h, w). It is put into evaluation mode.
        params: Its classes, pixel norms, threshold and rounding are used.
        device: The device of the model.
        slab_px: Number of slices that are read and written at once. Memory grows with it, but the result does not change.
        tile_px: Largest side of a plane that is predicted in one piece, and the side of the pieces of a larger plane.
    """

    model: nn.Module
    params: SegmentationParams
    device: torch.device
    slab_px: int = SLAB_PX
    tile_px: int = 4096

    def __post_init__(self) -> None:
        if self.slab_px < 1 or self.tile_px < FACTOR_PX or self.tile_px % FACTOR_PX:
            raise ValueError(
                f"slab_px is {self.slab_px} and tile_px {self.tile_px}; expected at least 1, and a multiple of {FACTOR_PX}."
            )

    def probabilities(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Predict one plane at its own size.

        Args:
            image: uint8 (h, w). It is mirrored at its lower and right border until its sides are multiples of 32.

        Returns:
            float32 (num_classes, h, w), by a sigmoid for one class and by a softmax for more.
        """
        height, width = image.shape
        padding = ((0, -height % FACTOR_PX), (0, -width % FACTOR_PX))
        return np.ascontiguousarray(self._whole(np.pad(image, padding, mode="reflect"))[:, :height, :width])

    def _whole(self, plane: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Predict a plane whose sides are multiples of 32, in tiles if it is large."""
        if max(plane.shape) <= self.tile_px:
            return self._network(plane)
        halo_px = int(getattr(self.model, "halo_px", 544))
        out = np.empty((self.params.num_classes, *plane.shape), np.float32)
        for y0 in range(0, plane.shape[0], self.tile_px):
            for x0 in range(0, plane.shape[1], self.tile_px):
                y1, x1 = min(y0 + self.tile_px, plane.shape[0]), min(x0 + self.tile_px, plane.shape[1])
                top, left = max(0, y0 - halo_px), max(0, x0 - halo_px)
                tile = self._network(plane[top : y1 + halo_px, left : x1 + halo_px])
                out[:, y0:y1, x0:x1] = tile[:, y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _network(self, plane: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(np.ascontiguousarray(plane)).to(self.device).float().div_(255.0)
        return self._activated(pixels[None, None]).cpu().numpy()

    def _activated(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn pixels, float32 (1, 1, h, w) on a scale of 0 to 1, into probabilities (num_classes, h, w)."""
        self.model.eval()
        with torch.inference_mode():
            inputs = pixels.sub(self.params.mean).div_(self.params.std)
            logits = self.model(inputs.contiguous(memory_format=torch.channels_last)).float()[0]
            activated: torch.Tensor = logits.sigmoid() if self.params.num_classes == 1 else logits.softmax(dim=0)
            return activated

    def predict_2d(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Predict an image that is resized down to multiples of 32, and resize the classes back by the nearest pixel.

        Args:
            image: uint8 (h, w). A side of less than 32 px is mirrored to 32 px instead, and cut off again.

        Returns:
            uint8 (h, w), class numbers.
        """
        height, width = image.shape
        padding = ((0, max(0, FACTOR_PX - height)), (0, max(0, FACTOR_PX - width)))
        padded = np.pad(image, padding, mode="reflect")
        sides = tuple(side // FACTOR_PX * FACTOR_PX for side in padded.shape)
        pixels = torch.from_numpy(padded).to(self.device).float()[None, None]
        if sides != padded.shape:
            pixels = functional.interpolate(pixels, sides, mode="bilinear", align_corners=False).round_()
        classes = self.classes(self._activated(pixels.div_(255.0)).cpu().numpy(), 1)
        whole = torch.from_numpy(classes)[None, None]
        back = functional.interpolate(whole, padded.shape, mode="nearest-exact")[0, 0]
        return back.numpy()[:height, :width]

    def classes(self, total: NDArray[Any], num_planes: int) -> NDArray[np.uint8]:
        """Choose the class of every pixel from probabilities that were summed over planes.

        Args:
            total: float32 (num_classes, ...), or uint8 with `rounding="uint8"`.
            num_planes: Number of planes in the sum.

        Returns:
            uint8 (...), class numbers; the lowest of equally probable classes.
        """
        if self.params.num_classes > 1:
            return np.asarray(total.argmax(axis=0), np.uint8)
        limit = int(255 * self.params.threshold) if total.dtype == np.uint8 else num_planes * self.params.threshold
        return np.asarray(total[0] > limit, np.uint8)

    def predict_volume(
        self,
        volume: Sliceable,
        mode: PredictionMode,
        out: Sliceable,
        scratch: Sliceable | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Predict a volume slab by slab.

        Args:
            volume: uint8 (z, y, x).
            mode: "stack" for planes along z, "orthoplane" for planes along all three axes.
            out: uint8 (z, y, x), which is filled with class numbers.
            scratch: Used only for "orthoplane". An array of `scratch_shape` and `scratch_dtype` for the sums, whose content is
                overwritten. None takes memory of 4 * num_classes bytes per voxel.
            progress: Called with the number of slices that were predicted, and of all slices.

        Raises:
            DataError: The volume is not uint8.
        """
        axes = _AXES.get(mode)
        problems = []
        if axes is None:
            problems.append(f"mode is {mode!r}, expected one of {', '.join(_AXES)}")
        if len(volume.shape) != 3 or 0 in volume.shape:
            problems.append(f"the volume is {tuple(volume.shape)}, expected (z, y, x)")
        if tuple(out.shape) != tuple(volume.shape):
            problems.append(f"the result is {tuple(out.shape)}, expected {tuple(volume.shape)}")
        if scratch is not None and tuple(scratch.shape) != (self.params.num_classes, *volume.shape):
            problems.append(f"the scratch is {tuple(scratch.shape)}, expected {(self.params.num_classes, *volume.shape)}")
        if problems:
            raise ValueError(f"the volume cannot be predicted: {'; '.join(problems)}.")
        assert axes is not None
        total = sum(volume.shape[axis] for axis in axes)
        if axes == (0,):
            for window, sums in self._slabs(volume, 0, 1, progress, (0, total)):
                out[window] = self.classes(sums, 1)
            return
        if scratch is None:
            scratch = np.empty(self.scratch_shape(volume), self.scratch_dtype)
        done = 0
        for axis in axes:
            for window, sums in self._slabs(volume, axis, len(axes), progress, (done, total)):
                place = (slice(None), *window)
                scratch[place] = sums if axis == 0 else np.asarray(scratch[place]) + sums
            done += volume.shape[axis]
        for window in _windows(volume.shape, 0, self.slab_px):
            out[window] = self.classes(np.asarray(scratch[(slice(None), *window)]), len(axes))

    @property
    def scratch_dtype(self) -> np.dtype[Any]:
        """The number type of the sums over planes."""
        return np.dtype(np.uint8 if self.params.rounding == "uint8" else np.float32)

    def scratch_shape(self, volume: Sliceable) -> tuple[int, ...]:
        """The shape of the sums over planes, (num_classes, z, y, x)."""
        return (self.params.num_classes, *volume.shape)

    def _slabs(
        self,
        volume: Sliceable,
        axis: int,
        num_planes: int,
        progress: Callable[[int, int], None] | None,
        done: tuple[int, int],
    ) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
        """Predict a volume along one axis, and yield windows with their probabilities (num_classes, z, y, x)."""
        for window in _windows(volume.shape, axis, self.slab_px):
            slab = np.asarray(volume[window])
            if slab.dtype != np.uint8:
                raise DataError(
                    f"the volume is {slab.dtype}; expected uint8. Convert it to uint8 and prepare the benchmark again."
                )
            sums = np.empty((self.params.num_classes, *slab.shape), self.scratch_dtype)
            for number in range(slab.shape[axis]):
                found = self.probabilities(slab.take(number, axis=axis))
                if self.params.rounding == "uint8":
                    found = (found * (255 / num_planes)).astype(np.uint8)  # truncated from float32 as in the published scripts
                sums[(slice(None),) * (axis + 1) + (number,)] = found
                if progress is not None:
                    progress(done[0] + window[axis].start + number + 1, done[1])
            yield window, sums


def _windows(shape: tuple[int, ...], axis: int, slab_px: int) -> Iterator[tuple[slice, ...]]:
    for start in range(0, shape[axis], slab_px):
        part = slice(start, min(start + slab_px, shape[axis]))
        yield tuple(part if number == axis else slice(0, side) for number, side in enumerate(shape))


@dataclass(frozen=True)
class LabelledImage:
    """An image or a volume of a test set.

    Attributes:
        name: Name for error texts.
        image: uint8 (h, w) or (z, y, x).
        labels: Class numbers of the same shape.
        test_set: Name of its test set, if several sets are scored together ("mixed").
        rule: How it is predicted and scored; None takes the rule of the parameters.
        out: uint8 of the same shape, which receives the prediction of a volume; None keeps the prediction in memory.
        scratch: See `Predictor.predict_volume`.
    """

    name: str
    image: Sliceable
    labels: Sliceable
    test_set: str = ""
    rule: EvaluationRule | None = None
    out: Sliceable | None = None
    scratch: Sliceable | None = None


@dataclass(frozen=True)
class SegmentationScore:
    """The score of a network.

    Attributes:
        mean_iou: Mean IoU of the scored classes over all pixels of the test set. If there are several sets, the mean over them.
        set_iou: Mean IoU of the scored classes, by test set.
        class_iou: IoU over all pixels of all sets, by scored class; NaN for an empty class.
        image_iou: Mean over the images of their own IoU, with the rule of the published scripts for empty classes. If there are
            several sets, the mean over them.
        counts: Number of pixels of every class, by test set.
    """

    mean_iou: float
    set_iou: dict[str, float]
    class_iou: dict[int, float]
    image_iou: float
    counts: dict[str, ClassCounts]


def score_images(
    predictor: Predictor,
    images: Iterable[LabelledImage],
    seen: Callable[[LabelledImage, Sliceable], None] | None = None,
) -> SegmentationScore:
    """Predict and score the images of one or several test sets.

    Args:
        images: They are taken one after the other, so a generator keeps only one in memory.
        seen: Called with every image and its prediction, such as to draw them.

    Raises:
        DataError: There are no images, or an image does not fit its labels or its rule; the error names it.
    """
    params = predictor.params
    num_labels = max(2, params.num_classes)
    by_set: dict[str, list[ClassCounts]] = {}
    rules: dict[str, EvaluationRule] = {}
    for item in images:
        rule = item.rule or params.evaluation_rule()
        if rules.setdefault(item.test_set, rule) != rule:
            raise ValueError(f"{item.name}: test set {item.test_set!r} has two rules; expected one for all its images.")
        try:
            prediction, counts = _predict_and_count(predictor, item, rule, num_labels)
        except DataError as error:
            raise DataError(f"{item.name}: {error}") from error
        by_set.setdefault(item.test_set, []).append(counts)
        if seen is not None:
            seen(item, prediction)
    if not by_set:
        raise DataError("there are no test images; expected at least one with its labels. Add test images.")
    totals = {name: _sum(counts) for name, counts in by_set.items()}
    set_iou = {name: total.mean_iou(rules[name].scored_classes) for name, total in totals.items()}
    image_iou = {name: mean_image_iou(counts, rules[name].scored_classes) for name, counts in by_set.items()}
    scored = sorted({number for rule in rules.values() for number in rule.scored_classes})
    whole = _sum(list(totals.values())).iou()
    return SegmentationScore(
        mean_iou=mean_over_sets(set_iou),
        set_iou=set_iou,
        class_iou={number: float(whole[number]) for number in scored},
        image_iou=mean_over_sets(image_iou),
        counts=totals,
    )


def _predict_and_count(
    predictor: Predictor, item: LabelledImage, rule: EvaluationRule, num_labels: int
) -> tuple[Sliceable, ClassCounts]:
    if tuple(item.image.shape) != tuple(item.labels.shape):
        raise DataError(
            f"the image is {tuple(item.image.shape)} and its labels {tuple(item.labels.shape)}; expected equal sizes."
        )
    if rule.mode == "2d":
        if len(item.image.shape) != 2:
            raise DataError(f"the image is {tuple(item.image.shape)}; expected (h, w) for mode 2d.")
        image = np.asarray(item.image[...])
        if image.dtype != np.uint8 or image.size == 0:
            raise DataError(f"the image is {image.dtype} {image.shape}; expected uint8, not empty.")
        prediction = predictor.predict_2d(image)
        return prediction, count_by_rule(prediction, np.asarray(item.labels[...]), num_labels, rule)
    out: Sliceable = np.empty(item.image.shape, np.uint8) if item.out is None else item.out
    predictor.predict_volume(item.image, rule.mode, out, item.scratch)
    # A component may extend through the whole volume, so matching needs all of it at once.
    thickness = out.shape[0] if rule.is_instance_matched else predictor.slab_px
    parts = [
        count_by_rule(np.asarray(out[window]), np.asarray(item.labels[window]), num_labels, rule)
        for window in _windows(out.shape, 0, thickness)
    ]
    return out, _sum(parts)


def _sum(counts: list[ClassCounts]) -> ClassCounts:
    total = counts[0]
    for one in counts[1:]:
        total = total + one
    return total
