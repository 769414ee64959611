"""Chooses the rows of an epoch, their order, and the process that gets each of them; it handles row numbers, not pixels.

Rows are numbered through the datasets in order: dataset 0 holds rows 0..sizes[0]-1, and so on. `cem_assets.pixels.reader`
reads the pixels of the batches made here, and `cem_assets.pretraining.views.augmentations` makes views of them. Everything
follows from (sizes, seed, epoch). A position in an epoch is therefore one number, the count of batches done, and a resumed
run needs nothing else.

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
    """Draw the rows of an epoch, as many as the datasets have.

    Args:
        sizes: Number of patches of each dataset, in row order.
        weight_gamma: 0 draws every row once. Above 0, rows are drawn with replacement, each with weight
            (1 / size of its dataset) ** weight_gamma; 1 gives every dataset the same share.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        int64 (sum of sizes,).

    Raises:
        DataError: The datasets have no row.
        ValueError: A number is negative.

    Source: `MultiCropDataset` of volume-em/cem-dataset. Its sampler draws with such weights without replacement and within
    each rank's share; here rows are drawn in proportion to the weights, for any number of ranks.
    """
    size = _checked_sizes(sizes, weight_gamma, seed, epoch)
    num = int(size.sum())
    if weight_gamma == 0:
        # Raw bits and a stable sort, because numpy promises that these two never change between its versions.
        return np.argsort(_bits(seed, epoch, _ORDER, num), kind="stable").astype(np.int64)
    held = size > 0
    weight = np.where(held, size / np.where(held, size, 1).astype(np.float64) ** weight_gamma, 0.0)
    shares = np.cumsum(weight) / weight.sum()
    last = int(np.flatnonzero(held)[-1])  # rounding must not choose a dataset behind the last one with rows
    dataset = np.minimum(np.searchsorted(shares, _unit(seed, epoch, _DATASET, num), side="right"), last)
    inside = np.floor(_unit(seed, epoch, _ORDER, num) * size[dataset]).astype(np.int64)
    return (np.cumsum(size) - size)[dataset] + inside


def carried_order(sizes: Sequence[int], weight_gamma: float, seed: int, epoch: int, batch_size: int) -> NDArray[np.int64]:
    """Draw the rows of an epoch, and put the rows that did not fill a batch in earlier epochs before them.

    All batches have one size, so the end of a draw rarely fills one. Instead of being lost, these rows begin the next epoch,
    so that over a run every entry of every draw is delivered once, except for the last `(epochs * rows) % batch_size`.

    Args:
        sizes: Number of patches of each dataset, as in `epoch_order`.
        weight_gamma: Exponent of the weights, as in `epoch_order`.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        batch_size: Rows in a step, over all ranks.

    Returns:
        int64 (carried + sum of sizes,), where carried is (epoch * sum of sizes) % batch_size. `share` leaves out the rows at
        the end with which `epoch + 1` begins.

    Raises:
        DataError: The datasets have no row.
        ValueError: A number is negative, or the batch size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is not positive; expected the rows in a step, over all ranks.")
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

    The groups get a random order, and every entry is delayed behind the turn of its group by a random time of at most `reach`
    turns. Groups come into use and go out of use evenly, so reading keeps pace with training. The batch mates of a patch come
    from `reach` groups around its own (from fewer in the first and last batches) instead of from all groups.

    Args:
        order: int64 (n,), a draw.
        group_starts: int64 (num_groups + 1,), the first row of each group of rows that are read together, and the end of the
            last group.
        reach: Number of groups in use at the same time, less one. The cache should hold a quarter more.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        int64 (n,): the same entries in another order; the draw itself where `reach` covers all groups.

    Raises:
        ValueError: The reach is not positive, or a row lies outside the groups.
    """
    if reach < 1:
        raise ValueError(f"reach {reach} is not positive; expected the row groups in use at the same time.")
    num_groups = len(group_starts) - 1
    if len(order) and (order.min() < group_starts[0] or order.max() >= group_starts[-1]):
        raise ValueError(
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
    """Count the steps of an epoch whose order has `num_entries` rows; the other arguments are those of `share`."""
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
    """Divide an epoch's order into batches, and return those of one worker of one rank.

    Step t of all ranks together holds the entries from t * batch_size on, of which each rank has a slice, so that a step has
    the same rows for any number of ranks. Worker w of a rank takes the steps t with t % num_workers == w.

    Args:
        order: int64 (n,), the draw of the epoch.
        rank: Rank of this process, from 0.
        world: Number of ranks.
        worker: Number of the worker within its rank, from 0.
        num_workers: Number of workers of each rank.
        batch_size: Rows in a step, over all ranks; a multiple of `world`.
        start: Number of steps of the epoch that are done already and left out.
        remainder: What happens to the entries after the last full step. "drop" leaves them out, which training needs, because
            queues and Sinkhorn need equal batches; see `carried_order`. "keep" splits them evenly over the ranks, which
            evaluation needs; the last batches then differ in length by at most one, and a rank can have none.

    Returns:
        int64 (k,) arrays in order of step, which are views of the order.

    Raises:
        ValueError: Numbers are out of range; the text names all of them.
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
        raise ValueError(f"the share of an epoch of {len(order)} entries: {'; '.join(problems)}.")
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
        raise ValueError(f"the draw of an epoch: {'; '.join(problems)}; expected nothing below 0.")
    if size.sum() == 0:
        raise DataError("the draw of an epoch: the datasets have no rows; expected at least one. Choose another release.")
    return size


def _bits(seed: int, epoch: int, stream: int, num: int) -> NDArray[np.uint64]:
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, stream))).random_raw(num)


def _unit(seed: int, epoch: int, stream: int, num: int) -> NDArray[np.float64]:
    """Draw numbers in [0, 1)."""
    return (_bits(seed, epoch, stream, num) >> np.uint64(11)).astype(np.float64) * _UNIT
