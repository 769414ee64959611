"""HDF5 files: one named array, which h5py reads by boxes.

Links to other files, external storage and virtual datasets are refused, because an uploaded file must not make the platform
read any other file. Chunks that were never written are reported as missing; h5py would give zeros for them.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.formats.arrays import Opened, Shape, check_whole_in_memory, shown
from cem_assets.formats.decoding import decoding
from cem_assets.imaging.boxes import Box

_MAX_LISTED = 20
"""Arrays that an error names at most."""
_REPACK = "Repack the file with gzip or without compression."


@dataclass(frozen=True)
class Hdf5Array:
    """An array of an HDF5 file, seen as three axes.

    Attributes:
        name: Path of the array inside the file.
        full_shape: Sizes as stored.
        axes: Which stored axes are z, y and x; -1 for the z axis that a 2D array lacks.
        fixed: (axis, index) of every other stored axis.
        dtype_name: Number type in native byte order.
    """

    path: Path
    name: str
    full_shape: tuple[int, ...]
    axes: tuple[int, int, int]
    fixed: tuple[tuple[int, int], ...]
    dtype_name: str

    @property
    def shape(self) -> Shape:
        z, y, x = (1 if axis < 0 else self.full_shape[axis] for axis in self.axes)
        return (z, y, x)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype_name)

    def _stored_box(self, box: Box) -> tuple[slice, ...]:
        spans = [slice(0, 1)] * len(self.full_shape)
        for axis, index in self.fixed:
            spans[axis] = slice(index, index + 1)
        for axis, span in zip(self.axes, box, strict=True):
            if axis >= 0:
                spans[axis] = span
        return tuple(spans)

    def read(self, box: Box) -> NDArray[Any]:
        shape = [span.stop - span.start for span in box]
        remedy = f"Array {self.name!r} is damaged, or packed with a filter that h5py lacks. {_REPACK}"
        with decoding(self.path, "HDF5", remedy):
            values = _dataset(self.path, self.name)[self._stored_box(box)]
        return np.asarray(values).astype(self.dtype, copy=False).reshape(shape)

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        with decoding(self.path, "HDF5", _REPACK):
            written = _written_chunks(self.path, self.name)
            chunks = _dataset(self.path, self.name).chunks
        if written is None:
            return None
        spans = self._stored_box(box)
        mask = np.zeros([span.stop - span.start for span in spans], np.bool_)
        ranges = [range(s.start // c, -(-s.stop // c)) for s, c in zip(spans, chunks, strict=True)]
        for index in np.ndindex(*[len(r) for r in ranges]):
            chunk = tuple(r[i] for r, i in zip(ranges, index, strict=True))
            if chunk not in written:
                where = tuple(
                    slice(max(n * c - s.start, 0), max((n + 1) * c - s.start, 0))
                    for n, c, s in zip(chunk, chunks, spans, strict=True)
                )
                mask[where] = True
        if not mask.any():
            return None
        return mask.reshape([span.stop - span.start for span in box])


@lru_cache(maxsize=8)
def _dataset(path: Path, name: str) -> Any:
    return h5py.File(path, "r")[name]


@lru_cache(maxsize=8)
def _written_chunks(path: Path, name: str) -> frozenset[tuple[int, ...]] | None:
    """Return the chunks that were written, or None where all of them were."""
    dataset = _dataset(path, name)
    if dataset.chunks is None:
        return None
    expected = int(np.prod([-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]))
    if dataset.id.get_num_chunks() >= expected:
        return None
    written: set[tuple[int, ...]] = set()
    dataset.id.chunk_iter(
        lambda info: written.add(tuple(o // c for o, c in zip(info.chunk_offset, dataset.chunks, strict=True)))
    )
    return frozenset(written)


def open_hdf5(path: Path, name: str | None, channel: int | None = None) -> Opened:
    """Open one array of an HDF5 file.

    Args:
        name: Path of the array inside the file; None takes the only array that has two axes or more.
        channel: Index on the first of four axes, for arrays of several channels.

    Returns:
        The opened array, without leading axes of length 1.

    Raises:
        DataError: The file is damaged, has no such array, or has several and none was named; or the array lies in other files
            or cannot be one volume.
    """
    what = shown(path)
    with h5py.File(path, "r") as file:
        arrays = _find_arrays(file)
        chosen = name.strip("/") if name is not None else _only(arrays, what)
        if chosen not in arrays:
            raise DataError(f"{what} has no array {name!r}; it has: {_listing(arrays)}. Set hdf5_dataset in dataset.toml.")
        dataset = file[chosen]
        if dataset.external or dataset.is_virtual:
            raise DataError(f"{what}: array {chosen!r} keeps its voxels in other files. Repack it into one file.")
        shape, dtype = tuple(int(size) for size in dataset.shape), dataset.dtype
        if dataset.chunks is not None:
            num_bytes = int(np.prod(dataset.chunks, dtype=object)) * dtype.itemsize
            check_whole_in_memory(f"{what}: a chunk of array {chosen!r}", num_bytes)
        if dataset.id.get_storage_size() == 0:
            raise DataError(f"{what}: array {chosen!r} was never written. Copy the file again from its source.")
    axes, fixed = place_axes(shape, channel, f"{what}: array {chosen!r}")
    name_of_type = dtype.newbyteorder("=").name if dtype.kind in "iufb" else str(dtype)
    if dtype.kind not in "iuf":
        raise DataError(f"{what}: array {chosen!r} holds {name_of_type}; expected integers or floats. Convert it.")
    array = Hdf5Array(path, chosen, shape, axes, fixed, name_of_type)
    return Opened(array, array.axes[0] < 0)


def place_axes(
    shape: tuple[int, ...], channel: int | None, what: str
) -> tuple[tuple[int, int, int], tuple[tuple[int, int], ...]]:
    """Say which stored axes are z, y, x, and which index to take on the others.

    Args:
        shape: Sizes as stored. The last three are z, y, x; those before them are time and channel.
        channel: Index to take on the one axis before z that is longer than 1.
        what: The array, for errors.

    Returns:
        The axes of z, y, x, with -1 where there is no z; and (axis, index) of each other axis.

    Raises:
        DataError: There are fewer than two axes or no voxels, or it is not clear what to take on the axes before z.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise DataError(f"{what} has sizes {shape}; expected at least (y, x), none of them 0.")
    if len(shape) == 2:
        return (-1, 0, 1), ()
    leading = range(len(shape) - 3)
    long = [axis for axis in leading if shape[axis] > 1]
    if long and (channel is None or len(long) > 1 or channel >= shape[long[0]]):
        raise DataError(
            f"{what} has sizes {shape}; expected (z, y, x). Give channel = N in dataset.toml (found {channel}) to take one "
            "of several channels; save one time point."
        )
    last = len(shape)
    fixed = tuple((axis, channel if axis in long and channel is not None else 0) for axis in leading)
    return (last - 3, last - 2, last - 1), fixed


def _find_arrays(file: Any) -> dict[str, tuple[int, ...]]:
    """List arrays of two axes or more. Only hard links are followed, because soft and external links may lead elsewhere."""
    found: dict[str, tuple[int, ...]] = {}
    waiting, seen = [("", file)], {h5py.h5o.get_info(file["/"].id).addr}
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            path = f"{prefix}/{name}".strip("/")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:  # hard links may form cycles
                continue
            seen.add(address)
            if isinstance(item, h5py.Dataset) and len(item.shape or ()) >= 2:
                found[path] = item.shape
            elif isinstance(item, h5py.Group):
                waiting.append((path, item))
    return found


def _only(arrays: dict[str, tuple[int, ...]], what: str) -> str:
    if len(arrays) == 1:
        return next(iter(arrays))
    if not arrays:
        raise DataError(f"{what} holds no array of two axes or more. Check that it is the right file.")
    raise DataError(
        f"{what} holds {len(arrays)} arrays: {_listing(arrays)}. Set hdf5_dataset in dataset.toml to the one to take."
    )


def _listing(arrays: dict[str, tuple[int, ...]]) -> str:
    items = [f"{name} {shape}" for name, shape in sorted(arrays.items())[:_MAX_LISTED]]
    return ", ".join(items) + (", ..." if len(arrays) > _MAX_LISTED else "")
