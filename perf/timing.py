"""How things are timed: the best of several repeats, with both sides in turn."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One row of the report.

    Attributes:
        work: What was done.
        unit: Unit of the rates, such as "patches/s".
        peer: Rate of the peer; 0 where there is none.
        beside: Name of the peer.
        goal: The ratio we aim at; 0 where there is no goal.
        note: Remarks such as peak memory, what was checked to be equal, or that the figure is extrapolated.
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
