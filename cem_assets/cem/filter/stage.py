"""Stages `cem/patch_scores` and `cem/filtered_patches`: score every exemplar, and keep the informative ones."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cem.classifier.params import ScoreParams, probability, to_hash_side
from cem_assets.cem.classifier.stored import WEIGHTS, read_classifier, require_classifier
from cem_assets.cem.filter.params import FilterParams, is_informative, within_limit
from cem_assets.cem.filter.scoring_job import ScoreJob, scoring_environment
from cem_assets.cem.patches.pixels import DatasetPixels, PixelJob, pixels_behind
from cem_assets.cem.patches.tables import DROPPED_SCHEMA, FILTERED_SCHEMA, PATCHES_PER_SHARD, SCORES_SCHEMA
from cem_assets.cem.pixel_sums import PixelSums
from cem_assets.execution.local import Engine, LocalEngine, ahead, default_num_workers, local_engine
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.store.assets import CODE_VERSIONS, DEDUPLICATED, FILTERED, SCORES
from cem_assets.store.commits import ContentFolder, installed_versions
from cem_assets.store.images import decode_image, image_column
from cem_assets.store.manifests import Inputs, Manifest, ManifestObject, require_manifest
from cem_assets.store.parquet import IMAGE_ROW_GROUP, parquet_bytes, parquet_file, part_name, read_parts, rechunk
from cem_assets.store.store import Store

_SCORED_PER_PART = 1 << 14
"""The most patches that have to be scored again after a run was killed, which takes a few minutes on two cores."""
_READ_BATCHES = 8
"""Number of the network's batches that are read from the volumes together."""
_BATCH_ROWS = 1 << 14


def score_patches(
    store: Store,
    dataset: str,
    params: ScoreParams,
    run_id: str = "",
    engine: Engine | None = None,
    progress: Progress = no_progress,
) -> StageResult:
    """Give every exemplar of a dataset its probability of being informative.

    Args:
        engine: Distributes the reading of pixels, and, if it spans machines, also the network; None chooses a pool.

    Returns:
        The committed partition of `cem/patch_scores`.

    Raises:
        FileNotFoundError: `cem/deduplicated_patches` was not materialized, or there is no classifier; the
            error says how to get one.
    """
    upstream = require_manifest(store, DEDUPLICATED, dataset)
    classifier = require_classifier(store)
    inputs = Inputs(
        SCORES,
        dataset,
        CODE_VERSIONS[SCORES],
        # The device itself is pinned, not the parameter: outputs are only exact for one device, number type and batch size.
        params.model_dump(mode="json", exclude={"device"}),
        {f"{DEDUPLICATED}/{dataset}": upstream.digest, classifier.inputs.asset: classifier.digest},
        pins=scoring_environment(params, engine),
    )
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    from cem_assets.cem.classifier.network import build_classifier, score_batches

    commit = stage.commit
    pixels = pixels_behind(store, upstream)
    model = build_classifier(read_classifier(store, classifier))
    num_rows = upstream.counts["exemplars"]
    size = params.batch_size * _READ_BATCHES
    reading = engine or local_engine(None, num_rows // size)
    done = 0
    for number, part in enumerate(rechunk(read_parts(store, upstream, None, _BATCH_ROWS), _SCORED_PER_PART)):
        name = part_name(number)
        if commit.has(name):
            commit.adopt(name)
            done += len(part)
            continue
        batches = [part.slice(start, size) for start in range(0, len(part), size)]
        if reading.spans_machines:  # the network runs where the pixels are read
            job = ScoreJob(store, pixels, f"{classifier.folder}/{WEIGHTS}", params, inputs.pins)
            scored_batches = reading.map(job, batches)
        else:
            images = ahead(to_hash_side(patches) for patches in reading.map(PixelJob(pixels), batches))
            scored_batches = score_batches(model, images, params)
        logits = []
        for values in scored_batches:
            logits.append(values)
            done += len(values)
            progress(done, num_rows)
        scored = np.concatenate(logits) if logits else np.empty(0, np.float32)
        table = part.replace_schema_metadata(None).append_column("logit", pa.array(scored))
        table = table.append_column("informative", pa.array(probability(scored)))
        commit.write(name, parquet_bytes([table], SCORES_SCHEMA))
    return stage.finish(
        counts={"patches": num_rows},
        details={
            "description": upstream.details["description"],
            "lineage": upstream.details["lineage"],
            "classifier": dict(classifier.details.get("provenance", {})),
            "volumes_digest": upstream.details["volumes_digest"],
        },
        versions=installed_versions("torch", "torchvision"),
    )


@dataclass(frozen=True)
class _Shard:
    described: ManifestObject
    sums: PixelSums


@dataclass(frozen=True)
class _ShardJob:
    """Writes one file of filtered patches with their pixels. It can be sent to other processes and machines."""

    pixels: DatasetPixels
    content: ContentFolder

    def __call__(self, item: tuple[str, pa.Table, bool]) -> _Shard:
        name, table, is_written = item
        sums = PixelSums()
        if is_written:
            key = f"{self.content.folder}/{name}"
            with self.content.store.open(key) as handle:
                for batch in parquet_file(handle).iter_batches(IMAGE_ROW_GROUP, columns=["image"]):
                    for cell in batch.column("image").to_pylist():
                        sums += PixelSums.of(decode_image(cell["bytes"]))
            size = self.content.store.size(key)
            assert size is not None  # it was opened just now
            return _Shard(ManifestObject(name, size, self.content.store.sha256(key)), sums)

        def groups() -> Iterator[pa.Table]:
            nonlocal sums
            for start in range(0, len(table), IMAGE_ROW_GROUP):
                group = table.slice(start, IMAGE_ROW_GROUP)
                patches = self.pixels.patches(group)
                for patch in patches:
                    sums += PixelSums.of(patch)
                images = image_column(group["name"].to_pylist(), patches)
                yield group.replace_schema_metadata(None).append_column("image", images)

        data = parquet_bytes(groups(), FILTERED_SCHEMA, IMAGE_ROW_GROUP)
        return _Shard(self.content.write(name, data), sums)


def keep_informative(
    store: Store,
    dataset: str,
    params: FilterParams,
    run_id: str = "",
    engine: Engine | None = None,
    progress: Progress = no_progress,
) -> StageResult:
    """Write the informative patches of a dataset, with their pixels, as Parquet shards.

    Args:
        engine: Distributes the shards over workers; None chooses a pool.

    Returns:
        The committed partition of `cem/filtered_patches`.

    Raises:
        FileNotFoundError: `cem/patch_scores` was not materialized.
    """
    upstream = require_manifest(store, SCORES, dataset)
    inputs = Inputs(FILTERED, dataset, CODE_VERSIONS[FILTERED], params.model_dump(), {f"{SCORES}/{dataset}": upstream.digest})
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    pixels = pixels_behind(store, upstream)
    num_scored = upstream.counts["patches"]
    chosen_rows = _chosen_rows(store, upstream, params)
    num_informative = sum(int(keep.sum()) for _, keep in _judged(store, upstream, params))
    num_kept = num_informative if chosen_rows is None else int(chosen_rows.sum())
    kept = (table.filter(pa.array(keep)) for table, keep, _ in _divided(store, upstream, params, chosen_rows))
    shards = -(-num_kept // PATCHES_PER_SHARD)
    items = (
        (part_name(number), part, commit.has(part_name(number))) for number, part in enumerate(rechunk(kept, PATCHES_PER_SHARD))
    )
    chosen = engine or LocalEngine(min(default_num_workers(), max(shards, 1)))
    sums = PixelSums()
    for number, shard in enumerate(chosen.map(_ShardJob(pixels, commit.content), items), 1):
        commit.add(shard.described)
        sums += shard.sums
        progress(number, shards)
    if not num_kept:  # an empty table still tells readers its columns
        commit.write(part_name(0), parquet_bytes([], FILTERED_SCHEMA))
    dropped = (
        pa.table(
            [
                table["name"].combine_chunks().filter(pa.array(~keep)),
                table["informative"].combine_chunks().filter(pa.array(~keep)),
                pa.array(reasons, pa.string()),
            ],
            schema=DROPPED_SCHEMA,
        )
        for table, keep, reasons in _divided(store, upstream, params, chosen_rows)
    )
    commit.write("_dropped/part-00000.parquet", parquet_bytes(dropped, DROPPED_SCHEMA))
    counts = {"patches": num_kept, "dropped": num_scored - num_kept, "shards": shards}
    if params.max_patches is not None:  # without a limit, the counts and the digest stay those of earlier versions
        counts["over_max_patches"] = num_informative - num_kept
    return stage.finish(
        counts=counts,
        details={
            "description": upstream.details["description"],
            "lineage": {**upstream.details["lineage"], "filtered_patches": num_kept},
            "volumes_digest": upstream.details["volumes_digest"],
            "classifier": upstream.details["classifier"],
            "pixels": asdict(sums),
        },
    )


def _judged(store: Store, scores: Manifest, params: FilterParams) -> Iterator[tuple[pa.Table, NDArray[np.bool_]]]:
    """Yield scored rows, and which of them are informative."""
    for table in read_parts(store, scores, None, _BATCH_ROWS):
        yield table, is_informative(table["informative"].to_numpy(), params)


def _chosen_rows(store: Store, scores: Manifest, params: FilterParams) -> NDArray[np.bool_] | None:
    """Return for each informative row, in order, whether it is within the limit; None if there is no limit."""
    if params.max_patches is None:
        return None
    names = (
        name
        for table, keep in _judged(store, scores, params)
        for name in table["name"].combine_chunks().filter(pa.array(keep)).to_pylist()
    )
    return within_limit(names, params)


def _divided(
    store: Store, scores: Manifest, params: FilterParams, chosen_rows: NDArray[np.bool_] | None
) -> Iterator[tuple[pa.Table, NDArray[np.bool_], list[str]]]:
    """Yield scored rows, which of them are kept, and the reason for each of the others."""
    start = 0
    for table, informative in _judged(store, scores, params):
        keep = informative
        if chosen_rows is not None:
            stop = start + int(informative.sum())
            keep = informative.copy()
            keep[informative] = chosen_rows[start:stop]
            start = stop
        yield table, keep, ["over max_patches" if is_over else "uninformative" for is_over in informative[~keep]]
