"""The measured figures that the models of scale start from, each with where it comes from.

`perf/results/latest.json` is read where it is there and holds the row; what it does not hold is taken from docs/performance.md,
and what was never measured is an assumption that says so. The models are `perf.ingestion_simulation` and `perf.scale_model`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "latest.json"
DOCS = "docs/performance.md"
ASSUMED = "assumption"
NUM_CORES = 2
"""Cores of the rows of `perf.chain` and of deduplication: two workers, two threads."""
_MANY = 200
"""Partitions from which a tick's time is theirs."""


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from: a row of the results, docs/performance.md, or an assumption with its reason."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class _Known:
    """A figure without results: value, unit, source; `pick` finds it in a row of the results and `of_row` converts it."""

    value: float
    unit: str
    source: str
    pick: Callable[[str], bool] = lambda work: False
    of_row: Callable[[Mapping[str, Any]], float] = lambda row: float(row["ours"])


def _per_core(row: Mapping[str, Any]) -> float:
    return float(row["ours"]) * 1e9 / 3600 / NUM_CORES


def _pass_seconds(row: Mapping[str, Any]) -> float:
    """Read the seconds that a whole pass takes for each partition out of a row of `perf.ticks`."""
    num = int(re.search(r"([\d,]+) partitions", row["work"]).group(1).replace(",", ""))
    seconds = float(re.search(r"a pass is \d+ tick\(s\), ([\d.]+) s", row["note"]).group(1))
    return max(seconds, 1 / float(row["ours"])) / num


def _begins(*starts: str, holding: str = "") -> Callable[[str], bool]:
    return lambda work: work.startswith(starts) and holding in work


def _tick(sensor: str, where: str) -> Callable[[str], bool]:
    """Find rows of a sensor over many partitions; those over few hold what a tick costs beside its partitions."""
    of_row = re.compile(rf"tick of {sensor}, ([\d,]+) partitions, {where}")

    def pick(work: str) -> bool:
        found = of_row.fullmatch(work)
        return found is not None and int(found.group(1).replace(",", "")) >= _MANY

    return pick


_KNOWN: dict[str, _Known] = {
    "volumes": _Known(949e9 / 3600 / NUM_CORES, "B/s and core", DOCS, _begins("chain, source to volumes"), _per_core),
    "raw": _Known(17_784e9 / 3600 / NUM_CORES, "B/s and core", DOCS, _begins("chain, volumes to raw"), _per_core),
    "decoding": _Known(0.9e9, "B/s and core", "measured, 2026-11-28: 12.4 ms to read and decode a brick, one thread"),
    "dedup tables": _Known(17_477e9 / 3600 / NUM_CORES, "B/s and core", DOCS, _begins("chain, raw to dedup"), _per_core),
    "dedup 1 M": _Known(2.0, "s, two threads", DOCS, _begins("dedup of 1,000,000 hashes, two"), lambda r: 1e6 / r["ours"]),
    "dedup 10 M": _Known(47.3, "s, two threads", DOCS, _begins("dedup of 10,000,000 hashes, two"), lambda r: 1e7 / r["ours"]),
    "scores cpu": _Known(
        29.9 / NUM_CORES,
        "patches/s and core",
        DOCS,
        _begins("scores, float32", holding="CPU"),
        lambda row: row["ours"] / NUM_CORES,
    ),
    "scores gpu": _Known(
        3000.0,
        "patches/s and GPU",
        f"{ASSUMED}: 22 TFLOP/s in float32; a GPU was not measured",
        _begins("scores, float32", holding="GPU"),
    ),
    "shards": _Known(100e6, "B/s and core", f"{ASSUMED}: TIFF and zstd 3 of filtered patches"),
    "near pairs 10 M": _Known(
        9.7, "s, two threads", DOCS, _begins("near pairs of 10,000,000 hashes"), lambda row: 1e7 / row["ours"]
    ),
    "run start": _Known(14.3, "CPU s a run", DOCS, _begins("one run in a process of its own"), lambda row: float(row["ours"])),
    "pass local": _Known(3.4 / 5000, "s a partition", DOCS, _tick("reconciliation", "local disk"), _pass_seconds),
    "pass s3": _Known(
        4.6 / 5000,
        "s a partition",
        DOCS,
        _tick("reconciliation", "S3"),
        _pass_seconds,
    ),
    "list page": _Known(
        0.017,
        "s a page of 1,000 keys",
        f"{DOCS}: 58,720 keys/s of a Ceph on the same machine",
        _begins("S3: listing"),
        lambda row: 1000 / row["ours"],
    ),
}


def read_figures(path: Path = RESULTS) -> dict[str, Figure]:
    """Return every figure by name, from a file of results where it has the row, else as docs or assumptions have it.

    Args:
        path: As `python -m perf` writes it; need not exist.

    Returns:
        Figures; of several rows for one (sizes of a store) the last, largest one counts.
    """
    rows, about = _rows(path)
    figures = {}
    for name, known in _KNOWN.items():
        figures[name] = Figure(known.value, known.unit, known.source)
        for row in rows:
            if known.pick(row["work"]) and row["ours"]:
                figures[name] = Figure(known.of_row(row), known.unit, f"measured, {about}: {row['work']}")
    return figures


def _rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    if not path.is_file():
        return [], ""
    report = json.loads(path.read_text())
    about = f"{report['when'][:10]}{', quick' if report['is_quick'] else ''}"
    return [row for benchmark in report["benchmarks"].values() for row in benchmark["rows"]], about


def dedup_seconds(figures: Mapping[str, Figure], num_hashes: float) -> float:
    """Return seconds of two threads for one dataset: a power law through the two measured sizes.

    Args:
        figures: Of `read_figures`.
        num_hashes: Raw patches of the dataset.
    """
    small, large = figures["dedup 1 M"].value, figures["dedup 10 M"].value
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
