"""The platform as deployed: processes on real PostgreSQL and S3, looked at through a real browser."""

import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cem_assets import readers
from cem_assets.storage.layout import FILTERED
from cem_assets.storage.manifests import current_manifest, manifest_numbers
from cem_assets.storage.store import Store, open_store
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox, toml, volume_dataset
from cem_assets_tests.services import browser, postgres
from cem_assets_tests.services.stack import ROOT, Stack, wait_for
from cem_assets_tests.stages.chain import STAGES, import_classifier, run_chain

OUTPUT = ROOT / "test-output"
SHAPE = (230, 300, 450)


@pytest.fixture(scope="module")
def database() -> Iterator[postgres.PostgresServer]:
    if reason := postgres.install():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="cem-pg-"))
    server = postgres.start_server(folder, ("dagster", "mlflow"))
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def platform(s3, database, weights, tmp_path_factory) -> Iterator[Stack]:
    """An empty platform: nothing in the store, nothing in the database."""
    prefix = uuid.uuid4().hex[:12]
    stack = Stack(
        tmp_path_factory.mktemp("stack"),
        {
            "CEM_ASSETS_ROOT": f"s3://{s3.bucket}/{prefix}",
            "CEM_ASSETS_LOGS_BUCKET": s3.bucket,
            "CEM_ASSETS_LOGS_PREFIX": f"{prefix}-logs",
            "CEM_ASSETS_CLASSIFIER_WEIGHTS": str(weights),
            "CEM_ASSETS_RELEASE_CRON": "* * * * *",
            "CEM_ASSETS_INBOX_SECONDS": "5",
            "CEM_ASSETS_RECONCILIATION_SECONDS": "10",
            "DAGSTER_POSTGRES_URL": database.url("dagster"),
        },
        mlflow_uri=database.url("mlflow"),
        artifacts=f"s3://{s3.bucket}/{prefix}-mlflow",
    )
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def store(platform: Stack) -> Store:
    return open_store(platform.environment["CEM_ASSETS_ROOT"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, weights) -> dict[str, str]:
    """Digests of the chain run in peace on a local folder, by asset."""
    local = open_store(str(tmp_path_factory.mktemp("undisturbed")))
    import_classifier(local, weights)
    volume_dataset(local, "x", SHAPE)
    return {stage: result.manifest.digest for stage, result in run_chain(local, "x", until="deduplicated").items()}


def test_what_is_dropped_into_the_inbox_is_in_a_release_and_seen_in_the_browser(platform: Stack, store: Store):
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

        volume_dataset(store, "from_inbox")
        wait_for("a release", lambda: readers.list_releases(store.url), 240)
        assert "from_inbox" in readers.read_release(root=store.url).datasets["dataset"].tolist()
        assert len(list(readers.read_release(root=store.url).iter_images())) > 0

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


def secrets_of(database: postgres.PostgresServer) -> list[bytes]:
    return [secret.encode() for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], postgres.PASSWORD)]


def test_no_secret_is_in_logs_metadata_tags_or_the_store(platform: Stack, store: Store, database, s3):
    """After a run that succeeded and one that failed, with the stack's own keys as what must not be found."""
    put_in_inbox(store, "broken", {"v.nrrd": b"NRRD0004\nnot really"})
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
        if folder.startswith(store.url.rsplit("/", 1)[-1]):
            places |= {item.key: everything.read(item.key) for item in everything.walk(folder)}
    assert any("-logs/" in place for place in places) and len(places) > 20
    for secret in secrets_of(database):
        leaks = [place for place, data in places.items() if secret in data]
        assert leaks == []


def test_a_cut_database_killed_parts_and_a_gateway_away_lose_nothing(platform: Stack, store: Store, database, s3, undisturbed):
    """The quick round of faults; `make soak` has the long one."""
    put_in_inbox(store, "x", {"v.nrrd": nrrd_bytes(cells(SHAPE))}, toml("x"))
    wait_for("the run of x", lambda: any(is_run_of(run, "x") for run in platform.runs()), 60, 0.2)
    platform.kill("daemon")
    database.restart()
    platform.kill_run_workers()
    if s3.server is not None:
        s3.server.stop_gateway()
        threading.Timer(5, s3.server.start).start()
    platform.start("daemon")
    check_whole(platform, store, "x", undisturbed, 240)


def is_run_of(run: dict, dataset: str) -> bool:
    return run["tags"].get("dagster/partition") == dataset and run["jobName"] == "cem_chain"


def check_whole(platform: Stack, store: Store, dataset: str, undisturbed: dict[str, str], seconds: float) -> None:
    """Wait until a dataset is filtered; it must be what an undisturbed run gives, committed once."""

    def is_there() -> bool:
        try:
            return current_manifest(store, FILTERED, dataset) is not None
        except Exception:
            return False  # the server may be away just now

    wait_for(f"{dataset} filtered", is_there, seconds)
    for stage, asset in readers_stages().items():
        if stage in undisturbed:
            assert current_manifest(store, asset, dataset).digest == undisturbed[stage], stage
        assert len(manifest_numbers(store, f"{asset}/{dataset}")) == 1, f"{asset} was committed once"


def readers_stages() -> dict[str, str]:
    from cem_assets.storage.layout import STAGES as ASSETS

    return {stage: ASSETS[stage] for stage in STAGES if stage in ASSETS}
