"""The demo: the whole chain with default settings, from phantoms to a release; it needs no network.

It always uses a seeded EM phantom, as an isotropic volume and as a set of 2D images. The published Drosophila VNC stack is
added where it can be downloaded or is found beside the checkout. The patch classifier is trained on the phantom's own truth,
which is enough to show the chain, but not for real data.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from cem_assets import environment
from cem_assets.catalog import EmDataset, em_datasets
from cem_assets.cem.patch_grid import parse_patch_name
from cem_assets.cem.phantom import em_phantom, label_of
from cem_assets.cem.previews import filtered_pictures
from cem_assets.cem.releases.stage import CARD, list_releases
from cem_assets.cli.demo.cytoimagenet import run_cyto_demo
from cem_assets.cli.demo.weights import run_weights_demo
from cem_assets.cli.ingest import summary_lines
from cem_assets.cli.runs import Listener, chain_until, failures, open_instance, run_job
from cem_assets.errors import DataError, RunFailedError
from cem_assets.inbox.datasets import register_folder
from cem_assets.readers import read_patches
from cem_assets.sources.files.download import download_url
from cem_assets.store.assets import CLASSIFIER, FILTERED, LABELS
from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store, open_store

SEED = 7
VOLUME_SHAPE = (240, 336, 336)
IMAGE_SHAPES = ((560, 672), (672, 560), (448, 448), (700, 500), (512, 640), (448, 900))
NUM_LABELLED = 200
TRAINING = {
    "source": "labels", "init": "random", "epochs": 4, "batch_size": 16, "learning_rate": 3e-4, "seed": SEED,
    "use_for_scores": True,
}  # fmt: skip
GALLERY = Path(".cem_assets/demo-gallery.jpg")

_COMMON = 'licence = "CC0-1.0"\ncitation = "EM phantom made by cem_assets"\norganism = "none (phantom)"\ntissue = "phantom"\n'


def run_demo(root: str, listener: Listener) -> Iterator[str]:
    """Run the whole demo; a second run finds everything up to date.

    Args:
        root: Address of the store.

    Yields:
        Lines for the person at the terminal.

    Raises:
        RunFailedError: A stage failed; the text says why.
    """
    store = open_store(root)
    yield f"store: {store.url}"
    truth: dict[str, NDArray[np.bool_]] = {}
    with TemporaryDirectory(prefix="cem_assets-demo-") as name:
        folder = Path(name)
        truth |= write_phantom_volume(folder / "phantom_3d")
        truth |= write_phantom_images(folder / "phantom_2d")
        datasets = ["phantom_3d", "phantom_2d"]
        yield "phantom_3d, phantom_2d: seeded EM phantoms were made"
        stack, line = fetch_stack(em_datasets()["vnc"], folder / "vnc")
        yield line
        if stack:
            datasets.append("vnc")
        for dataset in datasets:
            register_folder(store, folder / dataset, replace=True)
    with open_instance() as instance:

        def run(job: str, **more: object) -> None:
            result = run_job(instance, store.url, job, listener=listener, **more)  # type: ignore[arg-type]
            if not result.success:
                raise RunFailedError("; ".join(failures(result)))

        for dataset in datasets:
            run("cem_chain", assets=chain_until("deduplicated"), partition=dataset)
        num_labels = write_truth_labels(store, truth)
        yield (
            f"patch classifier: training a ResNet34 from random weights on {num_labels} phantom patches labelled by the "
            "phantom's own truth. It shows how the chain works; for real data use the published weights or your labels."
        )
        run("cem_patch_classifier", config={CLASSIFIER: TRAINING})
        for dataset in datasets:
            run("cem_chain", assets=chain_until("filtered")[3:], partition=dataset)
        run("cem_release")
        with TemporaryDirectory(prefix="cem_assets-demo-") as name:
            cyto = list(run_cyto_demo(store, Path(name), run))
        yield "weights: MoCoV2, SwAV and a classifier are trained, on views of 32 px, then scored"
        with TemporaryDirectory(prefix="cem_assets-demo-") as name:
            weights = list(run_weights_demo(store, Path(name), run))
    for dataset in datasets:
        yield from summary_lines(store, dataset)
    release = list_releases(store)[-1]
    GALLERY.parent.mkdir(exist_ok=True)
    GALLERY.write_bytes(filtered_pictures(store, require_manifest(store, FILTERED, "phantom_3d"))["gallery"])
    counts = release.counts
    size = f"{counts['patches']:,} patches of {counts['datasets']} datasets, {counts['released_bytes'] / 2**20:.1f} MiB"
    yield f"\nrelease {release.inputs.partition}: {size}"
    yield f"  dataset card:  {store.url_of(f'{release.folder}/{CARD}')}"
    yield f"  digest:        {release.digest}"
    yield f"  gallery:       {GALLERY.resolve()}"
    yield from cyto
    yield from weights
    yield "  open the UI:   make dev   (then http://127.0.0.1:3000)"


def write_phantom_volume(folder: Path) -> dict[str, NDArray[np.bool_]]:
    """Write an isotropic phantom as NRRD with its `dataset.toml`; return its truth by volume name."""
    folder.mkdir(parents=True)
    phantom = em_phantom(VOLUME_SHAPE, SEED)
    z, y, x = VOLUME_SHAPE
    # Written by hand, because pynrrd puts the time into the header and a second demo must find its dataset unchanged.
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {x} {y} {z}\nspacings: 8 8 8\nencoding: raw\n\n"
    (folder / "cells.nrrd").write_bytes(header.encode() + phantom.voxels.tobytes())
    text = f'name = "phantom_3d"\nkind = "volume"\nvoxel_size_nm = [8.0, 8.0, 8.0]\n{_COMMON}technique = "FIB-SEM (phantom)"\n'
    (folder / "dataset.toml").write_text(text)
    return {"phantom_3d/cells": phantom.is_cell}


def write_phantom_images(folder: Path) -> dict[str, NDArray[np.bool_]]:
    """Write a set of 2D phantoms as PNG with their `dataset.toml`; return their truth by image name."""
    folder.mkdir(parents=True)
    truth = {}
    for number, (height, width) in enumerate(IMAGE_SHAPES):
        phantom = em_phantom((1, height, width), SEED + 1 + number, resin_share=0.25 + 0.08 * number)
        Image.fromarray(phantom.voxels[0]).save(folder / f"section_{number:02d}.png")
        truth[f"phantom_2d/section_{number:02d}"] = phantom.is_cell
    text = f'name = "phantom_2d"\nkind = "images"\npixel_size_nm = [4.0, 4.0]\n{_COMMON}technique = "TEM (phantom)"\n'
    (folder / "dataset.toml").write_text(text)
    return truth


def fetch_stack(row: EmDataset, folder: Path) -> tuple[bool, str]:
    """Get the files of a catalogue row from the test data beside the checkout, else from their address.

    Args:
        folder: Folder that gets the files and their `dataset.toml`.

    Returns:
        Whether all files are there with the right sha256, and a line that says so or gives the reason.
    """
    folder.mkdir(parents=True)
    found = _local_stack()
    for name, sha256 in row.files.items():
        target = folder / name
        if found is not None and (found / name).is_file() and file_sha256(found / name) == sha256:
            target.write_bytes((found / name).read_bytes())
            continue
        try:
            download_url(f"{row.base_url}{name}", sha256, folder, name)
        except (ConnectionError, DataError) as error:
            return False, f"{row.name}: left out, because its files are not available ({str(error).split(':', 2)[0][:60]}...)"
    (folder / "dataset.toml").write_text(row.description_toml())
    origin = "found beside the checkout" if found is not None else "downloaded"
    return True, f"{row.name}: {len(row.files)} sections {origin}, checksums agree ({row.licence})"


def _local_stack() -> Path | None:
    for base in (environment.text(environment.TEST_DATA), "../shared/data"):
        if base and (Path(base) / "em3d_labelled/vnc_sstem_stack1/raw").is_dir():
            return Path(base) / "em3d_labelled/vnc_sstem_stack1/raw"
    return None


def write_truth_labels(store: Store, truth: dict[str, NDArray[np.bool_]]) -> int:
    """Label patches of the phantoms by their truth, half good and half bad, and write them to the store's label tables.

    Args:
        truth: bool arrays by `dataset/volume`.

    Returns:
        Number of labelled patches.
    """
    rows = []
    for dataset in sorted({key.split("/")[0] for key in truth}):
        for name in read_patches(dataset, "raw", store.url)["name"]:
            place = parse_patch_name(name)
            label = label_of(truth[f"{dataset}/{place.volume}"][place.box()])
            if label != "none":
                rows.append({"dataset": dataset, "name": name, "label": label})
    table = pd.DataFrame(rows, columns=["dataset", "name", "label"])
    half = min(NUM_LABELLED // 2, int(table["label"].value_counts().min()))
    chosen = pd.concat([group.sample(half, random_state=SEED) for _, group in table.groupby("label", sort=True)])
    sink = io.StringIO()
    chosen.sort_values(["dataset", "name"]).to_csv(sink, index=False)
    store.put(f"{LABELS}/phantom_truth.csv", sink.getvalue().encode())
    return len(chosen)
