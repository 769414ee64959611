"""Pictures of a prepared benchmark, small enough for Dagster's metadata: images above their masks, or cells of each label."""

import numpy as np
from numpy.typing import NDArray

from cem_assets.benchmarks.data.segmentation_sets import SPLITS, PreparedItem, open_benchmark
from cem_assets.benchmarks.data.transfer_sets import open_transfer
from cem_assets.imaging.gallery import Tile, gallery_jpeg
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store

_COLUMNS = 6
_MAX_LABELS = 12
_TILE_PX = 128


def benchmark_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Draw evenly spaced items of every split with their masks, or the first cells of each label.

    Args:
        manifest: Of a partition of `benchmarks/data`.

    Returns:
        JPEG bytes by name; none for a benchmark that holds features.
    """
    name = manifest.inputs.partition
    if manifest.details["task"] == "transfer":
        return _cells(store, manifest)
    benchmark = open_benchmark(store, name, manifest)
    rows: list[tuple[str, list[Tile]]] = []
    for split in SPLITS:
        items = benchmark.items(split)
        places = sorted({int(place) for place in np.linspace(0, len(items) - 1, min(len(items), _COLUMNS))}) if items else []
        pairs = [_middle(items[place]) for place in places]
        brightest = max(len(benchmark.classes) - 1, 1)
        rows.append((f"{split}: {len(places)} of {len(items)}", [Tile(image) for image, _ in pairs]))
        rows.append(("masks", [Tile((mask.astype(np.uint16) * 255 // brightest).astype(np.uint8)) for _, mask in pairs]))
    return {"items": gallery_jpeg(rows, _TILE_PX)}


def _middle(item: PreparedItem) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    box = (item.shape[0] // 2,) if item.is_volume else ...
    return np.asarray(item.image[box]), np.asarray(item.mask[box])


def _cells(store: Store, manifest: Manifest) -> dict[str, bytes]:
    prepared = open_transfer(store, manifest.inputs.partition, manifest)
    if not prepared.channels:
        return {}
    shown: dict[str, list[Tile]] = {}
    for facts, images in prepared.batches():
        for label, planes in zip(facts["label"], images, strict=True):
            tiles = shown.setdefault(str(label), []) if len(shown) < _MAX_LABELS else shown.get(str(label), [])
            if len(tiles) < _COLUMNS:
                tiles += [Tile(_stretched(plane), channel) for channel, plane in zip(prepared.channels, planes, strict=True)]
        if len(shown) == _MAX_LABELS and all(len(tiles) >= _COLUMNS for tiles in shown.values()):
            break
    return {"cells": gallery_jpeg([(label, tiles[:_COLUMNS]) for label, tiles in sorted(shown.items())], _TILE_PX)}


def _stretched(plane: NDArray[np.generic]) -> NDArray[np.uint8]:
    values = plane.astype(np.float32)
    low, high = np.percentile(values, (0.1, 99.9))
    share = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
    return np.asarray(share * 255, np.uint8)
