"""Hashes of all patches of a volume, kept beside its voxels, so that cutting it does not read the voxels again.

Voxels are hashed while `cem/volumes` writes them, when they are in memory anyway. `cem/raw_patches` takes the hashes
from here where the same code and the same Pillow made them, and otherwise reads and hashes the bricks
(`cem_assets.cem.patches.pixels`); the table is the same, byte for byte. One row for each patch of spacing 1, in the order
of `brick_boxes` and `patch_places`: places follow by arithmetic and are not stored.
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
"""Hashes in a file: 8 MB of it."""


def made_with() -> dict[str, str]:
    """Say what decides a hash besides voxels; in the details of `cem/volumes`, and compared by who reads the hashes."""
    return {"code_version": CODE_VERSIONS[RAW], "pillow": PIL.__version__}


@dataclass(frozen=True)
class _InMemory:
    """One brick that is in memory already, as a `Readable`."""

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
        planes: The axes it is cut along.
        box: One of `brick_boxes`.
        voxels: uint8 (z, y, x) of that box, standardized.
        mask: bool (z, y, x), which of them the source never had; None where it had all.

    Returns:
        Rows by axis, slice, row and column.
    """
    return hash_brick(_InMemory("", shape, planes, voxels, mask), box)


@dataclass
class HashParts:
    """Writes the hashes of one volume, brick after brick, in files of about a million rows.

    Attributes:
        content: Where.
        folder: The volume's folder in there.
        objects: What was written; belongs to the commit once the volume is known to be sound.
    """

    content: ContentFolder
    folder: str
    objects: list[ManifestObject] = field(default_factory=list)
    _held: list[PatchRows] = field(default_factory=list)
    _count: int = 0

    def add(self, rows: PatchRows) -> None:
        """Take up the rows of the next brick."""
        self._held.append(rows)
        self._count += len(rows)
        while self._count >= ROWS_PER_PART:
            self._write(ROWS_PER_PART)

    def finish(self) -> list[ManifestObject]:
        """Write what is held; return all objects."""
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
    """Tell whether a manifest of `cem/volumes` holds hashes that this code with this Pillow would compute."""
    return manifest.details.get("patch_hashes") == made_with()


def stored_rows(
    store: Store, manifest: Manifest, records: list[VolumeRecord], spacing: int, bricks: Iterable[tuple[int, Box]]
) -> Iterator[PatchRows]:
    """Give the rows that `hash_brick` would compute, without reading a voxel.

    Args:
        manifest: Of `cem/volumes`; `has_hashes` holds.
        records: Its volumes, in order.
        spacing: Every how many slices one is cut.
        bricks: (volume number, box), in order, not necessarily all.

    Yields:
        Rows of each brick.

    Raises:
        FileNotFoundError: The store lost a file.
        DataError: A file is not what the manifest says.
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
    """The files of one volume's hashes, one of them in memory at a time."""

    def __init__(self, store: Store, manifest: Manifest, folder: str) -> None:
        self._store, self._manifest, self._folder = store, manifest, folder
        self._expected = {item.name: item for item in manifest.objects if item.name.startswith(f"{FOLDER}/{folder}/")}
        self._number: int | None = None
        self._columns: tuple[NDArray[np.uint64], NDArray[np.int32]]

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return hashes and missing voxels of rows, uint64 and int32 (stop - start,)."""
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
                    f"{self._manifest.folder}/{name} is not the file its manifest names. Materialize cem/volumes again to "
                    "repair the partition."
                )
            table = pq.read_table(io.BytesIO(data), schema=HASHES_SCHEMA)
            self._columns = table["dhash"].to_numpy(), table["num_missing"].to_numpy()
            self._number = number
        return self._columns
