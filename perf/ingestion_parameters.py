"""The input of the ingestion simulation: the platform's settings, the datasets that arrive, and the faults.

Settings that the platform already holds are read from it, so that the simulation cannot drift away from the code: intervals of
the sensors and the time of releases from `cem.automation`, retries and pauses from `platform.attempts` and `platform.steps`,
and the numbers of runs and pool slots from a dagster.yaml. What stands here as a number has a comment that says where it comes
from. The simulation itself is `perf.ingestion_simulation`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import cem_assets
from cem_assets.cem import automation
from cem_assets.cem.volumes.bricks import ALL_PLANES, brick_shape
from cem_assets.platform import attempts, steps
from perf.measured_figures import dedup_seconds, figure

DAY = 86_400.0
LAPTOP = Path(cem_assets.__file__).parent / "dagster.yaml"
PRODUCTION = Path(__file__).parents[1] / "deploy/dagster.production.yaml"


@dataclass(frozen=True)
class Platform:
    """How the platform takes datasets in. Times are in seconds; `read_platform` fills the fields without defaults.

    Attributes:
        inbox_seconds, reconciliation_seconds: Interval between two ticks of the sensor; 0 lets it see everything at once.
        max_requests: The most runs that a tick requests.
        max_runs: How many runs may be in progress at the same time.
        num_gpus: Slots of the pool that scoring waits for.
        step_retries, retry_seconds: How often a step in trouble with the store is repeated, and the first pause. Pauses double.
        run_retries: How often a run is replaced after its process died.
        poll_seconds: Interval at which Dagster looks for dead processes.
        free_slot_seconds: How much later the pool slot of a dead process becomes free.
        release_hour: Hour of the day at which a release is made, in UTC; None for never.
        request_seconds: Time that a tick spends on one request: it looks at the dataset and creates a run.
        dequeue_seconds: Interval at which Dagster looks into its queue of runs; 0 starts runs at once.
        claim_seconds: First pause of a step that waits for its pool slot; 0 gives it a free slot at once.
        start_seconds: From the launch of a run to its first step.
        release_seconds, release_dataset_seconds: Duration of a release, and what each dataset in it adds.
    """

    inbox_seconds: float
    reconciliation_seconds: float
    max_requests: int
    max_runs: int
    num_gpus: int
    step_retries: int
    retry_seconds: float
    run_retries: int
    poll_seconds: float
    free_slot_seconds: float
    release_hour: float | None
    request_seconds: float = 0.12  # a tenth of a second for the run (attempts.MAX_REQUESTS), the rest for reading
    dequeue_seconds: float = 5.0  # Dagster's default
    claim_seconds: float = 1.0  # Dagster 1.13; the pause grows by a tenth each time
    longest_claim_seconds: float = 15.0  # Dagster 1.13
    start_seconds: float = 12.0  # docs/performance.md: one run in a process of its own
    release_seconds: float = 60.0
    release_dataset_seconds: float = 0.1


def read_platform(instance: Path = LAPTOP, **changes: Any) -> Platform:
    """Read the platform's own settings.

    Args:
        instance: A dagster.yaml.
        changes: Fields that get another value.
    """
    config = yaml.safe_load(instance.read_text())
    concurrency, monitoring = config["concurrency"], config["run_monitoring"]
    minute, hour, *days = str(automation.release_schedule.cron_schedule).split()
    if days != ["*"] * 3:
        raise ValueError(f"releases are made at {automation.release_schedule.cron_schedule!r}; expected a time of every day.")
    found: dict[str, Any] = {
        "inbox_seconds": float(automation.inbox_sensor.minimum_interval_seconds or 0),
        "reconciliation_seconds": float(automation.reconciliation_sensor.minimum_interval_seconds or 0),
        "max_requests": attempts.MAX_REQUESTS,
        "max_runs": int(concurrency["runs"]["max_concurrent_runs"]),
        "num_gpus": int(concurrency["pools"]["default_limit"]),
        "step_retries": steps.MAX_RETRIES,
        "retry_seconds": steps.RETRY_DELAY_SECONDS,
        "run_retries": int(config["run_retries"]["max_retries"]) if config["run_retries"]["enabled"] else 0,
        "poll_seconds": float(monitoring["poll_interval_seconds"]),
        "free_slot_seconds": float(monitoring["free_slots_after_run_end_seconds"]),
        "release_hour": int(hour) + int(minute) / 60,
    }
    return Platform(**{**found, **changes})


@dataclass(frozen=True)
class Step:
    """A step of a run, and how many seconds it takes when nothing is in the way."""

    name: str
    seconds: float
    needs_gpu: bool = False


@dataclass(frozen=True)
class Faults:
    """How often something goes wrong, as shares.

    Attributes:
        data: Datasets that their first step refuses for good.
        store: Steps that meet trouble with the store. They go on from there after a pause.
        death: Steps whose process dies.
    """

    data: float = 0.0
    store: float = 0.0
    death: float = 0.0


NO_FAULTS = Faults()
USUAL_FAULTS = Faults(data=0.02, store=0.01, death=0.002)


@dataclass(frozen=True)
class Dataset:
    """A dataset that arrives.

    Attributes:
        arrival: When its `dataset.toml` is written, in seconds since the first midnight.
        stream: Source of its own random draws, so that other settings face the same datasets with the same faults.
    """

    arrival: float
    steps: tuple[Step, ...]
    stream: np.random.SeedSequence = field(compare=False)


@dataclass(frozen=True)
class Workload:
    """Datasets that arrive as a Poisson process; their sizes are log-normal.

    Attributes:
        days: How long they arrive.
        median_gb: Median of the voxels of a dataset, in 10^9 bytes.
        sigma: Standard deviation of the logarithm of sizes.
        exemplar_share: Share of raw patches that are exemplars.
        informative_share: Share of exemplars that pass the filter.
        cores: Of one run.
        is_on_gpu: Whether scores are computed on a GPU or on the cores of the run.
    """

    datasets_per_day: float
    days: float = 14.0
    median_gb: float = 10.0
    sigma: float = 1.0
    exemplar_share: float = 0.2
    informative_share: float = 0.5
    cores: int = 2
    is_on_gpu: bool = True


def draw_datasets(workload: Workload, seed: int) -> list[Dataset]:
    """Draw the datasets that arrive. Each has a random stream of its own, so another rate or size keeps all other draws."""
    datasets: list[Dataset] = []
    now = 0.0
    root = np.random.SeedSequence(seed)
    while True:
        (stream,) = root.spawn(1)
        own, later = stream.spawn(2)
        generator = np.random.default_rng(own)
        gap, size = generator.standard_exponential(), generator.standard_normal()
        now += gap * DAY / workload.datasets_per_day
        if now >= workload.days * DAY:
            return datasets
        num_bytes = workload.median_gb * 1e9 * float(np.exp(workload.sigma * size))
        datasets.append(Dataset(now, chain_steps(num_bytes, workload), later))


def chain_steps(num_bytes: float, workload: Workload) -> tuple[Step, ...]:
    """Return the steps of an isotropic dataset of so many voxels of one byte. The time of checks is left out."""
    side = brick_shape((1, 1, 1), ALL_PLANES)[0]
    raw = 3 * num_bytes / side**2  # every voxel lies in one patch of each plane
    exemplars = raw * workload.exemplar_share
    kept = exemplars * workload.informative_share
    reading = num_bytes / figure("raw") / workload.cores
    scoring = exemplars / (figure("scores gpu") if workload.is_on_gpu else figure("scores cpu") * workload.cores)
    shards = kept * side**2 / figure("shards") / workload.cores
    return (
        Step("volumes", num_bytes / figure("volumes") / workload.cores),
        Step("raw_patches", reading),
        Step("deduplicated_patches", num_bytes / figure("dedup tables") / workload.cores + dedup_seconds(raw)),
        Step("patch_scores", max(reading, scoring), needs_gpu=True),  # bricks are decoded while the network runs
        Step("filtered_patches", reading + shards),
    )
