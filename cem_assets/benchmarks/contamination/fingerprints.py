"""Hashes of windows and tiles, by which patches of a release are recognised in test images.

Patches of a release are hashed whole, and in tiles of half a patch (112 px). Test images are hashed whole, in windows of a
patch (224 px) every half patch, and in tiles every half patch, each in its eight flips and quarter turns. So a patch has a
hash in common with a test image if it was cut from it at any multiple of half a patch, or is a turned copy of such a part.
`cem_assets.benchmarks.contamination.comparison` searches and confirms pairs. All pictures here are 8-bit gray, after
standardization.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from cem_assets.imaging.dhash import HASH_SIDE_PX, dhash

WINDOW_PX = HASH_SIDE_PX
TILE_PX = WINDOW_PX // 2
STRIDE_PX = WINDOW_PX // 2
MIN_SPREAD = 2.0
"""Standard deviation, in gray levels of means over 4 x 4 px, below which a picture is blank: its hash is only noise."""
MIN_LOCAL_SPREAD = 1.0
"""Smallest standard deviation within 28 x 28 px around their mean, which at least half of the picture must have."""
MIN_LEVELS = 8
"""Equal pictures are evidence of copying only if they have at least this many different gray levels; padding has fewer."""

_LOCAL_PX = 7

TURNS = (
    "unchanged", "turned 90", "turned 180", "turned 270",
    "mirrored", "mirrored, turned 90", "mirrored, turned 180", "mirrored, turned 270",
)  # fmt: skip
"""Flips and quarter turns by number. Mirrored means left to right; turns are counterclockwise, after mirroring."""

Window = tuple[int, int, int, int]
"""(top, left, height, width) in px."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Hashes of parts of pictures; all arrays have the same length.

    Attributes:
        item: int64 (m,). Number of the picture: a row of the release, or a test image.
        box: int32 (m, 4). The part: top, left, height, width in px.
        turn: uint8 (m,). Place in `TURNS`: how the part was turned before it was hashed.
        is_tile: bool (m,). Tiles are compared only with tiles.
        has_contrast: bool (m,). The dHash of a part without contrast is not compared.
        dhash: uint64 (m,).
        pixels: uint64 (m,). Hash of the part's size and pixels; 0 for tiles and for parts whose equality would prove nothing.
    """

    item: NDArray[np.int64]
    box: NDArray[np.int32]
    turn: NDArray[np.uint8]
    is_tile: NDArray[np.bool_]
    has_contrast: NDArray[np.bool_]
    dhash: NDArray[np.uint64]
    pixels: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.item)

    def to_table(self) -> pd.DataFrame:
        """Return a table for storing, with one row for each fingerprint; `from_table` reads it."""
        flat = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "box"}
        return pd.DataFrame({**flat, **dict(zip(("top", "left", "height", "width"), self.box.T, strict=True))})

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> "Fingerprints":
        """Read a table that `to_table` returned."""
        box = table[["top", "left", "height", "width"]].to_numpy(np.int32)
        types = {"item": np.int64, "turn": np.uint8, "is_tile": np.bool_, "has_contrast": np.bool_}
        columns = {
            each.name: table[each.name].to_numpy(types.get(each.name, np.uint64)) for each in fields(cls) if each.name != "box"
        }
        return cls(box=box, **columns)


def joined(parts: Sequence[Fingerprints]) -> Fingerprints:
    """Concatenate fingerprints, such as those of shards; no two parts may use the same numbers of items."""
    parts = [_empty(), *parts]
    return Fingerprints(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Fingerprints)))


def _empty() -> Fingerprints:
    hashes, flags = np.empty(0, np.uint64), np.empty(0, np.bool_)
    return Fingerprints(np.empty(0, np.int64), np.empty((0, 4), np.int32), np.empty(0, np.uint8), flags, flags, hashes, hashes)


def turned(image: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Flip and turn an image (height, width) by a place in `TURNS`."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if turn >= 4 else image, turn % 4))


def starts_along(length_px: int, side_px: int) -> list[int]:
    """List where parts of `side_px` start: every half patch, and one that ends at the border; none if a part does not fit."""
    if length_px < side_px:
        return []
    last = length_px - side_px
    return sorted({*range(0, last + 1, STRIDE_PX), last})


def _boxes(shape: tuple[int, ...], side_px: int) -> list[Window]:
    """Cover a picture by parts; along a side shorter than `side_px` each part takes all of it, like patches of the grid."""
    height, width = (min(length, side_px) for length in shape)
    tops, lefts = starts_along(shape[0], height), starts_along(shape[1], width)
    return [(top, left, height, width) for top in tops for left in lefts]


def check_picture(image: NDArray[np.generic], what: str) -> None:
    """Raise a ValueError that names the picture if it is not 8-bit gray."""
    if image.dtype != np.uint8 or image.ndim != 2 or not image.size:
        raise ValueError(
            f"{what} is {image.dtype} of shape {image.shape}; expected uint8 (height, width). Standardize intensities and "
            "merge channels first."
        )


def has_contrast(image: NDArray[np.uint8]) -> bool:
    """Tell whether a picture (height, width) shows more than noise, lighting or the edge of a padding.

    Pictures without contrast share a few hashes, so millions of pairs would be read only to be rejected.
    """
    means = np.asarray(Image.fromarray(image).reduce(4), dtype=np.float32)
    if means.std() < MIN_SPREAD:
        return False
    fine = means - uniform_filter(means, _LOCAL_PX)
    return bool(np.median(uniform_filter(fine * fine, _LOCAL_PX)) >= MIN_LOCAL_SPREAD**2)


def _pixel_hash(image: NDArray[np.uint8]) -> int:
    if np.count_nonzero(np.bincount(image.reshape(-1), minlength=256)) < MIN_LEVELS:
        return 0
    key = f"{image.shape[0]}x{image.shape[1]}:".encode()
    return int.from_bytes(hashlib.blake2b(key + image.tobytes(), digest_size=8).digest(), "big") or 1


def _of_parts(item: int, image: NDArray[np.uint8], boxes: Sequence[tuple[Window, bool]], turns: Sequence[int]) -> Fingerprints:
    """Hash parts of one picture in some turns; each part is given with whether it is a tile."""
    cut = [np.ascontiguousarray(image[top : top + height, left : left + width]) for (top, left, height, width), _ in boxes]
    parts = [turned(part, turn) for part in cut for turn in turns]
    hashes = np.empty(len(parts), np.uint64)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, part in enumerate(parts):
        shapes.setdefault(part.shape, []).append(place)
    for places in shapes.values():
        hashes[places] = dhash(np.stack([parts[place] for place in places]))
    is_tile = np.repeat(np.array([tile for _, tile in boxes], np.bool_), len(turns))
    return Fingerprints(
        item=np.full(len(parts), item, np.int64),
        box=np.repeat(np.array([box for box, _ in boxes], np.int32).reshape(-1, 4), len(turns), axis=0),
        turn=np.tile(np.array(turns, np.uint8), len(boxes)),
        is_tile=is_tile,
        has_contrast=np.repeat(np.array([has_contrast(part) for part in cut], np.bool_), len(turns)),
        dhash=hashes,
        pixels=np.array([0 if tile else _pixel_hash(part) for part, tile in zip(parts, is_tile, strict=True)], np.uint64),
    )


def release_fingerprints(patches: Iterable[NDArray[np.uint8]], first_item: int = 0) -> Fingerprints:
    """Hash the patches of a release: each whole, and in its tiles of half a patch.

    Args:
        patches: uint8 (height, width), of any size, in the order of the release's rows.
        first_item: Number of the first one.

    Returns:
        Five fingerprints for a full patch: its own and those of four tiles.
    """
    found = []
    for item, patch in enumerate(patches, first_item):
        check_picture(patch, f"patch {item}")
        height, width = patch.shape
        tiles = _boxes(patch.shape, TILE_PX)
        found.append(_of_parts(item, patch, [((0, 0, height, width), False), *((box, True) for box in tiles)], [0]))
    return joined(found)


def test_image_fingerprints(images: Iterable[NDArray[np.uint8]], first_item: int = 0) -> Fingerprints:
    """Hash test images: windows, tiles and the whole, in all eight turns.

    Args:
        images: uint8 (height, width), of any size; the slices of a volume are images too.
        first_item: Number of the first one.
    """
    found = []
    for item, image in enumerate(images, first_item):
        check_picture(image, f"test image {item}")
        windows = {(0, 0, *image.shape): False} | dict.fromkeys(_boxes(image.shape, WINDOW_PX), False)
        parts = [*windows.items(), *((box, True) for box in _boxes(image.shape, TILE_PX))]
        found.append(_of_parts(item, image, parts, range(len(TURNS))))
    return joined(found)
