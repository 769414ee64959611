"""CytoImageNet as Dagster assets: metadata of sources, labels over all of them, crops by label, releases."""

from typing import Any

import dagster as dg

from cem_assets.cytoimagenet import previews
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.labels.stage import LabelTableParams, label_entries, make_label_table
from cem_assets.cytoimagenet.releases.stage import CARD, make_cyto_release
from cem_assets.cytoimagenet.sources.stage import standardize_source
from cem_assets.execution.choice import chosen_engine
from cem_assets.inbox.datasets import INBOX
from cem_assets.inbox.quarantine import QUARANTINE
from cem_assets.platform.engines import EngineConfig
from cem_assets.platform.freshness import max_release_age
from cem_assets.platform.partitions import cyto_labels, microscopy_sources
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, progress_of
from cem_assets.store.assets import (
    CODE_VERSIONS,
    CROPS,
    CYTO_RELEASES,
    LABEL_TABLE,
    SOURCE_METADATA,
    TEST_IMAGES,
)


class LabelTableConfig(dg.Config, LabelTableParams):
    """How labels are assigned; see `LabelTableParams`."""


class CropConfig(EngineConfig, CropStageParams):
    """How images are cropped, see `CropStageParams`; and where."""


class CytoReleaseConfig(dg.Config):
    """Which release to make.

    Attributes:
        version: Its name; empty counts up v1, v2, ...
    """

    version: str = ""


def _asset(name: str, *deps: str, **more: Any) -> dict[str, Any]:
    return {
        "key": name.split("/"),
        "group_name": "cytoimagenet",
        "deps": [dep.split("/") for dep in deps],
        "code_version": CODE_VERSIONS[name],
        **more,
    }


def _with(described: dg.MaterializeResult[Any], **extra: Any) -> dg.MaterializeResult[Any]:
    return described._replace(metadata={**(described.metadata or {}), **extra})


@dg.asset(**_asset(SOURCE_METADATA, partitions_def=microscopy_sources, kinds={"pandas"}))
def source_metadata(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[Any]:
    """What a microscopy source says about its images, in common words: one row per image.

    The source's own tables and image folder are read by its recipe. Rows and files that are left out keep their
    reason; values the recipe does not know and gaps per column are reported.
    """
    source, opened = context.partition_key, store.open()
    report = {"quarantine report": dg.MetadataValue.path(opened.url_of(f"{QUARANTINE}/{source}/report.md"))}
    with explained(context, report):
        result = standardize_source(opened, source, context.run_id, progress_of(context, "steps"))
        pictures = previews.source_pictures(result.manifest)
    described = materialized(opened, result, pictures, ("rows", result.manifest.counts["rows"]))
    return _with(
        described,
        inbox=dg.MetadataValue.path(opened.url_of(f"{INBOX}/{source}")),
        report=dg.MetadataValue.json(result.manifest.details["report"]),
        licence=result.manifest.details["facts"]["licence"],
    )


@dg.asset(**_asset(TEST_IMAGES, SOURCE_METADATA, kinds={"parquet"}))
def test_images(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Fingerprints of the benchmarks' images, which must never become training images.

    Sources whose role is "test" are fingerprinted; every image that is cropped is compared with them, turned and
    flipped and re-encoded as it may be.
    """
    opened = store.open()
    with explained(context):
        result = fingerprint_test_images(opened, context.run_id, progress=progress_of(context, "test images"))
    return materialized(opened, result, {}, ("images", result.manifest.counts["images"]))


@dg.asset(**_asset(LABEL_TABLE, SOURCE_METADATA, kinds={"pandas"}))
def label_table(context: dg.AssetExecutionContext, config: LabelTableConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Which images stand for which weak label: a value of the metadata that enough images carry.

    From the rarest value up each label takes images that no other has, up to 1,000, in proportion to what they
    show. Benchmark images and copies of other rows are left out, with the reason.
    """
    opened = store.open()
    params = LabelTableParams(**config.model_dump())
    with explained(context):
        result = make_label_table(opened, params, context.run_id, progress=progress_of(context, "sources read"))
        pictures = previews.label_pictures(opened, result.manifest)
        told = previews.candidates_table(opened, result.manifest)
        keys = list(label_entries(opened, result.manifest))
    _keep_partitions(context.instance, keys)
    described = materialized(opened, result, pictures, ("rows", result.manifest.counts["rows"]))
    return _with(
        described,
        candidates=dg.MetadataValue.md(told),
        excluded_by_reason=dg.MetadataValue.json(result.manifest.details["excluded_by_reason"]),
    )


def _keep_partitions(instance: dg.DagsterInstance, keys: list[str]) -> None:
    """Make Dagster's label partitions those of the label table: new ones are added, labels that are gone leave."""
    name = str(cyto_labels.name)
    known = set(instance.get_dynamic_partitions(name))
    if added := [key for key in keys if key not in known]:
        instance.add_dynamic_partitions(name, added)
    for key in sorted(known - set(keys)):
        instance.delete_dynamic_partition(name, key)


@dg.asset(**_asset(CROPS, LABEL_TABLE, TEST_IMAGES, partitions_def=cyto_labels, kinds={"parquet"}))
def crops(context: dg.AssetExecutionContext, config: CropConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """The images of one label: channels normalised and merged to gray, cut at several scales, judged.

    Parquet files with pixels and the whole metadata, that pandas, DuckDB and HF datasets open as they are. Every image and
    crop that is left out (uniform, mask, dim, duplicate, test image, ...) is listed with its reason.
    """
    opened = store.open()
    with explained(context):
        result = make_crops(
            opened,
            context.partition_key,
            CropStageParams(**config.parameters()),
            context.run_id,
            chosen_engine(opened, config.engine),
            progress=progress_of(context, "images read"),
        )
        pictures = previews.crop_pictures(opened, result.manifest)
    described = materialized(opened, result, pictures, ("source images", result.manifest.counts["source_images"]))
    details = result.manifest.details
    return _with(
        described,
        label=details["label"],
        category=details["category"],
        dropped_by_reason=dg.MetadataValue.json(details["dropped_by_reason"]),
        sources=dg.MetadataValue.json({name: facts["num_images"] for name, facts in details["sources"].items()}),
    )


@dg.asset(
    **_asset(
        CYTO_RELEASES,
        CROPS,
        kinds={"parquet"},
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=max_release_age()),
    )
)
def cyto_releases(
    context: dg.AssetExecutionContext, config: CytoReleaseConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """A numbered, unchangeable edition of the crops of all labels, with training and validation split.

    Comes with a dataset card: labels per category, images per database, licences and citations.
    `cem-assets export cytoimagenet DIR` writes it as the published folders.
    """
    opened = store.open()
    with explained(context):
        result = make_cyto_release(opened, config.version, context.run_id, progress_of(context, "labels read"))
        pictures = previews.release_pictures(opened, result.manifest)
    card = opened.read(f"{result.manifest.folder}/{CARD}").decode()
    return _with(
        materialized(opened, result, pictures),
        version=result.manifest.inputs.partition,
        dataset_card=dg.MetadataValue.md(card.split("---\n", 2)[-1]),
    )
