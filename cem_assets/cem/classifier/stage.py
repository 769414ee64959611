"""Stage `cem/patch_classifier`: weights taken from a file or an address, or trained from a label table.

Whatever the source, what lies in the store is a safetensors file with its provenance; nothing is ever
unpickled beyond plain tensors. Training itself is `cem_assets.cem.classifier.training`. Which classifier scores are made
with is chosen by people (`cem_assets.cem.classifier.stored`): a new one is compared with it, and waits.
"""

import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from cem_assets import environment
from cem_assets.cem.classifier.comparison_stage import LABELLED, ClassifierComparison, compare_with
from cem_assets.cem.classifier.labels import label_tables, labelled_images, read_labels
from cem_assets.cem.classifier.pictures import mistakes_jpeg
from cem_assets.cem.classifier.stored import WEIGHTS, choose_classifier, classifier_in_use, keep_in_use, read_classifier
from cem_assets.cem.filter.params import MIN_LABELLED, ClassifierParams, Finetune
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.imaging.gallery import confusion_figure, figure_png, roc_figure
from cem_assets.sources.files.single import download
from cem_assets.store.assets import CLASSIFIER, CODE_VERSIONS, LABELS
from cem_assets.store.commits import Commit, installed_versions
from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

if TYPE_CHECKING:
    import torch

    from cem_assets.cem.classifier.training import EpochResult, Evaluation, Split

logger = logging.getLogger(__name__)

PUBLISHED_URL = "https://zenodo.org/record/6458015/files/patch_quality_classifier_nn.pth?download=1"
MAX_WEIGHTS_BYTES = 1 << 30

WAYS = f"""\
There is no patch classifier in the store yet. Ways to get one, each by materializing {CLASSIFIER}:
  1. from the published file (Zenodo record 6458015, patch_quality_classifier_nn.pth): download it, then set
     source = "file" and file = PATH in the launchpad, or the variable {environment.CLASSIFIER_WEIGHTS}=PATH;
  2. straight from Zenodo: source = "published" and sha256 = the digest of a copy you trust;
  3. from your own labels: give them on the page that `cem-assets label DATASET` opens, or put a CSV with the columns dataset,
     name, label (good, bad or none) under {LABELS}/ in the store; at least {MIN_LABELLED} good and bad together. Then set
     source = "labels"."""


class Origin(StrEnum):
    """Kinds of origin of a patch classifier."""

    auto = "auto"
    file = "file"
    published = "published"
    labels = "labels"


class ClassifierSource(BaseModel):
    """Where the patch classifier comes from.

    Attributes:
        source: "file", "published", "labels", or "auto": the labels where there are any, else the file that
            CEM_ASSETS_CLASSIFIER_WEIGHTS names.
        file: Path of a `.pth` or `.safetensors` file, for "file".
        url: Address of the weights, for "published".
        sha256: Digest the file must have; needed for "published", checked for "file" where given.
        init: What training starts from: "random", "imagenet" (downloaded by torchvision), or the path of a
            ResNet34 state_dict.
        use_for_scores: Whether new scores are made with it from now on, instead of the one in use. Without it a new
            classifier only is compared; the first one of a store is used in any case.
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
    """What a training run left for people and for MLflow.

    Attributes:
        epochs: Results in order.
        evaluation: On the held-out patches.
        num_training, num_validation: Labelled patches on either side.
    """

    epochs: tuple["EpochResult", ...]
    evaluation: "Evaluation"
    num_training: int
    num_validation: int


@dataclass(frozen=True)
class ClassifierResult:
    """A committed classifier.

    Attributes:
        stage: What was committed.
        training: Where it was trained just now.
        in_use: Manifest of the classifier that new scores are made with; None where that cannot be read.
        comparison: With the one that was in use before, where that is another one and there are labels.
        remark: Why there is no comparison; empty where there is one or nothing to compare with.
    """

    stage: StageResult
    training: Training | None
    in_use: Manifest | None
    comparison: ClassifierComparison | None = None
    remark: str = ""


def load_classifier(store: Store) -> tuple[dict[str, "torch.Tensor"], Manifest]:
    """Read the classifier in use.

    Returns:
        Its weights and its manifest.

    Raises:
        FileNotFoundError: There is none; the error says the ways to get one.
    """
    manifest = classifier_in_use(store)
    if manifest is None:
        raise FileNotFoundError(WAYS)
    return read_classifier(store, manifest), manifest


def read_weights(path: Path) -> dict[str, "torch.Tensor"]:
    """Read a state_dict from an untrusted file: plain tensors only, size checked first.

    Args:
        path: `.safetensors`, or a `.pth` that torch saved; a dict with a `state_dict` inside will do.

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
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise DataError(
            f"{path.name} cannot be read as weights: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "Expected a safetensors file or a state_dict of plain tensors (torch.save(model.state_dict(), ...))."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(f"{path.name} is no state_dict; expected tensors by name, found {type(loaded).__name__}.")
    return {str(key): value for key, value in loaded.items()}


def make_classifier(
    store: Store,
    source: ClassifierSource,
    params: ClassifierParams,
    run_id: str = "",
    progress: Progress = no_progress,
    on_epoch: Callable[["EpochResult"], None] | None = None,
) -> ClassifierResult:
    """Commit the patch classifier.

    Args:
        source: Where it comes from.
        params: How it is trained, if it is.
        on_epoch: Called with every epoch's result.

    Returns:
        The committed weights.

    Raises:
        FileNotFoundError: There is nothing to make it from; the error says the ways.
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
        except (ValueError, FileNotFoundError) as error:
            remark = f"not compared with the one in use: {error}"
    if source.use_for_scores:
        choose_classifier(store, made.digest, f"run {run_id}".strip(), "materialized with use_for_scores")
    else:
        keep_in_use(store, made)  # the first one; where another is in use it was written down above
    return ClassifierResult(stage, training, _in_use(store), comparison, remark)


def _in_use(store: Store) -> Manifest | None:
    try:
        return classifier_in_use(store)
    except (ValueError, FileNotFoundError) as error:  # one that was tampered with must not block its own replacement
        logger.warning("%s", error)
        return None


def _make(
    store: Store,
    source: ClassifierSource,
    params: ClassifierParams,
    run_id: str,
    progress: Progress,
    on_epoch: Callable[["EpochResult"], None] | None,
) -> tuple[StageResult, Training | None]:
    started = time.monotonic()
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
            path, origin = download(source.url, source.sha256, scratch, "weights.pth"), source.url
        else:
            path, origin = Path(file).expanduser(), Path(file).name
            if not path.is_file():
                raise FileNotFoundError(f"the classifier weights {file} are not there. {WAYS}")
            if source.sha256 and file_sha256(path) != source.sha256:
                raise DataError(f"{path.name} has sha256 {file_sha256(path)}; expected {source.sha256}. Get the right file.")
        provenance = {"source": str(kind), "origin": origin, "sha256": file_sha256(path)}
        inputs = Inputs(CLASSIFIER, "", CODE_VERSIONS[CLASSIFIER], {"source": str(kind)}, {"weights": provenance["sha256"]})
        commit = Commit(store, inputs, run_id)
        if commit.up_to_date:
            return StageResult(commit.up_to_date, False, time.monotonic() - started), None
        state_dict = read_weights(path)
    manifest = _commit_weights(commit, state_dict, {"provenance": provenance}, {})
    return StageResult(manifest, True, time.monotonic() - started), None


def _commit_weights(
    commit: Commit, state_dict: dict[str, "torch.Tensor"], details: dict[str, Any], counts: dict[str, int]
) -> Manifest:
    import safetensors.torch

    from cem_assets.cem.classifier.network import build_classifier

    model = build_classifier(state_dict)  # refuses weights that do not fit, before they are committed
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    # One key only: safetensors writes several in no fixed order, and equal weights must be equal bytes.
    commit.write(WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    commit.write("classifier.json", json.dumps(details, indent=1).encode())
    parameters = sum(value.numel() for value in tensors.values())
    return commit.finish({"parameters": parameters, **counts}, details, installed_versions("torch", "torchvision"))


def _train(
    store: Store,
    source: ClassifierSource,
    params: ClassifierParams,
    run_id: str,
    progress: Progress,
    on_epoch: Callable[["EpochResult"], None] | None,
) -> tuple[StageResult, Training | None]:
    import torch

    from cem_assets.cem.classifier.network import build_classifier, environment
    from cem_assets.cem.classifier.training import check_labels, evaluate, split_labelled, train_classifier
    from cem_assets.cem.filter.params import ScoreParams

    started = time.monotonic()
    labels, digest = read_labels(store)
    check_labels(labels["label"].tolist(), [f"{d}/{n}" for d, n in zip(labels["dataset"], labels["name"], strict=True)])
    labels = labels[labels["label"] != "none"].reset_index(drop=True)
    finetune = params.finetune
    if finetune == Finetune.auto:
        finetune = Finetune.all if source.init == "random" else Finetune.layer4
    parameters = {
        **params.model_dump(mode="json", exclude={"device", "finetune"}),
        "finetune": str(finetune),
        "init": Path(source.init).name,
    }
    start = {} if source.init in ("random", "imagenet") else {"init": file_sha256(Path(source.init))}
    pins = environment(ScoreParams(device=params.device))
    inputs = Inputs(CLASSIFIER, "", CODE_VERSIONS[CLASSIFIER], parameters, {LABELS: digest, **start}, pins)
    commit = Commit(store, inputs, run_id)
    if commit.up_to_date:
        return StageResult(commit.up_to_date, False, time.monotonic() - started), None
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
    manifest = _commit_weights(commit, model.state_dict(), details, counts)
    return StageResult(manifest, True, time.monotonic() - started), training


def _labelled_table(labels: pd.DataFrame, split: "Split", evaluation: "Evaluation") -> bytes:
    """Say of every labelled patch on which side it was, and of those held out what the classifier says."""
    is_validation = np.zeros(len(labels), np.bool_)
    is_validation[split.validation] = True
    informative = np.full(len(labels), np.nan, np.float32)
    informative[split.validation] = evaluation.probabilities
    table = labels.assign(is_validation=is_validation, informative=pd.array(informative, "Float32"))
    sink = io.BytesIO()
    table.to_parquet(sink, index=False, compression="zstd")
    return sink.getvalue()


def _initialize(model: "torch.nn.Module", init: str) -> None:
    """Load what training starts from, all but the last layer."""
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
                '"random" to train every layer from scratch (needs more labels).'
            ) from error
    else:
        path = Path(init).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'init = {init!r} is no file; expected "random", "imagenet" or the path of weights.')
        weights = read_weights(path)
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    problems = model.load_state_dict(weights, strict=False)
    lacking = [key for key in problems.missing_keys if not key.startswith("fc.")]
    if lacking or problems.unexpected_keys:
        raise DataError(
            f"init = {init!r} does not fit a ResNet34: {len(lacking)} keys missing, {len(problems.unexpected_keys)} "
            f"unexpected, such as {[*lacking, *problems.unexpected_keys][:3]}. Give a torchvision ResNet34 state_dict."
        )
