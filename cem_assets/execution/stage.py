"""What every stage shares: how it begins and ends, its result, and how it reports progress."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""A function that is called often with (done, total) while work goes on, and must return quickly."""

_SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    Attributes:
        manifest: The current manifest of the partition, new or old.
        is_new: False if the partition was up to date and nothing was computed.
        seconds: The duration of the stage.
    """

    manifest: Manifest
    is_new: bool
    seconds: float


@dataclass(frozen=True)
class Beginning:
    """A stage that has begun: ask `up_to_date` first, write through `commit`, and end with `finish`.

    Attributes:
        started: `time.monotonic()` at the beginning.
    """

    commit: Commit
    started: float

    @property
    def up_to_date(self) -> StageResult | None:
        """The result to return at once if the partition was made from the same inputs and is intact; otherwise None."""
        manifest = self.commit.up_to_date
        return None if manifest is None else StageResult(manifest, False, time.monotonic() - self.started)

    def finish(
        self,
        counts: Mapping[str, int],
        details: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        is_final: bool = False,
    ) -> StageResult:
        """Make the content visible and return the result of the stage; the arguments are those of `Commit.finish`."""
        manifest = self.commit.finish(counts, details, versions, is_final)
        return StageResult(manifest, True, time.monotonic() - self.started)


def begin(store: Store, inputs: Inputs, run_id: str = "", started: float | None = None) -> Beginning:
    """Begin a stage, and find out whether its partition is up to date before anything heavy is loaded.

    Args:
        inputs: What the content is made from: the asset, the partition, parameters, and the digests of upstream manifests.
        run_id: The id of the Dagster run. The manifest records it outside its digest.
        started: `time.monotonic()` at the beginning of a stage that had to work before it knew its inputs; None means now.
    """
    started = time.monotonic() if started is None else started
    return Beginning(Commit(store, inputs, run_id), started)


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""
    del done, total


def logged_progress(log: Callable[[str], None], what: str) -> Progress:
    """Report progress as log lines, at most one every ten seconds.

    Args:
        log: Called with each line, such as `context.log.info`.
        what: The things that are counted, such as "bricks hashed".
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
