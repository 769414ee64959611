"""Asset checks of CytoImageNet: per partition, and blocking where the next stage would be wrong."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from cem_assets.cytoimagenet import checks
from cem_assets.execution import checks as common_checks
from cem_assets.execution.checks import Outcome
from cem_assets.platform.partitions import cyto_labels, microscopy_sources
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import CLASS_MAPS, CROPS, CYTO_RELEASES, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.store import Store

_PARTITIONS = {SOURCE_METADATA: microscopy_sources, CROPS: cyto_labels}


def _check(asset: str, name: str, description: str, function: Callable[[Store, str], Outcome]) -> dg.AssetChecksDefinition:
    partitions = _PARTITIONS.get(asset)

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


def _objects(asset: str) -> dg.AssetChecksDefinition:
    def look(store: Store, partition: str) -> Outcome:
        return common_checks.objects_match_manifest(store, asset, partition)

    return _check(asset, "objects_match_manifest", "Every object the manifest lists is there, with its size and sha256.", look)


def _of_whole(function: Callable[[Store], Outcome]) -> Callable[[Store, str], Outcome]:
    return lambda store, _: function(store)


def cyto_checks() -> list[Any]:
    """List every check of CytoImageNet's assets."""
    alone: dict[str, Callable[[Store], Outcome]] = {
        LABEL_TABLE: checks.labels_obey_rules,
        CYTO_RELEASES: checks.cyto_release_is_complete,
    }
    found = [_objects(asset) for asset in (SOURCE_METADATA, TEST_IMAGES, LABEL_TABLE, CROPS, CLASS_MAPS)]
    for asset, function in alone.items():
        found.append(_check(asset, function.__name__, str(function.__doc__), _of_whole(function)))
    for asset, of_partition in (
        (SOURCE_METADATA, checks.metadata_obeys_schema),
        (CROPS, checks.crops_add_up),
        (CROPS, checks.no_test_images),
    ):
        found.append(_check(asset, of_partition.__name__, str(of_partition.__doc__), of_partition))
    return found
