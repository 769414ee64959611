"""How the phantom's cells are drawn: nuclei, cell bodies, and what each channel stains.

`cem_assets.cytoimagenet.phantom.screens` says which classes there are, how they look, and what a field is. All cells of a field
are computed at once, each in a window of its own, so a field takes a few milliseconds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Canvas = NDArray[np.float32]

_BACKGROUND, _READ_NOISE, _SHOT_GAIN = 160.0, 5.0, 1.6
"""In 12-bit counts. The gain is in counts per photon; the variance of the shot noise is the mean times the gain."""
_FAR = 9.0
"""The distance from the nearest cell, in radii, of pixels that are far from all cells."""


@dataclass(frozen=True)
class Look:
    """How the cells of a class are drawn.

    Attributes:
        num_cells: Mean number of cells in 256 x 256 px.
        nucleus_px: Mean semi-axis of the nucleus.
        cell_px: Mean semi-axis of the cell.
        elongation: Ratio of the axes.
        lobes: Depth of the nucleus's three lobes, as a share of its radius.
        grain: Contrast of the nucleus's texture.
        glow: Brightness of the nucleus.
        actin: Brightness of actin, like `er`, `mito` and `tubulin` for the other structures.
        is_spotted: Whether actin is in spots instead of fibres.
        is_fragmented: Whether mitochondria are dots instead of threads.
    """

    num_cells: float = 16
    nucleus_px: float = 13.0
    cell_px: float = 31.0
    elongation: float = 1.25
    lobes: float = 0.0
    grain: float = 0.3
    glow: float = 1.0
    actin: float = 1.0
    er: float = 1.0
    mito: float = 1.0
    tubulin: float = 1.0
    is_spotted: bool = False
    is_fragmented: bool = False


_SIGNAL = {"dna": 1500.0, "er": 1100.0, "actin": 950.0, "mito": 1500.0, "tubulin": 1300.0}


def _ripple(generator: np.random.Generator, shape: tuple[int, int], grain_px: float) -> Canvas:
    """Draw smooth noise with a mean of zero and a deviation of about one; `grain_px` is the width of its bumps."""
    coarse = tuple(int(side / grain_px) + 3 for side in shape)
    noise = generator.standard_normal(coarse, dtype=np.float32) * np.float32(1.4)
    large = tuple(round(side * grain_px) for side in reversed(coarse))
    fine = Image.fromarray(noise).resize((max(large[0], shape[1]), max(large[1], shape[0])), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float32)[: shape[0], : shape[1]]


def _scatter(generator: np.random.Generator, look: Look, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Draw centres (n, 2) at a distance from each other, as many as there is room for."""
    wanted = max(2, round(generator.normal(1.0, 0.08) * look.num_cells * shape[0] * shape[1] / 256**2))
    tries = generator.uniform((-4, -4), (shape[0] + 4, shape[1] + 4), (wanted * 12, 2))
    apart = np.square(tries[:, None] - tries[None]).sum(axis=2) >= (1.9 * look.nucleus_px) ** 2
    free, chosen = np.ones(len(tries), bool), []
    for place in range(len(tries)):
        if free[place]:
            chosen.append(place)
            free &= apart[place]
            if len(chosen) == wanted:
                break
    return np.asarray(tries[chosen])


def draw_cells(
    generator: np.random.Generator, look: Look, shape_px: tuple[int, int], channels: tuple[str, ...]
) -> dict[str, Canvas]:
    """Draw a field of cells as a camera would record it.

    Args:
        shape_px: (height, width).
        channels: Some of "dna", "er", "actin", "mito", "tubulin".

    Returns:
        float32 (height, width) by channel, in 12-bit counts, neither rounded nor clipped.
    """
    if unknown := sorted(set(channels) - set(_SIGNAL)):
        raise ValueError(f"channels {', '.join(unknown)} are not drawn; expected some of {', '.join(_SIGNAL)}")
    shape = shape_px
    nucleus, rho = _cells(generator, look, shape)
    body = np.clip((1.0 - rho) * np.float32(look.cell_px / 3) + np.float32(0.5), 0, 1)
    structures = _structures(generator, look, nucleus, rho, body, channels)
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    tilt_y, tilt_x = generator.uniform(-0.12, 0.12, 2).astype(np.float32)
    light = 1 - np.float32(0.16) * (y[:, None] ** 2 + x[None] ** 2) + tilt_y * y[:, None] + tilt_x * x[None]
    out = {}
    for channel, structure in structures.items():
        exposure = np.float32(_SIGNAL[channel] * generator.normal(1.0, 0.05))
        mean = (np.float32(_BACKGROUND) + exposure * structure) * light
        noise = np.sqrt(mean * np.float32(_SHOT_GAIN) + np.float32(_READ_NOISE**2))
        out[channel] = mean + noise * generator.standard_normal(shape, dtype=np.float32)
    return out


def _cells(generator: np.random.Generator, look: Look, shape: tuple[int, int]) -> tuple[Canvas, Canvas]:
    """Draw the cells of a field.

    Returns:
        Two arrays float32 (height, width): the brightness of nuclei, and the distance from the centre of the nearest cell in
        units of that cell's radius.
    """
    centres = _scatter(generator, look, shape)
    num = len(centres)

    def each(mean: float, deviation: float) -> Canvas:
        return generator.normal(mean, deviation, (num, 1, 1)).astype(np.float32)

    angle = generator.uniform(0, 2 * np.pi, (num, 1, 1)).astype(np.float32)
    along = np.sqrt(np.clip(each(look.elongation, 0.08), 0.9, None))
    stretch = max(1.0, look.elongation) ** 0.5

    half = round(1.6 * look.nucleus_px * stretch * (1 + look.lobes))
    corner, elliptic, cosine = _windows(centres, angle, along, half)
    radius = look.nucleus_px * np.clip(each(1.0, 0.1), 0.6, 1.5) * (1 + np.float32(look.lobes) * _cos_3t(cosine))
    glow = np.float32(look.glow) * np.clip(each(1.0, 0.12), 0.5, 1.6)
    nuclei = glow * np.clip((1 - elliptic / radius) * np.float32(look.nucleus_px / 2.5) + np.float32(0.5), 0, 1)
    nucleus = np.zeros(shape, np.float32)
    _lay(nucleus, corner, nuclei.astype(np.float32, copy=False), np.maximum)

    # Cell bodies are smooth, so they are drawn at half the size and enlarged.
    half = round(0.85 * look.cell_px * stretch)
    corner, elliptic, cosine = _windows((centres - 0.5) / 2, angle, along, half)
    two = 2 * cosine**2 - 1
    outline = 1 + each(0, 0.09) * _cos_3t(cosine) + each(0, 0.12) * two + each(0, 0.06) * (2 * two**2 - 1)
    bodies = elliptic / (look.cell_px / 2 * np.clip(each(1.0, 0.1), 0.7, 1.4) * outline)
    rho = np.full((-(-shape[0] // 2), -(-shape[1] // 2)), _FAR, np.float32)
    _lay(rho, corner, bodies, np.minimum)
    large = Image.fromarray(rho).resize((2 * rho.shape[1], 2 * rho.shape[0]), Image.Resampling.BILINEAR)
    return nucleus, np.asarray(large, dtype=np.float32)[: shape[0], : shape[1]]


def _cos_3t(cosine: Canvas) -> Canvas:
    return (4 * cosine**2 - 3) * cosine


def _windows(centres: NDArray[np.float64], angle: Canvas, along: Canvas, half: int) -> tuple[NDArray[np.int64], Canvas, Canvas]:
    """Make a square window of 2 * half + 1 px around every centre.

    Returns:
        The corners of the windows, int64 (n, 2); the elliptic distance of each pixel from the centre, and the cosine of the
        angle between its direction and the long axis, both float32 (n, side, side).
    """
    line = np.arange(-half, half + 1, dtype=np.float32)
    middle = np.floor(centres).astype(np.int64)
    fraction = (centres - middle).astype(np.float32)
    dy, dx = line[None, :, None] - fraction[:, 0, None, None], line[None, None, :] - fraction[:, 1, None, None]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    cosine = u / (np.sqrt(u**2 + v**2) + np.float32(1e-3))
    return middle - half, np.sqrt((u / along) ** 2 + (v * along) ** 2), cosine


def _lay(canvas: Canvas, corners: NDArray[np.int64], windows: Canvas, join: np.ufunc) -> None:
    """Combine windows (n, side, side) with the canvas at their corners; parts outside of the canvas are cut off."""
    side = windows.shape[1]
    for window, (top, left) in zip(windows, corners.tolist(), strict=True):
        part = canvas[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
        y, x = max(-top, 0), max(-left, 0)
        join(part, window[y : y + part.shape[0], x : x + part.shape[1]], out=part)


def _structures(
    generator: np.random.Generator, look: Look, nucleus: Canvas, rho: Canvas, body: Canvas, channels: tuple[str, ...]
) -> dict[str, Canvas]:
    """Draw what each channel stains, in units of the channel's exposure."""
    shape = (nucleus.shape[0], nucleus.shape[1])
    outside = 1 - np.clip(nucleus, 0, 1)
    fading = body / (1 + rho)
    out = {}
    for channel in channels:
        if channel == "dna":
            texture = 1 + np.float32(look.grain) * np.clip(_ripple(generator, shape, 4.0), -1.5, 1.5)
            out[channel] = nucleus * texture
        elif channel == "er":
            out[channel] = (
                np.float32(1.5 * look.er)
                * fading
                * (1 - nucleus * np.float32(0.3))
                * (1 + 0.35 * _ripple(generator, shape, 5.0))
            )
        elif channel == "actin":
            rim = np.exp(-np.square((rho - np.float32(0.93)) / np.float32(0.1)))
            y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)[None]
            direction = generator.uniform(0, np.pi)
            waves = np.float32(np.cos(direction)) * x + np.float32(np.sin(direction)) * y
            texture = _ripple(generator, shape, 14.0 if not look.is_spotted else 5.0)
            inner = (
                np.clip(texture - 0.8, 0, None) * 1.6
                if look.is_spotted
                else np.square(np.sin(waves * np.float32(0.55) + 2 * texture))
            )
            out[channel] = np.float32(look.actin) * (
                body * (0.15 + 0.55 * inner) + rim * np.float32(0.2 if look.is_spotted else 0.8)
            )
        else:
            is_dotted = channel == "mito" and look.is_fragmented
            texture = _ripple(generator, shape, 5.0 if channel == "mito" else 3.5)
            threads = np.clip(texture - 0.9, 0, 1) if is_dotted else np.clip(1 - 2.2 * np.abs(texture), 0, 1)
            gain = look.mito if channel == "mito" else look.tubulin
            out[channel] = (
                np.float32(1.5 * gain) * fading * outside * (threads + np.float32(0.12 if channel == "mito" else 0.3))
            )
    return {channel: np.clip(image, 0, None) for channel, image in out.items()}
