"""Pictures for judging a patch classifier: its worst mistakes, and the patches on which two classifiers differ."""

import numpy as np
from numpy.typing import NDArray

from cem_assets.cem.classifier.decisions import closest_calls, find_flips, find_mistakes
from cem_assets.imaging.gallery import Tile, gallery_jpeg

_COLUMNS = 8
_MAX_SHOWN = 16
"""Largest number of patches of each kind, which are shown in two rows."""


def mistakes_jpeg(
    images: NDArray[np.uint8], is_good: NDArray[np.bool_], probabilities: NDArray[np.float32], what: str = "held-out"
) -> bytes:
    """Draw the worst mistakes, with the largest error first, or the closest calls if there are no mistakes.

    Args:
        images: uint8 (n, 224, 224).
        is_good: bool (n,), the labels.
        probabilities: float32 (n,), the probabilities of being informative.
        what: A word that says which patches these are.

    Returns:
        A JPEG that is small enough for the metadata of a Dagster event.
    """
    mistakes = find_mistakes(is_good, probabilities)

    def tiles(rows: NDArray[np.int64]) -> list[Tile]:
        return [Tile(images[row], f"{probabilities[row]:.3f}") for row in rows.tolist()]

    if not len(mistakes):
        title = f"no mistake among {len(is_good)} {what} patches; the closest calls"
        return gallery_jpeg([(title, tiles(closest_calls(probabilities, _COLUMNS)))])
    of_all = f"of {len(is_good)} {what} patches"
    rows = _rows(f"labelled bad, kept: {len(mistakes.kept)} {of_all}", tiles(mistakes.kept[:_MAX_SHOWN]))
    rows += _rows(f"labelled good, dropped: {len(mistakes.lost)} {of_all}", tiles(mistakes.lost[:_MAX_SHOWN]))
    return gallery_jpeg(rows)


def flips_jpeg(
    images: NDArray[np.uint8], is_good: NDArray[np.bool_], new: NDArray[np.float32], in_use: NDArray[np.float32]
) -> bytes:
    """Draw the patches for which a new classifier decides differently from the one in use, with the largest change first.

    Args:
        images: uint8 (n, 224, 224).
        is_good: bool (n,), the labels.
        new: float32 (n,), probabilities from the new classifier.
        in_use: float32 (n,), probabilities from the one in use.

    Returns:
        A JPEG that is small enough for the metadata of a Dagster event. If no decision differs, the picture says so.
    """
    flips = find_flips(is_good, new, in_use)

    def tiles(rows: NDArray[np.int64]) -> list[Tile]:
        words = ["good" if is_good[row] else "bad" for row in rows]
        return [Tile(images[row], f"{word} {in_use[row]:.2f} > {new[row]:.2f}") for row, word in zip(rows, words, strict=True)]

    if not len(flips):
        order = np.argsort(-np.abs(new.astype(np.float64) - in_use), kind="stable")[:_COLUMNS]
        return gallery_jpeg([("no decision differs; the largest changes (label, in use > new)", tiles(order))])
    rows = _rows(f"only the new one keeps: {len(flips.gained)} (label, in use > new)", tiles(flips.gained[:_MAX_SHOWN]))
    rows += _rows(f"only the one in use keeps: {len(flips.dropped)}", tiles(flips.dropped[:_MAX_SHOWN]))
    return gallery_jpeg(rows)


def _rows(title: str, tiles: list[Tile]) -> list[tuple[str, list[Tile]]]:
    lines = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    return [(title if number == 0 else "", line) for number, line in enumerate(lines)]
