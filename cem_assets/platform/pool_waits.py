"""A correction to Dagster: a run whose steps wait for a slot of a pool sleeps, and does not ask as often as it can.

In Dagster 1.13, `InstanceConcurrencyContext.interval_to_next_pending_claim_check` returns the minimum of 0 and the time left,
which is never above 0, so the in-process executor asks without a pause. Seven runs that wait for the GPU pool then keep seven
cores and the database busy. The class is not public, and there is no public way to change this; pyproject.toml pins Dagster's
minor version for it. Remove this module when `cem_assets_tests/platform/test_pool_waits.py` fails and says that Dagster sleeps
by itself.
"""

import time

from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

_ATTRIBUTE = "interval_to_next_pending_claim_check"


def seconds_to_next_claim(context: InstanceConcurrencyContext) -> float:
    """Return for how many seconds a run may sleep until one of its waiting steps asks for its slot again."""
    now = time.time()
    return max(0.0, min((ready_at - now for ready_at in context._pending_timeouts.values()), default=0.0))


def sleep_while_waiting() -> None:
    """Apply the correction in this process."""
    setattr(InstanceConcurrencyContext, _ATTRIBUTE, seconds_to_next_claim)
