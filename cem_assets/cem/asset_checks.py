"""The checks of the CEM assets, as Dagster runs them.

Checks run partition by partition. A failure stops what would be made from the partition, except for the checks in
`_WARN_ONLY`.
"""

from collections.abc import Callable

import dagster as dg

from cem_assets.cem import checks
from cem_assets.cem.releases.stage import list_releases
from cem_assets.execution.checks import Outcome
from cem_assets.platform.assets import check, objects_check
from cem_assets.platform.partitions import em_datasets
from cem_assets.store.assets import CLASSIFIER, DEDUPLICATED, FILTERED, RAW, RELEASES, SCORES, SUBVOLUMES, VOLUMES
from cem_assets.store.manifests import Manifest, require_manifest
from cem_assets.store.store import Store

PartitionCheck = Callable[[Store, Manifest], Outcome]
"""A check that takes the manifest of the partition that it looks at."""

_PARTITION_CHECKS: dict[str, tuple[PartitionCheck, ...]] = {
    VOLUMES: (),
    RAW: (checks.raw_counts_add_up, checks.patches_lie_inside, checks.blank_fraction),
    DEDUPLICATED: (checks.exemplars_are_distinct, checks.duplicates_have_exemplars),
    SCORES: (checks.scores_are_probabilities,),
    FILTERED: (checks.filtered_counts_add_up,),
    SUBVOLUMES: (),
}
_WARN_ONLY = {checks.blank_fraction}


def _partition_check(asset: str, function: PartitionCheck) -> dg.AssetChecksDefinition:
    def of_partition(store: Store, partition: str) -> Outcome:
        return function(store, require_manifest(store, asset, partition))

    return check(
        asset,
        of_partition,
        em_datasets,
        is_warning=function in _WARN_ONLY,
        name=function.__name__,
        description=str(function.__doc__),
    )


def release_is_complete(store: Store, _: str) -> Outcome:
    """Every object the newest release names is in the store, with its size."""
    return checks.release_is_complete(store, list_releases(store)[-1])


def all_checks() -> list[dg.AssetChecksDefinition]:
    """Make every check of the CEM assets."""
    found = [objects_check(asset, em_datasets) for asset in _PARTITION_CHECKS]
    found.append(objects_check(CLASSIFIER))
    found += [_partition_check(asset, function) for asset, functions in _PARTITION_CHECKS.items() for function in functions]
    return [*found, check(RELEASES, release_is_complete)]
