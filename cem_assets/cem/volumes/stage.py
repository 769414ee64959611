"""Stage `cem/volumes`: a dataset of the inbox becomes standardized volumes or images."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.patches.hashes import made_with
from cem_assets.cem.patches.tables import REJECTED_SCHEMA
from cem_assets.cem.volumes.bricks import count_patches
from cem_assets.cem.volumes.standardize import opened_volume, standardize_volume
from cem_assets.cem.volumes.standardize_images import standardize_images
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.formats.arrays import Opened
from cem_assets.formats.derived import Region, drawn_cubes
from cem_assets.imaging.cube_choice import roi_name
from cem_assets.inbox.copies import SourceCopies
from cem_assets.inbox.datasets import MAX_NAME, InboxDataset, Rejection, read_description, read_inbox
from cem_assets.inbox.intake import Intake, holds_one_image, intakes, slice_candidates
from cem_assets.inbox.local import local_paths
from cem_assets.inbox.quarantine import clear_report, write_report
from cem_assets.store.assets import CODE_VERSIONS, VOLUMES
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store


def standardize_dataset(
    store: Store, dataset: str, run_id: str = "", engine: Engine | None = None, progress: Progress = no_progress
) -> StageResult:
    """Standardize a dataset of the inbox: uint8 OME-Zarr volumes, or a table of 2D images.

    Args:
        dataset: Partition key, its folder in the inbox.
        engine: Shares bricks or images; None chooses a pool.
        progress: Called with (bricks or images done, in all) of the volume at hand.

    Returns:
        The committed partition of `cem/volumes`.

    Raises:
        FileNotFoundError: The inbox has no such dataset.
        DataError: Its description breaks rules, or nothing in it can be used; the report lies in `quarantine/`.
        OSError: The store or the scratch disk is in trouble; another attempt may help.
    """
    with scratch_folder("volumes") as scratch:
        return _standardize_dataset(store, dataset, run_id, engine, progress, scratch)


def _standardize_dataset(
    store: Store, dataset: str, run_id: str, engine: Engine | None, progress: Progress, scratch: Path
) -> StageResult:
    started = time.monotonic()
    kept = None if store.is_local else SourceCopies(store, scratch)
    try:
        # The images of a dataset are read one by one, in other processes, so copies here would not serve them.
        is_kept = kept is not None and read_description(store, dataset).kind != "images"
        inbox = read_inbox(store, dataset, kept.sha256 if kept is not None and is_kept else None)
    except (FileNotFoundError, ValueError) as error:
        write_report(store, dataset, [Rejection("dataset.toml", str(error))], is_refused=True)
        raise
    inputs = Inputs(VOLUMES, dataset, CODE_VERSIONS[VOLUMES], {}, {f"inbox/{dataset}": inbox.digest})
    commit = Commit(store, inputs, run_id)
    if commit.up_to_date:
        return StageResult(commit.up_to_date, False, time.monotonic() - started)
    records, counts, rejections = _standardize(store, inbox, commit, engine, progress, scratch, kept)
    if not records and not counts["images"]:
        write_report(store, dataset, rejections, is_refused=True)
        listing = "\n".join(f"  - {item.what}: {item.reason}" for item in rejections[:20])
        raise DataError(
            f"dataset {dataset!r} has nothing that can be used; {len(rejections)} file(s) or volume(s) were refused:\n"
            f"{listing}\nRepair or replace them in the inbox, then materialize {VOLUMES} again."
        )
    rows = [{"what": item.what, "reason": item.reason, "num_patches": 0} for item in rejections]
    table = pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)
    commit.write("_rejected/part-00000.parquet", parquet_bytes([table], REJECTED_SCHEMA))
    if rejections:
        write_report(store, dataset, rejections, is_refused=False)
    else:
        clear_report(store, dataset)
    description = json.loads(inbox.description.model_dump_json())
    details = {"description": description, "volumes": records, "lineage": {}}
    manifest = commit.finish(counts, details | ({"patch_hashes": made_with()} if records else {}))
    return StageResult(manifest, True, time.monotonic() - started)


def _standardize(
    store: Store,
    inbox: InboxDataset,
    commit: Commit,
    engine: Engine | None,
    progress: Progress,
    scratch: Path,
    kept: SourceCopies | None,
) -> tuple[list[dict[str, Any]], dict[str, int], list[Rejection]]:
    """Write everything that can be used; return volume records, counts, and what was refused."""
    rejections = list(inbox.rejections)
    records: list[dict[str, Any]] = []
    counts = {"volumes": 0, "images": 0, "voxels": 0, "patches_expected": 0}
    single = {}
    for path in slice_candidates(inbox):
        with local_paths(store, inbox.name, [path], scratch, kept) as (local,):
            single[path] = holds_one_image(local, scratch, inbox.description)
    items, refused = intakes(inbox, single)
    rejections += refused
    if inbox.description.kind == "images":
        num_images, num_pixels, refused = standardize_images(store, inbox, items, commit, engine, progress)
        counts |= {"images": num_images, "voxels": num_pixels}
        items = []
        rejections += refused
    for item in items:
        try:
            with opened_volume(store, inbox, item, scratch, kept) as opened:
                for part, one in _parts(item, opened, inbox.description):
                    try:
                        record = standardize_volume(one, part, inbox.description, commit, engine, progress)
                    except ValueError as error:
                        if part is item:
                            raise
                        rejections.append(Rejection(part.name, str(error)))  # one cube; the others may be sound
                        continue
                    records.append(record.to_json())
                    counts["volumes"] += 1
                    counts["voxels"] += int(np.prod(record.shape, dtype=object))
                    counts["patches_expected"] += count_patches(record.shape, record.planes)
        except ValueError as error:
            rejections.append(Rejection(item.name if item.kind == "stack" else item.paths[0], str(error)))
    return records, counts | {"rejected": len(rejections)}, rejections


def _parts(item: Intake, opened: Opened, description: DatasetDescription) -> Iterator[tuple[Intake, Opened]]:
    """Yield an opened volume itself, or the cubes of it that its dataset wants, named after their place."""
    if description.sampling is None:
        yield item, opened
        return
    drawn = drawn_cubes(opened.source, description.sampling)
    for box in drawn.boxes:
        name = roi_name(item.name, box)
        if len(name) > MAX_NAME:
            raise DataError(f"its cubes have names of {len(name)} characters; expected at most {MAX_NAME}. Rename it.")
        region = replace(opened, source=Region(opened.source, box), notes=(*opened.notes, *drawn.notes))
        yield replace(item, name=name), region
