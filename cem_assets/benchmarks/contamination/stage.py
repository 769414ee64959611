"""Stage `benchmarks/contamination`: does a release hold patches that show what test images of prepared benchmarks show?

There is one report for each release. `cem_assets.cem.releases.stage` makes releases without the patches that reports name; it
reads the reports through `cem_assets.cem.releases.contamination_reports`.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import PIL
import pyarrow as pa

from cem_assets.benchmarks.contamination.card import CARD, NUM_PICTURED, ReportFacts, contamination_card
from cem_assets.benchmarks.contamination.comparison import (
    MAX_DISTANCE,
    MIN_CORRELATION,
    MIN_DETAIL,
    Pair,
    contaminated_rows,
    contamination_pictures,
    find_contamination,
)
from cem_assets.benchmarks.contamination.fingerprints import Fingerprints, joined
from cem_assets.benchmarks.contamination.pictures import (
    Axes,
    FingerprintJob,
    PictureBatch,
    PictureIndex,
    ShardPatches,
    benchmark_batches,
    list_test_pictures,
    release_batches,
    release_patches,
)
from cem_assets.benchmarks.contamination.reports import read_fingerprints
from cem_assets.benchmarks.rows import known_benchmarks
from cem_assets.catalog.benchmarks import SegmentationBenchmark
from cem_assets.cem.releases.contamination_reports import PAIRS, PAIRS_SCHEMA, report_partition
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine, local_engine
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.pretraining.plan import RELEASE_ASSETS, find_release
from cem_assets.store.assets import BENCHMARK_DATA, CODE_VERSIONS, CONTAMINATION
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, Manifest, committed_partitions, current_manifest, require_manifest
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

_SEARCHED_TOGETHER = 4_000_000
"""Fingerprints of the release, and of the test images, that are in memory at once: about 170 MB each."""
_AXES_OF_MODE = {"orthoplane": (0, 1, 2)}
_FEW_VALUES = ("dataset", "shard", "benchmark", "part", "turn")
"""Columns of the pairs that are stored with a dictionary."""


def check_contamination(
    store: Store,
    dataset: str,
    version: str = "",
    run_id: str = "",
    progress: Progress = no_progress,
    engine: Engine | None = None,
) -> StageResult:
    """Compare the patches of a release with the test images of every prepared benchmark.

    The fingerprints are kept with the report. So a run that was killed continues where it was, and the next report takes over
    the fingerprints of shards and benchmarks that did not change.

    Args:
        dataset: "cem" or "cytoimagenet".
        version: Of the release; empty takes the newest.
        engine: Runs the fingerprinting; None chooses a pool of processes on this machine.

    Returns:
        The committed report; up to date if neither the release nor a benchmark changed.

    Raises:
        DataError: There is no such data set, or the store's settings of benchmarks are not valid.
        FileNotFoundError: There is no such release, or one of its shards is missing.
    """
    release = find_compared_release(store, dataset, version)
    benchmarks = prepared_benchmarks(store)
    inputs = report_inputs(store, dataset, release, benchmarks)
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    axes: dict[str, Axes] = dict(inputs.parameters["axes"])
    pictures = {m.inputs.partition: list_test_pictures(store, m, axes[m.inputs.partition]) for m in benchmarks}
    shards = release_patches(store, dataset, release)
    # Without test images the release need not be read.
    own = release_batches(shards) if any(pictures.values()) else []
    tests = {
        m.inputs.partition: benchmark_batches(m, axes[m.inputs.partition], pictures[m.inputs.partition]) for m in benchmarks
    }
    total = len(own) + sum(map(len, tests.values())) + len(benchmarks)
    every = [*own, *(batch for batches in tests.values() for batch in batches)]
    done = _fingerprint(store, commit, every, engine, progress, total)
    patch_index = PictureIndex(shards)
    rows: list[dict[str, Any]] = []
    found: dict[str, list[Pair]] = {}
    for number, manifest in enumerate(benchmarks, 1):
        name = manifest.inputs.partition
        test_index = PictureIndex(pictures[name])
        found[name] = _search(commit, own, patch_index, tests[name], test_index)
        rows += [_row(pair, name, patch_index, test_index) for pair in found[name]]
        if found[name]:
            commit.write(f"pairs-{name}.png", contamination_pictures(found[name], patch_index, test_index, NUM_PICTURED))
        progress(done + number, total)
    commit.write(PAIRS, parquet_bytes([pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)], PAIRS_SCHEMA, dictionary=_FEW_VALUES))
    facts = ReportFacts(
        dataset,
        release.inputs.partition,
        sum(shard.num for shard in shards),
        {name: sum(piece.num for piece in pieces) for name, pieces in pictures.items()},
        {name: len(contaminated_rows(pairs)) for name, pairs in found.items()},
        {name: len(pairs) for name, pairs in found.items()},
        dict(sorted(Counter({row["release_row"]: row["dataset"] for row in rows}.values()).items())),
    )
    commit.write(CARD, contamination_card(facts).encode())
    counts = {
        "patches": facts.num_patches,
        "test_images": sum(facts.num_images.values()),
        "pairs": len(rows),
        "contaminated_patches": sum(facts.num_by_dataset.values()),
        "benchmarks": len(benchmarks),
    }
    details = {
        "num_pairs": len(rows),
        "benchmarks": {manifest.inputs.partition: manifest.digest for manifest in benchmarks},
        "release": release.digest,
        "contaminated_by_benchmark": facts.num_by_benchmark,
        "contaminated_by_dataset": facts.num_by_dataset,
    }
    return stage.finish(counts, details)


def find_compared_release(store: Store, dataset: str, version: str) -> Manifest:
    """Find the release that a report is about; an empty version means the newest."""
    if dataset not in RELEASE_ASSETS:
        raise DataError(f"data set {dataset!r} is not known; expected one of {', '.join(RELEASE_ASSETS)}.")
    return find_release(store, dataset, version or "newest")


def prepared_benchmarks(store: Store) -> list[Manifest]:
    """List the manifests of all prepared benchmarks."""
    return [require_manifest(store, BENCHMARK_DATA, name) for name in committed_partitions(store, BENCHMARK_DATA)]


def report_inputs(store: Store, dataset: str, release: Manifest, benchmarks: Sequence[Manifest]) -> Inputs:
    """Say what a report on a release would be made from now."""
    rows = known_benchmarks(store)
    axes: dict[str, dict[str, list[int]]] = {}
    for manifest in benchmarks:
        name = manifest.inputs.partition
        row = rows.get(name)
        # If no table describes the benchmark any more, nobody knows how it was tested, so all axes are compared.
        mode = row.params.get("test_mode", "2d") if isinstance(row, SegmentationBenchmark) else "orthoplane"
        modes = {part: rule["mode"] for part, rule in manifest.details.get("rules", {}).items()} or {"": mode}
        axes[name] = {part: list(_AXES_OF_MODE.get(mode, (0,))) for part, mode in modes.items()}
    parameters = {"max_distance": MAX_DISTANCE, "min_correlation": MIN_CORRELATION, "min_detail": MIN_DETAIL, "axes": axes}
    upstream = {f"{BENCHMARK_DATA}/{manifest.inputs.partition}": manifest.digest for manifest in benchmarks}
    upstream[f"{RELEASE_ASSETS[dataset]}/{release.inputs.partition}"] = release.digest
    partition = report_partition(dataset, release.inputs.partition)
    pins = {"pillow": PIL.__version__}  # Pillow resamples the pictures before they are hashed
    return Inputs(CONTAMINATION, partition, CODE_VERSIONS[CONTAMINATION], parameters, upstream, pins)


def _fingerprint(
    store: Store, commit: Commit, batches: Sequence[PictureBatch], engine: Engine | None, progress: Progress, total: int
) -> int:
    """Make the tables that neither a killed run nor another report has left; return how many there are in all."""
    known = _known_tables(store)
    missing = []
    done = 0
    for batch in batches:
        if commit.has(batch.name):
            commit.adopt(batch.name)
        elif batch.name not in known or not _taken_over(store, commit, batch.name, *known[batch.name]):
            missing.append(batch)
            continue
        done += 1
        progress(done, total)
    chosen = engine or local_engine(None, len(missing), 1)
    for written in chosen.map(FingerprintJob(commit.content), missing):
        commit.add(written)
        done += 1
        progress(done, total)
    return done


def _known_tables(store: Store) -> dict[str, tuple[str, str]]:
    """List the tables of all current reports that were made with the same code and Pillow: folder and sha256 by name."""
    found: dict[str, tuple[str, str]] = {}
    for partition in committed_partitions(store, CONTAMINATION):
        manifest = current_manifest(store, CONTAMINATION, partition)
        if manifest is None or manifest.inputs.code_version != CODE_VERSIONS[CONTAMINATION]:
            continue
        if dict(manifest.inputs.pins) == {"pillow": PIL.__version__}:
            found |= {item.name: (manifest.folder, item.sha256) for item in manifest.objects if "/" in item.name}
    return found


def _taken_over(store: Store, commit: Commit, name: str, folder: str, sha256: str) -> bool:
    """Copy a table of another report; return False if it is missing or damaged."""
    try:
        data = store.read(f"{folder}/{name}")
    except FileNotFoundError:
        logger.warning("%s/%s is gone; its fingerprints are made again", folder, name)
        return False
    if hashlib.sha256(data).hexdigest() != sha256:
        logger.warning("%s/%s is damaged; its fingerprints are made again", folder, name)
        return False
    commit.write(name, data)
    return True


def _search(
    commit: Commit,
    own: Sequence[PictureBatch],
    patch_index: PictureIndex,
    tests: Sequence[PictureBatch],
    test_index: PictureIndex,
) -> list[Pair]:
    pairs: list[Pair] = []
    for test in _together(commit, tests):
        for release in _together(commit, own):
            pairs += find_contamination(release, patch_index, test, test_index)
    return sorted(pairs, key=lambda pair: (pair.test_image, pair.release_row))


def _together(commit: Commit, batches: Sequence[PictureBatch]) -> Iterator[Fingerprints]:
    """Read tables, about `_SEARCHED_TOGETHER` fingerprints at a time; the rows of shards get their numbers in the release."""
    held: list[Fingerprints] = []
    num = 0
    for place, batch in enumerate(batches, 1):
        prints = read_fingerprints(commit.content.store, f"{commit.content.folder}/{batch.name}")
        piece = batch.pieces[0]
        if isinstance(piece, ShardPatches):
            prints = replace(prints, item=prints.item + piece.first)
        held.append(prints)
        num += len(prints)
        if num >= _SEARCHED_TOGETHER or place == len(batches):
            yield joined(held)
            held, num = [], 0


def _row(pair: Pair, benchmark: str, patch_index: PictureIndex, test_index: PictureIndex) -> dict[str, Any]:
    shard, row = patch_index.locate(pair.release_row)
    images, place = test_index.locate(pair.test_image)
    sides = ("top", "left", "height", "width")
    return {
        **shard.facts(row),
        "shard": shard.key,
        "row": row,
        "release_row": pair.release_row,
        **{f"patch_{side}": value for side, value in zip(sides, pair.release_window, strict=True)},
        "benchmark": benchmark,
        **images.facts(place),
        "test_image": pair.test_image,
        **dict(zip(sides, pair.window, strict=True)),
        "turn": pair.turn,
        "distance": pair.distance,
        "correlation": round(pair.correlation, 6),
        "is_exact": pair.is_exact,
    }
