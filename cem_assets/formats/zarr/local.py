"""Zarr arrays on a local disk or in memory, read by tensorstore, which decodes outside of the interpreter.

The zarr library spends more time on coroutines and copies than on decoding, and holds the interpreter meanwhile. This is
only a quicker way to the same voxels: whatever tensorstore refuses (a chunk that is absent or damaged, a codec it does
not know) is left to the zarr library in `cem_assets.formats.zarr.stores`, which finds out what is missing and
words the error. Codecs were checked there before anything was opened.
"""

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.execution.local import default_num_workers

logger = logging.getLogger(__name__)

_DRIVERS = ("zarr3", "zarr")


def read_local(folder: str, spans: tuple[slice, ...], opening: str) -> NDArray[Any] | None:
    """Read a box of an array.

    Args:
        folder: The array's folder on this machine.
        spans: The box, one slice for each stored axis.
        opening: Tells this opening of the array from others: another one may have been of other files in its place.

    Returns:
        The values as stored; None where tensorstore cannot read all of them.
    """
    return _read(_opened_folder(folder, opening), spans, folder)


def read_from(objects: Mapping[str, bytes], spans: tuple[slice, ...]) -> NDArray[Any] | None:
    """Read a box of an array whose objects are in memory.

    Args:
        objects: By name in the array's folder: its metadata, and the chunks that the box touches.
        spans: The box, one slice for each stored axis.

    Returns:
        The values as stored; None where tensorstore cannot read all of them.
    """
    import tensorstore as ts

    context = _context()  # of this call alone, and with it what lies in memory
    memory = ts.KvStore.open({"driver": "memory"}, context=context).result()
    for name, data in objects.items():
        memory[name] = data
    return _read(_opened({"driver": "memory"}, context), spans, "an array in memory")


def _read(array: Any, spans: tuple[slice, ...], what: str) -> NDArray[Any] | None:
    if array is None:
        return None
    try:
        return np.asarray(array[spans].read().result())
    except (ValueError, KeyError, OSError) as error:
        logger.debug("%s: left to zarr: %s", what, error)
        return None


def _context() -> Any:
    import tensorstore as ts  # heavy, and most runs need none

    # No cache: every brick is read once.
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": default_num_workers()}})


@lru_cache(maxsize=32)
def _opened_folder(folder: str, opening: str) -> Any:
    del opening
    return _opened({"driver": "file", "path": f"{folder}/"}, _context())


def _opened(place: dict[str, str], context: Any) -> Any:
    import tensorstore as ts

    for driver in _DRIVERS:
        # Absent chunks are errors, because fill values would look like voxels.
        spec = {"driver": driver, "kvstore": place, "fill_missing_data_reads": False}
        try:
            return ts.open(spec, read=True, context=context).result()
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            logger.debug("%s is not opened as %s: %s", place, driver, error)
    return None
