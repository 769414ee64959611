"""Benchmarks in Dagster and at the command line: pairs of benchmark and weights, sweeps, leaderboard, contamination, gate."""

import dagster as dg
import pytest

from cem_assets import readers
from cem_assets.benchmarks.automation import benchmarks_sensor
from cem_assets.benchmarks.rows import known_benchmarks
from cem_assets.cli.benchmark_runs import Sweep, benchmark_lines, promote_weights, score_all
from cem_assets.cli.main import main
from cem_assets.cli.runs import failures, run_job
from cem_assets.platform.partitions import benchmark_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.pretraining.rows import ROWS
from cem_assets.store.assets import BENCHMARK_SCORES, CONTAMINATION, LEADERBOARD, RELEASES, WEIGHTS
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store, open_store
from cem_assets_tests.benchmarks.benchmark_sets import prepare_all, put_weights
from cem_assets_tests.cytoimagenet.example_sources import copy_of
from cem_assets_tests.platform.test_materializing import metadata_of, picture_of
from cem_assets_tests.pretraining.training_sets import put_filtered, textures

QUICK = {"device": "cpu", "num_threads": 1, "has_map": False, "max_pictures": 1}
TRAINED = b"""
[tiny]
kind = "trained"
title = "Never trained"
method = "moco"
preset = "smoke"
arch = "resnet18"
dataset = "cem"
params = { epochs = 1, batch_size = 16, queue = 32 }
"""


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with prepared benchmarks and two encoders, which tests copy."""
    store = open_store(str(tmp_path_factory.mktemp("prepared")))
    prepare_all(store, tmp_path_factory.mktemp("files"))
    put_weights(store, "first")
    put_weights(store, "second", seed=1)
    return store


@pytest.fixture
def benchmarked(prepared: Store, local_store: Store) -> Store:
    return copy_of(prepared, local_store)


def pair(benchmark: str, weights: str) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"benchmark": benchmark, "weights": weights})


def score(instance, store: Store, benchmark: str, weights: str, **config):
    return run_job(
        instance,
        store.url,
        "benchmark_scores",
        partition=pair(benchmark, weights),
        config={BENCHMARK_SCORES: {**QUICK, **config}},
    )


def test_a_pair_is_scored_and_shows_where_it_goes_wrong(instance, benchmarked):
    result = score(instance, benchmarked, "discs", "first")
    assert result.success, failures(result)
    shown = metadata_of(result, BENCHMARK_SCORES)
    assert 0 <= shown["score"].value <= 1 and "iou" in shown["scores"].value
    assert any(getattr(value, "value", None) and "data:image" in str(value.value) for value in shown.values())
    assert [item.passed for item in result.get_asset_check_evaluations()] == [True]
    other = score(instance, benchmarked, "discs", "first", seed=7)
    assert other.success
    found = readers.read_scores("discs", "first", root=benchmarked.url)
    assert sorted(set(found["seed"])) == [7, 42] and found["folder"].nunique() == 2


def test_a_pair_that_cannot_be_scored_says_what_to_do(instance, benchmarked):
    for benchmark, weights, told in (("discs", "nobody", "nobody"), ("lucchi_pp", "first", "benchmarks/data")):
        result = score(instance, benchmarked, benchmark, weights)
        assert not result.success and told in failures(result)[0], failures(result)


def test_a_sweep_scores_every_combination_and_ends_with_the_leaderboard(benchmarked, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    sweep = Sweep(["discs"], ["first", "nobody", "second"], iterations=[2, 3], seeds=[1])
    outcomes = list(score_all(benchmarked, sweep, QUICK))
    assert len(sweep) == 6 and len(outcomes) == 7
    assert sum(bool(problems) for _, problems in outcomes) == 2, "one failure does not end the sweep"
    table = readers.read_leaderboard(benchmarked.url)
    ours = table[~table["is_published"]]
    assert set(ours["weights"]) == {"first", "second"} and set(ours["iterations"]) == {2, 3}
    assert "leaderboard: " in outcomes[-1][0][0]
    manifest = require_manifest(benchmarked, LEADERBOARD)
    assert {"README.md", "leaderboard.csv", "discs.png"} <= {item.name for item in manifest.objects}
    assert any(line.startswith("discs ") and "not prepared" not in line for line in benchmark_lines(benchmarked))
    lines, is_promoted = promote_weights(benchmarked, "first")
    assert not is_promoted and "discs" in "".join(lines), "no gated benchmark was scored"
    lines, is_promoted = promote_weights(benchmarked, "first", reason="the first one")
    assert is_promoted and "the first one" in "".join(lines)


def test_the_command_line_asks_for_both_names(benchmarked, capsys):
    assert main(["--root", benchmarked.url, "benchmark", "--weights", "first"]) == 1
    assert "belong together" in capsys.readouterr().err
    assert main(["--root", benchmarked.url, "benchmark"]) == 0
    assert "lucchi_pp" in capsys.readouterr().out


def test_the_sensor_offers_benchmarks_and_asks_for_a_leaderboard_once(instance, benchmarked):
    store = StoreResource(url=benchmarked.url)
    with dg.build_sensor_context(instance=instance, resources={"store": store}) as context:
        first = benchmarks_sensor(context)
    (request,) = first.dynamic_partitions_requests
    assert set(request.partition_keys) == set(known_benchmarks(benchmarked)) and first.run_requests == []
    instance.add_dynamic_partitions(str(benchmark_rows.name), list(request.partition_keys))
    assert score(instance, benchmarked, "discs", "first", iterations=2).success
    with dg.build_sensor_context(instance=instance, resources={"store": store}) as context:
        assert len(benchmarks_sensor(context).run_requests) == 1
    result = run_job(instance, benchmarked.url, "benchmark_leaderboard")
    assert result.success, failures(result)
    assert picture_of(metadata_of(result, LEADERBOARD)["discs"]).width > 100
    with dg.build_sensor_context(instance=instance, resources={"store": store}) as context:
        assert benchmarks_sensor(context).run_requests == []


def test_a_release_with_test_images_is_not_trained_on(instance, benchmarked):
    from cem_assets.benchmarks.data.segmentation_sets import open_benchmark

    (item, *_) = open_benchmark(benchmarked, "discs").items("test")
    planted = item.image[tuple(slice(0, side) for side in item.shape)]
    put_filtered(benchmarked, "clean", textures(36.0, 40, 0))
    put_filtered(benchmarked, "planted", [planted, planted[::-1].copy()])
    benchmarked.put(ROWS, TRAINED)
    assert run_job(instance, benchmarked.url, "cem_release").success
    report = run_job(instance, benchmarked.url, "benchmark_contamination")
    found = require_manifest(benchmarked, CONTAMINATION, "cem-v1")
    assert found.counts["contaminated_patches"] == 2
    (check,) = report.get_asset_check_evaluations()
    assert not check.passed and "exclude_contaminated" in check.description
    training = {WEIGHTS: {"device": "cpu", "num_threads": 1, "num_processes": 1, "num_knn_images": 0}}
    refused = run_job(instance, benchmarked.url, "pretraining_weights", partition="tiny", config=training)
    assert not refused.success and "show test images of benchmarks (both, discs)" in failures(refused)[0]
    assert run_job(instance, benchmarked.url, "cem_release", config={RELEASES: {"exclude_contaminated": True}}).success
    clean = run_job(instance, benchmarked.url, "benchmark_contamination")
    assert [check.passed for check in clean.get_asset_check_evaluations()] == [True]
    trained = run_job(instance, benchmarked.url, "pretraining_weights", partition="tiny", config=training)
    assert trained.success, failures(trained)
    assert dict(require_manifest(benchmarked, WEIGHTS, "tiny").inputs.upstream).keys() == {"cem/releases/v2"}
