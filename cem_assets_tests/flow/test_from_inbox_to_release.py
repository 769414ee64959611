"""The command line makes a release from a folder, and programs read it from the store."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cem_assets import readers
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import import_classifier
from cem_assets_tests.datasets import cells, nrrd_bytes, toml


def cem_assets(*words: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cem_assets.cli", *words]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "v.nrrd").write_bytes(nrrd_bytes(cells((70, 130, 240))))
    (path / "notes.txt").write_text("stained on Tuesday")
    (path / "broken.tif").write_bytes(b"II*\0")
    (path / "dataset.toml").write_text(toml("mine", organism='"mouse"'))
    return path


def test_ingest_takes_a_folder_to_a_release(s3_store: Store, tmp_path, folder, weights):
    done = cem_assets(
        "--root", s3_store.url, "ingest", str(folder), cwd=tmp_path, CEM_ASSETS_CLASSIFIER_WEIGHTS=str(weights), check=False
    )
    assert done.returncode == 1 and "failed: cem__patch_scores: There is no patch classifier" in done.stderr
    import_classifier(s3_store, weights)
    done = cem_assets("--root", s3_store.url, "ingest", str(folder), cwd=tmp_path)
    for part in ("mine", "1 volumes", "440 patches", "exemplars", "refused files and why", 'read_patches("mine", "filtered")'):
        assert part in done.stdout, part
    assert "cem/patch_scores mine" in done.stderr and "100%" in done.stderr, "a progress bar per stage"
    assert readers.list_releases(s3_store.url) == ["v1"] and "mouse" in readers.read_release(root=s3_store.url).card
    path = cem_assets("--root", s3_store.url, "path", "filtered", "mine", cwd=tmp_path).stdout.strip()
    code = f"import pandas; frame = pandas.read_parquet({path!r}); print(len(frame), frame['image'][0]['bytes'][:2])"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frame = pd.read_parquet(path)
    assert plain.stdout.strip() == f"{len(frame)} b'II'"
    raw = dict(readers.iter_images("mine", "raw", s3_store.url))
    for row in frame.itertuples():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row.image["bytes"]))), raw[row.name])


def test_ingesting_again_changes_nothing_and_replacing_makes_a_new_version(local_store: Store, tmp_path, folder):
    words = ("--root", local_store.url, "ingest", str(folder), "--until", "raw")
    cem_assets(*words, cwd=tmp_path)
    first = readers.content_url("raw", "mine", local_store.url)
    cem_assets(*words, cwd=tmp_path)
    assert readers.content_url("raw", "mine", local_store.url) == first
    (folder / "v.nrrd").write_bytes(nrrd_bytes(cells((70, 130, 250))))
    refused = cem_assets(*words, cwd=tmp_path, check=False)
    assert (
        refused.returncode == 1
        and "replace it as a new version (--replace)" in refused.stderr
        and "Traceback" not in refused.stderr
    )
    cem_assets(*words, "--replace", cwd=tmp_path)
    assert readers.content_url("raw", "mine", local_store.url) != first
    cem_assets(*words, "--name", "other", cwd=tmp_path)
    assert readers.list_datasets(local_store.url) == ["mine", "other"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ingest", "nowhere"), "nowhere is not a folder"),
        (("ingest", ".", "--until", "scored"), "stage 'scored' is not known"),
        (("path", "filtered", "nothing"), "has nothing committed"),
        (("--root", "s3://", "path", "raw", "x"), "names no bucket"),
    ],
)
def test_wrong_calls_are_explained_without_a_traceback(tmp_path, words, message):
    done = cem_assets(*words, cwd=tmp_path, check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_the_doctor_looks_at_everything(store: Store, tmp_path):
    done = cem_assets("--root", store.url, "doctor", cwd=tmp_path)
    for subject in ("version", "machine", "store", "scratch", "dHash", "GPU", "MLflow"):
        assert f"{subject} " in done.stdout
    assert "exclusive creation works" in done.stdout and "BAD" not in done.stdout
    assert store.children("doctor") == []


def test_the_doctor_names_what_is_wrong(tmp_path):
    done = cem_assets(
        "--root", "s3://no-such-bucket/x", "doctor", cwd=tmp_path, check=False, AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="planted-secret", MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 1
    assert "BAD  store" in done.stdout and "Check CEM_ASSETS_ROOT and the AWS_* variables" in done.stdout
    assert "BAD  MLflow" in done.stdout and "planted-secret" not in done.stdout + done.stderr


@pytest.mark.soak
def test_the_demo_runs_from_phantom_to_release_and_again(tmp_path):
    environment = {"CEM_ASSETS_TEST_DATA": "", "DAGSTER_HOME": "", "MLFLOW_TRACKING_URI": ""}
    first = cem_assets("demo", cwd=tmp_path, **environment)
    for part in (
        "release v1",
        "phantom_3d",
        "dataset card:",
        "gallery:",
        "make dev",
        "training a ResNet34",
    ):
        assert part in first.stdout, part
    root = str(tmp_path / ".cem_assets/store")
    scores, kept = (readers.read_patches("phantom_3d", stage, root) for stage in ("scores", "filtered"))
    assert 0.5 * len(scores) < len(kept) < 0.98 * len(scores), "blank resin is dropped, cells are kept"
    again = cem_assets("demo", cwd=tmp_path, **environment)
    assert "release v1" in again.stdout and readers.list_releases(root) == ["v1"]
