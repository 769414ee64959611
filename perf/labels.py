"""Weak label assignment beside a definition-level pandas version, and its growth from 0.3 to 10 million rows.

Each size runs in a process of its own, so that its peak memory is its own; the table itself is part of it.
"""

import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS
from cem_assets.cytoimagenet.labels import LabelParams, assign_weak_labels, keyed_order, label_assignment, largest_remainders
from cem_assets_tests.cytoimagenet.metadata_tables import large_table
from perf.timing import Measured, best_seconds

SIZES = (300_000, 1_000_000, 2_700_000, 10_000_000)
FIRST = ["name", "organism", "cell_type"]
SECOND = ["organism", "cell_type", "cell_visible", "sirna", "compound", "phenotype"]


def by_definition(table: pd.DataFrame, params: LabelParams) -> dict[str, set[str]]:
    """The rules one after the other, as pandas says them: a look at the whole column for every candidate."""
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
    found = label_assignment(table)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak_gib": peak, "labels": int(found.chosen["label"].nunique())}


def measure(is_quick: bool = False) -> list[Measured]:
    table = large_table(SIZES[0], 0)
    ours = assign_weak_labels(table)
    (seconds,) = best_seconds(lambda: assign_weak_labels(table))
    started = time.perf_counter()
    theirs = by_definition(table, LabelParams())
    rate = SIZES[0] / seconds, SIZES[0] / (time.perf_counter() - started)
    assert {label: set(group["idx"]) for label, group in ours.groupby("label")} == theirs
    rows = [Measured("label assignment, 300,000 rows", "rows/s", *rate, "definition-level pandas", 30)]
    for num in SIZES[1:]:
        done = subprocess.run([sys.executable, "-m", "perf.labels", str(num)], capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        work = f"labels of {num:,} rows: {told['labels']}, peak {told['peak_gib']:.1f} GiB"
        rows.append(Measured(work, "rows/s", num / told["seconds"], 0, "-", 0))
    return rows


if __name__ == "__main__":
    print(json.dumps(run_one(int(sys.argv[1]))))
