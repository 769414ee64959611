"""The data that a training reads from its release: batches of patches, validation images, and a sample for measuring features.

The plan names the release. `cem_assets.pixels.reader` reads shards, `cem_assets.pretraining.data.epochs` orders the rows.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets import environment
from cem_assets.cem.releases.stage import LISTING
from cem_assets.cytoimagenet.releases.stage import METADATA
from cem_assets.errors import DataError
from cem_assets.pixels.batch import Batch
from cem_assets.pixels.cache import PATCH_BYTES
from cem_assets.pixels.reader import MEMORY_CACHE_BYTES, BatchStream, TrainingSource
from cem_assets.pretraining.data.epochs import carried_order, share, streaming_order
from cem_assets.pretraining.data.subsets import choose_classes
from cem_assets.pretraining.methods.params import MethodParams
from cem_assets.pretraining.plan import RELEASE_ASSETS, TrainingPlan
from cem_assets.store.manifests import Manifest, find_manifest
from cem_assets.store.parquet import parquet_file
from cem_assets.store.store import Store

_READ_AHEAD = 8
_SUBSET_SEED = 0
"""A subset has the same classes for every seed of the training."""
_SLACK = 0.75
"""Share of the cache that the row groups in use may take, so that there is room for those that are read next."""


@dataclass(frozen=True)
class TrainingData:
    """The patches of a plan's release.

    Attributes:
        source: All patches of the release.
        rows: int64, sorted: the rows of `source` that are trained on.
        validation: int64, sorted: the rows of the release's validation split; empty except for supervised training.
        classes: Names of the classes by number, which are the datasets of origin or the labels of CytoImageNet.
        categories: Category of each class; empty strings where there are none.
        reach: Number of row groups in use at the same time; all of them where the cache holds the release.
        sources: Name, licence, citation, source_url and num_images of each dataset or source in the release.
    """

    source: TrainingSource
    rows: NDArray[np.int64]
    validation: NDArray[np.int64]
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    params: MethodParams
    reach: int
    sources: tuple[dict[str, Any], ...]
    _label_of: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each row of the source, int64 (num_rows,); -1 where the class is left out."""
        return self._label_of[self.source.labels]

    def _sizes(self) -> list[int]:
        return self.source.class_sizes() if self.params.weight_gamma else [len(self.rows)]

    def num_batches(self, epoch: int) -> int:
        """Count the batches of an epoch; rows at its end that do not fill a batch begin the next epoch."""
        size, num = self.params.batch_size, len(self.rows)
        return ((epoch * num) % size + num) // size

    def stream(self, epoch: int, start_batch: int, rank: int = 0, world: int = 1) -> "LabelledStream":
        """Open a stream of the batches that one process gets in an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start_batch: Number of batches that are done already and left out.
            rank: Rank of the process.
            world: Number of processes.
        """
        params = self.params
        order = carried_order(self._sizes(), params.weight_gamma, params.seed, epoch, params.batch_size)
        order = self.rows[order[: self.num_batches(epoch) * params.batch_size]]
        order = streaming_order(order, self.source.group_starts, self.reach, params.seed, epoch)
        batches = share(order, rank, world, batch_size=params.batch_size, start=start_batch)
        num_threads = max(1, (os.cpu_count() or 2) // world)
        return LabelledStream(
            BatchStream(self.source, batches, start_batch, num_threads, max(_READ_AHEAD, num_threads)), self._label_of
        )

    def validation_batches(self) -> Iterator[Batch]:
        """Read the validation images once, in order."""
        size = self.params.batch_size
        pieces = [self.validation[start : start + size] for start in range(0, len(self.validation), size)]
        yield from LabelledStream(BatchStream(self.source, pieces), self._label_of)

    def sample(self, num: int, seed: int) -> NDArray[np.int64]:
        """Draw at most `num` rows for measuring features, evenly over classes; they are sorted."""
        generator = np.random.default_rng(np.random.SeedSequence((seed, num)))
        labels = self.labels[self.rows]
        names, counts = np.unique(labels, return_counts=True)
        # Small classes are taken whole and the others equally, so that the largest dataset does not dominate the accuracy.
        level, left, remaining = 0, num, np.sort(counts)
        for place, count in enumerate(remaining.tolist()):
            level = left // (len(remaining) - place)
            if count >= level:
                break
            left -= count
        chosen = []
        for name in names.tolist():
            rows = self.rows[labels == name]
            chosen.append(rows if len(rows) <= level else generator.choice(rows, level, replace=False))
        return np.sort(np.concatenate(chosen))


@dataclass(frozen=True)
class LabelledStream:
    """Batches of a source with the classes of the training as labels."""

    batches: BatchStream
    label_of: NDArray[np.int64]

    def __iter__(self) -> Iterator[Batch]:
        stream = iter(self.batches)
        try:
            for batch in stream:
                yield replace(batch, labels=self.label_of[batch.labels])
        finally:
            close: Any = getattr(stream, "close", None)
            if close is not None:  # stops the threads that read ahead
                close()


def open_training_data(store: Store, plan: TrainingPlan) -> TrainingData:
    """Open the patches of a plan's release.

    Raises:
        FileNotFoundError: The release, or some of its shards, are gone.
        DataError: The release does not suit the method, or shards are damaged.
    """
    manifest = find_manifest(store, RELEASE_ASSETS[plan.dataset], plan.version, plan.digest)
    listing = json.loads(store.read(f"{manifest.folder}/{LISTING}"))
    is_cyto = plan.dataset == "cytoimagenet"
    parts = listing["labels" if is_cyto else "datasets"]
    keys = [f"{part['folder']}/{item['name']}" for part in parts for item in part["objects"]]
    num_images = int(listing["num_images" if is_cyto else "num_patches"])
    cache, cache_bytes = _cache(num_images)
    source = TrainingSource.open(
        store, keys, cache, cache_bytes, "label" if is_cyto else "dataset", "stretch" if is_cyto else "mirror"
    )
    reach = max(1, int(_SLACK * cache_bytes / PATCH_BYTES / max(1, source.num_rows / (len(source.group_starts) - 1))))
    if is_cyto:
        return _cyto_data(store, plan, manifest, listing, source, reach)
    if plan.method == "supervised":
        raise DataError(
            f"the row of weights {plan.name!r} asks for supervised training on EM patches, which have no labels; expected "
            'dataset = "cytoimagenet", or the method moco or swav.'
        )
    sources = tuple(
        {
            "name": part["dataset"],
            **{key: part["description"].get(key) or "" for key in ("licence", "citation", "source_url")},
            "num_images": int(part["counts"]["filtered_patches"]),
        }
        for part in parts
    )
    everything = np.arange(source.num_rows, dtype=np.int64)
    nothing = np.empty(0, np.int64)
    return TrainingData(
        source=source,
        rows=everything,
        validation=nothing,
        classes=source.classes,
        categories=("",) * len(source.classes),
        params=plan.params,
        reach=reach,
        sources=sources,
        _label_of=np.arange(len(source.classes), dtype=np.int64),
    )


def _cyto_data(
    store: Store, plan: TrainingPlan, manifest: Manifest, listing: dict[str, Any], source: TrainingSource, reach: int
) -> TrainingData:
    category_of = {label["label"]: label["category"] for label in listing["labels"]}
    sizes = {label["label"]: int(label["num_images"]) for label in listing["labels"]}
    classes = tuple(sorted(choose_classes(sizes, plan.subset, _SUBSET_SEED) if plan.subset else sizes))
    label_of = np.full(len(source.classes), -1, np.int64)
    for place, name in enumerate(source.classes):
        if name in category_of and name in set(classes):
            label_of[place] = classes.index(name)
    with store.open(f"{manifest.folder}/{METADATA}") as handle:
        table = parquet_file(handle).read(columns=["label", "split"])
    labels = np.asarray(source.classes, dtype=object)[source.labels]
    if len(table) != source.num_rows or not np.array_equal(np.asarray(table["label"].to_pylist(), dtype=object), labels):
        raise DataError(
            f"the metadata of release {plan.version} list {len(table)} images and its shards hold {source.num_rows}; expected "
            "the same images in the same order. Compare the release with its manifest, and restore it."
        )
    is_chosen = label_of[source.labels] >= 0
    is_validation = np.asarray(table["split"].to_pylist(), dtype=object) == "validation"
    if plan.method == "supervised":
        rows, validation = np.flatnonzero(is_chosen & ~is_validation), np.flatnonzero(is_chosen & is_validation)
    else:
        rows, validation = np.flatnonzero(is_chosen), np.empty(0, np.int64)
    if len(rows) < plan.params.batch_size:
        raise DataError(
            f"release {plan.version} leaves {len(rows)} images to train on; expected at least a batch of "
            f"{plan.params.batch_size}. Lower batch_size, or choose another release or subset."
        )
    if plan.params.weight_gamma and len(rows) < source.num_rows:
        raise DataError("weight_gamma is not 0 and only a part of the release is trained on; expected weight_gamma = 0.")
    sources = tuple(
        {
            "name": name,
            **{key: facts.get(key) or "" for key in ("licence", "citation", "source_url")},
            "num_images": int(facts["num_images"]),
        }
        for name, facts in listing["sources"].items()
    )
    return TrainingData(
        source=source,
        rows=rows,
        validation=validation,
        classes=classes,
        categories=tuple(category_of[name] for name in classes),
        params=plan.params,
        reach=reach,
        sources=sources,
        _label_of=label_of,
    )


def _cache(num_images: int) -> tuple[Path | None, int]:
    """Choose where decoded patches are kept: in memory where they fit, otherwise in a folder that outlives the process."""
    folder = environment.text(environment.CACHE)
    if not folder and num_images * PATCH_BYTES * 1.1 < MEMORY_CACHE_BYTES:
        return None, MEMORY_CACHE_BYTES
    place = Path(folder) if folder else Path(tempfile.gettempdir()) / "cem_assets-cache"
    place.mkdir(parents=True, exist_ok=True)
    return place, environment.whole_number(environment.CACHE_GIB, lowest=0) << 30
