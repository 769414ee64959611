"""Asset checks of analyses: whole objects, and numbers within the bounds of what they measure."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from cem_assets.analyses.checks import analyses_are_whole, comparisons_are_whole
from cem_assets.analyses.results import ANALYSES
from cem_assets.execution.checks import Outcome
from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import COMPARISONS
from cem_assets.store.store import Store


def _check(
    asset: str,
    name: str,
    description: str,
    function: Callable[[Store, str], Outcome],
    partitions: dg.PartitionsDefinition[Any] | None,
) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset.split("/"), name=name, description=description, blocking=True, partitions_def=partitions)
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        outcome = function(store.open(), context.partition_key if partitions else "")
        return dg.AssetCheckResult(
            passed=outcome.passed,
            severity=dg.AssetCheckSeverity.ERROR,
            description=outcome.description,
            metadata=dict(outcome.facts),
        )

    return check


def _of(asset: str) -> Callable[[Store, str], Outcome]:
    return lambda store, weights: analyses_are_whole(store, asset, weights)


def analysis_checks() -> list[Any]:
    """List the checks of analyses."""
    name, told = analyses_are_whole.__name__, str(analyses_are_whole.__doc__)
    return [
        *(_check(asset, name, told, _of(asset), weights_rows) for asset in ANALYSES.values()),
        _check(
            COMPARISONS,
            comparisons_are_whole.__name__,
            str(comparisons_are_whole.__doc__),
            lambda store, _: comparisons_are_whole(store),
            None,
        ),
    ]
