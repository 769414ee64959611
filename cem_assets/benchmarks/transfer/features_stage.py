"""Stage `benchmarks/features`: features of a transfer benchmark's images under weights, kept so that scoring costs seconds.

`benchmarks/features/<benchmark>/<weights>/<digest>/` holds Parquet files with the columns `name` and `features`, in the
order of the benchmark's rows. How images become features is `cem_assets.benchmarks.transfer.features`; scoring them is
`cem_assets.benchmarks.transfer.stage`.
"""

import io
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.benchmarks.data.transfer_sets import PreparedTransfer, open_transfer
from cem_assets.benchmarks.scores.inputs import ScoredWeights, find_weights
from cem_assets.benchmarks.scores.stored import parameters_digest
from cem_assets.benchmarks.transfer.features import FeatureParams, extract_features
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.pretraining.weights.stored import load_encoder_weights
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_FEATURES, CODE_VERSIONS
from cem_assets.store.commits import Commit, installed_versions
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.parquet import part_name
from cem_assets.store.store import Store

FALLBACK_NORMS = (0.449, 0.226)
"""Mean and deviation for weights that name none: those of ImageNet as gray, pixels on a scale of 0 to 1."""
IMAGES_PER_PART = 4096
"""Images in a Parquet file; a killed extraction goes on behind the last whole one."""
_READ_ROWS = 64


class FeatureSettings(BaseModel):
    """How the images of a benchmark become features; see `cem_assets.benchmarks.transfer.features.FeatureParams`.

    Attributes:
        preprocessing: "concat" for channels one by one, features side by side; "merge" for channels averaged.
        is_normalised: Whether channels are stretched to their percentiles.
        side_px: Images are resized to squares of this side.
        mean, std: Of pixels on 0..1; None for those of the weights, or `FALLBACK_NORMS` where they name none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preprocessing: Literal["concat", "merge"] = "concat"
    is_normalised: bool = True
    side_px: Annotated[int, Field(ge=32, le=4096)] = 224
    mean: Annotated[float, Field(ge=0, le=1)] | None = None
    std: Annotated[float, Field(gt=0, le=1)] | None = None

    def norms(self, weights: ScoredWeights) -> tuple[float, float]:
        """Return mean and deviation for weights."""
        mean, std = weights.norms or FALLBACK_NORMS
        return (mean if self.mean is None else self.mean), (std if self.std is None else self.std)


def features_inputs(benchmark: PreparedTransfer, weights: ScoredWeights, settings: FeatureSettings) -> Inputs:
    """Say what features are made from, and which partition they are."""
    mean, std = settings.norms(weights)
    parameters = {**settings.model_dump(mode="json"), "mean": mean, "std": std}
    partition = f"{benchmark.name}/{weights.name}/{parameters_digest(parameters)}"
    upstream = {f"{BENCHMARK_DATA}/{benchmark.name}": benchmark.manifest.digest, **weights.upstream}
    return Inputs(BENCHMARK_FEATURES, partition, CODE_VERSIONS[BENCHMARK_FEATURES], parameters, upstream)


def extract_benchmark_features(
    store: Store,
    benchmark: str,
    weights: str,
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
        weights: Name of committed weights.
        settings: How.
        should_stop: Asked before every file of the result.
        device: "auto", "cpu" or "cuda"; like `batch_size` it changes features by rounding alone.
        batch_size: Planes that go through the encoder at once.

    Returns:
        The committed partition of `benchmarks/features`.

    Raises:
        FileNotFoundError: Benchmark or weights are not committed; the error says what to materialize.
        DataError: The benchmark has no images, or features are not finite.
        InterruptedError: A stop was wanted; what was computed is taken up next time.
    """
    started = time.monotonic()
    settings = settings or FeatureSettings()
    prepared, found = open_transfer(store, benchmark), find_weights(store, weights)
    if not prepared.channels:
        raise DataError(f'benchmark {benchmark!r} is a table of features, which no weights can change; score it with "given".')
    inputs = features_inputs(prepared, found, settings)
    commit = Commit(store, inputs, run_id)
    if commit.up_to_date:
        return StageResult(commit.up_to_date, False, time.monotonic() - started)
    from cem_assets.encoders import pick_device

    place = pick_device(device)
    encoder = load_encoder_weights(store, weights, found.digest)[0].build().to(place)
    how = FeatureParams(
        preprocessing=settings.preprocessing,
        is_normalised=settings.is_normalised,
        norms=settings.norms(found),
        side_px=settings.side_px,
        batch_size=batch_size,
    )
    total, done, num_features = prepared.manifest.counts["rows"], 0, 0
    for number, images in enumerate(_parts(prepared)):
        if should_stop is not None and should_stop():
            raise InterruptedError(
                f"extracting features of {benchmark!r} with {weights!r} was stopped after {done} of {total} images, as was "
                "asked; what was done is kept. Materialize it again to go on."
            )
        name = part_name(number)
        names: list[str] = []
        if commit.has(name):
            commit.adopt(name)
            done += sum(1 for _ in images)
        else:
            try:
                features = extract_features(encoder, _pixels(images, names), how, place)
            except ValueError as error:
                raise DataError(f"benchmark {benchmark!r}, images from {done} on: {error}") from error
            commit.write(name, _parquet(names, features))
            done += len(names)
            num_features = features.shape[1]
        progress(done, total)
    num_features = num_features or _num_features(store, commit, part_name(0))
    versions = installed_versions("torch", "torchvision")
    manifest = commit.finish({"rows": done, "features": num_features}, {"arch": found.arch}, versions)
    return StageResult(manifest, True, time.monotonic() - started)


def _parts(benchmark: PreparedTransfer) -> Iterator[Iterator[tuple[str, tuple[NDArray[Any], ...]]]]:
    """Cut the images into files; each must be read to its end before the next one."""
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
