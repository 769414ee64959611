"""Small benchmarks and weights for scoring: discs in planes and volumes, a union of both, cells of two channels."""

from pathlib import Path

import numpy as np
import tifffile

from cem_assets.benchmarks.data.stage import prepare_benchmark
from cem_assets.benchmarks.rows import require_benchmark
from cem_assets.catalog.benchmarks import SETTINGS
from cem_assets.execution.stage import begin
from cem_assets.pretraining.weights.export import EncoderWeights, weights_of
from cem_assets.pretraining.weights.files import commit_weights
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.store import Store
from cem_assets_tests.pretraining.published_weights import network

NORMS = (0.45, 0.2)
TRAINING = "iters = 4, batch_size = 2, crop_px = 32, foreground_share = 0.8"
ROWS = f"""
[discs]
title = "Discs"
licence = "CC0"
citation = "None"
classes = ["background", "disc"]
params = {{ {TRAINING} }}

[layers]
title = "Layers"
licence = "CC0"
citation = "None"
classes = ["background", "disc", "ring"]
params = {{ {TRAINING}, num_classes = 3, class_weights = [0.1, 1, 3], scored_classes = [1, 2], test_mode = "stack" }}

[both]
title = "Both"
licence = "CC0"
citation = "None"
classes = ["background", "disc", "ring"]
params = {{ {TRAINING}, num_classes = 1, test_mode = "mixed" }}
steps = [{{ step = "relabel", parts = ["layers"], splits = ["train"], values = {{ 1 = 1 }}, other = 0 }}]
[[both.union]]
benchmark = "discs"
rule = {{ mode = "2d", scored_classes = [1], is_instance_matched = true }}
[[both.union]]
benchmark = "layers"
rule = {{ mode = "stack", scored_classes = [1], mask_unlabelled = true }}

[cells]
task = "transfer"
title = "Cells"
licence = "CC0"
citation = "None"
kind = "folders"
channels = ["red", "green"]
path_pattern = '(?P<split>train|test[12])/(?P<label>[^/]+)/(?P<image>[^/]+)_(?P<channel>red|green)\\.tif$'
params = {{ num_neighbours = 3, metric = "euclidean", protocol = "train_and_test", side_px = 32 }}
"""


def disc(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright disc or ball in noise, with a darker ring around it: image and classes (2 for the ring), uint8."""
    generator = np.random.default_rng(seed)
    places = np.stack(np.mgrid[tuple(slice(0, side) for side in shape)])
    centre = np.array([generator.uniform(0.35, 0.65) * side for side in shape]).reshape(-1, *(1 for _ in shape))
    distance = np.sqrt(((places - centre) ** 2).sum(axis=0)) / min(shape)
    mask = np.select([distance < 0.2, distance < 0.3], [1, 2], 0).astype(np.uint8)
    image = np.array([70, 220, 30])[mask] + generator.normal(0, 12, shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def save_pair(folder: Path, split: str, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    for what, pixels in (("images", image), ("masks", mask)):
        path = folder / split / what / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, pixels.astype(np.uint8), photometric="minisblack")


def prepare_all(store: Store, folder: Path) -> None:
    """Prepare `discs` (2D), `layers` (3D), `both` (a union, tested by mixed rules) and `cells` (transfer)."""
    store.put(SETTINGS, ROWS.encode())
    for split, num, seed in (("train", 3, 0), ("valid", 1, 10), ("test", 2, 20)):
        for number in range(num):
            image, mask = disc((70, 50), seed + number)
            save_pair(folder / "discs", split, f"{number}", image, mask == 1)
    for split, seed in (("train", 30), ("test", 40)):
        save_pair(folder / "layers", split, "volume", *disc((12, 36, 40), seed))
    cells(folder / "cells")
    for name in ("discs", "layers", "cells"):
        prepare_benchmark(store, require_benchmark(store, name), folder / name)
    prepare_benchmark(store, require_benchmark(store, "both"))


def cells(folder: Path, num: int = 6) -> None:
    """Write images of two classes that differ in the green channel: fine and coarse patterns."""
    generator = np.random.default_rng(5)
    for split in ("train", "test1", "test2"):
        for label, period in (("fine", 4), ("coarse", 16)):
            for number in range(num):
                phase = generator.uniform(0, 6)
                wave = np.sin(2 * np.pi * np.add.outer(np.arange(32), np.arange(32)) / period + phase)
                green = np.clip(128 + 90 * wave + generator.normal(0, 10, wave.shape), 0, 255).astype(np.uint8)
                red = generator.integers(0, 1000, (32, 32)).astype(np.uint16)
                path = folder / split / label
                path.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path / f"{number}_green.tif", green, photometric="minisblack")
                tifffile.imwrite(path / f"{number}_red.tif", red, photometric="minisblack")


def put_weights(
    store: Store,
    name: str,
    method: str = "moco",
    seed: int = 0,
    norms: tuple[float, float] | None = NORMS,
    arch: str = "resnet18",
    release: str = "",
) -> Manifest:
    """Commit encoder weights as their stage does."""
    model = network(seed=seed, arch=arch)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(("fc.", "classifier."))}
    weights = EncoderWeights(arch, {key: value.contiguous() for key, value in state.items()}, norms, 1)
    assert weights_of(weights.build(), arch, norms).digest() == weights.digest()
    inputs = Inputs(WEIGHTS, name, "1", {"seed": seed, "method": method, "norms": list(norms or ())}, {})
    provenance = {"kind": "imported", "title": name}
    if release:
        provenance |= {"release": {"asset": release, "version": release.rsplit("/", 1)[-1], "digest": "ab" * 32, "subset": ""}}
    return commit_weights(begin(store, inputs), weights, method, provenance, "# Card\n").manifest
