"""The definitions that Dagster loads: a snapshot of all of them, and rules that hold for each."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from cem_assets.definitions import build_definitions, defs
from cem_assets.store.assets import CODE_VERSIONS
from cem_assets_tests.definitions_snapshot import snapshot

SNAPSHOT = Path(__file__).with_name("definitions_snapshot.json")


@pytest.fixture(scope="module")
def graph():
    return defs.resolve_asset_graph()


def test_definitions_are_those_of_the_snapshot():
    found, expected = snapshot(defs), json.loads(SNAPSHOT.read_text())
    for section in sorted(found | expected):
        assert found.get(section) == expected.get(section), f"{section} differ; where that is meant, write the snapshot again"


def test_key_group_prefix_and_code_version_are_one_word(graph):
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name == key.path[0] in ("cem", "cytoimagenet", "pretraining", "benchmarks", "analyses")
        assert node.code_version == CODE_VERSIONS[key.to_user_string()]


def test_checks_are_per_partition_and_block_unless_they_warn(graph):
    for key in graph.asset_check_keys:
        spec = graph.get_check_spec(key)
        assert spec.blocking == (key.name not in ("blank_fraction", "gate_passes"))
        assert spec.partitions_def == graph.get(key.asset_key).partitions_def, key
        assert spec.description


def test_descriptions_are_written_for_people(graph):
    for key in graph.get_all_asset_keys():
        description = graph.get(key).description
        assert description and len(description) > 150 and description.splitlines()[0].endswith((".", ":"))


def test_what_runs_by_itself_runs_from_the_start():
    assert all(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in defs.sensors)
    assert all(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in defs.schedules)


@pytest.mark.parametrize("name", ["cem_assets/dagster.yaml", "deploy/dagster.production.yaml"])
def test_instance_configuration_is_what_dagster_takes(name):
    import yaml

    # Dagster has no public function that checks a dagster.yaml without connecting to its databases.
    from dagster._config import validate_config
    from dagster._core.instance.config import dagster_instance_config_schema

    config = yaml.safe_load((Path(__file__).parents[1] / name).read_text())
    result = validate_config(dagster_instance_config_schema(), config)
    assert result.success, result.errors
    assert config["telemetry"] == {"enabled": False} and config["concurrency"]["pools"]["default_limit"] == 1
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] > 0
    assert config["run_retries"]["retry_on_asset_or_op_failure"] is False, "bad data is not tried again"


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
