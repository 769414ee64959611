"""Declaring assets and checks. Key, group, dependencies and code version follow from the names of assets."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from cem_assets.execution.checks import Outcome, objects_match_manifest
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained
from cem_assets.store.assets import CODE_VERSIONS
from cem_assets.store.store import Store

GPU_POOL = "gpu"
"""The Dagster pool of steps that use a GPU; the configuration of the instance limits how many of them run at once."""

AssetFunction = Callable[..., dg.MaterializeResult[Any]]


def asset(
    name: str, *deps: str, kinds: set[str], partitions: dg.PartitionsDefinition[Any] | None = None, **more: Any
) -> Callable[[AssetFunction], dg.AssetsDefinition]:
    """Declare an asset of the store. The docstring of its function is the description that people read in the UI.

    Args:
        name: Such as "cem/raw_patches". It is the asset key and the folder in the store; the first part is the group.
        deps: Names of the assets it is made from.
        kinds: Dagster's labels for the technology, such as "parquet" or "pytorch".
        partitions: One of `platform.partitions`; None for an asset without partitions.
        more: Any other argument of `dagster.asset`, such as `pool=GPU_POOL`.
    """
    decorator: Callable[[AssetFunction], dg.AssetsDefinition] = dg.asset(
        key=name.split("/"),
        group_name=name.split("/", maxsplit=1)[0],
        deps=[dep.split("/") for dep in deps],
        code_version=CODE_VERSIONS[name],
        kinds=kinds,
        partitions_def=partitions,
        **more,
    )
    return decorator


def check(
    asset_name: str,
    function: Callable[[Store, Any], Outcome],
    partitions: dg.PartitionsDefinition[Any] | None = None,
    is_warning: bool = False,
    name: str = "",
    description: str = "",
) -> dg.AssetChecksDefinition:
    """Declare a check of an asset, which runs after each materialization of a partition.

    Args:
        function: Called with the store and the partition key, which is "" for an asset without partitions.
        partitions: The partitions of the asset.
        is_warning: Whether a failed check only warns. Otherwise it stops the assets that are made from this one.
        name: Empty takes the function's name.
        description: Empty takes the function's docstring.
    """
    severity = dg.AssetCheckSeverity.WARN if is_warning else dg.AssetCheckSeverity.ERROR

    @dg.asset_check(
        asset=asset_name.split("/"),
        name=name or function.__name__,
        description=description or str(function.__doc__),
        blocking=not is_warning,
        partitions_def=partitions,
    )
    def run(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        with explained(context.op_execution_context):
            outcome = function(store.open(), context.partition_key if partitions else "")
        return dg.AssetCheckResult(
            passed=outcome.passed, severity=severity, description=outcome.description, metadata=dict(outcome.facts)
        )

    return run


def objects_check(asset_name: str, partitions: dg.PartitionsDefinition[Any] | None = None) -> dg.AssetChecksDefinition:
    """Declare the check that every asset has: its objects match its manifest."""
    return check(
        asset_name,
        lambda store, partition: objects_match_manifest(store, asset_name, str(partition)),
        partitions,
        name="objects_match_manifest",
        description="Every object the manifest lists is there, with its size and sha256.",
    )
