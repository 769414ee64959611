"""All definitions of the platform; `workspace.yaml` names this module, and Dagster loads it.

They are listed here by hand, in the order in which data flow, so that they load from an installed wheel as well.
"""

import dagster as dg

from cem_assets.analyses.asset_checks import analysis_checks
from cem_assets.analyses.assets import ANALYSIS_ASSETS, comparisons
from cem_assets.analyses.class_maps.asset import class_maps
from cem_assets.analyses.jobs import analysis_comparison, weights_analyses
from cem_assets.benchmarks.asset_checks import benchmark_checks
from cem_assets.benchmarks.assets import BENCHMARK_ASSETS
from cem_assets.benchmarks.automation import BENCHMARK_SENSORS
from cem_assets.benchmarks.jobs import (
    benchmark_contamination,
    benchmark_leaderboard,
    benchmark_preparation,
    benchmark_promotion,
    benchmark_scoring,
)
from cem_assets.cem.asset_checks import all_checks
from cem_assets.cem.assets import CHAIN, subvolumes
from cem_assets.cem.automation import inbox_sensor, reconciliation_sensor, release_schedule
from cem_assets.cem.jobs import cem_chain, cem_choose_classifier, cem_patch_classifier, cem_release, cem_subvolumes
from cem_assets.cem.release_assets import patch_classifier, releases
from cem_assets.cytoimagenet.asset_checks import cyto_checks
from cem_assets.cytoimagenet.assets import crops, cyto_releases, label_table, source_metadata, test_images
from cem_assets.cytoimagenet.automation import cyto_release_schedule, cytoimagenet_sensor
from cem_assets.cytoimagenet.jobs import cyto_crops, cyto_label_table, cyto_release, cyto_sources, cyto_test_images
from cem_assets.operations.alerts import failure_alerts, freshness_alerts
from cem_assets.operations.automation import catalogue_schedule, maintenance_schedule
from cem_assets.operations.jobs import catalogue_intake, maintenance
from cem_assets.platform.pool_waits import sleep_while_waiting
from cem_assets.platform.resources import StoreResource
from cem_assets.pretraining.asset_checks import weights_checks
from cem_assets.pretraining.assets import weights
from cem_assets.pretraining.automation import WEIGHTS_SENSORS
from cem_assets.pretraining.jobs import pretraining_weights

sleep_while_waiting()


def build_definitions(store_url: str = "") -> dg.Definitions:
    """List every definition of the platform.

    Args:
        store_url: Root of the store; empty takes CEM_ASSETS_ROOT, else a local folder.
    """
    return dg.Definitions(
        assets=[
            *(*CHAIN, subvolumes, patch_classifier, releases),
            *(source_metadata, test_images, label_table, crops, cyto_releases, class_maps),
            weights,
            *BENCHMARK_ASSETS,
            *(*ANALYSIS_ASSETS, comparisons),
        ],
        asset_checks=[*all_checks(), *cyto_checks(), *weights_checks(), *benchmark_checks(), *analysis_checks()],
        jobs=[
            *(cem_chain, cem_subvolumes, cem_release, cem_patch_classifier, cem_choose_classifier),
            *(cyto_sources, cyto_test_images, cyto_label_table, cyto_crops, cyto_release),
            pretraining_weights,
            *(benchmark_preparation, benchmark_scoring, benchmark_leaderboard, benchmark_contamination, benchmark_promotion),
            *(weights_analyses, analysis_comparison),
            *(catalogue_intake, maintenance),
        ],
        sensors=[
            *(inbox_sensor, reconciliation_sensor, cytoimagenet_sensor),
            *(*WEIGHTS_SENSORS, *BENCHMARK_SENSORS),
            *(failure_alerts, freshness_alerts),
        ],
        schedules=[release_schedule, cyto_release_schedule, catalogue_schedule, maintenance_schedule],
        resources={"store": StoreResource(url=store_url)},
        # All steps of a run share one process: a process for each step takes seconds to start, and most datasets need less.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
