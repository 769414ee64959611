"""Fixtures: stores (local and real S3), real test data, tiny datasets, an isolated environment."""

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from cem_assets.store.store import Store, open_store
from cem_assets_tests.services import ceph

# torch reads this when it is imported, which is later: threads that wait for each other leave the cores to other processes.
# No result depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Every run has the same examples and no time limit, because a test that fails only sometimes helps nobody. `make soak` draws
# new ones.
settings.register_profile("default", derandomize=True, deadline=None)
settings.register_profile("soak", derandomize=False, max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

DATA_VARIABLE = "CEM_ASSETS_TEST_DATA"
ENDPOINT_VARIABLE = "CEM_ASSETS_TEST_S3_ENDPOINT"


@dataclass(frozen=True)
class S3:
    """A bucket on a real S3 server."""

    endpoint: str
    bucket: str
    server: ceph.CephServer | None


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real test data; tests that need it are skipped where it is absent."""
    for base in (os.environ.get(DATA_VARIABLE), Path(__file__).parents[2] / "shared/data"):
        if base and (Path(base) / "SOURCES.md").is_file():
            return Path(base).resolve()
    pytest.skip(f"real test data is absent: set {DATA_VARIABLE} to its folder")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server: the one CEM_ASSETS_TEST_S3_ENDPOINT names, else Ceph on loopback."""
    import s3fs

    endpoint, server = os.environ.get(ENDPOINT_VARIABLE), None
    if not endpoint:
        if reason := ceph.install():
            pytest.skip(f"no S3 server: {reason}; or set {ENDPOINT_VARIABLE} and the AWS_* keys")
        server = ceph.start_server(tmp_path_factory.mktemp("ceph"))
        endpoint = server.endpoint
        os.environ |= {"AWS_ACCESS_KEY_ID": ceph.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": ceph.SECRET_KEY}
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"cem-test-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    yield S3(endpoint, bucket, server)
    if server is not None:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def s3_store(s3: S3) -> Store:
    return open_store(f"s3://{s3.bucket}/{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """The same test on a local folder and on the real S3 server."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random but fixed weights of the patch classifier in the published layout; with them every patch is informative."""
    import torch

    from cem_assets.cem.classifier.network import build_classifier

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "patch_quality_classifier_nn.pth"
    model = build_classifier()
    with torch.no_grad():
        model.fc.weight.mul_(0.05)  # logits of untrained networks vary widely; these stay close to the bias
        model.fc.bias.fill_(5.0)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Store:
    """A store with three small datasets that went through the whole chain. Tests copy it and never write to it.

    `cells` and `twin` are the same volume, `pictures` are 2D images; the threshold of 0 keeps every patch.
    """
    from cem_assets_tests.cem.chain import import_classifier, run_chain
    from cem_assets_tests.datasets import image_dataset, volume_dataset

    folder = tmp_path_factory.mktemp("curated")
    store = open_store(str(folder / "store"))
    import_classifier(store, weights)
    volume_dataset(store)
    volume_dataset(store, "twin")
    image_dataset(store, folder)
    for dataset in ("cells", "twin", "pictures"):
        run_chain(store, dataset, until="filtered", threshold=0.0)
    return store


def copy_store(source: Store, target: Store) -> Store:
    """Copy a local store into another one."""
    for prefix in ("cem", "inbox"):
        for item in source.walk(prefix):
            target.put(item.key, Path(source.url_of(item.key)))
    return target


@pytest.fixture
def curated_store(curated: Store, store: Store) -> Store:
    """A copy of `curated`, on a local folder and on the real S3 server."""
    return copy_store(curated, store)


@pytest.fixture
def curated_local(curated: Store, local_store: Store) -> Store:
    """A copy of `curated` on a local folder."""
    return copy_store(curated, local_store)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the checkout's own store, Dagster home or MLflow."""
    for variable in (
        "CEM_ASSETS_ROOT",
        "CEM_ASSETS_CLASSIFIER_WEIGHTS",
        "MLFLOW_TRACKING_URI",
        "CEM_ASSETS_WORKERS",
        "CEM_ASSETS_ENGINE",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster_home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "dagster_home").mkdir()
