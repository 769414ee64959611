"""Run every benchmark, print a table, and write `perf/results/latest.json`."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from cem_assets.storage.commits import installed_versions
from perf import crops, dedup, hashing, intake, labels, raw_table, reading, training
from perf.machine import processor

BENCHMARKS = {
    "hashing": hashing.measure,
    "dedup": dedup.measure,
    "raw_table": raw_table.measure,
    "labels": labels.measure,
    "crops": crops.measure,
    "intake": intake.measure,
    "reading": reading.measure,
    "training": training.measure,
}


def main() -> None:
    results = []
    print(f"{'work':48} {'ours':>14} {'peer':>14} {'ratio':>8} {'goal':>6}  unit, beside")
    for name, measure in BENCHMARKS.items():
        for row in measure():
            results.append({"benchmark": name, **asdict(row), "ratio": row.ratio if row.peer else None})
            ratio = f"{row.ratio:.1f}" if row.peer else "-"
            goal = f"{row.goal:g}" if row.goal else "-"
            print(
                f"{row.work:48} {row.ours:14,.0f} {row.peer:14,.0f} {ratio:>8} {goal:>6}  {row.unit}, {row.beside}", flush=True
            )
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    about = {
        "processor": processor(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": installed_versions("imagehash", "numba", "torch", "torchvision"),
    }
    (folder / "latest.json").write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
