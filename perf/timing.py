"""How things are timed here: the best of several repeats, both sides in turn."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One row of the report.

    Attributes:
        work: What was done.
        unit: What the rates count, such as "patches/s".
        ours, peer: Rates.
        beside: What the peer is.
        goal: Ratio aimed at; 0 where there is none.
        note: What belongs beside the figures: peak memory, an exactness that was checked, that it was extrapolated.
    """

    work: str
    unit: str
    ours: float
    peer: float
    beside: str
    goal: float
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("nan")


def best_seconds(*calls: Callable[[], object], repeats: int = 3) -> list[float]:
    """Time calls in turn, several times; return the best of each."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for number, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[number] = min(best[number], time.perf_counter() - started)
    return best
