"""What images are recognised by when releases are compared with test images: hashes of windows and of tiles.

Release patches are hashed whole and in tiles of half a patch (112 px), test images in windows of a patch (224 px) every half
patch, in tiles every half patch, and whole, each in its eight flips and quarter turns. So a patch meets the window or tile it
shares pixels with when it was cut from the test image at any multiple of half a patch, or is a turned copy of it.
Searching and confirming is `cem_assets.benchmarks.contamination.comparison`. Pictures are 8-bit gray: standardising is done
before.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from cem_assets.errors import DataError
from cem_assets.imaging.dhash import HASH_SIDE_PX, dhash

WINDOW_PX = HASH_SIDE_PX
TILE_PX = WINDOW_PX // 2
STRIDE_PX = WINDOW_PX // 2
MIN_SPREAD = 2.0
"""Standard deviation, in gray levels of means over 4 x 4 px, below which a picture is blank: its hash is that of noise."""
MIN_LOCAL_SPREAD = 1.0
"""The same within 28 x 28 px, less their mean, for at least half of the picture."""
MIN_LEVELS = 8
"""Different gray levels that equal pictures must have at least to be evidence of copying; padding has fewer."""

_LOCAL_PX = 7

TURNS = (
    "unchanged", "turned 90", "turned 180", "turned 270",
    "mirrored", "mirrored, turned 90", "mirrored, turned 180", "mirrored, turned 270",
)  # fmt: skip
"""Flips and quarter turns by number: mirrored means left to right, turns are counterclockwise and come after."""

Box = tuple[int, int, int, int]
"""(top, left, height, width) in px."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Hashes of parts of pictures; all arrays of one length.

    Attributes:
        item: int64 (m,). Number of the picture: a row of the release, or a test image.
        box: int32 (m, 4). The part: top, left, height, width in px.
        turn: uint8 (m,). Place in `TURNS`: how the part was turned before it was hashed.
        is_tile: bool (m,). Tiles are compared with tiles alone.
        has_contrast: bool (m,). Without it the dHash is not compared.
        dhash: uint64 (m,).
        pixels: uint64 (m,). Hash of size and pixels; 0 where it is not known or would prove nothing.
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

    def take(self, places: NDArray[np.generic]) -> "Fingerprints":
        """Return those at places (integers, or booleans for each)."""
        return Fingerprints(*(getattr(self, each.name)[places] for each in fields(self)))

    def to_table(self) -> pd.DataFrame:
        """Give a table for storing, one row for each; `from_table` reads it."""
        flat = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "box"}
        return pd.DataFrame({**flat, **dict(zip(("top", "left", "height", "width"), self.box.T, strict=True))})

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> "Fingerprints":
        """Read what `to_table` gave."""
        box = table[["top", "left", "height", "width"]].to_numpy(np.int32)
        types = {"item": np.int64, "turn": np.uint8, "is_tile": np.bool_, "has_contrast": np.bool_}
        columns = {
            each.name: table[each.name].to_numpy(types.get(each.name, np.uint64)) for each in fields(cls) if each.name != "box"
        }
        return cls(box=box, **columns)


def joined(parts: Sequence[Fingerprints]) -> Fingerprints:
    """Put fingerprints together, such as those of shards; items must be numbered through."""
    parts = [_empty(), *parts]
    return Fingerprints(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Fingerprints)))


def _empty() -> Fingerprints:
    hashes, flags = np.empty(0, np.uint64), np.empty(0, np.bool_)
    return Fingerprints(np.empty(0, np.int64), np.empty((0, 4), np.int32), np.empty(0, np.uint8), flags, flags, hashes, hashes)


def turned(image: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Flip and turn an image (height, width); `turn` is a place in `TURNS`."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if turn >= 4 else image, turn % 4))


def starts_along(length_px: int, side_px: int) -> list[int]:
    """List where parts of `side_px` start: every half patch, and one that ends at the border; none where it does not fit."""
    if length_px < side_px:
        return []
    last = length_px - side_px
    return sorted({*range(0, last + 1, STRIDE_PX), last})


def _boxes(shape: tuple[int, ...], side_px: int) -> list[Box]:
    """Cover a picture by parts; along a side shorter than `side_px` they take all of it, as patches of the grid do."""
    height, width = (min(length, side_px) for length in shape)
    tops, lefts = starts_along(shape[0], height), starts_along(shape[1], width)
    return [(top, left, height, width) for top in tops for left in lefts]


def check_picture(image: NDArray[np.generic], what: str) -> None:
    """Refuse what is no 8-bit gray picture with a ValueError that names it."""
    if image.dtype != np.uint8 or image.ndim != 2 or not image.size:
        raise DataError(
            f"{what} is {image.dtype} of shape {image.shape}; expected uint8 (height, width): standardize intensities, merge "
            "channels first"
        )


def has_contrast(image: NDArray[np.uint8]) -> bool:
    """Tell whether a picture (height, width) shows more than noise, lighting or the edge of a padding.

    Those have few hashes between them, so millions of pairs would be read only to be refused.
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


def _of_parts(item: int, image: NDArray[np.uint8], boxes: Sequence[tuple[Box, bool]], turns: Sequence[int]) -> Fingerprints:
    """Hash parts of one picture, each as tile or not, in some turns."""
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
        Five for a full patch, its own and those of four tiles.

    Raises:
        DataError: A patch is no 8-bit gray picture.
    """
    found = []
    for item, patch in enumerate(patches, first_item):
        check_picture(patch, f"patch {item}")
        height, width = patch.shape
        tiles = _boxes(patch.shape, TILE_PX)
        found.append(_of_parts(item, patch, [((0, 0, height, width), False), *((box, True) for box in tiles)], [0]))
    return joined(found)


def whole_fingerprints(dhashes: NDArray[np.uint64], shape: tuple[int, int] = (WINDOW_PX, WINDOW_PX)) -> Fingerprints:
    """Make fingerprints of patches of which only the dHashes are known, as the store's patch tables have them.

    Args:
        dhashes: uint64 (n,).
        shape: Height and width of the patches.

    Returns:
        One for each. They find copies, turned ones too, and patches cut from larger test images at half patches; not
        those that share only a part with a test image.
    """
    num = len(dhashes)
    flags = np.ones(num, np.bool_)
    box = np.tile(np.array([0, 0, *shape], np.int32), (num, 1))
    turn, pixels = np.zeros(num, np.uint8), np.zeros(num, np.uint64)
    return Fingerprints(np.arange(num), box, turn, ~flags, flags, dhashes.astype(np.uint64), pixels)


def test_image_fingerprints(images: Iterable[NDArray[np.uint8]], first_item: int = 0) -> Fingerprints:
    """Hash test images: windows, tiles and the whole, in all eight turns.

    Args:
        images: uint8 (height, width), of any size; the slices of a volume are images too.
        first_item: Number of the first one.

    Raises:
        DataError: An image is no 8-bit gray picture.
    """
    found = []
    for item, image in enumerate(images, first_item):
        check_picture(image, f"test image {item}")
        windows = {(0, 0, *image.shape): False} | dict.fromkeys(_boxes(image.shape, WINDOW_PX), False)
        parts = [*windows.items(), *((box, True) for box in _boxes(image.shape, TILE_PX))]
        found.append(_of_parts(item, image, parts, range(len(TURNS))))
    return joined(found)
