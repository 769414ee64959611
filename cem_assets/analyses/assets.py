"""Analyses of weights as Dagster assets: one partition for each encoder, and figures that set several side by side."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from cem_assets.execution.stage import StageResult
from cem_assets.platform.assets import GPU_POOL, asset
from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, picture, progress_of
from cem_assets.store.assets import (
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

_MAX_FIGURES = 12
"""At most so many figures are shown with a materialization; all of them are in the store."""


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
        setting: Digest of images and parameters; empty takes the setting of the newest result.
        weights: Names of weights; empty takes all that were analysed with that setting.
    """

    analysis: str
    setting: str = ""
    weights: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class _Analysis:
    """One analysis of an encoder, as an asset.

    Attributes:
        deps: Assets that it reads besides the weights.
        config: What the launchpad shows.
        images: The part of `config` that chooses the images.
        params: The part of `config` that says how they are analysed.
        analyse: The stage.
        progress: What its progress counts.
        description: What people read in the UI.
    """

    deps: tuple[str, ...]
    config: type[dg.Config]
    images: type[BaseModel]
    params: type[BaseModel]
    analyse: Callable[..., StageResult]
    progress: str
    description: str


_ANALYSES: dict[str, _Analysis] = {
    INVARIANCE: _Analysis(
        (FILTERED, RELEASES),
        InvarianceConfig,
        ImageParams,
        InvarianceParams,
        analyse_invariance,
        "strengths",
        """How much of what an encoder's units answer to survives changes of the image.

    Mean firing rates under rotation, blur, noise, brightness, contrast and scale: of the images for which a unit fires, the
    share for which it still fires after a change of some strength. 1 means invariant; the dashed line is chance.
    """,
    ),
    OCCLUSION: _Analysis(
        (FILTERED, RELEASES),
        OcclusionConfig,
        ImageParams,
        OcclusionParams,
        analyse_occlusion,
        "images",
        """Which parts of an image an encoder's features depend on.

    A square is covered, place by place. The loss of cosine similarity with the features of the whole image is drawn over
    the image: the features depend most on the red parts.
    """,
    ),
    ORGANELLES: _Analysis(
        (),
        OrganellesConfig,
        MaskedParams,
        MaskParams,
        analyse_organelles,
        "organelles",
        """Which feature maps of an encoder show an organelle, without any training on it.

    Maps of the last layer are correlated with masks of organelles, from a folder with `images/` and `masks/` of equal names
    (on this machine, or in the store under `analyses/inbox/`). The best channel and the mean of the best 32 are drawn
    beside the masks.
    """,
    ),
    DATASET_MAPS: _Analysis(
        (FILTERED, RELEASES),
        DatasetMapsConfig,
        ImageParams,
        MapParams,
        map_datasets,
        "images",
        """Datasets as clouds of points: images with similar features lie together (UMAP).

    Beside the map stands a number that does not depend on the layout: the share of an image's nearest neighbours that come
    from its own dataset. A low share means that datasets mix; a high one that the encoder tells them apart, by biology or
    by microscope.
    """,
    ),
    DATASET_DISTANCES: _Analysis(
        (FILTERED, RELEASES),
        DatasetDistancesConfig,
        ImageParams,
        FrechetParams,
        measure_datasets,
        "images or pairs",
        """How far apart datasets are to an encoder: the Fréchet distance between Gaussians fitted to their features.

    A table of all pairs, with bootstrap intervals. Distances of different encoders have different units: compare the order
    of the pairs, not the numbers.
    """,
    ),
}
"""The analyses of one encoder each, by asset."""


def _part(config: BaseModel, kind: type[BaseModel]) -> BaseModel:
    return kind(**config.model_dump(include=set(kind.model_fields)))


def _facts(store: Store, result: StageResult) -> dict[str, Any]:
    """Collect the numbers and figures that people see."""
    facts: dict[str, Any] = {"images": source} if (source := str(result.manifest.details.get("source", ""))) else {}
    for name, value in result.manifest.details["numbers"].items():
        if value is not None:
            facts[name] = dg.MetadataValue.float(float(value))
    for item in result.manifest.find(".png")[:_MAX_FIGURES]:
        facts[item.name.removesuffix(".png")] = picture(store.read(f"{result.manifest.folder}/{item.name}"))
    return facts


def _analysis_asset(name: str, analysis: _Analysis) -> dg.AssetsDefinition:
    def body(context: dg.AssetExecutionContext, config: Any, store: StoreResource) -> dg.MaterializeResult[Any]:
        opened = store.open()
        with explained(context):
            result = analysis.analyse(
                opened,
                context.partition_key,
                _part(config, analysis.images),
                _part(config, analysis.params),
                config.device,
                context.run_id,
                progress_of(context, analysis.progress),
            )
        return materialized(opened, result, extra=_facts(opened, result))

    body.__annotations__["config"] = analysis.config  # Dagster reads the type of the launchpad's form from here
    return asset(
        name,
        WEIGHTS,
        *analysis.deps,
        kinds={"pytorch", "mlflow"},
        partitions=weights_rows,
        pool=GPU_POOL,
        description=inspect.cleandoc(analysis.description),
    )(body)


@asset(COMPARISONS, *_ANALYSES, kinds={"mlflow"})
def comparisons(context: dg.AssetExecutionContext, config: ComparisonConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Several weights in one figure, and their numbers in one table.

    Only results of one setting are compared: the same images, parameters and seed. Without a setting, that of the newest result
    is taken, with all weights that were analysed with it. Random weights come last, because all others are compared to them.
    """
    opened = store.open()
    with explained(context):
        result = compare_weights(opened, config.analysis, config.setting, config.weights, context.run_id)
    return materialized(opened, result, extra=_facts(opened, result))


ANALYSIS_ASSETS = [_analysis_asset(name, analysis) for name, analysis in _ANALYSES.items()]
