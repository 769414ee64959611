"""What a benchmark score is made from: the parameters that a user gives, the weights, and what all its rows have in common."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cem_assets.benchmarks.scores.stored import ScoreKey, ScoreRow
from cem_assets.errors import DataError
from cem_assets.store.assets import BENCHMARK_SCORES, CODE_VERSIONS, WEIGHTS
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store

GIVEN = "given"
"""Stands in the place of the weights' name for benchmarks that are a table of ready features."""
ALL = "all"
"""Name of the test set if there is only one, or if all of them are meant."""


class BenchmarkScoreParams(BaseModel):
    """How weights are scored.

    The fields from `device` on do not change the score, except for rounding, and they are not part of the partition's name.

    Attributes:
        seed: Seed of the new layers, of the crops and their order, and of the map of a transfer benchmark.
        iterations: Optimiser steps; 0 takes the benchmark's own number. Not used for transfer benchmarks, like
            `finetune_layer`.
        finetune_layer: Shallowest layer of the encoder that is trained; empty takes the benchmark's own choice. Random weights
            are always trained completely.
        params: Changes to the benchmark's parameters by name: fields of
            `cem_assets.benchmarks.segmentation.params.SegmentationParams`; or fields of a recipe
            (`cem_assets.benchmarks.transfer.params`) and of `cem_assets.benchmarks.transfer.features.params.FeatureSettings`,
            such as `k`, `metric` and `preprocessing`.
        device: "auto", "cpu" or "cuda".
        num_threads: Threads of torch on a CPU; 0 leaves the choice to torch.
        crop_threads: Threads that make the crops of the next step.
        slab_px: Slices of a volume that are read and predicted at once.
        tile_px: Side of the largest plane that is predicted in one piece, a multiple of 32.
        cache_mib: Training images up to this total size are held in memory; larger sets are read whenever they are needed.
        checkpoint_interval_s: A killed training loses at most this many seconds.
        evaluate_every: Steps between two evaluations on the validation images, or on the test images if there are none. They
            are made only for the curve; nothing is chosen by them. 0 for no evaluations.
        max_pictures: Number of predictions, or of confusion matrices, that are drawn.
        has_map: Whether features are laid out by UMAP.
        keep_model: Whether the trained network is kept as `model.safetensors`.
    """

    model_config = ConfigDict(frozen=True)

    seed: int = Field(42, ge=0, lt=1 << 31)
    iterations: int = Field(0, ge=0, le=1_000_000)
    finetune_layer: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    device: str = "auto"
    num_threads: int = Field(0, ge=0, le=1024)
    crop_threads: int = Field(4, ge=1, le=256)
    slab_px: int = Field(16, ge=1, le=4096)
    tile_px: int = Field(4096, ge=32, multiple_of=32)
    cache_mib: int = Field(4096, ge=0)
    checkpoint_interval_s: float = Field(300.0, ge=0)
    evaluate_every: int = Field(0, ge=0)
    max_pictures: int = Field(6, ge=0, le=64)
    has_map: bool = True
    keep_model: bool = False


@dataclass(frozen=True)
class ScoredWeights:
    """What the manifest of committed weights says about them.

    Attributes:
        name: The partition of `pretraining/weights`.
        digest: Digest of the weights' manifest.
        arch: Architecture of the encoder.
        method: "random", "moco", "swav" or "supervised".
        norms: Mean and standard deviation of pixels on a scale of 0 to 1; None if they are not known.
        release: The release they were trained on, such as "cem/releases/v2"; empty for imported weights.
        release_digest: Digest of the release's manifest.
    """

    name: str
    digest: str
    arch: str
    method: str
    norms: tuple[float, float] | None
    release: str
    release_digest: str

    @property
    def upstream(self) -> dict[str, str]:
        """The weights as inputs of a partition."""
        return {f"{WEIGHTS}/{self.name}": self.digest}


def find_weights(store: Store, name: str) -> ScoredWeights:
    """Look up committed weights.

    Raises:
        FileNotFoundError: They are not committed; the error says what to materialize.
    """
    manifest = require_manifest(store, WEIGHTS, name)
    details = manifest.details
    norms = details.get("norms")
    release = (details.get("provenance") or {}).get("release") or {}
    return ScoredWeights(
        name=name,
        digest=manifest.digest,
        arch=str(details["arch"]),
        method=str(details["method"]),
        norms=(float(norms["mean"]), float(norms["std"])) if norms else None,
        release=str(release.get("asset", "")),
        release_digest=str(release.get("digest", "")),
    )


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of one partition from what they have in common.

    Attributes:
        weights: The weights that were scored; none for given features.
        finetune_layer: Shallowest layer that was trained; empty for transfer benchmarks.
        iterations: Training steps; 0 for transfer benchmarks.
    """

    key: ScoreKey
    weights: Sequence[ScoredWeights]
    finetune_layer: str = ""
    iterations: int = 0

    def row(
        self,
        metric: str,
        value: float,
        num: int,
        *,
        test_set: str = ALL,
        class_name: str = "",
        interval: float = 0.0,
        is_main: bool = False,
    ) -> ScoreRow:
        """Make one row; `interval` is half the width of the 95 % confidence interval, which is clipped to 0..1."""
        return ScoreRow(
            benchmark=self.key.benchmark,
            weights=self.key.weights,
            weights_digest=_joined([one.digest for one in self.weights]),
            release=_joined([one.release for one in self.weights]),
            release_digest=_joined([one.release_digest for one in self.weights]),
            seed=self.key.seed,
            parameters=self.key.parameters,
            finetune_layer=self.finetune_layer,
            iterations=self.iterations,
            test_set=test_set,
            metric=metric,
            class_name=class_name,
            value=value,
            low=max(0.0, value - interval) if interval else value,
            high=min(1.0, value + interval) if interval else value,
            num=num,
            is_main=is_main,
            code_version=CODE_VERSIONS[BENCHMARK_SCORES],
        )


def _joined(texts: Sequence[str]) -> str:
    return "+".join(texts) if any(texts) else ""


def plain_row(row: ScoreRow) -> dict[str, Any]:
    """Return what differs between the rows of a partition, as JSON values; NaN and infinity become None."""
    kept = ("test_set", "metric", "class_name", "value", "low", "high", "num", "is_main")
    return {name: finite(getattr(row, name)) for name in kept}


def main_of(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return the row for the leaderboard, as `plain_row` does."""
    return next(plain_row(row) for row in rows if row.is_main)


def finite(value: Any) -> Any:
    """Replace NaN and infinity by None, also inside of lists and dicts, because JSON does not have them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def in_words(error: ValidationError, what: str) -> DataError:
    """Make an error that lists everything that is wrong with parameters."""
    problems = [
        f"{'.'.join(map(str, item['loc'])) or 'together'}: {item['msg']} (found {item['input']!r:.80})"
        for item in error.errors()
    ]
    return DataError(f"{what} cannot be used: {'; '.join(problems)}.")
