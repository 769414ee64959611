"""Tests of the simulation of ingestion: limits in which the outcome is known, formulas of queues, and what must not change."""

import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("perf", reason="the benchmarks are in the repository, not in its packages")

from cem_assets.platform.attempts import PROMPT_ATTEMPTS, seconds_until_again
from perf.ingestion_parameters import (
    DAY,
    PRODUCTION,
    Dataset,
    Faults,
    Platform,
    Step,
    Workload,
    draw_datasets,
    read_platform,
)
from perf.ingestion_report import CASES, HEADER, main, row_of
from perf.ingestion_simulation import Outcome, saturation_bounds, saturation_rate, simulate


def _at_once(**changes) -> Platform:
    """A platform without ticks, pauses, starts and releases: a queue and slots."""
    still = dict.fromkeys(
        ("inbox_seconds", "reconciliation_seconds", "dequeue_seconds", "start_seconds", "claim_seconds", "poll_seconds"), 0.0
    )
    return read_platform(**{**still, "release_hour": None, "free_slot_seconds": 0.0, **changes})


def _datasets(arrivals, steps, seed: int = 0) -> list[Dataset]:
    streams = np.random.SeedSequence(seed).spawn(len(arrivals))
    return [Dataset(float(at), tuple(own), stream) for at, own, stream in zip(arrivals, steps, streams, strict=True)]


def _up(value: float, step: float) -> float:
    return math.ceil(value / step - 1e-9) * step


def test_alone_a_dataset_waits_for_ticks_and_its_steps_only() -> None:
    platform = read_platform()
    steps = (Step("volumes", 100.0), Step("patch_scores", 40.0, needs_gpu=True), Step("filtered_patches", 7.5))
    arrivals = [1003.0, 5000.0, 90_061.0]
    outcome = simulate(_datasets(arrivals, [steps] * 3), platform)
    for arrival, to_filtered, to_released in zip(arrivals, outcome.to_filtered, outcome.to_released, strict=True):
        requested = _up(arrival, platform.inbox_seconds) + platform.request_seconds
        begun = _up(requested, platform.dequeue_seconds) + platform.start_seconds
        assert to_filtered == pytest.approx(begun + 147.5 - arrival)
        asked = _up(begun + 147.5 - 3 * 3600, DAY) + 3 * 3600  # at three o'clock
        num_released = sum(other <= arrival for other in arrivals)
        seconds = platform.release_seconds + platform.release_dataset_seconds * num_released
        expected = _up(asked, platform.dequeue_seconds) + platform.start_seconds + seconds - arrival
        # The two of the first day are released together.
        assert to_released == pytest.approx(expected, abs=platform.release_dataset_seconds + 1e-6)


def test_settings_are_those_of_the_code() -> None:
    platform = read_platform()
    assert (platform.max_runs, platform.num_gpus, platform.run_retries, platform.release_hour) == (2, 1, 2, 3)
    assert (platform.inbox_seconds, platform.reconciliation_seconds) == (30, 60)
    assert read_platform(PRODUCTION).max_runs == 8
    assert [seconds_until_again(n) for n in (PROMPT_ATTEMPTS - 1, PROMPT_ATTEMPTS, PROMPT_ATTEMPTS + 9)] == [0, 3600, 86400]


@pytest.mark.parametrize(("max_runs", "num_gpus", "bound"), [(2, 4, "run slots"), (16, 1, "gpu pool"), (16, 3, "gpu pool")])
def test_saturation_is_that_of_the_narrowest_resource(max_runs: int, num_gpus: int, bound: str) -> None:
    generator = np.random.default_rng(1)
    steps = [(Step("volumes", v), Step("scores", s, needs_gpu=True)) for v, s in generator.uniform(60, 140, (600, 2))]
    platform = _at_once(max_runs=max_runs, num_gpus=num_gpus, inbox_seconds=30.0)
    waiting = _datasets(np.zeros(600), steps)
    bounds = saturation_bounds(waiting, platform)
    assert min(bounds, key=bounds.__getitem__) == bound
    assert saturation_rate(waiting, platform) == pytest.approx(bounds[bound], rel=0.05)


def test_the_inbox_sensor_asks_for_so_many_runs_a_tick() -> None:
    platform = _at_once(max_runs=100_000, inbox_seconds=30.0)
    waiting = _datasets(np.zeros(500), [(Step("volumes", 1.0),)] * 500)
    bound = saturation_bounds(waiting, platform)["inbox sensor"]
    assert bound == platform.max_requests * DAY / 30
    assert saturation_rate(waiting, platform) == pytest.approx(bound, rel=0.07)  # 25 at a time: the ends of the count matter


@pytest.mark.parametrize(("is_random", "formula"), [(False, 0.5), (True, 1.0)])
def test_one_slot_waits_as_md1_and_mm1_say(is_random: bool, formula: float) -> None:
    num, load, mean = 12_000, 0.6, 10.0
    generator = np.random.default_rng(3)
    arrivals = np.cumsum(generator.exponential(mean / load, num))
    seconds = generator.exponential(mean, num) if is_random else np.full(num, mean)
    datasets = _datasets(arrivals, [(Step("one", s),) for s in seconds])
    outcome = simulate(datasets, _at_once(max_runs=1))
    waits = np.array(outcome.to_filtered) - seconds
    assert waits.mean() == pytest.approx(formula * load * mean / (1 - load), rel=0.08)
    assert outcome.run_slots == pytest.approx(load, rel=0.03)
    in_system = np.mean([number for _, number in outcome.backlog])
    assert in_system == pytest.approx(np.mean(outcome.to_filtered) * load / mean, rel=0.2)  # Little's law, from 500 samples
    assert waits.min() == pytest.approx(0, abs=1e-6)


def test_more_slots_are_never_worse_for_any_dataset_of_one_stage() -> None:
    generator = np.random.default_rng(4)
    arrivals, seconds = np.cumsum(generator.exponential(3, 300)), generator.lognormal(2, 1, 300)
    datasets = _datasets(arrivals, [(Step("one", s),) for s in seconds])
    latencies = [np.array(simulate(datasets, _at_once(max_runs=num)).to_filtered) for num in (1, 2, 3, 6, 400)]
    for fewer, more in pairwise(latencies):
        assert (more <= fewer + 1e-6).all()
    assert latencies[-1] == pytest.approx(seconds)
    assert latencies[0].mean() > 2 * latencies[-1].mean()  # so that there was something to gain


def _drawn(seed: int, faults: Faults, horizon: float | None, **more: float) -> Outcome:
    workload = Workload(**{"datasets_per_day": 150.0, "days": 2.0, **more})
    return simulate(draw_datasets(workload, seed), read_platform(), faults, horizon)


def test_the_seed_decides_everything() -> None:
    faults = Faults(0.05, 0.1, 0.05)
    first = _drawn(1, faults, 2 * DAY)
    assert asdict(first) == asdict(_drawn(1, faults, 2 * DAY))
    other = _drawn(2, faults, 2 * DAY)
    assert first.to_filtered != other.to_filtered
    assert first.arrived != other.arrived


def test_another_parameter_keeps_the_draws() -> None:
    slow, fast = (draw_datasets(Workload(rate, 4.0), 7) for rate in (50.0, 100.0))
    assert len(fast) > len(slow) > 100
    for before, after in zip(slow, fast, strict=False):
        assert after.arrival == pytest.approx(before.arrival / 2)
        assert (after.steps, after.stream.spawn_key) == (before.steps, before.stream.spawn_key)


@pytest.mark.parametrize("horizon", [0.5 * DAY, 2 * DAY, None])
def test_what_arrived_is_filtered_refused_or_on_its_way(horizon: float | None) -> None:
    outcome = _drawn(5, Faults(0.1, 0.2, 0.1), horizon, median_gb=40.0)
    assert outcome.arrived == outcome.filtered + outcome.refused + outcome.in_system
    assert len(outcome.to_filtered) == outcome.filtered > 0
    assert outcome.refused > 0
    if horizon is None:
        assert outcome.in_system == 0
        assert len(outcome.to_released) == outcome.filtered
        assert outcome.num_runs >= outcome.arrived
    elif horizon < DAY:
        assert outcome.in_system > 0


def test_work_that_fails_again_and_again_is_left_alone_longer_and_longer() -> None:
    certain = Faults(death=1.0)
    datasets = _datasets([0.0], [(Step("volumes", 64.0),)])
    platform = _at_once(run_retries=0, max_runs=1)
    first_day = simulate(datasets, platform, certain, DAY)
    # Two prompt repetitions, then after 1, 2, 4 and 8 hours: the next one is due after 31 hours.
    assert (first_day.num_runs, first_day.in_system) == (7, 1)
    retried = simulate(datasets, replace(platform, run_retries=2), certain, DAY)
    assert retried.num_runs == 3 * 7


def test_the_store_in_trouble_costs_growing_pauses() -> None:
    datasets = _datasets([0.0], [(Step("volumes", 64.0),)])
    platform = _at_once(max_runs=1)
    outcome = simulate(datasets, platform, Faults(store=1.0), 60.0)
    assert outcome.num_failed_runs == 0
    outcome = simulate(datasets, platform, Faults(store=1.0), 10 + 20 + 40 + 64.0)
    assert outcome.num_failed_runs >= 1  # three pauses of 10, 20 and 40 s, then reconciliation repeats it


def test_the_program_prints_a_row_for_the_workload_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--datasets-per-day", "40", "--days", "1", "--runs", "4", "--gpus", "2", "--instance", str(PRODUCTION)])
    header, _, row = capsys.readouterr().out.splitlines()
    assert header == f"| {' | '.join(HEADER)} |"
    assert row.startswith(f"| {PRODUCTION.name} | 40 | 97 s, 5 min | ") and "(run slots; " in row


def test_a_row_of_the_documentation_is_what_the_program_computes() -> None:
    documented = (Path(__file__).parents[1] / "docs/scale.md").read_text().splitlines()
    assert f"| {' | '.join(row_of(CASES[0], seed=1))} |" in documented
