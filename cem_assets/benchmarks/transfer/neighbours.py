"""Nearest rows of a feature table: exact, in bounded memory, and independent of the size of the pieces.

A product of float32 matrices is fast, but rounds differently for every shape. So it only proposes candidates, with a bound on
its error, and the distances of the candidates are then summed in float64, column by column, in one compiled loop. The
neighbours are therefore exactly those of the float64 definition, and another machine, piece or number of threads cannot change
a tie.

Definitions, for rows a and b:
  "euclidean": sum of (a - b)^2;
  "cosine": distance of a / |a| and b / |b|, which orders rows as 1 - cosine does, rounded to 12 decimals so that
    parallel rows tie whatever their lengths; a row of zeros has no direction: its cosine with every row, another row of
    zeros included, counts as 0;
  "correlation": the cosine of rows less their own means (Pearson); a constant row is one of zeros.
Between equally near rows the earlier one is nearer.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cem_assets.errors import DataError
from cem_assets.imaging.compiled import kernel

DistanceMetric = Literal["cosine", "correlation", "euclidean"]

_PIECE_CELLS = 1 << 24
"""Cells of one piece of the distance matrix: 64 MiB of float32, of which about four are in memory at a time."""
_UNIT_ROUNDOFF = 2.0**-24
_DECIMALS = 1e12
_CHECK_EVERY = 32
"""After so many columns it is checked whether a candidate is too far already."""
_MAX_NAMED = 5


def feature_matrix(features: ArrayLike | pd.DataFrame, what: str = "features") -> NDArray[np.float64]:
    """Check a feature table and return its numbers.

    Args:
        features: (n, d), a DataFrame or anything that becomes an array of numbers; at least one column.
        what: What messages call the table.

    Returns:
        float64 (n, d), C-contiguous.

    Raises:
        DataError: It is not a table of numbers, or values are NaN or infinite; the error names their rows and columns.
    """
    try:
        values = np.ascontiguousarray(features, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are no table of numbers: {error}; leave columns of text out") from error
    if values.ndim != 2 or not values.shape[1]:
        raise DataError(f"{what} have shape {values.shape}; expected (n, d), a row for each sample, and at least one column")
    is_bad = ~np.isfinite(values)
    if is_bad.any():
        rows = features.index.tolist() if isinstance(features, pd.DataFrame) else list(range(len(values)))
        columns = features.columns.tolist() if isinstance(features, pd.DataFrame) else list(range(values.shape[1]))
        bad_rows, bad_columns = np.flatnonzero(is_bad.any(axis=1)), np.flatnonzero(is_bad.any(axis=0))
        named = _some([rows[n] for n in bad_rows]), _some([columns[n] for n in bad_columns])
        raise DataError(
            f"{int(is_bad.sum())} values of the {what} are NaN or infinite, in {len(bad_rows)} rows "
            f"({named[0]}) and {len(bad_columns)} columns ({named[1]}); "
            "drop those columns or rows first"
        )
    return values


def _some(names: list[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:_MAX_NAMED])
    return shown + (", ..." if len(names) > _MAX_NAMED else "")


@kernel
def _nearest_of_candidates(
    queries: Any, bank: Any, starts: Any, candidates: Any, is_query_zero: Any, is_bank_zero: Any,
    is_rounded: Any, decimals: Any, every: Any, k: Any,
) -> Any:  # fmt: skip
    """Choose the k nearest candidates of every query; returns rows (q, k), and -1 where there are fewer.

    The candidates of each query must be in ascending order.
    """
    num_columns = queries.shape[1]
    found = np.full((queries.shape[0], k), -1, np.int64)
    far = np.empty(k, np.float64)
    for query in range(queries.shape[0]):
        far[:] = np.inf
        num = 0
        for place in range(starts[query], starts[query + 1]):
            row = candidates[place]
            total = 0.0
            if is_query_zero[query] or is_bank_zero[row]:
                total = 2.0
            else:
                column = 0
                while column < num_columns:
                    stop = min(column + every, num_columns)
                    while column < stop:
                        difference = queries[query, column] - bank[row, column]
                        total += difference * difference
                        column += 1
                    # Partial sums and their rounded values only grow, so a candidate that is not nearer now never will be.
                    if num == k and (np.rint(np.sqrt(total) * decimals) if is_rounded else total) >= far[k - 1]:
                        break
            if is_rounded:
                total = np.rint(np.sqrt(total) * decimals)
            if num == k and total >= far[k - 1]:
                continue
            slot = min(num, k - 1)
            while slot > 0 and far[slot - 1] > total:
                far[slot] = far[slot - 1]
                found[query, slot] = found[query, slot - 1]
                slot -= 1
            far[slot] = total
            found[query, slot] = row
            num = min(num + 1, k)
    return found


def _directions(values: NDArray[np.float64], metric: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scale rows to unit length; rows without a direction become zeros and are marked."""
    size = np.abs(values).max(axis=1, initial=0.0, keepdims=True)
    # Division by a power of two is exact, and keeps squares of very large or small numbers finite and above zero.
    scaled = np.ldexp(values, -np.frexp(size)[1])
    if metric == "correlation":
        scaled = scaled - scaled.mean(axis=1, keepdims=True)
        # Of a constant row only rounding errors of its mean remain, which are not a direction.
        is_zero = np.abs(scaled).max(axis=1, initial=0.0) <= 1e-14
    else:
        is_zero = size[:, 0] == 0
    lengths = np.sqrt(np.sum(scaled * scaled, axis=1, keepdims=True))
    lengths[is_zero] = 1.0
    scaled = scaled / lengths
    scaled[is_zero] = 0.0
    return scaled, is_zero


def nearest_rows(
    queries: NDArray[np.float64],
    bank: NDArray[np.float64],
    k: int,
    metric: str,
    excluded: Callable[[int, int], NDArray[np.bool_]] | None = None,
    *,
    piece_cells: int = _PIECE_CELLS,
) -> NDArray[np.int64]:
    """Find the k nearest rows of every query.

    Args:
        queries: float64 (q, d), finite.
        bank: float64 (n, d), finite.
        k: Number of neighbours, at least 1.
        metric: A `DistanceMetric`, as the module's docstring defines it.
        excluded: Takes (start, stop) of the queries and returns bool (stop - start, n), true where a row may not be a
            neighbour.
        piece_cells: Largest number of cells of the distance matrix in memory; it does not change the result.

    Returns:
        int64 (q, k), nearest first; -1 where fewer rows may be neighbours.
    """
    if metric not in get_args(DistanceMetric):
        raise ValueError(f"the metric is {metric!r}; expected one of {', '.join(get_args(DistanceMetric))}")
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 neighbour")
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(f"{queries.shape[1]} features are compared with {bank.shape[1]}; expected as many, in the same order")
    is_direction, is_own = metric != "euclidean", queries is bank
    if is_direction:
        exact_bank, bank_zero = _directions(bank, metric)
        exact_queries, query_zero = (exact_bank, bank_zero) if is_own else _directions(queries, metric)
        near_bank = exact_bank.astype(np.float32)
        near_queries = near_bank if is_own else exact_queries.astype(np.float32)
    else:
        # Both are divided by the same power of two, which is exact, so that float32 can hold the squares.
        top = max(np.abs(queries).max(initial=0.0), np.abs(bank).max(initial=0.0))
        exponent = -int(np.frexp(top)[1])
        exact_bank = np.ldexp(bank, exponent)
        exact_queries = exact_bank if is_own else np.ldexp(queries, exponent)
        query_zero, bank_zero = np.zeros(len(queries), np.bool_), np.zeros(len(bank), np.bool_)
        middle = exact_bank.mean(axis=0) if len(bank) else np.zeros(bank.shape[1])
        near_bank = (exact_bank - middle).astype(np.float32)
        near_queries = near_bank if is_own else (exact_queries - middle).astype(np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    if not len(bank):
        return found
    bank_squares = np.einsum("ij,ij->i", near_bank, near_bank, dtype=np.float64).astype(np.float32)
    step = max(1, piece_cells // len(bank))
    for start in range(0, len(queries), step):
        stop = min(start + step, len(queries))
        mask = None if excluded is None else excluded(start, stop)
        piece = near_queries[start:stop]
        starts, candidates = _candidates(piece, near_bank, bank_squares, min(k, len(bank)), mask, is_direction)
        found[start:stop] = _nearest_of_candidates(
            exact_queries[start:stop], exact_bank, starts, candidates, query_zero[start:stop], bank_zero,
            is_direction, _DECIMALS, _CHECK_EVERY, k,
        )  # fmt: skip
    return found


def _candidates(
    piece: NDArray[np.float32],
    bank: NDArray[np.float32],
    bank_squares: NDArray[np.float32],
    k: int,
    mask: NDArray[np.bool_] | None,
    is_direction: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List rows for every query, in ascending order, among which its k nearest are for certain.

    The error of a float32 product of d terms, its inputs rounded to float32, is at most (d + 4) roundoffs of |a| |b|, and
    2 |a| |b| <= |a|^2 + |b|^2; the bound taken is about twice that.
    """
    far = piece @ bank.T
    far *= np.float32(-2.0)
    if is_direction:
        share = np.float32(4 * (bank.shape[1] + 16) * _UNIT_ROUNDOFF)
        error: NDArray[np.float32] | np.float32 = share
    else:
        squares = np.einsum("ij,ij->i", piece, piece, dtype=np.float64).astype(np.float32)
        sums = squares[:, None] + bank_squares[None, :]
        far += sums
        sums *= np.float32(2 * (bank.shape[1] + 16) * _UNIT_ROUNDOFF)
        error = sums
    if mask is not None:
        far[mask] = np.inf
    highest = far + error
    # Distances that float32 cannot distinguish from zero, or that are rounded away later, are ties.
    limit = np.partition(highest, k - 1, axis=1)[:, k - 1] + np.float32(1e-11)
    del highest
    far -= error
    rows, columns = np.nonzero((far <= limit[:, None]) & np.isfinite(far))
    starts = np.searchsorted(rows, np.arange(len(piece) + 1))
    return starts.astype(np.int64), columns.astype(np.int64)
