"""Training the patch classifier from labelled patches, and measuring it.

The loop is a generator of epoch results and knows neither Dagster nor MLflow. Augmentations are mild, so
that none turns an informative patch into an uninformative one. Inference is `cem_assets.cem.classifier.network`.
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
from cem_assets.cem.classifier.scoring_network import to_network
from cem_assets.cem.filter.params import MIN_LABELLED, ClassifierParams, Finetune, Precision, ScoreParams, probability
from cem_assets.encoders import pick_device
from cem_assets.errors import DataError

BRIGHTNESS = CONTRAST = 0.2
NOISE_VARIANCE = (40.0, 100.0)
"""Of Gaussian noise, in squared gray levels."""
BLUR_KERNELS = (3, 5)


@dataclass(frozen=True)
class Split:
    """Rows for training and validation, both int64, in no particular order."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True)
class EpochResult:
    """What one pass over the training patches gave.

    Attributes:
        epoch: 1 for the first.
        training_loss, training_accuracy: Means over the epoch's batches.
        validation_loss, validation_accuracy: On the held-out patches after the epoch.
    """

    epoch: int
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """How a classifier does on labelled patches.

    Attributes:
        auc: Area under the ROC curve; NaN where only one label is present.
        accuracy: Share of right decisions at probability 0.5.
        confusion: int64 (2, 2): rows are the labels bad and good, columns the decisions.
        false_positive_rate, true_positive_rate: float64 (m,), points of the ROC curve.
        probabilities: float32 (n,).
    """

    auc: float
    accuracy: float
    confusion: NDArray[np.int64]
    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    probabilities: NDArray[np.float32]


def check_labels(labels: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a label table that no classifier can be trained from.

    Args:
        labels: "good", "bad" or "none" for each patch.
        names: Names of the patches.

    Raises:
        DataError: A label is of another kind, a patch is listed twice, or fewer than 64 are good or bad.
    """
    problems = []
    unknown = sorted(set(labels) - {"good", "bad", "none"})
    if unknown:
        problems.append(f"labels {unknown[:5]} are not known; expected good, bad or none")
    if len(set(names)) != len(names):
        problems.append(f"{len(names) - len(set(names))} patches are listed more than once")
    num_good, num_bad = (sum(label == kind for label in labels) for kind in ("good", "bad"))
    if num_good + num_bad < MIN_LABELLED:
        problems.append(f"{num_good} good and {num_bad} bad patches; expected at least {MIN_LABELLED} of them together")
    elif min(num_good, num_bad) < 2:
        problems.append(f"{num_good} good and {num_bad} bad patches; expected at least 2 of each")
    if problems:
        raise DataError(f"the label table cannot train a classifier: {'; '.join(problems)}. Label more patches.")


def split_labelled(names: Sequence[str], is_good: NDArray[np.bool_], params: ClassifierParams) -> Split:
    """Hold out patches for validation, the same share of good and bad ones, by a keyed hash of their names.

    Args:
        names: Names of the labelled patches.
        is_good: bool (n,).
        params: Seed and share.

    Returns:
        Training and validation rows; at least one of each label on either side.
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
    """Leave only `layer4` and `fc` trainable, or everything."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = finetune == Finetune.all or name.startswith(("layer4.", "fc."))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augment a batch; each kind with probability 0.5 for each image.

    Args:
        images: float32 (n, 224, 224), gray levels 0..255.
        generator: Source of every draw, on the CPU.

    Returns:
        float32 (n, 224, 224), clipped to 0..255: brightness and contrast by up to 20 %, Gaussian noise of
        variance 40..100, Gaussian blur of 3 or 5 px, flips in both directions.

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
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8  # the width that goes with a kernel size in OpenCV
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
) -> Iterator[EpochResult]:
    """Train in place, one epoch for each value taken from the generator.

    Args:
        model: From `classifier.build_classifier`.
        images: uint8 (n, 224, 224).
        is_good: bool (n,): the label.
        split: Rows to train on and to validate on.
        params: Everything else.
        finetune: Which layers move; "auto" was decided by the caller.

    Yields:
        The result of every epoch.

    Source: `train_patch_classifier.py` of volume-em/cem-dataset: BCE, Adam, 30 epochs; batch
    statistics are updated in frozen layers too, as there.
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
        yield EpochResult(epoch, loss_sum / seen, right / seen, validation_loss, accuracy)


def settle_statistics(model: nn.Module, images: NDArray[np.uint8], params: ClassifierParams) -> None:
    """Compute the batch statistics of all BatchNorm layers anew, as plain means under the weights as they are.

    The running averages kept while training lag behind weights that move fast, as they do from random
    initialisation on few patches: a network that is right in training mode can then be wrong in every
    decision in evaluation mode. Not part of the published recipe, which moves only the last block.

    Args:
        model: Changed in place; left in evaluation mode.
        images: uint8 (n, 224, 224), the training patches without augmentation.
        params: Device and batch size.

    Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3 ("PreciseBN").
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over batches instead of a running average
    model.train()
    device = next(model.parameters()).device
    # Shuffled: rows come sorted by name, neighbours look alike, and the spread between batches must not be lost.
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
        model: The trained classifier.
        images: uint8 (n, 224, 224).
        is_good: bool (n,).
        params: Device, batch size and precision.

    Returns:
        ROC curve, AUC, confusion matrix and accuracy.
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
