"""Jobs of the curation of electron microscopy."""

from typing import Any

import dagster as dg

from cem_assets.cem.assets import CHAIN, subvolumes
from cem_assets.cem.classifier.stored import choose_classifier
from cem_assets.cem.release_assets import patch_classifier, releases
from cem_assets.platform.partitions import em_datasets
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained
from cem_assets.store.assets import CLASSIFIER

cem_chain = dg.define_asset_job(
    "cem_chain",
    dg.AssetSelection.assets(*CHAIN),
    description="Goes from the inbox to filtered patches, one dataset per run.",
    partitions_def=em_datasets,
)


cem_subvolumes = dg.define_asset_job(
    "cem_subvolumes",
    dg.AssetSelection.assets(subvolumes),
    description="Makes flipbooks or cubes around filtered patches, one dataset per run.",
    partitions_def=em_datasets,
)


cem_release = dg.define_asset_job(
    "cem_release", dg.AssetSelection.assets(releases), description="Makes a new release if any filtered patches changed."
)


cem_patch_classifier = dg.define_asset_job(
    "cem_patch_classifier", dg.AssetSelection.assets(patch_classifier), description="Imports or trains the patch classifier."
)


class ChoiceConfig(dg.Config):
    """Which patch classifier new scores are made with.

    Attributes:
        digest: The classifier's digest, or at least the first 8 digits of it; "newest" is the classifier that was made last.
        reason: Why this classifier is chosen; it is kept with the choice.
        by: Who chooses; if it is empty, the run is recorded.
    """

    digest: str = "newest"
    reason: str = ""
    by: str = ""


@dg.op
def choose_patch_classifier(context: dg.OpExecutionContext, config: ChoiceConfig, store: StoreResource) -> None:
    """Use a classifier of the store for all new scores; the choice is recorded, and shown with the asset."""
    opened = store.open()
    with explained(context):
        by = config.by or f"run {context.run_id}"
        manifest, is_changed = choose_classifier(opened, config.digest, by, config.reason)
    text = "new scores are made with it" if is_changed else "it was in use already"
    context.log.info(f"classifier {manifest.digest[:12]}: {text}")
    metadata: dict[str, Any] = {
        "in use": "yes",
        "digest": manifest.digest,
        "chosen by": by,
        "reason": config.reason,
        "content": dg.MetadataValue.path(opened.url_of(manifest.folder)),
        "provenance": dg.MetadataValue.json(manifest.details["provenance"]),
    }
    # The asset gets a new data version, so that Dagster shows which scores were made with an earlier classifier.
    tags = {"dagster/data_version": manifest.digest}
    event = dg.AssetMaterialization(CLASSIFIER.split("/"), description=text, metadata=metadata, tags=tags)
    context.log_event(event)


@dg.job(description="Chooses which patch classifier new scores are made with.")
def cem_choose_classifier() -> None:
    """Choose which patch classifier new scores are made with."""
    choose_patch_classifier()
