"""Commits the weights of a finished training to `pretraining/weights`, with figures, scores and the model card.

`cem_assets.pretraining.training.stage` trains, and `cem_assets.pretraining.weights.files` writes the files that all weights
have.
"""

import json
import logging
import math
from typing import TYPE_CHECKING, Any, cast

from cem_assets.errors import DataError
from cem_assets.execution.stage import StageResult, begin
from cem_assets.pretraining.data.release_data import TrainingData, open_training_data
from cem_assets.pretraining.plan import TrainingPlan
from cem_assets.pretraining.training.figures import confusion_png, curves_png
from cem_assets.pretraining.training.runs import StoreCheckpoints
from cem_assets.pretraining.training.stage import build_plan_method, first_views, norms_of, results_json
from cem_assets.pretraining.weights.card import DataSource, WeightsFacts, weights_card
from cem_assets.pretraining.weights.files import commit_weights
from cem_assets.store.assets import CODE_VERSIONS, WEIGHTS
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import RunLink, TrackingServer
from cem_assets.tracking.runs import open_tracked_run

if TYPE_CHECKING:
    from cem_assets.pretraining.methods.supervised import Supervised

logger = logging.getLogger(__name__)


def link_of(plan: TrainingPlan) -> RunLink | None:
    """Find the MLflow run of a training; None where MLflow cannot be reached."""
    try:
        return TrackingServer().find(plan.run, f"{WEIGHTS.split('/')[0]}/{plan.method}")
    except ConnectionError as error:
        logger.warning("%s", error)
        return None


def inputs_of(plan: TrainingPlan) -> Inputs:
    """Return the inputs that the manifest of trained weights records."""
    parameters = {"arch": plan.arch, "method": plan.method, "subset": plan.subset, **plan.params.model_dump(mode="json")}
    return Inputs(WEIGHTS, plan.name, CODE_VERSIONS[WEIGHTS], parameters, {plan.release: plan.digest})


def trained_already(store: Store, plan: TrainingPlan) -> StageResult | None:
    """Return the committed weights of a plan where they are up to date, else None."""
    return begin(store, inputs_of(plan)).up_to_date


def finish_weights(store: Store, plan: TrainingPlan, title: str, run_id: str = "") -> StageResult:
    """Commit the weights of a training that has done all its epochs, and register them in MLflow.

    Args:
        title: Title of the weights, for the card.

    Raises:
        DataError: The training has not done all its epochs.
    """
    from cem_assets.pretraining.training.checkpoints import finished_epochs, restore_method
    from cem_assets.pretraining.weights.export import weights_of

    stage = begin(store, inputs_of(plan), run_id)
    if stage.up_to_date:
        return stage.up_to_date
    checkpoint = StoreCheckpoints(store, plan.folder).load()
    results = finished_epochs(checkpoint) if checkpoint else ()
    if checkpoint is None or len(results) != plan.params.epochs:
        raise DataError(
            f"the training of {plan.name!r} has done {len(results)} of {plan.params.epochs} epochs; materialize it again to go "
            "on."
        )
    data = open_training_data(store, plan)
    method = build_plan_method(plan, data)
    restore_method(method, checkpoint)
    del checkpoint
    weights = weights_of(method.encoder, plan.arch, norms_of(plan), plan.params.epochs)
    scores, pictures = _judged(method, data, plan)
    figures = {name: value for name, value in results[-1].indicators.items() if math.isfinite(value)}
    figures |= {"loss": results[-1].loss, **{name: value for name, value in scores.items() if isinstance(value, float)}}
    figures = {name: float(f"{value:.6g}") for name, value in sorted(figures.items())}
    extra = {
        "curves.png": curves_png(list(results), f"{plan.name}: {plan.method}, {plan.arch}"),
        "views.png": first_views(data, plan),
        "results.json": json.dumps(results_json(results), indent=1).encode(),
        **pictures,
    }
    if scores:
        extra["classification.json"] = json.dumps(scores, indent=1).encode()
    release = {"asset": plan.release, "version": plan.version, "digest": plan.digest, "subset": plan.subset}
    provenance: dict[str, Any] = {
        "title": title,
        "kind": "trained",
        "release": release,
        "parameters": plan.params.model_dump(mode="json"),
        "num_images": len(data.rows),
        "data": list(data.sources),
        "training_run": plan.run,
        "figures": figures,
    }
    subset = f", subset {plan.subset}" if plan.subset else ""
    origin = (
        f"Trained with {plan.method} on `{plan.release}`{subset}: {len(data.rows):,} images, {plan.params.epochs} epochs of "
        f"batches of {plan.params.batch_size}."
    )
    facts = WeightsFacts(
        name=plan.name,
        title=title,
        arch=plan.arch,
        method=plan.method,
        origin=origin,
        norms=norms_of(plan),
        epoch=plan.params.epochs,
        state_sha256=weights.digest(),
    )
    sources = [DataSource(**item) for item in data.sources]
    card = weights_card(facts, sources, provenance["parameters"], figures, plan.release, plan.digest)
    result = commit_weights(stage, weights, plan.method, provenance, card, extra)
    _register(store, plan, result.manifest)
    return result


def _judged(method: Any, data: TrainingData, plan: TrainingPlan) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Score a finished classifier on all validation images; for other methods the result is empty."""
    if plan.method != "supervised" or not len(data.validation):
        return {}, {}
    import torch

    from cem_assets.encoders import pick_device
    from cem_assets.pretraining.training.classification import evaluate_classifier

    device = pick_device("auto")
    dtype = torch.bfloat16 if plan.params.dtype == "bfloat16" else torch.float32
    classifier = cast("Supervised", method.to(device))
    result = evaluate_classifier(
        classifier, data.validation_batches(), data.classes, data.categories, norms_of(plan), device, dtype
    )
    method.to("cpu")
    return result.to_json(), {"confusion.png": confusion_png(result)}


def _register(store: Store, plan: TrainingPlan, manifest: Manifest) -> None:
    """Register a version of the model in MLflow, with card, figures and sidecar; its tags have the place and the digest."""
    with open_tracked_run(store, plan.run, f"{WEIGHTS.split('/')[0]}/{plan.method}", plan.name, {}, {}) as run:
        for item in manifest.objects:
            if item.name.endswith((".json", ".md", ".png")):
                run.log_artifact(f"model/{item.name}", store.read(f"{manifest.folder}/{item.name}"))
        tags = {
            "digest": manifest.digest,
            "weights": store.url_of(manifest.folder),
            "release": plan.release,
            "release_digest": plan.digest,
        }
        card = store.read(f"{manifest.folder}/README.md").decode()
        run.register_model(plan.name, "model", tags, card[:4000])
        run.finish("FINISHED")
