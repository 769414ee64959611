"""Asset checks of benchmarks: whole objects everywhere, no test image in a release, and what the gate says."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from cem_assets.benchmarks.contamination.stage import is_uncontaminated
from cem_assets.benchmarks.leaderboard.promotion import gate_passes
from cem_assets.benchmarks.scores.checks import scores_are_whole
from cem_assets.execution import checks as common_checks
from cem_assets.execution.checks import Outcome
from cem_assets.platform.partitions import benchmark_rows, scored_pairs
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_SCORES, CONTAMINATION, LEADERBOARD, PROMOTIONS
from cem_assets.store.manifests import committed_partitions
from cem_assets.store.store import Store

_WHOLE = "Every object the manifest lists is there, with its size and sha256."


def _check(
    asset: str,
    name: str,
    description: str,
    function: Callable[[Store, Any], Outcome],
    partitions: dg.PartitionsDefinition[Any] | None = None,
    is_warning: bool = False,
) -> dg.AssetChecksDefinition:
    severity = dg.AssetCheckSeverity.WARN if is_warning else dg.AssetCheckSeverity.ERROR

    @dg.asset_check(
        asset=asset.split("/"), name=name, description=description, blocking=not is_warning, partitions_def=partitions
    )
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        outcome = function(store.open(), context.partition_key if partitions else "")
        return dg.AssetCheckResult(
            passed=outcome.passed, severity=severity, description=outcome.description, metadata=dict(outcome.facts)
        )

    return check


def _data_is_whole(store: Store, name: str) -> Outcome:
    return common_checks.objects_match_manifest(store, BENCHMARK_DATA, name)


def _leaderboard_is_whole(store: Store, _: str) -> Outcome:
    return common_checks.objects_match_manifest(store, LEADERBOARD, "")


def _scores_of_pair(store: Store, key: Any) -> Outcome:
    keys = scored_pairs.get_partition_key_from_str(str(key)).keys_by_dimension
    return scores_are_whole(store, keys["benchmark"], keys["weights"])


def _releases_are_clean(store: Store, _: str) -> Outcome:
    """Join what is found of the releases that were compared; one that was not is no failure of this report."""
    compared = {partition.partition("-")[0] for partition in committed_partitions(store, CONTAMINATION)}
    found = [is_uncontaminated(store, dataset) for dataset in sorted(compared)]
    bad = [outcome for outcome in found if not outcome.passed]
    return Outcome(not bad, "; ".join(outcome.description for outcome in bad or found), {"releases": len(found)})


def benchmark_checks() -> list[Any]:
    """List the checks of the benchmarks' assets."""
    clean = "The newest releases hold no image that a test image of a prepared benchmark shows."
    return [
        _check(BENCHMARK_DATA, "objects_match_manifest", _WHOLE, _data_is_whole, benchmark_rows),
        _check(BENCHMARK_SCORES, scores_are_whole.__name__, str(scores_are_whole.__doc__), _scores_of_pair, scored_pairs),
        _check(LEADERBOARD, "objects_match_manifest", _WHOLE, _leaderboard_is_whole),
        _check(CONTAMINATION, "releases_are_uncontaminated", clean, _releases_are_clean),
        _check(
            PROMOTIONS, gate_passes.__name__, str(gate_passes.__doc__), lambda store, _: gate_passes(store), is_warning=True
        ),
    ]
