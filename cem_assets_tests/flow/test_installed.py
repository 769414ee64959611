"""The wheel: it contains everything, and loads in the layout of the container image."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def image(wheel, tmp_path_factory) -> dict[str, str]:
    """Make the folders of the container image: the installed wheel, the workspace and a Dagster home."""
    folder = tmp_path_factory.mktemp("image")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (folder / "opt").mkdir()
    (folder / "home").mkdir()
    (folder / "opt" / "workspace.yaml").write_bytes((ROOT / "workspace.yaml").read_bytes())
    return {
        **os.environ,
        "PYTHONPATH": str(site),
        "DAGSTER_HOME": str(folder / "home"),
        "OPT": str(folder / "opt"),
        "SITE": str(site),
    }


def test_the_wheel_holds_the_package_its_data_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("cem_assets/catalog/em_datasets.csv", "cem_assets/catalog/registries/vnc.txt", "cem_assets/definitions.py"):
        assert name in names
    assert not any(name.startswith("cem_assets_tests") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_definitions_load_from_the_wheel_by_the_workspace_file(image):
    where = subprocess.run(
        [sys.executable, "-c", "import cem_assets; print(cem_assets.__file__)"],
        env=image,
        cwd=image["OPT"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(image["SITE"])
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"], env=image, cwd=image["OPT"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location cem_assets" in done.stdout + done.stderr


def test_the_catalogue_is_read_from_the_wheel(image):
    code = "from cem_assets.catalog import em_datasets; print(len(em_datasets()['vnc'].files), em_datasets()['vnc'].licence)"
    done = subprocess.run([sys.executable, "-c", code], env=image, cwd=image["OPT"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "20 CC BY-NC-SA 3.0"


def test_a_package_that_cannot_be_written_still_compiles_its_kernels(image, tmp_path):
    if os.geteuid() == 0:
        code = (
            "import cem_assets.imaging.compiled as c, pathlib; assert c._writable(pathlib.Path('/proc/nowhere')) is False;"
            "from cem_assets.imaging.dhash import self_test; assert self_test(); print('ok')"
        )
    else:
        subprocess.run(["chmod", "-R", "a-w", image["SITE"]], check=True)
        code = "from cem_assets.imaging.dhash import self_test; assert self_test(); print('ok')"
    done = subprocess.run([sys.executable, "-c", code], env=image, cwd=image["OPT"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ok"


def test_the_image_names_what_exists_and_is_not_run_by_root():
    text = (ROOT / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text()
    for name in ("requirements.lock", "workspace.yaml", "deploy/workspace.grpc.yaml", "deploy/dagster.production.yaml"):
        assert name in text and (ROOT / name).is_file() and f"!{name}" in ignored
    assert "USER 10001" in text and "--uid 10001" in text and "HEALTHCHECK" in text


def test_compose_has_every_part_and_no_secret():
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    assert set(services) == {"s3", "postgres", "mlflow", "code", "webserver", "daemon"}
    assert all("healthcheck" in service for service in services.values())
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    values = yaml.safe_load((ROOT / "deploy/kubernetes/values.yaml").read_text())
    assert values["runLauncher"]["type"] == "K8sRunLauncher" and values["concurrency"]["enabled"] is True
    names = {line.split("=")[0] for line in (ROOT / "deploy/.env.example").read_text().splitlines() if line[:1].isalpha()}
    assert names == {"POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "CEM_ASSETS_BUCKET"}
