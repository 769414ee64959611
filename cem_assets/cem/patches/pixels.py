"""Cutting patches out of the standardized data of a dataset, and planning the files of the raw table.

Tables before `cem/filtered_patches` have no pixels, so patches are cut out of their standardized volume or image again. Rows
are in the order of bricks, so a batch of neighbouring rows reads each brick once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.patch_grid import MIN_SIDE_PX, PLANE_NAMES, rejected_plane
from cem_assets.cem.patches.tables import patch_table, places_of
from cem_assets.cem.volumes.bricks import (
    PatchRows,
    brick_boxes,
    count_brick_patches,
    cut_patches,
    group_by_brick,
    hash_brick,
    hash_image,
)
from cem_assets.cem.volumes.ome_zarr import StoredVolume, VolumeRecord
from cem_assets.errors import UnknownNameError
from cem_assets.imaging.boxes import Box
from cem_assets.store.assets import VOLUMES
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Manifest, find_manifest, require_manifest
from cem_assets.store.parquet import parquet_file, part_name
from cem_assets.store.store import Store

ROWS_PER_PART = 1 << 20
"""Number of raw patches in a file, which is also the most that has to be hashed again after a run was killed."""


@dataclass(frozen=True)
class ImageTable:
    """The standardized 2D images of a dataset. It can be pickled.

    Attributes:
        folder: Content folder of `cem/volumes`.
        parts: Names of its Parquet files, in order.
    """

    store: Store
    folder: str
    parts: tuple[str, ...]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return (height, width) in px by name of the image, in row order."""
        return {name: (place[2], place[3]) for name, place in _image_index(self).items()}

    def read(self, name: str) -> NDArray[np.uint8]:
        """Read one image, uint8 (height, width).

        Raises:
            UnknownNameError: There is no image of that name; the error lists some that there are.
        """
        index = _image_index(self)
        if name not in index:
            known = ", ".join(repr(other) for other in list(index)[:20])
            raise UnknownNameError(f"{self.folder} has no image {name!r}; it has: {known}.")
        part, group, _, _ = index[name]
        names, images = _row_group(self, part, group)
        return decode_image(images[names.index(name)]["bytes"])

    def iterate(self, part: str) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield (name, pixels) of the images of one part in row order. One row group at a time is in memory."""
        with self.store.open(f"{self.folder}/{part}") as handle:
            file = parquet_file(handle)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["name", "image"])
                for row in table.to_pylist():
                    yield row["name"], decode_image(row["image"]["bytes"])


@lru_cache(maxsize=4)
def _image_index(images: ImageTable) -> dict[str, tuple[str, int, int, int]]:
    index: dict[str, tuple[str, int, int, int]] = {}
    for part in images.parts:
        with images.store.open(f"{images.folder}/{part}") as handle:
            file = parquet_file(handle)
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group, columns=["name", "height", "width"]).to_pylist():
                    index[row["name"]] = (part, group, row["height"], row["width"])
    return index


@lru_cache(maxsize=2)
def _row_group(images: ImageTable, part: str, group: int) -> tuple[list[str], list[dict[str, Any]]]:
    with images.store.open(f"{images.folder}/{part}") as handle:
        table = parquet_file(handle).read_row_group(group, columns=["name", "image"])
    return table["name"].to_pylist(), table["image"].to_pylist()


@dataclass(frozen=True)
class DatasetPixels:
    """The standardized data of one dataset, as `cem/volumes` has it. It can be pickled.

    Attributes:
        manifest_digest: Digest of the manifest that it was opened from.
        volumes: The dataset's volumes; there are none if it is of kind "images".
        images: The dataset's images; None if it has volumes.
    """

    dataset: str
    description: DatasetDescription
    manifest_digest: str
    volumes: tuple[StoredVolume, ...]
    images: ImageTable | None

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return (z, y, x) by name of the volume, or (1, height, width) by name of the image."""
        if self.images is not None:
            return {name: (1, *size) for name, size in self.images.sizes().items()}
        return {volume.name: volume.shape for volume in self.volumes}

    def volume(self, name: str) -> StoredVolume:
        """Return the volume of that name.

        Raises:
            UnknownNameError: There is none; the error lists those that there are.
        """
        for volume in self.volumes:
            if volume.name == name:
                return volume
        known = ", ".join(repr(volume.name) for volume in self.volumes[:20]) or "none, it is a set of 2D images"
        raise UnknownNameError(f"dataset {self.dataset!r} has no volume {name!r}; it has: {known}")

    def patches(self, table: pa.Table) -> list[NDArray[np.uint8]]:
        """Cut patches out of the standardized data.

        Args:
            table: Rows with the columns of the raw table, in any order.

        Returns:
            One array uint8 (height, width) for each row, in row order.
        """
        place = places_of(table)
        names = table["volume"].to_pylist()
        out: list[NDArray[np.uint8] | None] = [None] * len(names)
        for name in dict.fromkeys(names):
            rows = np.array([row for row, other in enumerate(names) if other == name], dtype=np.int64)
            if self.images is not None:
                pixels = self.images.read(name)
                for row in rows.tolist():
                    _, _, y0, y1, x0, x1 = place[row].tolist()
                    out[row] = pixels[y0:y1, x0:x1].copy()
                continue
            volume = self.volume(name)
            for box, inside in group_by_brick(volume.shape, volume.planes, place[rows]):
                brick = volume.read(box)
                for row, patch in zip(rows[inside].tolist(), cut_patches(brick, box, place[rows[inside]]), strict=True):
                    out[row] = patch
        return [patch for patch in out if patch is not None]


def open_pixels(store: Store, dataset: str, manifest: Manifest | None = None) -> DatasetPixels:
    """Open the standardized data of a dataset.

    Args:
        manifest: The manifest of `cem/volumes` to open; None takes the current one.

    Raises:
        FileNotFoundError: Nothing of the dataset is committed in `cem/volumes`.
    """
    manifest = manifest or require_manifest(store, VOLUMES, dataset)
    description = DatasetDescription.model_validate(manifest.details["description"])
    if description.kind == "images":
        images = ImageTable(store, manifest.folder, tuple(item.name for item in manifest.find(".parquet")))
        return DatasetPixels(dataset, description, manifest.digest, (), images)
    volumes = tuple(StoredVolume(store, manifest.folder, VolumeRecord.from_json(data)) for data in manifest.details["volumes"])
    return DatasetPixels(dataset, description, manifest.digest, volumes, None)


def pixels_behind(store: Store, table: Manifest) -> DatasetPixels:
    """Open the standardized data that a table of patches was made from, even where `cem/volumes` was made again since.

    Args:
        table: A manifest of raw, deduplicated, scored or filtered patches.

    Raises:
        FileNotFoundError: That data was swept away; the error says what to materialize.
    """
    dataset = table.inputs.partition
    return open_pixels(store, dataset, find_manifest(store, VOLUMES, dataset, table.details["volumes_digest"]))


@dataclass(frozen=True)
class RawPart:
    """A file of the raw table, and what it is made from.

    Attributes:
        name: Name of the file in the content folder.
        bricks: (number of the volume, box), in order; there are none for images.
        images_part: The file of the image table that it is made from; empty for volumes.
    """

    name: str
    bricks: tuple[tuple[int, Box], ...]
    images_part: str


def plan_raw_parts(pixels: DatasetPixels, spacing: int) -> list[RawPart]:
    """Divide a raw table into files.

    Args:
        spacing: One slice is cut out of every `spacing` slices.

    Returns:
        Files of about a million patches each. The plan depends only on sizes, so it is the same in every run.
    """
    if pixels.images is not None:
        return [RawPart(part_name(n), (), part) for n, part in enumerate(pixels.images.parts)]
    parts: list[RawPart] = []
    held: list[tuple[int, Box]] = []
    count = 0
    for number, volume in enumerate(pixels.volumes):
        for box in brick_boxes(volume.shape, volume.planes):
            held.append((number, box))
            count += count_brick_patches(volume.shape, volume.planes, box, spacing)
            if count >= ROWS_PER_PART:
                parts.append(RawPart(part_name(len(parts)), tuple(held), ""))
                held, count = [], 0
    if held or not parts:
        parts.append(RawPart(part_name(len(parts)), tuple(held), ""))
    return parts


@dataclass(frozen=True)
class RawRows:
    """Rows of one brick or image.

    Attributes:
        kept: Rows of the raw table.
        rejected: Names of patches that touch voxels that the source never had.
    """

    kept: pa.Table
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class HashJob:
    """Hashes bricks of a dataset's volumes. It can be sent to other processes and machines."""

    pixels: DatasetPixels
    spacing: int

    def __call__(self, item: tuple[int, Box]) -> RawRows:
        number, box = item
        return rows_of_brick(self.pixels, number, hash_brick(self.pixels.volumes[number], box, self.spacing))


def rows_of_brick(pixels: DatasetPixels, number: int, rows: PatchRows) -> RawRows:
    """Make the rows of one brick for the raw table, and separate those that touch voxels that the source never had.

    Args:
        number: Number of the brick's volume in `pixels.volumes`.
    """
    volume = pixels.volumes[number]
    table = patch_table(pixels.dataset, volume.name, volume.shape, rows)
    whole = rows.num_missing == 0
    if whole.all():
        return RawRows(table, ())
    return RawRows(table.filter(pa.array(whole)), tuple(table.filter(pa.array(~whole))["name"].to_pylist()))


def hash_images(pixels: DatasetPixels, part: str) -> Iterator[RawRows]:
    """Hash the images of one file of a 2D dataset, in row order.

    Args:
        pixels: A dataset of kind "images".
        part: One of the files of its image table.

    Yields:
        The rows of one image. Images with a side under 64 px are left out.
    """
    assert pixels.images is not None
    for name, image in pixels.images.iterate(part):
        shape = (1, image.shape[0], image.shape[1])
        if rejected_plane(shape, 0) is None:
            yield RawRows(patch_table(pixels.dataset, name, shape, hash_image(image)), ())


def rejected_planes(pixels: DatasetPixels) -> list[tuple[str, str]]:
    """List the planes that are not cut, as (name of the image or plane, reason)."""
    if pixels.images is not None:
        return [
            (
                name,
                f"the image is {height} x {width} px; expected sides of at least {MIN_SIDE_PX} px. Remove it from the dataset.",
            )
            for name, (height, width) in pixels.images.sizes().items()
            if min(height, width) < MIN_SIDE_PX
        ]
    return [
        (f"{volume.name} {PLANE_NAMES[axis]}", f"{reason}. Nothing to do if the volume is that thin.")
        for volume in pixels.volumes
        for axis in volume.planes
        if (reason := rejected_plane(volume.shape, axis))
    ]


@dataclass(frozen=True)
class PixelJob:
    """Cuts batches of patches out of a dataset. It can be sent to other processes and machines."""

    pixels: DatasetPixels

    def __call__(self, table: pa.Table) -> list[NDArray[np.uint8]]:
        return self.pixels.patches(table)
