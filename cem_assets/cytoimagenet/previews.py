"""Small pictures and tables that CytoImageNet's assets show in the UI, made from what was committed."""

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Manifest
from cem_assets.store.parquet import parquet_file
from cem_assets.store.store import Store

_GRID = 24


def source_pictures(manifest: Manifest) -> dict[str, bytes]:
    """Draw how many rows have a value in each label column, and why rows were left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from cem_assets.imaging.gallery import figure_png

    report = manifest.details["report"]
    figure = Figure(figsize=(6.4, 2.6), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    shares = [100 * (1 - report["missing"][column]) for column in LABEL_COLUMNS]
    left.barh(list(LABEL_COLUMNS)[::-1], shares[::-1], color="#4c72b0")
    left.set(xlim=(0, 100), xlabel="% of rows with a value", title=f"{report['num_rows']:,} rows")
    reasons = sorted(report["dropped"].items(), key=lambda item: -item[1])[:6] or [("nothing", 0)]
    names = [reason if len(reason) <= 34 else f"{reason[:33]}…" for reason, _ in reasons]
    right.barh(names[::-1], [count for _, count in reasons][::-1], color="#c44e52")
    right.set(xlim=(0, max(count for _, count in reasons) or 1), xlabel="rows or files", title="left out")
    right.tick_params(axis="y", labelsize=7)
    return {"rows": figure_png(figure)}


def label_pictures(manifest: Manifest, candidates: pd.DataFrame) -> dict[str, bytes]:
    """Draw the number of labels in each category, and the sizes of labels beside the smallest allowed size."""
    from cem_assets.cytoimagenet.pictures import label_counts_png

    sizes = candidates.loc[candidates["num_images"] > 0, ["label", "category", "num_images"]]
    counts = manifest.details["labels_by_category"]
    return {"labels": label_counts_png(counts, sizes, int(manifest.inputs.parameters["min_images"]))}


def crop_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Draw a grid of evenly spaced images of a label."""
    from cem_assets.cytoimagenet.pictures import class_grid

    num = manifest.counts["images"]
    if not num:
        return {}
    wanted = {int(place) for place in np.linspace(0, num - 1, min(num, _GRID))}
    images, captions = [], []
    for caption, pixels in _images(store, manifest, wanted):
        images.append(pixels)
        captions.append(caption)
    return {str(manifest.details["label"]): class_grid(images, captions)}


def _images(store: Store, manifest: Manifest, wanted: set[int]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    place = 0
    for item in manifest.find(".parquet"):
        with store.open(f"{manifest.folder}/{item.name}") as handle:
            for batch in parquet_file(handle).iter_batches(64, columns=["source", "scaling", "image"]):
                chosen = [n for n in range(len(batch)) if place + n in wanted]
                place += len(batch)
                for row in batch.take(chosen).to_pylist() if chosen else []:
                    yield f"{row['source'][:12]} {row['scaling']:g}", decode_image(row["image"]["bytes"])


def release_pictures(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Read the pictures that were committed with a release or with class maps."""
    names = [item.name for item in manifest.objects if item.name.endswith(".png") and "/" not in item.name]
    return {name.removesuffix(".png"): store.read(f"{manifest.folder}/{name}") for name in names}


def candidates_table(candidates: pd.DataFrame) -> str:
    """List the largest labels, and the largest candidates that became no label, as a Markdown table."""
    is_too_few = candidates["outcome"] == "too few left"
    top = pd.concat([candidates.nlargest(10, "num_images"), candidates[is_too_few].nlargest(10, "num_rows")])
    lines = ["| label | category | rows | left | images | outcome |", "|---|---|---:|---:|---:|---|"]
    for row in top.itertuples(index=False):
        label = str(row.label).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {label} | {row.category} | {row.num_rows:,} | {row.num_left:,} | {row.num_images:,} | {row.outcome} |")
    return "\n".join(lines)


def csv_table(data: bytes, num_rows: int = 25) -> str:
    """Convert the first rows of a CSV file to a Markdown table."""
    frame = pd.read_csv(io.BytesIO(data)).head(num_rows)
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |" for row in frame.to_numpy()
    ]
    return "\n".join(lines)
