"""From channels to judged crops on one core, beside a plain implementation with NumPy's percentiles, sorting and means.

Neither side reads or saves images. Both use the windows that our code draws, so that their crops can be compared.
"""

import hashlib

import numpy as np
from scipy.ndimage import gaussian_filter

from cem_assets.cytoimagenet.channels import merge_image
from cem_assets.cytoimagenet.crops.crops import CropParams, crop_windows, cut
from cem_assets.cytoimagenet.crops.quality import pixel_digest, pixel_fault
from perf.timing import Measured, best_seconds

PARAMS = CropParams()
Judged = tuple[str, str | None]


def fluorescence(num_channels: int, side_px: int, seed: int) -> list[np.ndarray]:
    """Channels of 12-bit range in uint16: cell-sized blobs over a background with shot noise."""
    generator = np.random.default_rng(seed)
    blobs = [gaussian_filter(generator.standard_normal((side_px, side_px)), 12) * 40 for _ in range(num_channels)]
    return [generator.poisson(200 + 800 * np.clip(blob, 0, None)).astype(np.uint16) for blob in blobs]


def stained(side_px: int, seed: int) -> list[np.ndarray]:
    """Red, green and blue, as views of one interleaved picture."""
    generator = np.random.default_rng(seed)
    shade = gaussian_filter(generator.standard_normal((side_px, side_px)), 8)[..., None] * 600
    picture = np.clip(190 + shade * (0.3, 1.0, 0.5) + generator.normal(0, 6, (side_px, side_px, 3)), 0, 255).astype(np.uint8)
    return [picture[..., channel] for channel in range(3)]


def unit_by_definition(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, (0.1, 99.9))
    if low == high:
        return np.zeros(plane.shape)
    return (np.clip(plane, low, high) - low) / (high - low)


def gray_by_definition(planes: list[np.ndarray], is_colour: bool) -> np.ndarray:
    unit = (
        unit_by_definition(np.mean(planes, axis=0)) if is_colour else np.mean([unit_by_definition(p) for p in planes], axis=0)
    )
    return np.rint(unit * 255).astype(np.uint8)


def fault_by_definition(raw: np.ndarray, crop: np.ndarray) -> str | None:
    low, high = np.percentile(raw, (0.1, 99.9))
    if low == high:
        return "uniform"
    if len(np.unique(raw)) <= 2 or len(np.unique(crop)) <= 2:
        return "mask"
    if np.percentile(crop, 75) == 0:
        return "dim"
    mean = crop.mean()
    return "dark" if mean <= 1 else "bright" if mean >= 254 else None


def by_definition(planes: list[np.ndarray], is_colour: bool, identity: str) -> list[Judged]:
    image, judged = gray_by_definition(planes, is_colour), []
    for window in crop_windows(*image.shape, 4, identity, PARAMS):
        raw = image[window.slices]
        crop = gray_by_definition([raw], is_colour=False)
        digest = hashlib.sha256(f"{crop.shape[0]},{crop.shape[1]}\n".encode() + crop.tobytes()).hexdigest()
        judged.append((digest, fault_by_definition(raw, crop)))
    return judged


def ours(planes: list[np.ndarray], is_colour: bool, identity: str) -> list[Judged]:
    image, judged = merge_image(planes, is_colour), []
    for window in crop_windows(*image.shape, 4, identity, PARAMS):
        crop = cut(image, window)
        judged.append((pixel_digest(crop), pixel_fault(image[window.slices], crop)))
    return judged


def measure(is_quick: bool = False) -> list[Measured]:
    rows = []
    for work, images, is_colour in (
        ("crops of 5 channels, 16 bits, 1080 x 1080", [fluorescence(5, 1080, seed) for seed in range(3)], False),
        ("crops of RGB, 8 bits, 512 x 512", [stained(512, seed) for seed in range(12)], True),
    ):

        def run(one, images=images, is_colour=is_colour) -> list[Judged]:
            return [crop for n, planes in enumerate(images) for crop in one(planes, is_colour, f"image-{n}")]

        found = run(ours)
        assert found == run(by_definition)  # the same pixels and the same decisions
        mine, definition = best_seconds(lambda run=run: run(ours), lambda run=run: run(by_definition), repeats=5)
        rows.append(Measured(work, "crops/s", len(found) / mine, len(found) / definition, "definition with NumPy", 4))
    return rows
