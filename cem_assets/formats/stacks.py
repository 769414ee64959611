"""Volumes that come as a folder of 2D slices, in natural order of their names."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.catalog.description import DatasetDescription
from cem_assets.errors import DataError
from cem_assets.formats import open_file
from cem_assets.formats.arrays import Opened, check_whole_in_memory, shown, spool

_DECODE_THREADS = 2


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders numbers by value, slice2 before slice10, and equal numbers by their text."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts]


def read_plane(path: Path, scratch: Path, description: DatasetDescription) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Decode one local file of any format as a 2D image.

    Args:
        scratch: Folder for the decoded voxels.

    Returns:
        (y, x) array in native byte order, and notes on what was reduced.

    Raises:
        DataError: The file is damaged, holds a stack, or does not hold every pixel.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        opened = open_file(path, Path(folder), description)
        source = opened.source
        if source.shape[0] != 1:
            raise DataError(
                f'{shown(path)} is a stack of {source.shape[0]} slices; expected one 2D image. Use kind = "volume", or '
                "save its slices as single files."
            )
        check_whole_in_memory(f"image {shown(path)}", source.shape[1] * source.shape[2] * source.dtype.itemsize)
        box = (slice(0, 1), slice(0, source.shape[1]), slice(0, source.shape[2]))
        plane = np.asarray(source.read(box)[0])
        if source.missing(box) is not None:
            raise DataError(f"{shown(path)} lacks pixels (chunks that were never written). Copy it again from its source.")
    return plane.astype(plane.dtype.newbyteorder("="), copy=False), opened.notes


def open_stack(paths: Sequence[Path], scratch: Path, description: DatasetDescription, name: str) -> Opened:
    """Combine 2D slices into one volume.

    Args:
        paths: Local files, in order of z.
        scratch: Folder for the volume.
        name: Name of the volume, used in error messages.

    Raises:
        DataError: A slice is damaged, or has another size or number type than the first.
    """
    told = f"{len(paths)} slices in natural order of their names"
    if len(paths) == 1:  # one page may be larger than memory, so it is read by boxes; several slices are read whole
        opened = open_file(paths[0], scratch, description)
        if opened.source.shape[0] == 1:
            return Opened(opened.source, False, None, (told, *opened.notes))
    first, notes = read_plane(paths[0], scratch, description)

    def planes() -> Iterator[NDArray[Any]]:
        yield first
        with ThreadPoolExecutor(_DECODE_THREADS) as pool:
            waiting: list[Future[tuple[NDArray[Any], tuple[str, ...]]]] = []
            ahead = iter(paths[1:])
            for path in paths[1:]:
                while len(waiting) < 2 * _DECODE_THREADS and (upcoming := next(ahead, None)) is not None:
                    waiting.append(pool.submit(read_plane, upcoming, scratch, description))
                plane, _ = waiting.pop(0).result()
                if plane.shape != first.shape or plane.dtype != first.dtype:
                    raise DataError(
                        f"volume {name!r}: slice {shown(path)} is {plane.dtype} {plane.shape}; expected "
                        f"{first.dtype} {first.shape} like {shown(paths[0])}. Remove or repair that slice."
                    )
                yield plane

    raw = spool(planes(), (len(paths), *first.shape), first.dtype, scratch, f"volume {name!r}")
    return Opened(raw, False, None, (told, *notes))
