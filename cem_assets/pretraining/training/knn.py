"""Measures features while they are learned: by nearest neighbours, and whether they have collapsed.

A held-out image is assigned to the dataset from which most of its nearest training images come. This needs no training and no
labels beyond the dataset of origin. Finished weights are scored in `cem_assets.benchmarks`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cem_assets.pretraining.views.augmentations import normalised

NUM_NEIGHBOURS = 20
_QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class KnnResult:
    """How well nearest neighbours tell datasets apart by their features.

    Attributes:
        accuracy: Share of held-out images given to their own dataset.
        chance: Share that would be right if every one were given to the dataset with most training images.
        feature_std: `feature_std` of the held-out features.
        num_queries: Number of held-out images.
    """

    accuracy: float
    chance: float
    feature_std: float
    num_queries: int


def hold_out(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out the same share of every dataset's images.

    Args:
        labels: int64 (n,), number of the dataset of each image.
        share: Part to hold out, between 0 and 1.
        seed: Seed of the draw.

    Returns:
        Training rows and held-out rows, int64, sorted. A dataset of two or more images has at least one in each of them; a
        single image of a dataset is a training row.

    Raises:
        ValueError: The share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share is {share}; expected a number between 0 and 1.")
    is_held = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        num = min(max(1, round(share * len(rows))), len(rows) - 1)
        # Each dataset has its own generator, so that one more dataset does not change the draw of the others.
        generator = np.random.default_rng(np.random.SeedSequence((seed, int(label) & 0xFFFFFFFF)))
        is_held[generator.choice(rows, num, replace=False)] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def encode_images(
    encoder: nn.Module,
    images: NDArray[np.uint8],
    norms: tuple[float, float],
    device: torch.device,
    *,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.float32]:
    """Compute features in evaluation mode; afterwards the encoder has its former mode.

    Args:
        encoder: Encoder with one input channel.
        images: uint8 (n, height, width), not augmented.
        norms: Mean and deviation of pixels on a scale of 0 to 1.
        device: Device of the encoder.
        batch_size: Number of images at once; the last bits of the features depend on it.
        dtype: float32, or bfloat16 for autocast.

    Returns:
        float32 (n, d).
    """
    mean, std = norms
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    outputs = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(device)
                inputs = normalised(chunk, mean, std).contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                    features = encoder(inputs)
                outputs.append(features.float().flatten(1).cpu().numpy())
    finally:
        for module, is_training in modes:
            module.training = is_training
    return np.concatenate(outputs) if outputs else np.empty((0, 0), np.float32)


def nearest_labels(
    bank: NDArray[np.float32], bank_labels: NDArray[np.int64], queries: NDArray[np.float32], k: int = NUM_NEIGHBOURS
) -> NDArray[np.int64]:
    """Give every query the label that most of its k nearest neighbours by cosine similarity have.

    Args:
        bank: float32 (n, d), features with known labels.
        bank_labels: int64 (n,).
        queries: float32 (m, d).
        k: Number of neighbours, each of which has one vote; at most n are used.

    Returns:
        int64 (m,). Between labels with equally many votes the nearest neighbour among them decides; of equally near
        neighbours the earlier row comes first.

    Raises:
        ValueError: The bank is empty, or k is not positive.
    """
    if len(bank) == 0 or k < 1:
        raise ValueError(f"{len(bank)} features and k = {k}; expected at least one of each.")
    known = _unit_rows(bank)
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        similarity = _unit_rows(queries[start : start + _QUERIES_AT_ONCE]) @ known.T
        order = torch.sort(similarity, dim=1, descending=True, stable=True).indices[:, :k].numpy()
        labels = bank_labels[order]
        votes = (labels[:, :, None] == labels[:, None, :]).sum(axis=2)
        winner = votes.argmax(axis=1)  # the first of the largest: neighbours are sorted, so the nearest
        found[start : start + len(labels)] = labels[np.arange(len(labels)), winner]
    return found


def feature_std(features: NDArray[np.float32]) -> float:
    """Measure how widely features are spread.

    Args:
        features: float32 (n, d).

    Returns:
        The standard deviation of the features scaled to length 1, averaged over dimensions: near 0 when they have collapsed to
        one direction, 1 / sqrt(d) when their directions are spread evenly, NaN without features.

    Source: Chen and He, SimSiam, arXiv 2011.10566, section 4.1.
    """
    if len(features) == 0:
        return float("nan")
    return float(_unit_rows(features).std(dim=0, correction=0).mean())


def _unit_rows(features: NDArray[np.float32]) -> torch.Tensor:
    return nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)), dim=1)


def measure_knn(
    bank: NDArray[np.float32],
    bank_labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    k: int = NUM_NEIGHBOURS,
) -> KnnResult:
    """Measure features by their nearest neighbours.

    Args:
        bank: float32 (n, d), features of training images.
        bank_labels: int64 (n,), the dataset that each of them comes from.
        queries: float32 (m, d), features of held-out images.
        query_labels: int64 (m,).
        k: Number of neighbours that vote.

    Raises:
        ValueError: Nothing is held out, or lengths differ.
    """
    if len(bank) != len(bank_labels) or len(queries) != len(query_labels) or len(queries) == 0:
        raise ValueError(
            f"{len(bank)} features with {len(bank_labels)} labels, {len(queries)} held out with {len(query_labels)} labels; "
            "expected as many labels as features, and at least one held out."
        )
    names, counts = np.unique(bank_labels, return_counts=True)
    return KnnResult(
        accuracy=float(np.mean(nearest_labels(bank, bank_labels, queries, k) == query_labels)),
        chance=float(np.mean(query_labels == names[counts.argmax()])),
        feature_std=feature_std(queries),
        num_queries=len(queries),
    )
