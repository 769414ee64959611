"""What a benchmark score is made from: the parameters a user gives, the weights, and what goes into every row.

Scoring itself is `cem_assets.benchmarks.segmentation.stage` and `cem_assets.benchmarks.transfer.stage`; the entry to both is
`cem_assets.benchmarks.scores.entry`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cem_assets.benchmarks.scores.stored import ScoreKey, ScoreRow
from cem_assets.store.assets import BENCHMARK_SCORES, CODE_VERSIONS, WEIGHTS
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store

GIVEN = "given"
"""Name in the place of weights, for benchmarks that are a table of ready features."""
ALL = "all"
"""Name of the test set where there is one, or all are meant."""


class ScoreParams(BaseModel):
    """How weights are scored. What decides no number is marked so, and another value of it asks for no other partition.

    Attributes:
        seed: Of the new layers, the crops and their order; also of the map of a transfer benchmark.
        iterations: Optimiser steps; 0 for the benchmark's own. Without meaning for transfer, like `finetune_layer`.
        finetune_layer: Shallowest layer of the encoder that is trained; empty for the benchmark's own. Random weights are
            always trained whole.
        params: Changes to the benchmark's parameters by name: fields of
            `cem_assets.benchmarks.segmentation.params.SegmentationParams`, or of a recipe and of
            `cem_assets.benchmarks.transfer.features_stage.FeatureSettings` (`k`, `metric`, `preprocessing`, ...).
        device: "auto", "cpu" or "cuda"; decides no number beyond rounding, like the next five.
        num_threads: Of torch, on a CPU; 0 leaves torch's choice.
        crop_threads: Threads that make crops, a step ahead.
        slab_px: Slices of a volume read and predicted at once.
        tile_px: Side of the largest plane that is predicted in one piece, a multiple of 32.
        cache_mib: Training images are held in memory up to this size, and read when they are needed beyond it.
        checkpoint_interval_s: A killed training loses at most so many seconds.
        evaluate_every: Steps between two evaluations on the validation images, or the test images where there are none;
            for the curve alone: nothing is chosen by it. 0 for none. Decides no number.
        max_pictures: Predictions, or confusion matrices, that are drawn. Decides no number.
        has_map: Whether features are laid out by UMAP. Decides no number.
        keep_model: Whether the trained network is kept as `model.safetensors`. Decides no number.
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
    """Committed weights, as far as their manifest tells.

    Attributes:
        name: The partition of `pretraining/weights`.
        digest: Of its manifest.
        arch: Of the encoder.
        method: "random", "moco", "swav" or "supervised".
        norms: Mean and deviation of pixels on a scale of 0 to 1; None where they are not known.
        release: What they were trained on, such as "cem/releases/v2"; empty for imported ones.
        release_digest: Of its manifest.
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
        """What a manifest's inputs say of them."""
        return {f"{WEIGHTS}/{self.name}": self.digest}


def find_weights(store: Store, name: str) -> ScoredWeights:
    """Look up committed weights.

    Raises:
        FileNotFoundError: Nothing is committed; the error says what to materialize.
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
    """What all rows of one partition have in common.

    Attributes:
        key: Of the partition.
        weights: Those that were scored; none for given features.
        finetune_layer: Which layers were opened; empty for transfer.
        iterations: Training steps; 0 for transfer.
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
        """Make one row; `interval` is half the width of the 95 % interval, which stays within 0..1."""
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
    """Give what differs from row to row of a partition, as JSON values; None for what is no number."""
    kept = ("test_set", "metric", "class_name", "value", "low", "high", "num", "is_main")
    return {name: finite(getattr(row, name)) for name in kept}


def main_of(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Give the row of the leaderboard."""
    return next(plain_row(row) for row in rows if row.is_main)


def finite(value: Any) -> Any:
    """Turn numbers that JSON does not have into None, also inside of lists and dicts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def in_words(error: ValidationError, what: str) -> ValueError:
    """Say what is wrong with parameters, all of it in one line."""
    told = [
        f"{'.'.join(map(str, item['loc'])) or 'together'}: {item['msg']} (found {item['input']!r:.80})"
        for item in error.errors()
    ]
    return ValueError(f"{what} cannot be used: {'; '.join(told)}.")
