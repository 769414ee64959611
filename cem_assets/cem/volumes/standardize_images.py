"""From 2D images in the inbox to tables of standardized images: the part of `cem/volumes` for datasets of kind "images".

An image that cannot be used becomes a `Rejection`, and the work goes on with the others. Errors that are not the fault of the
image are raised. Volumes are handled by `cem_assets.cem.volumes.standardize`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cem.volumes.standardize import binning_notes, opened_zarr, refuse_constant
from cem_assets.cem.volumes.tables import IMAGES_SCHEMA
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine, local_engine
from cem_assets.execution.stage import Progress
from cem_assets.formats.arrays import check_whole_in_memory
from cem_assets.formats.stacks import read_plane
from cem_assets.imaging.binning import NO_BINNING, bin_mean, binned_voxel_size, binning_factors
from cem_assets.imaging.intensity import IntensityMapping, default_policy, mapping_for
from cem_assets.inbox.datasets import InboxDataset, Rejection
from cem_assets.inbox.intake import Intake
from cem_assets.inbox.local import local_paths
from cem_assets.store.commits import Commit
from cem_assets.store.images import encode_tiff
from cem_assets.store.parquet import SHARD_BYTES, parquet_bytes, part_name
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

_ROW_GROUP_BYTES = 16 << 20
"""Bytes of pixels in a row group of an image table, which is what a reader has to decode for one image."""


@dataclass(frozen=True)
class StandardizedImage:
    """One standardized 2D image.

    Attributes:
        pixels: uint8 (height, width).
        mapping: The mapping from source values to uint8.
        notes: What was recognised in the file, or done to it.
        pixel_size_nm: (y, x) in nm, after binning.
    """

    pixels: NDArray[np.uint8]
    mapping: IntensityMapping
    notes: tuple[str, ...]
    pixel_size_nm: tuple[float, float]


@dataclass(frozen=True)
class _ImageJob:
    """Reads and converts one 2D image. It can be sent to other processes and machines."""

    store: Store
    dataset: InboxDataset

    def __call__(self, intake: Intake) -> StandardizedImage | Rejection:
        description = self.dataset.description
        try:
            if intake.kind == "zarr":
                plane, notes = _zarr_plane(self.store, self.dataset, intake)
            else:
                # The scratch folder is made here, because this may run on another machine than the stage.
                with (
                    scratch_folder("images") as scratch,
                    local_paths(self.store, self.dataset.name, intake.paths, scratch) as files,
                ):
                    plane, notes = read_plane(files[0], scratch, description)
            policy = description.intensity or default_policy(plane.dtype)
            mapping = mapping_for(policy, plane.dtype, plane, description.intensity_percentiles, description.intensity_window)
            pixels = mapping.apply(plane)
            declared = description.voxel_size()
            factors = binning_factors((1, *plane.shape), declared, description.target_voxel_size_nm)
            if factors != NO_BINNING:
                height, width = (side // factor * factor for side, factor in zip(plane.shape, factors[1:], strict=True))
                pixels = bin_mean(pixels[None, :height, :width], factors)[0]
            _, *pixel_size = binned_voxel_size(declared, factors)
            notes = (*notes, *binning_notes((1, *plane.shape), declared, factors))
            refuse_constant(np.bincount(pixels.reshape(-1), minlength=256).astype(np.int64), mapping)
        except DataError as error:  # anything else is not the image's fault, and must not be written down as if it were
            return Rejection(intake.paths[0], str(error))
        return StandardizedImage(pixels, mapping, notes, (pixel_size[0], pixel_size[1]))


def _zarr_plane(store: Store, dataset: InboxDataset, intake: Intake) -> tuple[NDArray[Any], tuple[str, ...]]:
    opened = opened_zarr(store, dataset, intake)
    z, y, x = opened.source.shape
    if z != 1:
        raise DataError(f'it is a stack of {z} slices; expected one 2D image. Use kind = "volume".')
    check_whole_in_memory(f"image {intake.name}", y * x * opened.source.dtype.itemsize)
    box = (slice(0, 1), slice(0, y), slice(0, x))
    plane = np.asarray(opened.source.read(box)[0])
    if opened.source.missing(box) is not None:
        raise DataError("it lacks chunks; expected a whole image. Upload the chunks.")
    return plane, opened.notes


def standardize_images(
    store: Store,
    dataset: InboxDataset,
    items: list[Intake],
    commit: Commit,
    engine: Engine | None,
    progress: Progress,
) -> tuple[int, int, list[Rejection]]:
    """Write 2D images into a commit, as Parquet tables of TIFF bytes.

    Args:
        items: The dataset's images.
        engine: Distributes the images over workers; None chooses a pool by their number.

    Returns:
        (number of images, number of pixels, the images that were refused).
    """
    hashes = {item.path: item.sha256 for item in dataset.files}
    rejections: list[Rejection] = []
    rows: list[dict[str, Any]] = []
    num_images = num_pixels = held = part = 0

    def flush() -> None:
        nonlocal rows, held, part
        table = pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)
        largest = max(row["height"] * row["width"] for row in rows)
        group = max(1, min(256, _ROW_GROUP_BYTES // largest))
        commit.write(part_name(part), parquet_bytes([table], IMAGES_SCHEMA, row_group=group))
        rows, held, part = [], 0, part + 1

    chosen = engine or local_engine(None, len(items), items_per_worker=16)
    for number, (item, result) in enumerate(zip(items, chosen.map(_ImageJob(store, dataset), items), strict=True), 1):
        progress(number, len(items))
        if isinstance(result, Rejection):
            rejections.append(result)
            continue
        height, width = result.pixels.shape
        rows.append(
            {
                "dataset": dataset.name,
                "name": item.name,
                "file": item.paths[0],
                "height": height,
                "width": width,
                "pixel_size_y_nm": result.pixel_size_nm[0],
                "pixel_size_x_nm": result.pixel_size_nm[1],
                "intensity_policy": result.mapping.policy,
                "source_dtype": result.mapping.dtype,
                "intensity_low": result.mapping.low,
                "intensity_high": result.mapping.high,
                "source_sha256": hashes.get(item.paths[0], ""),
                "notes": "; ".join(result.notes),
                "image": {"bytes": encode_tiff(result.pixels), "path": f"{item.name}.tiff"},
            }
        )
        num_images += 1
        num_pixels += result.pixels.size
        held += result.pixels.size
        if held >= SHARD_BYTES:
            flush()
    if rows:
        flush()
    return num_images, num_pixels, rejections
