"""Make the small store that `test_store_of_0_1_0.py` reads, with the code of version 0.1.0 (commit 02cdfd9).

Run it in a checkout of that commit, with that commit's environment:

    git worktree add ../cem_assets_0_1_0 02cdfd9 && cd ../cem_assets_0_1_0 && make install
    .venv/bin/python PATH_OF_THIS_FILE store_of_0_1_0.tar.xz

The upper part holds names and parameters, which the test imports. The functions below import modules of the old commit, so
they do not run in later ones. Pixels are smooth and have few grey values, and weights repeat a short row of numbers, so that
a store with two whole networks packs into a few hundred kilobytes.
"""

import io
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DATASETS = ("cells", "chunked", "pictures")
"""A volume in NRRD, a volume in OME-Zarr and a folder of 2D images."""
NEW_DATASET = "newcomer"
SCORING = {"device": "cpu", "batch_size": 16}
THRESHOLD = 0.5
SUBVOLUMES = {"num_slices": 5, "side_px": 32, "limit": 3}
SOURCES = ("one", "two", "held_out")
LABEL_TABLE = {"min_images": 4, "max_images": 60, "presample_images": 100}
CROPPING = {"min_images": 4}
BENCHMARKS = ("discs", "patterns")
TRANSFER = "patterns"
TRANSFER_SCORING = {"device": "cpu", "num_threads": 1, "has_map": False}
WEIGHTS = "small"
WEIGHTS_ROW = {
    "name": WEIGHTS,
    "title": "Weights for a test",
    "source": "file",
    "arch": "efficientnet_b0",
    "method": "supervised",
    "file": "small.pth.tar",
    "licence": "CC0-1.0",
    "trained_on": "nothing",
    "citation": "None",
}
CLASSIFIER_FILE = "patch_classifier.safetensors"
BENCHMARK_ROWS = """
[discs]
title = "Discs"
licence = "CC0"
citation = "None"
classes = ["background", "disc"]
params = { iters = 4, batch_size = 2, crop_px = 32, foreground_share = 0.8 }

[patterns]
task = "transfer"
title = "Patterns"
licence = "CC0"
citation = "None"
kind = "folders"
channels = ["red", "green"]
path_pattern = '(?P<split>train|test[12])/(?P<label>[^/]+)/(?P<image>[^/]+)_(?P<channel>red|green)\\.tif$'
params = { num_neighbours = 3, metric = "euclidean", protocol = "train_and_test", side_px = 32 }
"""


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Sum a few waves, rounded to eight grey values: uint8 pixels of structure that compress well."""
    generator = np.random.default_rng(seed)
    field = np.zeros(shape)
    for _ in range(5):
        phase = generator.uniform(0, 6)
        for axis, side in enumerate(shape):
            ramp = np.arange(side) * generator.uniform(0.02, 0.2)
            phase = phase + ramp.reshape([-1 if number == axis else 1 for number in range(len(shape))])
        field += np.sin(phase)
    levels = np.clip(np.rint(field + 4), 0, 7)
    return (levels * 30 + 20).astype(np.uint8)


def repeated_values(state: dict[str, Any]) -> dict[str, Any]:
    """Fill every weight tensor with one short row of numbers, scaled as He initialisation scales it."""
    import torch

    row = torch.randn(61, generator=torch.Generator().manual_seed(0))
    filled = {}
    for name, value in state.items():
        if value.dim() < 2:
            filled[name] = value
            continue
        scale = (2 / value[0].numel()) ** 0.5
        filled[name] = (row.repeat(value.numel() // len(row) + 1)[: value.numel()] * scale).reshape(value.shape).contiguous()
    return filled


def put_datasets(store: Any, scratch: Path) -> None:
    import zarr

    from cem_assets_tests.datasets import nrrd_bytes, png_bytes, put_in_inbox, toml

    put_in_inbox(store, "cells", {"v.nrrd": nrrd_bytes(smooth((70, 90, 100), 0))})
    folder = scratch / "v.zarr"
    zarr.create_array(str(folder), data=smooth((66, 72, 80), 1), chunks=(40, 40, 40))
    paths = [path for path in folder.rglob("*") if path.is_file()]
    put_in_inbox(store, "chunked", {f"v.zarr/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths})
    sizes = ((224, 300), (130, 90), (70, 80))
    files = {f"im {number}.png": png_bytes(scratch, smooth(size, 10 + number)) for number, size in enumerate(sizes)}
    put_in_inbox(store, "pictures", files, toml("pictures", "images"))


def make_classifier_file(scratch: Path) -> Path:
    """Write weights exactly as the stage commits them, so that the test can import the committed file again."""
    import safetensors.torch
    import torch

    from cem_assets.cem.classifier import build_classifier

    torch.manual_seed(0)
    state = repeated_values(build_classifier().state_dict())
    path = scratch / CLASSIFIER_FILE
    path.write_bytes(safetensors.torch.save(state, {"format": "pt"}))
    return path


def make_cem(store: Any, scratch: Path) -> None:
    from cem_assets.cem.dedup import DedupParams
    from cem_assets.stages.cem_classifier import ClassifierSource, Origin, make_classifier
    from cem_assets.stages.cem_filter import keep_informative, score_patches
    from cem_assets.stages.cem_patches import PatchifyParams, choose_exemplars, cut_and_hash
    from cem_assets.stages.cem_releases import make_release
    from cem_assets.stages.cem_subvolumes import cut_subvolumes
    from cem_assets.stages.cem_volumes import standardize_dataset

    from cem_assets.cem.filter import ClassifierParams, FilterParams, ScoreParams
    from cem_assets.cem.subvolumes import SubvolumeParams

    put_datasets(store, scratch)
    source = ClassifierSource(source=Origin.file, file=str(make_classifier_file(scratch)))
    make_classifier(store, source, ClassifierParams(device="cpu"))
    for dataset in DATASETS:
        standardize_dataset(store, dataset)
        cut_and_hash(store, dataset, PatchifyParams())
        choose_exemplars(store, dataset, DedupParams())
        print(dataset, score_patches(store, dataset, ScoreParams(**SCORING)).manifest.counts)
        print(dataset, keep_informative(store, dataset, FilterParams(threshold=THRESHOLD)).manifest.counts)
    print(cut_subvolumes(store, "cells", SubvolumeParams(**SUBVOLUMES)).manifest.counts)
    print(make_release(store).manifest.counts)


def put_plate(store: Any, name: str, compounds: dict[str, str], seed: int, **facts: str) -> None:
    from cem_assets_tests.cytoimagenet.sources import PLATE, png, put_source

    files = {"wells.csv": ("Well,Cell,Drug\n" + "".join(f"{well},u2os,{it}\n" for well, it in compounds.items())).encode()}
    for row, well in enumerate(compounds):
        for site in (1, 2):
            for channel in (1, 2):
                picture = smooth((150, 160), seed + row * 10 + site * 3 + channel)
                files[f"images/{well}_s{site}_w{channel}.png"] = png(picture)
    put_source(store, name, files, PLATE, **facts)


def make_cytoimagenet(store: Any) -> None:
    from cem_assets.engine import LocalEngine
    from cem_assets.stages.cyto_crops import make_crops
    from cem_assets.stages.cyto_images import CropStageParams
    from cem_assets.stages.cyto_labels import LabelTableParams, label_entries, make_label_table
    from cem_assets.stages.cyto_releases import make_cyto_release
    from cem_assets.stages.cyto_sources import standardize_source
    from cem_assets.stages.cyto_test_images import fingerprint_test_images

    put_plate(store, "one", {"A01": "dmso", "A02": "dmso", "B01": "taxol", "B02": "taxol"}, 1000)
    put_plate(store, "two", {"A01": "dmso", "A02": "taxol"}, 2000, licence="CC BY 4.0", citation="Others 2025")
    put_plate(store, "held_out", {"A01": "dmso"}, 3000, role="test")
    for source in SOURCES:
        print(source, standardize_source(store, source).manifest.counts)
    print(fingerprint_test_images(store).manifest.counts)
    table = make_label_table(store, LabelTableParams(**LABEL_TABLE)).manifest
    for key in label_entries(store, table):
        print(key, make_crops(store, key, CropStageParams(**CROPPING), engine=LocalEngine(1)).manifest.counts)
    print(make_cyto_release(store).manifest.counts)


def put_weights_file(store: Any) -> None:
    import torch
    import torchvision
    from cem_assets.storage.encoder_weights import WEIGHT_FILES

    torch.manual_seed(0)
    model = torchvision.models.efficientnet_b0()
    model.features[0][0] = torch.nn.Conv2d(1, 32, kernel_size=3, stride=2, padding=1, bias=False)
    state = repeated_values(model.state_dict())
    named = {f"module.{name}": value for name, value in state.items() if not name.startswith("classifier.")}
    sink = io.BytesIO()
    torch.save({"epoch": 1, "arch": "efficientnet_b0", "state_dict": named, "norms": [0.5, 0.2]}, sink)
    store.put(f"{WEIGHT_FILES}/{WEIGHTS_ROW['file']}", sink.getvalue())


def make_scores(store: Any, scratch: Path) -> None:
    import tifffile
    from cem_assets.stages.benchmark_catalogue import SETTINGS, require_benchmark
    from cem_assets.stages.benchmark_data import prepare_benchmark
    from cem_assets.stages.benchmark_scores import ScoreParams, score_benchmark
    from cem_assets.stages.contamination import check_contamination
    from cem_assets.stages.weights_import import import_weights

    from cem_assets.catalog.weights import ImportedWeights

    files = scratch / "benchmark_files"
    put_weights_file(store)
    import_weights(store, ImportedWeights(**WEIGHTS_ROW))
    store.put(SETTINGS, BENCHMARK_ROWS.encode())
    for number, split in enumerate(("train", "valid", "test")):
        image = smooth((70, 50), 50 + number)
        for what, pixels in (("images", image), ("masks", (image > 130).astype(np.uint8))):
            path = files / "discs" / split / what / "0.tif"
            path.parent.mkdir(parents=True)
            tifffile.imwrite(path, pixels, photometric="minisblack")
    for split in ("train", "test1", "test2"):
        for offset, label in ((100, "fine"), (200, "coarse")):
            for number in range(3):
                for channel in ("red", "green"):
                    path = files / "patterns" / split / label / f"{number}_{channel}.tif"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    tifffile.imwrite(path, smooth((32, 32), offset + number), photometric="minisblack")
    for name in BENCHMARKS:
        prepare_benchmark(store, require_benchmark(store, name), files / name)
    print(score_benchmark(store, TRANSFER, WEIGHTS, ScoreParams(**TRANSFER_SCORING)).manifest.details["main"])
    for line in ("cem", "cytoimagenet"):
        print(check_contamination(store, line).manifest.counts)


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def main(target: Path) -> None:
    sys.path.insert(0, str(Path.cwd()))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["CEM_ASSETS_WORKERS"] = "1"
        from cem_assets.storage.store import open_store

        store = open_store(f"{folder}/store")
        make_cem(store, Path(folder))
        make_cytoimagenet(store)
        make_scores(store, Path(folder))
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for name in ("store", "benchmark_files"):
                archive.add(f"{folder}/{name}", name, filter=without_owner)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
