"""Zarr arrays on a local disk, read by tensorstore, which decodes outside of the interpreter.

The zarr library spends more time on coroutines and copies than on decoding, and holds the interpreter meanwhile. This is
only a quicker way to the same voxels: whatever tensorstore refuses (a chunk that is absent or damaged, a codec it does
not know) is left to the zarr library in `cem_assets.storage.formats.zarr_stores`, which finds out what is missing and
words the error. Codecs were checked there before anything was opened.
"""

import logging
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.engine import default_num_workers

logger = logging.getLogger(__name__)

_DRIVERS = ("zarr3", "zarr")


def read_local(folder: str, spans: tuple[slice, ...]) -> NDArray[Any] | None:
    """Read a box of an array.

    Args:
        folder: The array's folder on this machine.
        spans: The box, one slice for each stored axis.

    Returns:
        The values as stored; None where tensorstore cannot read all of them.
    """
    array = _opened(folder)
    if array is None:
        return None
    try:
        return np.asarray(array[spans].read().result())
    except (ValueError, KeyError, OSError) as error:
        logger.debug("%s: left to zarr: %s", folder, error)
        return None


@lru_cache(maxsize=32)
def _opened(folder: str) -> Any:
    import tensorstore as ts  # heavy, and most runs need none

    # No cache: every brick is read once. Absent chunks are errors, because fill values would look like voxels.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": default_num_workers()}})
    for driver in _DRIVERS:
        spec = {
            "driver": driver,
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "fill_missing_data_reads": False,
        }
        try:
            return ts.open(spec, read=True, context=context).result()
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            logger.debug("%s is not opened as %s: %s", folder, driver, error)
    return None
