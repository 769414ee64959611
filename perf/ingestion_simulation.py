"""A simulation of how the platform takes datasets in: sensors' ticks, the queue, runs, pools, failures and releases.

    python -m perf.ingestion_simulation --datasets-per-day 100 --seed 1
    python -m perf.ingestion_simulation --instance deploy/dagster.production.yaml --gpus 4 --out s.json --picture s.png

A discrete-event simulation on one heap. Datasets wait in the inbox for a tick (in order of name, from the sensor's cursor on,
at most so many requests a tick), in the queue for a slot, in their run for the slot of a pool, and for the next release. A run
holds its slot while it waits for a pool, as Dagster's in-process executor does. Parameters, and where in the code they come
from: `perf.ingestion_parameters`. Tables and pictures: `perf.ingestion_report`.
"""

import heapq
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from dagster._utils.schedules import schedule_execution_time_iterator

from cem_assets.platform.attempts import seconds_until_again
from perf.ingestion_parameters import DAY, NO_FAULTS, Dataset, Faults, Platform
from perf.ingestion_queues import Journey, Level, Pool, Scan

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Outcome:
    """What a simulation found; times in seconds, latencies of those who got there.

    Attributes:
        horizon: When it ended.
        arrived, filtered, refused, in_system: Datasets; the last three make the first.
        to_filtered, to_released: Latencies since arrival, in order of dataset.
        filtered_at: Moments, in order of time.
        queues: Mean and highest number waiting, by place.
        utilisation: Mean share of slots that are held, by resource.
        backlog: (time, datasets in the system) at regular moments.
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
    queues: dict[str, tuple[float, int]]
    utilisation: dict[str, float]
    backlog: tuple[tuple[float, int], ...] = field(repr=False)
    num_runs: int = 0
    num_failed_runs: int = 0

    @property
    def growth_per_day(self) -> float:
        """Datasets a day by which the backlog grows: the slope of a line through the later half of its course."""
        later = np.array([entry for entry in self.backlog if entry[0] >= self.horizon / 2], float).reshape(-1, 2)
        return float(np.polyfit(later[:, 0] / DAY, later[:, 1], 1)[0]) if len(later) > 1 else 0.0


class _Simulation:
    def __init__(self, datasets: Sequence[Dataset], platform: Platform, faults: Faults, horizon: float | None) -> None:
        self._platform, self._faults, self._horizon = platform, faults, horizon
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self.now = 0.0
        self._inbox, self._again = Scan(platform.seen_seconds), Scan(platform.reconciled_seconds)
        self._queue: deque[Callable[[], None]] = deque()
        self._next_look = 0.0
        self._is_look_planned = self._is_releasing = False
        self.in_inbox, self.queued, self.running, self.in_system, self.failed = (Level() for _ in range(5))
        self.pools = {name: Pool(num) for name, num in platform.pools.items()}
        self.journeys: list[Journey] = []
        self.backlog: list[tuple[float, int]] = []
        self.num_runs = self.num_failed_runs = 0
        self._num_left = len(datasets)
        self._num_unreleased = 0
        for dataset in datasets:
            self._at(dataset.arrival, lambda dataset=dataset: self._arrive(dataset))
        if platform.inbox_seconds:
            self._at(0.0, self._tick_inbox)
        if platform.reconciliation_seconds:
            self._at(0.0, self._tick_reconciliation)
        if platform.release_cron:
            self._crons = schedule_execution_time_iterator(0.0, platform.release_cron, "UTC")
            self._plan_release()
        last = horizon or max((dataset.arrival for dataset in datasets), default=0.0)
        self._sample_seconds = max(last / 500, 60.0)
        self._at(0.0, self._sample)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, self._num_events, what))
        self._num_events += 1

    def run(self) -> float:
        """Work events off until the horizon, or until all datasets are released or refused; return the end."""
        while self._events and (self._horizon is not None or self._num_left or self._num_unreleased):
            when, _, what = heapq.heappop(self._events)
            if self._horizon is not None and when > self._horizon:
                break
            self.now = when
            what()
        return self._horizon if self._horizon is not None else self.now

    # Arrivals and sensors

    def _arrive(self, dataset: Dataset) -> None:
        journey = Journey(dataset, np.random.default_rng(dataset.stream), [step.seconds for step in dataset.steps])
        journey.is_bad = bool(journey.generator.random() < self._faults.data)
        self.journeys.append(journey)
        self.in_system.add(1, self.now)
        self.in_inbox.add(1, self.now)
        if self._platform.inbox_seconds:
            self._inbox.want(journey)
        else:
            self._request(journey, 0.0)

    def _request(self, journey: Journey, delay: float) -> None:
        level = self.failed if journey.num_failures else self.in_inbox

        def enter() -> None:
            level.add(-1, self.now)
            self._enqueue(lambda: self._launch(journey))

        if delay:
            self._at(self.now + delay, enter)
        else:
            enter()

    def _next_tick(self, interval: float, spent: float) -> float:
        """Return when a sensor ticks next: after its interval and this tick, when the daemon looks at sensors again."""
        earliest, loop = self.now + max(interval, spent), self._platform.loop_seconds
        return math.ceil(earliest / loop - _ROUNDING) * loop if loop else earliest

    def _tick_inbox(self) -> None:
        asked, spent = self._inbox.tick(self._platform, lambda _: True)
        for journey in asked:
            insort(self._inbox.known, journey.dataset.place)
            insort(self._again.known, journey.dataset.place)
        self._at(self._next_tick(self._platform.inbox_seconds, self._ask(asked, spent)), self._tick_inbox)

    def _tick_reconciliation(self) -> None:
        asked, spent = self._again.tick(self._platform, lambda journey: journey.again_at <= self.now)
        self._at(self._next_tick(self._platform.reconciliation_seconds, self._ask(asked, spent)), self._tick_reconciliation)

    def _ask(self, asked: Iterable[Journey], spent: float) -> float:
        for journey in asked:
            spent += self._platform.request_seconds
            self._request(journey, spent)
        return spent

    # The queue

    def _enqueue(self, launch: Callable[[], None]) -> None:
        self._queue.append(launch)
        self.queued.add(1, self.now)
        self._plan_look()

    def _plan_look(self) -> None:
        pause = self._platform.dequeue_seconds
        if not pause:
            self._look()
        elif not self._is_look_planned and self._queue and self.running.value < self._platform.max_runs:
            self._is_look_planned = True
            self._at(math.ceil(self.now / pause - _ROUNDING) * pause, self._look)

    def _look(self) -> None:
        self._is_look_planned = False
        while self._queue and self.running.value < self._platform.max_runs:
            self.queued.add(-1, self.now)
            self.running.add(1, self.now)
            self._at(self.now + self._platform.start_seconds, self._queue.popleft())

    def _end_run(self) -> None:
        self.running.add(-1, self.now)
        self._plan_look()

    # Runs

    def _launch(self, journey: Journey) -> None:
        self.num_runs += 1
        journey.num_retries = 0
        self._step(journey)

    def _step(self, journey: Journey) -> None:
        if journey.step == len(journey.left):
            journey.filtered = self.now
            self._leave()
            self._num_unreleased += bool(self._platform.release_cron)
            self._end_run()
            return
        pool = self.pools.get(journey.dataset.steps[journey.step].pool)
        if pool is None:
            self._work(journey, None)
        else:
            self._claim(pool, lambda: self._work(journey, pool))

    def _claim(self, pool: Pool, begin: Callable[[], None]) -> None:
        pool.waiting.add(1, self.now)
        pool.queue.append((self.now, begin))
        self._assign(pool)

    def _assign(self, pool: Pool) -> None:
        """Give free slots to those who wait longest; who had to wait notices when it asks again."""
        while pool.queue and pool.busy.value < pool.num:
            since, begin = pool.queue.popleft()
            pool.busy.add(1, self.now)
            pool.waiting.add(-1, self.now)
            asks = self._asks_at(since)
            begin() if asks <= self.now else self._at(asks, begin)

    def _asks_at(self, since: float) -> float:
        platform = self._platform
        when, interval = since, platform.first_claim_seconds
        if not interval:
            return self.now
        while when < self.now:
            when += min(interval, platform.longest_claim_seconds)
            interval = platform.first_claim_seconds + platform.claim_growth * (interval - platform.first_claim_seconds + 1) - 1
        return when

    def _work(self, journey: Journey, pool: Pool | None) -> None:
        number, faults = journey.step, self._faults
        seconds = journey.left[number]
        where, death, trouble = journey.generator.random(3).tolist()
        if number == 0 and journey.is_bad:
            self._at(self.now + seconds, lambda: self._refuse(journey, pool))
        elif death < faults.death:
            journey.left[number] = seconds * (1 - where)
            self._at(self.now + seconds * where, lambda: self._die(journey, pool))
        elif trouble < faults.store:
            journey.left[number] = seconds * (1 - where)
            self._at(self.now + seconds * where, lambda: self._stumble(journey, pool))
        else:
            self._at(self.now + seconds, lambda: self._end_step(journey, pool))

    def _free(self, pool: Pool | None) -> None:
        if pool is not None:
            pool.busy.add(-1, self.now)
            self._assign(pool)

    def _end_step(self, journey: Journey, pool: Pool | None) -> None:
        self._free(pool)
        journey.step += 1
        journey.num_retries = 0
        self._step(journey)

    def _stumble(self, journey: Journey, pool: Pool | None) -> None:
        """A step in trouble with the store waits inside of its run, without its slot of a pool."""
        self._free(pool)
        if journey.num_retries >= self._platform.step_retries:
            self._fail(journey)
            return
        wait = self._platform.retry_seconds * 2**journey.num_retries
        journey.num_retries += 1
        self._at(self.now + wait, lambda: self._step(journey))

    def _die(self, journey: Journey, pool: Pool | None) -> None:
        """Run monitoring sees the dead process at its next look, and starts another run, or leaves it to reconciliation."""
        poll = self._platform.poll_seconds
        seen = math.ceil(self.now / poll - _ROUNDING) * poll if poll else self.now

        def notice() -> None:
            self._at(self.now + self._platform.free_slot_seconds, lambda: self._free(pool))
            if journey.num_restarts >= self._platform.run_retries:
                self._fail(journey)
                return
            journey.num_restarts += 1
            self.num_failed_runs += 1
            self._end_run()
            self._enqueue(lambda: self._launch(journey))

        self._at(seen, notice)

    def _fail(self, journey: Journey) -> None:
        """A run that failed is asked for again by reconciliation, later and later."""
        self.num_failed_runs += 1
        journey.num_failures += 1
        journey.num_restarts = journey.num_retries = 0
        journey.again_at = self.now + seconds_until_again(journey.num_failures)
        self.failed.add(1, self.now)
        self._end_run()
        if self._platform.reconciliation_seconds:
            self._again.want(journey)
        else:
            self._at(journey.again_at, lambda: self._request(journey, 0.0))

    def _refuse(self, journey: Journey, pool: Pool | None) -> None:
        self._free(pool)
        journey.is_refused = True
        self.num_failed_runs += 1
        self._leave()
        self._end_run()

    def _leave(self) -> None:
        self.in_system.add(-1, self.now)
        self._num_left -= 1

    # Releases

    def _plan_release(self) -> None:
        self._at(next(self._crons).timestamp(), self._ask_release)

    def _ask_release(self) -> None:
        self._plan_release()
        if self._num_unreleased and not self._is_releasing:
            self._is_releasing = True
            self._enqueue(self._release)

    def _release(self) -> None:
        members = [journey for journey in self.journeys if journey.filtered is not None]
        seconds = self._platform.release_seconds + self._platform.release_dataset_seconds * len(members)

        def finish() -> None:
            self._is_releasing = False
            for journey in members:
                if journey.released is None:
                    journey.released = self.now
                    self._num_unreleased -= 1
            self._end_run()

        self._at(self.now + seconds, finish)

    def _sample(self) -> None:
        self.backlog.append((self.now, self.in_system.value))
        self._at(self.now + self._sample_seconds, self._sample)


def simulate(
    datasets: Sequence[Dataset], platform: Platform, faults: Faults = NO_FAULTS, horizon: float | None = None
) -> Outcome:
    """Take datasets in.

    Args:
        datasets: That arrive, in order of arrival.
        platform: That takes them in.
        faults: What goes wrong.
        horizon: Seconds after which it ends; None goes on until all are released (or filtered, without releases) or refused.

    Returns:
        Latencies, queues, utilisation and backlog.
    """
    work = _Simulation(datasets, platform, faults, horizon)
    end = work.run()
    found = work.journeys
    levels = {"inbox": work.in_inbox, "run queue": work.queued, "failed, to be repeated": work.failed}
    levels |= {f"pool {name}": pool.waiting for name, pool in work.pools.items()}
    utilisation = {"run slots": work.running.mean(end) / platform.max_runs}
    utilisation |= {f"pool {name}": pool.busy.mean(end) / pool.num for name, pool in work.pools.items()}
    return Outcome(
        horizon=end,
        arrived=len(found),
        filtered=sum(item.filtered is not None for item in found),
        refused=sum(item.is_refused for item in found),
        in_system=work.in_system.value,
        to_filtered=tuple(item.filtered - item.dataset.arrival for item in found if item.filtered is not None),
        to_released=tuple(item.released - item.dataset.arrival for item in found if item.released is not None),
        filtered_at=tuple(sorted(item.filtered for item in found if item.filtered is not None)),
        queues={name: (level.mean(end), level.highest) for name, level in levels.items()},
        utilisation=utilisation,
        backlog=tuple(work.backlog),
        num_runs=work.num_runs,
        num_failed_runs=work.num_failed_runs,
    )


def saturation_bounds(datasets: Sequence[Dataset], platform: Platform) -> dict[str, float]:
    """Return datasets a day that each resource can take at most, by arithmetic, without failures."""
    in_run = platform.start_seconds + float(np.mean([sum(step.seconds for step in item.steps) for item in datasets]))
    bounds = {"run slots": platform.max_runs * DAY / in_run if in_run else math.inf}
    if platform.inbox_seconds:
        tick = max(platform.inbox_seconds, platform.max_requests * (platform.request_seconds + platform.new_seconds))
        bounds["inbox sensor"] = platform.max_requests * DAY / tick
    for name, num in platform.pools.items():
        seconds = float(np.mean([sum(step.seconds for step in item.steps if step.pool == name) for item in datasets]))
        bounds[f"pool {name}"] = num * DAY / seconds if seconds else math.inf
    return bounds


def saturation_rate(datasets: Sequence[Dataset], platform: Platform, faults: Faults = NO_FAULTS) -> float:
    """Return datasets a day that are filtered while all of these wait from the beginning: between the first and last tenth."""
    waiting = [replace(item, arrival=0.0) for item in datasets]
    moments = simulate(waiting, replace(platform, release_cron=""), faults).filtered_at
    first, last = len(moments) // 10, len(moments) - len(moments) // 10 - 1
    return (last - first) * DAY / (moments[last] - moments[first]) if last > first else math.nan


if __name__ == "__main__":
    from perf.ingestion_report import main

    main()
