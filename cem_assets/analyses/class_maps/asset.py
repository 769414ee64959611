"""The asset `cytoimagenet/class_maps`."""

from typing import Any

import dagster as dg

from cem_assets.analyses.class_maps.stage import DISTANCES, ClassMapParams, map_classes
from cem_assets.cytoimagenet import previews
from cem_assets.platform.assets import GPU_POOL, asset
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, progress_of
from cem_assets.store.assets import CLASS_MAPS, CLASSIFIER, CYTO_RELEASES


class ClassMapConfig(dg.Config, ClassMapParams):
    """Which classes are mapped by which network; see `ClassMapParams`."""


@asset(CLASS_MAPS, CYTO_RELEASES, CLASSIFIER, kinds={"pytorch"}, pool=GPU_POOL)
def class_maps(context: dg.AssetExecutionContext, config: ClassMapConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """How a network sees some classes of the newest release: UMAP by label, source and scale, and cosine distances.

    Images of a class that the network recognises lie closer to each other than to images of other classes. The launchpad
    sets which weights are used.
    """
    opened = store.open()
    with explained(context):
        result = map_classes(opened, ClassMapParams(**config.model_dump()), context.run_id, progress_of(context, "images"))
        pictures = previews.release_pictures(opened, result.manifest)
        table = previews.csv_table(opened.read(f"{result.manifest.folder}/{DISTANCES}"))
    details = result.manifest.details
    extra = {
        "mean_distance_within": details["within"],
        "mean_distance_between": details["between"],
        "weights": details["weights"],
        "cosine_distances": dg.MetadataValue.md(table),
    }
    return materialized(opened, result, pictures, ("images", result.manifest.counts["images"]), extra)
