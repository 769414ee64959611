"""A real S3 server for measurements: Ceph on loopback, as in the tests, or the server that an environment variable names."""

import gc
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cem_assets_tests.conftest import ENDPOINT_VARIABLE
from cem_assets_tests.services import ceph


@contextmanager
def s3_bucket(object_store: str = "bluestore") -> Iterator[str]:
    """Make a bucket. The AWS_* variables of this process and its children point to its server from then on.

    Args:
        object_store: "memstore" for a server that keeps objects in memory, where filling it would take most of the time.

    Yields:
        The bucket's name.

    Raises:
        RuntimeError: There is no server, and none can be installed.
    """
    import s3fs

    server, endpoint = None, os.environ.get(ENDPOINT_VARIABLE, "")
    folder = Path(tempfile.mkdtemp(prefix="perf-s3-"))
    try:
        if not endpoint:
            if reason := ceph.install():
                raise RuntimeError(f"no S3 server: {reason}; or set {ENDPOINT_VARIABLE} and the AWS_* keys")
            server = ceph.start_server(folder / "server", object_store)
            endpoint = server.endpoint
            os.environ |= {"AWS_ACCESS_KEY_ID": ceph.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": ceph.SECRET_KEY}
        os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
        os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
        bucket = f"cem-perf-{uuid.uuid4().hex[:12]}"
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
        # A forked child that collected this garbage would wait more than a second for an event loop that it does not have.
        gc.collect()
        yield bucket
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
