"""Stages `cem/raw_patches` and `cem/deduplicated_patches`: cut and hash the patches, then choose exemplars."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import numpy as np
import PIL
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.cem.patches.dedup import DedupParams, deduplicate
from cem_assets.cem.patches.pixels import (
    HashJob,
    RawPart,
    RawRows,
    hash_images,
    open_pixels,
    plan_raw_parts,
    rejected_planes,
    rows_of_brick,
)
from cem_assets.cem.patches.tables import DEDUPLICATED_SCHEMA, DUPLICATES_SCHEMA, RAW_SCHEMA
from cem_assets.cem.volumes.hashes import has_hashes, stored_rows
from cem_assets.cem.volumes.tables import REJECTED_SCHEMA
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine, default_num_workers, threads_or_processes
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.store.assets import CODE_VERSIONS, DEDUPLICATED, RAW, VOLUMES
from cem_assets.store.commits import Commit, installed_versions
from cem_assets.store.manifests import Inputs, Manifest, require_manifest
from cem_assets.store.parquet import parquet_bytes, parquet_file, part_name, read_parts, rechunk
from cem_assets.store.store import Store

_ROWS_PER_PART = 1 << 20
_BATCH_ROWS = 1 << 16
_NO_DATA = "it touches voxels that the source does not have (chunks absent or refused there)"


class PatchifyParams(BaseModel):
    """How volumes are cut.

    Attributes:
        spacing: One slice is cut out of every `spacing` slices, on every plane.
    """

    model_config = ConfigDict(frozen=True)

    spacing: Annotated[int, Field(ge=1, le=10_000)] = 1


def cut_and_hash(
    store: Store,
    dataset: str,
    params: PatchifyParams,
    run_id: str = "",
    engine: Engine | None = None,
    progress: Progress = no_progress,
) -> StageResult:
    """Cut a dataset into patches and hash them. The table has one row for each patch, and no pixels.

    The hashes that `cem/volumes` made while it wrote the voxels are used (`cem.volumes.hashes`) if this code would compute the
    same ones; otherwise the bricks are read and hashed here.

    Args:
        engine: Distributes bricks over workers; None chooses a pool.

    Returns:
        The committed partition of `cem/raw_patches`.

    Raises:
        FileNotFoundError: `cem/volumes` was not materialized, or the store lost a file of it.
        DataError: No plane of any volume is large enough to be cut.
    """
    upstream = require_manifest(store, VOLUMES, dataset)
    inputs = Inputs(
        RAW,
        dataset,
        CODE_VERSIONS[RAW],
        params.model_dump(),
        {f"{VOLUMES}/{dataset}": upstream.digest},
        pins={"pillow": PIL.__version__},  # other versions resample patches at the border differently
    )
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    pixels = open_pixels(store, dataset, upstream)
    parts = plan_raw_parts(pixels, params.spacing)
    todo = [part for part in parts if not commit.has(part.name)]
    num_rows = num_rejected = 0
    for part in parts:
        if part not in todo:  # a run that was killed later left it complete
            for name in (part.name, _rejected_name(part)):
                if commit.has(name):
                    commit.adopt(name)
            num_rows += _num_rows(store, commit, part.name)
            num_rejected += _num_rows(store, commit, _rejected_name(part))
    bricks = [brick for part in todo for brick in part.bricks]
    stream: Iterator[RawRows]
    if bricks and has_hashes(upstream):
        records = [volume.record for volume in pixels.volumes]
        rows_in_order = stored_rows(store, upstream, records, params.spacing, bricks)
        stream = (rows_of_brick(pixels, brick[0], rows) for brick, rows in zip(bricks, rows_in_order, strict=True))
    else:
        stream = (engine or threads_or_processes(len(bricks), 32)).map(HashJob(pixels, params.spacing), bricks)
    done, total = 0, len(bricks) or len(todo)
    for part in todo:
        rejected: list[str] = []

        def rows(part: RawPart, rejected: list[str] = rejected) -> Iterator[pa.Table]:
            nonlocal done
            pieces: Iterator[RawRows] = (
                hash_images(pixels, part.images_part) if part.images_part else islice(stream, len(part.bricks))
            )
            for piece in pieces:
                rejected.extend(piece.rejected)
                if not part.images_part:
                    done += 1
                    progress(done, total)
                yield piece.kept

        data = parquet_bytes(rows(part), RAW_SCHEMA)
        if part.images_part:
            done += 1
            progress(done, total)
        if rejected:  # written before the part itself, so that where a part exists its rejections exist too
            table = pa.table([rejected, [_NO_DATA] * len(rejected), [1] * len(rejected)], schema=REJECTED_SCHEMA)
            commit.write(_rejected_name(part), parquet_bytes([table], REJECTED_SCHEMA))
            num_rejected += len(rejected)
        commit.write(part.name, data)
        num_rows += _num_rows(store, commit, part.name)
    planes = [(what, reason, 0) for what, reason in rejected_planes(pixels)]
    if not num_rows and not num_rejected:
        listing = "\n".join(f"  - {what}: {reason}" for what, reason, _ in planes[:20])
        raise DataError(f"dataset {dataset!r} gives no patches:\n{listing}\nAdd larger volumes or images to the dataset.")
    table = pa.Table.from_pylist([dict(zip(REJECTED_SCHEMA.names, row, strict=True)) for row in planes], schema=REJECTED_SCHEMA)
    commit.write("_rejected/planes.parquet", parquet_bytes([table], REJECTED_SCHEMA))
    return stage.finish(
        counts={"patches": num_rows, "rejected_patches": num_rejected, "rejected_planes": len(planes)},
        details={
            "description": upstream.details["description"],
            "lineage": {"raw_patches": num_rows},
            "volumes_digest": upstream.digest,
        },
        versions=installed_versions("imagehash", "numba"),
    )


def _rejected_name(part: RawPart) -> str:
    return f"_rejected/{part.name}"


def _num_rows(store: Store, commit: Commit, name: str) -> int:
    key = f"{commit.content.folder}/{name}"
    if store.size(key) is None:
        return 0
    with store.open(key) as handle:
        return int(parquet_file(handle).metadata.num_rows)


def choose_exemplars(
    store: Store, dataset: str, params: DedupParams, run_id: str = "", progress: Progress = no_progress
) -> StageResult:
    """Deduplicate one dataset. Every dropped patch is listed with its exemplar.

    It takes about 50 bytes of memory for each raw patch, plus the names of the exemplars.

    Returns:
        The committed partition of `cem/deduplicated_patches`.

    Raises:
        FileNotFoundError: `cem/raw_patches` was not materialized.
    """
    upstream = require_manifest(store, RAW, dataset)
    inputs = Inputs(
        DEDUPLICATED, dataset, CODE_VERSIONS[DEDUPLICATED], params.model_dump(), {f"{RAW}/{dataset}": upstream.digest}
    )
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    progress(0, 3)
    hashes = _hashes(store, upstream)
    names = (name for table in read_parts(store, upstream, ["name"], _BATCH_ROWS) for name in table["name"].to_pylist())
    found = deduplicate(names, hashes, params, default_num_workers())
    progress(1, 3)
    is_exemplar, num_duplicates = found.is_exemplar(), found.num_duplicates()
    exemplar_rows = np.flatnonzero(is_exemplar)

    def exemplars() -> Iterator[pa.Table]:
        start = 0
        for table in read_parts(store, upstream, None, _BATCH_ROWS):
            chosen = is_exemplar[start : start + len(table)]
            counts = pa.array(num_duplicates[start : start + len(table)][chosen])
            kept = table.filter(pa.array(chosen)).replace_schema_metadata(None)
            yield kept.append_column("num_duplicates", counts)
            start += len(table)

    kept_names = []
    for number, part in enumerate(rechunk(exemplars(), _ROWS_PER_PART)):
        # Offsets of 64 bits, because 43 million names of 50 bytes exceed the 2 GiB that an array of ordinary strings can hold.
        kept_names.append(part["name"].cast(pa.large_string()).combine_chunks())
        commit.write(part_name(number), parquet_bytes([part], DEDUPLICATED_SCHEMA))
    progress(2, 3)
    exemplar_names = pa.concat_arrays(kept_names) if kept_names else pa.array([], pa.large_string())

    def duplicates() -> Iterator[pa.Table]:
        start = 0
        for table in read_parts(store, upstream, ["name"], _BATCH_ROWS):
            stop = start + len(table)
            dropped = ~is_exemplar[start:stop]
            places = np.searchsorted(exemplar_rows, found.exemplar[start:stop][dropped])
            yield pa.table(
                [
                    table["name"].combine_chunks().filter(pa.array(dropped)),
                    exemplar_names.take(pa.array(places)).cast(pa.string()),
                    pa.array(found.distance[start:stop][dropped]),
                ],
                schema=DUPLICATES_SCHEMA,
            )
            start = stop

    for number, part in enumerate(rechunk(duplicates(), _ROWS_PER_PART)):
        commit.write(f"_duplicates/{part_name(number)}", parquet_bytes([part], DUPLICATES_SCHEMA))
    num_exemplars = len(exemplar_rows)
    result = stage.finish(
        counts={"patches": len(hashes), "exemplars": num_exemplars, "duplicates": len(hashes) - num_exemplars},
        details={
            "description": upstream.details["description"],
            "lineage": {**upstream.details["lineage"], "deduplicated_patches": num_exemplars},
            "volumes_digest": upstream.details["volumes_digest"],
            "distances": np.bincount(found.distance[~is_exemplar], minlength=params.max_distance + 1).tolist(),
        },
    )
    progress(3, 3)
    return result


def _hashes(store: Store, manifest: Manifest) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    pieces = [table["dhash"].to_numpy() for table in read_parts(store, manifest, ["dhash"])]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
