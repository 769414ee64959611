"""Stage `cem/volumes`: a dataset of the inbox becomes standardized volumes or images.

A file that cannot be used is rejected, and the work goes on with the others: that is the only use of a caught `DataError`
here. Every other error stops the stage.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.volumes.bricks import count_patches
from cem_assets.cem.volumes.hashes import made_with
from cem_assets.cem.volumes.standardize import opened_volume, standardize_volume
from cem_assets.cem.volumes.standardize_images import standardize_images
from cem_assets.cem.volumes.tables import REJECTED_SCHEMA
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
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
        dataset: Partition key, which is the name of its folder in the inbox.
        engine: Distributes bricks or images over workers; None chooses a pool.
        progress: Called with the number of bricks (or images) that are done, and of all bricks of the volume at hand.

    Returns:
        The committed partition of `cem/volumes`.

    Raises:
        FileNotFoundError: The inbox has no such dataset.
        DataError: Its description breaks rules, or nothing in it can be used; the report is in `quarantine/`.
        OSError: The store or the scratch disk is in trouble; another attempt may help.
    """
    with scratch_folder("volumes") as scratch:
        return _standardize_dataset(store, dataset, run_id, engine, progress, scratch)


def _standardize_dataset(
    store: Store, dataset: str, run_id: str, engine: Engine | None, progress: Progress, scratch: Path
) -> StageResult:
    kept = None if store.is_local else SourceCopies(store, scratch)
    try:
        # Images are read one by one in other processes, which copies on this machine would not help.
        is_kept = kept is not None and read_description(store, dataset).kind != "images"
        inbox = read_inbox(store, dataset, kept.sha256 if kept is not None and is_kept else None)
    except (FileNotFoundError, DataError) as error:
        write_report(store, dataset, [Rejection("dataset.toml", str(error))], is_refused=True)
        raise
    stage = begin(store, Inputs(VOLUMES, dataset, CODE_VERSIONS[VOLUMES], {}, {f"inbox/{dataset}": inbox.digest}), run_id)
    if stage.up_to_date:
        return stage.up_to_date
    made = _Standardizing(store, inbox, stage.commit, engine, progress, scratch, kept)
    made.run()
    rejections = made.rejections
    if not made.records and not made.num_images:
        write_report(store, dataset, rejections, is_refused=True)
        listing = "\n".join(f"  - {item.what}: {item.reason}" for item in rejections[:20])
        raise DataError(
            f"dataset {dataset!r} has nothing that can be used; {len(rejections)} file(s) or volume(s) were refused:\n"
            f"{listing}\nRepair or replace them in the inbox, then materialize {VOLUMES} again."
        )
    rows = [{"what": item.what, "reason": item.reason, "num_patches": 0} for item in rejections]
    table = pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)
    stage.commit.write("_rejected/part-00000.parquet", parquet_bytes([table], REJECTED_SCHEMA))
    if rejections:
        write_report(store, dataset, rejections, is_refused=False)
    else:
        clear_report(store, dataset)
    description = json.loads(inbox.description.model_dump_json())
    details = {"description": description, "volumes": made.records, "lineage": {}}
    return stage.finish(made.counts(), details | ({"patch_hashes": made_with()} if made.records else {}))


@dataclass
class _Standardizing:
    """Writes everything of a dataset that can be used, and remembers what was written and what was refused.

    Attributes:
        kept: Local copies of the dataset's files; None if the store is a local folder.
        records: Records of the volumes, as JSON values.
    """

    store: Store
    inbox: InboxDataset
    commit: Commit
    engine: Engine | None
    progress: Progress
    scratch: Path
    kept: SourceCopies | None
    records: list[dict[str, Any]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    num_images: int = 0
    num_voxels: int = 0
    num_patches: int = 0

    def counts(self) -> dict[str, int]:
        """Return the counts of the manifest."""
        return {
            "volumes": len(self.records),
            "images": self.num_images,
            "voxels": self.num_voxels,
            "patches_expected": self.num_patches,
            "rejected": len(self.rejections),
        }

    def run(self) -> None:
        """Write all volumes, or all images."""
        store, inbox = self.store, self.inbox
        is_single_image = {}
        for path in slice_candidates(inbox):
            with local_paths(store, inbox.name, [path], self.scratch, self.kept) as (local,):
                is_single_image[path] = holds_one_image(local, self.scratch, inbox.description)
        items, refused = intakes(inbox, is_single_image)
        self.rejections += [*inbox.rejections, *refused]
        if inbox.description.kind == "images":
            self.num_images, self.num_voxels, refused = standardize_images(
                store, inbox, items, self.commit, self.engine, self.progress
            )
            self.rejections += refused
            return
        for item in items:
            try:
                self._write(item)
            except DataError as error:
                self.rejections.append(Rejection(item.name if item.kind == "stack" else item.paths[0], str(error)))

    def _write(self, item: Intake) -> None:
        description = self.inbox.description
        with opened_volume(self.store, self.inbox, item, self.scratch, self.kept) as opened:
            for part, one in _parts(item, opened, description):
                try:
                    record = standardize_volume(one, part, description, self.commit, self.engine, self.progress)
                except DataError as error:
                    if part is item:
                        raise
                    # Only this cube of the volume is refused; the others may be usable.
                    self.rejections.append(Rejection(part.name, str(error)))
                    continue
                self.records.append(record.to_json())
                self.num_voxels += int(np.prod(record.shape, dtype=object))
                self.num_patches += count_patches(record.shape, record.planes)


def _parts(item: Intake, opened: Opened, description: DatasetDescription) -> Iterator[tuple[Intake, Opened]]:
    """Yield an opened volume itself, or the cubes of it that its dataset samples, which are named after their place."""
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
