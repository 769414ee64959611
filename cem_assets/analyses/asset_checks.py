"""Asset checks of analyses: objects are whole, and numbers are within the bounds of what they measure."""

from functools import partial

import dagster as dg

from cem_assets.analyses.checks import analyses_are_whole, comparisons_are_whole
from cem_assets.analyses.results import ANALYSES
from cem_assets.platform.assets import check
from cem_assets.platform.partitions import weights_rows
from cem_assets.store.assets import COMPARISONS


def analysis_checks() -> list[dg.AssetChecksDefinition]:
    """Make the checks of analyses."""
    name, description = analyses_are_whole.__name__, str(analyses_are_whole.__doc__)
    return [
        *(
            check(asset, partial(analyses_are_whole, asset=asset), weights_rows, name=name, description=description)
            for asset in ANALYSES.values()
        ),
        check(COMPARISONS, comparisons_are_whole),
    ]
