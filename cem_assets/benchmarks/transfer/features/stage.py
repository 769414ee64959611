"""Stage `benchmarks/features`: features of a transfer benchmark's images under weights, kept so that scoring takes seconds.

`benchmarks/features/<benchmark>/<weights>/<digest>/` holds Parquet files with the columns `name` and `features`, in the
order of the benchmark's rows.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.benchmarks.data.transfer_sets import PreparedTransfer
from cem_assets.benchmarks.scores.inputs import ScoredWeights
from cem_assets.benchmarks.scores.stored import parameters_digest
from cem_assets.benchmarks.transfer.features.extraction import FeatureParams, extract_features
from cem_assets.benchmarks.transfer.features.params import FeatureSettings
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.pretraining.weights.stored import load_encoder_weights
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_FEATURES, CODE_VERSIONS
from cem_assets.store.commits import Commit, installed_versions
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.parquet import part_name
from cem_assets.store.store import Store

IMAGES_PER_PART = 4096
"""Images in a Parquet file; after a killed extraction the next one continues behind the last complete file."""
_READ_ROWS = 64


def features_inputs(benchmark: PreparedTransfer, weights: ScoredWeights, settings: FeatureSettings) -> Inputs:
    """Return the inputs and the partition of features."""
    mean, std = settings.norms(weights.norms)
    parameters = {**settings.model_dump(mode="json"), "mean": mean, "std": std}
    partition = f"{benchmark.name}/{weights.name}/{parameters_digest(parameters)}"
    upstream = {f"{BENCHMARK_DATA}/{benchmark.name}": benchmark.manifest.digest, **weights.upstream}
    return Inputs(BENCHMARK_FEATURES, partition, CODE_VERSIONS[BENCHMARK_FEATURES], parameters, upstream)


def extract_benchmark_features(
    store: Store,
    benchmark: PreparedTransfer,
    weights: ScoredWeights,
    settings: FeatureSettings | None = None,
    run_id: str = "",
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] | None = None,
    *,
    device: str = "auto",
    batch_size: int = 64,
) -> StageResult:
    """Compute the features of a prepared transfer benchmark once.

    Args:
        should_stop: Called before every file of the result; the work stops when it returns True.
        device: "auto", "cpu" or "cuda"; like `batch_size` it changes features only by rounding.
        batch_size: Number of planes that go through the encoder at once.

    Returns:
        The committed partition of `benchmarks/features`.

    Raises:
        DataError: The benchmark holds features instead of images, or computed features are not finite.
        InterruptedError: `should_stop` returned True; the next call continues from what was computed.
    """
    settings = settings or FeatureSettings()
    if not benchmark.channels:
        raise DataError(
            f'benchmark {benchmark.name!r} is a table of features, which do not depend on weights. Score it with "given".'
        )
    stage = begin(store, features_inputs(benchmark, weights, settings), run_id)
    if stage.up_to_date:
        return stage.up_to_date
    commit = stage.commit
    from cem_assets.encoders import pick_device

    place = pick_device(device)
    encoder = load_encoder_weights(store, weights.name, weights.digest)[0].build().to(place)
    how = FeatureParams(
        preprocessing=settings.preprocessing,
        is_normalised=settings.is_normalised,
        norms=settings.norms(weights.norms),
        side_px=settings.side_px,
        batch_size=batch_size,
    )
    total, done, num_features = benchmark.manifest.counts["rows"], 0, 0
    for number, images in enumerate(_parts(benchmark)):
        if should_stop is not None and should_stop():
            raise InterruptedError(
                f"extracting features of {benchmark.name!r} with {weights.name!r} was stopped after {done} of {total} images, "
                "as requested. What was computed is kept; materialize it again to continue."
            )
        name = part_name(number)
        names: list[str] = []
        if commit.has(name):
            commit.adopt(name)
            done += sum(1 for _ in images)
        else:
            try:
                features = extract_features(encoder, _pixels(images, names), how, place)
            except DataError as error:
                raise DataError(f"benchmark {benchmark.name!r}, images from number {done} on: {error}") from error
            commit.write(name, _parquet(names, features))
            done += len(names)
            num_features = features.shape[1]
        progress(done, total)
    num_features = num_features or _num_features(store, commit, part_name(0))
    counts = {"rows": done, "features": num_features}
    return stage.finish(counts, {"arch": weights.arch}, installed_versions("torch", "torchvision"))


def _parts(benchmark: PreparedTransfer) -> Iterator[Iterator[tuple[str, tuple[NDArray[Any], ...]]]]:
    """Split the images into those of each file; each part must be read to its end before the next one."""
    rows = (
        (str(name), planes)
        for table, images in benchmark.batches(_READ_ROWS)
        for name, planes in zip(table["name"], images, strict=True)
    )
    for start in range(0, benchmark.manifest.counts["rows"], IMAGES_PER_PART):
        num = min(IMAGES_PER_PART, benchmark.manifest.counts["rows"] - start)
        yield (next(rows) for _ in range(num))


def _pixels(images: Iterator[tuple[str, tuple[NDArray[Any], ...]]], names: list[str]) -> Iterator[NDArray[Any]]:
    for name, planes in images:
        names.append(name)
        yield np.stack(planes)


def _parquet(names: list[str], features: NDArray[np.float32]) -> bytes:
    schema = pa.schema([("name", pa.string()), ("features", pa.list_(pa.float32(), features.shape[1]))])
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    sink = io.BytesIO()
    pq.write_table(pa.table([pa.array(names), values], schema=schema), sink, compression="zstd", row_group_size=1024)
    return sink.getvalue()


def _num_features(store: Store, commit: Commit, name: str) -> int:
    with store.open(f"{commit.content.folder}/{name}") as handle:
        return int(pq.ParquetFile(handle).schema_arrow.field("features").type.list_size)


def read_benchmark_features(store: Store, manifest: Manifest) -> tuple[list[str], NDArray[np.float32]]:
    """Read committed features.

    Returns:
        Names of the images, and float32 (images, features), in the order of the benchmark's rows.
    """
    names: list[str] = []
    features = np.empty((manifest.counts["rows"], manifest.counts["features"]), np.float32)
    for item in manifest.find(".parquet"):
        with store.open(f"{manifest.folder}/{item.name}") as handle:
            table = pq.ParquetFile(handle).read()
        values = table["features"].combine_chunks().flatten().to_numpy()
        features[len(names) : len(names) + len(table)] = values.reshape(len(table), -1)
        names += table["name"].to_pylist()
    return names, features
