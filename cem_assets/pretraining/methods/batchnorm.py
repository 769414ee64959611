"""BatchNorm whose groups are chosen: smaller than the batch of a rank (MoCo), or as wide as all ranks (SwAV).

Both have the parameters and buffers of torch's BatchNorm under the same names, and in evaluation mode both are
it. Why a method wants one is said in `cem_assets.pretraining.methods.moco` and `cem_assets.pretraining.methods.swav`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cem_assets.errors import DataError
from cem_assets.pretraining.training.distributed import is_distributed, sum_over_ranks, world_size


def splits_of_rank(num_batch_splits: int) -> int:
    """Share the groups of the whole batch out among ranks.

    Args:
        num_batch_splits: Groups over all ranks.

    Returns:
        Groups of one rank; 1 where there are more ranks than groups, as none reaches over two ranks.

    Raises:
        DataError: The groups cannot be shared out evenly.
    """
    ranks = world_size()
    if ranks < num_batch_splits and num_batch_splits % ranks:
        raise DataError(
            f"{num_batch_splits} BatchNorm groups cannot be shared out evenly among {ranks} ranks; set num_batch_splits to a "
            "multiple of the number of ranks."
        )
    return max(1, num_batch_splits // ranks)


class SplitBatchNorm(nn.BatchNorm2d):
    """BatchNorm that, while training, takes statistics within equal groups of successive rows.

    Running averages move by the mean over groups, as the mean over as many ranks would.

    Attributes:
        num_batch_splits: Groups of the whole batch, over all ranks.
    """

    num_batch_splits: int = 1

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (n, c, h, w); n is a multiple of the groups."""
        num_splits = splits_of_rank(self.num_batch_splits) if self.training else 1
        if num_splits == 1:
            return super().forward(input)
        if len(input) % num_splits:
            raise DataError(f"a batch of {len(input)} does not split into {num_splits} equal groups; drop the incomplete one.")
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # With a momentum of 1 the running buffers become the group's own statistics.
        means, variances = input.new_zeros((2, num_splits, self.num_features), dtype=self.running_mean.dtype)
        parts = [
            functional.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for part, mean, variance in zip(input.chunk(num_splits), means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.lerp_(means.mean(dim=0), self.momentum)
            self.running_var.lerp_(variances.mean(dim=0), self.momentum)
        return torch.cat(parts)


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return sum_over_ranks(gradients[0])


class SynchronizedBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, on the CPU too: statistics over the batches of all ranks, which are equally large."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (n, c) or (n, c, h, w)."""
        if not self.training or input.is_cuda or not is_distributed():
            normalised: Tensor = super().forward(input)
            return normalised
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        values = input.float()
        over = [axis for axis in range(values.ndim) if axis != 1]
        num = values.numel() // values.shape[1] * world_size()
        if num < 2:
            raise DataError("one value of each channel was given to BatchNorm; expected 2 or more while training.")
        column = (1, -1) + (1,) * (values.ndim - 2)
        mean = _sum(values.sum(dim=over)) / num
        centred = values - mean.view(column)
        variance = _sum(centred.square().sum(dim=over)) / num
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (num / (num - 1)), self.momentum)
        out = centred * (variance + self.eps).rsqrt().view(column)
        return (out * self.weight.view(column) + self.bias.view(column)).to(input.dtype)


def _sum(tensor: Tensor) -> Tensor:
    summed: Tensor = _SumOverRanks.apply(tensor)
    return summed


def replace_batchnorm(module: nn.Module, make: Callable[[_BatchNorm], _BatchNorm]) -> None:
    """Replace every BatchNorm layer inside a module, in place; parameters and buffers are carried over.

    Args:
        module: Holds the layers; is none itself.
        make: Given a layer, makes the other one, see `split` and `synchronized`.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            layer = make(child)
            layer.load_state_dict(child.state_dict())
            setattr(module, name, layer)
        else:
            replace_batchnorm(child, make)


def split(num_batch_splits: int) -> Callable[[_BatchNorm], _BatchNorm]:
    """Say that layers become `SplitBatchNorm` with this many groups over all ranks."""

    def make(layer: _BatchNorm) -> _BatchNorm:
        made = SplitBatchNorm(layer.num_features, layer.eps, layer.momentum)
        made.num_batch_splits = num_batch_splits
        return made

    return make


def synchronized(layer: _BatchNorm) -> _BatchNorm:
    """Make a layer a `SynchronizedBatchNorm`."""
    return SynchronizedBatchNorm(layer.num_features, layer.eps, layer.momentum)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Give every rank the mean over ranks of all running means and variances, in one exchange.

    Ranks then hold the same state at every step, so that the first one's checkpoint is that of all.

    Args:
        module: Changed in place.
    """
    if world_size() == 1:
        return
    buffers: list[Tensor] = []
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            buffers += [layer.running_mean, layer.running_var]
    if not buffers:
        return
    flat = torch.cat(buffers)
    distributed.all_reduce(flat)
    flat.div_(world_size())
    for buffer, mean in zip(buffers, torch.split(flat, [len(buffer) for buffer in buffers]), strict=True):
        buffer.copy_(mean)
