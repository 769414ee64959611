"""How much of what an encoder's units answer to survives a change of the image: mean firing rates.

A unit fires for an image when its activation is above a threshold that few images pass. Its local firing rate at
some strength of a change is the share of those images for which it still fires after the change; by chance this would be the
share of all images for which it fires. The changes are `cem_assets.analyses.invariance.transformations`, charts
`cem_assets.analyses.invariance.figures`.

Source: Goodfellow, Le, Saxe, Lee, Ng 2009, "Measuring invariances in deep networks". We differ: the images a unit answers to
most are exactly those above its threshold; thresholds come from the images measured, not from random inputs;
local rates are kept strength by strength; units that are maps are averaged over their area first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cem_assets.analyses.activations import ActivationReader, Norms, pixels_of_images
from cem_assets.analyses.invariance.transformations import TRANSFORMATIONS, noise_seeds
from cem_assets.analyses.params import InvarianceParams


@dataclass(frozen=True)
class FiringRates:
    """Firing rates of the units under one transformation.

    Attributes:
        transformation: A key of `TRANSFORMATIONS`.
        strengths: The strengths that were applied, in order.
        local_rates: float64 (strengths, units). Of the images for which a unit fires, the share for which it still fires after
            the change; NaN for units that fire for no image.
        global_rates: float64 (units,), the share of all images for which a unit fires. It is below the requested rate where
            activations are equal.
        num_images: Number of images that were measured.
    """

    transformation: str
    strengths: tuple[float, ...]
    local_rates: NDArray[np.float64]
    global_rates: NDArray[np.float64]
    num_images: int

    @property
    def is_firing(self) -> NDArray[np.bool_]:
        """Whether each unit fires at all, bool (units,)."""
        return self.global_rates > 0

    @property
    def mean_rates(self) -> NDArray[np.float64]:
        """Mean over the firing units, float64 (strengths,); NaN where none fires."""
        if not self.is_firing.any():
            return np.full(len(self.strengths), np.nan)
        return np.asarray(self.local_rates[:, self.is_firing].mean(axis=1))

    @property
    def scores(self) -> NDArray[np.float64]:
        """Invariance scores, float64 (units,): mean local rate over the strengths by the global rate; NaN for silent units."""
        scores = np.full(len(self.global_rates), np.nan)
        chosen = self.is_firing
        scores[chosen] = self.local_rates[:, chosen].mean(axis=0) / self.global_rates[chosen]
        return scores


def firing_thresholds(activations: NDArray[np.floating], global_rate: float = 0.01) -> NDArray[np.float64]:
    """Find the activation above which each unit fires for the given share of images.

    Args:
        activations: (n, units).
        global_rate: Share of the images; at least one image is meant.

    Returns:
        float64 (units,): half way between the activations on either side, so that rounding decides nothing. Where both are
        equal, their value: fewer images, or none, are above.

    Raises:
        ValueError: There are fewer than two images, or the share includes all of them.
    """
    num_firing = max(1, round(global_rate * len(activations)))
    if activations.ndim != 2 or len(activations) <= num_firing:
        raise ValueError(
            f"activations have shape {activations.shape} and {num_firing} images are to fire; expected (n, units), n above that"
        )
    ordered = np.sort(activations.astype(np.float64), axis=0)
    return np.asarray((ordered[-num_firing] + ordered[-num_firing - 1]) / 2)


def _read(reader: ActivationReader, pixels: Tensor, is_either_sign: bool) -> NDArray[np.float64]:
    units = reader.units(pixels).cpu().numpy().astype(np.float64)
    return np.concatenate([units, -units], axis=1) if is_either_sign else units


def _better_sign(rates: FiringRates) -> FiringRates:
    """Keep the one of each unit and its negative that has the larger score; the unit itself where they are equal."""
    num = len(rates.global_rates) // 2
    scores = np.nan_to_num(rates.scores, nan=-1.0)
    chosen = np.arange(num) + np.where(scores[num:] > scores[:num], num, 0)
    return FiringRates(
        rates.transformation, rates.strengths, rates.local_rates[:, chosen], rates.global_rates[chosen], rates.num_images
    )


def measure_invariance(
    encoder: nn.Module,
    images: NDArray[np.uint8],
    norms: Norms,
    params: InvarianceParams | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, FiringRates]:
    """Measure the firing rates of an encoder's units under changes of images.

    Args:
        encoder: Encoder with one or three input channels. It runs on its own device in evaluation mode, and is afterwards as
            before.
        images: uint8 (n, height, width) of one size, unchanged; one pass over all is made for every strength.
        norms: Mean and deviation of pixels on a scale of 0 to 1.

    Returns:
        Rates by transformation, in the order of the parameters. They do not depend on the batch size, except where the
        activation of a changed image is within rounding of a threshold.

    Raises:
        DataError: The encoder has no such layer, or the layer's output cannot be used.
    """
    params = params or InvarianceParams()
    wanted: dict[str, Sequence[float]] = dict(params.strengths) or {
        name: row.strengths for name, row in TRANSFORMATIONS.items()
    }
    num_done, num_all = 0, sum(map(len, wanted.values()))
    pixels = pixels_of_images(images)
    starts = range(0, len(images), params.batch_size)
    found: dict[str, FiringRates] = {}
    with ActivationReader(encoder, norms, params.layer) as reader:
        chunks = [_read(reader, pixels[start : start + params.batch_size], params.is_either_sign) for start in starts]
        unchanged = np.concatenate(chunks)
        thresholds = firing_thresholds(unchanged, params.global_rate)
        is_firing = unchanged > thresholds
        num_firing = is_firing.sum(axis=0)
        for name, values in wanted.items():
            still = np.zeros((len(values), len(num_firing)), np.int64)
            for row, strength in enumerate(values):
                for start in starts:
                    chunk = pixels[start : start + params.batch_size].to(reader.device)
                    seeds = noise_seeds(params.seed, start, len(chunk)) if name == "noise" else []
                    with torch.inference_mode():
                        changed = TRANSFORMATIONS[name].apply(chunk, float(strength), seeds)
                    fires_now = _read(reader, changed, params.is_either_sign) > thresholds
                    still[row] += (fires_now & is_firing[start : start + len(chunk)]).sum(axis=0)
                num_done += 1
                if progress is not None:
                    progress(num_done, num_all)
            local = np.divide(still, num_firing, out=np.full(still.shape, np.nan), where=num_firing > 0)
            rates = FiringRates(name, tuple(map(float, values)), local, num_firing / len(images), len(images))
            found[name] = _better_sign(rates) if params.is_either_sign else rates
    return found
