"""A correction to Dagster: steps that wait for a slot of a pool sleep, instead of asking as fast as they can.

`InstanceConcurrencyContext.interval_to_next_pending_claim_check` of Dagster 1.13 takes the smallest of 0 and the time left, so
it never is above 0, and the in-process executor spins: seven runs waiting for the GPU pool then keep seven cores and the
database busy. Remove this module when `cem_assets_tests/platform/test_pool_waits.py` says that Dagster does it right.
"""

import time

from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

_ATTRIBUTE = "interval_to_next_pending_claim_check"


def seconds_to_next_claim(context: InstanceConcurrencyContext) -> float:
    """Return how long a run may sleep until one of its waiting steps may ask for its slot again."""
    now = time.time()
    return max(0.0, min((ready_at - now for ready_at in context._pending_timeouts.values()), default=0.0))


def sleep_while_waiting() -> None:
    """Put the correction in place, for this process."""
    setattr(InstanceConcurrencyContext, _ATTRIBUTE, seconds_to_next_claim)
