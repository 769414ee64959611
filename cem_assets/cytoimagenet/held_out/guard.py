"""Keeping the test images of benchmarks out of training sets, by name and by content.

By name: the rules of `cem_assets/catalog/test_sets.toml` are applied to the texts that say where an image comes from. By
content: every test image has a fingerprint, which is its 64-bit dHash and a 32 x 32 thumbnail. An image is a copy of a test
image if one of the eight flips and quarter turns of the test image has a dHash within `max_distance`, and the thumbnails
correlate. The stages decide which images are compared, and where the index is stored.

The defaults were measured on the 82 pictures of the test data (BBBC038, BBBC013, BBBC014, CellProfiler, StarDist), which have
57 x 61 px to 2304 x 1536 px:
  Unrelated images, also of neighbouring wells, have a correlation of at most 0.685 at any distance and orientation. Two stains
    of one field have 0.947. Successive frames and planes reach 0.988 and are found, as they should be.
  Copies are all found after JPEG of quality 75 and 90, resizing to half and to 1.25 times, both at once, gamma 0.8, noise of 2
    gray levels, and reduction to 8 bits with any window that keeps most of the range. Their distance is at most 12, their
    correlation at least 0.978, and that of detail at least 0.78.
  Harsher copies are sometimes missed: 2 of 82 after JPEG of quality 50, 2 of 82 at a quarter of the size, 2 of 12 16-bit images
    after clipping 1 % at either end, and 9 of 12 after dropping the low 8 of 16 bits, because 12-bit data then keep at most 16
    gray levels.
  Crops of 64 x 64 px, centred on 1,158 nuclei (5.4 M comparisons): one round spot looks like another, and 14 unrelated pairs
    count as copies (50 at a correlation of 0.95, 2 at 0.98). 0.5 % of their JPEG copies of quality 75 are missed. For an index
    of single cells raise `min_correlation` to 0.985, and let a person check what is found.
  Empty fields under the same lamp (drawn, not real) have correlations up to 0.99, but those of detail are at most 0.16, so none
    counts as a copy.
A crop of a test image is not found, because fingerprints compare whole pictures. Compare images before cropping, with the same
channels (one channel, or merged in the same way) as the index was built from.
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.errors import DataError
from cem_assets.imaging.dhash import HASH_SIDE_PX, dhash
from cem_assets.imaging.hamming import near_pairs

THUMBNAIL_SIDE_PX = 32
ORIENTATIONS = (
    "unchanged", "turned 90", "turned 180", "turned 270",
    "mirrored", "mirrored, turned 90", "mirrored, turned 180", "mirrored, turned 270",
)  # fmt: skip
"""The eight flips and quarter turns. Mirroring swaps left and right; turns are counterclockwise and follow the mirroring."""
_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class GuardRule:
    """How texts that name a test set are recognised.

    Attributes:
        pattern: Regular expression that is searched anywhere in a text; case is ignored.
        why: Why these texts name the test set.
    """

    test_set: str
    pattern: str
    why: str


class GuardParams(BaseModel):
    """When two images count as copies; the module's docstring says how the defaults were measured.

    Attributes:
        max_distance: Largest Hamming distance of the dHashes, which have 64 bits.
        min_correlation: Smallest Pearson correlation of the thumbnails.
        min_detail: Smallest Pearson correlation of the thumbnails' detail, which is what remains after subtracting means over
            3 x 3 px. Empty fields under the same light agree in everything except detail.
    """

    model_config = ConfigDict(frozen=True)

    max_distance: Annotated[int, Field(ge=0, le=64)] = 12
    min_correlation: Annotated[float, Field(gt=0, le=1)] = 0.97
    min_detail: Annotated[float, Field(ge=-1, le=1)] = 0.4


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@lru_cache(maxsize=1)
def load_rules() -> tuple[GuardRule, ...]:
    """Read the rules of the catalogue, in the order of the file.

    Raises:
        DataError: Rules are incomplete, or their patterns are wrong; the error lists all problems.
    """
    return parse_rules(files("cem_assets.catalog").joinpath("test_sets.toml").read_text(encoding="utf-8"))


def parse_rules(text: str) -> tuple[GuardRule, ...]:
    """Read rules from TOML: a list of tables `rule` with the strings `test_set`, `pattern` and `why`.

    Raises:
        DataError: The text is not TOML, rules are incomplete, or their patterns are wrong; the error lists all problems.
    """
    try:
        found = tomllib.loads(text).get("rule", [])
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"rules of test sets are not valid TOML: {error}") from error
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise DataError("rules of test sets cannot be used: expected a list of tables, each headed [[rule]]")
    rules, problems = [], []
    for number, table in enumerate(found, 1):
        keys = ("test_set", "pattern", "why")
        if missing := [key for key in keys if not isinstance(table.get(key), str) or not table[key]]:
            problems.append(f"rule {number}: {', '.join(missing)} missing, empty or not text")
            continue
        rule = GuardRule(*(table[key] for key in keys))
        try:
            if _compiled(rule.pattern).search(""):
                problems.append(f"rule {number} ({rule.test_set}): its pattern matches every text: {rule.pattern}")
        except (re.error, OverflowError, RecursionError) as error:
            problems.append(f"rule {number} ({rule.test_set}): {error} in its pattern {rule.pattern}")
        rules.append(rule)
    if not rules and not problems:
        problems.append("there is no [[rule]]; nothing would be guarded")
    if problems:
        raise DataError("rules of test sets cannot be used: " + "; ".join(problems))
    return tuple(rules)


def guarded_set(texts: Iterable[str], rules: Sequence[GuardRule]) -> str | None:
    """Find the test set that texts name.

    Args:
        texts: What says where an image comes from: database, title, accession, folder, path, file name, plate. Compounds,
            genes and phenotypes do not belong here, because they may have the name of a test set by chance.
        rules: As `load_rules` returns them.

    Returns:
        `test_set` of the first rule that any of the texts matches; None if no rule matches.

    Source: CytoImageNet (arXiv:2111.11646) leaves BBBC021 out by hand, and its copy in the Image Data Resource is easily
    missed. Here every image is checked.
    """
    listed = [text for text in texts if text]
    for rule in rules:
        if any(_compiled(rule.pattern).search(text) for text in listed):
            return rule.test_set
    return None


def guarded_texts(texts: Iterable[str], rules: Sequence[GuardRule]) -> dict[str, str]:
    """Find the test set that each text names. This is fast for many texts of which few name a test set.

    Args:
        texts: As for `guarded_set`.
        rules: As `load_rules` returns them.

    Returns:
        Test set by text, for the texts that name one.
    """
    # One pattern of all rules excludes almost every text; only the few that are left are compared rule by rule.
    any_rule = re.compile("|".join(f"(?:{rule.pattern})" for rule in rules), re.IGNORECASE)
    found = {}
    for text in dict.fromkeys(texts):
        if any_rule.search(text) and (test_set := guarded_set([text], rules)):
            found[text] = test_set
    return found


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What an image is recognised by.

    Attributes:
        dhash: 64 bits, as `cem_assets.imaging.dhash` computes them.
        thumbnail: uint8 (32, 32), the image resized to a square; all zero if the image has no contrast.
    """

    dhash: int
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class Match:
    """The test image that an image is a copy of.

    Attributes:
        name: Name of the test image.
        distance: Hamming distance of the dHashes.
        correlation: Pearson correlation of the thumbnails.
        orientation: One of `ORIENTATIONS`: how the test image must be flipped and turned to become the image.
    """

    name: str
    distance: int
    correlation: float
    orientation: str


def turned(images: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Flip and turn images.

    Args:
        images: (..., height, width).
        orientation: Index of `ORIENTATIONS`.
    """
    mirrored = images[..., ::-1] if orientation >= 4 else images
    return np.ascontiguousarray(np.rot90(mirrored, orientation % 4, axes=(-2, -1)))


def _square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stretch the contrast to the 0.1 and 99.9 percentiles, and resize to 224 x 224 px with bilinear interpolation."""
    if image.dtype != np.uint8 or image.ndim != 2 or not image.size:
        raise ValueError(f"fingerprints are made of uint8 images of shape (height, width); found {image.dtype} {image.shape}")
    at_most = np.cumsum(np.bincount(image.reshape(-1), minlength=256))
    low, high = (int(np.searchsorted(at_most, share / 100 * image.size)) for share in _PERCENTILES)
    if low == high:  # a few pixels that differ still count as contrast
        low, high = int(image.min()), int(image.max())
    table = np.rint(np.clip((np.arange(256) - low) * 255.0 / max(high - low, 1), 0, 255)).astype(np.uint8)
    side = (HASH_SIDE_PX, HASH_SIDE_PX)
    return np.asarray(Image.fromarray(np.ascontiguousarray(table[image])).resize(side, Image.Resampling.BILINEAR))


def _thumbnail(square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    step = HASH_SIDE_PX // THUMBNAIL_SIDE_PX
    means = square.reshape(THUMBNAIL_SIDE_PX, step, THUMBNAIL_SIDE_PX, step).mean(axis=(1, 3))
    return np.asarray(np.rint(means), dtype=np.uint8)


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """Compute the fingerprint of an image.

    Args:
        image: uint8 (height, width), of any size.
    """
    square = _square(image)
    return Fingerprint(int(dhash(square[None])[0]), _thumbnail(square))


def fingerprint_orientations(image: NDArray[np.uint8]) -> tuple[Fingerprint, ...]:
    """Compute the fingerprints of the eight flips and quarter turns of an image, in the order of `ORIENTATIONS`.

    Args:
        image: uint8 (height, width), of any size.
    """
    square = _square(image)
    squares = np.stack([turned(square, orientation) for orientation in range(len(ORIENTATIONS))])
    thumbnail = _thumbnail(square)
    hashes = dhash(squares).tolist()
    return tuple(Fingerprint(value, turned(thumbnail, orientation)) for orientation, value in enumerate(hashes))


def _unit(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre images (n, height, width), and scale them to unit vectors (n, height * width); zeros if there is no contrast."""
    vectors = images.reshape(len(images), images.shape[1] * images.shape[2])
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0))


def _detail(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract means over 3 x 3 px from images (n, height, width); the border of 1 px is removed."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    means = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    return np.asarray(images[:, 1:-1, 1:-1] - means)


class FingerprintIndex:
    """The fingerprints of test images, which tell whether an image is a copy of one of them."""

    def __init__(self, names: Sequence[str], dhashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]) -> None:
        """Build an index from the arrays that `to_arrays` returns; `from_images` builds one from images.

        Args:
            names: (n,), such as "bbbc021/Week1_22123/B02_s1".
            dhashes: uint64 (n, 8), one for each orientation.
            thumbnails: uint8 (n, 32, 32), of the unchanged images.
        """
        num, side = len(names), THUMBNAIL_SIDE_PX
        problems = [
            f"{key} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
            for key, array, dtype, shape in (
                ("dhashes", dhashes, np.uint64, (num, len(ORIENTATIONS))),
                ("thumbnails", thumbnails, np.uint8, (num, side, side)),
            )
            if array.dtype != dtype or array.shape != shape
        ]
        if problems:
            raise ValueError(f"not an index of {num} names: " + "; ".join(problems))
        self._names = list(names)
        self._dhashes = np.ascontiguousarray(dhashes)
        self._thumbnails = np.ascontiguousarray(thumbnails)

    def __len__(self) -> int:
        return len(self._names)

    @classmethod
    def from_images(cls, images: Iterable[tuple[str, NDArray[np.uint8]]]) -> "FingerprintIndex":
        """Build an index from pairs of name and image, uint8 (height, width). Only one image is in memory at a time."""
        names, hashes, thumbnails = [], [], []
        for name, image in images:
            prints = fingerprint_orientations(image)
            names.append(name)
            hashes.append([each.dhash for each in prints])
            thumbnails.append(prints[0].thumbnail)
        side = THUMBNAIL_SIDE_PX
        return cls(
            names,
            np.array(hashes, dtype=np.uint64).reshape(-1, len(ORIENTATIONS)),
            np.array(thumbnails, dtype=np.uint8).reshape(-1, side, side),
        )

    def to_arrays(self) -> tuple[list[str], NDArray[np.uint64], NDArray[np.uint8]]:
        """Return names (n,), dhashes uint64 (n, 8) and thumbnails uint8 (n, 32, 32)."""
        return list(self._names), self._dhashes.copy(), self._thumbnails.copy()

    def find(self, image: NDArray[np.uint8], params: GuardParams | None = None) -> Match | None:
        """Look for the test image that an image is a copy of.

        Args:
            image: uint8 (height, width), of any size.
            params: None takes the defaults.

        Returns:
            The match with the highest correlation, or None. An image without contrast has no match.
        """
        return self.find_all([fingerprint(image)], params)[0]

    def find_all(self, prints: Sequence[Fingerprint], params: GuardParams | None = None) -> list[Match | None]:
        """Look for the matches of many images at once, given their fingerprints, in the same order."""
        params = params or GuardParams()
        queries = np.array([each.dhash for each in prints], dtype=np.uint64)
        candidates: dict[int, list[tuple[int, int]]] = {}
        for query, place, distance in near_pairs(queries, self._dhashes.reshape(-1), params.max_distance):
            candidates.setdefault(query, []).append((place, distance))
        return [self._best(each, candidates.get(number, []), params) for number, each in enumerate(prints)]

    def _best(self, asked: Fingerprint, candidates: list[tuple[int, int]], params: GuardParams) -> Match | None:
        if not candidates:
            return None
        places, distances = np.array(candidates, dtype=np.int64).T
        rows, orientations = np.divmod(places, len(ORIENTATIONS))
        wanted = asked.thumbnail[None].astype(np.float64)
        found = []
        for orientation in np.unique(orientations).tolist():
            chosen = np.flatnonzero(orientations == orientation)
            images = turned(self._thumbnails[rows[chosen]], orientation).astype(np.float64)
            # Rounded, because the last digits depend on the order of summation, and must not decide between equal matches.
            correlations = np.round(_unit(images) @ _unit(wanted)[0], 9)
            is_copy = correlations >= params.min_correlation
            is_copy[is_copy] = _unit(_detail(images[is_copy])) @ _unit(_detail(wanted))[0] >= params.min_detail
            found += [
                (-float(correlations[n]), int(distances[chosen[n]]), self._names[rows[chosen[n]]], orientation)
                for n in np.flatnonzero(is_copy)
            ]
        if not found:
            return None
        negative, distance, name, orientation = min(found)
        return Match(name, distance, -negative, ORIENTATIONS[orientation])
