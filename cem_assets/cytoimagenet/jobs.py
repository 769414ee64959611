"""The jobs of CytoImageNet."""

import dagster as dg

from cem_assets.cytoimagenet.assets import crops, cyto_releases, label_table, source_metadata, test_images
from cem_assets.platform.partitions import cyto_labels, microscopy_sources
from cem_assets.store.assets import CLASS_MAPS

cyto_sources = dg.define_asset_job(
    "cyto_sources",
    dg.AssetSelection.assets(source_metadata),
    description="Makes the metadata of microscopy sources, one source in each run.",
    partitions_def=microscopy_sources,
)


cyto_test_images = dg.define_asset_job(
    "cyto_test_images", dg.AssetSelection.assets(test_images), description="Fingerprints the benchmarks' images."
)


cyto_label_table = dg.define_asset_job(
    "cyto_label_table", dg.AssetSelection.assets(label_table), description="Assigns weak labels to the images of all sources."
)


cyto_crops = dg.define_asset_job(
    "cyto_crops",
    dg.AssetSelection.assets(crops),
    description="Makes the images of weak labels, one label in each run.",
    partitions_def=cyto_labels,
)


cyto_release = dg.define_asset_job(
    "cyto_release",
    dg.AssetSelection.assets(cyto_releases) | dg.AssetSelection.assets(CLASS_MAPS.split("/")),
    description="Makes a new release of CytoImageNet if anything changed, and maps of its classes.",
)
