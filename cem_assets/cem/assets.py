"""The CEM curation chain as Dagster assets, partitioned by dataset."""

from typing import Any

import dagster as dg

from cem_assets.cem import previews
from cem_assets.cem.filter.params import FilterParams, ScoreParams
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
from cem_assets.platform.engines import EngineConfig
from cem_assets.platform.partitions import em_datasets
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, progress_of
from cem_assets.store.assets import CODE_VERSIONS, DEDUPLICATED, FILTERED, RAW, SCORES, SUBVOLUMES, VOLUMES

GPU_POOL = "gpu"


class PatchifyConfig(EngineConfig, PatchifyParams):
    """How volumes are cut, see `PatchifyParams`; and where."""


class DedupConfig(dg.Config, DedupParams):
    """How one dataset is deduplicated; see `DedupParams`."""


class ScoreConfig(EngineConfig, ScoreParams):
    """How patches are scored, see `ScoreParams`; and where."""


class FilterConfig(EngineConfig, FilterParams):
    """Which scored patches are kept, see `FilterParams`; and where they are written."""


class SubvolumeConfig(dg.Config, SubvolumeParams):
    """Which subvolumes are cut; see `SubvolumeParams`."""


def _asset(name: str, **more: Any) -> dict[str, Any]:
    return {
        "key": name.split("/"),
        "group_name": "cem",
        "partitions_def": em_datasets,
        "code_version": CODE_VERSIONS[name],
        **more,
    }


def _labelling(dataset: str) -> dict[str, Any]:
    """Link the labelling page of the patches that are shown, and say what opens it; the link holds no secret (`web.door`)."""
    return {
        "label these patches": dg.MetadataValue.url(labelling_url(dataset)),
        "opens the labelling page": f"cem-assets label {dataset}   (keys g good, b bad, s skip, u undo)",
        "look at them": f"cem-assets explore   (then choose {dataset})",
    }


@dg.asset(**_asset(VOLUMES, kinds={"zarr"}))
def volumes(context: dg.AssetExecutionContext, config: EngineConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Electron-microscopy volumes and images as they arrive, brought to one form.

    Every file of the dataset's folder in the inbox is read, whatever its format, and stored as 8-bit gray: volumes
    as OME-Zarr (opens in napari and neuroglancer) with their voxel size in nm, single images as a table.
    How intensities were mapped is recorded, so it can be undone. Files that cannot be used are listed with the
    reason in the quarantine report and stay in the inbox.
    """
    dataset, opened = context.partition_key, store.open()
    report = {"quarantine report": dg.MetadataValue.path(opened.url_of(f"{QUARANTINE}/{dataset}/report.md"))}
    with explained(context, report):
        engine = chosen_engine(opened, config.engine)
        result = standardize_dataset(opened, dataset, context.run_id, engine, progress_of(context, "bricks or images"))
        pictures = previews.volume_pictures(opened, result.manifest)
    described = materialized(opened, result, pictures, ("voxels", result.manifest.counts["voxels"]))
    extra = {"inbox": dg.MetadataValue.path(opened.url_of(f"{INBOX}/{dataset}"))}
    if result.manifest.counts["rejected"]:
        extra |= report
    return described._replace(metadata={**(described.metadata or {}), **extra})


@dg.asset(**_asset(RAW, deps=[VOLUMES.split("/")], kinds={"parquet"}))
def raw_patches(context: dg.AssetExecutionContext, config: PatchifyConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Every 224 x 224 px patch of the dataset: its place and a 64-bit fingerprint.

    Isotropic volumes are cut along all three axes, anisotropic ones and videos along z only. The fingerprint
    (difference hash) is close for patches that look alike. No pixels are stored; they are found again by place.
    """
    opened = store.open()
    with explained(context):
        params, engine = PatchifyParams(**config.parameters()), chosen_engine(opened, config.engine)
        progress = progress_of(context, "bricks hashed")
        result = cut_and_hash(opened, context.partition_key, params, context.run_id, engine, progress)
        pictures = previews.raw_pictures(opened, result.manifest)
    return materialized(opened, result, pictures, ("patches", result.manifest.counts["patches"]))


@dg.asset(**_asset(DEDUPLICATED, deps=[RAW.split("/")], kinds={"parquet"}))
def deduplicated_patches(
    context: dg.AssetExecutionContext, config: DedupConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """Exemplars: patches that do not look like one another.

    Neighbouring slices of a volume are nearly the same picture. Of patches whose fingerprints differ in at most
    12 of 64 bits one, the exemplar, stands for all; every dropped patch is listed with its exemplar.
    """
    opened = store.open()
    with explained(context):
        result = choose_exemplars(
            opened, context.partition_key, config, context.run_id, progress_of(context, "deduplication steps")
        )
        pictures = previews.duplicate_pictures(opened, result.manifest)
    described = materialized(opened, result, pictures, ("patches", result.manifest.counts["patches"]))
    return described._replace(metadata={**(described.metadata or {}), **_labelling(context.partition_key)})


@dg.asset(**_asset(SCORES, deps=[DEDUPLICATED.split("/"), ["cem", "patch_classifier"]], kinds={"pytorch"}, pool=GPU_POOL))
def patch_scores(context: dg.AssetExecutionContext, config: ScoreConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """How informative each exemplar is: the probability a ResNet34 classifier gives it.

    Blank resin, padding, blur and artefacts score low. Scores are kept for every exemplar, so another
    threshold needs no second look at the pixels.
    """
    opened = store.open()
    with explained(context):
        params = ScoreParams(**config.parameters())
        engine = chosen_engine(opened, config.engine, may_use_gpu=params.device != "cpu")
        progress = progress_of(context, "patches scored")
        result = score_patches(opened, context.partition_key, params, context.run_id, engine, progress)
        pictures = previews.score_pictures(opened, result.manifest)
    described = materialized(opened, result, pictures, ("patches", result.manifest.counts["patches"]))
    return described._replace(metadata={**(described.metadata or {}), **_labelling(context.partition_key)})


@dg.asset(**_asset(FILTERED, deps=[SCORES.split("/")], kinds={"parquet"}))
def filtered_patches(
    context: dg.AssetExecutionContext, config: FilterConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """The informative patches with their pixels: the images people train on.

    Parquet files that pandas, DuckDB and HF datasets open as they are. The gallery shows what was kept, what was
    dropped as a duplicate beside its exemplar, and what was dropped as uninformative.
    """
    opened = store.open()
    with explained(context):
        params, engine = FilterParams(**config.parameters()), chosen_engine(opened, config.engine)
        progress = progress_of(context, "shards written")
        result = keep_informative(opened, context.partition_key, params, context.run_id, engine, progress)
        pictures = previews.filtered_pictures(opened, result.manifest)
    return materialized(opened, result, pictures, ("patches", result.manifest.counts["patches"]))


@dg.asset(**_asset(SUBVOLUMES, deps=[FILTERED.split("/")], kinds={"zarr"}))
def subvolumes(context: dg.AssetExecutionContext, config: SubvolumeConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Slices around informative patches: flipbooks of five to look through, or cubes.

    Cut out of the standardized volumes where there is context on either side, spread so that they hardly overlap, at most
    so many a dataset. OME-Zarr or TIFF stacks with their voxel size. Made when asked for; no later asset needs them.
    """
    opened = store.open()
    with explained(context):
        result = cut_subvolumes(
            opened, context.partition_key, config, context.run_id, progress=progress_of(context, "subvolumes cut")
        )
        pictures = previews.subvolume_pictures(opened, result.manifest)
    return materialized(opened, result, pictures, ("subvolumes", result.manifest.counts["subvolumes"]))


CHAIN = [volumes, raw_patches, deduplicated_patches, patch_scores, filtered_patches]
