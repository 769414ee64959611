"""Training the patch classifier on labelled patches, and evaluating it.

Training is a generator of the results of epochs, and knows neither Dagster nor MLflow. Augmentations are mild, so that none
makes an informative patch uninformative.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve
from torch import nn
from torch.nn import functional

from cem_assets.cem.classifier.network import score_batches
from cem_assets.cem.classifier.params import ClassifierParams, Finetune, Precision, ScoreParams, probability
from cem_assets.cem.classifier.scoring_network import to_network
from cem_assets.encoders import pick_device

BRIGHTNESS = CONTRAST = 0.2
NOISE_VARIANCE = (40.0, 100.0)
"""Range of the variance of Gaussian noise, in squared gray levels."""
BLUR_KERNELS = (3, 5)


@dataclass(frozen=True)
class Split:
    """Rows for training and for validation, both int64."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True)
class ClassifierEpoch:
    """The result of one pass over the training patches.

    Attributes:
        epoch: Number of the epoch, beginning with 1.
        training_loss, training_accuracy: Means over the patches of the epoch's batches.
        validation_loss, validation_accuracy: Measured on the held-out patches after the epoch.
    """

    epoch: int
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """The measures of a classifier on labelled patches.

    Attributes:
        auc: Area under the ROC curve; NaN if only one label is present.
        accuracy: Share of right decisions at a threshold of 0.5.
        confusion: int64 (2, 2): rows are the labels bad and good, columns the decisions bad and good.
        false_positive_rate, true_positive_rate: float64 (m,), points of the ROC curve.
        probabilities: float32 (n,).
    """

    auc: float
    accuracy: float
    confusion: NDArray[np.int64]
    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    probabilities: NDArray[np.float32]


def split_labelled(names: Sequence[str], is_good: NDArray[np.bool_], params: ClassifierParams) -> Split:
    """Hold out patches for validation by a keyed hash of their names, with the same share of the good and of the bad ones.

    Args:
        names: Names of the labelled patches.
        is_good: bool (n,), the labels.
        params: Seed and share.

    Returns:
        Rows for training and for validation. Either has at least one patch of each label.
    """
    key = params.seed.to_bytes(8, "big")
    validation: list[int] = []
    for label in (True, False):
        rows = np.flatnonzero(is_good == label).tolist()
        rows.sort(key=lambda row: hashlib.blake2b(names[row].encode(), digest_size=8, key=key).digest())
        held = min(max(1, round(params.validation_share * len(rows))), len(rows) - 1)
        validation += rows[:held]
    mask = np.zeros(len(names), np.bool_)
    mask[validation] = True
    return Split(np.flatnonzero(~mask), np.flatnonzero(mask))


def freeze(model: nn.Module, finetune: Finetune) -> None:
    """Make all parameters trainable, or only those of `layer4` and `fc`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = finetune == Finetune.all or name.startswith(("layer4.", "fc."))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augment a batch. Each kind of augmentation is applied to each image with probability 0.5.

    The kinds are brightness and contrast by up to 20 %, Gaussian noise of variance 40..100, Gaussian blur of 3 or 5 px, and
    flips in both directions.

    Args:
        images: float32 (n, 224, 224), gray levels 0..255.
        generator: Generator of all random numbers, on the CPU.

    Returns:
        float32 (n, 224, 224), clipped to 0..255.

    Source: `train_patch_classifier.py` of volume-em/cem-dataset, which uses albumentations.
    """
    num, device = len(images), images.device

    def uniform(low: float, high: float) -> torch.Tensor:
        return (low + (high - low) * torch.rand(num, generator=generator)).view(-1, 1, 1).to(device)

    def coin() -> torch.Tensor:
        return (torch.rand(num, generator=generator) < 0.5).view(-1, 1, 1).to(device)

    factor, offset = uniform(1 - CONTRAST, 1 + CONTRAST), uniform(-BRIGHTNESS, BRIGHTNESS) * 255
    images = torch.where(coin(), (images * factor + offset).clamp(0, 255), images)
    deviation = uniform(*NOISE_VARIANCE).sqrt()
    noise = torch.randn(images.shape, generator=generator).to(device)
    images = torch.where(coin(), (images + deviation * noise).clamp(0, 255), images)
    is_blurred, is_wide = coin(), coin()
    for size, chosen in zip(BLUR_KERNELS, (is_blurred & ~is_wide, is_blurred & is_wide), strict=True):
        images = torch.where(chosen, _blur(images, size), images)
    images = torch.where(coin(), images.flip(2), images)
    return torch.where(coin(), images.flip(1), images)


def _blur(images: torch.Tensor, size: int) -> torch.Tensor:
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8  # the standard deviation that OpenCV uses for a kernel of this size
    x = torch.arange(size, device=images.device) - size // 2
    taps = torch.exp(-(x**2) / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = functional.pad(images.unsqueeze(1), [size // 2] * 4, mode="reflect")
    rows = functional.conv2d(padded, taps.view(1, 1, 1, size))
    return functional.conv2d(rows, taps.view(1, 1, size, 1)).squeeze(1)


def train_classifier(
    model: nn.Module,
    images: NDArray[np.uint8],
    is_good: NDArray[np.bool_],
    split: Split,
    params: ClassifierParams,
    finetune: Finetune,
) -> Iterator[ClassifierEpoch]:
    """Train a classifier in place. Each value that is taken from the generator runs one epoch.

    Args:
        model: A network from `network.build_classifier`.
        images: uint8 (n, 224, 224).
        is_good: bool (n,), the labels.
        split: Rows to train on, and rows to validate on.
        finetune: Which layers are trained: "layer4" or "all".

    Yields:
        The result of every epoch.

    Source: `train_patch_classifier.py` of volume-em/cem-dataset: binary cross-entropy, Adam, 30 epochs. As there, the batch
    statistics of frozen layers are updated too.
    """
    device = pick_device(params.device)
    freeze(model, finetune)
    model.to(device).to(memory_format=torch.channels_last)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=params.learning_rate)
    criterion = nn.BCEWithLogitsLoss()
    generator = torch.Generator().manual_seed(params.seed)
    targets = torch.from_numpy(is_good.astype(np.float32))
    for epoch in range(1, params.epochs + 1):
        model.train()
        order = torch.from_numpy(split.training)[torch.randperm(len(split.training), generator=generator)]
        batches = [batch for batch in torch.split(order, params.batch_size) if len(batch) > 1]  # BatchNorm needs two
        loss_sum, right = 0.0, 0
        for batch in batches:
            pixels = torch.from_numpy(images[batch.numpy()]).to(device).float()
            inputs = to_network(augment(pixels, generator))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == Precision.bfloat16):
                logits = model(inputs).flatten()
            target = targets[batch].to(device)
            loss = criterion(logits.float(), target)
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * len(batch)
            right += int(((logits.detach() > 0) == (target > 0)).sum())
        seen = sum(len(batch) for batch in batches)
        if finetune == Finetune.all:
            settle_statistics(model, images[split.training], params)
        logits_held = _logits(model, images[split.validation], params)
        held = torch.from_numpy(logits_held)
        validation_loss = float(criterion(held, targets[split.validation]))
        accuracy = float(np.mean((logits_held > 0) == is_good[split.validation]))
        yield ClassifierEpoch(epoch, loss_sum / seen, right / seen, validation_loss, accuracy)


def settle_statistics(model: nn.Module, images: NDArray[np.uint8], params: ClassifierParams) -> None:
    """Compute the batch statistics of all BatchNorm layers again, as plain means with the current weights.

    The running averages of training lag behind weights that change fast, as they do when training starts from random weights
    on few patches. A network that is right in training mode can then be wrong in every decision in evaluation mode. This is
    not part of the published recipe, which trains only the last block.

    Args:
        model: The network, which is changed in place and left in evaluation mode.
        images: uint8 (n, 224, 224), the training patches without augmentation.
        params: Batch size, and the seed of the order.

    Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3 ("PreciseBN").
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over batches instead of a running average
    model.train()
    device = next(model.parameters()).device
    # Rows are sorted by name and neighbours look alike, so without shuffling a batch would not vary as the whole set does.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(params.seed))
    with torch.no_grad():
        for rows in torch.split(order, params.batch_size):
            model(to_network(torch.from_numpy(images[rows.numpy()]).to(device).float()))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def _logits(model: nn.Module, images: NDArray[np.uint8], params: ClassifierParams) -> NDArray[np.float32]:
    score = ScoreParams(batch_size=params.batch_size, device=params.device, precision=params.precision)
    return next(score_batches(model, [images], score))


def evaluate(model: nn.Module, images: NDArray[np.uint8], is_good: NDArray[np.bool_], params: ClassifierParams) -> Evaluation:
    """Measure a classifier on labelled patches.

    Args:
        images: uint8 (n, 224, 224).
        is_good: bool (n,), the labels.
        params: Device, batch size and precision.
    """
    probabilities = probability(_logits(model, images, params))
    decided = probabilities > 0.5
    false_positive, true_positive, _ = roc_curve(is_good, probabilities)
    has_both = bool(is_good.any() and not is_good.all())
    return Evaluation(
        auc=float(roc_auc_score(is_good, probabilities)) if has_both else float("nan"),
        accuracy=float(np.mean(decided == is_good)),
        confusion=confusion_matrix(is_good, decided, labels=[False, True]).astype(np.int64),
        false_positive_rate=false_positive.astype(np.float64),
        true_positive_rate=true_positive.astype(np.float64),
        probabilities=probabilities,
    )
