"""Small copies of the published benchmarks: folders and file names as in their archives, with made-up pixels."""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import tifffile
from PIL import Image

NO_CLEFT = 0xFFFFFFFFFFFFFFFF
ORGANELLES = {"perez_lyso": "lysosomes", "perez_mito": "mitochondria", "perez_nuclei": "nuclei", "perez_nucleoli": "nucleoli"}
UROCELL = ("fib1-1-0-3", "fib1-3-2-1", "fib1-3-3-0", "fib1-4-3-0", "fib1-0-0-0")


def texture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, np.uint8)


def blobs(shape: tuple[int, ...], seed: int, share: float = 0.3) -> np.ndarray:
    return np.random.default_rng(1000 + seed).random(shape) < share


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    elif path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(pixels.transpose(2, 1, 0), np.eye(4)), path)
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack")


def lucchi_pp(folder: Path, size: tuple[int, int] = (60, 70)) -> None:
    """Write images named mask0000.png, and masks named 0.png with three channels whose padding is not 0."""
    for side, seed in (("Train", 0), ("Test", 10)):
        for n in range(3):
            save(folder / f"Lucchi++/{side}_In/mask{n:04}.png", texture(size, seed + n))
            mask = np.where(blobs(size, seed + n), 255, 7).astype(np.uint8)
            save(folder / f"Lucchi++/{side}_Out/{n}.png", np.stack([mask] * 3, axis=-1))


def kasthuri_pp(folder: Path, size: tuple[int, int] = (300, 400)) -> None:
    """Write images and masks of equal names; half of the first training image is padding."""
    for side, seed in (("Train", 20), ("Test", 30)):
        for n in range(2):
            image, mask = texture(size, seed + n), np.where(blobs(size, seed + n), 255, 3).astype(np.uint8)
            if side == "Train" and n == 0:
                image[:, : size[1] // 2 + 56] = 0
            save(folder / f"Kasthuri++/{side}_In/mask{n:04}.png", image)
            save(folder / f"Kasthuri++/{side}_Out/mask{n:04}.png", np.stack([mask] * 3, axis=-1))


def perez(folder: Path, name: str, size: tuple[int, int] = (50, 60)) -> None:
    """Write files whose names have different prefixes before their numbers."""
    organelle, seed = ORGANELLES[name], 40 + 4 * list(ORGANELLES).index(name)
    for images, masks, more in (("training_images", "training_labels", 0), ("test_images", "ground_truth", 2)):
        for n in range(2):
            base = folder / "supplemental_data"
            save(base / images / organelle / f"ZT04_{organelle}_orig.{n + 1:03}.png", texture(size, seed + more + n))
            mask = blobs(size, seed + more + n).astype(np.uint8) * 255
            save(base / masks / organelle / f"ZT04_{organelle}_seg.{n + 1:03}.png", mask)


def guay(folder: Path, shape: tuple[int, int, int] = (5, 40, 50)) -> None:
    """Write signed 16-bit volumes with 16-bit labels."""
    for number, name in enumerate(("train", "eval", "test")):
        image = texture(shape, 60 + number).astype(np.int16) * 90 - 9000
        labels = np.random.default_rng(60 + number).integers(0, 7, shape).astype(np.uint16)
        save(folder / f"platelet_data/{name}-images.tif", image)
        save(folder / f"platelet_data/{name}-labels.tif", labels)
    save(folder / "platelet_data/train-error-weights.tif", np.ones(shape, np.float32))


def cremi(folder: Path, shape: tuple[int, int, int] = (20, 40, 48)) -> None:
    """Write three HDF5 files with raw data, neuron ids and clefts; NO_CLEFT is background."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate("ABC"):
        with h5py.File(folder / f"sample_{sample}_20160501.hdf", "w") as file:
            file["volumes/raw"] = texture(shape, 70 + number)
            file["volumes/labels/neuron_ids"] = np.ones(shape, np.uint64)
            clefts = np.full(shape, NO_CLEFT, np.uint64)
            clefts[blobs(shape, 70 + number, 0.02)] = 41 + number
            file["volumes/labels/clefts"] = clefts


def urocell(folder: Path, shape: tuple[int, int, int] = (20, 70, 30)) -> None:
    """Write images and binary maps of lysosomes and mitochondria, all of floats, with instance maps beside them."""
    for number, name in enumerate(UROCELL):
        save(folder / f"data/{name}.nii.gz", texture(shape, 80 + number).astype(np.float32))
        save(folder / f"lyso/binary/{name}.nii.gz", blobs(shape, 80 + number, 0.1).astype(np.float32))
        save(folder / f"mito/binary/{name}.nii.gz", blobs(shape, 90 + number, 0.2).astype(np.float32))
        save(folder / f"mito/instance/{name}.nii.gz", np.ones(shape, np.int16))


LJOSA = """
[ljosa]
task = "transfer"
title = "Ljosa"
licence = "BSD-3"
citation = "Ljosa 2013"
kind = "features"
tables = ["ljosa_*.csv.gz"]
feature_pattern = "^(Cells|Cytoplasm|Nuclei)_"
has_controls = true
controls = {compound = ["DMSO"]}
params = {protocol = "treatments", metric = "correlation", normalisation = "controls", drops_unusable_features = true}

[ljosa.columns]
label = "{moa}"
compound = "{Image_Metadata_Compound}"
concentration = "{Image_Metadata_Concentration}"
plate = "{Image_Metadata_Plate}"
well = "{Image_Metadata_Well}"
batch = "{Image_Metadata_Plate|^([^_]+)_}"
[[ljosa.joins]]
files = ["BBBC021_v1_image.csv.gz"]
on = [["Image_Metadata_Plate", "Image_Metadata_Plate_DAPI"], ["Image_Metadata_Well", "Image_Metadata_Well_DAPI"]]
[[ljosa.joins]]
files = ["BBBC021_v1_moa.csv"]
on = [["Image_Metadata_Compound", "compound"], ["Image_Metadata_Concentration", "concentration"]]
"""
"""The published features of BBBC021 (Ljosa et al. 2013) as a transfer benchmark."""
