"""CytoImageNet as Dagster assets: metadata of sources, a table of labels over all of them, crops by label, and releases."""

from typing import Any

import dagster as dg

from cem_assets.cytoimagenet import previews
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.labels.stage import CANDIDATES, LabelTableParams, label_entries, make_label_table
from cem_assets.cytoimagenet.releases.stage import CARD, make_cyto_release
from cem_assets.cytoimagenet.sources.stage import standardize_source
from cem_assets.cytoimagenet.tables import read_frame
from cem_assets.execution.choice import chosen_engine
from cem_assets.inbox.datasets import INBOX
from cem_assets.inbox.quarantine import QUARANTINE
from cem_assets.platform.assets import asset
from cem_assets.platform.engines import EngineConfig
from cem_assets.platform.freshness import max_release_age
from cem_assets.platform.partitions import cyto_labels, microscopy_sources
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import card, explained, materialized, progress_of
from cem_assets.store.assets import CROPS, CYTO_RELEASES, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES


class LabelTableConfig(dg.Config, LabelTableParams):
    """How labels are assigned; see `LabelTableParams`."""


class CropConfig(EngineConfig, CropStageParams):
    """How images are cropped, and where the work runs; see `CropStageParams` and `EngineConfig`."""


class CytoReleaseConfig(dg.Config):
    """Which release is made.

    Attributes:
        version: Name of the release; empty takes the next of v1, v2, ...
    """

    version: str = ""


@asset(SOURCE_METADATA, kinds={"pandas"}, partitions=microscopy_sources)
def source_metadata(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[Any]:
    """What a microscopy source says about its images, in standard terms: one row per image.

    The source's recipe (`source.toml`) says how its own tables and its image folder are read. The report lists every row
    and file that was left out, with the reason, the values that the recipe does not know, and the gaps in each column.
    """
    source, opened = context.partition_key, store.open()
    report = {"quarantine report": dg.MetadataValue.path(opened.url_of(f"{QUARANTINE}/{source}/report.md"))}
    with explained(context, report):
        result = standardize_source(opened, source, context.run_id, progress_of(context, "steps"))
        pictures = previews.source_pictures(result.manifest)
    details = result.manifest.details
    extra = {
        "inbox": dg.MetadataValue.path(opened.url_of(f"{INBOX}/{source}")),
        "report": dg.MetadataValue.json(details["report"]),
        "licence": details["facts"]["licence"],
    }
    return materialized(opened, result, pictures, ("rows", result.manifest.counts["rows"]), extra)


@asset(TEST_IMAGES, SOURCE_METADATA, kinds={"parquet"})
def test_images(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Fingerprints of the benchmarks' images, which must never become training images.

    The images of every source whose role is "test" are fingerprinted. Each image that is cropped is compared with them; a
    copy is found even if it was turned, flipped or encoded again.
    """
    opened = store.open()
    with explained(context):
        result = fingerprint_test_images(opened, context.run_id, progress=progress_of(context, "test images"))
    return materialized(opened, result, rate=("images", result.manifest.counts["images"]))


@asset(LABEL_TABLE, SOURCE_METADATA, kinds={"pandas"})
def label_table(context: dg.AssetExecutionContext, config: LabelTableConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """Which images represent which weak label. A weak label is a value of the metadata that enough images have.

    Labels are filled from the rarest value to the most frequent one. Each takes up to 1,000 images that no other label has,
    in proportion to what they show. Benchmark images and copies of other rows are left out, with the reason.
    """
    opened = store.open()
    params = LabelTableParams(**config.model_dump())
    with explained(context):
        result = make_label_table(opened, params, context.run_id, progress=progress_of(context, "sources read"))
        candidates = read_frame(opened, result.manifest, CANDIDATES)
        pictures = previews.label_pictures(result.manifest, candidates)
        table = previews.candidates_table(candidates)
        keys = list(label_entries(opened, result.manifest))
    _keep_partitions(context.instance, keys)
    extra = {
        "candidates": dg.MetadataValue.md(table),
        "excluded_by_reason": dg.MetadataValue.json(result.manifest.details["excluded_by_reason"]),
    }
    return materialized(opened, result, pictures, ("rows", result.manifest.counts["rows"]), extra)


def _keep_partitions(instance: dg.DagsterInstance, keys: list[str]) -> None:
    """Make Dagster's label partitions those of the label table: add new labels, and delete those that are gone."""
    name = str(cyto_labels.name)
    known = set(instance.get_dynamic_partitions(name))
    if added := [key for key in keys if key not in known]:
        instance.add_dynamic_partitions(name, added)
    for key in sorted(known - set(keys)):
        instance.delete_dynamic_partition(name, key)


@asset(CROPS, LABEL_TABLE, TEST_IMAGES, kinds={"parquet"}, partitions=cyto_labels)
def crops(context: dg.AssetExecutionContext, config: CropConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """The images of one label: channels are normalised and merged to gray, crops are cut at several scales, and bad ones go.

    The Parquet files hold pixels and all metadata; pandas, DuckDB and Hugging Face datasets open them as they are. Every
    image and crop that is left out (uniform, mask, dim, duplicate, test image, ...) is listed with its reason.
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
    details = result.manifest.details
    extra = {
        "label": details["label"],
        "category": details["category"],
        "dropped_by_reason": dg.MetadataValue.json(details["dropped_by_reason"]),
        "sources": dg.MetadataValue.json({name: facts["num_images"] for name, facts in details["sources"].items()}),
    }
    return materialized(opened, result, pictures, ("source images", result.manifest.counts["source_images"]), extra)


@asset(CYTO_RELEASES, CROPS, kinds={"parquet"}, freshness_policy=dg.FreshnessPolicy.time_window(fail_window=max_release_age()))
def cyto_releases(
    context: dg.AssetExecutionContext, config: CytoReleaseConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """A numbered edition of the crops of all labels that never changes, split into training and validation images.

    Its dataset card shows labels per category, images per database, licences and citations.
    `cem-assets export cytoimagenet DIR` writes a release as the folders of the published data set.
    """
    opened = store.open()
    with explained(context):
        result = make_cyto_release(opened, config.version, context.run_id, progress_of(context, "labels read"))
        pictures = previews.release_pictures(opened, result.manifest)
        text = opened.read(f"{result.manifest.folder}/{CARD}").decode()
    extra = {"version": result.manifest.inputs.partition, "dataset_card": card(text)}
    return materialized(opened, result, pictures, extra=extra)
