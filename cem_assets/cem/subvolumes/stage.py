"""Stage `cem/subvolumes`: boxes around filtered patches, as flipbooks of a few slices or as cubes.

Every volume is a standardized one here: remote volumes arrive as cubes in the inbox (`cem_assets.inbox.remote_cubes`).
`cem_assets.cem.subvolumes.places` decides which boxes are cut, and `cem_assets.cem.subvolumes.files` stores them.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cem.export.names import clashing_names, name_key, plain_name
from cem_assets.cem.patches.pixels import DatasetPixels, pixels_behind
from cem_assets.cem.subvolumes.files import (
    SKIPPED_SCHEMA,
    SUBVOLUMES_SCHEMA,
    decode_subvolume,
    encode_subvolume,
    file_names,
    lacks_voxels,
    read_box,
)
from cem_assets.cem.subvolumes.places import Skipped, Subvolume, SubvolumeForm, SubvolumeParams, place_subvolumes
from cem_assets.errors import DataError, UnknownNameError
from cem_assets.execution.local import Engine, local_engine
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.imaging.boxes import Box
from cem_assets.store.assets import CODE_VERSIONS, FILTERED, SUBVOLUMES
from cem_assets.store.commits import ContentFolder, installed_versions
from cem_assets.store.manifests import Inputs, Manifest, ManifestObject, require_manifest
from cem_assets.store.parquet import parquet_bytes, part_name, read_parts
from cem_assets.store.store import Store

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class _CutJob:
    """Reads, encodes and writes one subvolume. It can be sent to other processes and machines."""

    pixels: DatasetPixels
    content: ContentFolder
    form: SubvolumeForm

    def __call__(self, item: tuple[Subvolume, tuple[str, ...]]) -> list[ManifestObject]:
        subvolume, objects = item
        volume = self.pixels.volume(subvolume.volume)
        encoded = encode_subvolume(read_box(volume, subvolume), subvolume, volume.record.voxel_size_nm, self.form)
        return [self.content.write(name, data) for name, data in zip(objects, encoded, strict=True)]


def cut_subvolumes(
    store: Store,
    dataset: str,
    params: SubvolumeParams,
    run_id: str = "",
    engine: Engine | None = None,
    progress: Progress = no_progress,
) -> StageResult:
    """Cut subvolumes around the filtered patches of a dataset, out of the volumes that the patches were cut from.

    Args:
        engine: Distributes the subvolumes over workers; None chooses a pool.

    Returns:
        The committed partition of `cem/subvolumes`. It has an OME-Zarr folder or TIFF stack for each subvolume, an index in
        the order in which they were chosen, and in `_dropped/` the reasons why there is none around the other patches. A
        dataset of 2D images has no subvolumes.

    Raises:
        FileNotFoundError: `cem/filtered_patches` was not materialized, its volumes were swept away, or the store lost a
            chunk of them.
        DataError: A volume is damaged.
    """
    upstream = require_manifest(store, FILTERED, dataset)
    parameters = params.model_dump(mode="json")
    inputs = Inputs(SUBVOLUMES, dataset, CODE_VERSIONS[SUBVOLUMES], parameters, {f"{FILTERED}/{dataset}": upstream.digest})
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    pixels = pixels_behind(store, upstream)
    names = [name for table in read_parts(store, upstream, ["name"], _BATCH_ROWS) for name in table["name"].to_pylist()]

    def is_whole(volume: str, box: Box) -> bool:
        return not lacks_voxels(pixels.volume(volume), box)

    shapes = {volume.name: volume.shape for volume in pixels.volumes}
    placed = place_subvolumes(names, shapes, params, is_whole)
    files = _files(placed.subvolumes, params.form)
    todo = []
    for subvolume, (_, objects) in zip(placed.subvolumes, files, strict=True):
        if all(commit.has(name) for name in objects):  # a run that was killed later left it complete
            for name in objects:
                commit.adopt(name)
        else:
            todo.append((subvolume, objects))
    done, total = len(files) - len(todo), len(files)
    for described in (engine or local_engine(None, len(todo), 32)).map(_CutJob(pixels, commit.content, params.form), todo):
        for item in described:
            commit.add(item)
        done += 1
        progress(done, total)
    rows = (_index_row(pixels, subvolume, file) for subvolume, (file, _) in zip(placed.subvolumes, files, strict=True))
    index = pa.Table.from_pylist(list(rows), schema=SUBVOLUMES_SCHEMA)
    commit.write(part_name(0), parquet_bytes([index], SUBVOLUMES_SCHEMA))
    commit.write("_dropped/part-00000.parquet", parquet_bytes(_skipped_tables(placed.skipped), SKIPPED_SCHEMA))
    tally = Counter(reason.name for _, reason in placed.skipped)
    return stage.finish(
        counts={
            "subvolumes": total,
            "voxels": total * params.num_voxels,
            "dropped": len(placed.skipped),
            **{f"dropped_{reason.name}": tally[reason.name] for reason in Skipped},
        },
        details={
            "description": upstream.details["description"],
            "lineage": {**upstream.details["lineage"], "subvolumes": total},
            "volumes_digest": upstream.details["volumes_digest"],
        },
        versions=installed_versions("tifffile"),
    )


def read_subvolume(store: Store, manifest: Manifest, file: str) -> NDArray[np.uint8]:
    """Read a stored subvolume.

    Args:
        manifest: A manifest of `cem/subvolumes`.
        file: The subvolume's file or folder, as the index names it.

    Returns:
        uint8 (slices, rows, columns), with the patch's slicing axis first.

    Raises:
        UnknownNameError: The partition has no such file.
        DataError: The file is damaged.
    """
    form = SubvolumeParams(**manifest.inputs.parameters).form
    inside = [item for item in manifest.objects if item.name == file or item.name.startswith(f"{file}/")]
    if not inside:
        raise UnknownNameError(
            f"{manifest.folder} has no subvolume {file!r}; its index (part-00000.parquet) lists those that it has."
        )
    objects = {item.name: store.read(f"{manifest.folder}/{item.name}") for item in inside}
    for item in inside:
        if hashlib.sha256(objects[item.name]).hexdigest() != item.sha256:
            raise DataError(
                f"{manifest.folder}/{item.name} is damaged: its sha256 is not the one that its manifest lists. Materialize "
                "cem/subvolumes again to repair the partition."
            )
    return decode_subvolume(objects, form)


def _files(subvolumes: tuple[Subvolume, ...], form: SubvolumeForm) -> list[tuple[str, tuple[str, ...]]]:
    """Name the file or folder of each subvolume, and its objects, safely: people name volumes as they like."""
    clashes = clashing_names(subvolume.name for subvolume in subvolumes)
    return [
        file_names(plain_name(subvolume.name, is_clashing=name_key(subvolume.name) in clashes), form)
        for subvolume in subvolumes
    ]


def _index_row(pixels: DatasetPixels, subvolume: Subvolume, file: str) -> dict[str, object]:
    sizes = pixels.volume(subvolume.volume).record.voxel_size_nm
    row: dict[str, object] = {
        "dataset": pixels.dataset,
        "name": subvolume.name,
        "patch": subvolume.patch,
        "volume": subvolume.volume,
        "axis": subvolume.axis,
        "file": file,
    }
    for number, side in enumerate("zyx"):
        row |= {f"{side}0": subvolume.low[number], f"{side}1": subvolume.high[number]}
        row[f"voxel_size_{side}_nm"] = sizes[number]
    return row


def _skipped_tables(skipped: tuple[tuple[str, Skipped], ...]) -> Iterator[pa.Table]:
    for start in range(0, len(skipped), _BATCH_ROWS):
        batch = skipped[start : start + _BATCH_ROWS]
        columns = [pa.array([name for name, _ in batch]), pa.array([reason.value for _, reason in batch])]
        yield pa.table(columns, schema=SKIPPED_SCHEMA)
