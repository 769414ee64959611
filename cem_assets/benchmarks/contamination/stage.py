"""Stage `benchmarks/contamination`: does a release hold patches that show what test images of prepared benchmarks show?

One report for each release; making `cem/releases` without the patches is `cem_assets.cem.releases.stage`, which reads
reports by `cem_assets.storage.contamination_reports`. Where pictures come from is
`cem_assets.benchmarks.contamination.pictures`.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import PIL
import pyarrow as pa

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
    Batch,
    PictureIndex,
    PrintJob,
    ShardPatches,
    benchmark_batches,
    list_test_pictures,
    release_batches,
    release_patches,
)
from cem_assets.benchmarks.contamination.reports import read_fingerprints
from cem_assets.benchmarks.data.rows import known_benchmarks
from cem_assets.catalog.benchmarks import SegmentationBenchmark
from cem_assets.cem.releases.contamination_reports import PAIRS, PAIRS_SCHEMA, report_partition
from cem_assets.errors import DataError
from cem_assets.execution.checks import Outcome
from cem_assets.execution.local import Engine, local_engine
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.pretraining.training.plan import RELEASE_ASSETS, find_release
from cem_assets.store.assets import BENCHMARK_DATA, CODE_VERSIONS, CONTAMINATION, RELEASES
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, Manifest, committed_partitions, current_manifest, require_manifest
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

CARD = "README.md"
_SEARCHED_TOGETHER = 4_000_000
"""Fingerprints of either side held at once: about 170 MB."""
_PICTURED = 20
_AXES_OF_MODE = {"orthoplane": (0, 1, 2)}


def check_contamination(
    store: Store,
    dataset: str,
    version: str = "",
    run_id: str = "",
    progress: Progress = no_progress,
    engine: Engine | None = None,
) -> StageResult:
    """Compare the patches of a release with the test images of every prepared benchmark.

    Fingerprints are kept with the report, so a run that was killed goes on, and the next report takes over those of shards
    and benchmarks that stayed as they were.

    Args:
        dataset: "cem" or "cytoimagenet".
        version: Of the release; empty takes the newest.
        engine: Shares the fingerprinting; None chooses a pool.

    Returns:
        The committed report; up to date where neither the release nor a benchmark changed.

    Raises:
        DataError: There is no such data set; the store's settings of benchmarks are broken.
        FileNotFoundError: There is no such release, or a shard of it is gone.
    """
    started = time.monotonic()
    release = _release(store, dataset, version)
    benchmarks = _prepared(store)
    inputs = _inputs(store, dataset, release, benchmarks)
    commit = Commit(store, inputs, run_id)
    if commit.up_to_date:
        return StageResult(commit.up_to_date, False, time.monotonic() - started)
    axes: dict[str, Axes] = dict(inputs.parameters["axes"])
    pictures = {m.inputs.partition: list_test_pictures(store, m, axes[m.inputs.partition]) for m in benchmarks}
    shards = release_patches(store, dataset, release)
    # Nothing to compare with: the release need not be read.
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
            commit.write(f"pairs-{name}.png", contamination_pictures(found[name], patch_index, test_index, _PICTURED))
        progress(done + number, total)
    commit.write(PAIRS, parquet_bytes([pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)], PAIRS_SCHEMA, dictionary=_FEW_VALUES))
    facts = _Facts(
        dataset,
        release.inputs.partition,
        sum(shard.num for shard in shards),
        {name: sum(piece.num for piece in pieces) for name, pieces in pictures.items()},
        {name: len(contaminated_rows(pairs)) for name, pairs in found.items()},
        {name: len(pairs) for name, pairs in found.items()},
        dict(sorted(Counter({row["release_row"]: row["dataset"] for row in rows}.values()).items())),
    )
    commit.write(CARD, _card(facts).encode())
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
    return StageResult(commit.finish(counts, details), True, time.monotonic() - started)


_FEW_VALUES = ("dataset", "shard", "benchmark", "part", "turn")


def _release(store: Store, dataset: str, version: str) -> Manifest:
    if dataset not in RELEASE_ASSETS:
        raise DataError(f"data set {dataset!r} is not known; expected one of {', '.join(RELEASE_ASSETS)}.")
    return find_release(store, dataset, version or "newest")


def _prepared(store: Store) -> list[Manifest]:
    return [require_manifest(store, BENCHMARK_DATA, name) for name in committed_partitions(store, BENCHMARK_DATA)]


def _inputs(store: Store, dataset: str, release: Manifest, benchmarks: Sequence[Manifest]) -> Inputs:
    """Say what a report on a release is made from, as things are now."""
    rows = known_benchmarks(store)
    axes: dict[str, dict[str, list[int]]] = {}
    for manifest in benchmarks:
        name = manifest.inputs.partition
        row = rows.get(name)
        # Of a benchmark that no table describes any more nobody knows how it was tested.
        mode = row.params.get("test_mode", "2d") if isinstance(row, SegmentationBenchmark) else "orthoplane"
        modes = {part: rule["mode"] for part, rule in manifest.details.get("rules", {}).items()} or {"": mode}
        axes[name] = {part: list(_AXES_OF_MODE.get(mode, (0,))) for part, mode in modes.items()}
    parameters = {"max_distance": MAX_DISTANCE, "min_correlation": MIN_CORRELATION, "min_detail": MIN_DETAIL, "axes": axes}
    upstream = {f"{BENCHMARK_DATA}/{manifest.inputs.partition}": manifest.digest for manifest in benchmarks}
    upstream[f"{RELEASE_ASSETS[dataset]}/{release.inputs.partition}"] = release.digest
    partition = report_partition(dataset, release.inputs.partition)
    pins = {"pillow": PIL.__version__}  # pictures are resampled before they are hashed
    return Inputs(CONTAMINATION, partition, CODE_VERSIONS[CONTAMINATION], parameters, upstream, pins)


def _fingerprint(
    store: Store, commit: Commit, batches: Sequence[Batch], engine: Engine | None, progress: Progress, total: int
) -> int:
    """Make the tables that neither a killed run nor another report left; return how many there are in all."""
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
    for described in chosen.map(PrintJob(commit.content), missing):
        commit.add(described)
        done += 1
        progress(done, total)
    return done


def _known_tables(store: Store) -> dict[str, tuple[str, str]]:
    """List the tables of all current reports made alike: folder and sha256 by name."""
    found: dict[str, tuple[str, str]] = {}
    for partition in committed_partitions(store, CONTAMINATION):
        manifest = current_manifest(store, CONTAMINATION, partition)
        if manifest is None or manifest.inputs.code_version != CODE_VERSIONS[CONTAMINATION]:
            continue
        if dict(manifest.inputs.pins) == {"pillow": PIL.__version__}:
            found |= {item.name: (manifest.folder, item.sha256) for item in manifest.objects if "/" in item.name}
    return found


def _taken_over(store: Store, commit: Commit, name: str, folder: str, sha256: str) -> bool:
    """Copy a table of another report; False where it is gone or damaged."""
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
    commit: Commit, own: Sequence[Batch], patch_index: PictureIndex, tests: Sequence[Batch], test_index: PictureIndex
) -> list[Pair]:
    pairs: list[Pair] = []
    for test in _together(commit, tests):
        for release in _together(commit, own):
            pairs += find_contamination(release, patch_index, test, test_index)
    return sorted(pairs, key=lambda pair: (pair.test_image, pair.release_row))


def _together(commit: Commit, batches: Sequence[Batch]) -> Iterator[Fingerprints]:
    """Read tables, as many at a time as memory is meant for; rows of shards are numbered through the release."""
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


@dataclass(frozen=True)
class _Facts:
    """Numbers of a report; images, patches and pairs by benchmark, and patches by data set (or label) of the release."""

    dataset: str
    version: str
    num_patches: int
    num_images: dict[str, int]
    num_by_benchmark: dict[str, int]
    num_pairs: dict[str, int]
    num_by_dataset: dict[str, int]


def _card(facts: _Facts) -> str:
    num = sum(facts.num_by_dataset.values())
    compared = f"{facts.num_patches:,} patches were compared with {sum(facts.num_images.values()):,} test images of "
    lines = [f"# Test images in {facts.dataset} {facts.version}", ""]
    lines += [f"{compared}{len(facts.num_images)} prepared benchmark(s).", ""]
    if num:
        lines += [f"**{num:,} patch(es) show what test images show.** Scores of networks trained on them say too much.", ""]
        lines += [_remedy(facts.dataset, facts.version), ""]
    else:
        lines += ["No patch shows what a test image shows.", ""]
    lines += ["| benchmark | test images | pairs | patches |", "|---|---:|---:|---:|"]
    for name, images in facts.num_images.items():
        lines.append(f"| {name} | {images:,} | {facts.num_pairs[name]:,} | {facts.num_by_benchmark[name]:,} |")
    if num:
        what = "label" if facts.dataset == "cytoimagenet" else "dataset"
        lines += ["", f"| {what} | patches |", "|---|---:|"]
        lines += [f"| {_cell(name)} | {count:,} |" for name, count in facts.num_by_dataset.items()]
        lines += ["", f"All pairs are in `{PAIRS}`; `pairs-<benchmark>.png` shows the first {_PICTURED} of each benchmark."]
    lines += [
        "",
        f"Found are exact and near copies (dHash within {MAX_DISTANCE} of 64 bits, correlation of at least {MIN_CORRELATION}, "
        f"that of fine structure {MIN_DETAIL}), also flipped, turned by quarters, encoded anew, or sharing half a patch with a "
        "test image. Not looked for: copies that are rescaled and cropped, turned by other angles, inverted, or shifted by "
        "something else than half patches.",
        "",
    ]
    return "\n".join(lines)


def _remedy(dataset: str, version: str) -> str:
    if dataset == "cem":
        return (
            f"Materialize {RELEASES} with exclude_contaminated = true, then {CONTAMINATION} of the release it makes; train on "
            f"that one, not on {version}."
        )
    return (
        'Find the sources of these images, give those that are test sets role = "test", and materialize labels, crops and '
        f"the release again; do not train on {version}."
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def is_uncontaminated(store: Store, dataset: str, version: str = "") -> Outcome:
    """The release was compared with the test images of all prepared benchmarks, as they are, and holds none of them.

    Args:
        dataset: "cem" or "cytoimagenet".
        version: Of the release; empty takes the newest.

    Raises:
        DataError: There is no such data set.
        FileNotFoundError: There is no such release.
    """
    release = _release(store, dataset, version)
    benchmarks = _prepared(store)
    told = f"{dataset} {release.inputs.partition}"
    facts: dict[str, Any] = {"release": release.inputs.partition, "benchmarks": len(benchmarks)}
    if not benchmarks:
        return Outcome(True, f"no benchmark is prepared, so there are no test images that {told} could hold", facts)
    partition = report_partition(dataset, release.inputs.partition)
    report = current_manifest(store, CONTAMINATION, partition)
    names = [manifest.inputs.partition for manifest in benchmarks]
    if report is None or report.inputs.content != _inputs(store, dataset, release, benchmarks).content:
        state = "was not compared" if report is None else "was compared with other test images than there are now, not"
        remedy = f"Materialize {CONTAMINATION}, partition {partition!r}."
        return Outcome(False, f"{told} {state} with those of {', '.join(names)}. {remedy}", facts)
    num_patches, num_images = report.counts["patches"], report.counts["test_images"]
    facts |= {"patches": num_patches, "test_images": num_images, "pairs": report.details["num_pairs"]}
    if not report.details["num_pairs"]:
        return Outcome(
            True, f"none of {num_patches:,} patches of {told} shows what one of {num_images:,} test images shows", facts
        )
    hits = ", ".join(f"{name} ({count:,})" for name, count in report.details["contaminated_by_benchmark"].items() if count)
    num = report.counts["contaminated_patches"]
    remedy = _remedy(dataset, release.inputs.partition)
    return Outcome(False, f"{num:,} of {num_patches:,} patches of {told} show test images of {hits}. {remedy}", facts)
