"""Whose fault an error is, because that decides what happens next.

| fault | raised as | what the platform does |
|---|---|---|
| the data, a description, a setting or a request | `DataError` | refuses it in words and keeps the reason until it changes |
| the store or the network | `StoreError`, and most other `OSError` | tries again, with growing delays |
| the machine: memory, disk, a killed worker | `MachineError`, `MemoryError`, a full disk | tries again with fewer workers |
| ours | anything else | fails loudly, and is tried again after an upgrade |

An error that a library raises while it decodes a file says nothing about whose fault it is. Whoever calls the library with a
file that somebody gave us turns its errors into a `DataError` that names the file.
"""

import errno
import sys
from enum import StrEnum


class DataError(ValueError):
    """What somebody gave us cannot be used: a file, a table, a description, a setting, a parameter.

    The text names the thing, what was expected, what was found and the remedy, and gathers all problems at once.
    """


class UnknownNameError(DataError, KeyError):
    """A name that somebody gave us is not among those that exist; the text lists some that do."""

    def __str__(self) -> str:
        return str(self.args[0])  # a plain KeyError would show its text in quotes


class StoreError(OSError):
    """The store or the network did not do what it promises, and may do so later."""


class MachineError(RuntimeError):
    """This machine, or a node of a cluster, lacks something that the work needs, such as a version, a device or a worker."""


class OutOfMemoryError(MachineError):
    """Memory ran out; the same work with fewer processes may succeed."""


class RunFailedError(Exception):
    """A Dagster run that was started here failed. The text has its steps' messages; the run's tag says whose fault it was."""


class Fault(StrEnum):
    """Whose fault an error is."""

    data = "data"
    store = "store"
    machine = "machine"
    bug = "bug"


_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
"""Errors of a store that are the same at every attempt, until somebody acts."""
_STORE_LIBRARIES = ("botocore", "obstore", "aiohttp", "requests", "urllib3")
_OUT_OF_MEMORY = ("DefaultCPUAllocator: ", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of the texts of RuntimeErrors that torch raises for a lack of memory outside of its own GPU allocator."""


def fault_of(error: BaseException) -> Fault:
    """Tell whose fault an error is.

    Args:
        error: Only the error itself counts, not the one it was raised from.
    """
    if isinstance(error, DataError):
        return Fault.data
    if isinstance(error, MachineError) or needs_fewer_workers(error):
        return Fault.machine
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _STORE_LIBRARIES:
        return Fault.store
    return Fault.bug


def may_pass(error: BaseException) -> bool:
    """Tell whether the same work may succeed a moment later without anybody doing anything.

    Trouble with the store or the network may pass, and so may a lack of memory. A refused key, a missing object and a full disk
    stay as they are until somebody acts.
    """
    if fault_of(error) == Fault.store:
        return not isinstance(error, _PERMANENT)
    return _is_lack_of_memory(error)


def needs_fewer_workers(error: BaseException) -> bool:
    """Tell whether memory or disk ran out, of which fewer worker processes need less."""
    return _is_lack_of_memory(error) or (isinstance(error, OSError) and error.errno in _DISK_ERRNOS)


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torch = sys.modules.get("torch")  # an error of torch's exists only where torch was imported
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)
