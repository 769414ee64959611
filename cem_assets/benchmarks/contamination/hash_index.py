"""Exact search for pairs of 64-bit hashes within a small distance, for millions against hundreds of thousands.

Two hashes that differ in at most d bits agree in all bits of at least one of d + 1 pieces. So only hashes that share a piece
are compared, which for d = 4 is about a thousandth of all pairs. `cem_assets.imaging.hamming` compares all pairs, which is
faster for large distances and for a few thousand hashes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.imaging.compiled import kernel

_M1, _M2 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_M4, _H1 = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
_MAX_PIECE_BITS = 16


@kernel
def _num_different(a: Any, b: Any) -> Any:
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & _M1)
    x = (x & _M2) + ((x >> np.uint64(2)) & _M2)
    x = (x + (x >> np.uint64(4))) & _M4
    return (x * _H1) >> np.uint64(56)


@kernel
def _pairs_of_piece(
    queries: Any, others: Any, order: Any, starts: Any, shifts: Any, masks: Any, piece: Any, radius: Any, out: Any
) -> Any:
    """Compare the hashes that agree in one piece, and return how many pairs are near.

    Pairs that also agree in an earlier piece are left out, because they were found there.
    """
    found = 0
    for query in range(queries.shape[0]):
        value = queries[query]
        bucket = (value >> shifts[piece]) & masks[piece]
        for place in range(starts[bucket], starts[bucket + np.uint64(1)]):
            other = others[place]
            distance = _num_different(value, other)
            if distance > radius:
                continue
            different = value ^ other
            is_known = False
            for earlier in range(piece):
                if (different >> shifts[earlier]) & masks[earlier] == np.uint64(0):
                    is_known = True
            if is_known:
                continue
            if found < out.shape[0]:
                out[found, 0] = query
                out[found, 1] = order[place]
                out[found, 2] = distance
            found += 1
    return found


def near_hashes(queries: NDArray[np.uint64], others: NDArray[np.uint64], max_distance: int) -> NDArray[np.int64]:
    """Find every pair within a distance.

    Args:
        queries: uint64 (n,), the longer list.
        others: uint64 (m,).
        max_distance: Largest Hamming distance, 0..63; fast up to about 8.

    Returns:
        int64 (pairs, 3): place in queries, place in others, and distance; sorted by query, then by other.
    """
    if not 0 <= max_distance <= 63:
        raise ValueError(f"the distance is {max_distance}; expected 0..63 bits")
    bounds = np.linspace(0, 64, max_distance + 2).astype(int)
    shifts = bounds[:-1].astype(np.uint64)
    # A piece with too many bits for a table of buckets is looked up by its lower bits.
    masks = np.array([(1 << min(int(width), _MAX_PIECE_BITS)) - 1 for width in np.diff(bounds)], dtype=np.uint64)
    queries, others = np.ascontiguousarray(queries, dtype=np.uint64), np.ascontiguousarray(others, dtype=np.uint64)
    parts = [np.empty((0, 3), np.int64)]
    for piece in range(max_distance + 1):
        keys = (others >> shifts[piece]) & masks[piece]
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(int(masks[piece]) + 2, dtype=np.uint64))
        limit = 1 << 16
        while True:
            out = np.empty((limit, 3), np.int64)
            arguments = queries, others[order], order, starts, shifts, masks, piece, np.uint64(max_distance), out
            found = _pairs_of_piece(*arguments)
            if found <= limit:
                break
            limit = found
        parts.append(out[:found].copy())
    pairs = np.concatenate(parts)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
