"""Run the benchmarks, print a table, and write `perf/results/latest.json` and `latest.md`.

    python -m perf                 all of them
    python -m perf --quick         with smaller inputs, to see that they run and roughly how fast; ends within five minutes
    python -m perf hashing dedup   only these; rows of the others stay in the files as they are

Each benchmark runs in a process of its own, so that none inherits the memory, threads or environment of another. Where one
fails, the report says so and the others still run. The figures are ratios of one run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from cem_assets.store.commits import installed_versions
from perf.machine import num_cores, processor
from perf.peers import installed_peers
from perf.report import as_markdown, line_of, to_json

BENCHMARKS = {
    "hashing": "dHash of full and border patches, one core",
    "dedup": "greedy deduplication",
    "raw_table": "a volume to its table of raw patches",
    "raw_table_s3": "a volume in a bucket to its table there",
    "chain": "many volumes to deduplicated patches, one after another",
    "filtering": "scores of patches by the ResNet34",
    "labels": "weak labels",
    "crops": "crops of fluorescence images",
    "reading": "reading a release for training, from a disk and from S3",
    "storing": "objects to and from S3",
    "ticks": "ticks of every sensor and schedule on stores of many partitions",
    "intake": "a small dataset through the chain in Dagster",
    "training": "pretraining steps",
    "explorer": "the explorer in a browser, 1.6 million rows",
}
"""Module of `perf` with `measure(is_quick) -> list[Measured]`, and what it measures; in the order they run."""
ENVIRONMENT = {"training": {"OMP_WAIT_POLICY": "passive"}}
"""Environment variables of some benchmarks. Threads that wait actively slow each other down where others use the cores."""
RESULTS = Path(__file__).parent / "results"
WHOLE_ONLY = ("raw_table_s3",)
"""With small inputs these would measure only the start of the server and imports."""
LAST_START_SECONDS = 225
"""No quick benchmark starts later than this. A slow machine runs fewer of them, and prints which it left out."""


def run_alone(name: str, is_quick: bool) -> tuple[list[dict[str, Any]], float, str]:
    """Run one benchmark in a process of its own; return its rows, its seconds, and how it failed or an empty text."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "perf", "--child", name, str(target), *(["--quick"] if is_quick else [])]
        environment = {**ENVIRONMENT.get(name, {}), **os.environ, "TQDM_DISABLE": "1"}
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        seconds = time.monotonic() - started
        if done.returncode or not target.is_file():
            return [], seconds, "\n".join(done.stderr.strip().splitlines()[-15:]) or f"exit status {done.returncode}"
        return json.loads(target.read_text()), seconds, ""


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small inputs, five minutes in all")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    call = parser.parse_args()
    if call.child:
        rows = import_module(f"perf.{call.child[0]}").measure(call.quick)
        Path(call.child[1]).write_text(json.dumps([to_json(row) for row in rows]))
        return 0
    if unknown := set(call.names) - set(BENCHMARKS):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; expected some of {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    latest = RESULTS / "latest.json"
    earlier = json.loads(latest.read_text()).get("benchmarks", {}) if call.names and latest.is_file() else {}
    report: dict[str, Any] = {
        "processor": processor(),
        "num_cores": num_cores(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_quick": call.quick,
        "versions": installed_versions("imagehash", "numba", "torch", "torchvision") | installed_peers(),
        "benchmarks": earlier,
    }
    has_failed = False
    chosen = call.names or [name for name in BENCHMARKS if not (call.quick and name in WHOLE_ONLY)]
    for number, name in enumerate(chosen):
        if call.quick and not call.names and time.monotonic() - began > LAST_START_SECONDS:
            print(f'\nno time left for {", ".join(chosen[number:])}; `make bench-quick BENCH_ARGS="..."` runs those named')
            break
        print(f"\n{name}: {BENCHMARKS[name]} (load {os.getloadavg()[0]:.1f})", flush=True)
        rows, seconds, failure = run_alone(name, call.quick)
        report["benchmarks"][name] = {"seconds": round(seconds, 1), "failure": failure, "rows": rows}
        for row in rows:
            print(line_of(row), flush=True)
        if failure:
            has_failed = True
            print(f"failed: {failure}", flush=True)
        print(f"  {seconds:.0f} s", flush=True)
        # Written after each benchmark, so that a bench that is stopped keeps what it measured.
        latest.write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "latest.md").write_text(as_markdown(report))
    return 1 if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
