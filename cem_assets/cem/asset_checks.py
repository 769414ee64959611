"""Asset checks: per partition, and blocking where the next stage would be wrong."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from cem_assets.cem import checks as cem_checks
from cem_assets.cem.releases.stage import list_releases
from cem_assets.execution import checks as common_checks
from cem_assets.execution.checks import Outcome
from cem_assets.platform.partitions import em_datasets
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import CLASSIFIER, DEDUPLICATED, FILTERED, RAW, RELEASES, SCORES, SUBVOLUMES, VOLUMES
from cem_assets.store.store import Store

PARTITION_CHECKS: dict[str, tuple[Callable[[Store, str], Outcome], ...]] = {
    VOLUMES: (),
    RAW: (cem_checks.raw_counts_add_up, cem_checks.patches_lie_inside, cem_checks.blank_fraction),
    DEDUPLICATED: (cem_checks.exemplars_are_distinct, cem_checks.duplicates_have_exemplars),
    SCORES: (cem_checks.scores_are_probabilities,),
    FILTERED: (cem_checks.filtered_counts_add_up,),
    SUBVOLUMES: (),
}
WARN_ONLY = {cem_checks.blank_fraction}


def _result(outcome: Outcome, severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=outcome.passed, severity=severity, description=outcome.description, metadata=dict(outcome.facts)
    )


def _objects_check(asset: str, is_partitioned: bool) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset.split("/"),
        name="objects_match_manifest",
        description="Every object the manifest lists is there, with its size and sha256.",
        blocking=True,
        partitions_def=em_datasets if is_partitioned else None,
    )
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        partition = context.partition_key if is_partitioned else ""
        outcome = common_checks.objects_match_manifest(store.open(), asset, partition)
        return _result(outcome, dg.AssetCheckSeverity.ERROR)

    return check


def _partition_check(asset: str, function: Callable[[Store, str], Outcome]) -> dg.AssetChecksDefinition:
    is_warning = function in WARN_ONLY

    @dg.asset_check(
        asset=asset.split("/"),
        name=function.__name__,
        description=str(function.__doc__),
        blocking=not is_warning,
        partitions_def=em_datasets,
    )
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        severity = dg.AssetCheckSeverity.WARN if is_warning else dg.AssetCheckSeverity.ERROR
        return _result(function(store.open(), context.partition_key), severity)

    return check


@dg.asset_check(asset=RELEASES.split("/"), name="release_is_complete", blocking=True)
def release_is_complete(store: StoreResource) -> dg.AssetCheckResult:
    """Every object the newest release names is in the store, with its size."""
    opened = store.open()
    newest = list_releases(opened)[-1]
    return _result(cem_checks.release_is_complete(opened, newest), dg.AssetCheckSeverity.ERROR)


def all_checks() -> list[Any]:
    """Make every check of the CEM assets."""
    checks: list[Any] = [_objects_check(asset, True) for asset in PARTITION_CHECKS]
    checks.append(_objects_check(CLASSIFIER, False))
    checks += [_partition_check(asset, function) for asset, group in PARTITION_CHECKS.items() for function in group]
    return [*checks, release_is_complete]
