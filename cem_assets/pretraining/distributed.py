"""Connects the processes of one training and exchanges tensors between them.

torchrun starts the processes and sets environment variables that give each of them its rank. Without these variables there is
a single process, and nothing is exchanged. gloo connects processes on the CPU, NCCL those on GPUs.
`cem_assets.pretraining.assets` starts the processes.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed, nn

from cem_assets.encoders import pick_device
from cem_assets.errors import DataError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def is_distributed() -> bool:
    """Whether this process has joined others."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the number of this process among all, 0 for the first or only one."""
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is the process that writes checkpoints and reports."""
    return rank() == 0


@contextmanager
def process_group(device: str = "auto", timeout_s: float = 1800) -> Iterator[torch.device]:
    """Join the processes that torchrun started, and leave them at the end.

    Args:
        device: "auto", "cpu" or "cuda". Where there are several processes, each takes the GPU of its LOCAL_RANK. A single
            process may also name a GPU, such as "cuda:1".
        timeout_s: Time after which waiting for the other processes fails.

    Yields:
        The device of this process. Without torchrun's variables it is that of `pick_device`, and no group is made.

    Raises:
        DataError: Some of torchrun's variables are missing, or there is no such device.
        RuntimeError: This process has joined a group already.
    """
    present = [name for name in _VARIABLES if name in os.environ]
    if "RANK" not in present and "WORLD_SIZE" not in present:  # other software sets MASTER_ADDR or LOCAL_RANK alone
        yield pick_device(device)
        return
    if missing := [name for name in _VARIABLES if name not in present]:
        raise DataError(
            f"the environment sets {', '.join(present)} but not {', '.join(missing)}; expected all of torchrun's variables "
            "or neither RANK nor WORLD_SIZE. Start the training with torchrun, or unset them."
        )
    if is_distributed():
        raise RuntimeError("this process has joined a process group already; expected none. Leave it first.")
    chosen = _local_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        distributed.init_process_group("nccl", timeout=timedelta(seconds=timeout_s), device_id=chosen)
    else:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield chosen
        # The first process serves the address of all the others, so none leaves before all are done. After
        # an error nothing waits, because the others may hang in an exchange that this process never joins.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def _local_device(device: str) -> torch.device:
    local_rank = int(os.environ["LOCAL_RANK"])
    if ":" in device and int(os.environ["WORLD_SIZE"]) > 1:
        raise DataError(f'several processes cannot share the device {device!r}; expected "auto", "cpu" or "cuda".')
    chosen = pick_device(device)
    if chosen.type != "cuda" or ":" in device:
        return chosen
    if local_rank >= torch.cuda.device_count():
        raise DataError(
            f"LOCAL_RANK is {local_rank}, but torch sees {torch.cuda.device_count()} GPUs here. "
            "Start at most one process for each GPU (torchrun --nproc-per-node)."
        )
    return torch.device("cuda", local_rank)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes; every process calls it with the same shape and dtype."""
    return _reduced(tensor, distributed.ReduceOp.SUM)


def max_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the largest value of each element over all processes."""
    return _reduced(tensor, distributed.ReduceOp.MAX)


def _reduced(tensor: torch.Tensor, operation: distributed.ReduceOp.RedOpType) -> torch.Tensor:
    out = tensor.detach().clone(memory_format=torch.contiguous_format)
    if is_distributed():
        distributed.all_reduce(out, op=operation)
    return out


def gather_from_ranks(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensor of every process, in the order of their ranks; shapes and dtypes are equal."""
    mine = tensor.detach().contiguous()
    if not is_distributed():
        return [mine]
    gathered = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(gathered, mine)
    return gathered


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes, in place.

    There is one exchange for each dtype instead of the buckets of DistributedDataParallel. Methods compute their loss outside
    `forward`, freeze parameters for a while and must keep the names in their state_dict, and that wrapper allows none of this.
    Unlike the wrapper, this function does not overlap the exchange, which is 100 MB a step for a ResNet50, with the backward
    pass.

    Args:
        parameters: Parameters in the same order on every process. Parameters without a gradient are left out; they must be the
            same on every process.
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat.div_(world_size())
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def copy_from_main(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one, in place."""
    if not is_distributed():
        return
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            sent = tensor.detach().clone(memory_format=torch.contiguous_format)
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def bytes_from_main(data: bytes | None, device: torch.device) -> bytes | None:
    """Give every process the bytes that the first one has.

    Args:
        data: What the first process sends, None included; ignored on the others.
        device: Device of the exchange, because NCCL moves only what is on a GPU.
    """
    if not is_distributed():
        return data
    is_main = is_main_process()
    size = torch.tensor([-1 if data is None or not is_main else len(data)], dtype=torch.int64, device=device)
    distributed.broadcast(size, 0)
    num_bytes = int(size)
    if num_bytes <= 0:
        return None if num_bytes < 0 else b""
    if is_main:
        assert data is not None
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    else:
        content = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    distributed.broadcast(content, 0)
    return data if is_main else content.cpu().numpy().tobytes()
