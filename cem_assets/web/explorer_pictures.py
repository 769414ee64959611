"""Pixels for the explorer: patches and crops of any stage, and slices of volumes, as small JPEG or exact PNG.

Rows of tables with pixels are found by object and row group, which are read once and kept in memory for a while. All other
patches are cut from the standardized volume that their name points to, one brick at a time. Every request is checked against
what the store holds before anything is read.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from cem_assets.cem.patch_grid import PATCH_SIDE_PX, PatchPlace, parse_patch_name
from cem_assets.cem.patches.pixels import DatasetPixels, open_pixels
from cem_assets.cem.volumes.bricks import group_by_brick
from cem_assets.cem.volumes.ome_zarr import StoredVolume, open_volume_array
from cem_assets.cytoimagenet.tables import encode_png
from cem_assets.errors import DataError, UnknownNameError
from cem_assets.imaging.boxes import Box
from cem_assets.store.assets import VOLUMES
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import find_manifest
from cem_assets.web.column_cache import TableContent
from cem_assets.web.explorer_tables import StoreTables

THUMBNAIL_PX = 224
MAX_SLICE_PX = 1120
"""Side of the largest window of a slice: five patches."""
MAX_CELL_BYTES = 64 << 20
"""Size of one encoded picture in a shard; crops of microscopy images may be large."""
_JPEG_QUALITY = 88
_ENCODED_BYTES = 96 << 20
_BRICK_BYTES = 192 << 20
_GROUP_BYTES = 96 << 20
_Value = TypeVar("_Value")


class _Kept(Generic[_Value]):
    """Keeps the most recently used values, as many as fit; a value is made once, even if several threads ask for it."""

    def __init__(self, max_bytes: int, size_of: Callable[[_Value], int]) -> None:
        self._max_bytes, self._size_of = max_bytes, size_of
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Return a value; it is made now if it is not kept."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._values[key] = value
                self._num_bytes += self._size_of(value)
                while self._num_bytes > self._max_bytes and len(self._values) > 1:
                    self._num_bytes -= self._size_of(self._values.popitem(last=False)[1])
        return value


@dataclass(frozen=True)
class SliceView:
    """A window of a slice of a volume, or of a 2D image.

    Attributes:
        pixels: uint8 (height, width).
        index: Slice along the axis.
        y0, x0: Corner of the window in the plane, px.
        plane: (height, width) of the whole plane.
        num_slices: Number of slices along the axis.
    """

    pixels: NDArray[np.uint8]
    index: int
    y0: int
    x0: int
    plane: tuple[int, int]
    num_slices: int


class Pictures:
    """Pictures of everything that can be explored; safe to use from several threads."""

    def __init__(self, catalogue: StoreTables) -> None:
        self._catalogue = catalogue
        self._bricks: _Kept[NDArray[np.uint8]] = _Kept(_BRICK_BYTES, lambda brick: brick.nbytes)
        self._groups: _Kept[dict[str, bytes]] = _Kept(_GROUP_BYTES, lambda group: sum(map(len, group.values())))
        self._encoded: _Kept[bytes] = _Kept(_ENCODED_BYTES, len)
        self._pixels: _Kept[DatasetPixels] = _Kept(32, lambda _: 1)

    def thumbnail(self, key: Hashable, load: Callable[[], NDArray[np.uint8]]) -> bytes:
        """Return a picture as JPEG with sides up to 224 px; `key` always means this picture."""
        return self._encoded.get((key, "thumbnail"), lambda: _small_jpeg(load()))

    def exact(self, key: Hashable, load: Callable[[], NDArray[np.uint8]]) -> bytes:
        """Return a picture as PNG, every pixel as it is."""
        return self._encoded.get((key, "exact"), lambda: encode_png(load()))

    def of_shard(self, table: TableContent, part: int, group: int, name: str, column: str) -> NDArray[np.uint8]:
        """Return a picture of a table with pixels.

        Args:
            part: Number of the object.
            group: Number of the row group in it.
            name: Value of `column` in its row.
            column: "name" of patches, "filename" of crops.

        Raises:
            UnknownNameError: The row group has no such row.
            DataError: The cell is damaged, or larger than a picture can be.
        """
        if not 0 <= part < len(table.objects):
            raise UnknownNameError(f"{table.folder} has no part {part}.")
        cells = self._groups.get((table.key, part, group), lambda: self._read_group(table, part, group, column))
        if name not in cells:
            raise UnknownNameError(f"{table.folder}, part {part}, row group {group} holds no {name!r}.")
        if len(cells[name]) > MAX_CELL_BYTES:
            raise DataError(f"the picture of {name} has {len(cells[name])} bytes; expected at most {MAX_CELL_BYTES}.")
        return decode_image(cells[name])

    def _read_group(self, table: TableContent, part: int, group: int, column: str) -> dict[str, bytes]:
        with self._catalogue.store.open(f"{table.folder}/{table.objects[part].name}") as handle:
            file = pq.ParquetFile(handle)
            if not 0 <= group < file.num_row_groups:
                raise UnknownNameError(f"part {part} of {table.folder} has no row group {group}.")
            rows = file.read_row_group(group, columns=[column, "image"]).to_pylist()
        return {row[column]: row["image"]["bytes"] for row in rows}

    def data_of(self, dataset: str, volumes_digest: str = "") -> DatasetPixels:
        """Open the standardized data of a dataset: the one with the digest, or the current one where the digest is empty.

        Raises:
            FileNotFoundError: There is none, or it was swept.
        """
        current = self._catalogue.volumes_manifest(dataset)
        wanted = volumes_digest or (current.digest if current else "")

        def open_it() -> DatasetPixels:
            manifest = current
            if manifest is None or manifest.digest != wanted:
                manifest = find_manifest(self._catalogue.store, VOLUMES, dataset, wanted)
            return open_pixels(self._catalogue.store, dataset, manifest)

        return self._pixels.get((dataset, wanted), open_it)

    def of_volume(self, pixels: DatasetPixels, name: str) -> NDArray[np.uint8]:
        """Cut a patch from the standardized data, by its name alone.

        Raises:
            DataError: The name is not the name of a patch, or the patch lies outside the volume.
            UnknownNameError: There is no such volume or image.
        """
        place = parse_patch_name(name)
        if pixels.images is not None:
            image = pixels.images.read(place.volume)
            check_inside(place, (1, *image.shape), is_image=True)
            return image[place.y0 : place.y1, place.x0 : place.x1].copy()
        volume = pixels.volume(place.volume)
        check_inside(place, volume.shape, is_image=False)
        row = np.array([[place.axis, place.index, place.y0, place.y1, place.x0, place.x1]], np.int32)
        ((box, _),) = group_by_brick(volume.shape, volume.planes, row)
        brick = self._brick(volume, box)
        local = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(place.box(), box, strict=True))
        return np.squeeze(brick[local], axis=place.axis).copy()

    def _brick(self, volume: StoredVolume, box: Box) -> NDArray[np.uint8]:
        place = (volume.folder, *(span.start for span in box))
        return self._bricks.get(place, lambda: volume.read(box))

    def slice_of(self, pixels: DatasetPixels, volume: str, axis: int, index: int, centre: tuple[int, int]) -> SliceView:
        """Cut a window of at most 1,120 px a side out of a slice, as near to a centre as the plane allows.

        Args:
            volume: Name of the volume or image.
            axis: 0 (xy), 1 (xz), 2 (yz); -1 for a 2D image.
            index: Slice along the axis.
            centre: (row, column) in the plane, px.

        Raises:
            UnknownNameError: There is no such volume or image.
            DataError: The slice lies outside the volume.
        """
        if pixels.images is not None:
            image = pixels.images.read(volume)
            y, x = _window(image.shape[0], centre[0]), _window(image.shape[1], centre[1])
            return SliceView(image[y, x].copy(), 0, y.start, x.start, (image.shape[0], image.shape[1]), 1)
        stored = pixels.volume(volume)
        if axis not in (0, 1, 2) or not 0 <= index < stored.shape[axis]:
            raise DataError(
                f"volume {volume!r} has the shape {stored.shape} (z, y, x); there is no slice {index} of axis {axis}."
            )
        height, width = (side for number, side in enumerate(stored.shape) if number != axis)
        y, x = _window(height, centre[0]), _window(width, centre[1])
        spans: list[slice | int] = [y, x]
        spans.insert(axis, index)
        found = np.asarray(open_volume_array(stored)[tuple(spans)])
        return SliceView(found, index, y.start, x.start, (height, width), stored.shape[axis])


def check_inside(place: PatchPlace, shape: tuple[int, ...], is_image: bool) -> None:
    """Refuse a place that no patch of a volume (z, y, x), or of an image (1, height, width), can have.

    Raises:
        DataError: The place is empty, larger than a patch, or extends beyond the volume.
    """
    sides = (place.y1 - place.y0, place.x1 - place.x0)
    is_inside = all(0 <= span.start < span.stop <= side for span, side in zip(place.box(), shape, strict=True))
    if (place.axis < 0) != is_image or not is_inside or max(sides) > PATCH_SIDE_PX:
        raise DataError(f"no patch of {place.volume!r} lies at {place}; the shape is {tuple(shape)} (z, y, x).")


def _window(side: int, centre: int) -> slice:
    length = min(side, MAX_SLICE_PX)
    start = min(max(centre - length // 2, 0), side - length)
    return slice(start, start + length)


def _small_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return jpeg(image)


def jpeg(image: Image.Image) -> bytes:
    """Encode a gray image as JPEG."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=_JPEG_QUALITY)
    return sink.getvalue()
