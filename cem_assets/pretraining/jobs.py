"""Jobs of pretraining."""

import dagster as dg

from cem_assets.platform.partitions import weights_rows
from cem_assets.pretraining.assets import weights

pretraining_weights = dg.define_asset_job(
    "pretraining_weights",
    dg.AssetSelection.assets(weights),
    description="Trains or imports encoder weights, one row of the catalogue a run.",
    partitions_def=weights_rows,
)
