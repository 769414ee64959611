"""What happens after each of the four kinds of errors: in Dagster's run, and in reconciliation afterwards."""

import errno
import time
import uuid
from collections.abc import Callable

import dagster as dg
import numpy as np
import pytest
import torch

from cem_assets.cem import assets as cem_assets_module
from cem_assets.cem.automation import inbox_sensor, reconciliation_sensor
from cem_assets.cem.volumes import standardize
from cem_assets.errors import DataError, Fault, MachineError, OutOfMemoryError, StoreError, fault_of, may_pass
from cem_assets.execution.local import LocalEngine, default_num_workers
from cem_assets.platform import attempts, steps
from cem_assets.platform.attempts import SECONDS_AFTER_A_BUG
from cem_assets.platform.steps import FAULT_TAG, MAX_RETRIES, SHARE_TAG, VERSION_TAG
from cem_assets.store.assets import DEDUPLICATED
from cem_assets.store.store import Store, open_store
from cem_assets_tests.conftest import S3
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox, volume_dataset
from cem_assets_tests.platform.dying import die_at_one
from cem_assets_tests.platform.ticks import Platform
from cem_assets_tests.services.faulty import faulty_proxy

REPORT = "quarantine/cells/report.md"


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RETRY_DELAY_SECONDS", 0.01)
    monkeypatch.setenv("CEM_ASSETS_WORKERS", "8")


@pytest.fixture
def platform(local_store: Store):
    with dg.instance_for_test() as instance:
        yield Platform(local_store, instance)


class Trouble:
    """Makes the first attempts of the stage `cem/volumes` fail.

    Attributes:
        num_workers: What `default_num_workers` returned in each attempt.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], object], num_failures: int) -> None:
        self.num_failures, self.num_workers = num_failures, []
        real = cem_assets_module.standardize_dataset

        def troubled(*args, **more):
            self.num_workers.append(default_num_workers())
            if len(self.num_workers) <= self.num_failures:
                fail()
            return real(*args, **more)

        monkeypatch.setattr(cem_assets_module, "standardize_dataset", troubled)


def raises(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def first_run(platform: Platform) -> dg.ExecuteInProcessResult:
    """Run what the inbox sensor requests for a dataset that has just arrived."""
    volume_dataset(platform.store)
    (request,) = platform.tick(inbox_sensor).run_requests
    return platform.run(request)


def requests_of_reconciliation(platform: Platform) -> list[dg.RunRequest]:
    return list(platform.tick(reconciliation_sensor).run_requests)


def why_it_waits(platform: Platform) -> str:
    result = platform.tick(reconciliation_sensor)
    assert result.run_requests == []
    return str(result.skip_reason.skip_message)


def tags_of(platform: Platform, result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return dict(platform.instance.get_run_by_id(result.run_id).tags)


def log_of(platform: Platform, result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(entry.user_message for entry in platform.instance.all_logs(result.run_id))


def num_retries(result: dg.ExecuteInProcessResult) -> int:
    return sum(event.is_step_up_for_retry for event in result.all_events)


def failure_of(result: dg.ExecuteInProcessResult):
    return next(event for event in result.all_events if event.is_step_failure).step_failure_data


# The data


def test_refused_data_fail_in_words_and_wait_until_they_change(platform):
    put_in_inbox(platform.store, "cells", {"v.nrrd": b"NRRD0004\ngarbage"})
    (request,) = platform.tick(inbox_sensor).run_requests
    result = platform.run(request)
    assert not result.success and num_retries(result) == 0
    assert tags_of(platform, result)[FAULT_TAG] == Fault.data
    assert failure_of(result).user_failure_data.description.startswith("dataset 'cells' has nothing that can be used")
    assert b"v.nrrd" in platform.store.read(REPORT)
    assert "repair it in the inbox" in why_it_waits(platform)
    time.sleep(0.01)
    put_in_inbox(platform.store, "cells", {"v.nrrd": nrrd_bytes(cells((70, 130, 240)))})
    (request,) = requests_of_reconciliation(platform)
    assert platform.run(request).success and platform.num_commits("cells")[DEDUPLICATED] == 1
    assert requests_of_reconciliation(platform) == [] and platform.store.size(REPORT) is None


# The store or the network


@pytest.mark.parametrize("error", [ConnectionError("connection reset"), StoreError("half of an answer"), TimeoutError("slow")])
def test_trouble_with_the_store_is_tried_again_with_growing_delays(platform, monkeypatch, error):
    trouble = Trouble(monkeypatch, raises(error), num_failures=2)
    result = first_run(platform)
    assert result.success and num_retries(result) == 2 and trouble.num_workers == [8, 8, 8]
    waits = [event.step_retry_data.seconds_to_wait for event in result.all_events if event.is_step_up_for_retry]
    assert waits == [0.01, 0.02]
    assert "the store or the network is in trouble" in log_of(platform, result)
    assert requests_of_reconciliation(platform) == []


def test_trouble_with_the_store_that_stays_fails_and_is_requested_again(platform, monkeypatch):
    trouble = Trouble(monkeypatch, raises(ConnectionError("connection reset")), num_failures=MAX_RETRIES + 1)
    result = first_run(platform)
    tags = tags_of(platform, result)
    assert not result.success and num_retries(result) == MAX_RETRIES and len(trouble.num_workers) == MAX_RETRIES + 1
    assert tags[FAULT_TAG] == Fault.store and SHARE_TAG not in tags
    assert failure_of(result).user_failure_data.description == "connection reset"
    (request,) = requests_of_reconciliation(platform)
    assert SHARE_TAG not in request.tags and platform.run(request).success
    assert platform.store.size(REPORT) is None


def test_a_missing_object_is_not_retried_in_the_run_and_is_requested_again(platform, monkeypatch):
    Trouble(monkeypatch, raises(FileNotFoundError(errno.ENOENT, "gone", "cem/volumes/x")), num_failures=1)
    result = first_run(platform)
    assert not result.success and num_retries(result) == 0 and tags_of(platform, result)[FAULT_TAG] == Fault.store
    (request,) = requests_of_reconciliation(platform)
    assert platform.run(request).success


def test_an_s3_server_that_fails_is_tried_again_until_it_answers(s3: S3, monkeypatch):
    """A proxy in front of a real S3 server makes all requests fail: first in one attempt, then in all attempts of a run."""
    with faulty_proxy(s3.endpoint, 0.0, 1) as proxy, dg.instance_for_test() as instance:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        forget_connections()
        platform = Platform(open_store(f"s3://{s3.bucket}/{uuid.uuid4().hex[:12]}"), instance)
        real, shares = cem_assets_module.standardize_dataset, [1.0, 0.0]

        def troubled(*args, **more):
            proxy.share = shares.pop(0)
            try:
                return real(*args, **more)
            finally:
                proxy.share = 0.0

        monkeypatch.setattr(cem_assets_module, "standardize_dataset", troubled)
        result = first_run(platform)
        assert result.success and num_retries(result) == 1 and proxy.num_faults > 0, log_of(platform, result)
        time.sleep(1.1)  # the S3 server keeps times in whole seconds
        shares[:] = [1.0] * (MAX_RETRIES + 1) + [0.0]
        put_in_inbox(platform.store, "cells", {"v.nrrd": nrrd_bytes(cells((70, 130, 250)))})
        (request,) = platform.tick(inbox_sensor).run_requests
        result = platform.run(request)
        assert not result.success and num_retries(result) == MAX_RETRIES
        assert tags_of(platform, result)[FAULT_TAG] == Fault.store
        assert platform.store.size(REPORT) is None
        (request,) = requests_of_reconciliation(platform)
        assert platform.run(request).success and platform.num_commits("cells")[DEDUPLICATED] == 2
    forget_connections()


def forget_connections() -> None:
    """Make the next store connect anew, with the current environment variables."""
    import s3fs

    from cem_assets.store import s3, store

    store._filesystem.cache_clear()
    s3.quick_bucket.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


# The machine


def kill_a_worker() -> None:
    list(LocalEngine(2).map(die_at_one, [0, 1, 2, 3]))


def fill_memory() -> None:
    np.empty(1 << 60, np.uint8)


def fill_memory_by_torch() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "fail",
    [
        kill_a_worker,
        fill_memory,
        fill_memory_by_torch,
        raises(torch.OutOfMemoryError("CUDA out of memory")),
        raises(MemoryError()),
        raises(OSError(errno.ENOMEM, "cannot allocate memory")),
    ],
    ids=["killed worker", "numpy", "torch", "gpu", "memory", "mmap"],
)
def test_a_lack_of_memory_is_tried_again_with_half_as_many_workers_each_time(platform, monkeypatch, fail):
    trouble = Trouble(monkeypatch, fail, num_failures=2)
    result = first_run(platform)
    assert result.success and trouble.num_workers == [8, 4, 2], log_of(platform, result)
    assert "uses 2 worker process(es) instead of 8" in log_of(platform, result)
    assert "this machine is out of memory" in log_of(platform, result)
    assert FAULT_TAG not in tags_of(platform, result) and requests_of_reconciliation(platform) == []


def test_work_that_runs_out_of_memory_for_good_is_requested_with_fewer_workers(platform, monkeypatch):
    trouble = Trouble(monkeypatch, raises(OutOfMemoryError("a worker was killed")), num_failures=MAX_RETRIES + 2)
    result = first_run(platform)
    tags = tags_of(platform, result)
    assert not result.success and trouble.num_workers == [8, 4, 2, 1]
    assert (tags[FAULT_TAG], tags[SHARE_TAG]) == (Fault.machine, "16")
    assert failure_of(result).user_failure_data.description == "a worker was killed"
    (request,) = requests_of_reconciliation(platform)
    assert request.tags[SHARE_TAG] == "16"
    again = platform.run(request)
    assert again.success and trouble.num_workers[4:] == [1, 1], "one more failure in it, and then success"
    assert platform.store.size(REPORT) is None


def test_a_full_disk_fails_in_words_and_is_requested_again(platform, monkeypatch):
    trouble = Trouble(monkeypatch, raises(OSError(errno.ENOSPC, "the disk of the store is full")), num_failures=1)
    result = first_run(platform)
    tags = tags_of(platform, result)
    assert not result.success and num_retries(result) == 0
    assert (tags[FAULT_TAG], tags[SHARE_TAG]) == (Fault.machine, "2")
    assert "the disk of the store is full" in failure_of(result).user_failure_data.description
    (request,) = requests_of_reconciliation(platform)
    again = platform.run(request)
    assert again.success and trouble.num_workers == [8, 4] and "uses 4 worker process(es)" in log_of(platform, again)


def test_what_a_machine_lacks_besides_memory_fails_at_once_and_keeps_its_workers(platform, monkeypatch):
    trouble = Trouble(monkeypatch, raises(MachineError("node a has another version of numpy")), num_failures=1)
    result = first_run(platform)
    tags = tags_of(platform, result)
    assert not result.success and num_retries(result) == 0
    assert tags[FAULT_TAG] == Fault.machine and SHARE_TAG not in tags
    (request,) = requests_of_reconciliation(platform)
    assert platform.run(request).success and trouble.num_workers == [8, 8]


# A bug


def wrong_shapes(*_args, **_more) -> None:
    np.zeros(3) + np.zeros(4)


def wrong_key(*_args, **_more) -> None:
    {}["voxels"]


def wrong_assumption(*_args, **_more) -> None:
    raise RuntimeError("slices are out of order")


@pytest.mark.parametrize("bug", [wrong_shapes, wrong_key, wrong_assumption])
def test_a_bug_fails_loudly_and_is_repeated_after_an_upgrade(platform, monkeypatch, bug):
    with monkeypatch.context() as patched:
        patched.setattr(standardize, "mapping_for", bug)
        result = first_run(platform)
    tags = tags_of(platform, result)
    assert not result.success and num_retries(result) == 0
    assert (tags[FAULT_TAG], tags[VERSION_TAG]) == (Fault.bug, attempts.__version__)
    assert bug.__name__ in failure_of(result).error_display_string, "the traceback leads to the bug"
    assert "this is a bug in cem_assets" in log_of(platform, result)
    assert platform.store.size(REPORT) is None, "nothing is wrong with the data"
    assert f"a bug in cem_assets {attempts.__version__}" in why_it_waits(platform)
    monkeypatch.setattr(attempts, "__version__", "99.0.0")
    (request,) = requests_of_reconciliation(platform)
    assert platform.run(request).success and platform.store.size(REPORT) is None


def test_a_bug_is_repeated_once_a_day(platform, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(standardize, "mapping_for", wrong_assumption)
        assert not first_run(platform).success
    now = time.time()
    for seconds, num_requests in ((SECONDS_AFTER_A_BUG - 60, 0), (SECONDS_AFTER_A_BUG + 60, 1)):
        monkeypatch.setattr(attempts.time, "time", lambda passed=seconds: now + passed)
        assert len(requests_of_reconciliation(platform)) == num_requests


def test_errors_of_checks_are_treated_alike(platform, monkeypatch):
    """Trouble with the store is tried again in a check, and a bug in a check is tagged."""
    from cem_assets.execution import checks

    real, failures = checks.damaged_objects, [ConnectionError("connection reset"), KeyError("voxels")]

    def troubled(*args, **more):
        if failures:
            raise failures.pop(0)
        return real(*args, **more)

    monkeypatch.setattr(checks, "damaged_objects", troubled)
    result = first_run(platform)
    assert not result.success and num_retries(result) == 1 and failures == []
    assert tags_of(platform, result)[FAULT_TAG] == Fault.bug and "'voxels'" in failure_of(result).error_display_string


# Classification


def test_every_error_is_somebodys_fault():
    import botocore.exceptions
    import urllib3.exceptions

    lack = {OutOfMemoryError("x"), MemoryError(), torch.OutOfMemoryError("x"), OSError(errno.ENOMEM, "x")}
    lack |= {RuntimeError(f"CUDA error: {text}") for text in ("out of memory\nSet ...", "CUBLAS_STATUS_ALLOC_FAILED when ...")}
    full = {OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x")}
    passing = {
        StoreError("x"),
        ConnectionResetError("x"),
        TimeoutError("x"),
        OSError(errno.EIO, "x"),
        urllib3.exceptions.HTTPError("x"),
    }
    passing.add(botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"))
    staying = {FileNotFoundError("x"), PermissionError("x"), NotADirectoryError("x")}
    bugs = {ValueError("x"), KeyError("x"), RuntimeError("x"), TypeError("x"), AssertionError("x"), ImportError("x")}
    for errors, fault, is_passing in (
        ({DataError("x")}, Fault.data, False),
        (passing, Fault.store, True),
        (staying, Fault.store, False),
        (lack, Fault.machine, True),
        (full | {MachineError("x")}, Fault.machine, False),
        (bugs, Fault.bug, False),
    ):
        for error in errors:
            assert (fault_of(error), may_pass(error)) == (fault, is_passing), repr(error)
