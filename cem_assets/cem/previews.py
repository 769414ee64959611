"""Pictures of the result of a stage, small enough for the metadata of a Dagster event.

They show evenly spaced rows of a table, so equal partitions give equal pictures.
"""

import numpy as np
import pyarrow as pa

from cem_assets.cem.patch_grid import PLANE_NAMES, parse_patch_name
from cem_assets.cem.patches.pixels import DatasetPixels, open_pixels, pixels_behind
from cem_assets.cem.patches.tables import DROPPED_SCHEMA, DUPLICATES_SCHEMA, table_of_places
from cem_assets.cem.subvolumes.stage import read_subvolume
from cem_assets.cem.volumes.bricks import brick_boxes
from cem_assets.imaging.boxes import Box
from cem_assets.imaging.gallery import Tile, flipbook_webp, gallery_jpeg, histogram_png
from cem_assets.store.assets import DEDUPLICATED, RAW, SCORES
from cem_assets.store.manifests import Manifest, current_manifest
from cem_assets.store.parquet import read_parts, read_side_table
from cem_assets.store.store import Store

_COLUMNS = 8
_MAX_VOLUMES = 3


def _spaced(count: int, wanted: int) -> list[int]:
    """Choose up to `wanted` evenly spaced rows out of `count`."""
    return sorted({int(row) for row in np.linspace(0, count - 1, min(count, wanted))}) if count else []


def _rows(store: Store, manifest: Manifest, wanted: int) -> pa.Table:
    """Read evenly spaced rows of a table without its pixels. One part is read at a time."""
    total = int(manifest.counts.get("exemplars", manifest.counts["patches"]))
    chosen, taken, start = _spaced(total, wanted), [], 0
    columns = ["dataset", "name", "volume", "axis", "index", "y0", "y1", "x0", "x1", "dhash"]
    if manifest.inputs.asset not in (DEDUPLICATED, RAW):
        columns.append("informative")
    for table in read_parts(store, manifest, columns):
        inside = [row - start for row in chosen if start <= row < start + len(table)]
        taken.append(table.take(pa.array(inside, pa.int64())))
        start += len(table)
    return pa.concat_tables(taken)


def _tiles(pixels: DatasetPixels, table: pa.Table, captions: list[str]) -> list[Tile]:
    return [Tile(patch, text) for patch, text in zip(pixels.patches(table), captions, strict=True)]


def volume_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Show the middle brick of the first volumes on every plane, and a histogram of gray levels; or some of the images."""
    pixels = open_pixels(store, manifest.inputs.partition, manifest)
    rows: list[tuple[str, list[Tile]]] = []
    if pixels.images is not None:
        names = list(pixels.images.sizes())
        chosen = [names[row] for row in _spaced(len(names), _COLUMNS)]
        rows.append(
            (f"{len(chosen)} of {len(names)} images", [Tile(pixels.images.read(name)[::2, ::2], name[-14:]) for name in chosen])
        )
        return {"gallery": gallery_jpeg(rows, 128)}
    for volume in pixels.volumes[:_MAX_VOLUMES]:
        boxes = brick_boxes(volume.shape, volume.planes)
        box: Box = boxes[len(boxes) // 2]
        brick = volume.read(box)
        tiles = []
        for axis in volume.planes:
            middle = brick.shape[axis] // 2
            plane = np.take(brick, middle, axis=axis)
            tiles.append(Tile(plane[:448, :448], f"{PLANE_NAMES[axis]} at {box[axis].start + middle}"))
        size = " x ".join(str(side) for side in volume.shape)
        rows.append((f"{volume.name[:40]}: {size} (z, y, x)", tiles))
    counts = np.sum([volume.record.histogram for volume in pixels.volumes], axis=0)
    levels = np.repeat(np.arange(256), (counts * (100_000 / max(int(counts.sum()), 1))).astype(np.int64))
    chart = histogram_png(levels, "gray levels (per 100,000 voxels)", "uint8 value", 64, bounds=(0, 255))
    return {"gallery": gallery_jpeg(rows, 150), "histogram": chart}


def raw_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Show patches from every plane."""
    pixels = pixels_behind(store, manifest)
    table = _rows(store, manifest, 3 * _COLUMNS)
    axes = table["axis"].to_numpy()
    rows = []
    for axis in np.unique(axes).tolist():
        part = table.filter(pa.array(axes == axis)).slice(0, _COLUMNS)
        indices = [str(index) if axis >= 0 else "" for index in part["index"].to_pylist()]
        rows.append((f"{PLANE_NAMES[axis]} plane, by slice", _tiles(pixels, part, indices)))
    return {"gallery": gallery_jpeg(rows)}


def duplicate_rows(store: Store, manifest: Manifest, wanted: int = _COLUMNS // 2) -> tuple[str, list[Tile]]:
    """Make a row of dropped duplicates, each beside its exemplar.

    Args:
        manifest: A manifest of `cem/deduplicated_patches`.
        wanted: Number of pairs.
    """
    pixels = pixels_behind(store, manifest)
    pairs = read_side_table(store, manifest, "_duplicates", DUPLICATES_SCHEMA)
    chosen = pairs.take(pa.array(_spaced(len(pairs), wanted), pa.int64())).to_pylist()
    tiles = []
    for pair in chosen:
        table = table_of_places([parse_patch_name(pair["exemplar"]), parse_patch_name(pair["name"])])
        tiles += _tiles(pixels, table, ["exemplar", f"dropped, {pair['distance']} bits"])
    return "dropped as duplicates, each beside its exemplar", tiles


def duplicate_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Show exemplars, duplicates beside their exemplars, and a histogram of their distances."""
    pixels = pixels_behind(store, manifest)
    kept = _rows(store, manifest, _COLUMNS)
    rows = [("kept as exemplars", _tiles(pixels, kept, [""] * len(kept))), duplicate_rows(store, manifest)]
    counts = manifest.details["distances"]
    distances = np.repeat(np.arange(len(counts)), counts)
    chart = histogram_png(
        distances, "duplicates by distance", "Hamming distance, bits", len(counts), bounds=(-0.5, len(counts) - 0.5)
    )
    return {"gallery": gallery_jpeg(rows), "histogram": chart}


def score_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Show the most and the least informative patches, and a histogram of scores."""
    pixels = pixels_behind(store, manifest)
    table = pa.concat_tables(read_parts(store, manifest, None))
    scores = table["informative"].to_numpy()
    if not len(scores):
        return {}
    order = np.argsort(scores, kind="stable")
    rows = []
    for title, chosen in (("most informative", order[::-1][:_COLUMNS]), ("least informative", order[:_COLUMNS])):
        part = table.take(pa.array(chosen))
        rows.append((title, _tiles(pixels, part, [f"{score:.3f}" for score in scores[chosen]])))
    chart = histogram_png(scores, "informative probability", "probability", mark=0.5, bounds=(0, 1))
    return {"gallery": gallery_jpeg(rows), "histogram": chart}


def filtered_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Show patches that were kept, dropped as duplicates, and dropped as uninformative, and a histogram of scores."""
    dataset = manifest.inputs.partition
    pixels = pixels_behind(store, manifest)
    rows: list[tuple[str, list[Tile]]] = []
    if manifest.counts["patches"]:
        kept = _rows(store, manifest, _COLUMNS)
        rows.append(("kept", _tiles(pixels, kept, [f"{score:.3f}" for score in kept["informative"].to_pylist()])))
    deduplicated = current_manifest(store, DEDUPLICATED, dataset)
    if deduplicated is not None:
        rows.append(duplicate_rows(store, deduplicated))
    dropped = read_side_table(store, manifest, "_dropped", DROPPED_SCHEMA)
    if len(dropped):
        chosen = dropped.take(pa.array(_spaced(len(dropped), _COLUMNS), pa.int64()))
        table = table_of_places([parse_patch_name(name) for name in chosen["name"].to_pylist()])
        captions = [f"{score:.3f}" for score in chosen["informative"].to_pylist()]
        rows.append(("dropped as uninformative", _tiles(pixels, table, captions)))
    pictures = {"gallery": gallery_jpeg(rows)}
    scores = current_manifest(store, SCORES, dataset)
    if scores is not None and scores.counts["patches"]:
        values = np.concatenate([t["informative"].to_numpy() for t in read_parts(store, scores, ["informative"])])
        pictures["histogram"] = histogram_png(
            values, "scores and threshold", "probability", mark=manifest.inputs.parameters["threshold"], bounds=(0, 1)
        )
    return pictures


def subvolume_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Show the slices of some subvolumes one after another, in an animated WebP; return no picture if there are none."""
    index = pa.concat_tables(read_parts(store, manifest, ["file", "axis", "volume"]))
    chosen = index.take(pa.array(_spaced(len(index), _COLUMNS), pa.int64())).to_pylist()
    if not chosen:
        return {}
    stacks = [
        (read_subvolume(store, manifest, row["file"]), f"{PLANE_NAMES[row['axis']]} {row['volume'][:12]}") for row in chosen
    ]
    half = _COLUMNS // 2
    return {"flipbook": flipbook_webp([stacks[:half], stacks[half:]], 120)}
