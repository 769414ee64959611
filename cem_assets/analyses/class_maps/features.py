"""The features that a network computes from gray images, for maps of classes.

Benchmarks compute features in other ways, with several channels and standardisation.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

SIDE_PX = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network_input(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Resize images of any size to 224 x 224 px with bilinear interpolation: uint8 (n, 224, 224)."""
    resized = [np.asarray(Image.fromarray(image).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)) for image in images]
    return np.stack(resized) if resized else np.zeros((0, SIDE_PX, SIDE_PX), np.uint8)


def features_of(model: nn.Module, batches: Iterator[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Compute the features of batches of images.

    Args:
        model: Takes (n, 3, 224, 224) and returns (n, d). It is put into evaluation mode here.
        batches: uint8 (n, 224, 224). They become three equal channels, normalised like images of ImageNet.

    Returns:
        float32 (n, d) for the images of all batches, in order.
    """
    model.eval()
    mean, std = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    found = []
    with torch.inference_mode():
        for batch in batches:
            pixels = torch.from_numpy(batch).float().div(255).unsqueeze(1).expand(-1, 3, -1, -1)
            found.append(model((pixels - mean) / std).float().numpy())
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)
