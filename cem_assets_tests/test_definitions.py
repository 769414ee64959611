"""What Dagster sees: keys, groups, jobs, checks, partitions; a snapshot, so that nothing changes unseen."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from cem_assets.definitions import build_definitions, defs
from cem_assets.store.assets import CODE_VERSIONS

ASSETS = {
    "cem/volumes": [],
    "cem/raw_patches": ["cem/volumes"],
    "cem/deduplicated_patches": ["cem/raw_patches"],
    "cem/patch_classifier": [],
    "cem/patch_scores": ["cem/deduplicated_patches", "cem/patch_classifier"],
    "cem/filtered_patches": ["cem/patch_scores"],
    "cem/subvolumes": ["cem/filtered_patches"],
    "cem/releases": ["cem/filtered_patches"],
    "cytoimagenet/source_metadata": [],
    "cytoimagenet/test_images": ["cytoimagenet/source_metadata"],
    "cytoimagenet/label_table": ["cytoimagenet/source_metadata"],
    "cytoimagenet/crops": ["cytoimagenet/label_table", "cytoimagenet/test_images"],
    "cytoimagenet/releases": ["cytoimagenet/crops"],
    "cytoimagenet/class_maps": ["cem/patch_classifier", "cytoimagenet/releases"],
    "pretraining/weights": ["cem/releases", "cytoimagenet/releases"],
    "benchmarks/data": [],
    "benchmarks/scores": ["benchmarks/data", "pretraining/weights"],
    "benchmarks/leaderboard": ["benchmarks/scores"],
    "benchmarks/contamination": ["benchmarks/data", "cem/releases", "cytoimagenet/releases"],
    "benchmarks/promotions": ["benchmarks/leaderboard", "pretraining/weights"],
    "analyses/invariance": ["cem/filtered_patches", "cem/releases", "pretraining/weights"],
    "analyses/occlusion": ["cem/filtered_patches", "cem/releases", "pretraining/weights"],
    "analyses/organelles": ["pretraining/weights"],
    "analyses/dataset_maps": ["cem/filtered_patches", "cem/releases", "pretraining/weights"],
    "analyses/dataset_distances": ["cem/filtered_patches", "cem/releases", "pretraining/weights"],
    "analyses/comparisons": [
        "analyses/dataset_distances",
        "analyses/dataset_maps",
        "analyses/invariance",
        "analyses/occlusion",
        "analyses/organelles",
    ],
}
OF_WEIGHTS = tuple(name for name in ASSETS if name.startswith("analyses/") and name != "analyses/comparisons")
ON_GPU = (
    "cem/patch_scores",
    "cem/patch_classifier",
    "cytoimagenet/class_maps",
    "pretraining/weights",
    "benchmarks/scores",
    *OF_WEIGHTS,
)
PARTITIONED = {
    **dict.fromkeys(
        (
            "cem/volumes",
            "cem/raw_patches",
            "cem/deduplicated_patches",
            "cem/patch_scores",
            "cem/filtered_patches",
            "cem/subvolumes",
        ),
        "em_datasets",
    ),
    "cytoimagenet/source_metadata": "microscopy_sources",
    "cytoimagenet/crops": "cyto_labels",
    "pretraining/weights": "weights",
    "benchmarks/data": "benchmarks",
    "benchmarks/scores": "benchmark|weights",
    **dict.fromkeys(OF_WEIGHTS, "weights"),
}
CHECKED_OTHERWISE = ("/scores", "/contamination", "/promotions")
CHECKS = {
    *(
        f"{name}:objects_match_manifest"
        for name in ASSETS
        if not name.endswith(("/releases", *CHECKED_OTHERWISE)) and not name.startswith("analyses/")
    ),
    "cytoimagenet/source_metadata:metadata_obeys_schema",
    "cytoimagenet/label_table:labels_obey_rules",
    "cytoimagenet/crops:crops_add_up",
    "cytoimagenet/crops:no_test_images",
    "cytoimagenet/releases:cyto_release_is_complete",
    "cem/raw_patches:raw_counts_add_up",
    "cem/raw_patches:patches_lie_inside",
    "cem/raw_patches:blank_fraction",
    "cem/deduplicated_patches:exemplars_are_distinct",
    "cem/deduplicated_patches:duplicates_have_exemplars",
    "cem/patch_scores:scores_are_probabilities",
    "cem/filtered_patches:filtered_counts_add_up",
    "cem/releases:release_is_complete",
    "pretraining/weights:weights_give_features",
    "benchmarks/scores:scores_are_whole",
    "benchmarks/contamination:releases_are_uncontaminated",
    "benchmarks/promotions:gate_passes",
    *(f"{name}:analyses_are_whole" for name in OF_WEIGHTS),
    "analyses/comparisons:comparisons_are_whole",
}
JOBS = {
    "cem_chain", "cem_subvolumes", "cem_release", "cem_patch_classifier", "cem_choose_classifier", "catalogue_intake",
    "maintenance",
    "cyto_sources", "cyto_test_images", "cyto_label_table", "cyto_crops", "cyto_release", "pretraining_weights",
    "benchmark_data", "benchmark_scores", "benchmark_leaderboard", "benchmark_contamination", "benchmark_promotion",
    "analyses", "analysis_comparison",
}  # fmt: skip
SENSORS = {
    "inbox",
    "reconciliation",
    "cytoimagenet",
    "weights",
    "tracking_outbox",
    "benchmarks",
    "failure_alerts",
    "freshness_alerts",
}
SCHEDULES = {
    "releases": "cem_release",
    "cytoimagenet_releases": "cyto_release",
    "catalogue": "catalogue_intake",
    "maintenance": "maintenance",
}


@pytest.fixture(scope="module")
def graph():
    return defs.resolve_asset_graph()


def test_assets_and_what_they_are_made_from(graph):
    found = {
        key.to_user_string(): sorted(k.to_user_string() for k in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    assert found == ASSETS


def test_key_group_prefix_and_code_version_are_one_word(graph):
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name == key.path[0] in ("cem", "cytoimagenet", "pretraining", "benchmarks", "analyses")
        assert node.code_version == CODE_VERSIONS[key.to_user_string()]


def name_of(partitions: dg.PartitionsDefinition) -> str:
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return "|".join(dimension.name for dimension in partitions.partitions_defs)
    assert isinstance(partitions, dg.DynamicPartitionsDefinition)
    return str(partitions.name)


def test_partitions_are_datasets_sources_labels_weights_and_benchmarks(graph):
    for key in graph.get_all_asset_keys():
        partitions = graph.get(key).partitions_def
        assert (partitions is not None) == (key.to_user_string() in PARTITIONED)
        if partitions is not None:
            assert name_of(partitions) == PARTITIONED[key.to_user_string()]


def test_checks_are_per_partition_and_block_unless_they_warn(graph):
    found = {f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys}
    assert found == CHECKS
    for key in graph.asset_check_keys:
        spec = graph.get_check_spec(key)
        assert spec.blocking == (key.name not in ("blank_fraction", "gate_passes"))
        assert (spec.partitions_def is not None) == (key.asset_key.to_user_string() in PARTITIONED), key
        assert spec.description


def test_descriptions_are_written_for_people(graph):
    for key in graph.get_all_asset_keys():
        description = graph.get(key).description
        assert description and len(description) > 150 and description.splitlines()[0].endswith((".", ":"))


def test_jobs():
    assert {job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")} == JOBS


def test_what_runs_by_itself_runs_from_the_start():
    assert {sensor.name for sensor in defs.sensors} == SENSORS
    assert {schedule.name: schedule.job_name for schedule in defs.schedules} == SCHEDULES
    assert all(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in defs.sensors)
    assert all(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in defs.schedules)


@pytest.mark.parametrize("name", ["cem_assets/dagster.yaml", "deploy/dagster.production.yaml"])
def test_instance_configuration_is_what_dagster_takes(name):
    import yaml
    from dagster._config import validate_config
    from dagster._core.instance.config import dagster_instance_config_schema

    config = yaml.safe_load((Path(__file__).parents[2] / name).read_text())
    result = validate_config(dagster_instance_config_schema(), config)
    assert result.success, result.errors
    assert config["telemetry"] == {"enabled": False} and config["concurrency"]["pools"]["default_limit"] == 1
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] > 0
    assert config["run_retries"]["retry_on_asset_or_op_failure"] is False, "bad data is not tried again"


def test_gpu_work_is_in_a_pool():
    for name in ASSETS:
        op = defs.resolve_assets_def(dg.AssetKey(name.split("/"))).op
        assert (op.pool == "gpu") == (name in ON_GPU)


def test_the_store_can_be_given():
    assert build_definitions("s3://bucket/x").resources["store"].url == "s3://bucket/x"


def test_loading_definitions_imports_neither_torch_nor_mlflow():
    code = "import sys, cem_assets.definitions; print([m for m in ('torch', 'mlflow', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_readers_need_no_dagster():
    code = "import sys, cem_assets.readers; print([m for m in ('dagster', 'torch', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_workers_need_no_dagster_and_no_torch():
    code = "import sys, cem_assets.cem.volumes.standardize, cem_assets.cem.patches.pixels\n"
    code += "print([m for m in ('dagster', 'torch', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
