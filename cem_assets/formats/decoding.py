"""The one place that decides what an error means that comes up while a file is decoded.

Libraries raise whatever a damaged file makes of them: a ValueError, a KeyError, a struct.error, an exception of their own.
`decoding` turns all of these into one `DataError` that names the file. What is not the file's fault passes unchanged: a lack of
memory, trouble with the disk or the store, and errors that our own code raises, which are bugs.
"""

import errno
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cem_assets.errors import DataError
from cem_assets.formats.arrays import shown

_OF_DAMAGED_BYTES = (EOFError, UnicodeDecodeError, zlib.error)
"""Errors that only the bytes of a file can cause, whoever calls the function that raises them."""
_OF_ABSURD_OFFSETS = (None, errno.EINVAL)
"""Codes of OSErrors that a damaged file causes: libraries raise OSErrors without a code for damage, and the system refuses
offsets below 0, which damaged headers lead to, as invalid arguments."""
_OUR_PACKAGE = __name__.partition(".")[0]
_CALLED_BY_ALL = {*sys.stdlib_module_names, "numpy"}
"""Packages that do as they are told: an error in one of them is the fault of whoever called it."""


@contextmanager
def decoding(path: Path | str, expected: str, remedy: str = "Copy it again from its source.") -> Iterator[None]:
    """Turn errors that the file causes into a DataError that names it, and let all others pass.

    Args:
        path: The file; its folders are not shown.
        expected: What the file should be, such as "TIFF".
        remedy: What people should do about it.

    Raises:
        DataError: The file is damaged, or of another kind than expected.
    """
    what = shown(path)
    try:
        yield
    except DataError as error:
        if what in str(error):
            raise
        raise DataError(f"{what} cannot be read as {expected}: {error}") from error
    except Exception as error:
        if not is_fault_of_file(error):
            raise
        detail = str(error).replace(str(path), what).strip() or "it ends or changes where it must not"
        raise DataError(f"{what} cannot be read as {expected}: {type(error).__name__}: {detail:.300}. {remedy}") from error


def is_fault_of_file(error: Exception) -> bool:
    """Tell whether an error that came up while a file was decoded is the file's fault.

    It is the file's fault where a decoding library raised it. An error that our own code raised is a bug, also where numpy or
    the standard library raised it because our code called it wrongly.
    """
    if isinstance(error, MemoryError):
        return False
    if isinstance(error, OSError) and error.errno not in _OF_ABSURD_OFFSETS:
        return False
    if isinstance(error, (DataError, OSError, *_OF_DAMAGED_BYTES)):
        return True
    if _package(type(error).__module__) not in (*_CALLED_BY_ALL, _OUR_PACKAGE):
        return True  # an exception class of a library
    return _raised_by(error) != _OUR_PACKAGE


def _raised_by(error: Exception) -> str:
    """Name the package whose code raised an error; numpy and the standard library count as their caller."""
    frames: list[FrameType] = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    packages = [_package(str(frame.f_globals.get("__name__", ""))) for frame in reversed(frames)]
    return next((package for package in packages if package not in _CALLED_BY_ALL), _OUR_PACKAGE)


def _package(module: str) -> str:
    return module.partition(".")[0]
