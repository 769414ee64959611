"""Stage `benchmarks/data`: the published files of a benchmark, or a user's own folder, become items in the store."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cem_assets.benchmarks.data.files import BenchmarkFiles, benchmark_files
from cem_assets.benchmarks.data.items import ItemFiles, NamedStep, find_items, load_item, steps_for
from cem_assets.benchmarks.data.preparation import finished, prepare
from cem_assets.benchmarks.data.segmentation_sets import ItemWriter, open_benchmark, prepared_items
from cem_assets.benchmarks.data.steps import Item
from cem_assets.benchmarks.data.transfer_stage import prepare_transfer
from cem_assets.catalog.benchmarks import AnyBenchmark, SegmentationBenchmark, TransferBenchmark
from cem_assets.cem.patches.tables import REJECTED_SCHEMA
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.inbox.datasets import Rejection
from cem_assets.store.assets import BENCHMARK_DATA, CODE_VERSIONS
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, canonical_json
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

FILES = "files.json"
UNION_SPLITS = ("train", "test")
"""Splits a union takes from its parts; what they keep for validation is neither trained nor tested on."""
_TOLD = 100


def prepare_benchmark(
    store: Store, row: AnyBenchmark, folder: Path | None = None, run_id: str = "", progress: Progress = no_progress
) -> StageResult:
    """Prepare a benchmark once.

    The files come from `folder`, else `benchmarks/inbox/<name>/` of the store, else the benchmarks folder of the
    environment, else a download with checksum. What cannot be used is told, and the rest goes on.

    Args:
        row: A row of `benchmark_catalogue.known_benchmarks`.
        folder: A local folder with its files.

    Returns:
        The committed partition of `benchmarks/data`; its details hold rejections and the rules of a union's parts.

    Raises:
        FileNotFoundError: Its files are nowhere, or a part of a union was not prepared.
        DataError: Nothing could be used for training or for testing; all reasons are told.
    """
    if isinstance(row, TransferBenchmark):
        return prepare_transfer(store, row, folder, run_id, progress)
    if row.union:
        if folder is not None:
            names = ", ".join(part.benchmark for part in row.union)
            raise DataError(f"benchmark {row.name!r} is put together from {names} in the store; it takes no folder.")
        return _prepare_union(store, row, run_id, progress)
    started = time.monotonic()
    with benchmark_files(store, row, folder) as files, scratch_folder("benchmark-items") as scratch:
        paths, rejections = files.listed()
        items, refused = find_items(row, paths)
        rejections += refused
        if not items:
            raise _nothing(row, rejections, f"none of its {len(paths)} files fit the layout:\n{_layout(row)}")
        used = sorted({place.path for item in items for place in (item.image, *item.maps)})
        listing = [[path, files.sha256(path)] for path in used]
        upstream = {f"benchmarks/inbox/{row.name}": hashlib.sha256(canonical_json(listing)).hexdigest()}
        commit = Commit(store, _inputs(row, upstream), run_id)
        if commit.up_to_date:
            return StageResult(commit.up_to_date, False, time.monotonic() - started)
        writer = ItemWriter(commit, len(row.classes))
        for number, item in enumerate(items, 1):
            try:
                _add(writer, _prepared(files, item, steps_for(row, item.split, ""), scratch, len(row.classes)))
            except ValueError as error:
                rejections.append(Rejection(item.image.path, str(error)))
            progress(number, len(items))
        commit.write(FILES, json.dumps([{"path": path, "sha256": digest} for path, digest in listing], indent=1).encode())
    return _finish(commit, row, writer, rejections, len(used), started)


def _prepared(files: BenchmarkFiles, item: ItemFiles, steps: list[NamedStep], scratch: Path, num_classes: int) -> list[Item]:
    loaded, left = load_item(files, item, steps, scratch)
    return [finished(one, num_classes) for one in prepare([loaded], left)]


def _add(writer: ItemWriter, items: list[Item]) -> None:
    """Write what one image or volume became, all of it or nothing."""
    for item in items:
        writer.check(item)
    for item in items:
        writer.add(item)


def _prepare_union(store: Store, row: SegmentationBenchmark, run_id: str, progress: Progress) -> StageResult:
    started = time.monotonic()
    parts = {part.benchmark: open_benchmark(store, part.benchmark) for part in row.union}
    upstream = {f"{BENCHMARK_DATA}/{name}": part.manifest.digest for name, part in parts.items()}
    commit = Commit(store, _inputs(row, upstream), run_id)
    if commit.up_to_date:
        return StageResult(commit.up_to_date, False, time.monotonic() - started)
    writer = ItemWriter(commit, len(row.classes))
    rejections: list[Rejection] = []
    total = sum(len(part.items(split)) for part in parts.values() for split in UNION_SPLITS)

    def items() -> Iterator[Item]:
        for name, part in parts.items():
            for split in UNION_SPLITS:
                yield from (replace(item, part=name) for item in prepared_items(part, split))

    for number, item in enumerate(items(), 1):
        steps = steps_for(row, item.split, item.part)
        try:
            _add(writer, [finished(one, len(row.classes)) for one in prepare([item], steps)])
        except ValueError as error:
            rejections.append(Rejection(f"{item.part}/{item.name}", str(error)))
        progress(number, total)
    return _finish(commit, row, writer, rejections, 0, started)


def _inputs(row: SegmentationBenchmark, upstream: dict[str, str]) -> Inputs:
    facts = asdict(row)
    parameters = json.loads(json.dumps({key: facts[key] for key in ("classes", "layout", "union", "steps")}))
    return Inputs(BENCHMARK_DATA, row.name, CODE_VERSIONS[BENCHMARK_DATA], parameters, upstream)


def _finish(
    commit: Commit, row: SegmentationBenchmark, writer: ItemWriter, rejections: list[Rejection], num_files: int, started: float
) -> StageResult:
    counts = writer.finish(row.name, row.classes)
    if not counts["train"] or not counts["test"]:
        found = f"there are {counts['train']} items to train and {counts['test']} to test on"
        raise _nothing(row, rejections, f"{found}; expected some of both")
    rows = [{"what": item.what, "reason": item.reason, "num_patches": 0} for item in rejections]
    table = pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)
    commit.write("_rejected/part-00000.parquet", parquet_bytes([table], REJECTED_SCHEMA))
    details: dict[str, Any] = {
        "task": row.task,
        "title": row.title,
        "licence": row.licence,
        "citation": row.citation,
        "classes": list(row.classes),
        "rules": {part.benchmark: dict(part.rule) for part in row.union},
        "rejections": [{"what": item.what, "reason": item.reason} for item in rejections[:_TOLD]],
    }
    manifest = commit.finish({**counts, "files": num_files, "rejected": len(rejections)}, details)
    return StageResult(manifest, True, time.monotonic() - started)


def _layout(row: SegmentationBenchmark) -> str:
    return "\n".join(f"  - {rule.split}: {', '.join(rule.images)} with {', '.join(rule.masks)}" for rule in row.layout)


def _nothing(row: SegmentationBenchmark, rejections: list[Rejection], what: str) -> ValueError:
    reasons = "\n".join(f"  - {item.what}: {item.reason}" for item in rejections[:20])
    return ValueError(f"benchmark {row.name!r} cannot be prepared: {what}.\n{reasons}".rstrip())
