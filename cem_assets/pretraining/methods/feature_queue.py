"""A ring buffer of the newest features, which MoCo uses as negatives and SwAV to widen its batch.

The MIT-licensed lightly has a memory bank for this. It is not used because it would bring PyTorch Lightning, and because our
queue is filled after the optimiser's step (so that a step that ends in NaN leaves no trace) and wraps around within a batch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cem_assets.errors import DataError


class FeatureQueue(nn.Module):
    """Keeps the last `num_rows` rows that were pushed, as a ring buffer.

    Attributes:
        rows: float32 (num_rows, *row_shape); a buffer of the module.
        pointer: int64 (), the row that the next push writes first; a buffer of the module.
        num_filled: int64 (), the number of rows that were pushed, at most `num_rows`; a buffer of the module.

    The pointer and the number of rows are also kept as Python integers, so that no step waits for the device to read them.
    """

    rows: Tensor
    pointer: Tensor
    num_filled: Tensor

    def __init__(self, num_rows: int, *row_shape: int) -> None:
        super().__init__()
        if num_rows < 1:
            raise ValueError(f"a queue cannot have {num_rows} rows; expected at least 1.")
        self.register_buffer("rows", torch.zeros(num_rows, *row_shape))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_filled", torch.zeros((), dtype=torch.int64))
        self._position = self._fill = 0
        self.register_load_state_dict_post_hook(_read_numbers)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_pushed(self) -> int:
        """Number of rows that were pushed, which are the first ones; reading it does not wait for the device."""
        return self._fill

    @property
    def is_full(self) -> bool:
        """Whether every row was pushed at least once."""
        return self._fill == len(self.rows)

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Overwrite the oldest rows.

        Args:
            features: (n, *row_shape), where n is at most the number of rows; the last one is the newest.

        Raises:
            ValueError: There are more features than rows, or they have another shape.
        """
        size, num = len(self.rows), len(features)
        if num > size or features.shape[1:] != self.rows.shape[1:]:
            raise ValueError(
                f"features of shape {tuple(features.shape)} do not fit into a queue of shape {tuple(self.rows.shape)}; "
                "expected at most as many rows of the same shape."
            )
        until_end = min(num, size - self._position)
        self.rows[self._position : self._position + until_end] = features[:until_end].to(self.rows.dtype)
        self.rows[: num - until_end] = features[until_end:].to(self.rows.dtype)
        self._position = (self._position + num) % size
        self._fill = min(size, self._fill + num)
        self.pointer.fill_(self._position)
        self.num_filled.fill_(self._fill)


def _read_numbers(queue: nn.Module, _: Any) -> None:
    assert isinstance(queue, FeatureQueue)
    position, fill, size = int(queue.pointer), int(queue.num_filled), len(queue)
    if not (0 <= position < size and 0 <= fill <= size):
        raise DataError(
            f"the state of the queue has pointer {position} and num_filled {fill}; expected a pointer below {size} and at most "
            f"{size} rows. The checkpoint is damaged or belongs to another run; start from an earlier one."
        )
    queue._position, queue._fill = position, fill
