"""Jobs of the curation of electron microscopy."""

from typing import Any

import dagster as dg

from cem_assets.cem.assets import CHAIN, subvolumes
from cem_assets.cem.classifier.stored import choose_classifier
from cem_assets.cem.release_assets import patch_classifier, releases
from cem_assets.platform.partitions import (
    em_datasets,
)
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained
from cem_assets.store.assets import CLASSIFIER

cem_chain = dg.define_asset_job(
    "cem_chain",
    dg.AssetSelection.assets(*CHAIN),
    description="From the inbox to filtered patches, one dataset a run.",
    partitions_def=em_datasets,
)


cem_subvolumes = dg.define_asset_job(
    "cem_subvolumes",
    dg.AssetSelection.assets(subvolumes),
    description="Flipbooks or cubes around filtered patches, one dataset a run.",
    partitions_def=em_datasets,
)


cem_release = dg.define_asset_job(
    "cem_release", dg.AssetSelection.assets(releases), description="A new release, where anything changed."
)


cem_patch_classifier = dg.define_asset_job(
    "cem_patch_classifier", dg.AssetSelection.assets(patch_classifier), description="Import or train the patch classifier."
)


class ChoiceConfig(dg.Config):
    """Which patch classifier new scores are made with.

    Attributes:
        digest: Of the classifier, or its first 8 or more digits; "newest" is the one made last.
        reason: Why; it is kept.
        by: Who chooses; empty for the run.
    """

    digest: str = "newest"
    reason: str = ""
    by: str = ""


@dg.op
def choose_patch_classifier(context: dg.OpExecutionContext, config: ChoiceConfig, store: StoreResource) -> None:
    """Make new scores with a classifier of the store from now on; the choice is kept, and shown at the asset."""
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
    # A new data version of the asset, so that Dagster shows which scores are of the classifier before.
    tags = {"dagster/data_version": manifest.digest}
    event = dg.AssetMaterialization(CLASSIFIER.split("/"), description=text, metadata=metadata, tags=tags)
    context.log_event(event)


@dg.job(description="Chooses which patch classifier new scores are made with.")
def cem_choose_classifier() -> None:
    """Choose which patch classifier new scores are made with."""
    choose_patch_classifier()
