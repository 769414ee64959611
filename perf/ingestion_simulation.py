"""A simulation of how the platform takes datasets in: sensors, the queue of runs, the GPU pool, failures and releases.

    python -m perf.ingestion_simulation --seed 1                        the table of docs/scale.md
    python -m perf.ingestion_simulation --datasets-per-day 100          one workload; --help lists what else can be set

It is a discrete-event simulation in which each activity is a generator: it yields a number of seconds to wait, or `Slots` of
which it needs one. A run keeps its slot while it waits for the GPU pool, as a run of Dagster's in-process executor does. The
settings, and where in the code they come from, are in `perf.ingestion_parameters`.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count

import numpy as np

from cem_assets.platform.attempts import seconds_until_again
from perf.ingestion_parameters import (
    DAY,
    NO_FAULTS,
    Dataset,
    Faults,
    Platform,
)

NUM_SAMPLES = 500
"""How often the backlog is looked at."""

Activity = Generator["float | Slots", None, None]


class Slots:
    """A number of slots, and the activities that wait for one in order of arrival."""

    def __init__(self, num: int, noticed_at: Callable[[float, float], float]) -> None:
        """Begin with all slots free; `noticed_at(asked, now)` says when one who asked notices that a slot is free now."""
        self.num, self.noticed_at = num, noticed_at
        self.waiting: deque[tuple[float, Activity]] = deque()
        self.num_held, self._held_seconds, self._since = 0, 0.0, 0.0

    def count(self, change: int, now: float) -> None:
        self._held_seconds += self.num_held * (now - self._since)
        self.num_held, self._since = self.num_held + change, now

    def utilisation(self, now: float) -> float:
        self.count(0, now)
        return self._held_seconds / now / self.num if now else 0.0


class End(Enum):
    """How a run ends."""

    finished = "finished"
    refused = "refused"
    failed = "failed"
    died = "died"


@dataclass(eq=False)
class Journey:
    """A dataset on its way. `left` holds the seconds still to do of every step, because finished pieces are not made again."""

    dataset: Dataset
    generator: np.random.Generator
    left: list[float]
    is_bad: bool
    step: int = 0
    filtered: float | None = None
    released: float | None = None
    is_refused: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a simulation found; times in seconds.

    Attributes:
        arrived, filtered, refused, in_system: Numbers of datasets; the last three make up the first.
        to_filtered, to_released: Time since arrival of those that got so far, in order of arrival.
        filtered_at: Times at which datasets were filtered, in order.
        run_slots, gpu_pool: Mean share of slots that are held.
        backlog: (time, datasets in the system) at regular times.
        num_runs, num_failed_runs: Runs of the chain.
    """

    horizon: float
    arrived: int
    filtered: int
    refused: int
    in_system: int
    to_filtered: tuple[float, ...]
    to_released: tuple[float, ...]
    filtered_at: tuple[float, ...]
    run_slots: float
    gpu_pool: float
    backlog: tuple[tuple[float, int], ...]
    num_runs: int
    num_failed_runs: int

    @property
    def growth_per_day(self) -> float:
        """Datasets a day by which the backlog grows: the slope of a line through the later half of its course."""
        later = np.array([entry for entry in self.backlog if entry[0] >= self.horizon / 2], float).reshape(-1, 2)
        return float(np.polyfit(later[:, 0] / DAY, later[:, 1], 1)[0]) if len(later) > 1 else 0.0


def _next_multiple(moment: float, interval: float) -> float:
    return math.ceil(moment / interval - 1e-9) * interval if interval else moment


class _Simulation:
    def __init__(self, datasets: Sequence[Dataset], platform: Platform, faults: Faults, horizon: float | None) -> None:
        self.platform, self.faults, self.horizon = platform, faults, horizon
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()
        self.runs = Slots(platform.max_runs, lambda asked, now: _next_multiple(now, platform.dequeue_seconds))
        self.gpus = Slots(platform.num_gpus, self._claimed_at)
        self.inbox: deque[Journey] = deque()
        self.journeys: list[Journey] = []
        self.backlog: list[tuple[float, int]] = []
        self.num_runs = self.num_failed_runs = self.num_in_system = self.num_unreleased = 0
        self.num_to_come = len(datasets)
        for dataset in datasets:
            self.at(dataset.arrival, lambda dataset=dataset: self.arrive(dataset))
        if platform.inbox_seconds:
            self.start(self.tick_inbox())
        if platform.release_hour is not None:
            self.start(self.make_releases(platform.release_hour * 3600))
        last = horizon or max((dataset.arrival for dataset in datasets), default=0.0)
        self.start(self.sample(max(last / NUM_SAMPLES, 60.0)))

    # Events

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what))

    def start(self, activity: Activity, delay: float = 0.0) -> None:
        self.at(self.now + delay, lambda: self.go_on(activity))

    def go_on(self, activity: Activity) -> None:
        wanted = next(activity, None)
        if isinstance(wanted, Slots):
            wanted.waiting.append((self.now, activity))
            self.assign(wanted)
        elif wanted is not None:
            self.start(activity, wanted)

    def assign(self, slots: Slots) -> None:
        while slots.waiting and slots.num_held < slots.num:
            asked, activity = slots.waiting.popleft()
            slots.count(1, self.now)
            self.start(activity, slots.noticed_at(asked, self.now) - self.now)

    def free(self, slots: Slots) -> None:
        slots.count(-1, self.now)
        self.assign(slots)

    def _claimed_at(self, asked: float, now: float) -> float:
        """A waiting step asks for its slot again and again, with pauses that grow."""
        pause = self.platform.claim_seconds
        while asked < now and pause:
            asked += min(pause, self.platform.longest_claim_seconds)
            pause *= 1.1
        return max(asked, now)

    def run(self) -> float:
        """Work events off until the horizon, or until all datasets are released or refused; return the end."""
        while self.events and (self.horizon is not None or self.num_to_come or self.num_in_system or self.num_unreleased):
            when, _, what = heapq.heappop(self.events)
            if self.horizon is not None and when > self.horizon:
                break
            self.now = when
            what()
        return self.now if self.horizon is None else self.horizon

    # Activities

    def arrive(self, dataset: Dataset) -> None:
        generator = np.random.default_rng(dataset.stream)
        is_bad = bool(generator.random() < self.faults.data)
        journey = Journey(dataset, generator, [step.seconds for step in dataset.steps], is_bad)
        self.journeys.append(journey)
        self.num_to_come -= 1
        self.num_in_system += 1
        if self.platform.inbox_seconds:
            self.inbox.append(journey)
        else:
            self.start(self.take_in(journey))

    def tick_inbox(self) -> Activity:
        while True:
            for number in range(min(len(self.inbox), self.platform.max_requests)):
                self.start(self.take_in(self.inbox.popleft()), (number + 1) * self.platform.request_seconds)
            yield self.platform.inbox_seconds

    def take_in(self, journey: Journey) -> Activity:
        """Run the chain until it ends; reconciliation repeats a run that failed, after pauses that grow."""
        for num_failures in count(1):
            end = yield from self.make_runs(journey)
            if end in (End.finished, End.refused):
                break
            due = self.now + seconds_until_again(num_failures)
            yield _next_multiple(due, self.platform.reconciliation_seconds) - self.now
        self.num_in_system -= 1
        journey.is_refused = end is End.refused
        if end is End.finished:
            journey.filtered = self.now
            self.num_unreleased += self.platform.release_hour is not None

    def make_runs(self, journey: Journey) -> Generator["float | Slots", None, End]:
        """Make one run; replace it where its process dies, as often as the instance allows."""
        end = End.died
        for _ in range(self.platform.run_retries + 1):
            yield self.runs
            self.num_runs += 1
            yield self.platform.start_seconds
            end = yield from self.make_steps(journey)
            self.num_failed_runs += end is not End.finished
            self.free(self.runs)
            if end is not End.died:
                break
        return end

    def make_steps(self, journey: Journey) -> Generator["float | Slots", None, End]:
        while journey.step < len(journey.left):
            for num_retries in count():
                end = yield from self.make_step(journey)
                if end is not End.failed:
                    break
                if num_retries == self.platform.step_retries:
                    return end
                yield self.platform.retry_seconds * 2**num_retries
            if end is not End.finished:
                return end
            journey.step += 1
        return End.finished

    def make_step(self, journey: Journey) -> Generator["float | Slots", None, End]:
        needs_gpu, seconds = journey.dataset.steps[journey.step].needs_gpu, journey.left[journey.step]
        if needs_gpu:
            yield self.gpus
        where, death, trouble = journey.generator.random(3).tolist()
        end = End.finished
        if journey.step == 0 and journey.is_bad:
            end = End.refused
        elif death < self.faults.death or trouble < self.faults.store:
            end = End.died if death < self.faults.death else End.failed
            journey.left[journey.step], seconds = seconds * (1 - where), seconds * where
        yield seconds
        free_in = 0.0
        if end is End.died:
            yield _next_multiple(self.now, self.platform.poll_seconds) - self.now  # until Dagster looks
            free_in = self.platform.free_slot_seconds
        if needs_gpu:
            self.at(self.now + free_in, lambda: self.free(self.gpus)) if free_in else self.free(self.gpus)
        return end

    def make_releases(self, second_of_day: float) -> Activity:
        yield second_of_day
        while True:
            if self.num_unreleased:
                yield self.runs
                yield self.platform.start_seconds
                members = [journey for journey in self.journeys if journey.filtered is not None]
                yield self.platform.release_seconds + self.platform.release_dataset_seconds * len(members)
                for journey in members:
                    if journey.released is None:
                        journey.released = self.now
                        self.num_unreleased -= 1
                self.free(self.runs)
            yield _next_multiple(self.now + 1 - second_of_day, DAY) + second_of_day - self.now

    def sample(self, interval: float) -> Activity:
        while True:
            self.backlog.append((self.now, self.num_in_system))
            yield interval


def simulate(
    datasets: Sequence[Dataset], platform: Platform, faults: Faults = NO_FAULTS, horizon: float | None = None
) -> Outcome:
    """Take datasets in.

    Args:
        datasets: In order of arrival.
        horizon: Seconds after which the simulation ends. None goes on until all datasets are refused or released, or filtered
            where no releases are made.
    """
    work = _Simulation(datasets, platform, faults, horizon)
    end = work.run()
    found = work.journeys
    return Outcome(
        horizon=end,
        arrived=len(found),
        filtered=sum(item.filtered is not None for item in found),
        refused=sum(item.is_refused for item in found),
        in_system=work.num_in_system,
        to_filtered=tuple(item.filtered - item.dataset.arrival for item in found if item.filtered is not None),
        to_released=tuple(item.released - item.dataset.arrival for item in found if item.released is not None),
        filtered_at=tuple(sorted(item.filtered for item in found if item.filtered is not None)),
        run_slots=work.runs.utilisation(end),
        gpu_pool=work.gpus.utilisation(end),
        backlog=tuple(work.backlog),
        num_runs=work.num_runs,
        num_failed_runs=work.num_failed_runs,
    )


def saturation_bounds(datasets: Sequence[Dataset], platform: Platform) -> dict[str, float]:
    """Return how many datasets a day each resource can take at most, by arithmetic and without failures."""
    in_run = platform.start_seconds + float(np.mean([sum(step.seconds for step in item.steps) for item in datasets]))
    on_gpu = float(np.mean([sum(step.seconds for step in item.steps if step.needs_gpu) for item in datasets]))
    bounds = {
        "run slots": platform.max_runs * DAY / in_run,
        "gpu pool": platform.num_gpus * DAY / on_gpu if on_gpu else math.inf,
    }
    if platform.inbox_seconds:
        bounds["inbox sensor"] = platform.max_requests * DAY / platform.inbox_seconds
    return bounds


def saturation_rate(datasets: Sequence[Dataset], platform: Platform, faults: Faults = NO_FAULTS) -> float:
    """Return how many datasets a day are filtered while all of these wait from the beginning.

    The rate is taken between the first and the last tenth of them.
    """
    waiting = [replace(item, arrival=0.0) for item in datasets]
    moments = simulate(waiting, replace(platform, release_hour=None), faults).filtered_at
    first, last = len(moments) // 10, len(moments) - len(moments) // 10 - 1
    return (last - first) * DAY / (moments[last] - moments[first]) if last > first else math.nan


if __name__ == "__main__":
    from perf.ingestion_report import main

    main()
