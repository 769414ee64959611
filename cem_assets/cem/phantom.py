"""A seeded EM phantom: cells with membranes, mitochondria and vesicles, beside blank resin.

It needs no network and no licence, and its ground truth is known. It is similar enough to serial-section data for the chain
to do its work, with many near copies in neighbouring slices and blank patches to drop. It does not simulate electron optics.
The demo and the pictures of the README are made from it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_COARSE = 4
"""Fields are drawn on a grid that is coarser than the voxels by this factor, and then interpolated."""
_RESIN, _CYTOPLASM, _MEMBRANE, _MITOCHONDRION, _CRISTA, _VESICLE = 178.0, 150.0, 62.0, 104.0, 68.0, 84.0
_NOISE = 9.0

MOSTLY_CELL = 0.5
"""A patch is labelled good if at least this share of it is cell."""
MOSTLY_RESIN = 0.15
"""A patch is labelled bad if at most this share of it is cell."""


@dataclass(frozen=True)
class Phantom:
    """A phantom volume and its ground truth.

    Attributes:
        voxels: uint8 (z, y, x).
        is_cell: bool (z, y, x), true inside of cells and false in resin.
    """

    voxels: NDArray[np.uint8]
    is_cell: NDArray[np.bool_]


def _field(generator: np.random.Generator, shape: tuple[int, int, int], scale: float) -> NDArray[np.float32]:
    """Draw smooth noise with zero mean and unit standard deviation; `scale` is its blur in voxels."""
    coarse = tuple(-(-side // _COARSE) + 2 if side > 1 else 1 for side in shape)
    noise = generator.standard_normal(coarse, dtype=np.float32)
    sigma = [scale / _COARSE if side > 1 else 0.0 for side in shape]
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=3.0)
    zoom = [_COARSE if side > 1 else 1 for side in shape]
    fine: NDArray[np.float32] = ndimage.zoom(smooth, zoom, order=1)[tuple(slice(0, side) for side in shape)]
    return np.asarray((fine - fine.mean()) / fine.std(), dtype=np.float32)


def em_phantom(shape: tuple[int, int, int], seed: int, resin_share: float = 0.35) -> Phantom:
    """Make a phantom.

    Args:
        shape: (z, y, x) in voxels; with z = 1 it is a 2D image.
        seed: Seed of all random numbers.
        resin_share: Share of the volume that is blank resin, 0..1.

    Returns:
        The volume and its ground truth. Making it takes about 20 bytes of memory for each voxel.
    """
    generator = np.random.default_rng(seed)
    tilt = np.linspace(-1.5, 1.5, shape[2], dtype=np.float32)
    outline = _field(generator, shape, 40.0) + tilt
    is_cell = outline > np.quantile(outline, resin_share)
    # Each cell is where one of several fields is the largest, and its membrane is where the two largest fields meet.
    largest = _field(generator, shape, 22.0)
    second = np.full(shape, -np.inf, np.float32)
    for _ in range(4):
        other = _field(generator, shape, 22.0)
        second = np.maximum(second, np.minimum(largest, other))
        largest = np.maximum(largest, other)
    image = np.full(shape, _CYTOPLASM, np.float32)
    image += 12.0 * _field(generator, shape, 5.0)
    organelle = _field(generator, shape, 12.0)
    is_mitochondrion = organelle > 1.55
    cristae = np.sin(0.9 * _field(generator, shape, 6.0) * 6.0) > 0.55
    image[is_mitochondrion] = _MITOCHONDRION
    image[is_mitochondrion & cristae] = _CRISTA
    image[(organelle > 1.45) & ~is_mitochondrion] = _MEMBRANE
    image[_field(generator, shape, 4.0) > 2.4] = _VESICLE
    image[largest - second < 0.09] = _MEMBRANE
    image[~is_cell] = _RESIN
    inside = ndimage.binary_erosion(is_cell, iterations=2, border_value=1)
    image[is_cell & ~inside] = _MEMBRANE
    blur = [0.8 if side > 1 else 0.0 for side in shape]
    image = ndimage.gaussian_filter(image, blur, truncate=3.0)
    image += _NOISE * generator.standard_normal(shape, dtype=np.float32)
    return Phantom(np.clip(np.rint(image), 0, 255).astype(np.uint8), is_cell)


def label_of(is_cell: NDArray[np.bool_]) -> str:
    """Label a patch by its ground truth: "good" (mostly cell), "bad" (mostly resin) or "none" (in between).

    Args:
        is_cell: bool (height, width), which pixels of the patch are inside of cells.
    """
    share = float(is_cell.mean())
    return "good" if share >= MOSTLY_CELL else "bad" if share <= MOSTLY_RESIN else "none"
