"""The platform as deployed: processes on real PostgreSQL and S3, seen through a real browser."""

import os
import shutil
import subprocess
import threading
import time

import pytest

from cem_assets import readers
from cem_assets.store.assets import FILTERED, STAGES
from cem_assets.store.manifests import committed_partitions, current_manifest, manifest_numbers
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cem.chain import import_classifier
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox, toml, volume_dataset
from cem_assets_tests.flow.conftest import SHAPE
from cem_assets_tests.services import browser, postgres
from cem_assets_tests.services.stack import ROOT, Stack, wait_for

OUTPUT = ROOT / "test-output"


def test_what_is_dropped_into_the_inbox_is_in_a_release_and_seen_in_the_browser(platform: Stack, platform_store: Store):
    if reason := browser.install():
        pytest.skip(reason)
    OUTPUT.mkdir(exist_ok=True)
    with browser.open_page() as page:
        page.goto(f"{platform.url}/assets/cem/patch_classifier")
        page.locator("button:has-text('Materialize')").first.click()
        wait_for("the classifier's run", lambda: any(run["status"] == "SUCCESS" for run in platform.runs()), 120)
        (run,) = platform.runs()
        page.goto(f"{platform.url}/runs/{run['runId']}")
        page.get_by_text("Success", exact=False).first.wait_for(timeout=30_000)
        page.screenshot(path=str(OUTPUT / "run.png"))

        volume_dataset(platform_store, "from_inbox")
        wait_for("a release", lambda: readers.list_releases(platform_store.url), 240)
        assert "from_inbox" in readers.read_release(root=platform_store.url).datasets["dataset"].tolist()
        assert len(list(readers.read_release(root=platform_store.url).iter_images())) > 0

        page.goto(f"{platform.url}/locations/cem_assets/asset-groups/cem/lineage")
        page.get_by_text("filtered_patches").first.wait_for(timeout=30_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=str(OUTPUT / "asset_graph.png"))
        page.goto(f"{platform.url}/assets/cem/filtered_patches?view=partitions&partition=from_inbox")
        page.get_by_text("from_inbox").first.wait_for(timeout=30_000)
        page.get_by_text("Show Markdown").first.click()
        picture = page.locator("img[alt=picture]").first
        picture.wait_for(timeout=30_000)
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 300, "the gallery is drawn"
        page.screenshot(path=str(OUTPUT / "gallery.png"))
    runs = platform.runs()
    assert [run["jobName"] for run in runs if run["tags"].get("dagster/partition") == "from_inbox"] == ["cem_chain"]
    assert all(run["status"] == "SUCCESS" for run in runs)


def test_no_secret_is_in_logs_metadata_tags_or_the_store(platform: Stack, platform_store: Store, database, s3):
    """Look for the keys of the stack after one run that succeeded and one that failed; none may be found."""
    put_in_inbox(platform_store, "broken", {"v.nrrd": b"NRRD0004\nnot really"})
    failed = wait_for("the failing run", lambda: [run for run in platform.runs() if run["status"] == "FAILURE"], 120)
    assert failed[0]["tags"]["dagster/partition"] == "broken"
    dump = subprocess.run(
        [shutil.which("pg_dump") or "pg_dump", "--dbname", database.url("dagster", "postgresql")],
        capture_output=True,
        check=True,
    ).stdout
    assert b"from_inbox" in dump or b"broken" in dump, "the dump holds the runs"
    places = {"database": dump}
    places |= {path.name: path.read_bytes() for path in platform.folder.glob("*.log")}
    everything = open_store(f"s3://{s3.bucket}")
    for folder in everything.folders(""):
        if folder.startswith(platform_store.url.rsplit("/", 1)[-1]):
            places |= {item.key: everything.read(item.key) for item in everything.walk(folder)}
    assert any("-logs/" in place for place in places) and len(places) > 20
    for secret in (os.environ["AWS_SECRET_ACCESS_KEY"].encode(), postgres.PASSWORD.encode()):
        leaks = [place for place, data in places.items() if secret in data]
        assert leaks == []


def test_a_cut_database_killed_parts_and_a_gateway_away_lose_nothing(
    platform: Stack, platform_store: Store, database, s3, undisturbed, weights
):
    """Run a short series of faults; `make soak` has the long one."""
    import_classifier(platform_store, weights)
    put_in_inbox(platform_store, "x", {"v.nrrd": nrrd_bytes(cells(SHAPE))}, toml("x"))
    wait_for("the run of x", lambda: any(is_run_of(run, "x") for run in platform.runs()), 60, 0.2)
    platform.kill("daemon")
    database.restart()
    platform.kill_run_workers()
    if s3.server is not None:
        s3.server.stop_gateway()
        threading.Timer(5, s3.server.start).start()
    platform.start("daemon")
    check_whole(platform, platform_store, "x", undisturbed, 240)


def is_run_of(run: dict, dataset: str) -> bool:
    return run["tags"].get("dagster/partition") == dataset and run["jobName"] == "cem_chain"


def check_whole(platform: Stack, platform_store: Store, dataset: str, undisturbed: dict[str, str], seconds: float) -> None:
    """Wait until a dataset is filtered, and check that it equals an undisturbed run and was committed once."""

    def is_there() -> bool:
        try:
            return current_manifest(platform_store, FILTERED, dataset) is not None
        except Exception:
            return False  # the server may be away just now

    wait_for(f"{dataset} filtered", is_there, seconds)
    for stage, asset in STAGES.items():
        if stage in undisturbed:
            assert current_manifest(platform_store, asset, dataset).digest == undisturbed[stage], stage
        assert len(manifest_numbers(platform_store, f"{asset}/{dataset}")) == 1, f"{asset} was committed once"


@pytest.mark.soak
def test_each_part_may_be_killed_while_a_dataset_is_taken_in(
    platform: Stack, platform_store: Store, database, s3, undisturbed, weights
):
    """Cause one fault after another, each in the middle of a run of the same data."""
    import_classifier(platform_store, weights)
    faults = {
        "database": database.restart,
        "daemon": lambda: (platform.kill("daemon"), platform.start("daemon")),
        "worker": platform.kill_run_workers,
        "code-server": lambda: (platform.kill("code"), platform.start("code")),
    }
    if s3.server is not None:
        faults["gateway"] = lambda: (s3.server.stop_gateway(), time.sleep(30), s3.server.start())
    for name, fault in faults.items():
        # The files and their name stay the same, because the digests must not depend on the faults.
        for asset in (*STAGES.values(), "inbox"):
            platform_store.delete([item.key for item in platform_store.walk(f"{asset}/x")])
        put_in_inbox(platform_store, "x", {"v.nrrd": nrrd_bytes(cells(SHAPE))}, toml("x"))
        seen = {run["runId"] for run in platform.runs()}
        wait_for(
            f"the run of x before {name}",
            lambda seen=seen: any(
                is_run_of(run, "x") and run["status"] == "STARTED" and run["runId"] not in seen for run in platform.runs()
            ),
            120,
            0.2,
        )
        fault()
        check_whole(platform, platform_store, "x", undisturbed, 400)


@pytest.mark.soak
def test_two_hundred_datasets_are_taken_in_once_and_the_daemon_does_not_grow(platform: Stack, platform_store: Store, weights):
    num = 200
    import_classifier(platform_store, weights)
    started = time.monotonic()
    for number in range(num):
        put_in_inbox(
            platform_store,
            f"small-{number:03d}",
            {"v.nrrd": nrrd_bytes(cells((2, 80, 80), number))},
            toml(f"small-{number:03d}"),
        )

    def num_done() -> int:
        return sum(name.startswith("small-") for name in committed_partitions(platform_store, FILTERED))

    wait_for("a tenth", lambda: num_done() >= num // 10, 1800, 2)
    early = platform.memory_mib("daemon")
    wait_for("all of them", lambda: num_done() == num, 5400, 5)
    seconds, late = time.monotonic() - started, platform.memory_mib("daemon")
    print(f"{seconds / num:.1f} s a dataset; the daemon held {early:.0f} MiB after a tenth and {late:.0f} MiB at the end")
    for number in range(num):
        for asset in STAGES.values():
            assert manifest_numbers(platform_store, f"{asset}/small-{number:03d}") == [1]
    assert late < early + 60
