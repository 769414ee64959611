"""What the simulation of ingestion prints, writes and draws; its command line.

The simulation is `perf.ingestion_simulation`, its parameters are `perf.ingestion_parameters`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cem_assets.cem.assets import GPU_POOL
from perf.ingestion_parameters import (
    DAY,
    LAPTOP,
    Faults,
    Platform,
    Workload,
    draw_datasets,
    mean_step_seconds,
    read_platform,
)
from perf.ingestion_simulation import Outcome, saturation_bounds, saturation_rate, simulate
from perf.measured_figures import as_table, read_figures

NUM_SATURATED = 400
"""Datasets that wait at once where the saturation rate is simulated; ten for each slot of the queue where that is more."""


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits them."""
    for size, unit in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def latency_rows(outcome: Outcome) -> list[list[str]]:
    """Make rows of median, 95th percentile and maximum."""
    rows = []
    for name, values in (("filtered", outcome.to_filtered), ("released", outcome.to_released)):
        shown = np.percentile(values, [50, 95, 100]) if values else []
        rows.append([f"arrival to {name}", f"{len(values):,}", *(duration(float(value)) for value in shown)])
    return [row for row in rows if len(row) > 2]


def as_markdown(outcome: Outcome, bounds: dict[str, float], saturation: float, means: dict[str, float]) -> str:
    """Write everything as Markdown tables."""
    told = (
        f"{outcome.arrived:,} datasets arrived in {duration(outcome.horizon)}: {outcome.filtered:,} filtered, "
        f"{outcome.refused:,} refused, {outcome.in_system:,} still on their way; {outcome.num_runs:,} runs, "
        f"{outcome.num_failed_runs:,} of them failed. "
        f"The backlog grows by {outcome.growth_per_day:+.1f} datasets a day."
    )
    steps = ", ".join(f"{name} {duration(seconds)}" for name, seconds in means.items())
    limits = [[name, f"{rate:,.0f}"] for name, rate in sorted(bounds.items(), key=lambda item: item[1])]
    parts = [
        told,
        f"Mean steps when nothing is in the way: {steps}.",
        as_table(("latency", "datasets", "median", "p95", "max"), latency_rows(outcome)),
        as_table(("waiting", "mean", "most"), [[n, f"{mean:,.1f}", f"{most:,}"] for n, (mean, most) in outcome.queues.items()]),
        as_table(("held", "share of time"), [[name, f"{share:.0%}"] for name, share in outcome.utilisation.items()]),
        as_table(
            ("saturation", "datasets a day"), [["simulated, all waiting at once", f"{saturation:,.0f}"], *_marked(limits)]
        ),
    ]
    return "\n\n".join(parts)


def _marked(limits: list[list[str]]) -> list[list[str]]:
    return [[f"bound by {name} alone", rate] for name, rate in limits]


def draw_backlog(outcome: Outcome, path: Path, title: str) -> None:
    """Draw the backlog over time."""
    from matplotlib.figure import Figure as Drawing

    days, numbers = np.array(outcome.backlog, float).T
    drawing = Drawing(figsize=(8, 3.2), layout="constrained")
    axes = drawing.subplots()
    axes.step(days / DAY, numbers, where="post", linewidth=1)
    axes.set(xlabel="days", ylabel="datasets on their way", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    drawing.savefig(path, dpi=120)


def to_json(outcome: Outcome, bounds: dict[str, float], saturation: float, told: dict[str, Any]) -> dict[str, Any]:
    """Make the JSON of a simulation: its parameters, everything found, and the bounds."""
    found = asdict(outcome) | {"growth_per_day": outcome.growth_per_day}
    return {**told, "outcome": found, "bounds_per_day": bounds, "saturation_per_day": saturation}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.ingestion_simulation", description="How fast datasets get through.")
    parser.add_argument("--datasets-per-day", type=float, default=50.0)
    parser.add_argument("--days", type=float, default=Workload.days)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--median-gb", type=float, default=Workload.median_gb, help="of the log-normal sizes, in 10^9 voxels")
    parser.add_argument("--sigma", type=float, default=Workload.sigma, help="of the logarithm of sizes")
    parser.add_argument("--cores", type=int, default=Workload.cores, help="of one run")
    parser.add_argument("--runs", type=int, help="slots of the queue instead of those of the dagster.yaml")
    parser.add_argument("--gpus", type=int, help="slots of the gpu pool instead of those of the dagster.yaml")
    parser.add_argument("--cpu-scores", action="store_true", help="scores are computed on the run's cores")
    parser.add_argument("--instance", type=Path, default=LAPTOP, help="a dagster.yaml; default the laptop's")
    parser.add_argument("--data-faults", type=float, default=0.02, help="share of datasets that are refused")
    parser.add_argument("--store-faults", type=float, default=0.01, help="share of steps that meet trouble with the store")
    parser.add_argument("--deaths", type=float, default=0.002, help="share of steps whose process dies")
    parser.add_argument("--out", type=Path, help="writes a JSON")
    parser.add_argument("--picture", type=Path, help="draws the backlog over time")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    call = _parser().parse_args(arguments)
    figures = read_figures()
    workload = Workload(call.datasets_per_day, call.days, call.median_gb, call.sigma, cores=call.cores)
    changes: dict[str, Any] = {"start_seconds": figures["run start"].value, "reconciled_seconds": figures["pass local"].value}
    changes |= {"max_runs": call.runs} if call.runs else {}
    changes |= {"pools": {GPU_POOL: call.gpus}} if call.gpus else {}
    platform: Platform = read_platform(call.instance, **changes)
    faults = Faults(call.data_faults, call.store_faults, call.deaths)
    datasets = draw_datasets(workload, figures, call.seed, not call.cpu_scores)
    if not datasets:
        raise SystemExit("no dataset arrives; expected some: raise --days or --datasets-per-day")
    outcome = simulate(datasets, platform, faults, workload.days * DAY)
    # Another draw of sizes, of which there are always enough.
    many = Workload(max(NUM_SATURATED, 10 * platform.max_runs), 1.0, call.median_gb, call.sigma, cores=call.cores)
    waiting = draw_datasets(many, figures, call.seed, not call.cpu_scores)
    bounds, saturation = saturation_bounds(waiting, platform), saturation_rate(waiting, platform, faults)
    print(as_markdown(outcome, bounds, saturation, mean_step_seconds(waiting)))
    told = {"workload": asdict(workload), "faults": asdict(faults), "platform": asdict(platform), "seed": call.seed}
    if call.out:
        call.out.write_text(json.dumps(to_json(outcome, bounds, saturation, told), indent=1) + "\n")
    if call.picture:
        draw_backlog(outcome, call.picture, f"{call.datasets_per_day:g} datasets a day, {platform.max_runs} runs at a time")
