"""Weak label assignment written from the definition, one row at a time: slow, and as simple as possible."""

import hashlib
from collections import defaultdict
from fractions import Fraction

import pandas as pd

from cem_assets.cytoimagenet.labels.rule import LabelParams

COLUMNS = ["organism", "cell_type", "cell_visible", "phenotype", "compound", "gene", "sirna"]


def values_of(cell: object) -> set[str]:
    return {value.strip() for value in str(cell).split("|") if value.strip()} if isinstance(cell, str) else set()


def key_of(idx: str, seed: int) -> tuple[int, str]:
    return int.from_bytes(hashlib.blake2b(idx.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little"), idx


def oracle(metadata: pd.DataFrame, params: LabelParams) -> dict[str, tuple[str, set[str]]]:
    """Return category and set of idx by label."""
    rows = metadata.to_dict("records")
    holders: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        for column in COLUMNS:
            for value in values_of(row[column]):
                holders[column, value].append(row)
    candidates = [(len(found), COLUMNS.index(column), value) for (column, value), found in holders.items()]
    used: set[str] = set()
    names: set[str] = set()
    labels = {}
    for count, place, value in sorted(candidates):
        if count < params.min_images:
            continue
        column = COLUMNS[place]
        label = f"{value} ({column})" if value in names else value
        names.add(value)
        containing = [row for row in rows if value in row[column]] if params.match == "substring" else []
        holding = containing or holders[column, value]
        left = [row for row in holding if row["idx"] not in used]
        if len(left) < params.min_images:
            continue
        if len(left) > params.presample_images:
            left = stratified(left, ["name", "organism", "cell_type"], params.presample_images, params.seed)
        if len(left) > params.max_images:
            strata = ["organism", "cell_type", "cell_visible", "sirna", "compound", "phenotype"]
            out = {column} | ({"compound", "sirna"} if column in ("compound", "sirna") else set())
            left = stratified(left, [name for name in strata if name not in out], params.max_images, params.seed)
        used |= {row["idx"] for row in left}
        labels[label] = (column, {row["idx"] for row in left})
    return labels


def stratified(rows: list[dict], columns: list[str], num: int, seed: int) -> list[dict]:
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: key_of(row["idx"], seed)):
        groups[tuple(row[column] for column in columns)].append(row)
    share = {key: Fraction(len(group) * num, len(rows)) for key, group in groups.items()}
    quota = {key: int(value) for key, value in share.items()}
    left = num - sum(quota.values())
    by_remainder = sorted(groups, key=lambda key: (-(share[key] - quota[key]), key_of(groups[key][0]["idx"], seed)))
    for key in by_remainder[:left]:
        quota[key] += 1
    return [row for key, group in groups.items() for row in group[: quota[key]]]
