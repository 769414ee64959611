"""Faults of the store in the middle of the chain give the same bytes, or an error in words and nothing half-written."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from cem_assets.store.assets import STAGES as ASSETS
from cem_assets.store.manifests import current_manifest, damaged_objects
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cem.chain import import_classifier, run_chain
from cem_assets_tests.conftest import S3
from cem_assets_tests.datasets import volume_dataset
from cem_assets_tests.services.faulty import faulty_proxy

SHAPE = (150, 240, 450)
CHAIN = """
import sys, torch
from cem_assets.store.store import open_store
from cem_assets_tests.cem.chain import run_chain
torch.set_num_threads(2)
store = open_store(sys.argv[1])
run_chain(store, "cells", until="filtered", threshold=0.0)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, str]:
    store = open_store(str(tmp_path_factory.mktemp("undisturbed")))
    volume_dataset(store, shape=SHAPE)
    import_classifier(store, weights)
    subprocess.run([sys.executable, "-c", CHAIN, store.url], check=True, cwd=Path(__file__).parents[2])
    return digests(store)


def digests(store: Store) -> dict[str, str]:
    found = {asset: current_manifest(store, asset, "cells") for asset in ASSETS.values()}
    return {asset: manifest.digest for asset, manifest in found.items() if manifest is not None}


def check_readable(store: Store) -> None:
    for asset in ASSETS.values():
        manifest = current_manifest(store, asset, "cells")
        assert manifest is None or damaged_objects(store, manifest) == {}


def start(store: Store, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHAIN, store.url], env={**os.environ, **environment}, cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def prepared(s3: S3, weights: Path) -> Store:
    store = open_store(f"s3://{s3.bucket}/{uuid.uuid4().hex[:12]}")
    volume_dataset(store, shape=SHAPE)
    import_classifier(store, weights)
    return store


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4, 5))])
def test_one_request_in_twenty_failing_changes_nothing(s3, prepared, undisturbed, seed):
    with faulty_proxy(s3.endpoint, 0.05, seed) as proxy:
        process = start(prepared, AWS_ENDPOINT_URL=proxy.endpoint)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        assert proxy.num_faults >= 5 and proxy.num_requests > 100
    assert digests(prepared) == undisturbed
    check_readable(prepared)


@pytest.mark.parametrize("seconds", [4, pytest.param(30, marks=pytest.mark.soak)])
def test_a_server_that_goes_away_in_the_middle_of_a_run_costs_time_only(s3, prepared, undisturbed, seconds):
    if s3.server is None:
        pytest.skip("stopping the server needs a server of our own")
    process = start(prepared)
    deadline = time.monotonic() + 120
    while current_manifest(prepared, ASSETS["volumes"], "cells") is None and time.monotonic() < deadline:
        time.sleep(0.05)
    s3.server.stop_gateway()
    threading.Timer(seconds, s3.server.start).start()
    _, errors = process.communicate(timeout=300)
    time.sleep(0.5)
    if process.returncode:  # longer than the client's own patience: the step fails, and a later one goes on
        assert "Error" in errors
        again = start(prepared)
        assert again.wait(300) == 0
    assert digests(prepared) == undisturbed
    check_readable(prepared)


def test_a_full_store_is_told_in_words_and_goes_on_when_there_is_room(tmp_path, weights, undisturbed):
    if os.geteuid() != 0:
        pytest.skip("a small file system to fill needs root and mount")
    disk = tmp_path / "small"
    disk.mkdir()
    # With 81 MiB of classifier weights and 16 MiB of voxels in the inbox there is room for some stages, but not for all.
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=112m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        store = open_store(str(disk / "store"))
        volume_dataset(store, shape=SHAPE)
        import_classifier(store, weights)
        with pytest.raises(OSError, match="is full .* nothing half-written is visible. Free space and run again"):
            run_chain(store, "cells", until="filtered", threshold=0.0)
        assert ASSETS["filtered"] not in digests(store) and digests(store).items() <= undisturbed.items()
        check_readable(store)
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        process = start(store)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        assert digests(store) == undisturbed
        check_readable(store)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.soak
def test_a_full_bucket_is_told_in_words_and_goes_on_when_there_is_room(s3, weights, undisturbed):
    if s3.server is None:
        pytest.skip("a quota needs a server of our own")
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "small-key", "AWS_SECRET_ACCESS_KEY": "small-secret"}
    s3.server.add_user("small", *keys.values())
    s3.server.set_quota("small", 112)
    bucket = f"cem-small-{uuid.uuid4().hex[:8]}"
    client = boto3.client("s3", aws_access_key_id="small-key", aws_secret_access_key="small-secret")
    client.create_bucket(Bucket=bucket)
    home = open_store(f"s3://{s3.bucket}/{bucket}")
    volume_dataset(home, shape=SHAPE)
    import_classifier(home, weights)
    for item in [*home.walk("inbox"), *home.walk("cem")]:
        client.put_object(Bucket=bucket, Key=f"p/{item.key}", Body=home.read(item.key))
    client.put_object(Bucket=bucket, Key="p/filler", Body=bytes(4 << 20))
    store = open_store(f"s3://{bucket}/p")
    process = start(store, **keys)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0 and "QuotaExceeded" in errors, errors[-2000:]
    s3.server.set_quota("small", 1000)
    done = start(store, **keys)
    assert done.wait(300) == 0
    listed = client.list_objects_v2(Bucket=bucket, Prefix="p/cem/filtered_patches/cells/_manifests/")["Contents"]
    assert len(listed) == 1
    body = client.get_object(Bucket=bucket, Key=listed[0]["Key"])["Body"].read()
    assert json.loads(body)["digest"] == undisturbed[ASSETS["filtered"]]
