"""BatchNorm over groups smaller than a rank's batch (MoCo), and over the batches of all ranks (SwAV).

Both have the parameters and buffers of torch's BatchNorm under the same names, and compute the same in evaluation mode.
`cem_assets.pretraining.methods.moco` and `cem_assets.pretraining.methods.swav` explain why the methods need them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cem_assets.errors import DataError
from cem_assets.pretraining.distributed import is_distributed, sum_over_ranks, world_size


def splits_of_rank(num_batch_splits: int) -> int:
    """Divide the groups of the whole batch among ranks.

    Args:
        num_batch_splits: Number of groups over all ranks.

    Returns:
        Number of groups of one rank. Where there are more ranks than groups it is 1, because a group never spans two ranks.

    Raises:
        DataError: The number of groups is not a multiple of the number of ranks.
    """
    ranks = world_size()
    if ranks < num_batch_splits and num_batch_splits % ranks:
        raise DataError(
            f"{num_batch_splits} BatchNorm groups cannot be divided evenly among {ranks} ranks; set num_batch_splits to a "
            "multiple of the number of ranks."
        )
    return max(1, num_batch_splits // ranks)


class SplitBatchNorm(nn.BatchNorm2d):
    """BatchNorm that takes its statistics within equal groups of successive rows while training.

    The running averages are updated with the mean over the groups, as the mean over that many ranks would be.

    Attributes:
        num_batch_splits: Number of groups of the whole batch, over all ranks.
    """

    num_batch_splits: int = 1

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (n, c, h, w); n is a multiple of the number of groups."""
        num_splits = splits_of_rank(self.num_batch_splits) if self.training else 1
        if num_splits == 1:
            return super().forward(input)
        if len(input) % num_splits:
            raise ValueError(f"a batch of {len(input)} does not split into {num_splits} equal groups; drop the incomplete one.")
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
    """torch's SyncBatchNorm that also works on the CPU: it takes statistics over the equally large batches of all ranks."""

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
            raise ValueError("BatchNorm got one value of each channel; expected 2 or more while training.")
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
    """Replace every BatchNorm layer inside a module, in place, and keep its parameters and buffers.

    Args:
        module: The module that holds the layers; it is not a BatchNorm layer itself.
        make: Makes the new layer from the old one, as `split(...)` and `synchronized` do.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            layer = make(child)
            layer.load_state_dict(child.state_dict())
            setattr(module, name, layer)
        else:
            replace_batchnorm(child, make)


def split(num_batch_splits: int) -> Callable[[_BatchNorm], _BatchNorm]:
    """Return a function for `replace_batchnorm` that makes `SplitBatchNorm` layers with this many groups over all ranks."""

    def make(layer: _BatchNorm) -> _BatchNorm:
        made = SplitBatchNorm(layer.num_features, layer.eps, layer.momentum)
        made.num_batch_splits = num_batch_splits
        return made

    return make


def synchronized(layer: _BatchNorm) -> _BatchNorm:
    """Make the `SynchronizedBatchNorm` that replaces a layer."""
    return SynchronizedBatchNorm(layer.num_features, layer.eps, layer.momentum)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Replace all running means and variances of a module by their means over ranks, in one exchange.

    All ranks then hold the same state at every step, so the checkpoint of the first rank serves all of them.
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
