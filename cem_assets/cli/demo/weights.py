"""The third part of the demo: weights of every method, and their scores on a phantom benchmark in one leaderboard.

Everything is tiny (ResNet18, views of 32 px, a few dozen steps), so that it takes minutes on two cores. It shows the way from a
release to a score; the weights themselves are not useful.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import numpy as np
from PIL import Image

from cem_assets.catalog.benchmarks import SETTINGS as BENCHMARK_SETTINGS
from cem_assets.cem.phantom import em_phantom
from cem_assets.pretraining.rows import ROWS
from cem_assets.readers import read_leaderboard
from cem_assets.store.assets import BENCHMARK_DATA, BENCHMARK_SCORES, CONTAMINATION, LEADERBOARD, WEIGHTS
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store

SEED = 1000
_NUM_IMAGES = {"train": 8, "test": 4}
_SIDE_PX = 256
_WEIGHTS = """\
# Written by `make demo`. Rows like these stand beside the shipped ones; see cem_assets/catalog/weights.toml.
[demo_random]
kind = "imported"
title = "Random weights, for comparison"
source = "random"
arch = "resnet18"
method = "random"
seed = 0

[demo_moco]
kind = "trained"
title = "MoCoV2 on the demo's EM release"
method = "moco"
preset = "smoke"
arch = "resnet18"
dataset = "cem"
params = { epochs = 4 }

[demo_swav]
kind = "trained"
title = "SwAV on the demo's EM release"
method = "swav"
preset = "smoke"
arch = "resnet18"
dataset = "cem"
params = { epochs = 3 }

[demo_classes]
kind = "trained"
title = "Classes of the demo's CytoImageNet release"
method = "supervised"
preset = "smoke"
arch = "resnet18"
dataset = "cytoimagenet"
params = { epochs = 2 }
"""
_BENCHMARK = """\
# Written by `make demo`: a benchmark of one's own is one table and one folder.
[phantom_cells]
task = "segmentation"
title = "Cells of the EM phantom, against resin"
licence = "CC0-1.0"
citation = "EM phantom made by cem_assets"
classes = ["background", "cell"]
params = { num_classes = 1, iters = 20, batch_size = 8, crop_px = 64, test_mode = "2d" }
"""
NAMES = ("demo_random", "demo_moco", "demo_swav", "demo_classes")
BENCHMARK = "phantom_cells"


def write_phantom_benchmark(folder: Path) -> None:
    """Write training and test images of phantoms that are in no dataset of the demo, with masks of their cells."""
    number = 0
    for split, num in _NUM_IMAGES.items():
        for what in ("images", "masks"):
            (folder / split / what).mkdir(parents=True)
        for _ in range(num):
            phantom = em_phantom((1, _SIDE_PX, _SIDE_PX), SEED + number, resin_share=0.4)
            Image.fromarray(phantom.voxels[0]).save(folder / split / "images" / f"{number:02d}.png")
            Image.fromarray(phantom.is_cell[0].astype(np.uint8)).save(folder / split / "masks" / f"{number:02d}.png")
            number += 1


def _learned(store: Store, name: str) -> str:
    """Describe the result of a training in one line."""
    manifest = require_manifest(store, WEIGHTS, name)
    results = json.loads(store.read(f"{manifest.folder}/results.json"))
    losses, last = [result["loss"] for result in results], results[-1]["indicators"]
    # The largest loss is shown, because the first epochs of MoCo have few negatives and a low loss for that reason alone.
    told = f"loss {max(losses):.2f} -> {losses[-1]:.2f} in {len(losses)} epochs"
    if "knn_accuracy" in last:
        found, chance = 100 * last["knn_accuracy"], 100 * last["knn_chance"]
        return f"{told}; nearest neighbours name the dataset of {found:.0f} % of patches, by chance {chance:.0f} %"
    first, five = 100 * last["validation_top1"], 100 * last["validation_top5"]
    return f"{told}; {first:.0f} % of held-out images right, {five:.0f} % among the first five"


def run_weights_demo(store: Store, folder: Path, run: Callable[..., None]) -> Iterator[str]:
    """Train and import weights, score them, and compare them.

    Args:
        folder: Folder that gets the files of the benchmark.
        run: Runs a job by its name, with `partition` and `config`.

    Yields:
        Lines for the person at the terminal.
    """
    for key, text in ((ROWS, _WEIGHTS), (BENCHMARK_SETTINGS, _BENCHMARK)):
        if store.size(key) is None:
            store.put(key, text.encode())
    write_phantom_benchmark(folder / BENCHMARK)
    run("benchmark_data", partition=BENCHMARK, config={BENCHMARK_DATA: {"folder": str(folder / BENCHMARK)}})
    for dataset in ("cem", "cytoimagenet"):
        run("benchmark_contamination", config={CONTAMINATION: {"dataset": dataset}})
    for name in NAMES:
        run("pretraining_weights", partition=name, config={WEIGHTS: {"evaluate_every": 10, "num_knn_images": 200}})
    for name in NAMES:
        key = dg.MultiPartitionKey({"benchmark": BENCHMARK, "weights": name})
        run("benchmark_scores", partition=key, config={BENCHMARK_SCORES: {"finetune_layer": "all"}})
    run("benchmark_leaderboard")
    yield "\nweights:"
    for name in NAMES[1:]:
        yield f"  {name:14} {_learned(store, name)}"
    yield f"\n{len(NAMES)} encoders, scored on {BENCHMARK} after 20 steps (they show the procedure and are not useful):"
    table = read_leaderboard(store.url)
    ours = table[(table["benchmark"] == BENCHMARK) & ~table["is_published"]]
    for rank, weights, mean in ours.sort_values("rank")[["rank", "weights", "mean"]].to_numpy().tolist():
        yield f"  {rank:.0f}. {weights:14} IoU {100 * mean:.1f} %"
    yield f"  leaderboard:   {store.url_of(require_manifest(store, LEADERBOARD).folder)}/README.md"
    yield f'  use them:      cem_assets.readers.load_weights("{NAMES[1]}", root="{store.url}")'
