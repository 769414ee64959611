"""The documented IAM policies on the real S3 server: access to the own prefix only, and reading only."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from cem_assets_tests.conftest import S3
from cem_assets_tests.datasets import volume_dataset

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from cem_assets.store.store import open_store
from cem_assets_tests.cem.chain import run_chain
from cem_assets.operations.maintenance import measure, sweep
from cem_assets.cli.doctor import examine
store = open_store(sys.argv[1])
run_chain(store, "cells", until="deduplicated")
assert sweep(store, min_age_hours=0).num_objects == 0 and measure(store)
assert all(finding.is_well for finding in examine() if finding.subject == "store"), examine()
refused = []
for url in sys.argv[2:]:
    other = open_store(url)
    for what, call in (
        ("read", lambda: other.read("secret.txt")), ("write", lambda: other.put("mine.txt", b"x")),
        ("delete", lambda: other.delete(["secret.txt"])), ("list", lambda: list(other.walk("cem")) or 1 / 0),
    ):
        try:
            call()
        except PermissionError:
            refused.append(what)
print(refused)
"""
READER = """
import sys
from cem_assets import readers
from cem_assets.store.store import open_store
root = sys.argv[1]
assert readers.list_datasets(root) == ["cells"]
frame = readers.read_patches("cells", "deduplicated", root)
assert len(frame) == len(dict(readers.iter_images("cells", "deduplicated", root))) > 0
assert readers.open_volume("cells", root=root)[0].max() > 0
refused = []
store = open_store(root)
for call in (lambda: store.put("x", b"x"), lambda: store.create("y", b"x"), lambda: store.delete(["inbox/cells/v.nrrd"])):
    try:
        call()
    except PermissionError:
        refused.append("write")
print(refused)
"""


@pytest.fixture(scope="module")
def keys(s3: S3) -> dict[str, dict[str, str]]:
    """Two more users of the server, who have no rights yet."""
    if s3.server is None:
        pytest.skip("making users needs a server of our own")
    found = {}
    for name in ("platform", "reader"):
        s3.server.add_user(name, f"{name}-key", f"{name}-secret")
        found[name] = {"AWS_ACCESS_KEY_ID": f"{name}-key", "AWS_SECRET_ACCESS_KEY": f"{name}-secret"}
    return found


def statements(name: str, bucket: str, prefix: str) -> list[dict]:
    """Read a documented policy and turn it into a bucket policy for a user, because Ceph has no policies of users."""
    text = (ROOT / f"deploy/iam/{name}.json").read_text().replace("BUCKET", bucket).replace("PREFIX", prefix)
    return [
        {**item, "Sid": f"{name}{item['Sid']}", "Principal": {"AWS": [f"arn:aws:iam:::user/{name}"]}}
        for item in json.loads(text)["Statement"]
    ]


def run(code: str, who: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **who, "CEM_ASSETS_ROOT": arguments[0]}, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_platforms_keys_reach_its_prefix_only_and_a_readers_key_only_reads(s3, keys):
    import boto3

    from cem_assets.store.store import open_store

    prefix = uuid.uuid4().hex[:8]
    root, beside = f"s3://{s3.bucket}/{prefix}", f"s3://{s3.bucket}/{prefix}-other"
    volume_dataset(open_store(root))
    open_store(beside).put("secret.txt", b"not yours")
    client = boto3.client("s3")
    foreign = f"cem-foreign-{prefix}"
    client.create_bucket(Bucket=foreign)
    client.put_object(Bucket=foreign, Key="secret.txt", Body=b"not yours")
    rules = statements("platform", s3.bucket, prefix) + statements("reader", s3.bucket, prefix)
    client.put_bucket_policy(Bucket=s3.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": rules}))
    try:
        refused = run(WRITER, keys["platform"], root, beside, f"s3://{foreign}")
        assert refused == str(["read", "write", "delete", "list"] * 2)
        assert run(READER, keys["reader"], root) == str(["write"] * 3)
    finally:
        client.delete_bucket_policy(Bucket=s3.bucket)
    assert open_store(beside).read("secret.txt") == b"not yours" and open_store(root).size("inbox/cells/v.nrrd")
