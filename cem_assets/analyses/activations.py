"""Reads the output of a layer of an encoder for gray images: its maps, or one number for each of its units.

Changed images are made in `cem_assets.analyses.invariance.transformations` and `cem_assets.analyses.occlusion.maps`. Features
for the benchmarks, with channels and stretching, are made in `cem_assets.benchmarks.transfer.features`.
"""

from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cem_assets.errors import DataError

Norms = tuple[Any, Any]
"""Mean and deviation of pixels on a scale of 0 to 1: a number each, or one for each channel of the encoder."""


class ActivationReader:
    """Reads one layer of an encoder in evaluation mode. Use it as a context; afterwards the encoder is as before."""

    def __init__(self, encoder: nn.Module, norms: Norms, layer: str = "") -> None:
        """Make a reader.

        Args:
            encoder: Encoder for (n, 1 or 3, height, width); gray images are repeated for three channels.
            norms: Mean and deviation of pixels in the training of the weights.
            layer: Name of the module whose output is read, such as "layer3"; empty for what the encoder returns.

        Raises:
            DataError: There is no such layer.
            ValueError: The norms do not suit the encoder.
        """
        names = [name for name, _ in encoder.named_modules()]
        if layer not in names:
            known = ", ".join(name for name in names if name and "." not in name)
            raise DataError(f"the encoder has no layer {layer!r}; expected one of {known}, or a module inside one")
        parameter = next(encoder.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        mean, std = (np.asarray(norm, np.float32).reshape(-1) for norm in norms)
        first = next((module for module in encoder.modules() if isinstance(module, nn.Conv2d)), None)
        self._num_inputs = first.in_channels if first is not None else max(len(mean), len(std))
        if {len(mean), len(std)} - {1, self._num_inputs} or not (std > 0).all():
            raise ValueError(
                f"norms are {norms} for {self._num_inputs} channels; expected one positive deviation, or one for each"
            )
        self._shift, self._scale = (torch.from_numpy(norm).to(self.device).view(1, -1, 1, 1) for norm in (mean, std))
        self._encoder = encoder
        self._layer = encoder.get_submodule(layer)
        self._what = f"layer {layer!r}" if layer else "the encoder"
        self._modes: list[tuple[nn.Module, bool]] = []
        self._caught: list[Any] = []
        self._hook: Any = None

    def __enter__(self) -> "ActivationReader":
        """Put the encoder into evaluation mode and listen to the layer."""
        self._modes = [(module, module.training) for module in self._encoder.modules()]
        self._encoder.eval()
        self._hook = self._layer.register_forward_hook(self._catch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the encoder as it was."""
        self._hook.remove()
        for module, is_training in self._modes:
            module.training = is_training

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # A copy is kept, because the next layer may work in place, as a ReLU after a normalisation does.
        self._caught.append(output.clone() if isinstance(output, Tensor) else output)

    def maps(self, pixels: Tensor) -> Tensor:
        """Compute the output of the layer.

        Args:
            pixels: float32 (n, 1, height, width), 0..1, on any device.

        Returns:
            float32 (n, c, ...) on the encoder's device.

        Raises:
            DataError: The layer did not run exactly once, or its output is no batch of numbers or has values that are not
                finite.
        """
        self._caught.clear()
        with torch.inference_mode():
            inputs = pixels.to(self.device).expand(-1, self._num_inputs, -1, -1)
            self._encoder(((inputs - self._shift) / self._scale).contiguous())
        num_runs, found = len(self._caught), self._caught[-1] if self._caught else None
        self._caught.clear()
        if num_runs != 1 or not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(pixels):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"{self._what} ran {num_runs} times and gave {what} for {len(pixels)} images; expected one run and a tensor "
                "(n, c, ...). Choose another layer."
            )
        if not bool(torch.isfinite(found).all()):
            raise DataError(f"{self._what} gives NaN or infinite values; check the weights and norms")
        return found.float()

    def units(self, pixels: Tensor) -> Tensor:
        """Compute one number for each unit: maps are averaged over their area.

        Args:
            pixels: float32 (n, 1, height, width), 0..1.

        Returns:
            float32 (n, c).
        """
        found = self.maps(pixels)
        return found.flatten(2).mean(2) if found.ndim > 2 else found


def pixels_of_images(images: NDArray[np.uint8]) -> Tensor:
    """Turn gray images into pixels on a scale of 0 to 1.

    Args:
        images: uint8 (n, height, width).

    Returns:
        float32 (n, 1, height, width) on the CPU.

    Raises:
        ValueError: The images have another type or shape.
    """
    if images.ndim != 3 or images.dtype != np.uint8 or not images.size:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}; expected uint8, (n, height, width), n > 0")
    return torch.from_numpy(np.array(images, order="C")).unsqueeze(1).to(torch.float32).div_(255.0)
