"""Stage `analyses/occlusion`: which parts of an image the features of an encoder depend on.

Measuring is `cem_assets.analyses.occlusion.maps`.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.analyses.images import ImageParams, ImagePlan, plan_images
from cem_assets.analyses.params import OcclusionParams
from cem_assets.analyses.results import AnalysisPlan, Findings, analysed_weights, build_weights, commit_analysis, read_table
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.store.assets import OCCLUSION
from cem_assets.store.images import decode_image, image_column
from cem_assets.store.manifests import Manifest
from cem_assets.store.parquet import IMAGE
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from cem_assets.analyses.occlusion.maps import OcclusionMap

TITLE = "Drop of cosine similarity"
DROPS, PICTURES = "drops", "pictures"
_TOP_SHARE = 0.1


def analyse_occlusion(
    store: Store,
    weights: str,
    images: ImageParams,
    params: OcclusionParams,
    device: str = "auto",
    run_id: str = "",
    progress: Progress = no_progress,
) -> StageResult:
    """Cover parts of images and measure how far the features move.

    Args:
        weights: Name of committed weights.
        images: The images that are covered, in their own sizes.
        device: "auto", "cpu" or "cuda"; decides no number beyond rounding.

    Returns:
        The committed partition: `drops.parquet` (image, top, left, drop), `pictures.parquet` with the images themselves,
        `occlusion.png`.

    Raises:
        DataError: The weights are not known, an image is smaller than the square, or the layer cannot be used.
        FileNotFoundError: Weights or images are not in the store.
    """
    found = analysed_weights(store, weights)
    chosen = plan_images(store, images)
    parameters = {**params.model_dump(mode="json"), **chosen.parameters}
    plan = AnalysisPlan(OCCLUSION, found, parameters, chosen.upstream, chosen.source)
    return commit_analysis(store, plan, run_id, lambda: _find(store, plan, chosen, params, device, progress))


def _find(
    store: Store, plan: AnalysisPlan, chosen: ImagePlan, params: OcclusionParams, device: str, progress: Progress
) -> Findings:
    from cem_assets.analyses.occlusion.figures import occlusion_png
    from cem_assets.analyses.occlusion.maps import occlusion_map

    pictures = chosen.read()
    small = [
        f"{name} has {image.shape[0]} x {image.shape[1]} px"
        for name, image in zip(pictures.names, pictures.images, strict=True)
        if min(image.shape) < params.square_px
    ]
    if small:
        raise DataError(
            f"{len(small)} image(s) are smaller than the square of {params.square_px} px: {'; '.join(small[:5])}. Leave them "
            "out, or lower square_px."
        )
    encoder, norms = build_weights(store, plan.weights, device)
    maps = []
    for number, image in enumerate(pictures.images):
        maps.append(occlusion_map(encoder, image, norms, params))
        progress(number + 1, len(pictures.images))
    drops = [found.drops.mean() for found in maps]
    numbers = {
        "mean_drop": float(np.mean(drops)),
        "largest_drop": float(max(found.drops.max() for found in maps)),
        "top_tenth_share": float(np.mean([_share_of_top(found.pixel_drops) for found in maps])),
    }
    title = f"{TITLE}, {params.square_px} px covered: {chosen.source}"
    names = list(pictures.names)
    table = pa.table(
        {
            "dataset": pa.array(list(pictures.datasets)),
            "name": pa.array(names),
            "image": image_column([str(number) for number in range(len(names))], pictures.images),
        },
        schema=pa.schema([("dataset", pa.string()), ("name", pa.string()), ("image", IMAGE)]),
    )
    return Findings(
        tables={DROPS: _drops_table(maps, names), PICTURES: table},
        figures={"occlusion.png": occlusion_png(pictures.images, {plan.weights.name: maps}, title)},
        numbers=numbers,
        counts={"images": len(names), "places": sum(found.drops.size for found in maps)},
        details={"title": title},
    )


def _share_of_top(pixel_drops: NDArray[np.float64]) -> float:
    """Share of all drops that lies in the tenth of pixels with the largest ones: 0.1 for an even map, 1 for a point."""
    ordered = np.sort(pixel_drops.ravel())[::-1]
    total = float(ordered.sum())
    return float(ordered[: max(1, round(_TOP_SHARE * len(ordered)))].sum()) / total if total else float("nan")


def _drops_table(maps: "list[OcclusionMap]", names: list[str]) -> pa.Table:
    pieces = []
    for number, (found, name) in enumerate(zip(maps, names, strict=True)):
        num = found.drops.size
        pieces.append(
            pa.table(
                {
                    "number": np.full(num, number, np.int32),
                    "name": pa.array([name] * num),
                    "top": np.repeat(found.tops, len(found.lefts)),
                    "left": np.tile(found.lefts, len(found.tops)),
                    "drop": found.drops.ravel(),
                }
            )
        )
    return pa.concat_tables(pieces)


def read_maps(store: Store, manifest: Manifest) -> "tuple[list[NDArray[np.uint8]], list[OcclusionMap]]":
    """Read the images and maps of a committed result."""
    from cem_assets.analyses.occlusion.maps import map_of_drops

    square_px = int(manifest.inputs.parameters["square_px"])
    images = [decode_image(cell["bytes"]) for cell in read_table(store, manifest, PICTURES)["image"].to_pylist()]
    frame = read_table(store, manifest, DROPS).to_pandas()
    maps = []
    for number in range(len(images)):
        rows = frame[frame["number"] == number]
        tops, lefts = (np.unique(rows[side].to_numpy(np.int64)) for side in ("top", "left"))
        maps.append(map_of_drops(rows["drop"].to_numpy(np.float64).reshape(len(tops), len(lefts)), tops, lefts, square_px))
    return images, maps
