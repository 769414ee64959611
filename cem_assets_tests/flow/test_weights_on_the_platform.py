"""Weights on the platform as deployed: training, stopping, resuming and scoring through its server and a browser."""

import dagster as dg
import pytest

from cem_assets import readers
from cem_assets.pretraining.plan import make_plan
from cem_assets.pretraining.rows import ROWS, known_weights
from cem_assets.pretraining.training.runs import read_status
from cem_assets.store.assets import BENCHMARK_DATA, LEADERBOARD, WEIGHTS
from cem_assets.store.manifests import current_manifest
from cem_assets.store.store import Store
from cem_assets_tests.benchmarks.benchmark_sets import prepare_all
from cem_assets_tests.flow.test_platform import OUTPUT
from cem_assets_tests.pretraining.training_sets import texture_release
from cem_assets_tests.services import browser
from cem_assets_tests.services.stack import Stack, wait_for

SETTINGS = """
[long_moco]
kind = "trained"
title = "MoCo on textures, for long"
method = "moco"
preset = "smoke"
arch = "resnet18"
dataset = "cem"
params = { epochs = 400, batch_size = 16, queue = 32 }
"""
LOOP = {"device": "cpu", "num_threads": 1, "num_knn_images": 0, "num_processes": 1}
TERMINATE = """
mutation Stop($run: String!) { terminateRun(runId: $run) { __typename ... on PythonError { message } } }
"""
EVENTS = """
query Events($run: ID!) {
  logsForRun(runId: $run) {
    ... on EventConnection { events { ... on ExecutionStepFailureEvent { error { message causes { message } } }
                                      ... on RunFailureEvent { error { message } } } }
  }
}
"""


def status_of(platform: Stack, run: str) -> str:
    return next(item["status"] for item in platform.runs() if item["runId"] == run)


def failure_of(platform: Stack, run: str) -> str:
    found = platform.graphql(EVENTS, run=run)["logsForRun"]
    return "\n".join(str(event["error"]) for event in found.get("events", []) if event.get("error"))[:3000]


def launch(platform: Stack, job: str, partition: str, asset: str, config: dict) -> str:
    return platform.launch(job, partition, {"ops": {asset.replace("/", "__"): {"config": config}}})


def test_weights_are_trained_stopped_resumed_and_scored(platform: Stack, platform_store: Store, tmp_path):
    if reason := browser.install():
        pytest.skip(reason)
    OUTPUT.mkdir(exist_ok=True)
    texture_release(platform_store, {"coarse": 24, "fine": 16})
    prepare_all(platform_store, tmp_path)
    platform_store.put(ROWS, SETTINGS.encode())
    plan = make_plan(platform_store, known_weights(platform_store)["long_moco"])

    run = launch(platform, "pretraining_weights", "long_moco", WEIGHTS, LOOP)
    wait_for("an epoch", lambda: (found := read_status(platform_store, plan.folder)) is not None and found.epoch >= 1, 180)
    platform.graphql(TERMINATE, run=run)
    wait_for("the run's end", lambda: status_of(platform, run) in ("CANCELED", "FAILURE", "SUCCESS"), 90)
    assert status_of(platform, run) == "CANCELED"
    stopped = read_status(platform_store, plan.folder)
    assert stopped.state == "stopped" and 1 <= stopped.epoch < 400
    assert current_manifest(platform_store, WEIGHTS, "long_moco") is None

    again = launch(platform, "pretraining_weights", "long_moco", WEIGHTS, {**LOOP, "params": {"epochs": stopped.epoch + 2}})
    wait_for("weights", lambda: status_of(platform, again) in ("SUCCESS", "FAILURE"), 180)
    assert status_of(platform, again) == "SUCCESS", failure_of(platform, again)
    assert current_manifest(platform_store, WEIGHTS, "long_moco").details["epoch"] == stopped.epoch + 2

    pair = dg.MultiPartitionKey({"benchmark": "discs", "weights": "long_moco"})
    scored = launch(platform, "benchmark_scores", str(pair), "benchmarks/scores", {"device": "cpu", "num_threads": 1})
    wait_for("a score", lambda: status_of(platform, scored) in ("SUCCESS", "FAILURE"), 180)
    assert status_of(platform, scored) == "SUCCESS", failure_of(platform, scored)
    # The sensor requested it, because a score is newer than the leaderboard.
    wait_for("a leaderboard", lambda: current_manifest(platform_store, LEADERBOARD) is not None, 120)
    assert "long_moco" in set(readers.read_leaderboard(platform_store.url)["weights"])
    assert current_manifest(platform_store, BENCHMARK_DATA, "discs") is not None

    with browser.open_page() as page:
        page.goto(f"{platform.url}/assets/pretraining/weights?view=partitions&partition=long_moco")
        page.get_by_text("model card").first.wait_for(timeout=30_000)
        page.screenshot(path=str(OUTPUT / "weights.png"), full_page=True)
        page.goto(f"{platform.url}/assets/benchmarks/leaderboard")
        page.get_by_text("leaderboard").first.wait_for(timeout=30_000)
        page.screenshot(path=str(OUTPUT / "leaderboard.png"), full_page=True)
        page.goto(f"{platform.environment['MLFLOW_TRACKING_URI']}/#/models/long_moco")
        page.get_by_text("long_moco").first.wait_for(timeout=30_000)
        page.screenshot(path=str(OUTPUT / "model.png"))
