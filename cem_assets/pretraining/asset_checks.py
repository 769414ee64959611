"""Asset checks of weights: blocking, because benchmarks of broken weights cost hours."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from cem_assets.execution import checks as common_checks
from cem_assets.execution.checks import Outcome
from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.pretraining.checks import weights_give_features
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.store import Store


def _check(name: str, description: str, function: Callable[[Store, str], Outcome]) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=WEIGHTS.split("/"), name=name, description=description, blocking=True, partitions_def=weights_rows)
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        outcome = function(store.open(), context.partition_key)
        return dg.AssetCheckResult(
            passed=outcome.passed,
            severity=dg.AssetCheckSeverity.ERROR,
            description=outcome.description,
            metadata=dict(outcome.facts),
        )

    return check


def _objects_match(store: Store, name: str) -> Outcome:
    return common_checks.objects_match_manifest(store, WEIGHTS, name)


def weights_checks() -> list[Any]:
    """List the checks of weights."""
    whole = "Every object the manifest lists is there, with its size and sha256."
    return [
        _check("objects_match_manifest", whole, _objects_match),
        _check(weights_give_features.__name__, str(weights_give_features.__doc__), weights_give_features),
    ]
