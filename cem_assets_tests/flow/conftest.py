"""The platform as processes on real PostgreSQL and S3, one for all tests of a module and empty at first."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cem_assets.store.store import Store, open_store
from cem_assets_tests.cem.chain import import_classifier, run_chain
from cem_assets_tests.datasets import volume_dataset
from cem_assets_tests.services import postgres
from cem_assets_tests.services.stack import Stack

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
    """Start an empty platform, with nothing in the store and the database."""
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
def platform_store(platform: Stack) -> Store:
    """Open the store of a running platform, whose sensors ingest what is put there."""
    return open_store(platform.environment["CEM_ASSETS_ROOT"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, weights) -> dict[str, str]:
    """Return the digests, by asset, of an undisturbed chain on a local folder."""
    local = open_store(str(tmp_path_factory.mktemp("undisturbed")))
    import_classifier(local, weights)
    volume_dataset(local, "x", SHAPE)
    return {stage: result.manifest.digest for stage, result in run_chain(local, "x", until="deduplicated").items()}
