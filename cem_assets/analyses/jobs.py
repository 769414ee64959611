"""Jobs of the analyses."""

import dagster as dg

from cem_assets.analyses.assets import ANALYSIS_ASSETS, comparisons
from cem_assets.platform.partitions import (
    weights_rows,
)

weights_analyses = dg.define_asset_job(
    "analyses",
    dg.AssetSelection.assets(*ANALYSIS_ASSETS),
    description="Analyses of one encoder: invariance, occlusion, organelles, maps of and distances between datasets.",
    partitions_def=weights_rows,
)


analysis_comparison = dg.define_asset_job(
    "analysis_comparison", dg.AssetSelection.assets(comparisons), description="Sets analyses of several weights side by side."
)
