"""Which patches an epoch sees, in which order, and which process gets which: row numbers only.

Rows are numbered through the datasets in order: dataset 0 holds rows 0..sizes[0]-1, and so on. Pixels are read by
`cem_assets.pixels.reader`, which takes the batches made here; what is done to them is
`cem_assets.pretraining.views.augmentations`. Everything follows from (sizes, seed, epoch), so a position in an epoch is
one number, the count of batches done, and a resumed run needs nothing else.

To train on some rows only, draw positions and look them up: `subset[epoch_order((len(subset),), 0.0, seed, epoch)]`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError

Remainder = Literal["drop", "keep"]

_ORDER, _DATASET, _GROUP, _JITTER = range(4)
"""Independent streams of random numbers of one epoch."""
_UNIT = 2.0**-53


def epoch_order(sizes: Sequence[int], weight_gamma: float, seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw the rows of an epoch, as many as there are.

    Args:
        sizes: Patches of each dataset, in row order.
        weight_gamma: 0 draws every row once. Above 0 rows are drawn with replacement, each with weight
            (1 / size of its dataset) ** weight_gamma: 1 gives every dataset the same share.
        seed: Of the run.
        epoch: From 0.

    Returns:
        int64 (sum of sizes,).

    Raises:
        DataError: A size or number is negative, or there is no row.

    Source: `MultiCropDataset` of volume-em/cem-dataset, whose sampler draws such weights without replacement and
    within each rank's share; here the weights mean what they say, for any number of ranks.
    """
    size = _checked_sizes(sizes, weight_gamma, seed, epoch)
    num = int(size.sum())
    if weight_gamma == 0:
        # Raw bits and a stable sort: numpy promises that these two never change between its versions.
        return np.argsort(_bits(seed, epoch, _ORDER, num), kind="stable").astype(np.int64)
    held = size > 0
    weight = np.where(held, size / np.where(held, size, 1).astype(np.float64) ** weight_gamma, 0.0)
    shares = np.cumsum(weight) / weight.sum()
    last = int(np.flatnonzero(held)[-1])  # rounding must not lead past the last dataset with rows
    dataset = np.minimum(np.searchsorted(shares, _unit(seed, epoch, _DATASET, num), side="right"), last)
    inside = np.floor(_unit(seed, epoch, _ORDER, num) * size[dataset]).astype(np.int64)
    return (np.cumsum(size) - size)[dataset] + inside


def carried_order(sizes: Sequence[int], weight_gamma: float, seed: int, epoch: int, batch_size: int) -> NDArray[np.int64]:
    """Draw the rows of an epoch behind those that did not fill a batch in the epochs before.

    With batches of one size, the end of a draw rarely fills one. Here these rows begin the next epoch instead of
    being lost, so that over a run every entry of every draw is delivered once; only the very last
    `(epochs * rows) % batch_size` are not.

    Args:
        sizes: As for `epoch_order`.
        weight_gamma: As for `epoch_order`.
        seed: As for `epoch_order`.
        epoch: From 0.
        batch_size: Rows in a step, over all ranks.

    Returns:
        int64 (carried + sum of sizes,), where carried is (epoch * sum of sizes) % batch_size; give it to `share`, which
        leaves out what `epoch + 1` will begin with.

    Raises:
        DataError: As for `epoch_order`, or the batch size is not positive.
    """
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size} is not positive; expected the rows in a step, over all ranks.")
    num = int(_checked_sizes(sizes, weight_gamma, seed, epoch).sum())
    pieces = [epoch_order(sizes, weight_gamma, seed, epoch)]
    wanted, before = (epoch * num) % batch_size, epoch
    while wanted > 0:
        before -= 1
        earlier = epoch_order(sizes, weight_gamma, seed, before)[-wanted:]
        pieces.append(earlier)
        wanted -= len(earlier)
    return np.concatenate(pieces[::-1])


def streaming_order(
    order: NDArray[np.int64], group_starts: NDArray[np.int64], reach: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Rearrange a draw so that few row groups are in use at any time, for releases larger than the local cache.

    Groups are put in a random order, and every entry waits a random time behind its group's turn, at most `reach`
    turns. Groups come and go evenly, so reading keeps pace with training and never stalls at an edge. A patch has
    neighbours from `reach` groups around it (fewer in the first and last batches) instead of from all.

    Args:
        order: int64 (n,), a draw.
        group_starts: int64 (num_groups + 1,), first row of each group of rows that are read together, and the end.
        reach: Groups in use at the same time (plus one). The cache should hold a quarter more.
        seed: Of the run.
        epoch: From 0.

    Returns:
        int64 (n,): the same entries; the draw itself where `reach` covers all groups.

    Raises:
        DataError: The reach is not positive, or a row lies outside the groups.
    """
    if reach < 1:
        raise DataError(f"reach {reach} is not positive; expected the row groups in use at the same time.")
    num_groups = len(group_starts) - 1
    if len(order) and (order.min() < group_starts[0] or order.max() >= group_starts[-1]):
        raise DataError(
            f"rows {order.min()}..{order.max()} lie outside the groups, which hold {group_starts[0]}..{group_starts[-1] - 1}; "
            "make the order from the sizes of the same source."
        )
    if reach >= num_groups:
        return order
    turn = np.empty(num_groups, np.int64)
    turn[np.argsort(_bits(seed, epoch, _GROUP, num_groups), kind="stable")] = np.arange(num_groups)
    group = np.searchsorted(group_starts, order, side="right") - 1
    due = turn[group] + _unit(seed, epoch, _JITTER, len(order)) * reach
    return order[np.argsort(due, kind="stable")]


def num_batches(num_entries: int, batch_size: int, remainder: Remainder = "drop") -> int:
    """Count the steps of an epoch.

    Args:
        num_entries: Length of its order.
        batch_size: Rows in a step, over all ranks.
        remainder: As for `share`.
    """
    return num_entries // batch_size if remainder == "drop" else -(-num_entries // batch_size)


def share(
    order: NDArray[np.int64],
    rank: int = 0,
    world: int = 1,
    worker: int = 0,
    num_workers: int = 1,
    batch_size: int = 64,
    start: int = 0,
    remainder: Remainder = "drop",
) -> list[NDArray[np.int64]]:
    """Deal an epoch's order out to ranks and workers, a batch at a time.

    Step t of all ranks together holds the entries t * batch_size and on, each rank a slice of them, so a step is
    the same rows however many ranks share it. Worker w of a rank takes the steps t with t % num_workers == w.

    Args:
        order: int64 (n,), the draw of the epoch.
        rank: Of this process, from 0.
        world: Number of ranks.
        worker: Of this rank, from 0.
        num_workers: Workers of each rank.
        batch_size: Rows in a step, over all ranks; a multiple of `world`.
        start: Steps of the epoch already done; what follows is exactly the rest.
        remainder: What becomes of the entries after the last full step. "drop" leaves them out, which training
            needs (queues and Sinkhorn want equal batches; see `carried_order`). "keep" splits them evenly over
            the ranks, which evaluation needs; the last batches then differ in length by at most one, and a
            rank can have none.

    Returns:
        int64 (k,) arrays, views of the order, in order of step.

    Raises:
        DataError: A number is out of range; all are named.
    """
    problems = [
        f"{name} is {value}, expected {low}..{high}" if high is not None else f"{name} is {value}, expected at least {low}"
        for name, value, low, high in (
            ("world", world, 1, None),
            ("rank", rank, 0, max(world, 1) - 1),
            ("num_workers", num_workers, 1, None),
            ("worker", worker, 0, max(num_workers, 1) - 1),
            ("batch_size", batch_size, 1, None),
            ("start", start, 0, num_batches(len(order), max(batch_size, 1), remainder)),
        )
        if value < low or (high is not None and value > high)
    ]
    if world > 1 and batch_size % world:
        problems.append(f"batch_size is {batch_size}, expected a multiple of the {world} ranks")
    if problems:
        raise DataError(f"the share of an epoch of {len(order)} entries: {'; '.join(problems)}.")
    num_full, mine = len(order) // batch_size, batch_size // world
    begins = [step * batch_size + rank * mine for step in range(start + (worker - start) % num_workers, num_full, num_workers)]
    batches = [order[begin : begin + mine] for begin in begins]
    if remainder == "keep" and start <= num_full and num_full % num_workers == worker:
        rest = order[num_full * batch_size :]
        piece = rest[rank * len(rest) // world : (rank + 1) * len(rest) // world]
        if len(piece):
            batches.append(piece)
    return batches


def _checked_sizes(sizes: Sequence[int], weight_gamma: float, seed: int, epoch: int) -> NDArray[np.int64]:
    size = np.asarray(sizes, dtype=np.int64).reshape(-1)
    problems = [f"dataset {n} has {value} rows" for n, value in enumerate(size.tolist()) if value < 0]
    if not weight_gamma >= 0:
        problems.append(f"weight_gamma is {weight_gamma}")
    problems += [f"{name} is {value}" for name, value in (("seed", seed), ("epoch", epoch)) if value < 0]
    if problems:
        raise DataError(f"the draw of an epoch: {'; '.join(problems)}; expected nothing below 0.")
    if size.sum() == 0:
        raise DataError("the draw of an epoch: the datasets have no rows; expected at least one. Choose another release.")
    return size


def _bits(seed: int, epoch: int, stream: int, num: int) -> NDArray[np.uint64]:
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, stream))).random_raw(num)


def _unit(seed: int, epoch: int, stream: int, num: int) -> NDArray[np.float64]:
    """Numbers in [0, 1)."""
    return (_bits(seed, epoch, stream, num) >> np.uint64(11)).astype(np.float64) * _UNIT
