"""Runs `cem-assets benchmark ...`: it prepares data, and scores and promotes weights. The UI launches the same jobs."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from cem_assets.benchmarks.rows import known_benchmarks
from cem_assets.benchmarks.scores.inputs import BenchmarkScoreParams
from cem_assets.benchmarks.scoring import score_key, score_lines
from cem_assets.cli.runs import Listener, failures, open_instance, run_job
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_SCORES, LEADERBOARD, PROMOTIONS
from cem_assets.store.manifests import committed_partitions, current_manifest, require_manifest
from cem_assets.store.store import Store


@dataclass(frozen=True)
class Sweep:
    """A sweep: every combination of benchmarks, weights and seeds is scored.

    Attributes:
        weights: Names of weights; "a+b" concatenates the features of two.
        iterations: Numbers of training steps; 0 takes the benchmark's own.
        finetune_layers: Layers of the encoder that are trained too; "" takes the benchmark's own.
        seeds: Seeds of the training.
    """

    benchmarks: Sequence[str]
    weights: Sequence[str]
    iterations: Sequence[int] = (0,)
    finetune_layers: Sequence[str] = ("",)
    seeds: Sequence[int] = (42,)

    def __len__(self) -> int:
        axes = (self.benchmarks, self.weights, self.iterations, self.finetune_layers, self.seeds)
        return math.prod(len(values) for values in axes)

    def combinations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield benchmark, weights and config of each combination, benchmark by benchmark."""
        for benchmark, weights, iterations, layer, seed in itertools.product(
            self.benchmarks, self.weights, self.iterations, self.finetune_layers, self.seeds
        ):
            yield benchmark, weights, {"iterations": iterations, "finetune_layer": layer, "seed": seed}


def prepare(store: Store, benchmark: str, folder: str = "", listener: Listener | None = None) -> tuple[str, ...]:
    """Prepare the data of a benchmark; return descriptions of failures."""
    with open_instance() as instance:
        result = run_job(
            instance,
            store.url,
            "benchmark_data",
            partition=benchmark,
            config={BENCHMARK_DATA: {"folder": folder}},
            listener=listener,
        )
    return () if result.success else tuple(failures(result))


def score_all(
    store: Store, sweep: Sweep, more: dict[str, Any] | None = None, listener: Listener | None = None
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Score every combination of a sweep, then make the leaderboard; a failure does not stop the others.

    Args:
        more: Further configuration of the scores, such as {"device": "cpu"}.

    Yields:
        Lines about the score and descriptions of failures, for each combination.
    """
    with open_instance() as instance:
        for benchmark, weights, config in sweep.combinations():
            config = {**config, **(more or {})}
            key = dg.MultiPartitionKey({"benchmark": benchmark, "weights": weights})
            result = run_job(
                instance, store.url, "benchmark_scores", partition=key, config={BENCHMARK_SCORES: config}, listener=listener
            )
            if result.success:
                place = score_key(store, benchmark, weights, BenchmarkScoreParams(**config))
                yield score_lines(require_manifest(store, BENCHMARK_SCORES, place.partition)), ()
            else:
                yield [f"{benchmark}, {weights}: failed"], tuple(failures(result))
        result = run_job(instance, store.url, "benchmark_leaderboard", listener=listener)
    yield ([f"leaderboard: {leaderboard_place(store)}"], ()) if result.success else ([], tuple(failures(result)))


def promote_weights(store: Store, weights: str, reason: str = "", listener: Listener | None = None) -> tuple[list[str], bool]:
    """Let the gate decide whether weights become the champion.

    Returns:
        The decision with its reasons in words, and whether the weights were promoted.
    """
    from cem_assets.benchmarks.leaderboard.promotion import promotion_records

    with open_instance() as instance:
        config = {PROMOTIONS: {"weights": weights, "reason": reason}}
        result = run_job(instance, store.url, "benchmark_promotion", config=config, listener=listener)
    if not result.success:
        return list(failures(result)), False
    record = promotion_records(store)[-1]
    card = store.read(f"{record.manifest.folder}/README.md").decode()
    return [card], record.is_promoted


def leaderboard_place(store: Store) -> str:
    """Return the address of the leaderboard."""
    return store.url_of(require_manifest(store, LEADERBOARD).folder)


def benchmark_lines(store: Store) -> list[str]:
    """List every benchmark of the catalogue with its task, the state of its data and its title."""
    prepared = set(committed_partitions(store, BENCHMARK_DATA))
    rows = [("name", "task", "data", "title")]
    for name, row in known_benchmarks(store).items():
        manifest = current_manifest(store, BENCHMARK_DATA, name) if name in prepared else None
        counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items()) if manifest else "not prepared"
        rows.append((name, row.task, counts, row.title))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {d}" for a, b, c, d in rows]
