"""What the simulation of ingestion is told: the platform, the datasets that arrive, and what fails.

What the platform holds already is read from it, so that it cannot drift:

- `cem.automation`: intervals of the inbox and reconciliation sensors; `platform.attempts`: `TICK_SECONDS`,
  `MAX_REQUESTS`, releases' cron line;
- `platform.attempts`: how long failed work is left alone; `platform.steps`: `MAX_RETRIES`, `RETRY_DELAY_SECONDS`;
- a dagster.yaml: `max_concurrent_runs`, the limit of pools, retries of runs, `poll_interval_seconds`,
  `free_slots_after_run_end_seconds`;
- Dagster: the loop of its sensor daemon, the pause of its queue, and how waiting steps ask for a slot (`platform.pool_waits`
makes
  them sleep in between).

What stands here as a number with a comment is in no code. Simulating is `perf.ingestion_simulation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from dagster._core.execution.plan import instance_concurrency_context as claims
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._daemon.sensor import MIN_INTERVAL_LOOP_TIME

import cem_assets
from cem_assets.cem import automation
from cem_assets.cem.assets import GPU_POOL
from cem_assets.cem.volumes.bricks import ALL_PLANES, brick_shape
from cem_assets.platform import attempts, steps
from perf.measured_figures import Figure, dedup_seconds

DAY = 86_400.0
LAPTOP = Path(cem_assets.__file__).parent / "dagster.yaml"


@dataclass(frozen=True)
class Platform:
    """How the platform takes datasets in; times in seconds. `read_platform` fills it from the code.

    Attributes:
        inbox_seconds, reconciliation_seconds: Between the beginnings of two ticks; 0 makes the sensor see things at once.
        loop_seconds: Sensors are looked at every so often.
        tick_seconds, max_requests: When a tick stops.
        new_seconds, seen_seconds, reconciled_seconds: Looking at one dataset that is new; that the inbox sensor knows; that
            reconciliation knows.
        request_seconds: Creating a run.
        dequeue_seconds: Between looks into the queue; 0 launches at once.
        max_runs: Slots of the queue.
        pools: Slots by name.
        first_claim_seconds, claim_growth, longest_claim_seconds: Waiting steps ask for their slot again after this, growing;
            0 gives a slot at once.
        start_seconds: From launch to the first step.
        step_retries, retry_seconds: Of steps in trouble with the store; the delay doubles.
        run_retries, poll_seconds, free_slot_seconds: Of runs whose process died: how often, seen when, slot free when.
        release_cron: When releases are made, in UTC; empty for never.
        release_seconds, release_dataset_seconds: Of a release, and more for each dataset in it.
    """

    inbox_seconds: float
    reconciliation_seconds: float
    loop_seconds: float
    tick_seconds: float
    max_requests: int
    dequeue_seconds: float
    max_runs: int
    pools: Mapping[str, int]
    first_claim_seconds: float
    claim_growth: float
    longest_claim_seconds: float
    step_retries: int
    retry_seconds: float
    run_retries: int
    poll_seconds: float
    free_slot_seconds: float
    release_cron: str
    new_seconds: float = 0.02  # two requests for the description, five listings; read in parallel
    seen_seconds: float = 0.0005
    reconciled_seconds: float = 0.002  # a pass of reconciliation over its partitions: docs/performance.md
    request_seconds: float = 0.1  # "up to a tenth of a second": attempts.MAX_REQUESTS
    start_seconds: float = 12.0  # docs/performance.md: one run in a process of its own
    release_seconds: float = 60.0
    release_dataset_seconds: float = 0.1


def read_platform(instance: Path = LAPTOP, **changes: Any) -> Platform:
    """Read the platform's own constants.

    Args:
        instance: A dagster.yaml: the laptop's, or deploy/dagster.production.yaml.
        changes: Fields to set otherwise.
    """
    config = yaml.safe_load(instance.read_text())
    concurrency, monitoring = config["concurrency"], config["run_monitoring"]
    found: dict[str, Any] = {
        "inbox_seconds": float(automation.inbox_sensor.minimum_interval_seconds or 0),
        "reconciliation_seconds": float(automation.reconciliation_sensor.minimum_interval_seconds or 0),
        "loop_seconds": float(MIN_INTERVAL_LOOP_TIME),
        "tick_seconds": attempts.TICK_SECONDS,
        "max_requests": attempts.MAX_REQUESTS,
        "dequeue_seconds": float(QueuedRunCoordinator().dequeue_interval_seconds),
        "max_runs": int(concurrency["runs"]["max_concurrent_runs"]),
        "pools": {GPU_POOL: int(concurrency["pools"]["default_limit"])},
        "first_claim_seconds": float(claims.INITIAL_INTERVAL_VALUE),
        "claim_growth": claims.STEP_UP_BASE,
        "longest_claim_seconds": float(claims.MAX_CONCURRENCY_CLAIM_BLOCKED_INTERVAL),
        "step_retries": steps.MAX_RETRIES,
        "retry_seconds": steps.RETRY_DELAY_SECONDS,
        "run_retries": int(config["run_retries"]["max_retries"]) if config["run_retries"]["enabled"] else 0,
        "poll_seconds": float(monitoring["poll_interval_seconds"]),
        "free_slot_seconds": float(monitoring["free_slots_after_run_end_seconds"]),
        "release_cron": str(automation.release_schedule.cron_schedule),
    }
    return Platform(**{**found, **changes})


@dataclass(frozen=True)
class Step:
    """A step of a run: its seconds when nothing is in the way, and the pool whose slot it needs, or an empty text."""

    name: str
    seconds: float
    pool: str = ""


@dataclass(frozen=True)
class Faults:
    """What goes wrong, as shares.

    Attributes:
        data: Datasets that are refused by their first step, for good.
        store: Steps that meet trouble with the store somewhere on their way; they go on from there after a pause.
        death: Steps whose process dies somewhere on its way.
    """

    data: float = 0.0
    store: float = 0.0
    death: float = 0.0


NO_FAULTS = Faults()


@dataclass(frozen=True)
class Dataset:
    """A dataset that arrives.

    Attributes:
        number: Counts from 0; names the random stream.
        arrival: When `dataset.toml` was written, seconds since the first midnight.
        place: Of its name among all names, 0 to 1: sensors go through the inbox in order of name.
        steps: Of its chain.
        stream: Of draws that belong to it alone.
    """

    number: int
    arrival: float
    place: float
    steps: tuple[Step, ...]
    stream: np.random.SeedSequence = field(compare=False)


@dataclass(frozen=True)
class Workload:
    """Datasets that arrive at random: a Poisson process, sizes log-normal.

    Attributes:
        datasets_per_day: Mean.
        days: For which they arrive.
        median_gb, sigma: Of voxels in GB (10^9), and of the logarithm of sizes.
        exemplar_share, informative_share: Of patches, of exemplars.
        cores: Of one run.
    """

    datasets_per_day: float
    days: float = 14.0
    median_gb: float = 10.0
    sigma: float = 1.0
    exemplar_share: float = 0.2
    informative_share: float = 0.5
    cores: int = 2


def draw_datasets(workload: Workload, figures: Mapping[str, Figure], seed: int, is_on_gpu: bool = True) -> list[Dataset]:
    """Draw what arrives; each dataset has a stream of its own, so another rate or size keeps all other draws.

    Args:
        workload: How much and how large.
        figures: Rates of the steps.
        seed: Of everything.
        is_on_gpu: Whether scores are computed on GPUs.
    """
    datasets: list[Dataset] = []
    now, number = 0.0, 0
    root = np.random.SeedSequence(seed)
    while True:
        (stream,) = root.spawn(1)
        own, later = stream.spawn(2)
        generator = np.random.default_rng(own)
        gap, size, place = generator.standard_exponential(), generator.standard_normal(), generator.random()
        now += gap * DAY / workload.datasets_per_day
        if now >= workload.days * DAY:
            return datasets
        num_bytes = workload.median_gb * 1e9 * float(np.exp(workload.sigma * size))
        datasets.append(Dataset(number, now, place, chain_steps(num_bytes, workload, figures, is_on_gpu), later))
        number += 1


def chain_steps(
    num_bytes: float, workload: Workload, figures: Mapping[str, Figure], is_on_gpu: bool = True
) -> tuple[Step, ...]:
    """Return the steps of an isotropic dataset of so many voxels, their checks included in none of them."""
    side = brick_shape((1, 1, 1), ALL_PLANES)[0]
    raw = 3 * num_bytes / side**2  # every voxel lies in a patch of each plane
    exemplars = raw * workload.exemplar_share
    kept = exemplars * workload.informative_share
    reading = num_bytes / figures["raw"].value / workload.cores
    scoring = exemplars / (figures["scores gpu"].value if is_on_gpu else figures["scores cpu"].value * workload.cores)
    shards = kept * side**2 / figures["shards"].value / workload.cores
    return (
        Step("volumes", num_bytes / figures["volumes"].value / workload.cores),
        Step("raw_patches", reading),
        Step("deduplicated_patches", num_bytes / figures["dedup tables"].value / workload.cores + dedup_seconds(figures, raw)),
        Step("patch_scores", max(reading, scoring), GPU_POOL),  # bricks are decoded while the network runs
        Step("filtered_patches", reading + shards),
    )


def mean_step_seconds(datasets: Sequence[Dataset]) -> dict[str, float]:
    """Return the mean seconds of every step."""
    names = [step.name for step in datasets[0].steps]
    return {name: float(np.mean([item.steps[n].seconds for item in datasets])) for n, name in enumerate(names)}
