"""Asset checks of benchmarks: whole objects everywhere, no test image in a release, and what the gate says."""

from typing import Any

import dagster as dg

from cem_assets.benchmarks.contamination.checks import releases_are_uncontaminated
from cem_assets.benchmarks.leaderboard.promotion import gate_passes
from cem_assets.benchmarks.scores.checks import scores_are_whole
from cem_assets.execution.checks import Outcome
from cem_assets.platform.assets import check, objects_check
from cem_assets.platform.partitions import benchmark_rows, scored_pairs
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_SCORES, CONTAMINATION, LEADERBOARD, PROMOTIONS
from cem_assets.store.store import Store


def _scores_of_pair(store: Store, key: Any) -> Outcome:
    keys = scored_pairs.get_partition_key_from_str(str(key)).keys_by_dimension
    return scores_are_whole(store, keys["benchmark"], keys["weights"])


def benchmark_checks() -> list[dg.AssetChecksDefinition]:
    """Make the checks of the benchmarks' assets."""
    name, description = scores_are_whole.__name__, str(scores_are_whole.__doc__)
    return [
        objects_check(BENCHMARK_DATA, benchmark_rows),
        check(BENCHMARK_SCORES, _scores_of_pair, scored_pairs, name=name, description=description),
        objects_check(LEADERBOARD),
        check(CONTAMINATION, releases_are_uncontaminated),
        check(PROMOTIONS, gate_passes, is_warning=True),
    ]
