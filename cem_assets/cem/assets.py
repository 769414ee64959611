"""The CEM curation chain as Dagster assets, with one partition for each dataset."""

from typing import Any

import dagster as dg

from cem_assets.cem import previews
from cem_assets.cem.classifier.params import ScoreParams
from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative, score_patches
from cem_assets.cem.page_links import labelling_url
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams, choose_exemplars, cut_and_hash
from cem_assets.cem.subvolumes.places import SubvolumeParams
from cem_assets.cem.subvolumes.stage import cut_subvolumes
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.execution.choice import chosen_engine
from cem_assets.inbox.datasets import INBOX
from cem_assets.inbox.quarantine import QUARANTINE
from cem_assets.platform.assets import GPU_POOL, asset
from cem_assets.platform.engines import EngineConfig
from cem_assets.platform.partitions import em_datasets
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, progress_of
from cem_assets.store.assets import CLASSIFIER, DEDUPLICATED, FILTERED, RAW, SCORES, SUBVOLUMES, VOLUMES


class PatchifyConfig(EngineConfig, PatchifyParams):
    """How volumes are cut (`PatchifyParams`), and which engine does it."""


class DedupConfig(dg.Config, DedupParams):
    """How one dataset is deduplicated (`DedupParams`)."""


class ScoreConfig(EngineConfig, ScoreParams):
    """How patches are scored (`ScoreParams`), and which engine does it."""


class FilterConfig(EngineConfig, FilterParams):
    """Which scored patches are kept (`FilterParams`), and which engine writes them."""


class SubvolumeConfig(dg.Config, SubvolumeParams):
    """Which subvolumes are cut (`SubvolumeParams`)."""


def _labelling(dataset: str) -> dict[str, Any]:
    """Link to the labelling page of a dataset, and say which command opens it. The link holds no secret (`web.door`)."""
    return {
        "label these patches": dg.MetadataValue.url(labelling_url(dataset)),
        "opens the labelling page": f"cem-assets label {dataset}   (keys g good, b bad, s skip, u undo)",
        "look at them": f"cem-assets explore   (then choose {dataset})",
    }


@asset(VOLUMES, kinds={"zarr"}, partitions=em_datasets)
def volumes(context: dg.AssetExecutionContext, config: EngineConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Electron-microscopy volumes and images from the inbox, all brought to the same form.

    Every file in the dataset's inbox folder is read, whatever its format, and stored as 8-bit gray: volumes
    as OME-Zarr (opens in napari and neuroglancer) with their voxel size in nm, single images as a table.
    The mapping of intensities is recorded, so it can be undone. Files that cannot be used are listed with the
    reason in the quarantine report, and stay in the inbox.
    """
    dataset, opened = context.partition_key, store.open()
    report = {"quarantine report": dg.MetadataValue.path(opened.url_of(f"{QUARANTINE}/{dataset}/report.md"))}
    with explained(context, report):
        engine = chosen_engine(opened, config.engine)
        result = standardize_dataset(opened, dataset, context.run_id, engine, progress_of(context, "bricks or images"))
        pictures = previews.volume_pictures(opened, result.manifest)
    counts = result.manifest.counts
    extra = {"inbox": dg.MetadataValue.path(opened.url_of(f"{INBOX}/{dataset}"))}
    if counts["rejected"]:
        extra |= report
    return materialized(opened, result, pictures, ("voxels", counts["voxels"]), extra)


@asset(RAW, VOLUMES, kinds={"parquet"}, partitions=em_datasets)
def raw_patches(context: dg.AssetExecutionContext, config: PatchifyConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Every 224 x 224 px patch of the dataset: its place and a 64-bit fingerprint.

    Isotropic volumes are cut along all three axes, anisotropic volumes and videos along z only. The fingerprints
    (difference hashes) of patches that look alike differ in few bits. No pixels are stored, because the place says where
    they are in the standardized volume.
    """
    opened = store.open()
    with explained(context):
        params, engine = PatchifyParams(**config.parameters()), chosen_engine(opened, config.engine)
        progress = progress_of(context, "bricks hashed")
        result = cut_and_hash(opened, context.partition_key, params, context.run_id, engine, progress)
        pictures = previews.raw_pictures(opened, result.manifest)
    return materialized(opened, result, pictures, ("patches", result.manifest.counts["patches"]))


@asset(DEDUPLICATED, RAW, kinds={"parquet"}, partitions=em_datasets)
def deduplicated_patches(
    context: dg.AssetExecutionContext, config: DedupConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """Exemplars: patches that do not look like one another.

    Neighbouring slices of a volume are nearly the same picture. Where the fingerprints of patches differ in at most
    12 of 64 bits, only one of the patches is kept, the exemplar. Every dropped patch is listed with its exemplar.
    """
    opened = store.open()
    with explained(context):
        progress = progress_of(context, "deduplication steps")
        result = choose_exemplars(opened, context.partition_key, config, context.run_id, progress)
        pictures = previews.duplicate_pictures(opened, result.manifest)
    num_patches = result.manifest.counts["patches"]
    return materialized(opened, result, pictures, ("patches", num_patches), _labelling(context.partition_key))


@asset(SCORES, DEDUPLICATED, CLASSIFIER, kinds={"pytorch"}, partitions=em_datasets, pool=GPU_POOL)
def patch_scores(context: dg.AssetExecutionContext, config: ScoreConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """How informative each exemplar is: a probability from a ResNet34 classifier.

    Blank resin, padding, blur and artefacts score low. The score of every exemplar is kept, so the threshold can be
    changed later without looking at the pixels again.
    """
    opened = store.open()
    with explained(context):
        params = ScoreParams(**config.parameters())
        engine = chosen_engine(opened, config.engine, may_use_gpu=params.device != "cpu")
        progress = progress_of(context, "patches scored")
        result = score_patches(opened, context.partition_key, params, context.run_id, engine, progress)
        pictures = previews.score_pictures(opened, result.manifest)
    num_patches = result.manifest.counts["patches"]
    return materialized(opened, result, pictures, ("patches", num_patches), _labelling(context.partition_key))


@asset(FILTERED, SCORES, kinds={"parquet"}, partitions=em_datasets)
def filtered_patches(
    context: dg.AssetExecutionContext, config: FilterConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """The informative patches with their pixels: the images that models are trained on.

    The Parquet files can be opened directly with pandas, DuckDB and HF datasets. The gallery shows patches that were
    kept, duplicates beside their exemplars, and patches that were dropped as uninformative.
    """
    opened = store.open()
    with explained(context):
        params, engine = FilterParams(**config.parameters()), chosen_engine(opened, config.engine)
        progress = progress_of(context, "shards written")
        result = keep_informative(opened, context.partition_key, params, context.run_id, engine, progress)
        pictures = previews.filtered_pictures(opened, result.manifest)
    return materialized(opened, result, pictures, ("patches", result.manifest.counts["patches"]))


@asset(SUBVOLUMES, FILTERED, kinds={"zarr"}, partitions=em_datasets)
def subvolumes(context: dg.AssetExecutionContext, config: SubvolumeConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Slices around informative patches: flipbooks of five slices to look through, or cubes.

    They are cut out of the standardized volumes where there is context on either side, hardly overlap, and their number
    per dataset is limited. They are stored as OME-Zarr or TIFF stacks with their voxel size. Nothing makes them
    automatically, and no other asset needs them: materialize this asset when you want them.
    """
    opened = store.open()
    with explained(context):
        progress = progress_of(context, "subvolumes cut")
        result = cut_subvolumes(opened, context.partition_key, config, context.run_id, progress=progress)
        pictures = previews.subvolume_pictures(opened, result.manifest)
    return materialized(opened, result, pictures, ("subvolumes", result.manifest.counts["subvolumes"]))


CHAIN = [volumes, raw_patches, deduplicated_patches, patch_scores, filtered_patches]
