"""The two CEM assets without partitions: the patch classifier and the releases."""

from typing import Any

import dagster as dg
from pydantic import Field

from cem_assets.cem.assets import GPU_POOL
from cem_assets.cem.classifier.stage import ClassifierResult, ClassifierSource, make_classifier
from cem_assets.cem.classifier.stored import CHOICES
from cem_assets.cem.filter.params import ClassifierParams
from cem_assets.cem.releases.stage import CARD, make_release
from cem_assets.platform.freshness import max_release_age
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import explained, materialized, picture, progress_of
from cem_assets.store.assets import CLASSIFIER, CODE_VERSIONS, FILTERED, RELEASES
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import Metric, RunLink, log_run

EXPERIMENT = "cem/patch_classifier"


class ClassifierConfig(dg.Config, ClassifierSource, ClassifierParams):
    """Where the classifier comes from, and how it is trained; see `ClassifierSource` and `ClassifierParams`."""


class ReleaseConfig(dg.Config):
    """Which release to make.

    Attributes:
        version: Its name; empty counts up v1, v2, ...
        datasets: Which datasets; empty takes all that are filtered.
        exclude_contaminated: Whether patches that show test images of benchmarks are left out; unset does as the release
            before did.
    """

    version: str = ""
    datasets: list[str] = Field(default_factory=list)
    exclude_contaminated: bool | None = None


@dg.asset(
    key=CLASSIFIER.split("/"),
    group_name="cem",
    code_version=CODE_VERSIONS[CLASSIFIER],
    kinds={"pytorch", "mlflow"},
    pool=GPU_POOL,
)
def patch_classifier(
    context: dg.AssetExecutionContext, config: ClassifierConfig, store: StoreResource
) -> dg.MaterializeResult[Any]:
    """The network that tells informative patches from blank, blurred or broken ones (ResNet34).

    Taken from the published file, or trained here from labels (good, bad) that people gave to patches; then
    its ROC curve, confusion matrix and worst mistakes are shown below and logged to MLflow. The first one of a store is
    used for scores. A later one is compared with the one in use and waits until it is chosen: materialize with
    `use_for_scores: true`, or run the job `cem_choose_classifier`.
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
    folder = result.stage.manifest.folder
    names = [item.name for item in result.stage.manifest.objects if item.name.endswith((".png", ".jpg"))]
    pictures = {name.rsplit(".", 1)[0]: opened.read(f"{folder}/{name}") for name in names}
    described = materialized(opened, result.stage, pictures)
    extra: dict[str, Any] = {"provenance": dg.MetadataValue.json(result.stage.manifest.details["provenance"])}
    extra |= _standing(opened, result)
    if evaluation := result.stage.manifest.details.get("evaluation"):
        extra["evaluation"] = dg.MetadataValue.json(evaluation)
    if link := _track(opened, result, context.run_id):
        extra["mlflow run"] = dg.MetadataValue.url(link.url) if link.url.startswith("http") else link.url
    # Scores depend on the one in use: Dagster must not call them stale because another one waits.
    version = dg.DataVersion((result.in_use or result.stage.manifest).digest)
    return described._replace(metadata={**(described.metadata or {}), **extra}, data_version=version)


def _standing(store: Store, result: ClassifierResult) -> dict[str, Any]:
    """Say whether the classifier is in use, how it compares with the one that was, and how to choose."""
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
    """Log a training run to MLflow; imported weights have nothing to log."""
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
    if training.evaluation.auc == training.evaluation.auc:  # NaN where one label is absent
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


@dg.asset(
    key=RELEASES.split("/"),
    group_name="cem",
    deps=[FILTERED.split("/")],
    code_version=CODE_VERSIONS[RELEASES],
    kinds={"parquet"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=max_release_age()),
)
def releases(context: dg.AssetExecutionContext, config: ReleaseConfig, store: StoreResource) -> dg.MaterializeResult[Any]:
    """A numbered, unchangeable edition of the filtered patches of all datasets.

    Comes with a dataset card: counts per stage, licences and citations of what is in it, organisms, tissues,
    techniques, and the pixel mean and deviation to normalise with. Nothing new filtered means no new release.
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
    card = opened.read(f"{result.manifest.folder}/{CARD}").decode()
    described = materialized(opened, result, {})
    extra = {
        "version": result.manifest.inputs.partition,
        "pixel mean": result.manifest.details["pixel_mean"],
        "pixel std": result.manifest.details["pixel_std"],
        "dataset card": dg.MetadataValue.md(card.split("---\n", 2)[-1]),
    }
    return described._replace(metadata={**(described.metadata or {}), **extra})
