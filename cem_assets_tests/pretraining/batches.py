"""Small synthetic batches and one training step, for the tests of the methods."""

import numpy as np
import torch
from torch import Tensor

from cem_assets.pretraining.distributed import average_gradients
from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.methods.params import MethodParams, views
from cem_assets.pretraining.methods.schedules import learning_rate

NUM_CLASSES = 8


def gratings(labels: np.ndarray, size_px: int, generator: np.random.Generator) -> np.ndarray:
    """Render stripes whose direction is the class; phase, width, brightness, contrast and noise are drawn anew.

    Returns uint8 (n, size_px, size_px).
    """
    y, x = np.mgrid[:size_px, :size_px]

    def draw(low: float, high: float) -> np.ndarray:
        return generator.uniform(low, high, (len(labels), 1, 1))

    angle, width = np.pi * labels[:, None, None] / NUM_CLASSES, draw(5, 7)
    waves = np.sin(2 * np.pi / width * (x * np.cos(angle) + y * np.sin(angle)) + draw(0, 2 * np.pi))
    noise = generator.normal(0, 0.05, (len(labels), size_px, size_px))
    return (255 * (0.5 + draw(-0.15, 0.15) + draw(0.1, 0.2) * waves + noise)).clip(0, 255).astype(np.uint8)


def views_of(labels: np.ndarray, params: MethodParams, generator: np.random.Generator) -> list[Tensor]:
    """Draw the views that a method needs of each image: renderings that have nothing but the class in common."""
    sizes = [spec.size_px for spec in views(params) for _ in range(spec.num)]
    rendered = [torch.from_numpy(gratings(labels, size_px, generator)) for size_px in sizes]
    return [(images.unsqueeze(1).float() / 255 - params.mean) / params.std for images in rendered]


def random_views(params: MethodParams, num: int, seed: int) -> list[Tensor]:
    """Draw views of white noise."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [spec.size_px for spec in views(params) for _ in range(spec.num)]
    return [torch.randn(num, 1, size_px, size_px, generator=generator) for size_px in sizes]


def do_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: list[Tensor],
    labels: Tensor | None,
    step: int,
    steps_per_epoch: int,
) -> tuple[float, dict[str, float]]:
    """Make one step as the training loop does, on one rank or several."""
    loss, indicators = method.compute_loss(batch, labels, step, step // steps_per_epoch)
    optimizer.zero_grad()
    loss.backward()
    average_gradients(method.parameters())
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(method.params, step, steps_per_epoch)
    optimizer.step()
    method.after_step(step)
    return float(loss.detach()), {name: float(value) for name, value in indicators.items()}
