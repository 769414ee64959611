"""Reads Zarr arrays on a local disk or in memory with tensorstore, which decodes without the GIL.

The zarr library spends more time on coroutines and copies than on decoding, and holds the GIL meanwhile. This module is only a
faster way to the same voxels. Whatever tensorstore refuses (a chunk that is absent or damaged, a codec that it does not know)
is left to the zarr library in `cem_assets.formats.zarr.stores`, which finds out what is missing and reports it. That module
has checked the codecs before an array comes here.
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
        opening: A text of its own for each time the array is opened, because its files may have been replaced since another
            time.

    Returns:
        The values as stored; None where tensorstore cannot read all of them.
    """
    return _read(_opened_folder(folder, opening), spans, folder)


def read_from(objects: Mapping[str, bytes], spans: tuple[slice, ...]) -> NDArray[Any] | None:
    """Read a box of an array whose objects are in memory.

    Args:
        objects: The array's metadata and the chunks that the box touches, by their names in the array's folder.
        spans: The box, one slice for each stored axis.

    Returns:
        The values as stored; None where tensorstore cannot read all of them.
    """
    import tensorstore as ts

    context = _context()  # one for each call, because the memory below belongs to the context
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
        logger.debug("tensorstore cannot read %s, so the zarr library will: %s", what, error)
        return None


def _context() -> Any:
    import tensorstore as ts  # takes long to import, and most runs do not need it

    # Nothing is cached, because every box is read once.
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": default_num_workers()}})


@lru_cache(maxsize=32)
def _opened_folder(folder: str, opening: str) -> Any:
    del opening
    return _opened({"driver": "file", "path": f"{folder}/"}, _context())


def _opened(place: dict[str, str], context: Any) -> Any:
    import tensorstore as ts

    for driver in _DRIVERS:
        # Absent chunks must be errors, because fill values would look like voxels.
        spec = {"driver": driver, "kvstore": place, "fill_missing_data_reads": False}
        try:
            return ts.open(spec, read=True, context=context).result()
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            logger.debug("%s is not opened as %s: %s", place, driver, error)
    return None
