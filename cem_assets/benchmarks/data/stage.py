"""Stage `benchmarks/data`: the published files of a benchmark, or a user's own folder, become items in the store."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cem_assets.benchmarks.data.files import (
    FILES,
    BenchmarkFiles,
    benchmark_files,
    digests_bytes,
    file_digests,
    inbox_upstream,
)
from cem_assets.benchmarks.data.items import ItemFiles, NamedStep, find_items, load_item, steps_for
from cem_assets.benchmarks.data.preparation import finished, prepare
from cem_assets.benchmarks.data.reports import nothing_usable, write_rejections
from cem_assets.benchmarks.data.segmentation_sets import ItemWriter, open_benchmark, prepared_items
from cem_assets.benchmarks.data.steps import Item
from cem_assets.benchmarks.data.transfer_stage import prepare_transfer
from cem_assets.catalog.benchmarks import AnyBenchmark, SegmentationBenchmark, TransferBenchmark
from cem_assets.errors import DataError
from cem_assets.execution.stage import Beginning, Progress, StageResult, begin, no_progress
from cem_assets.inbox.datasets import Rejection
from cem_assets.store.assets import BENCHMARK_DATA, CODE_VERSIONS
from cem_assets.store.manifests import Inputs
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

UNION_SPLITS = ("train", "test")
"""The splits that a union takes from its parts. It neither trains nor tests on their validation items."""


def prepare_benchmark(
    store: Store, row: AnyBenchmark, folder: Path | None = None, run_id: str = "", progress: Progress = no_progress
) -> StageResult:
    """Prepare a benchmark once.

    The files come from `folder`, else from `benchmarks/inbox/<name>/` of the store, else from the benchmarks folder of the
    environment, else from a download that is checked by its sha256. Files that cannot be used are listed with the reason, and
    all others are prepared.

    Args:
        row: A row of `cem_assets.benchmarks.rows.known_benchmarks`.
        folder: A local folder with the benchmark's files.

    Returns:
        The committed partition of `benchmarks/data`. Its details hold the rejections, and the rules of a union's parts.

    Raises:
        FileNotFoundError: The files were found nowhere, or a part of a union was not prepared.
        DataError: Nothing is left for training or for testing; the error lists the reasons.
    """
    if isinstance(row, TransferBenchmark):
        return prepare_transfer(store, row, folder, run_id, progress)
    if row.union:
        if folder is not None:
            names = ", ".join(part.benchmark for part in row.union)
            raise DataError(f"benchmark {row.name!r} is put together from {names} in the store. Leave the folder empty.")
        return _prepare_union(store, row, run_id, progress)
    started = time.monotonic()
    with benchmark_files(store, row, folder) as files, scratch_folder("benchmark-items") as scratch:
        paths, rejections = files.listed()
        items, refused = find_items(row, paths)
        rejections += refused
        if not items:
            raise nothing_usable(row, rejections, f"none of its {len(paths)} files fit the layout:\n{_layout(row)}")
        used = sorted({place.path for item in items for place in (item.image, *item.maps)})
        digests = file_digests(files, used)
        stage = begin(store, _inputs(row, inbox_upstream(row.name, digests)), run_id, started)
        if stage.up_to_date:
            return stage.up_to_date
        writer = ItemWriter(stage.commit, len(row.classes))
        for number, item in enumerate(items, 1):
            try:
                _add(writer, _prepared(files, item, steps_for(row, item.split, ""), scratch, len(row.classes)))
            except DataError as error:
                rejections.append(Rejection(item.image.path, str(error)))
            progress(number, len(items))
        stage.commit.write(FILES, digests_bytes(digests))
    return _finish(stage, row, writer, rejections, len(used))


def _prepared(files: BenchmarkFiles, item: ItemFiles, steps: list[NamedStep], scratch: Path, num_classes: int) -> list[Item]:
    loaded, left = load_item(files, item, steps, scratch)
    return [finished(one, num_classes) for one in prepare([loaded], left)]


def _add(writer: ItemWriter, items: list[Item]) -> None:
    """Write all items that were made of one image or volume, or none of them."""
    for item in items:
        writer.check(item)
    for item in items:
        writer.add(item)


def _prepare_union(store: Store, row: SegmentationBenchmark, run_id: str, progress: Progress) -> StageResult:
    parts = {part.benchmark: open_benchmark(store, part.benchmark) for part in row.union}
    upstream = {f"{BENCHMARK_DATA}/{name}": part.manifest.digest for name, part in parts.items()}
    stage = begin(store, _inputs(row, upstream), run_id)
    if stage.up_to_date:
        return stage.up_to_date
    writer = ItemWriter(stage.commit, len(row.classes))
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
        except DataError as error:
            rejections.append(Rejection(f"{item.part}/{item.name}", str(error)))
        progress(number, total)
    return _finish(stage, row, writer, rejections, 0)


def _inputs(row: SegmentationBenchmark, upstream: dict[str, str]) -> Inputs:
    facts = asdict(row)
    parameters = json.loads(json.dumps({key: facts[key] for key in ("classes", "layout", "union", "steps")}))
    return Inputs(BENCHMARK_DATA, row.name, CODE_VERSIONS[BENCHMARK_DATA], parameters, upstream)


def _finish(
    stage: Beginning, row: SegmentationBenchmark, writer: ItemWriter, rejections: Sequence[Rejection], num_files: int
) -> StageResult:
    counts = writer.finish(row.name, row.classes)
    if not counts["train"] or not counts["test"]:
        found = f"there are {counts['train']} items to train and {counts['test']} to test on"
        raise nothing_usable(row, rejections, f"{found}; expected some of both")
    details: dict[str, Any] = {
        "task": row.task,
        "title": row.title,
        "licence": row.licence,
        "citation": row.citation,
        "classes": list(row.classes),
        "rules": {part.benchmark: dict(part.rule) for part in row.union},
        "rejections": write_rejections(stage.commit, rejections),
    }
    return stage.finish({**counts, "files": num_files, "rejected": len(rejections)}, details)


def _layout(row: SegmentationBenchmark) -> str:
    return "\n".join(f"  - {rule.split}: {', '.join(rule.images)} with {', '.join(rule.masks)}" for rule in row.layout)
