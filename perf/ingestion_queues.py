"""What datasets wait in while they are taken in: a sensor's look through the inbox, and the slots of a pool.

The simulation that moves them on is `perf.ingestion_simulation`.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perf.ingestion_parameters import Dataset, Platform


@dataclass(eq=False)
class Journey:
    """A dataset on its way."""

    dataset: Dataset
    generator: np.random.Generator
    left: list[float]  # seconds still to do of every step: pieces in the store are not made again
    step: int = 0
    num_failures: int = 0
    num_restarts: int = 0
    num_retries: int = 0
    again_at: float = 0.0
    filtered: float | None = None
    released: float | None = None
    is_bad: bool = False
    is_refused: bool = False


@dataclass
class Level:
    """A number over time: its integral, its maximum, and how it stood at regular moments."""

    value: int = 0
    area: float = 0.0
    highest: int = 0
    since: float = 0.0

    def add(self, change: int, now: float) -> None:
        self.area += self.value * (now - self.since)
        self.since, self.value = now, self.value + change
        self.highest = max(self.highest, self.value)

    def mean(self, now: float) -> float:
        return (self.area + self.value * (now - self.since)) / now if now else 0.0


class Pool:
    """Slots, and runs that wait for one in order."""

    def __init__(self, num: int) -> None:
        self.num, self.busy, self.waiting = num, Level(), Level()
        self.queue: deque[tuple[float, Callable[[], None]]] = deque()


class Scan:
    """What a sensor's cursor does: datasets in order of name, as many as fit a tick, then on from there."""

    def __init__(self, seen_seconds: float) -> None:
        self.known: list[float] = []
        self._seen_seconds = seen_seconds
        self.wanted: list[tuple[float, Journey]] = []
        self._after = -1.0

    def want(self, journey: Journey) -> None:
        insort(self.wanted, (journey.dataset.place, journey), key=lambda entry: entry[0])

    def tick(self, platform: Platform, is_due: Callable[[Journey], bool]) -> tuple[list[Journey], float]:
        """Return who is asked for, and the seconds that looking took."""
        spent, place, asked = 0.0, self._after, []
        start = bisect_right(self.wanted, place, key=lambda entry: entry[0])
        for where, journey in self.wanted[start:]:
            between = bisect_left(self.known, where) - bisect_right(self.known, place)
            if spent + between * self._seen_seconds > platform.tick_seconds:
                break
            spent += between * self._seen_seconds + platform.new_seconds
            place = where
            if is_due(journey):
                asked.append(journey)
            if len(asked) >= platform.max_requests or spent > platform.tick_seconds:
                self._after = place
                return self._taken(asked), spent
        at = bisect_right(self.known, place)
        room = int((platform.tick_seconds - spent) / self._seen_seconds) + 1 if self._seen_seconds else len(self.known)
        end = min(len(self.known), at + room)
        spent += (end - at) * self._seen_seconds
        self._after = -1.0 if end == len(self.known) else self.known[end - 1]
        return self._taken(asked), spent

    def _taken(self, asked: list[Journey]) -> list[Journey]:
        if asked:
            gone = set(map(id, asked))
            self.wanted = [entry for entry in self.wanted if id(entry[1]) not in gone]
        return asked
