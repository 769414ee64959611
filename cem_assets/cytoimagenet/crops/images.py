"""Cutting the crops of images; worker processes run this in parallel.

`cem_assets.cytoimagenet.crops.stage` decides which crops stay in the end, and writes them.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from cem_assets.cytoimagenet.channels import merge_channels, merge_image
from cem_assets.cytoimagenet.crops.crops import CropParams, CropWindow, crop_windows, cut
from cem_assets.cytoimagenet.crops.naming import VALIDATION_SHARE
from cem_assets.cytoimagenet.crops.quality import EXPLAINED, DropReason, pixel_digest, pixel_fault
from cem_assets.cytoimagenet.held_out.guard import Fingerprint, fingerprint
from cem_assets.cytoimagenet.source_images import planes_of, read_images
from cem_assets.cytoimagenet.sources.stage import file_of
from cem_assets.cytoimagenet.tables import encode_png
from cem_assets.errors import DataError
from cem_assets.formats.microscopy_images import MicroscopyImage
from cem_assets.imaging.dhash import dhash
from cem_assets.store.store import Store


class CropStageParams(CropParams):
    """How the images of a label are cropped, and which of them are for validation.

    Attributes:
        validation_share: Share of source images whose crops are for validation.
        split_seed: Seed of the split into training and validation images.
    """

    validation_share: float = Field(VALIDATION_SHARE, ge=0, le=1)
    split_seed: int = Field(0, ge=0, lt=1 << 63)


@dataclass(frozen=True)
class Crop:
    """A crop that passed the quality rules.

    Attributes:
        window: Where it is in its image.
        height: In px, like the width.
        dhash: Its 64-bit difference hash.
        pixel_sha256: Digest of its shape and pixels.
        png: The bytes of its PNG file; empty once they are in the scratch file.
    """

    window: CropWindow
    height: int
    width: int
    dhash: int
    pixel_sha256: str
    png: bytes


@dataclass(frozen=True)
class RowCrops:
    """The crops of one row.

    Attributes:
        row: Number of the row among the label's rows.
        dropped: Crop number, reason and detail of everything that was dropped; the number -1 stands for the whole image.
        prints: Fingerprints of the gray image and of each channel, if there are test images to compare with.
    """

    row: int
    crops: tuple[Crop, ...]
    dropped: tuple[tuple[int, DropReason, str], ...]
    prints: tuple[Fingerprint, ...]


@dataclass(frozen=True)
class CropJob:
    """Makes the crops of rows that share their files. It can be pickled.

    Attributes:
        num_crops: Number of crops of each image.
        has_test_images: Whether there are test images, so that fingerprints are needed.
    """

    store: Store
    params: CropStageParams
    num_crops: int
    has_test_images: bool

    def __call__(self, rows: list[dict[str, Any]]) -> list[RowCrops]:
        """Read the files of the rows once, and cut the crops."""
        source = rows[0]["source"]
        expected = {file_of(name): digest for row in rows for name, digest in zip(row["files"], row["sha256"], strict=True)}
        if not expected:
            return [_whole(row, DropReason.missing, "the source has no image file for it") for row in rows]
        absent = [path for path in expected if self.store.size(f"inbox/{source}/{path}") is None]
        if absent:
            return [_whole(row, DropReason.missing, f"{absent[0]} is no longer in inbox/{source}/") for row in rows]
        try:
            images = read_images(self.store, source, expected)
        except DataError as error:
            return [_whole(row, DropReason.unreadable, str(error)) for row in rows]
        return [self._crops(row, images) for row in rows]

    def _crops(self, row: dict[str, Any], images: dict[str, MicroscopyImage]) -> RowCrops:
        try:
            planes = planes_of(row["files"], images)
            gray = merge_image(planes.planes, planes.is_colour)
        except DataError as error:
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


def _whole(row: dict[str, Any], reason: DropReason, detail: str) -> RowCrops:
    return RowCrops(row["place"], (), ((-1, reason, detail[:500]),), ())
