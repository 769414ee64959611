"""Reading the images of CytoImageNet's sources, and cutting one image's crops: what the crop stage shares out.

Which crops stay in the end, and writing them, is `cem_assets.cytoimagenet.crops.stage`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cem_assets.cytoimagenet.crops.channels import merge_channels, merge_image
from cem_assets.cytoimagenet.crops.crops import CropParams, CropWindow, crop_windows, cut
from cem_assets.cytoimagenet.crops.quality import EXPLAINED, DropReason, pixel_digest, pixel_fault
from cem_assets.cytoimagenet.held_out.guard import Fingerprint, fingerprint
from cem_assets.cytoimagenet.releases.card import VALIDATION_SHARE
from cem_assets.cytoimagenet.sources.stage import file_of, page_of
from cem_assets.cytoimagenet.tables import encode_png
from cem_assets.errors import DataError
from cem_assets.formats.microscopy_images import MicroscopyImage, read_microscopy_image
from cem_assets.imaging.dhash import dhash
from cem_assets.inbox.local import local_paths
from cem_assets.store.local import file_sha256
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store


class CropStageParams(CropParams):
    """How the images of a label are cropped, and which are for validation.

    Attributes:
        validation_share: Share of source images whose crops are for validation.
        split_seed: Key of that choice.
    """

    validation_share: float = Field(VALIDATION_SHARE, ge=0, le=1)
    split_seed: int = Field(0, ge=0, lt=1 << 63)


@dataclass(frozen=True)
class Crop:
    """A crop that passed the quality rules.

    Attributes:
        window: Where it lies in its image.
        height, width: In px.
        dhash: Its 64-bit difference hash.
        pixel_sha256: Digest of its pixels.
        png: The file.
    """

    window: CropWindow
    height: int
    width: int
    dhash: int
    pixel_sha256: str
    png: bytes


@dataclass(frozen=True)
class RowCrops:
    """What came of one row: crops and what was dropped (crop number, reason, detail); -1 stands for the whole image."""

    row: int
    crops: tuple[Crop, ...]
    dropped: tuple[tuple[int, DropReason, str], ...]
    prints: tuple[Fingerprint, ...]


@dataclass(frozen=True)
class CropJob:
    """Makes the crops of rows that share their files. Picklable.

    Attributes:
        store: Where the inbox is.
        params: How.
        num_crops: Of each image.
        has_test_images: Whether fingerprints are needed.
    """

    store: Store
    params: CropStageParams
    num_crops: int
    has_test_images: bool

    def __call__(self, rows: list[dict[str, Any]]) -> list[RowCrops]:
        """Read the rows' files once and cut their crops."""
        source = rows[0]["source"]
        expected = {file_of(name): digest for row in rows for name, digest in zip(row["files"], row["sha256"], strict=True)}
        if not expected:
            return [_whole(row, DropReason.missing, "the source has no image file for it") for row in rows]
        absent = [path for path in expected if self.store.size(f"inbox/{source}/{path}") is None]
        if absent:
            return [_whole(row, DropReason.missing, f"{absent[0]} is no longer in inbox/{source}/") for row in rows]
        images: dict[str, MicroscopyImage] = {}
        problem = ""
        with scratch_folder("crops") as scratch, local_paths(self.store, source, expected, scratch) as paths:
            for (name, digest), path in zip(expected.items(), paths, strict=True):
                try:
                    if file_sha256(path) != digest:
                        raise DataError(
                            f"{name} changed since its source was read; materialize cytoimagenet/source_metadata again"
                        )
                    images[name] = read_microscopy_image(path)
                except ValueError as error:
                    problem = str(error)
                    break
        if problem:
            return [_whole(row, DropReason.unreadable, problem) for row in rows]
        return [self._crops(row, images) for row in rows]

    def _crops(self, row: dict[str, Any], images: dict[str, MicroscopyImage]) -> RowCrops:
        try:
            planes = planes_of(row["files"], images)
            gray = merge_image(planes.planes, planes.is_colour)
        except ValueError as error:
            return _whole(row, DropReason.unreadable, str(error))
        prints: tuple[Fingerprint, ...] = ()
        if self.has_test_images:
            singles = (
                [] if planes.is_colour or len(planes.planes) == 1 else [merge_channels([plane]) for plane in planes.planes]
            )
            prints = tuple(fingerprint(image) for image in (gray, *singles))
        crops, dropped = [], []
        for window in crop_windows(gray.shape[0], gray.shape[1], self.num_crops, row["idx"], self.params):
            crop = cut(gray, window)
            fault = pixel_fault(gray[window.slices], crop)
            if fault is not None:
                dropped.append((window.number, fault, EXPLAINED[fault]))
                continue
            shown = int(dhash(crop[None])[0])
            crops.append(Crop(window, crop.shape[0], crop.shape[1], shown, pixel_digest(crop), encode_png(crop)))
        return RowCrops(row["place"], tuple(crops), tuple(dropped), prints)


def read_images(store: Store, source: str, digests: Mapping[str, str]) -> dict[str, MicroscopyImage]:
    """Read files of a source in the inbox, each once.

    Args:
        digests: sha256 by path, as the metadata recorded them.

    Raises:
        FileNotFoundError: A file is gone.
        DataError: A file changed, or cannot be decoded.
    """
    images = {}
    with scratch_folder("images") as scratch, local_paths(store, source, digests, scratch) as paths:
        for (name, digest), path in zip(digests.items(), paths, strict=True):
            if file_sha256(path) != digest:
                raise DataError(f"{name} changed since its source was read; materialize cytoimagenet/source_metadata again")
            images[name] = read_microscopy_image(path)
    return images


def planes_of(files: Sequence[str], images: dict[str, MicroscopyImage]) -> MicroscopyImage:
    """Put the planes of an image together: pages and files as the metadata names them, in order of channel.

    Raises:
        DataError: A page is not there.
    """
    if len(files) == 1 and page_of(files[0]) is None:
        return images[files[0]]
    planes: list[NDArray[Any]] = []
    for name in files:
        image, page = images[file_of(name)], page_of(name)
        if page is not None:
            if page >= len(image.planes):
                raise DataError(f"{name}: the file has {len(image.planes)} page(s). Correct the recipe's channels.")
            planes.append(image.planes[page])
        elif image.is_colour:  # a single stain saved in colour
            planes.append(np.asarray(np.mean(np.stack(image.planes), axis=0, dtype=np.float32)))
        else:
            planes += image.planes
    return MicroscopyImage(tuple(planes), False, ())


def _whole(row: dict[str, Any], reason: DropReason, detail: str) -> RowCrops:
    return RowCrops(row["place"], (), ((-1, reason, detail[:500]),), ())
