"""Intensity policies: how voxels of any number type become uint8, reversibly.

Every policy gives one linear mapping with two numbers: `low` becomes 0 and `high` becomes 255. They are recorded beside the
data, so that the mapping can be undone up to rounding. The curator of a dataset chooses its policy, see
`cem_assets.catalog.description`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cem_assets.errors import DataError

Policy = Literal["identity", "dtype_range", "percentile", "window"]

SUPPORTED_DTYPES = (
    "uint8", "uint16", "uint32", "uint64",
    "int8", "int16", "int32", "int64",
    "float16", "float32", "float64",
)  # fmt: skip
"""The number types that `mapping_for` accepts. Complex numbers, structures and objects are not images."""

_SLAB = 1 << 22
"""So many values are converted at a time where no lookup table is used; the temporary float64 array then has 32 MiB."""


@dataclass(frozen=True)
class IntensityMapping:
    """A linear map to uint8: `low` becomes 0, `high` becomes 255, values outside saturate.

    Attributes:
        policy: The policy that gave this mapping.
        dtype: The name of the source's number type, such as "uint16".
        low: Source value that becomes 0.
        high: Source value that becomes 255.
    """

    policy: Policy
    dtype: str
    low: float
    high: float

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Convert an array of the source's type.

        Args:
            values: Any shape, with the number type `self.dtype` in either byte order.

        Returns:
            uint8 of the same shape, C-contiguous.

        Raises:
            DataError: A floating-point value is NaN or infinite.
        """
        values = np.ascontiguousarray(values, dtype=np.dtype(self.dtype))
        if self.policy == "identity" and values.dtype == np.uint8:
            return values.view(np.uint8)
        if values.dtype.kind == "f":
            bad = ~np.isfinite(values)
            if bad.any():
                first = tuple(int(i) for i in np.argwhere(bad)[0])
                raise DataError(f"{int(bad.sum())} values are NaN or infinite, the first at {first}")
        if values.dtype.itemsize <= 2 and values.dtype.kind in "iu":
            unsigned = np.dtype(f"u{values.dtype.itemsize}")
            every = np.arange(1 << (8 * values.dtype.itemsize), dtype=unsigned).view(values.dtype)
            table = self._linear(every.astype(np.float64))
            return np.asarray(table[values.view(unsigned)])
        flat = values.reshape(-1)
        out = np.empty(flat.shape, np.uint8)
        for start in range(0, flat.size, _SLAB):
            out[start : start + _SLAB] = self._linear(flat[start : start + _SLAB].astype(np.float64))
        return out.reshape(values.shape)

    def _linear(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        scaled = (values - self.low) * 255.0 / (self.high - self.low)
        return np.asarray(np.rint(np.clip(scaled, 0.0, 255.0)), dtype=np.uint8)

    def undo(self, values: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Convert uint8 of any shape back to float64 in the units of the source, exactly up to the rounding of `apply`."""
        return self.low + values.astype(np.float64) * ((self.high - self.low) / 255.0)


def default_policy(dtype: np.dtype[np.generic]) -> Policy:
    """Return the policy of a dataset that declares none: identity for uint8, percentile otherwise."""
    return "identity" if dtype == np.uint8 else "percentile"


def mapping_for(
    policy: Policy,
    dtype: np.dtype[np.generic],
    sample: NDArray[np.generic],
    percentiles: tuple[float, float] = (0.1, 99.9),
    window: tuple[float, float] | None = None,
) -> IntensityMapping:
    """Make the mapping of one volume or image.

    Signed integers are shifted and never clipped at zero: under "identity" (int8 only) and "dtype_range" the smallest number of
    the type becomes 0. "dtype_range" expects floating-point values between 0 and 1.

    Args:
        dtype: The source's number type.
        sample: The values that percentiles are computed from; only "percentile" uses them.
        percentiles: The lower and upper percentile, which become 0 and 255.
        window: (low, high) in the units of the source, for "window".

    Raises:
        DataError: The number type is none of `SUPPORTED_DTYPES`, the policy does not fit it, the sample has NaN or infinite
            values, or `low` and `high` are equal.

    Source: the policies of the CEM500K scripts (eLife 65894), which scale integers by the range of their type. Here
    "percentile" is the default, because 12-bit data in uint16 would turn black.
    """
    name = dtype.newbyteorder("=").name
    if name not in SUPPORTED_DTYPES:
        raise DataError(f"the number type is {name}; expected one of {', '.join(SUPPORTED_DTYPES)}")
    if policy == "identity":
        if name == "uint8":
            return IntensityMapping(policy, name, 0.0, 255.0)
        if name == "int8":
            return IntensityMapping(policy, name, -128.0, 127.0)
        raise DataError(
            f'intensity = "identity" needs uint8 or int8 data, found {name}; use "percentile", "dtype_range" or "window"'
        )
    if policy == "dtype_range":
        if dtype.kind == "f":
            return IntensityMapping(policy, name, 0.0, 1.0)
        info = np.iinfo(np.dtype(name))
        return IntensityMapping(policy, name, float(info.min), float(info.max))
    if policy == "window":
        if window is None or not window[0] < window[1]:
            raise DataError(f'intensity = "window" needs intensity_window = [low, high] with low < high, found {window}')
        return IntensityMapping(policy, name, float(window[0]), float(window[1]))
    numbers = sample.astype(np.float64)
    if not numbers.size:
        raise DataError("there are no values to measure percentiles on; every voxel is marked as missing")
    if not np.isfinite(numbers).all():
        raise DataError(f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} sampled values are NaN or infinite")
    low, high = (float(v) for v in np.percentile(numbers, percentiles))
    if not low < high:
        raise DataError(
            f"the {percentiles[0]} and {percentiles[1]} percentiles are both {low:g}, so there is no contrast to "
            'keep; if the data is right, give intensity = "window" with intensity_window = [low, high]'
        )
    return IntensityMapping(policy, name, low, high)


def gray_from_channels(pixels: NDArray[np.generic]) -> tuple[NDArray[np.generic], str]:
    """Reduce an image with a channel axis to one channel.

    Gray that was saved as LA, RGB or RGBA is recognised; real colour becomes ITU-R 601 luminance.

    Args:
        pixels: (..., channels) with 1 to 4 channels: gray, gray + alpha, RGB, RGB + alpha.

    Returns:
        (...) of the same dtype, and what was done: "gray", "gray saved as LA", "gray saved as RGB", "gray saved as RGBA" or
        "colour reduced to luminance".

    Raises:
        DataError: There are no channels, or more than four.
    """
    num = pixels.shape[-1]
    if num > 4 or num < 1:
        raise DataError(f"it has {num} channels; expected 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha)")
    if num <= 2:
        return pixels[..., 0], "gray" if num == 1 else "gray saved as LA"
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return red, "gray saved as RGB" if num == 3 else "gray saved as RGBA"
    luminance = 0.299 * red.astype(np.float64) + 0.587 * green.astype(np.float64) + 0.114 * blue.astype(np.float64)
    if pixels.dtype.kind in "iu":
        luminance = np.rint(luminance)
    return luminance.astype(pixels.dtype), "colour reduced to luminance"
