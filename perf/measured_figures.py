"""The measured figures that the models of scale start from, each with its source.

The figures are those of docs/performance.md; after a new run of `make bench` they are written here again. What was never
measured is an assumption that says so. The models are `perf.ingestion_simulation` and `perf.scale_model`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

NUM_CORES = 2
"""Cores behind the rows of `perf.chain` (two workers) and of deduplication (two threads)."""


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from."""

    value: float
    unit: str
    source: str = "docs/performance.md"


def _per_core(gb_per_hour: float) -> Figure:
    return Figure(gb_per_hour * 1e9 / 3600 / NUM_CORES, "B/s and core")


FIGURES = {
    "volumes": _per_core(949),
    "raw": _per_core(17_784),
    "decoding": Figure(0.9e9, "B/s and core", "measured, 2026-11-28: 12.4 ms to read and decode a brick, one thread"),
    "dedup tables": _per_core(17_477),
    "dedup 1 M": Figure(2.0, "s, two threads"),
    "dedup 10 M": Figure(47.3, "s, two threads"),
    "scores cpu": Figure(29.9 / NUM_CORES, "patches/s and core"),
    "scores gpu": Figure(3000.0, "patches/s and GPU", "assumption: 22 TFLOP/s in float32; a GPU was not measured"),
    "shards": Figure(100e6, "B/s and core", "assumption: TIFF and zstd 3 of filtered patches"),
    "near pairs 10 M": Figure(9.7, "s, two threads"),
    "run start": Figure(14.3, "CPU s a run"),
    "pass local": Figure(3.4 / 5000, "s a partition"),
    "pass s3": Figure(4.6 / 5000, "s a partition"),
    "list page": Figure(0.017, "s a page of 1,000 keys", "docs/performance.md: 58,720 keys/s of a Ceph on the same machine"),
}


def figure(name: str) -> float:
    """Return the value of a figure."""
    return FIGURES[name].value


def dedup_seconds(num_hashes: float) -> float:
    """Return how long two threads deduplicate one dataset, by a power law through the two measured sizes."""
    small, large = figure("dedup 1 M"), figure("dedup 10 M")
    exponent = max(1.0, math.log10(large / small))
    return small * (num_hashes / 1e6) ** (exponent if num_hashes > 1e6 else 1.2)


def as_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Write a Markdown table."""
    names = list(header)
    lines = [" | ".join(names), " | ".join(["---"] * len(names))]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def number(value: float) -> str:
    """Write a number so that two or three digits are seen."""
    for size, unit in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if unit == ' k' else size):,.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
