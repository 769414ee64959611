"""What exactly a segmentation score is: a benchmark, weights and every parameter, known before anything is computed.

`cem_assets.benchmarks.segmentation.stage` carries a plan out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cem_assets.benchmarks.data.segmentation_sets import PreparedBenchmark, open_benchmark
from cem_assets.benchmarks.scores.inputs import BenchmarkScoreParams, ScoredWeights, find_weights, in_words
from cem_assets.benchmarks.scores.stored import ScoreKey, parameters_digest
from cem_assets.benchmarks.segmentation.items import check_items, rules_of
from cem_assets.benchmarks.segmentation.params import ARCHITECTURES, TEST_FIELDS, EvaluationRule, SegmentationParams
from cem_assets.catalog.benchmarks import SegmentationBenchmark
from cem_assets.errors import DataError
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_SCORES, CODE_VERSIONS
from cem_assets.store.manifests import Inputs, canonical_json
from cem_assets.store.store import Store

RUNS = "_runs"
"""Folder beside the partitions of weights, for the state of trainings; nothing in it is content."""
NUM_POINTS = 20
"""Number of points of the loss curve if nothing is evaluated."""


@dataclass(frozen=True)
class SegmentationPlan:
    """Everything that one score depends on.

    Attributes:
        weights: The weights of the encoder.
        params: All parameters of training and testing.
        rules: How the test images of every part are scored.
        asked: The parameters that the user gave.
    """

    benchmark: PreparedBenchmark
    weights: ScoredWeights
    params: SegmentationParams
    rules: Mapping[str, EvaluationRule]
    asked: BenchmarkScoreParams

    @property
    def key(self) -> ScoreKey:
        """The key, which names the partition."""
        digest = parameters_digest(self._parameters())
        return ScoreKey(self.benchmark.name, self.weights.name, digest, self.params.seed)

    def _parameters(self) -> dict[str, Any]:
        return {"task": "segmentation", **self.params.model_dump(mode="json")}

    @property
    def inputs(self) -> Inputs:
        """What the partition is made from. Settings of its pictures count too, although they do not change the score."""
        asked = self.asked
        shown = {"evaluate_every": asked.evaluate_every, "max_pictures": asked.max_pictures, "keep_model": asked.keep_model}
        upstream = {f"{BENCHMARK_DATA}/{self.benchmark.name}": self.benchmark.manifest.digest, **self.weights.upstream}
        parameters = {**self._parameters(), "shown": shown}
        return Inputs(BENCHMARK_SCORES, self.key.partition, CODE_VERSIONS[BENCHMARK_SCORES], parameters, upstream)

    @property
    def run(self) -> str:
        """16 hex digits of everything that must be the same when the training is continued."""
        trained = {name: value for name, value in self._parameters().items() if name not in TEST_FIELDS}
        inputs = self.inputs
        about = {"params": trained, "upstream": dict(inputs.upstream), "code": inputs.code_version, "every": self.every}
        return hashlib.sha256(canonical_json(about | {"is_evaluated": bool(self.asked.evaluate_every)})).hexdigest()[:16]

    @property
    def every(self) -> int:
        """Number of steps between two points of the curve."""
        return self.asked.evaluate_every or max(1, self.params.iters // NUM_POINTS)

    @property
    def folder(self) -> str:
        """The folder in which the training keeps its state."""
        return f"{BENCHMARK_SCORES}/{self.benchmark.name}/{self.weights.name}/{RUNS}/{self.run[:12]}-s{self.params.seed}"

    @property
    def is_mixed(self) -> bool:
        """Whether each part is a test set of its own."""
        return self.params.test_mode == "mixed"


def plan_segmentation(store: Store, row: SegmentationBenchmark, weights: str, asked: BenchmarkScoreParams) -> SegmentationPlan:
    """Find out everything that a score depends on, before anything is computed.

    Raises:
        FileNotFoundError: The benchmark or the weights are not committed; the error says what to materialize.
        DataError: Parameters are unknown or not valid, or the weights do not fit the benchmark.
    """
    if "+" in weights:
        raise DataError(
            f"weights are {weights!r}, but a network has one encoder, so segmentation cannot fuse weights. Score each alone, "
            "or fuse them for a transfer benchmark."
        )
    benchmark, found = open_benchmark(store, row.name), find_weights(store, weights)
    if found.arch not in ARCHITECTURES:
        raise DataError(
            f"weights {weights!r} are of {found.arch}; expected {', '.join(ARCHITECTURES)}, over which a U-Net can be built. "
            "Score them on a transfer benchmark."
        )
    params = params_of(row, found, asked)
    rules = rules_of(benchmark, params)
    check_items(benchmark, rules, max(2, params.num_classes))
    return SegmentationPlan(benchmark, found, params, rules, asked)


def params_of(row: SegmentationBenchmark, weights: ScoredWeights, asked: BenchmarkScoreParams) -> SegmentationParams:
    """Combine the parameters of the row, the pixel norms of the weights, and the user's changes; later ones override earlier.

    Weights without norms get those of the row, or the defaults, which are those of CEM500K. If `num_classes` is not given, it
    follows from the benchmark's classes. Random weights are always trained completely.

    Raises:
        DataError: A name is unknown, or a value is not valid; the error lists all problems.
    """
    what = f"parameters of benchmark {row.name!r}"
    if "seed" in asked.params:
        raise DataError(f"{what} contain a seed; give it as `seed` instead, because it is part of the partition's name.")
    values: dict[str, Any] = {"num_classes": 1 if len(row.classes) == 2 else len(row.classes), **row.params}
    if weights.norms is not None:
        values |= {"mean": weights.norms[0], "std": weights.norms[1]}
    values |= asked.params
    if asked.iterations:
        values["iters"] = asked.iterations
    if asked.finetune_layer:
        values["finetune_layer"] = asked.finetune_layer
    if weights.method == "random":
        values["finetune_layer"] = "all"
    try:
        return SegmentationParams.model_validate({**values, "seed": asked.seed})
    except ValidationError as error:
        raise in_words(error, what) from error
