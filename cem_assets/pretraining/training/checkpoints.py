"""Training state as bytes: where a run keeps it, and how it is written and read without running foreign code.

`CheckpointStore` is the contract of what keeps the state; `cem_assets.pretraining.training.runs` has the one of the store.
The loop in `cem_assets.pretraining.training.loop` decides when a checkpoint is made. Weights for other people are written by
`cem_assets.pretraining.weights.export`.
"""

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from cem_assets.errors import DataError
from cem_assets.pretraining import distributed
from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.methods.params import MAY_CHANGE

MAX_BYTES = 16 << 30
"""Largest checkpoint that is read: a ResNet50 with its queue and optimiser takes about 0.4 GiB."""
FORMAT = 1
"""Version of the format of checkpoints; files with another number are refused."""
CONTENTS = (
    *("format", "method", "arch", "num_samples", "num_classes", "params"),
    *("epoch", "batch", "step", "seconds", "sums", "counts", "results", "state", "optimizer"),
)
"""What every checkpoint holds: whose it is, where the run is (epoch and its batches done, from 0), sums behind the
means of the epoch so far (float64, a row for each process), the results so far, and the state."""
_MAX_PICKLE_BYTES = 64 << 20
"""Largest description of the tensors in a file; that of a ResNet50 with its optimiser takes about 0.1 MiB."""
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch.

    Attributes:
        epoch: 1 for the first.
        step: Optimiser steps since the start of the run.
        loss: Mean over the epoch's batches and all processes.
        learning_rate: Learning rate of the last step.
        images_per_second: Images per second of all processes together, checkpoints within the epoch included.
        seconds: Time the epoch took, without pauses between a stop and its resumption.
        gpu_memory_bytes: Largest amount in use on this process's GPU; 0 without one.
        indicators: Means of the method's own measures, and what `evaluate` returned.
    """

    epoch: int
    step: int
    loss: float
    learning_rate: float
    images_per_second: float
    seconds: float
    gpu_memory_bytes: int
    indicators: dict[str, float]


@dataclass
class Progress:
    """The position of a run.

    Attributes:
        epoch: Number of finished epochs.
        batch: Number of finished batches of the next epoch.
        step: Number of optimiser steps made.
        seconds: Time spent on the unfinished epoch by earlier calls.
        sums, counts: What the unfinished epoch's batches gave on this process, by name; float64 (), on the device.
        results: Results of the epochs finished.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    results: list[EpochResult] = field(default_factory=list)

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add the result of one batch, without waiting for the device."""
        for name, value in values.items():
            added = value.detach().double()
            self.sums[name] = self.sums[name] + added if name in self.sums else added
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return means over batches and processes; every process has the same names."""
        total = distributed.sum_over_ranks(self.stacked()).tolist()
        size = distributed.world_size()
        return {name: value / (self.counts[name] * size) for name, value in zip(sorted(self.sums), total, strict=True)}

    def stacked(self) -> torch.Tensor:
        """Return the sums in the order of their names, float64 (k,)."""
        return torch.stack([self.sums[name] for name in sorted(self.sums)])


class CheckpointStore(Protocol):
    """Keeps the newest state of one run.

    `save` returns when the bytes are stored. After a kill at any moment, the store holds either the old or the new state as a
    whole. Only the first process of a run calls it.
    """

    def save(self, data: bytes) -> None:
        """Replace the state."""
        ...

    def load(self) -> bytes | None:
        """Return the newest state; None where nothing was saved yet."""
        ...


def encode_state(state: dict[str, Any]) -> bytes:
    """Write a tree of tensors and plain values with `torch.save`.

    Args:
        state: Dicts, lists and tuples of tensors, numbers, texts, bools and None; tensors may be on any device.

    Returns:
        A file that `torch.load(..., weights_only=True)` reads.

    Raises:
        TypeError: Something else is in it; its place is named.
    """
    sink = io.BytesIO()
    torch.save(_plain(state, "state"), sink)
    return sink.getvalue()


def _plain(value: Any, where: str) -> Any:
    """Copy a tree with its tensors on the CPU, each with a storage of its own size."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where} has a key of type {type(key).__name__}; expected str or int.")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{number}]") for number, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; expected tensors, numbers, texts and containers of them.")


def decode_state(data: bytes, what: str, max_bytes: int = MAX_BYTES) -> Any:
    """Read what `torch.save` wrote, tensors and plain values alone.

    Args:
        data: The file: the zip form of torch 1.6 and later, or the older one.
        what: Name of the file for messages.
        max_bytes: Largest accepted size.

    Returns:
        The tree, tensors on the CPU.

    Raises:
        DataError: The file is too large, damaged, would unpack to more than its size, or holds objects whose
            loading runs code.
    """
    if len(data) > max_bytes:
        raise DataError(f"{what} has {len(data):,} bytes; expected at most {max_bytes:,}. Save the state_dict alone.")
    try:
        if data[:4] == b"PK\x03\x04":
            _check_archive(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise DataError(_reason(what, error)) from error


def _check_archive(data: bytes) -> None:
    """Refuse what a reader of tensors need not meet: packed records, which can grow without bound, and damage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise DataError("it has compressed records; torch.save writes none")
        # Records that overlap would be read more than once.
        if sum(record.file_size for record in records) > len(data):
            raise DataError("its records are larger than the file")
        described = max((record.file_size for record in records if record.filename.endswith(".pkl")), default=0)
        if described > _MAX_PICKLE_BYTES:
            raise DataError(f"the description of its tensors takes {described:,} bytes; expected under {_MAX_PICKLE_BYTES:,}")
        if (damaged := archive.testzip()) is not None:
            raise DataError(f"the checksum of its record {damaged!r} is wrong")


def _reason(what: str, error: BaseException) -> str:
    text = str(error)
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"{what} holds Python objects ({named.group(1)}), and loading those would run code: refused. "
            "Save tensors, numbers and texts alone, such as a state_dict."
        )
    if isinstance(error, pickle.UnpicklingError):  # the text of torch would also recommend to load the file anyway
        detail = re.search(r"WeightsUnpickler error:\s*(.+)", text)
        text = "it is a pickle of other things than tensors" + (f" ({detail.group(1)[:100]})" if detail else "")
    elif not isinstance(error, ValueError | RuntimeError):
        text = f"{type(error).__name__} {text}"
    first = text.strip().partition("\n")[0][:200]
    return f"{what} cannot be read as a file of torch.save: {first}. Copy it again from its source."


def restore_method(method: Method, checkpoint: bytes | Mapping[str, Any]) -> tuple[int, int]:
    """Load a method's state from a checkpoint, for export or evaluation.

    Args:
        method: Built with the same parameters; `MAY_CHANGE` are allowed to differ.
        checkpoint: The bytes that a `CheckpointStore` holds.

    Returns:
        Epochs finished and steps made.

    Raises:
        DataError: It is damaged or of another run; what differs is named.
    """
    content = read_checkpoint(checkpoint) if isinstance(checkpoint, bytes) else checkpoint
    mine = identity(method)
    problems = [
        f"{name} is {content[name]!r}, expected {value!r}"
        for name, value in mine.items()
        if name != "params" and content[name] != value
    ]
    theirs = content["params"]
    problems += [
        f"{name} is {theirs.get(name)!r}, expected {value!r}"
        for name, value in mine["params"].items()
        if name not in MAY_CHANGE and theirs.get(name) != value
    ]
    if not problems:
        try:
            method.load_state_dict(content["state"])
        except (RuntimeError, ValueError) as error:
            problems.append(str(error).replace("\n", " ")[:500])
    if problems:
        raise DataError(
            f"the checkpoint is of another run: {'; '.join(problems)}. Resume with that run's parameters, or start a new run."
        )
    return int(content["epoch"]), int(content["step"])


def finished_epochs(checkpoint: bytes) -> tuple[EpochResult, ...]:
    """Return the results of all epochs a checkpoint's run has finished, those of earlier calls of `train` included."""
    return tuple(results_of(read_checkpoint(checkpoint)))


def read_checkpoint(data: bytes) -> dict[str, Any]:
    """Decode the checkpoint of a run.

    Raises:
        DataError: It is damaged, of another format or incomplete.
    """
    content = decode_state(data, "the checkpoint")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"the checkpoint has format {found!r}; expected {FORMAT}. Start a new run, or use the older version.")
    if missing := [name for name in CONTENTS if name not in content]:
        raise DataError(f"the checkpoint has no {', '.join(missing)}; expected {', '.join(CONTENTS)}. Start a new run.")
    return content


def results_of(content: Mapping[str, Any]) -> list[EpochResult]:
    """Return the results of the epochs that a decoded checkpoint's run has finished."""
    return [EpochResult(**result) for result in content["results"]]


def identity(method: Method) -> dict[str, Any]:
    """Describe what must not change between a checkpoint and its resumption, in plain values."""
    params = method.params
    return {
        "method": params.method,
        "arch": method.arch,
        "num_samples": method.num_samples,
        "num_classes": method.num_classes,
        "params": params.model_dump(mode="json"),
    }
