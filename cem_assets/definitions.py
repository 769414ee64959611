"""The front door: what `workspace.yaml` names and Dagster loads.

Definitions are listed, not discovered, so that they load from an installed wheel as well.
"""

import dagster as dg

from cem_assets.defs.alerts import failure_alerts, freshness_alerts
from cem_assets.defs.analyses import ANALYSIS_ASSETS, comparisons
from cem_assets.defs.analyses_checks import analysis_checks
from cem_assets.defs.automation import ALL_SCHEDULES, ALL_SENSORS
from cem_assets.defs.benchmarks import BENCHMARK_ASSETS
from cem_assets.defs.benchmarks_automation import BENCHMARK_SENSORS
from cem_assets.defs.benchmarks_checks import benchmark_checks
from cem_assets.defs.cem import CHAIN, subvolumes
from cem_assets.defs.cem_releases import patch_classifier, releases
from cem_assets.defs.checks import all_checks
from cem_assets.defs.cyto_automation import CYTO_SCHEDULES, CYTO_SENSORS
from cem_assets.defs.cyto_checks import cyto_checks
from cem_assets.defs.cytoimagenet import CYTO_ASSETS
from cem_assets.defs.jobs import ALL_JOBS
from cem_assets.defs.pool_waits import sleep_while_waiting
from cem_assets.defs.pretraining import weights
from cem_assets.defs.pretraining_automation import WEIGHTS_SENSORS
from cem_assets.defs.pretraining_checks import weights_checks
from cem_assets.defs.resources import StoreResource

sleep_while_waiting()


def build_definitions(store_url: str = "") -> dg.Definitions:
    """Build every definition of the platform.

    Args:
        store_url: Root of the store; empty takes CEM_ASSETS_ROOT, else a local folder.

    Returns:
        Assets, checks, jobs, sensors, schedules and resources.
    """
    return dg.Definitions(
        assets=[
            *CHAIN,
            subvolumes,
            patch_classifier,
            releases,
            *CYTO_ASSETS,
            weights,
            *BENCHMARK_ASSETS,
            *ANALYSIS_ASSETS,
            comparisons,
        ],
        asset_checks=[*all_checks(), *cyto_checks(), *weights_checks(), *benchmark_checks(), *analysis_checks()],
        jobs=ALL_JOBS,
        sensors=[*ALL_SENSORS, *CYTO_SENSORS, *WEIGHTS_SENSORS, *BENCHMARK_SENSORS, failure_alerts, freshness_alerts],
        schedules=[*ALL_SCHEDULES, *CYTO_SCHEDULES],
        resources={"store": StoreResource(url=store_url)},
        # One process for a whole run: a process of its own for each step costs seconds, most datasets take less.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
