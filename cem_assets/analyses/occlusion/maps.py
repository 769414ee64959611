"""Which parts of an image its features depend on: a square is covered, and the features are compared with the whole's.

Pictures are `cem_assets.analyses.occlusion.figures`.

Source: Zeiler and Fergus 2014 (arXiv:1311.2901), who watch the score of a class. We differ: self-supervised weights know no
class, so the drop of the cosine similarity between the features of the covered and the whole image is measured.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cem_assets.analyses.activations import ActivationReader, Norms, pixels_of_images
from cem_assets.analyses.params import OcclusionParams
from cem_assets.errors import DataError


@dataclass(frozen=True)
class OcclusionMap:
    """What covering parts of one image does.

    Attributes:
        tops: int64 (rows,), first row of the square at each place.
        lefts: int64 (columns,), first column.
        drops: float64 (rows, columns), 1 - cosine similarity with the whole image's features: 0 for no change, up to 2.
        pixel_drops: float64 (height, width), mean drop of the places that cover each pixel.
    """

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    drops: NDArray[np.float64]
    pixel_drops: NDArray[np.float64]


def square_places(side_px: int, square_px: int, stride_px: int) -> NDArray[np.int64]:
    """Place a square along a side so that every pixel is covered.

    Args:
        side_px: Side length of the image.
        square_px: Side length of the square, at most as large.
        stride_px: Step, at most `square_px`.

    Returns:
        int64, sorted: the first pixel covered at each place.
    """
    last = side_px - square_px
    return np.array([*range(0, last, stride_px), last], np.int64)


def _drops(whole: Tensor, covered: Tensor) -> NDArray[np.float64]:
    similarity = functional.cosine_similarity(whole.double(), covered.double(), dim=1)
    drops: NDArray[np.float64] = (1 - similarity).clamp(0, 2).cpu().numpy()
    return drops


def occlusion_map(
    encoder: nn.Module, image: NDArray[np.uint8], norms: Norms, params: OcclusionParams | None = None
) -> OcclusionMap:
    """Measure how far the features of an image move when parts of it are covered.

    Args:
        encoder: Encoder with one or three input channels. It runs on its own device in evaluation mode, and is afterwards as
            before.
        image: uint8 (height, width), at least as large as the square.
        norms: Mean and deviation of pixels on a scale of 0 to 1.

    Returns:
        Drops by place and by pixel. An image of one gray value, covered with its mean, has none.

    Raises:
        ValueError: The image is smaller than the square, or has another type or shape.
        DataError: The features of the image are all zero, so that no similarity is defined.
    """
    params = params or OcclusionParams()
    if image.ndim != 2 or min(image.shape) < params.square_px:
        raise ValueError(f"the image has shape {image.shape}; expected two sides of {params.square_px} px or more")
    pixels = pixels_of_images(image[None])
    fill = float(pixels.mean()) if params.fill == "mean" else 0.0
    tops, lefts = (square_places(side, params.square_px, params.stride_px) for side in image.shape)
    places = [(int(top), int(left)) for top in tops for left in lefts]
    found = []
    with ActivationReader(encoder, norms, params.layer) as reader:
        whole = reader.units(pixels)
        if not bool(whole.any()):
            raise DataError("the features of the whole image are all zero; check the weights, or read another layer")
        for start in range(0, len(places), params.batch_size):
            chunk = places[start : start + params.batch_size]
            covered = pixels.repeat(len(chunk), 1, 1, 1)
            for row, (top, left) in enumerate(chunk):
                covered[row, :, top : top + params.square_px, left : left + params.square_px] = fill
            found.append(_drops(whole, reader.units(covered)))
    drops = np.concatenate(found).reshape(len(tops), len(lefts))
    return map_of_drops(drops, tops, lefts, params.square_px)


def map_of_drops(drops: NDArray[np.float64], tops: NDArray[np.int64], lefts: NDArray[np.int64], square_px: int) -> OcclusionMap:
    """Spread the drops of places over pixels: each has the mean of the places that cover it.

    Args:
        drops: float64 (rows, columns).
        tops: int64 (rows,), as `square_places` gives them.
        lefts: int64 (columns,).
        square_px: Side of the square.
    """
    shape = (int(tops[-1]) + square_px, int(lefts[-1]) + square_px)
    total, num_covering = np.zeros(shape), np.zeros(shape)
    for row, top in enumerate(tops.tolist()):
        for column, left in enumerate(lefts.tolist()):
            area = np.s_[top : top + square_px, left : left + square_px]
            total[area] += drops[row, column]
            num_covering[area] += 1
    return OcclusionMap(tops, lefts, drops, total / num_covering)
