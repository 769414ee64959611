"""Add a segmentation benchmark of your own: one table in the store's settings, one folder, and it is prepared.

    python examples/add_benchmark.py [FOLDER]

The folder has `train` and `test`, each with `images/` and `masks/` of equal names. Without a folder the script draws a small
one. Then make weights available and score them: `cem-assets weights train random_resnet50`, and
`cem-assets benchmark --benchmarks my_benchmark --weights random_resnet50`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

from cem_assets.benchmarks.data.stage import prepare_benchmark
from cem_assets.benchmarks.rows import known_benchmarks
from cem_assets.catalog.benchmarks import SETTINGS
from cem_assets.cem.phantom import em_phantom
from cem_assets.store.store import open_store

TABLE = """\
[my_benchmark]
title = "Cells of a phantom"
licence = "CC0-1.0"
citation = "Drawn by an example, 2026"
classes = ["background", "cell"]
params = { num_classes = 1, iters = 100, batch_size = 4, crop_px = 96, test_mode = "2d" }
steps = [{ step = "binarise", rule = "greater", value = 127 }]
"""


def draw(folder: Path) -> None:
    """Write slices of a phantom and its masks."""
    for part, seed in (("train", 1), ("test", 2)):
        phantom = em_phantom((16, 96, 96), seed)
        for kind, voxels in (("images", phantom.voxels), ("masks", phantom.is_cell.astype(np.uint8) * 255)):
            (folder / part / kind).mkdir(parents=True)
            for number in range(0, len(voxels), 4):
                tifffile.imwrite(folder / part / kind / f"slice_{number:02}.tif", voxels[number])


def main() -> None:
    """Add the row, prepare the data, and print the counts."""
    store = open_store()
    text = store.read(SETTINGS).decode() if store.size(SETTINGS) is not None else ""
    if "[my_benchmark]" not in text:
        store.put(SETTINGS, f"{text}\n{TABLE}".encode())
    row = known_benchmarks(store)["my_benchmark"]  # names all mistakes in the table at once
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        if len(sys.argv) == 1:
            draw(folder)
        manifest = prepare_benchmark(store, row, folder).manifest
    print(f"{row.name} is prepared: {', '.join(f'{name} {count}' for name, count in manifest.counts.items())}")


if __name__ == "__main__":
    main()
