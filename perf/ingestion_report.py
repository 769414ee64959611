"""The table that the ingestion simulation prints, and its command line. The simulation is `perf.ingestion_simulation`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from perf.ingestion_parameters import (
    DAY,
    LAPTOP,
    PRODUCTION,
    USUAL_FAULTS,
    Platform,
    Workload,
    draw_datasets,
    read_platform,
)
from perf.ingestion_simulation import saturation_bounds, saturation_rate, simulate
from perf.measured_figures import as_table, figure

NUM_SATURATED = 2000
"""Datasets that wait at once where the saturation rate is simulated; ten for each run slot where that is more."""
HEADER = (
    "who", "datasets a day", "arrival to filtered: median, p95", "to released: median",
    "run slots, GPU pool held", "saturates at (bound by)",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A platform and the datasets that arrive there. `num_runs` and `num_gpus` replace those of the dagster.yaml."""

    name: str
    workload: Workload
    instance: Path = LAPTOP
    num_runs: int | None = None
    num_gpus: int | None = None

    def platform(self) -> Platform:
        found = read_platform(self.instance, start_seconds=figure("run start"))
        return replace(found, max_runs=self.num_runs or found.max_runs, num_gpus=self.num_gpus or found.num_gpus)


CASES = (
    Case("a laptop, 2 runs of 2 cores, 1 GPU, median 10 GB", Workload(50)),
    Case("the same without a GPU", Workload(50, is_on_gpu=False)),
    Case("production, 8 runs, 1 GPU", Workload(400), PRODUCTION),
    Case("the same", Workload(1000), PRODUCTION),
    Case("the same", Workload(1400), PRODUCTION),
    Case(
        "a petabyte in a week: 32 runs of 4 cores, 8 GPUs, mean 100 GB",
        Workload(1600, days=7, median_gb=100 / np.exp(0.5), cores=4),  # the mean of sizes is exp(sigma^2 / 2) medians
        PRODUCTION,
        num_runs=32,
        num_gpus=8,
    ),
)
"""The rows of docs/scale.md."""


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits them."""
    for size, unit in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def row_of(case: Case, seed: int) -> list[str]:
    """Simulate a case, and how much its platform takes at most."""
    platform, workload = case.platform(), case.workload
    found = simulate(draw_datasets(workload, seed), platform, USUAL_FAULTS, workload.days * DAY)
    many = replace(workload, datasets_per_day=max(NUM_SATURATED, 10 * platform.max_runs), days=1.0)
    waiting = draw_datasets(many, seed)
    bounds = saturation_bounds(waiting, platform)
    narrowest = min(bounds, key=bounds.__getitem__)
    latency = ", ".join(duration(float(value)) for value in np.percentile(found.to_filtered or [np.nan], [50, 95]))
    if found.growth_per_day > workload.datasets_per_day / 100:
        latency += f"; grows by {found.growth_per_day:.0f} a day"
    rate = saturation_rate(waiting, platform, USUAL_FAULTS)
    return [
        case.name,
        f"{workload.datasets_per_day:,.0f}",
        latency,
        duration(float(np.median(found.to_released or [np.nan]))),
        f"{found.run_slots:.0%}, {found.gpu_pool:.0%}",
        f"{rate:,.0f} ({narrowest}; {bounds[narrowest]:,.0f} by arithmetic, without faults)",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.ingestion_simulation", description="How fast datasets get through.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--datasets-per-day", type=float, help="simulate this workload instead of those of docs/scale.md")
    parser.add_argument("--days", type=float, default=Workload.days)
    parser.add_argument("--median-gb", type=float, default=Workload.median_gb, help="median of log-normal sizes, 10^9 voxels")
    parser.add_argument("--cores", type=int, default=Workload.cores, help="of one run")
    parser.add_argument("--cpu-scores", action="store_true", help="scores are computed on the cores of the run")
    parser.add_argument("--instance", type=Path, default=LAPTOP, help="a dagster.yaml; default that of a laptop")
    parser.add_argument("--runs", type=int, help="runs at the same time, instead of those of the dagster.yaml")
    parser.add_argument("--gpus", type=int, help="slots of the GPU pool, instead of those of the dagster.yaml")
    call = parser.parse_args(arguments)
    cases = list(CASES)
    if call.datasets_per_day:
        workload = Workload(call.datasets_per_day, call.days, call.median_gb, cores=call.cores, is_on_gpu=not call.cpu_scores)
        cases = [Case(call.instance.name, workload, call.instance, call.runs, call.gpus)]
    print(as_table(HEADER, (row_of(case, call.seed) for case in cases)))
