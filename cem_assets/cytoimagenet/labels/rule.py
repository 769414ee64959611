"""Weak label assignment: which images represent which value of the metadata.

Every value of the label columns that enough images have is a candidate. Candidates are handled from the rarest to the most
frequent. Each takes images that no earlier one has taken, at most `max_images`, sampled so that strata of the metadata keep
their shares.

Source: Hua, Lu and Moses, CytoImageNet (arXiv:2111.11646). There are three differences from its scripts. Whole values between
"|" are compared, where the scripts match substrings; `match = "substring"` does the same here. Draws depend only on a seed and
each row's `idx`, so neither the order of rows nor the number of workers matters. Quotas are exact by largest remainders, where
the scripts raise a fraction until enough rows are drawn.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS, split_values
from cem_assets.errors import DataError

FIRST_STRATA = ("name", "organism", "cell_type")
SECOND_STRATA = ("organism", "cell_type", "cell_visible", "sirna", "compound", "phenotype")
_LEFT_OUT = {"compound": ("compound", "sirna"), "sirna": ("sirna", "compound")}
"""Columns that make no strata for labels of a category, because they say the same about a row as the label itself."""

_Rows = NDArray[np.int64]


class LabelParams(BaseModel):
    """How labels are assigned.

    Attributes:
        min_images: Smallest number of images of a label.
        max_images: Largest number of images of a label.
        presample_images: If a label has more rows than this, a first draw reduces them to this number and keeps the shares of
            sources.
        seed: Seed of the draws.
        match: "value" compares whole values. "substring" finds rows as the reference does, where "actin" also takes
            "alpha-actinin". Candidates and their counts are whole values in both cases.
    """

    model_config = ConfigDict(frozen=True)

    min_images: Annotated[int, Field(ge=1)] = 287
    max_images: Annotated[int, Field(ge=1)] = 1000
    presample_images: Annotated[int, Field(ge=1)] = 10_000
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    match: Literal["value", "substring"] = "value"

    @model_validator(mode="after")
    def _ordered(self) -> "LabelParams":
        if not self.min_images <= self.max_images <= self.presample_images:
            raise DataError(
                f"min_images = {self.min_images}, max_images = {self.max_images}, presample_images = {self.presample_images}; "
                "expected none to be larger than the next one."
            )
        return self


@dataclass(frozen=True)
class LabelAssignment:
    """Which rows got which label.

    Attributes:
        chosen: The chosen rows, unchanged, with the columns `label` and `category` in front. Each row occurs at most once.
            Labels are in order of assignment, and the rows of a label in the order of the keyed hash of `idx`, so equal sets of
            rows give equal tables.
        candidates: One row per candidate in order of assignment: label, category, value, num_rows (rows with the value),
            num_left (those not taken before), num_images (those taken), outcome ("all", "sampled" or "too few left").
    """

    chosen: pd.DataFrame
    candidates: pd.DataFrame


def assign_labels(metadata: pd.DataFrame, params: LabelParams | None = None) -> LabelAssignment:
    """Choose the images of every weak label, and record what became of every candidate.

    Args:
        metadata: Standard columns, with one row per image that `idx` identifies. Several values of a cell are separated by
            "|", and missing ones are empty or NaN. Label columns that are absent give no labels.
        params: None takes the published thresholds.

    Raises:
        DataError: There is no column `idx`, or its values are missing or not unique.
    """
    params = params or LabelParams()
    idx = _identities(metadata)
    order = keyed_order(idx, params.seed)
    # From here on row n is the n-th by keyed hash. Taking the first rows is a draw, whatever the order of the input.
    names = (*LABEL_COLUMNS, "name")
    columns = {name: _Column(metadata[name], order) for name in names if name in metadata.columns}
    found: list[tuple[int, int, str]] = []
    for place, category in enumerate(LABEL_COLUMNS):
        if category in columns:
            counts = columns[category].value_counts()
            found += [(count, place, value) for value, count in counts.items() if count >= params.min_images]
    is_used = np.zeros(len(metadata), np.bool_)
    taken: list[_Rows] = []
    rows_of_label: list[tuple[str, str]] = []
    outcomes = []
    seen: set[str] = set()
    for count, place, value in sorted(found):
        category = LABEL_COLUMNS[place]
        label = value if value not in seen else f"{value} ({category})"
        seen.add(value)
        rows = columns[category].rows_of(value, params.match == "substring")
        rows = rows[~is_used[rows]]
        drawn = _draw(rows, category, columns, params)
        outcome = "too few left" if drawn is None else "all" if len(drawn) == len(rows) else "sampled"
        outcomes.append((label, category, value, count, len(rows), 0 if drawn is None else len(drawn), outcome))
        if drawn is not None:
            is_used[drawn] = True
            taken.append(drawn)
            rows_of_label.append((label, category))
    candidates = pd.DataFrame(outcomes, columns=["label", "category", "value", "num_rows", "num_left", "num_images", "outcome"])
    return LabelAssignment(_chosen(metadata, order, taken, rows_of_label), candidates)


def _chosen(metadata: pd.DataFrame, order: _Rows, taken: list[_Rows], labels: list[tuple[str, str]]) -> pd.DataFrame:
    places = order[np.concatenate(taken)] if taken else np.zeros(0, np.int64)
    sizes = [len(rows) for rows in taken]
    chosen = metadata.iloc[places].reset_index(drop=True)
    kept = chosen.drop(columns=[name for name in ("label", "category") if name in chosen.columns])
    for place, name in enumerate(("label", "category")):
        kept.insert(place, name, pd.Series(np.repeat([pair[place] for pair in labels], sizes), dtype="str"))
    return kept


def _identities(metadata: pd.DataFrame) -> list[str]:
    if "idx" not in metadata.columns:
        raise DataError(
            f"the metadata has no column 'idx'; found {', '.join(map(str, metadata.columns))}. Every image needs an "
            "index such as bbbc041-14631."
        )
    column = metadata["idx"]
    if column.isna().any():
        raise DataError(f"{int(column.isna().sum())} row(s) have no idx; expected one for every image.")
    if column.duplicated().any():
        shown = ", ".join(map(str, column[column.duplicated()].unique()[:3]))
        raise DataError(f"idx is not unique: {shown} and others occur more than once; expected one row per image.")
    return [str(value) for value in column]


def keyed_order(identities: Sequence[str], seed: int) -> _Rows:
    """Sort identities by a keyed hash (blake2b, 64 bits), and by the text itself where hashes are equal.

    Args:
        identities: Unique texts.
        seed: Key of the hash.

    Returns:
        int64 (n,): the index of the first identity, of the second, and so on.
    """
    hashes = keyed_hashes(identities, seed)
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(equal):  # rare, but even then the order of the input must not matter
        order = np.array(sorted(order.tolist(), key=lambda place: (hashes[place], identities[place])), np.int64)
    return order


def keyed_hashes(identities: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """Return uint64 (n,), the blake2b hash of each identity; the seed is the key of the hash."""
    keyed = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))
    digests = []
    for identity in identities:
        one = keyed.copy()
        one.update(identity.encode())
        digests.append(one.digest())
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _draw(rows: _Rows, category: str, columns: "dict[str, _Column]", params: LabelParams) -> _Rows | None:
    """Take all rows, or draw some by strata; return None if too few are left."""
    if len(rows) < params.min_images:
        return None
    if len(rows) > params.presample_images:
        rows = _proportional(rows, [columns[n] for n in FIRST_STRATA if n in columns], params.presample_images)
    if len(rows) > params.max_images:
        left_out = _LEFT_OUT.get(category, (category,))
        strata = [columns[n] for n in SECOND_STRATA if n in columns and n not in left_out]
        rows = _proportional(rows, strata, params.max_images)
    return rows


def _proportional(rows: _Rows, columns: "list[_Column]", num: int) -> _Rows:
    """Draw `num` rows so that every combination of the columns' cells keeps its share."""
    stratum = np.zeros(len(rows), np.int64)
    for column in columns:
        codes = column.codes[rows]
        combined = stratum * (int(codes.max()) + 1) + codes
        stratum = pd.factorize(combined)[0].astype(np.int64)
    by_stratum = np.argsort(stratum, kind="stable")  # rows are in order of hash, so the first ones of a stratum are drawn
    sizes = np.bincount(stratum)
    starts = np.cumsum(sizes) - sizes
    quota = largest_remainders(sizes, rows[by_stratum[starts]], num)
    within = np.arange(len(rows)) - np.repeat(starts, sizes)
    return np.sort(rows[by_stratum[within < np.repeat(quota, sizes)]])


def largest_remainders(sizes: NDArray[np.int64], rank: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """Divide `num` draws among strata in proportion to their sizes, by the method of largest remainders.

    Args:
        sizes: int64 (k,), the number of rows of each stratum; their sum is at least `num`.
        rank: int64 (k,); of two strata with equal remainders the one with the lower rank comes first.

    Returns:
        int64 (k,), the draws of each stratum. They sum to `num`, and none is larger than its stratum.
    """
    total = int(sizes.sum())
    product = sizes.astype(np.int64) * num
    quota, remainder = product // total, product % total
    left = num - int(quota.sum())
    quota[np.lexsort((rank, -remainder))[:left]] += 1
    return quota


class _Column:
    """A column of the metadata, prepared for finding the rows that have a value."""

    def __init__(self, column: pd.Series, order: _Rows) -> None:
        """Factorize the cells, so that each distinct cell is split only once."""
        texts = column if column.dtype == "str" else column.astype("object")
        codes, cells = pd.factorize(texts.iloc[order], use_na_sentinel=True)
        self.codes = codes.astype(np.int64) + 1  # 0 is a missing cell
        self._cells = ["", *(str(cell) for cell in cells)]
        self._num = np.bincount(self.codes, minlength=len(self._cells))
        self._by_cell: _Rows | None = None
        self._cells_of: dict[str, list[int]] = {}
        for place, cell in enumerate(self._cells):
            for value in dict.fromkeys(split_values(cell)):
                self._cells_of.setdefault(value, []).append(place)
        # An empty cell and a missing one belong to the same stratum.
        empty = [place for place, cell in enumerate(self._cells) if not cell.strip()]
        self.codes[np.isin(self.codes, empty)] = 0

    def value_counts(self) -> dict[str, int]:
        """Count the rows that have each whole value."""
        return {value: int(self._num[cells].sum()) for value, cells in self._cells_of.items()}

    def rows_of(self, value: str, is_substring: bool) -> _Rows:
        """Find the rows that have a value, in ascending order."""
        if self._by_cell is None:
            self._by_cell = np.argsort(self.codes, kind="stable").astype(np.int64)
            num = np.bincount(self.codes, minlength=len(self._cells))
            self._ends = np.cumsum(num)
            self._starts = self._ends - num
        containing = (place for place, cell in enumerate(self._cells) if value in cell)
        cells = list(containing) if is_substring else self._cells_of[value]
        rows = np.concatenate([self._by_cell[self._starts[cell] : self._ends[cell]] for cell in cells])
        return rows if len(cells) == 1 else np.sort(rows)
