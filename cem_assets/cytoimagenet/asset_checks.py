"""The checks of CytoImageNet's assets, as Dagster runs them; a failure stops what would be made from the partition."""

import dagster as dg

from cem_assets.cytoimagenet import checks
from cem_assets.platform.assets import check, objects_check
from cem_assets.platform.partitions import cyto_labels, microscopy_sources
from cem_assets.store.assets import CLASS_MAPS, CROPS, CYTO_RELEASES, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES


def cyto_checks() -> list[dg.AssetChecksDefinition]:
    """Make every check of CytoImageNet's assets."""
    return [
        objects_check(SOURCE_METADATA, microscopy_sources),
        objects_check(TEST_IMAGES),
        objects_check(LABEL_TABLE),
        objects_check(CROPS, cyto_labels),
        objects_check(CLASS_MAPS),
        check(LABEL_TABLE, checks.labels_obey_rules),
        check(CYTO_RELEASES, checks.cyto_release_is_complete),
        check(SOURCE_METADATA, checks.metadata_obeys_schema, microscopy_sources),
        check(CROPS, checks.crops_add_up, cyto_labels),
        check(CROPS, checks.no_test_images, cyto_labels),
    ]
