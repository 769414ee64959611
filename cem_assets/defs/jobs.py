"""Jobs: what people and sensors launch."""

import dagster as dg

from cem_assets.defs.cem import CHAIN
from cem_assets.defs.cem_releases import patch_classifier, releases
from cem_assets.defs.partitions import em_datasets

cem_chain = dg.define_asset_job(
    "cem_chain",
    dg.AssetSelection.assets(*CHAIN),
    description="From the inbox to filtered patches, one dataset a run.",
    partitions_def=em_datasets,
)
cem_release = dg.define_asset_job(
    "cem_release", dg.AssetSelection.assets(releases), description="A new release, where anything changed."
)
cem_patch_classifier = dg.define_asset_job(
    "cem_patch_classifier", dg.AssetSelection.assets(patch_classifier), description="Import or train the patch classifier."
)

ALL_JOBS = [cem_chain, cem_release, cem_patch_classifier]
