"""Stage `cem/patch_classifier`: weights taken from a file or an address, or trained from a label table.

Whatever the source, what lies in the store is a safetensors file with its provenance; nothing is ever
unpickled beyond plain tensors. Training itself is `cem_assets.cem.classifier_training`.
"""

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from cem_assets.cem.filter import MIN_LABELLED, ClassifierParams, Finetune, to_hash_side
from cem_assets.cem.patchify import parse_patch_name
from cem_assets.imaging.gallery import confusion_figure, figure_png, roc_figure
from cem_assets.sources.downloads import download
from cem_assets.stages.common import Progress, StageResult, no_progress
from cem_assets.storage.commits import Commit, hash_file, installed_versions
from cem_assets.storage.layout import CLASSIFIER, CODE_VERSIONS, LABELS
from cem_assets.storage.manifests import Inputs, Manifest, current_manifest
from cem_assets.storage.patches import PixelJob, open_pixels
from cem_assets.storage.scratch import scratch_folder
from cem_assets.storage.store import Store

if TYPE_CHECKING:
    import torch

    from cem_assets.cem.classifier_training import EpochResult, Evaluation

logger = logging.getLogger(__name__)

WEIGHTS_VARIABLE = "CEM_ASSETS_CLASSIFIER_WEIGHTS"
PUBLISHED_URL = "https://zenodo.org/record/6458015/files/patch_quality_classifier_nn.pth?download=1"
WEIGHTS = "patch_classifier.safetensors"
MAX_WEIGHTS_BYTES = 1 << 30

WAYS = f"""\
There is no patch classifier in the store yet. Ways to get one, each by materializing {CLASSIFIER}:
  1. from the published file (Zenodo record 6458015, patch_quality_classifier_nn.pth): download it, then set
     source = "file" and file = PATH in the launchpad, or the variable {WEIGHTS_VARIABLE}=PATH;
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
    """

    model_config = ConfigDict(frozen=True)

    source: Origin = Origin.auto
    file: str = ""
    url: str = PUBLISHED_URL
    sha256: str = ""
    init: str = "imagenet"


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
    """A committed classifier, with its training where there was one."""

    stage: StageResult
    training: Training | None


def load_classifier(store: Store) -> tuple[dict[str, "torch.Tensor"], Manifest]:
    """Read the classifier in use.

    Returns:
        Its weights and its manifest.

    Raises:
        FileNotFoundError: There is none; the error says the ways to get one.
    """
    import safetensors.torch

    manifest = current_manifest(store, CLASSIFIER)
    if manifest is None:
        raise FileNotFoundError(WAYS)
    return safetensors.torch.load(store.read(f"{manifest.folder}/{WEIGHTS}")), manifest


def read_weights(path: Path) -> dict[str, "torch.Tensor"]:
    """Read a state_dict from an untrusted file: plain tensors only, size checked first.

    Args:
        path: `.safetensors`, or a `.pth` that torch saved; a dict with a `state_dict` inside will do.

    Returns:
        float tensors by name, on the CPU.

    Raises:
        ValueError: The file is too large, damaged, or holds more than tensors.
    """
    import pickle

    import safetensors.torch
    import torch

    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ValueError(f"{path.name} has {size} bytes; expected weights of at most {MAX_WEIGHTS_BYTES}.")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{path.name} cannot be read as weights: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "Expected a safetensors file or a state_dict of plain tensors (torch.save(model.state_dict(), ...))."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"{path.name} is no state_dict; expected tensors by name, found {type(loaded).__name__}.")
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
        store: Where.
        source: Where it comes from.
        params: How it is trained, if it is.
        run_id: Recorded in the manifest.
        progress: Called with (epochs done, in all).
        on_epoch: Called with every epoch's result.

    Returns:
        The committed weights.

    Raises:
        FileNotFoundError: There is nothing to make it from; the error says the ways.
        ValueError: The weights or labels cannot be used.
        ConnectionError: The published file cannot be fetched.
    """
    started = time.monotonic()
    kind = source.source
    file = source.file
    if kind == Origin.auto:
        file = os.environ.get(WEIGHTS_VARIABLE, "")
        kind = Origin.labels if label_tables(store) else Origin.file if file else Origin.auto
    if kind == Origin.auto or (kind == Origin.file and not file):
        raise FileNotFoundError(WAYS)
    if kind == Origin.labels:
        return _train(store, source, params, run_id, progress, on_epoch, started)
    with scratch_folder("weights") as scratch:
        if kind == Origin.published:
            path, origin = download(source.url, source.sha256, scratch, "weights.pth"), source.url
        else:
            path, origin = Path(file).expanduser(), Path(file).name
            if not path.is_file():
                raise FileNotFoundError(f"the classifier weights {file} are not there. {WAYS}")
            if source.sha256 and hash_file(path) != source.sha256:
                raise ValueError(f"{path.name} has sha256 {hash_file(path)}; expected {source.sha256}. Get the right file.")
        provenance = {"source": str(kind), "origin": origin, "sha256": hash_file(path)}
        inputs = Inputs(CLASSIFIER, "", CODE_VERSIONS[CLASSIFIER], {"source": str(kind)}, {"weights": provenance["sha256"]})
        commit = Commit(store, inputs, run_id)
        if commit.up_to_date:
            return ClassifierResult(StageResult(commit.up_to_date, False, time.monotonic() - started), None)
        state_dict = read_weights(path)
    manifest = _commit_weights(commit, state_dict, {"provenance": provenance}, {})
    return ClassifierResult(StageResult(manifest, True, time.monotonic() - started), None)


def _commit_weights(
    commit: Commit, state_dict: dict[str, "torch.Tensor"], details: dict[str, Any], counts: dict[str, int]
) -> Manifest:
    import safetensors.torch

    from cem_assets.cem.classifier import build_classifier

    model = build_classifier(state_dict)  # refuses weights that do not fit, before they are committed
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    # One key only: safetensors writes several in no fixed order, and equal weights must be equal bytes.
    commit.write(WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    commit.write("classifier.json", json.dumps(details, indent=1).encode())
    parameters = sum(value.numel() for value in tensors.values())
    return commit.finish({"parameters": parameters, **counts}, details, installed_versions("torch", "torchvision"))


def label_tables(store: Store) -> list[str]:
    """List the label tables of the store: CSV or Parquet files under `cem/patch_labels/`."""
    return [item.key for item in store.walk(LABELS) if item.key.endswith((".csv", ".parquet"))]


def read_labels(store: Store) -> tuple[pd.DataFrame, str]:
    """Read every label table.

    Returns:
        Columns dataset, name, label, in order of dataset and name; and a digest of the tables.

    Raises:
        ValueError: A table lacks a column or is no table.
    """
    frames, digest = [], hashlib.sha256()
    for key in label_tables(store):
        data = store.read(key)
        digest.update(data)
        try:
            reader = pd.read_csv if key.endswith(".csv") else pd.read_parquet
            frame = reader(io.BytesIO(data))
        except (ValueError, pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"label table {key} cannot be read: {error}. Save it as CSV in UTF-8.") from error
        lacking = {"dataset", "name", "label"} - set(frame.columns)
        if lacking:
            raise ValueError(
                f"label table {key} lacks the column(s) {', '.join(sorted(lacking))}; expected dataset, name and label."
            )
        frames.append(frame[["dataset", "name", "label"]].astype(str))
    if not frames:
        raise FileNotFoundError(f"there are no label tables under {LABELS}/ in {store.url}. {WAYS}")
    table = pd.concat(frames).sort_values(["dataset", "name"], ignore_index=True)
    return table, digest.hexdigest()


def labelled_images(store: Store, labels: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Cut the labelled patches out of their datasets.

    Args:
        store: Where.
        labels: Columns dataset and name, sorted by dataset.

    Returns:
        uint8 (n, 224, 224), in row order.
    """
    images: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for dataset, rows in labels.groupby("dataset", sort=True):
        places = [parse_patch_name(name) for name in rows["name"]]
        columns = ("volume", "axis", "index", "y0", "y1", "x0", "x1")
        table = pa.table({column: [getattr(place, column) for place in places] for column in columns})
        images.append(to_hash_side(PixelJob(open_pixels(store, str(dataset)))(table)))
    return np.concatenate(images)


def _train(
    store: Store,
    source: ClassifierSource,
    params: ClassifierParams,
    run_id: str,
    progress: Progress,
    on_epoch: Callable[["EpochResult"], None] | None,
    started: float,
) -> ClassifierResult:
    import torch

    from cem_assets.cem.classifier import build_classifier, environment
    from cem_assets.cem.classifier_training import check_labels, evaluate, split_labelled, train_classifier
    from cem_assets.cem.filter import ScoreParams

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
    start = {} if source.init in ("random", "imagenet") else {"init": hash_file(Path(source.init))}
    pins = environment(ScoreParams(device=params.device))
    inputs = Inputs(CLASSIFIER, "", CODE_VERSIONS[CLASSIFIER], parameters, {LABELS: digest, **start}, pins)
    commit = Commit(store, inputs, run_id)
    if commit.up_to_date:
        return ClassifierResult(StageResult(commit.up_to_date, False, time.monotonic() - started), None)
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
    return ClassifierResult(StageResult(manifest, True, time.monotonic() - started), training)


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
        raise ValueError(
            f"init = {init!r} does not fit a ResNet34: {len(lacking)} keys missing, {len(problems.unexpected_keys)} "
            f"unexpected, such as {[*lacking, *problems.unexpected_keys][:3]}. Give a torchvision ResNet34 state_dict."
        )
