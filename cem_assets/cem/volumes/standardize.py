"""From files in the inbox to standardized volumes: open a file, choose the intensity mapping, write the bricks.

A file that cannot be used raises a `DataError`, which the stage (`cem_assets.cem.volumes.stage`) turns into a rejection before
it goes on with the other files. Trouble with the store, lack of memory and bugs raise other errors and stop the stage,
because they are not the fault of the file. Formats are read by `cem_assets.formats`, and 2D images are handled by
`cem_assets.cem.volumes.standardize_images`.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.patch_grid import PATCH_SIDE_PX, is_anisotropic
from cem_assets.cem.volumes.bricks import ALL_PLANES, XY_ONLY, BrickGroup, PatchRows, brick_boxes, brick_groups
from cem_assets.cem.volumes.hashes import HashParts, hash_voxels
from cem_assets.cem.volumes.ome_zarr import (
    MISSING_VALUE,
    VolumeRecord,
    brick_name,
    decode_brick,
    encode_brick,
    metadata_objects,
    volume_folder,
)
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine, default_num_workers, local_engine, threads_or_processes
from cem_assets.execution.stage import Progress
from cem_assets.formats import open_file
from cem_assets.formats.arrays import ArraySource, Opened, RawFile
from cem_assets.formats.derived import BinnedVolume, Region
from cem_assets.formats.stacks import open_stack
from cem_assets.formats.zarr.stores import ZarrArray, open_zarr
from cem_assets.imaging.binning import NO_BINNING, Factors, binned_shape, binned_voxel_size, binning_factors
from cem_assets.imaging.boxes import Box
from cem_assets.imaging.intensity import IntensityMapping, default_policy, mapping_for
from cem_assets.imaging.value_counts import count_values
from cem_assets.inbox.copies import SourceCopies
from cem_assets.inbox.datasets import InboxDataset, dataset_key
from cem_assets.inbox.intake import Intake
from cem_assets.inbox.local import local_paths
from cem_assets.store.commits import Commit, ContentFolder
from cem_assets.store.manifests import ManifestObject
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

_SAMPLE_BRICKS = 32
_SAMPLE_VALUES = 1 << 18
"""Number of values that are taken from each sampled brick. 32 bricks give 8 Mi values, whatever the size of the volume."""


_ALREADY_MAPPED = IntensityMapping("identity", "uint8", 0.0, 255.0)


def opened_zarr(store: Store, dataset: InboxDataset, intake: Intake) -> Opened:
    """Open a Zarr store of the inbox."""
    path, about = intake.paths[0], dataset.description
    sizes = [(dataset_key(dataset.name, item.path), item.num_bytes) for item in dataset.under(path)]
    return open_zarr(store, dataset_key(dataset.name, path), about.zarr_array, about.channel, sizes)


@contextmanager
def opened_volume(
    store: Store, dataset: InboxDataset, intake: Intake, scratch: Path, kept: SourceCopies | None = None
) -> Iterator[Opened]:
    """Open one volume of the inbox.

    Args:
        scratch: Local folder for copies and unpacked voxels.
        kept: Local copies of the dataset's files that were made before. The copies of this volume are removed when the block
            ends.

    Yields:
        The opened volume, which can be used until the block ends.

    Raises:
        DataError: The volume cannot be read.
    """
    description = dataset.description
    if intake.kind == "zarr":
        yield opened_zarr(store, dataset, intake)
        return
    paths = list(intake.paths)
    if intake.paths[0].lower().endswith(".nhdr"):  # its voxels are in a second file of the same folder
        folder = intake.paths[0].rpartition("/")[0]
        paths += [
            item.path
            for item in dataset.files
            if item.path.rpartition("/")[0] == folder and item.path.lower().endswith((".raw", ".raw.gz", ".gz", ".bz2"))
        ]
    with (
        TemporaryDirectory(dir=scratch) as folder_name,
        _forgotten(kept, [dataset_key(dataset.name, path) for path in intake.paths]),
        local_paths(store, dataset.name, paths, scratch, kept) as files,
    ):
        folder_path = Path(folder_name)
        if intake.kind == "stack":
            yield open_stack(files, folder_path, description, intake.name)
        elif len(files) > 1 and not store.is_local:  # a detached header and its data must be in the same folder again
            for file in files:
                file.rename(folder_path / file.name)
            yield open_file(folder_path / files[0].name, folder_path, description)
        else:
            yield open_file(files[0], folder_path, description)


@contextmanager
def _forgotten(kept: SourceCopies | None, keys: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if kept is not None:
            kept.forget(keys)


def intensity_mapping(source: ArraySource, description: DatasetDescription, boxes: list[Box]) -> IntensityMapping:
    """Choose the intensity mapping of one volume. Percentiles are measured on a fixed sample of its bricks.

    Args:
        description: Declares the policy; if it declares none, the number type decides.
        boxes: All bricks of the volume.

    Raises:
        DataError: The policy does not fit the data.
    """
    policy = description.intensity or default_policy(source.dtype)
    values: list[NDArray[Any]] = []
    if policy == "percentile":
        for number in sample_of(len(boxes), _SAMPLE_BRICKS):
            box = boxes[number]
            voxels = source.read(box)
            mask = source.missing(box)
            flat = voxels.reshape(-1) if mask is None else voxels[~mask]
            # The values are copied, because a view would keep the whole brick in memory.
            values.append(flat[:: max(1, -(-flat.size // _SAMPLE_VALUES))].copy())
    sample = np.concatenate(values) if values else np.empty(0, source.dtype)
    return mapping_for(policy, source.dtype, sample, description.intensity_percentiles, description.intensity_window)


def sample_of(count: int, wanted: int) -> list[int]:
    """Choose up to `wanted` of `count` numbers by a keyed hash: always the same ones, spread without a pattern."""
    if count <= wanted:
        return list(range(count))
    keyed = sorted(range(count), key=lambda n: hashlib.blake2b(n.to_bytes(8, "big"), key=b"intensity").digest())
    return sorted(keyed[:wanted])


@dataclass(frozen=True)
class _BrickDone:
    objects: tuple[ManifestObject, ...]
    num_missing: int
    histogram: NDArray[np.int64]
    rows: PatchRows


@dataclass(frozen=True)
class _BrickJob:
    """Converts and writes bricks of one volume. It can be sent to other processes and machines."""

    source: ArraySource
    mapping: IntensityMapping
    shape: tuple[int, int, int]
    planes: tuple[int, ...]
    content: ContentFolder
    folder: str

    def __call__(self, group: BrickGroup) -> list[_BrickDone]:
        if group.is_written:
            return [self._adopted(box) for box in group.boxes]
        first, last = group.boxes[0], group.boxes[-1]
        whole = (first[0], first[1], slice(first[2].start, last[2].stop))
        voxels, mask = self.mapping.apply(self.source.read(whole)), self.source.missing(whole)
        done = []
        for box in group.boxes:
            span = slice(box[2].start - first[2].start, box[2].stop - first[2].start)
            part = None if mask is None or not mask[:, :, span].any() else mask[:, :, span]
            done.append(self._brick(box, np.ascontiguousarray(voxels[:, :, span]), part))
        return done

    def _adopted(self, box: Box) -> _BrickDone:
        """Use a brick that a killed run left behind, or write it again if it is damaged."""
        mask = self.source.missing(box)
        name = self._name(box)
        data = self.content.store.read(f"{self.content.folder}/{name}")
        try:
            voxels = decode_brick(self.shape, self.planes, box, data)
        except DataError as error:  # the fault of what was written, not of the file that is read
            logger.warning("%s/%s: %s; it is written again", self.content.folder, name, error)
            return self._brick(box, self.mapping.apply(self.source.read(box)), mask)
        objects = [ManifestObject(name, len(data), hashlib.sha256(data).hexdigest())]
        if mask is not None:
            objects.append(self._write_mask(box, mask))
        return self._done(box, objects, voxels, mask)

    def _brick(self, box: Box, read: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> _BrickDone:
        voxels = read if mask is None else np.where(mask, np.uint8(MISSING_VALUE), read)
        # The mask is written before the brick, so that where a brick exists its mask exists too.
        objects = [] if mask is None else [self._write_mask(box, mask)]
        objects.append(self.content.write(self._name(box), encode_brick(self.shape, self.planes, box, voxels)))
        return self._done(box, objects, voxels, mask)

    def _name(self, box: Box, array: str = "0") -> str:
        return f"{self.folder}/{brick_name(self.shape, self.planes, box, array)}"

    def _write_mask(self, box: Box, mask: NDArray[np.bool_]) -> ManifestObject:
        encoded = encode_brick(self.shape, self.planes, box, mask.astype(np.uint8))
        return self.content.write(self._name(box, "missing"), encoded)

    def _done(
        self, box: Box, objects: list[ManifestObject], voxels: NDArray[np.uint8], mask: NDArray[np.bool_] | None
    ) -> _BrickDone:
        present = voxels if mask is None else voxels[~mask]
        # Hashed while the voxels are in memory: reading and decoding them again later costs as much as all the work here.
        rows = hash_voxels(self.shape, self.planes, box, voxels, mask)
        return _BrickDone(tuple(objects), 0 if mask is None else int(mask.sum()), count_values(present), rows)


def standardize_volume(
    opened: Opened,
    intake: Intake,
    description: DatasetDescription,
    commit: Commit,
    engine: Engine | None,
    progress: Progress,
) -> VolumeRecord:
    """Write one volume into a commit as uint8 OME-Zarr, binned if the dataset's description asks for it.

    Args:
        description: Its voxel size is used, even where the file's header has another one.
        commit: Takes the objects. Bricks that a killed run left there are not computed again.
        engine: Distributes the bricks over workers; None chooses a pool by their number.

    Raises:
        DataError: The source is damaged, has NaN or infinite values, or is constant.
    """
    source = opened.source
    declared = description.voxel_size()
    factors = binning_factors(source.shape, declared, description.target_voxel_size_nm, description.kind == "video")
    shape, voxel_size = binned_shape(source.shape, factors), binned_voxel_size(declared, factors)
    planes = XY_ONLY if description.kind == "video" or is_anisotropic(voxel_size) else ALL_PLANES
    if opened.is_image:
        planes = XY_ONLY
    boxes = brick_boxes(shape, planes)
    mapping = intensity_mapping(source, description, brick_boxes(source.shape, planes))
    folder = volume_folder(intake.name)
    job = _BrickJob(source, mapping, shape, planes, commit.content, folder)
    if factors != NO_BINNING:
        job = replace(job, source=BinnedVolume(source, mapping, factors), mapping=_ALREADY_MAPPED)
    written = [commit.has(f"{folder}/{brick_name(shape, planes, box)}") for box in boxes]
    groups = brick_groups(boxes, written, _most_at_once(job.source, len(boxes)))
    histogram = np.zeros(256, np.int64)
    num_missing = 0
    described: list[ManifestObject] = []
    hashes = HashParts(commit.content, folder)
    if engine is not None and engine.spans_machines and not reads_anywhere(source, commit.content.store):
        logger.info("%s: its voxels are in a file on this machine, so its bricks are made here", intake.name)
        engine = None
    chosen = engine or _engine_for(source, len(boxes))
    for number, done in enumerate(chain.from_iterable(chosen.map(job, groups)), 1):
        histogram += done.histogram
        num_missing += done.num_missing
        described.extend(done.objects)
        hashes.add(done.rows)
        progress(number, len(boxes))
    refuse_constant(histogram, mapping)
    record = VolumeRecord(
        name=intake.name,
        folder=folder,
        shape=shape,
        voxel_size_nm=voxel_size,
        planes=planes,
        intensity=mapping,
        files=intake.paths if intake.kind != "stack" else (intake.paths[0], intake.paths[-1]),
        num_missing=num_missing,
        histogram=tuple(int(count) for count in histogram),
        header_voxel_size_nm=opened.header_voxel_size_nm,
        notes=(*opened.notes, *binning_notes(source.shape, declared, factors)),
    )
    for item in (*described, *hashes.finish()):
        commit.add(item)
    for name, data in metadata_objects(record).items():
        commit.write(f"{folder}/{name}", data)
    return record


_GROUP_BYTES = 48 << 20
"""How much of a source is read at a time: four bricks of 8-bit voxels, or one of 32-bit voxels."""
_GROUPS_PER_WORKER = 6
"""Each worker gets at least so many groups of bricks, so that none waits long for another at the end."""


def _most_at_once(source: ArraySource, num_bricks: int) -> int:
    """Choose how many bricks that lie side by side are read at once.

    The rows of a raw file, and the pages of the disk cache that hold them, are longer than a brick is wide, so reading brick by
    brick would read them several times. In a bucket, each chunk of a Zarr store costs a request. For chunks on a local disk,
    reading several bricks at once is not faster (measured).
    """
    if not (isinstance(source, RawFile) or (isinstance(source, ZarrArray) and not source.store.is_local)):
        return 1
    by_memory = _GROUP_BYTES // (PATCH_SIDE_PX**3 * source.dtype.itemsize)
    return max(1, min(by_memory, num_bricks // (_GROUPS_PER_WORKER * default_num_workers())))


_MOST_ZARR_THREADS = 2
"""The zarr library holds the GIL for much of its work, so more threads would wait for each other."""


def _engine_for(source: ArraySource, num_bricks: int) -> Engine:
    """Choose threads for sources whose reading hardly holds the GIL, and processes for those whose decoders hold it."""
    while isinstance(source, Region):
        source = source.source
    is_plain = isinstance(source, RawFile)
    if is_plain or (isinstance(source, ZarrArray) and default_num_workers() <= _MOST_ZARR_THREADS):
        return threads_or_processes(num_bricks)
    return local_engine(None, num_bricks)


def reads_anywhere(source: ArraySource, store: Store) -> bool:
    """Tell whether other machines can read a source: through the store, or as a file of a store that is a folder.

    Other sources are on this machine's scratch disk: files of a remote store are copied there before they are opened, and
    files that can only be decoded from their beginning are decoded to there.
    """
    if isinstance(source, Region):
        return reads_anywhere(source.source, store)
    if isinstance(source, ZarrArray):
        return True
    path = getattr(source, "path", None)
    return store.is_local and isinstance(path, Path) and path.resolve().is_relative_to(store.url)


def binning_notes(shape: tuple[int, ...], declared: tuple[float, ...], factors: Factors) -> tuple[str, ...]:
    """Say in a note how something was binned; return no note if it was not binned."""
    if factors == NO_BINNING:
        return ()
    return (
        f"binned by {list(factors)} (z, y, x), means rounded with halves up, from {list(shape)} voxels of {list(declared)} nm",
    )


def refuse_constant(histogram: NDArray[np.int64], mapping: IntensityMapping) -> None:
    """Refuse a volume or image that has fewer than two different values.

    Args:
        histogram: int64 (256,): counts of the mapped values.
        mapping: The mapping, by which the error can name the original value.

    Raises:
        DataError: All values are the same, or no voxel could be read.
    """
    values = np.flatnonzero(histogram)
    if len(values) == 0:
        raise DataError("no voxel of it could be read: every chunk is absent or refused. Upload the chunks.")
    if len(values) > 1:
        return
    original = mapping.undo(values.astype(np.uint8))[0]
    if original == 0:
        raise DataError(
            "it is constant: every voxel is 0. Zero-filled data mostly comes from a copy that broke off; expected at least two "
            "values. Copy it again from its source."
        )
    raise DataError(
        f"it is constant: every voxel is {original:g} (blank); expected at least two values. Remove it from the dataset."
    )
