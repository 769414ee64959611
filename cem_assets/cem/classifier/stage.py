"""Stage `cem/patch_classifier`: weights from a file or a URL, or trained from label tables.

The store always gets a safetensors file with its provenance, and nothing but plain tensors is ever unpickled.
`cem_assets.cem.classifier.training` does the training. People choose which classifier scores are made with
(`cem_assets.cem.classifier.stored`): a new one is compared with the one in use, and is not used until it is chosen.
"""

import io
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from cem_assets import environment
from cem_assets.cem.classifier.comparison.stage import LABELLED, ClassifierComparison, compare_with
from cem_assets.cem.classifier.labels import decided_labels, label_tables, labelled_images, read_labels
from cem_assets.cem.classifier.params import ClassifierParams, Finetune, ScoreParams
from cem_assets.cem.classifier.pictures import mistakes_jpeg
from cem_assets.cem.classifier.stored import WAYS, WEIGHTS, choose_classifier, classifier_in_use, keep_in_use
from cem_assets.errors import DataError, needs_fewer_workers
from cem_assets.execution.stage import Beginning, Progress, StageResult, begin, no_progress
from cem_assets.imaging.gallery import confusion_figure, figure_png, roc_figure
from cem_assets.sources.files.download import download_url
from cem_assets.store.assets import CLASSIFIER, CODE_VERSIONS, LABELS
from cem_assets.store.commits import installed_versions
from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

if TYPE_CHECKING:
    import torch

    from cem_assets.cem.classifier.training import ClassifierEpoch, Evaluation, Split

logger = logging.getLogger(__name__)

PUBLISHED_URL = "https://zenodo.org/record/6458015/files/patch_quality_classifier_nn.pth?download=1"
MAX_WEIGHTS_BYTES = 1 << 30


class Origin(StrEnum):
    """Kinds of origin of a patch classifier."""

    auto = "auto"
    file = "file"
    published = "published"
    labels = "labels"


class ClassifierSource(BaseModel):
    """Where the patch classifier comes from.

    Attributes:
        source: "file", "published", "labels", or "auto", which takes the labels if there are any, and otherwise the file
            that CEM_ASSETS_CLASSIFIER_WEIGHTS names.
        file: Path of a `.pth` or `.safetensors` file, for "file".
        url: URL of the weights, for "published".
        sha256: Digest that the file must have. It is required for "published", and checked for "file" if it is given.
        init: What training starts from: "random", "imagenet" (which torchvision downloads), or the path of a
            ResNet34 state_dict.
        use_for_scores: Whether new scores are made with it from now on, instead of with the one in use. If not, a new
            classifier is only compared. The first classifier of a store is used in any case.
    """

    model_config = ConfigDict(frozen=True)

    source: Origin = Origin.auto
    file: str = ""
    url: str = PUBLISHED_URL
    sha256: str = ""
    init: str = "imagenet"
    use_for_scores: bool = False


@dataclass(frozen=True)
class Training:
    """The results of a training, for people and for MLflow.

    Attributes:
        epochs: Results of the epochs, in order.
        evaluation: Evaluation on the held-out patches.
        num_training, num_validation: Number of labelled patches that were trained on, and that were held out.
    """

    epochs: tuple["ClassifierEpoch", ...]
    evaluation: "Evaluation"
    num_training: int
    num_validation: int


@dataclass(frozen=True)
class ClassifierResult:
    """A committed classifier.

    Attributes:
        stage: The committed partition.
        training: The results of the training, if it was trained just now.
        in_use: Manifest of the classifier that new scores are made with; None if it cannot be read.
        comparison: Comparison with the classifier that was in use before, if that is another one and there are labels.
        remark: Why there is no comparison; empty if there is one, or if there is nothing to compare with.
    """

    stage: StageResult
    training: Training | None
    in_use: Manifest | None
    comparison: ClassifierComparison | None = None
    remark: str = ""


def read_weights(path: Path) -> dict[str, "torch.Tensor"]:
    """Read a state_dict from an untrusted file. Its size is checked first, and only plain tensors are accepted.

    Args:
        path: A `.safetensors` file, or a `.pth` file that torch saved; it may be a dict with a `state_dict` inside.

    Returns:
        float tensors by name, on the CPU.

    Raises:
        DataError: The file is too large, damaged, or holds more than tensors.
    """
    import pickle

    import safetensors.torch
    import torch

    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise DataError(f"{path.name} has {size} bytes; expected weights of at most {MAX_WEIGHTS_BYTES}.")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, RuntimeError, TypeError,
        ValueError, safetensors.SafetensorError,
    ) as error:  # fmt: skip
        if needs_fewer_workers(error):  # torch reports a lack of memory as a RuntimeError too
            raise
        raise DataError(
            f"{path.name} cannot be read as weights: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "Expected a safetensors file or a state_dict of plain tensors (torch.save(model.state_dict(), ...))."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(
            f"{path.name} is no state_dict; expected tensors by name, found {type(loaded).__name__}. Save it with "
            "torch.save(model.state_dict(), ...)."
        )
    return {str(key): value for key, value in loaded.items()}


def make_classifier(
    store: Store,
    source: ClassifierSource,
    params: ClassifierParams,
    run_id: str = "",
    progress: Progress = no_progress,
    on_epoch: Callable[["ClassifierEpoch"], None] | None = None,
) -> ClassifierResult:
    """Commit a patch classifier, and compare it with the one in use.

    Args:
        params: How it is trained, if its source is labels.
        on_epoch: Called with the result of every epoch.

    Raises:
        FileNotFoundError: There is nothing to make it from; the error says how to get a classifier.
        DataError: The weights or labels cannot be used.
        ConnectionError: The published file cannot be fetched.
    """
    before = _in_use(store)
    keep_in_use(store, before)
    stage, training = _make(store, source, params, run_id, progress, on_epoch)
    made = stage.manifest
    comparison, remark = None, ""
    if before is not None and before.digest != made.digest:
        try:
            comparison = compare_with(store, made, before, params)
        except (DataError, FileNotFoundError) as error:
            remark = f"not compared with the one in use: {error}"
    if source.use_for_scores:
        choose_classifier(store, made.digest, f"run {run_id}".strip(), "materialized with use_for_scores")
    else:
        keep_in_use(store, made)  # only the store's first one: another that is in use was recorded above
    return ClassifierResult(stage, training, _in_use(store), comparison, remark)


def _in_use(store: Store) -> Manifest | None:
    try:
        return classifier_in_use(store)
    except (DataError, FileNotFoundError) as error:  # a damaged classifier must not prevent its own replacement
        logger.warning("%s", error)
        return None


def _make(
    store: Store,
    source: ClassifierSource,
    params: ClassifierParams,
    run_id: str,
    progress: Progress,
    on_epoch: Callable[["ClassifierEpoch"], None] | None,
) -> tuple[StageResult, Training | None]:
    kind = source.source
    file = source.file
    if kind == Origin.auto:
        file = environment.text(environment.CLASSIFIER_WEIGHTS)
        kind = Origin.labels if label_tables(store) else Origin.file if file else Origin.auto
    if kind == Origin.auto or (kind == Origin.file and not file):
        raise FileNotFoundError(WAYS)
    if kind == Origin.labels:
        return _train(store, source, params, run_id, progress, on_epoch)
    with scratch_folder("weights") as scratch:
        if kind == Origin.published:
            path, origin = download_url(source.url, source.sha256, scratch, "weights.pth"), source.url
        else:
            path, origin = Path(file).expanduser(), Path(file).name
            if not path.is_file():
                raise FileNotFoundError(f"the classifier weights {file} are not there. {WAYS}")
        sha256 = file_sha256(path)
        if kind == Origin.file and source.sha256 and sha256 != source.sha256:
            raise DataError(f"{path.name} has sha256 {sha256}; expected {source.sha256}. Get the right file.")
        inputs = Inputs(CLASSIFIER, "", CODE_VERSIONS[CLASSIFIER], {"source": str(kind)}, {"weights": sha256})
        stage = begin(store, inputs, run_id)
        if stage.up_to_date:
            return stage.up_to_date, None
        state_dict = read_weights(path)
    provenance = {"source": str(kind), "origin": origin, "sha256": sha256}
    return _finish(stage, state_dict, {"provenance": provenance}, {}), None


def _finish(
    stage: Beginning, state_dict: dict[str, "torch.Tensor"], details: dict[str, Any], counts: dict[str, int]
) -> StageResult:
    """Write the weights and their provenance, and commit them."""
    import safetensors.torch

    from cem_assets.cem.classifier.network import build_classifier

    model = build_classifier(state_dict)  # weights that do not fit are refused here, before they are committed
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    # Only one key of metadata: safetensors writes several in no fixed order, and equal weights must give equal bytes.
    stage.commit.write(WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    stage.commit.write("classifier.json", json.dumps(details, indent=1).encode())
    parameters = sum(value.numel() for value in tensors.values())
    return stage.finish({"parameters": parameters, **counts}, details, installed_versions("torch", "torchvision"))


def _train(
    store: Store,
    source: ClassifierSource,
    params: ClassifierParams,
    run_id: str,
    progress: Progress,
    on_epoch: Callable[["ClassifierEpoch"], None] | None,
) -> tuple[StageResult, Training | None]:
    import torch

    from cem_assets.cem.classifier.network import build_classifier, environment
    from cem_assets.cem.classifier.training import evaluate, split_labelled, train_classifier

    labels, digest = read_labels(store)
    labels = decided_labels(labels)
    finetune = params.finetune
    if finetune == Finetune.auto:
        finetune = Finetune.all if source.init == "random" else Finetune.layer4
    parameters = {
        **params.model_dump(mode="json", exclude={"device", "finetune"}),
        "finetune": str(finetune),
        "init": Path(source.init).name,
    }
    start = {} if source.init in ("random", "imagenet") else {"init": file_sha256(_init_file(source.init))}
    pins = environment(ScoreParams(device=params.device))
    inputs = Inputs(CLASSIFIER, "", CODE_VERSIONS[CLASSIFIER], parameters, {LABELS: digest, **start}, pins)
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date, None
    commit = stage.commit
    torch.manual_seed(params.seed)
    model = build_classifier()
    _initialize(model, source.init)
    images = labelled_images(store, labels)
    is_good = (labels["label"] == "good").to_numpy()
    split = split_labelled(labels["name"].tolist(), is_good, params)
    epochs = []
    for result in train_classifier(model, images, is_good, split, params, finetune):
        epochs.append(result)
        progress(result.epoch, params.epochs)
        if on_epoch is not None:
            on_epoch(result)
    model.to("cpu")
    evaluation = evaluate(model, images[split.validation], is_good[split.validation], params)
    training = Training(tuple(epochs), evaluation, len(split.training), len(split.validation))
    commit.write(
        "roc.png", figure_png(roc_figure(evaluation.false_positive_rate, evaluation.true_positive_rate, evaluation.auc))
    )
    commit.write("confusion.png", figure_png(confusion_figure(evaluation.confusion, ("bad", "good"))))
    held = split.validation
    commit.write("mistakes.jpg", mistakes_jpeg(images[held], is_good[held], evaluation.probabilities))
    commit.write(LABELLED, _labelled_table(labels, split, evaluation))
    details = {
        "provenance": {"source": "labels", "origin": LABELS, "sha256": digest},
        "evaluation": {
            "auc": None if np.isnan(evaluation.auc) else evaluation.auc,
            "accuracy": evaluation.accuracy,
            "confusion": evaluation.confusion.tolist(),
        },
        "epochs": [asdict(result) for result in epochs],
    }
    counts = {"labelled": len(labels), "good": int(is_good.sum()), "bad": int((~is_good).sum())}
    return _finish(stage, model.state_dict(), details, counts), training


def _labelled_table(labels: pd.DataFrame, split: "Split", evaluation: "Evaluation") -> bytes:
    """Make a table of all labelled patches: whether each was held out, and if so its probability, as Parquet bytes."""
    is_validation = np.zeros(len(labels), np.bool_)
    is_validation[split.validation] = True
    informative = np.full(len(labels), np.nan, np.float32)
    informative[split.validation] = evaluation.probabilities
    table = labels.assign(is_validation=is_validation, informative=pd.array(informative, "Float32"))
    sink = io.BytesIO()
    table.to_parquet(sink, index=False, compression="zstd")
    return sink.getvalue()


def _initialize(model: "torch.nn.Module", init: str) -> None:
    """Load the weights that training starts from, except for the last layer."""
    if init == "random":
        return
    if init == "imagenet":
        import urllib.error

        from torchvision.models import ResNet34_Weights

        try:
            weights = dict(ResNet34_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except (urllib.error.URLError, OSError) as error:
            raise ConnectionError(
                f"the ImageNet weights of ResNet34 could not be fetched: {error}. Set init to the path of a copy, or to "
                '"random" to train every layer from scratch (which needs more labels).'
            ) from error
    else:
        weights = read_weights(_init_file(init))
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    problems = model.load_state_dict(weights, strict=False)
    lacking = [key for key in problems.missing_keys if not key.startswith("fc.")]
    if lacking or problems.unexpected_keys:
        raise DataError(
            f"init = {init!r} does not fit a ResNet34: {len(lacking)} keys missing, {len(problems.unexpected_keys)} "
            f"unexpected, such as {[*lacking, *problems.unexpected_keys][:3]}. Give a torchvision ResNet34 state_dict."
        )


def _init_file(init: str) -> Path:
    path = Path(init).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'init = {init!r} is no file; expected "random", "imagenet" or the path of weights.')
    return path
