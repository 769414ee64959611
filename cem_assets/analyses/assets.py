"""Analyses of weights as Dagster assets: one partition for each encoder, and figures that set several side by side."""

from collections.abc import Callable
from typing import Any, TypeVar

import dagster as dg
from pydantic import BaseModel, Field

from cem_assets.analyses.comparisons.stage import compare_weights
from cem_assets.analyses.datasets.stage import map_datasets, measure_datasets
from cem_assets.analyses.images import ImageParams
from cem_assets.analyses.invariance.stage import analyse_invariance
from cem_assets.analyses.occlusion.stage import analyse_occlusion
from cem_assets.analyses.organelles.masks import MaskedParams
from cem_assets.analyses.organelles.stage import analyse_organelles
from cem_assets.analyses.params import FrechetParams, InvarianceParams, MapParams, MaskParams, OcclusionParams
from cem_assets.cem.assets import GPU_POOL
from cem_assets.execution.stage import StageResult
from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, picture, progress_of
from cem_assets.store.assets import (
    CODE_VERSIONS,
    COMPARISONS,
    DATASET_DISTANCES,
    DATASET_MAPS,
    FILTERED,
    INVARIANCE,
    OCCLUSION,
    ORGANELLES,
    RELEASES,
    WEIGHTS,
)
from cem_assets.store.store import Store

_Params = TypeVar("_Params", bound=BaseModel)
_MAX_FIGURES = 12
"""Shown with a materialization; all are in the store."""


class InvarianceConfig(dg.Config, InvarianceParams, ImageParams):
    """Which images are changed, and how firing rates are measured; see `InvarianceParams` and `ImageParams`."""

    device: str = "auto"


class OcclusionConfig(dg.Config, OcclusionParams, ImageParams):
    """Which images are covered, and how; see `OcclusionParams` and `ImageParams`."""

    num_images: int = Field(6, ge=2, le=1000)
    device: str = "auto"


class OrganellesConfig(dg.Config, MaskParams, MaskedParams):
    """Which pictures have masks, and how maps are compared with them; see `MaskParams` and `MaskedParams`."""

    device: str = "auto"


class DatasetMapsConfig(dg.Config, MapParams, ImageParams):
    """Which images are laid out, and how; see `MapParams` and `ImageParams`."""

    num_images: int = Field(100, ge=2, le=100_000)
    device: str = "auto"


class DatasetDistancesConfig(dg.Config, FrechetParams, ImageParams):
    """Which datasets are compared, and how; see `FrechetParams` and `ImageParams`."""

    device: str = "auto"


class ComparisonConfig(dg.Config):
    """Which results are set side by side.

    Attributes:
        analysis: invariance, occlusion, masks, umap or frechet.
        setting: Digest of images and parameters; empty for those of the newest result.
        weights: Which; empty for all that were analysed so.
    """

    analysis: str
    setting: str = ""
    weights: list[str] = Field(default_factory=list)


def _asset(name: str, *deps: str, **more: Any) -> dict[str, Any]:
    return {
        "key": name.split("/"),
        "group_name": "analyses",
        "deps": [dep.split("/") for dep in deps],
        "code_version": CODE_VERSIONS[name],
        **more,
    }


def _of_weights(name: str, *deps: str) -> dict[str, Any]:
    return _asset(name, WEIGHTS, *deps, partitions_def=weights_rows, kinds={"pytorch", "mlflow"}, pool=GPU_POOL)


def _part(config: BaseModel, kind: type[_Params]) -> _Params:
    return kind(**config.model_dump(include=set(kind.model_fields)))


def _described(store: Store, result: StageResult) -> dg.MaterializeResult[Any]:
    """Show numbers and figures."""
    described = materialized(store, result, {})
    extra: dict[str, Any] = {"images": str(result.manifest.details.get("source", ""))}
    for name, value in result.manifest.details["numbers"].items():
        if value is not None:
            extra[name] = dg.MetadataValue.float(float(value))
    for item in result.manifest.find(".png")[:_MAX_FIGURES]:
        extra[item.name.removesuffix(".png")] = picture(store.read(f"{result.manifest.folder}/{item.name}"))
    return described._replace(metadata={**(described.metadata or {}), **{key: one for key, one in extra.items() if one != ""}})


def _analysed(
    context: dg.AssetExecutionContext,
    resource: StoreResource,
    what: str,
    analyse: Callable[..., StageResult],
    images: BaseModel,
    params: BaseModel,
    device: str,
) -> dg.MaterializeResult[Any]:
    store = resource.open()
    with explained(context):
        result = analyse(store, context.partition_key, images, params, device, context.run_id, progress_of(context, what))
    return _described(store, result)


@dg.asset(**_of_weights(INVARIANCE, FILTERED, RELEASES))
def invariance(context: dg.AssetExecutionContext, config: InvarianceConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """How much of what an encoder's units answer to survives changes of the image.

    Mean firing rates under rotation, blur, noise, brightness, contrast and scale: of the images a unit fires for, the share it
    still fires for after a change of some strength. 1 is invariant, the dashed line is chance.
    """
    images, params = _part(config, ImageParams), _part(config, InvarianceParams)
    return _analysed(context, store, "strengths", analyse_invariance, images, params, config.device)


@dg.asset(**_of_weights(OCCLUSION, FILTERED, RELEASES))
def occlusion(context: dg.AssetExecutionContext, config: OcclusionConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Which parts of an image an encoder's features depend on.

    A square is covered, place by place, and the drop of the cosine similarity with the features of the whole image is drawn
    over the image: red parts carry what the features say.
    """
    images, params = _part(config, ImageParams), _part(config, OcclusionParams)
    return _analysed(context, store, "images", analyse_occlusion, images, params, config.device)


@dg.asset(**_of_weights(ORGANELLES))
def organelles(context: dg.AssetExecutionContext, config: OrganellesConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Which feature maps of an encoder show an organelle, without any training on it.

    Maps of the last layer are correlated with masks of organelles, from a folder of `images/` and `masks/` of equal names (on
    this machine, or in the store under `analyses/inbox/`). The best channel and the mean of the best 32 are drawn beside the
    masks.
    """
    pictures, params = _part(config, MaskedParams), _part(config, MaskParams)
    return _analysed(context, store, "organelles", analyse_organelles, pictures, params, config.device)


@dg.asset(**_of_weights(DATASET_MAPS, FILTERED, RELEASES))
def dataset_maps(
    context: dg.AssetExecutionContext, config: DatasetMapsConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """Datasets as clouds of points: images with similar features lie together (UMAP).

    Beside the map stands a number that no layout made up: the share of an image's nearest neighbours that are of its own
    dataset. Low shares mean that datasets mix; high ones that the encoder tells them apart, by biology or by microscope.
    """
    images, params = _part(config, ImageParams), _part(config, MapParams)
    return _analysed(context, store, "images", map_datasets, images, params, config.device)


@dg.asset(**_of_weights(DATASET_DISTANCES, FILTERED, RELEASES))
def dataset_distances(
    context: dg.AssetExecutionContext, config: DatasetDistancesConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """How far apart datasets are to an encoder: the Fréchet distance between Gaussians fitted to their features.

    A table of all pairs with bootstrap intervals. Distances of different encoders have different units: compare the order of
    pairs, not the numbers.
    """
    images, params = _part(config, ImageParams), _part(config, FrechetParams)
    return _analysed(context, store, "images or pairs", measure_datasets, images, params, config.device)


@dg.asset(**_asset(COMPARISONS, INVARIANCE, OCCLUSION, ORGANELLES, DATASET_MAPS, DATASET_DISTANCES, kinds={"mlflow"}))
def comparisons(context: dg.AssetExecutionContext, config: ComparisonConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Several weights in one figure, and their numbers in one table.

    Only results of one setting are set side by side: the same images, parameters and seed. Without a setting, that of the
    newest result is taken, with all weights that were analysed so; random weights come last, as what all are held against.
    """
    opened = store.open()
    with explained(context):
        result = compare_weights(opened, config.analysis, config.setting, config.weights, context.run_id)
    return _described(opened, result)


ANALYSIS_ASSETS = [invariance, occlusion, organelles, dataset_maps, dataset_distances]
