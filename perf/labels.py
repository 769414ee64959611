"""Weak label assignment beside a plain pandas version, up to 10 million rows; the last size is extrapolated.

Each size runs in a process of its own, so that its peak memory is its own. It includes the table itself.
"""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pandas as pd

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS
from cem_assets.cytoimagenet.labels.rule import (
    LabelParams,
    assign_labels,
    keyed_order,
    largest_remainders,
)
from cem_assets_tests.cytoimagenet.metadata_tables import large_table
from perf.timing import Measured, best_seconds

SIZES = (300_000, 1_000_000, 3_000_000)
EXTRAPOLATED = 10_000_000
"""This size needs about 7.5 GiB, so it is extrapolated; `python -m perf.labels 10000000` measures it."""
FIRST = ["name", "organism", "cell_type"]
SECOND = ["organism", "cell_type", "cell_visible", "sirna", "compound", "phenotype"]


def by_definition(table: pd.DataFrame, params: LabelParams) -> dict[str, set[str]]:
    """Apply the rules one after the other in pandas: search the whole column for every candidate."""
    table = table.iloc[keyed_order(table["idx"].tolist(), params.seed)].reset_index(drop=True)
    lists = {column: table[column].str.split("|") for column in LABEL_COLUMNS}
    candidates = []
    for place, column in enumerate(LABEL_COLUMNS):
        counts = lists[column].explode().value_counts()
        candidates += [(int(n), place, str(v)) for v, n in counts.items() if v and n >= params.min_images]
    is_used = np.zeros(len(table), bool)
    labels: dict[str, set[str]] = {}
    for _, place, value in sorted(candidates):
        column = LABEL_COLUMNS[place]
        holds = lists[column].map(lambda values, value=value: value in values).to_numpy()
        rows = table[holds & ~is_used]
        if len(rows) < params.min_images:
            continue
        if len(rows) > params.presample_images:
            rows = stratified(rows, FIRST, params.presample_images)
        if len(rows) > params.max_images:
            out = {column} | ({"compound", "sirna"} if column in ("compound", "sirna") else set())
            rows = stratified(rows, [name for name in SECOND if name not in out], params.max_images)
        is_used[rows.index] = True
        labels[value if value not in labels else f"{value} ({column})"] = set(rows["idx"])
    return labels


def stratified(rows: pd.DataFrame, columns: list[str], num: int) -> pd.DataFrame:
    groups = [group for _, group in rows.groupby(columns, sort=False, dropna=False)]
    sizes = np.array([len(group) for group in groups])
    quota = largest_remainders(sizes, np.array([group.index[0] for group in groups]), num)
    return pd.concat([group.head(share) for group, share in zip(groups, quota, strict=True)]).sort_index()


def run_one(num: int) -> dict[str, float]:
    """Time one size in this process."""
    import resource

    table = large_table(num, 0)
    started = time.perf_counter()
    found = assign_labels(table)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak_gib": peak, "labels": int(found.chosen["label"].nunique())}


def measure(is_quick: bool = False) -> list[Measured]:
    num = 20_000 if is_quick else SIZES[0]
    table = large_table(num, 0)
    ours = assign_labels(table).chosen
    (seconds,) = best_seconds(lambda: assign_labels(table))
    started = time.perf_counter()
    theirs = by_definition(table, LabelParams())
    rate = num / seconds, num / (time.perf_counter() - started)
    assert {label: set(group["idx"]) for label, group in ours.groupby("label")} == theirs
    note = "equal labels; fewer rows, fewer labels: the goal is for 300,000" if is_quick else "equal labels"
    rows = [
        Measured(f"label assignment, {num:,} rows", "rows/s", *rate, "definition-level pandas", 0 if is_quick else 30, note)
    ]
    if is_quick:
        return rows
    measured: list[tuple[int, float, float]] = []
    for num in SIZES:
        done = subprocess.run([sys.executable, "-m", "perf.labels", str(num)], capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        note = f"{told['labels']} labels in {told['seconds']:.1f} s, peak {told['peak_gib']:.1f} GiB with the table"
        if measured:
            before, earlier, _ = measured[-1]
            note += f"; time grows with n^{math.log(told['seconds'] / earlier) / math.log(num / before):.2f} from {before:,}"
        measured.append((num, told["seconds"], told["peak_gib"]))
        rows.append(Measured(f"labels of {num:,} rows", "rows/s", num / told["seconds"], 0, "-", 0, note))
    (low, low_seconds, low_gib), (high, high_seconds, high_gib) = measured[-2:]
    exponent = math.log(high_seconds / low_seconds) / math.log(high / low)
    seconds = high_seconds * (EXTRAPOLATED / high) ** exponent
    gib = high_gib + (high_gib - low_gib) / (high - low) * (EXTRAPOLATED - high)
    note = f"extrapolated from {low:,} and {high:,} rows, not measured: {seconds:.0f} s, {gib:.1f} GiB with the table"
    rows.append(Measured(f"labels of {EXTRAPOLATED:,} rows", "rows/s", EXTRAPOLATED / seconds, 0, "-", 0, note))
    return rows


if __name__ == "__main__":
    print(json.dumps(run_one(int(sys.argv[1]))))
