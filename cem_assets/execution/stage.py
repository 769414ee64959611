"""What every stage returns and reports: its manifest, and progress on long work."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from cem_assets.store.manifests import Manifest

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on; must be cheap."""

_SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        manifest: The partition's manifest, new or old.
        is_new: False where the partition was up to date and nothing was computed.
        seconds: Time it took.
    """

    manifest: Manifest
    is_new: bool
    seconds: float


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""
    del done, total


def logged_progress(log: Callable[[str], None], what: str) -> Progress:
    """Report progress as log lines, at most one every ten seconds.

    Args:
        log: Where lines go, such as `context.log.info`.
        what: What is counted, such as "bricks hashed".
    """
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_REPORTS or done >= total:
            return
        last = now
        left = (now - started) / max(done, 1) * (total - done)
        log(f"{what}: {done:,} of {total:,} ({100 * done / total:.0f} %), about {left / 60:.0f} min left")

    return report
