"""Stage `cytoimagenet/crops`: the images of one label are read, merged, cropped and judged, and become Parquet shards.

Every source image is read once. Crops wait in a scratch file until it is known which of them stay, so the memory that is needed
depends on the number of crops, and not on their size. The rules are in `cem_assets.cytoimagenet.crops.crops` and `.quality`.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa

from cem_assets.cytoimagenet.crops.crops import crops_per_image, sample_back
from cem_assets.cytoimagenet.crops.images import Crop, CropJob, CropStageParams
from cem_assets.cytoimagenet.crops.naming import image_name, label_folder, splits
from cem_assets.cytoimagenet.crops.quality import DropReason
from cem_assets.cytoimagenet.held_out.guard import Fingerprint
from cem_assets.cytoimagenet.held_out.stage import TestImages, read_test_images
from cem_assets.cytoimagenet.labels.stage import LabelEntry, label_entries, label_rows
from cem_assets.cytoimagenet.sources.stage import file_of
from cem_assets.cytoimagenet.tables import CROP_DROPPED_SCHEMA, CROPS_SCHEMA, frame_bytes, records_of
from cem_assets.errors import UnknownNameError
from cem_assets.execution.local import Engine, local_engine
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.store.assets import CODE_VERSIONS, CROPS, LABEL_TABLE, TEST_IMAGES
from cem_assets.store.commits import Commit, installed_versions
from cem_assets.store.manifests import Inputs, current_manifest, require_manifest
from cem_assets.store.parquet import IMAGE, IMAGE_ROW_GROUP, SHARD_BYTES, parquet_bytes, part_name
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

DROPPED = "_dropped/part-00000.parquet"


@dataclass(frozen=True)
class _Kept:
    """A crop that waits in the scratch file.

    Attributes:
        start: Offset of its PNG in the scratch file.
        stop: Offset of the end of its PNG.
    """

    row: int
    crop: Crop
    start: int
    stop: int


def make_crops(
    store: Store,
    key: str,
    params: CropStageParams | None = None,
    run_id: str = "",
    engine: Engine | None = None,
    progress: Progress = no_progress,
) -> StageResult:
    """Make the images of a label.

    Args:
        key: Partition key of the label.
        engine: Reads the images in parallel; None chooses a pool of processes. Results do not depend on it.

    Returns:
        The committed partition of `cytoimagenet/crops`: shards with pixels and the release's columns, and `_dropped` with a
        reason for each image and crop that is not in them. If too few images are left, the partition is committed empty.

    Raises:
        FileNotFoundError: There is no label table.
        UnknownNameError: The current label table has no such label.
    """
    params = params or CropStageParams()
    table = require_manifest(store, LABEL_TABLE)
    entries = label_entries(store, table)
    if key not in entries:
        raise UnknownNameError(
            f"the label table has no label with the key {key!r}; it has {len(entries):,}, such as "
            f"{', '.join(list(entries)[:5])}."
        )
    entry = entries[key]
    guard = current_manifest(store, TEST_IMAGES)
    inputs = Inputs(
        CROPS, key, CODE_VERSIONS[CROPS], params.model_dump(mode="json"), crop_upstream(entry, guard.digest if guard else ""),
        {"pillow": installed_versions()["pillow"]},
    )  # fmt: skip
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    frame = label_rows(store, table, entry)
    rows = [{**row, "place": place} for place, row in enumerate(records_of(frame))]
    items = _sharing_files(rows)
    tests = read_test_images(store, guard)
    job = CropJob(store, params, crops_per_image(len(rows), params), bool(len(tests.index)))
    with scratch_folder("crops") as scratch, open(scratch / "crops.png", "w+b") as spool:
        kept: list[_Kept] = []
        dropped: list[tuple[str, int, DropReason, str]] = []
        chosen_engine = engine or local_engine(None, len(items), 16)
        for number, results in enumerate(chosen_engine.map(job, items), 1):
            for result in results:
                row = rows[result.row]
                dropped += [(row["idx"], crop, reason, detail) for crop, reason, detail in result.dropped]
                if match := _test_match(row, result.prints, tests):
                    detail = f"it is {match}"
                    dropped += [(row["idx"], crop.window.number, DropReason.test_image, detail) for crop in result.crops]
                    continue
                for crop in result.crops:
                    start = spool.tell()
                    spool.write(crop.png)
                    bare = Crop(crop.window, crop.height, crop.width, crop.dhash, crop.pixel_sha256, b"")
                    kept.append(_Kept(result.row, bare, start, spool.tell()))
            progress(number, len(items))
        kept, more = _chosen(sorted(kept, key=lambda k: (k.row, k.crop.window.number)), rows, params)
        records = _records(entry, rows, kept, params)
        num_shards = _write_shards(stage.commit, spool, kept, records)
    out = pd.DataFrame(sorted(dropped + more), columns=["idx", "crop", "reason", "detail"])
    stage.commit.write(DROPPED, frame_bytes(out.astype({"reason": "str"}), CROP_DROPPED_SCHEMA))
    reasons = {str(k): int(n) for k, n in out["reason"].value_counts().sort_index().items()}
    counts = {
        "source_images": len(rows),
        "crops_cut": len(records) + sum(1 for crop in out["crop"] if crop >= 0),
        "images": len(records),
        "validation": sum(record["split"] == "validation" for record in records),
        "dropped": len(out),
        "shards": num_shards,
    }
    facts = table.details["sources"]
    by_source = pd.Series([record["source"] for record in records], dtype="str").value_counts().sort_index()
    details = {
        "label": entry.label,
        "category": entry.category,
        "num_crops": job.num_crops,
        "dropped_by_reason": reasons,
        "sources": {str(name): {**facts[name], "num_images": int(count)} for name, count in by_source.items()},
    }
    return stage.finish(counts, details)


def crop_upstream(entry: LabelEntry, test_images: str) -> dict[str, str]:
    """Return what the crops of a label are made from: its rows, and the test images that they were compared with.

    Args:
        test_images: Digest of the committed test images; empty if there are none.
    """
    upstream = {f"{LABEL_TABLE}/{entry.key}": entry.digest}
    return upstream | ({TEST_IMAGES: test_images} if test_images else {})


def _sharing_files(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group rows that share their files, so that each file is read once."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        paths = tuple(sorted({file_of(name) for name in row["files"]}))
        groups.setdefault((row["source"], *(paths or ("", row["idx"]))), []).append(row)
    return list(groups.values())


def _test_match(row: dict[str, Any], prints: tuple[Fingerprint, ...], tests: TestImages) -> str:
    for digest in row["sha256"]:
        if digest in tests.files:
            return f"a file of the test set {tests.files[digest]}"
    if not prints:
        return ""
    for found in tests.index.find_all(prints):
        if found is not None:
            return f"near the test image {found.name} (distance {found.distance} of 64, correlation {found.correlation:.3f})"
    return ""


def _chosen(
    kept: list[_Kept], rows: list[dict[str, Any]], params: CropStageParams
) -> tuple[list[_Kept], list[tuple[str, int, DropReason, str]]]:
    """Drop exact duplicates and crops above the maximum, or all crops if too few are left."""
    dropped: list[tuple[str, int, DropReason, str]] = []

    def drop(item: _Kept, reason: DropReason, detail: str) -> None:
        dropped.append((rows[item.row]["idx"], item.crop.window.number, reason, detail))

    first: dict[str, str] = {}
    unique = []
    for item in kept:
        twin = first.setdefault(item.crop.pixel_sha256, f"{rows[item.row]['idx']} crop {item.crop.window.number}")
        if twin != f"{rows[item.row]['idx']} crop {item.crop.window.number}":
            drop(item, DropReason.duplicate, f"the same pixels as {twin}")
        else:
            unique.append(item)
    stays = sample_back([rows[item.row]["idx"] for item in unique], [item.crop.window.number for item in unique], params)
    for item, keep in zip(unique, stays, strict=True):
        if not keep:
            drop(item, DropReason.sampled_back, f"the label had {len(unique):,} crops, {params.max_images:,} stay")
    final = [item for item, keep in zip(unique, stays, strict=True) if keep]
    if len(final) < params.min_images:
        for item in final:
            drop(item, DropReason.too_few_images, f"the label was left with {len(final):,} of at least {params.min_images:,}")
        final = []
    return final, dropped


def _records(entry: LabelEntry, rows: list[dict[str, Any]], kept: list[_Kept], params: CropStageParams) -> list[dict[str, Any]]:
    folder = label_folder(entry.label, entry.category)
    places = [f"{rows[item.row]['path']}/{rows[item.row]['filename']}" for item in kept]
    sides = splits(
        [f"{rows[item.row]['source']}/{place}" for item, place in zip(kept, places, strict=True)],
        params.split_seed,
        params.validation_share,
    )
    records = []
    for number, (item, place, side) in enumerate(zip(kept, places, sides, strict=True)):
        row, window = rows[item.row], item.crop.window
        records.append(
            {
                **{name: row[name] for name in row if name not in ("path", "filename", "files", "sha256", "place")},
                "path": f"/cytoimagenet/{folder}",
                "filename": image_name(folder, number),
                "crop": window.quadrant >= 0,
                "scaling": window.scaling,
                "x_min": window.x_min,
                "x_max": window.x_max,
                "y_min": window.y_min,
                "y_max": window.y_max,
                "split": side,
                "source_path": place,
                "height": item.crop.height,
                "width": item.crop.width,
                "dhash": item.crop.dhash,
                "pixel_sha256": item.crop.pixel_sha256,
            }
        )
    return records


def _write_shards(commit: Commit, spool: BinaryIO, kept: list[_Kept], records: list[dict[str, Any]]) -> int:
    """Write the crops in shards of about 128 MB. A label without crops gets a shard without rows, which shows the columns."""
    bounds = [0]
    size = 0
    for place, item in enumerate(kept):
        size += item.stop - item.start
        if size >= SHARD_BYTES:
            bounds.append(place + 1)
            size = 0
    if bounds[-1] != len(kept) or not kept:
        bounds.append(len(kept))
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        tables = (_table(spool, kept[a:b], records[a:b]) for a, b in _steps(start, stop))
        commit.write(part_name(number), parquet_bytes(tables, CROPS_SCHEMA, IMAGE_ROW_GROUP, ("label", "category", "source")))
    return len(bounds) - 1


def _steps(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for place in range(start, stop, IMAGE_ROW_GROUP):
        yield place, min(place + IMAGE_ROW_GROUP, stop)


def _table(spool: BinaryIO, kept: list[_Kept], records: list[dict[str, Any]]) -> pa.Table:
    images = []
    for item, record in zip(kept, records, strict=True):
        spool.seek(item.start)
        images.append({"bytes": spool.read(item.stop - item.start), "path": record["filename"]})
    columns = [pa.array([record[f.name] for record in records], f.type) for f in CROPS_SCHEMA if f.name != "image"]
    return pa.table([*columns, pa.array(images, IMAGE)], schema=CROPS_SCHEMA)
