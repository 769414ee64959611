"""Hashes of all patches of a volume, stored beside its voxels, so that cutting the volume does not read the voxels again.

Voxels are hashed while `cem/volumes` writes them, because they are in memory anyway. `cem/raw_patches` uses these hashes
if they were made by the same code and the same version of Pillow; otherwise it reads and hashes the bricks
(`cem_assets.cem.patches.pixels`). The resulting table is the same, byte for byte. There is one row for each patch of spacing
1, in the order of `brick_boxes` and `patch_places`. The places are computed from that order and are not stored.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.cem.volumes.bricks import PatchRows, brick_boxes, count_brick_patches, hash_brick, patch_places
from cem_assets.cem.volumes.ome_zarr import VolumeRecord
from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box
from cem_assets.store.assets import CODE_VERSIONS, RAW
from cem_assets.store.commits import ContentFolder
from cem_assets.store.manifests import Manifest, ManifestObject
from cem_assets.store.parquet import parquet_bytes, part_name, schema_of
from cem_assets.store.store import Store

FOLDER = "_patch_hashes"
HASHES_SCHEMA = schema_of(("dhash", pa.uint64()), ("num_missing", pa.int32()))
ROWS_PER_PART = 1 << 20
"""Number of hashes in a file, which then holds 8 MB of them."""


def made_with() -> dict[str, str]:
    """Return what decides a hash besides the voxels. It is stored in the details of `cem/volumes`, and compared by readers."""
    return {"code_version": CODE_VERSIONS[RAW], "pillow": PIL.__version__}


@dataclass(frozen=True)
class _InMemory:
    """A `Readable` of one brick that is in memory already."""

    name: str
    shape: tuple[int, int, int]
    planes: tuple[int, ...]
    voxels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None

    def read(self, box: Box) -> NDArray[np.uint8]:
        del box
        return self.voxels

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        del box
        return self.mask


def hash_voxels(
    shape: tuple[int, int, int],
    planes: tuple[int, ...],
    box: Box,
    voxels: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
) -> PatchRows:
    """Hash the patches of one brick that is in memory.

    Args:
        shape: Size of the whole volume (z, y, x).
        planes: The axes that it is cut along.
        box: One of `brick_boxes`.
        voxels: uint8 (z, y, x), the standardized voxels of that box.
        mask: bool (z, y, x), which of them the source never had; None if it had all of them.

    Returns:
        Rows in order of axis, slice, row and column.
    """
    return hash_brick(_InMemory("", shape, planes, voxels, mask), box)


@dataclass
class HashParts:
    """Writes the hashes of one volume, brick after brick, in files of about a million rows.

    Attributes:
        content: The content folder of the partition.
        folder: The volume's folder inside it.
        objects: The objects that were written. They are added to the commit when the volume is known to be sound.
    """

    content: ContentFolder
    folder: str
    objects: list[ManifestObject] = field(default_factory=list)
    _held: list[PatchRows] = field(default_factory=list)
    _count: int = 0

    def add(self, rows: PatchRows) -> None:
        """Add the rows of the next brick."""
        self._held.append(rows)
        self._count += len(rows)
        while self._count >= ROWS_PER_PART:
            self._write(ROWS_PER_PART)

    def finish(self) -> list[ManifestObject]:
        """Write the rows that are still in memory, and return all objects that were written."""
        if self._count:
            self._write(self._count)
        return self.objects

    def _write(self, num_rows: int) -> None:
        dhash = np.concatenate([rows.dhash for rows in self._held])
        num_missing = np.concatenate([rows.num_missing for rows in self._held])
        table = pa.table([dhash[:num_rows], num_missing[:num_rows]], schema=HASHES_SCHEMA)
        name = f"{FOLDER}/{self.folder}/{part_name(len(self.objects))}"
        self.objects.append(self.content.write(name, parquet_bytes([table], HASHES_SCHEMA)))
        rest = PatchRows(np.empty((0, 6), np.int32), dhash[num_rows:], num_missing[num_rows:])
        self._held, self._count = [rest], len(rest)


def has_hashes(manifest: Manifest) -> bool:
    """Tell whether the hashes of a manifest of `cem/volumes` are those that this code and this version of Pillow compute."""
    return manifest.details.get("patch_hashes") == made_with()


def stored_rows(
    store: Store, manifest: Manifest, records: list[VolumeRecord], spacing: int, bricks: Iterable[tuple[int, Box]]
) -> Iterator[PatchRows]:
    """Yield the rows that `hash_brick` would compute, without reading any voxels.

    Args:
        manifest: A manifest of `cem/volumes` for which `has_hashes` is true.
        records: Its volumes, in order.
        spacing: One slice is cut out of every `spacing` slices.
        bricks: (number of the volume, box), in order. They need not be all bricks.

    Yields:
        The rows of one brick after another.

    Raises:
        FileNotFoundError: The store lost a file.
        DataError: A file differs from the one that the manifest lists.
    """
    first_row: dict[tuple[int, int, int], int] = {}
    opened: int | None = None
    for number, box in bricks:
        record = records[number]
        if opened != number:
            opened, first_row, parts = number, _first_rows(record), _Parts(store, manifest, record.folder)
        start = first_row[box[0].start, box[1].start, box[2].start]
        place = patch_places(record.shape, record.planes, box)
        dhash, num_missing = parts.rows(start, start + len(place))
        chosen = place[:, 1] % spacing == 0
        yield PatchRows(place[chosen], dhash[chosen], num_missing[chosen])


def _first_rows(record: VolumeRecord) -> dict[tuple[int, int, int], int]:
    row = 0
    found = {}
    for box in brick_boxes(record.shape, record.planes):
        found[box[0].start, box[1].start, box[2].start] = row
        row += count_brick_patches(record.shape, record.planes, box)
    return found


class _Parts:
    """The files with the hashes of one volume. One of them is in memory at a time."""

    def __init__(self, store: Store, manifest: Manifest, folder: str) -> None:
        self._store, self._manifest, self._folder = store, manifest, folder
        self._expected = {item.name: item for item in manifest.objects if item.name.startswith(f"{FOLDER}/{folder}/")}
        self._number: int | None = None
        self._columns: tuple[NDArray[np.uint64], NDArray[np.int32]]

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return the hashes of some rows, uint64 (stop - start,), and their numbers of missing voxels, int32 of that shape."""
        dhash, num_missing = np.empty(stop - start, np.uint64), np.empty(stop - start, np.int32)
        row = start
        while row < stop:
            number, inside = divmod(row, ROWS_PER_PART)
            count = min(stop - row, ROWS_PER_PART - inside)
            columns = self._part(number)
            dhash[row - start : row - start + count] = columns[0][inside : inside + count]
            num_missing[row - start : row - start + count] = columns[1][inside : inside + count]
            row += count
        return dhash, num_missing

    def _part(self, number: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        if number != self._number:
            name = f"{FOLDER}/{self._folder}/{part_name(number)}"
            data = self._store.read(f"{self._manifest.folder}/{name}")
            expected = self._expected.get(name)
            if expected is None or hashlib.sha256(data).hexdigest() != expected.sha256:
                raise DataError(
                    f"{self._manifest.folder}/{name} is not the file that its manifest lists. Materialize cem/volumes again "
                    "to repair the partition."
                )
            table = pq.read_table(io.BytesIO(data), schema=HASHES_SCHEMA)
            self._columns = table["dhash"].to_numpy(), table["num_missing"].to_numpy()
            self._number = number
        return self._columns
