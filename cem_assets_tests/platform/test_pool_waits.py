"""Waiting for a slot of a pool: runs sleep, and Dagster still needs the correction for that."""

import inspect
import threading
import time

import dagster as dg

import cem_assets.definitions  # noqa: F401  (puts the correction in place)
from cem_assets.platform.pool_waits import seconds_to_next_claim


def test_a_step_that_waits_for_its_pool_uses_no_cpu(tmp_path):
    @dg.asset(pool="one")
    def waits() -> None:
        """Wait for the slot."""

    job = dg.Definitions(assets=[waits], executor=dg.in_process_executor).resolve_implicit_global_asset_job_def()
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("one", 1)
        assert storage.claim_concurrency_slot("one", "another-run", "its-step").is_claimed
        seconds = []

        def free_later() -> None:
            used, started = time.process_time(), time.monotonic()
            time.sleep(4)
            seconds.append((time.process_time() - used) / (time.monotonic() - started))
            storage.free_concurrency_slot_for_step("another-run", "its-step")

        thread = threading.Thread(target=free_later)
        thread.start()
        result = job.execute_in_process(instance=instance)
        thread.join()
    assert result.success
    assert seconds[0] < 0.5, "cores busy while it waited"


def test_dagster_still_needs_the_correction():
    """When this fails, Dagster sleeps by itself: remove `cem_assets.platform.pool_waits`."""
    from dagster._core.execution.plan import instance_concurrency_context as module

    assert "return min([0, " in inspect.getsource(module)
    assert module.InstanceConcurrencyContext.interval_to_next_pending_claim_check is seconds_to_next_claim
