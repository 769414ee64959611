"""From measured figures to a petabyte of volumes and a billion patches: time, cost, objects, requests, and what breaks first.

    python -m perf.scale_model [--petabytes 1] [--patches 1e9] [--cores 512] [--gpus 8]

It computes two workloads: a number of petabytes of isotropic volumes, and a number of filtered patches with the volumes they
need. Rates come from `perf.measured_figures`, counts from `perf.scale_objects` and limits from `perf.scale_limits`. Prices and
shares are the assumptions in this module. Nothing was run at that size.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cem_assets.cem.patches.tables import PATCHES_PER_SHARD
from cem_assets.store.assets import DEDUPLICATED, FILTERED, RAW, SCORES, VOLUMES
from perf.measured_figures import FIGURES, NUM_CORES, as_table, dedup_seconds, figure, number
from perf.scale_limits import Limit, Scale, limits_of
from perf.scale_objects import PAGE, Bytes, Made, chain_of_cube, stages_of

SIDE = 224
EVENTS_PER_CHAIN, EVENT_BYTES_PER_CHAIN = 92, 482_000
"""Counted in the event log of a run of `cem_chain` on a dataset of 4 patches: 5 assets, 12 checks, small pictures."""


@dataclass(frozen=True)
class Prices:
    """In USD; list prices of large clouds, rounded: assumptions."""

    core_hour: float = 0.04
    gpu_hour: float = 3.0
    gb_month: float = 0.023
    thousand_puts: float = 0.005
    thousand_gets: float = 0.0004
    thousand_lists: float = 0.005


@dataclass(frozen=True)
class Assumptions:
    """What a workload is like.

    Attributes:
        dataset_gb: Mean number of voxels of a dataset, in 10^9.
        exemplar_share: Share of patches that are exemplars (0.14 to 0.89 were seen).
        informative_share: Share of exemplars that pass the filter (77 of 158 in the reference's notebook).
        run_cores: Cores of one run.
        num_releases: How many releases are kept.
        keeps_inbox: Whether the files of the inbox are kept.
    """

    dataset_gb: float = 100.0
    exemplar_share: float = 0.2
    informative_share: float = 0.5
    run_cores: int = 4
    num_releases: int = 30
    keeps_inbox: bool = True
    sizes: Bytes = field(default_factory=Bytes)
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True)
class StageCost:
    """A stage over all datasets: CPU hours of one core, GPU hours, and what it makes, reads and asks for."""

    core_hours: float
    gpu_hours: float
    made: Made


@dataclass(frozen=True)
class Model:
    """A workload, computed.

    Attributes:
        stages: What each asset costs; "starting runs" is among them.
        hours: Duration with all cores and GPUs at work all the time.
        scale: The numbers that limits are about.
        costs: In USD, by what they are for; storage for one month.
    """

    stages: dict[str, StageCost]
    hours: float
    scale: Scale
    costs: dict[str, float]

    def total(self, of_one: float) -> float:
        """Return what a number of one dataset comes to over all datasets."""
        return self.scale.num_datasets * of_one


def compute(num_datasets: float, given: Assumptions, num_cores: int, num_gpus: int) -> Model:
    """Compute a workload of datasets of `given.dataset_gb` each. Without GPUs the cores score."""
    chain = chain_of_cube(given.dataset_gb * 1e9, given.exemplar_share, given.informative_share)
    made = stages_of(chain, given.sizes)
    reading = {asset: (made[asset].gets - 6) / chain.bricks for asset in (SCORES, FILTERED)}
    decoding = chain.voxels / figure("decoding")
    core_seconds = {
        VOLUMES: chain.voxels / figure("volumes"),
        RAW: chain.voxels / figure("raw"),
        DEDUPLICATED: chain.voxels / figure("dedup tables") + NUM_CORES * dedup_seconds(chain.raw),
        SCORES: decoding * reading[SCORES] + (0 if num_gpus else chain.exemplars / figure("scores cpu")),
        FILTERED: decoding * reading[FILTERED] + chain.kept * SIDE**2 / figure("shards"),
    }
    gpu_seconds = chain.exemplars / figure("scores gpu") if num_gpus else 0.0
    stages = {
        asset: StageCost(
            num_datasets * seconds / 3600,
            num_datasets * gpu_seconds / 3600 if asset == SCORES else 0.0,
            _times(made[asset], num_datasets),
        )
        for asset, seconds in core_seconds.items()
    }
    stages["starting runs"] = StageCost(num_datasets * figure("run start") / 3600, 0.0, Made(0, 0, 0, 0, 0, 0))
    core_hours, gpu_hours = (sum(getattr(stage, name) for stage in stages.values()) for name in ("core_hours", "gpu_hours"))
    hours = max(core_hours / num_cores, gpu_hours / num_gpus if num_gpus else 0.0)
    total = _sum([stage.made for stage in stages.values()])
    inbox = num_datasets * chain.voxels if given.keeps_inbox else 0.0
    prices = given.prices
    costs = {
        "cores": core_hours * prices.core_hour,
        "GPUs": gpu_hours * prices.gpu_hour,
        "PUT": total.puts / 1000 * prices.thousand_puts,
        "GET": total.gets / 1000 * prices.thousand_gets,
        "LIST": total.lists / 1000 * prices.thousand_lists,
        "LIST of a pass of reconciliation": total.objects / PAGE / 1000 * prices.thousand_lists,
        "a month of storage": (total.num_bytes + inbox) / 1e9 * prices.gb_month,
    }
    scale = Scale(
        num_datasets=num_datasets,
        chain=chain,
        num_objects=total.objects + num_datasets,
        filtered=num_datasets * chain.kept,
        num_releases=given.num_releases,
        database_bytes=num_datasets * EVENT_BYTES_PER_CHAIN,
        gets=total.gets / hours / 3600,
        puts=total.puts / hours / 3600,
        seconds=hours * 3600,
        one_dataset_seconds=sum(core_seconds.values()) / given.run_cores + gpu_seconds,
    )
    return Model(stages, hours, scale, costs)


def _times(made: Made, factor: float) -> Made:
    return Made(**{name: value * factor for name, value in vars(made).items()})


def _sum(every: Sequence[Made]) -> Made:
    return Made(**{name: sum(getattr(made, name) for made in every) for name in vars(every[0])})


def datasets_for(petabytes: float, patches: float, given: Assumptions) -> tuple[float, float]:
    """Return how many datasets make so many petabytes of voxels, and how many make so many filtered patches."""
    chain = chain_of_cube(given.dataset_gb * 1e9, given.exemplar_share, given.informative_share)
    return petabytes * 1e15 / chain.voxels, patches / chain.kept


def stage_table(model: Model) -> str:
    rows = []
    for asset, stage in (*model.stages.items(), ("all", _all(model))):
        cells = (stage.core_hours, stage.gpu_hours, *vars(stage.made).values())
        rows.append([asset, *(number(cell) if cell else "-" for cell in cells)])
    return as_table(("stage", "core hours", "GPU hours", "objects", "bytes stored", "bytes read", "GET", "PUT", "LIST"), rows)


def _all(model: Model) -> StageCost:
    stages = list(model.stages.values())
    made = _sum([stage.made for stage in stages])
    return StageCost(sum(stage.core_hours for stage in stages), sum(stage.gpu_hours for stage in stages), made)


def summary_table(models: Mapping[str, Model]) -> str:
    """Make the table of totals, a column for each workload."""
    rows: dict[str, list[str]] = {}
    for model in models.values():
        total, scale, chain = _all(model).made, model.scale, model.scale.chain
        pages, bricks = scale.num_objects / PAGE, model.total(chain.bricks)
        facts = {
            "datasets (partitions, runs of the chain)": number(scale.num_datasets),
            "voxels": number(model.total(chain.voxels)),
            "raw patches, exemplars, filtered": ", ".join(
                number(model.total(num)) for num in (chain.raw, chain.exemplars, chain.kept)
            ),
            "days, cores and GPUs busy all the time": number(model.hours / 24),
            "days for one dataset on one run": number(scale.one_dataset_seconds / 86400),
            "GET, PUT a second meanwhile": f"{number(scale.gets)}, {number(scale.puts)}",
            "bytes read a second meanwhile": number(total.read_bytes / scale.seconds),
            "objects, of them bricks of volumes": f"{number(scale.num_objects)}, {bricks / scale.num_objects:.1%}",
            "shards with pixels": number(scale.filtered / PATCHES_PER_SHARD),
            "tables without pixels, bytes": number(sum(model.stages[a].made.num_bytes for a in (RAW, DEDUPLICATED, SCORES))),
            "manifest of one volume partition, bytes": number(chain.bricks * Bytes.object_entry),
            "memory of one dataset's deduplication, GiB": number(_limit(model, "memory of a dataset's dedup").value),
            "memory of one release, GiB": number(_limit(model, "memory of a release").value),
            "Dagster events, bytes": f"{number(model.total(EVENTS_PER_CHAIN))}, {number(scale.database_bytes)}",
            "a pass of reconciliation, hours: as ticks on local disk, on S3; by listing all objects in turn": ", ".join(
                number(seconds / 3600)
                for seconds in (
                    scale.num_datasets * figure("pass local"),
                    scale.num_datasets * figure("pass s3"),
                    pages * figure("list page"),
                )
            ),
            **{f"USD: {what}": number(cost) for what, cost in model.costs.items()},
        }
        for what, told in facts.items():
            rows.setdefault(what, []).append(told)
    return as_table(("", *models), [[what, *told] for what, told in rows.items()])


def _limit(model: Model, what: str) -> Limit:
    return next(limit for limit in limits_of(model.scale) if limit.what.startswith(what))


def limit_table(model: Model) -> str:
    rows = [
        [limit.what, number(limit.value), number(limit.limit), number(limit.load), limit.at, limit.then, limit.source]
        for limit in limits_of(model.scale)
    ]
    return as_table(("what", "here", "gives way at", "here / there", "that is", "then, and the remedy", "known"), rows)


def report(petabytes: float, patches: float, given: Assumptions, cores: int, gpus: int) -> str:
    """Write all tables as Markdown."""
    models = {
        name: compute(num, given, cores, gpus)
        for name, num in zip(
            (f"{petabytes:g} PB of volumes", f"{number(patches)} filtered patches"),
            datasets_for(petabytes, patches, given),
            strict=True,
        )
    }
    parts = [f"{cores} cores, {gpus} GPUs; datasets of {given.dataset_gb:g} GB.", summary_table(models)]
    for name, model in models.items():
        parts += [f"**{name}**, by stage:", stage_table(model)]
    for name, model in models.items():
        parts += [f"**{name}**: what breaks first", limit_table(model)]
    parts += [
        "Figures:",
        as_table(
            ("figure", "value", "unit", "source"),
            [
                [name, number(found.value) if found.value >= 1 else f"{found.value:.2g}", found.unit, found.source]
                for name, found in FIGURES.items()
            ],
        ),
    ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.scale_model", description=__doc__.splitlines()[0])
    parser.add_argument("--petabytes", type=float, default=1.0)
    parser.add_argument("--patches", type=float, default=1e9, help="in the filtered set")
    parser.add_argument("--dataset-gb", type=float, default=Assumptions.dataset_gb)
    parser.add_argument("--cores", type=int, default=512)
    parser.add_argument("--gpus", type=int, default=8, help="0 lets the cores score")
    call = parser.parse_args(arguments)
    given = Assumptions(dataset_gb=call.dataset_gb)
    print(report(call.petabytes, call.patches, given, call.cores, call.gpus))


if __name__ == "__main__":
    main()
