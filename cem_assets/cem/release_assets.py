"""The two CEM assets without partitions: the patch classifier and the releases."""

from typing import Any

import dagster as dg
from pydantic import Field

from cem_assets.cem.classifier.params import ClassifierParams
from cem_assets.cem.classifier.stage import ClassifierResult, ClassifierSource, make_classifier
from cem_assets.cem.classifier.stored import CHOICES
from cem_assets.cem.releases.stage import CARD, make_release
from cem_assets.platform.assets import GPU_POOL, asset
from cem_assets.platform.freshness import max_release_age
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import card, explained, materialized, picture, progress_of
from cem_assets.store.assets import CLASSIFIER, FILTERED, RELEASES
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import Metric, RunLink, log_run

EXPERIMENT = "cem/patch_classifier"


class ClassifierConfig(dg.Config, ClassifierSource, ClassifierParams):
    """Where the classifier comes from (`ClassifierSource`), and how it is trained (`ClassifierParams`)."""


class ReleaseConfig(dg.Config):
    """Which release to make.

    Attributes:
        version: The name of the release; if it is empty, the next of v1, v2, ... is taken.
        datasets: The datasets to release; if there are none, all datasets with filtered patches are released.
        exclude_contaminated: Whether patches that show test images of benchmarks are left out; if it is not set, the
            choice of the release before this one is kept.
    """

    version: str = ""
    datasets: list[str] = Field(default_factory=list)
    exclude_contaminated: bool | None = None


@asset(CLASSIFIER, kinds={"pytorch", "mlflow"}, pool=GPU_POOL)
def patch_classifier(
    context: dg.AssetExecutionContext, config: ClassifierConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """The network that tells informative patches from blank, blurred or broken ones (ResNet34).

    It is taken from the published file, or trained here from labels (good, bad) that people gave to patches. If it was
    trained here, its ROC curve, confusion matrix and worst mistakes are shown below and logged to MLflow. The first
    classifier of a store is used for scores. A later one is compared with the one in use, and is not used until somebody
    chooses it: materialize with `use_for_scores: true`, or run the job `cem_choose_classifier`.
    """
    opened = store.open()
    with explained(context):
        result = make_classifier(
            opened,
            ClassifierSource(**config.model_dump(include=set(ClassifierSource.model_fields))),
            ClassifierParams(**config.model_dump(include=set(ClassifierParams.model_fields))),
            context.run_id,
            progress_of(context, "epochs"),
            lambda epoch: context.log.info(
                f"epoch {epoch.epoch}: loss {epoch.training_loss:.4f}, held-out loss {epoch.validation_loss:.4f}, "
                f"held-out accuracy {epoch.validation_accuracy:.3f}"
            ),
        )
    manifest = result.stage.manifest
    names = [item.name for item in manifest.objects if item.name.endswith((".png", ".jpg"))]
    pictures = {name.rsplit(".", 1)[0]: opened.read(f"{manifest.folder}/{name}") for name in names}
    extra: dict[str, Any] = {"provenance": dg.MetadataValue.json(manifest.details["provenance"])}
    extra |= _standing(opened, result)
    if evaluation := manifest.details.get("evaluation"):
        extra["evaluation"] = dg.MetadataValue.json(evaluation)
    if link := _track(opened, result, context.run_id):
        extra["mlflow run"] = dg.MetadataValue.url(link.url) if link.url.startswith("http") else link.url
    # The data version is that of the classifier in use: Dagster must not call scores stale because another one waits.
    version = dg.DataVersion((result.in_use or manifest).digest)
    return materialized(opened, result.stage, pictures, extra=extra)._replace(data_version=version)


def _standing(store: Store, result: ClassifierResult) -> dict[str, Any]:
    """Say whether the classifier is in use, how it compares with the one in use before it, and how to choose it."""
    made, used = result.stage.manifest, result.in_use
    is_used = used is not None and used.digest == made.digest
    who = f"; scores are made with {used.digest[:12]}" if used is not None else "; the one in use cannot be read"
    choosing = f"cem-assets classifier use {made.digest[:12]}"
    found: dict[str, Any] = {
        "in use": "yes" if is_used else f"no, it waits{who}",
        "choices": dg.MetadataValue.path(store.url_of(CHOICES)),
    }
    if not is_used:
        found["to use it"] = f"materialize with use_for_scores: true, run the job cem_choose_classifier, or: {choosing}"
    if comparison := result.comparison:
        found["comparison"] = comparison.line()
        found["comparison in figures"] = dg.MetadataValue.json(comparison.facts)
        found["comparison folder"] = dg.MetadataValue.path(store.url_of(comparison.folder))
        found |= {f"comparison: {name.rsplit('.', 1)[0]}": picture(data) for name, data in comparison.pictures.items()}
    elif result.remark:
        found["comparison"] = result.remark
    return found


def _track(store: Store, result: ClassifierResult, dagster_run: str) -> RunLink | None:
    """Log a training to MLflow. For imported weights there is nothing to log, and None is returned."""
    training, manifest = result.training, result.stage.manifest
    if training is None:
        return None
    metrics = [
        Metric(name, getattr(epoch, name), epoch.epoch)
        for epoch in training.epochs
        for name in ("training_loss", "training_accuracy", "validation_loss", "validation_accuracy")
    ]
    last = training.epochs[-1].epoch
    metrics.append(Metric("accuracy", training.evaluation.accuracy, last))
    if training.evaluation.auc == training.evaluation.auc:  # it is NaN if one of the labels is absent
        metrics.append(Metric("auc", training.evaluation.auc, last))
    files = [item.name for item in manifest.objects if item.name.endswith((".png", ".jpg", ".json"))]
    pictures = result.comparison.pictures if result.comparison else {}
    compared = {f"comparison/{name}": data for name, data in pictures.items()}
    return log_run(
        EXPERIMENT,
        f"patch_classifier-{manifest.digest[:8]}",
        {**manifest.inputs.parameters, "num_training": training.num_training, "num_validation": training.num_validation},
        metrics,
        {name: store.read(f"{manifest.folder}/{name}") for name in files} | compared,
        {"digest": manifest.digest, "content": manifest.folder, "dagster_run": dagster_run},
    )


@asset(
    RELEASES,
    FILTERED,
    kinds={"parquet"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=max_release_age()),
)
def releases(context: dg.AssetExecutionContext, config: ReleaseConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """A numbered, unchangeable edition of the filtered patches of all datasets.

    Its dataset card has the counts per stage, the licences and citations of the datasets, organisms, tissues,
    techniques, and the pixel mean and standard deviation to normalise with. If no filtered patches changed since the
    newest release, no new one is made.
    """
    opened = store.open()
    with explained(context):
        result = make_release(
            opened,
            config.version,
            config.datasets,
            context.run_id,
            progress_of(context, "shares of the comparison done"),
            exclude_contaminated=config.exclude_contaminated,
        )
    manifest = result.manifest
    extra = {
        "version": manifest.inputs.partition,
        "pixel mean": manifest.details["pixel_mean"],
        "pixel std": manifest.details["pixel_std"],
        "dataset card": card(opened.read(f"{manifest.folder}/{CARD}").decode()),
    }
    return materialized(opened, result, extra=extra)
