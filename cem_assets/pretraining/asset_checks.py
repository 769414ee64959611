"""Asset checks of weights. They block what is made from the weights, because scoring broken weights costs hours."""

import dagster as dg

from cem_assets.platform.assets import check, objects_check
from cem_assets.platform.partitions import weights_rows
from cem_assets.pretraining.checks import weights_give_features
from cem_assets.store.assets import WEIGHTS


def weights_checks() -> list[dg.AssetChecksDefinition]:
    """Make the checks of weights."""
    return [objects_check(WEIGHTS, weights_rows), check(WEIGHTS, weights_give_features, weights_rows)]
