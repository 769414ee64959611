"""Stage `cytoimagenet/class_maps`: how a network sees some classes of a release, as maps and distances.

The features of randomly chosen classes are laid out by UMAP and coloured by label, source and scale. The mean cosine distances
within and between classes are computed from the same features. `NETWORKS` and `pretraining/weights` have the networks that can
be used.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.cem.classifier.stored import classifier_in_use, load_classifier
from cem_assets.cytoimagenet.feature_space import cosine_distances, umap_points
from cem_assets.cytoimagenet.labels.rule import keyed_order
from cem_assets.cytoimagenet.releases.stage import LISTING, require_cyto_release
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.pretraining.weights.stored import load_encoder_weights
from cem_assets.store.assets import CLASS_MAPS, CLASSIFIER, CODE_VERSIONS, CYTO_RELEASES, WEIGHTS
from cem_assets.store.commits import installed_versions
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Inputs, committed_partitions, current_manifest
from cem_assets.store.parquet import parquet_file
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from torch import nn

DISTANCES = "cosine_distances.csv"
POINTS = "points.csv"
_BATCH = 32


class ClassMapParams(BaseModel):
    """What is mapped, and by which network.

    Attributes:
        release: Version of the release; empty takes the newest.
        weights: A key of `NETWORKS`, or the name of committed `pretraining/weights`. Empty takes the patch classifier if there
            is one, and random weights otherwise.
        num_classes: Number of classes that are drawn at random.
        max_images: Largest number of images of each class.
        seed: Seed of the draws, of random weights and of UMAP.
    """

    model_config = ConfigDict(frozen=True)

    release: str = ""
    weights: str = ""
    num_classes: int = Field(20, ge=2, le=200)
    max_images: int = Field(50, ge=2, le=1000)
    seed: int = Field(0, ge=0, lt=1 << 32)


def _random_network(store: Store, seed: int) -> "nn.Module":
    del store
    import torch

    from cem_assets.encoders import build_encoder

    torch.manual_seed(seed)
    return build_encoder("resnet34")


def _patch_classifier(store: Store, seed: int) -> "nn.Module":
    del seed
    from torch import nn

    from cem_assets.cem.classifier.network import build_classifier

    weights, _ = load_classifier(store)
    model = build_classifier(weights)
    model.fc = nn.Identity()
    return model


NETWORKS: dict[str, Callable[[Store, int], "nn.Module"]] = {
    "random": _random_network,
    CLASSIFIER: _patch_classifier,
}
"""Functions of store and seed that build a network, by name. All networks take three channels of 224 x 224 px."""


def _network(store: Store, name: str, seed: int) -> "nn.Module":
    """Build a network of `NETWORKS`, or an encoder of `pretraining/weights` that takes the same input."""
    if name in NETWORKS:
        return NETWORKS[name](store, seed)
    from torch import Tensor, nn

    from cem_assets.analyses.class_maps.features import IMAGENET_MEAN, IMAGENET_STD

    weights, _ = load_encoder_weights(store, name)
    mean, std = weights.norms or (IMAGENET_MEAN[0], IMAGENET_STD[0])

    class Gray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = weights.build()

        def forward(self, images: Tensor) -> Tensor:
            gray = images[:, :1] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
            features: Tensor = self.encoder((gray - mean) / std)
            return features

    return Gray().eval()


def map_classes(
    store: Store, params: ClassMapParams | None = None, run_id: str = "", progress: Progress = no_progress
) -> StageResult:
    """Map some classes of a release.

    Returns:
        The committed `cytoimagenet/class_maps`: three maps as PNG, the points and the table of distances as CSV.

    Raises:
        FileNotFoundError: There is no such release, or no such weights.
        DataError: The name of the weights is not known, or the release has fewer than two labels.
    """
    params = params or ClassMapParams()
    release = require_cyto_release(store, params.release)
    classifier = classifier_in_use(store)
    name = params.weights or (CLASSIFIER if classifier else "random")
    committed = [] if name in NETWORKS else committed_partitions(store, WEIGHTS)
    trained = current_manifest(store, WEIGHTS, name) if name in committed else None
    if name not in NETWORKS and trained is None:
        known = [*NETWORKS, *committed]
        raise DataError(f"weights {name!r} are not known, or not committed; expected one of {', '.join(known)}.")
    upstream = {f"{CYTO_RELEASES}/{release.inputs.partition}": release.digest}
    if name == CLASSIFIER and classifier:
        upstream[CLASSIFIER] = classifier.digest
    if trained is not None:
        upstream[f"{WEIGHTS}/{name}"] = trained.digest
    parameters = {**params.model_dump(mode="json"), "weights": name, "release": release.inputs.partition}
    stage = begin(store, Inputs(CLASS_MAPS, "", CODE_VERSIONS[CLASS_MAPS], parameters, upstream), run_id)
    if stage.up_to_date:
        return stage.up_to_date
    from cem_assets.cytoimagenet.pictures import class_map_png

    labels = json.loads(store.read(f"{release.folder}/{LISTING}"))["labels"]
    if len(labels) < 2:
        raise DataError(f"release {release.inputs.partition} has {len(labels)} label(s); expected at least 2 to compare.")
    order = keyed_order([label["key"] for label in labels], params.seed)[: params.num_classes]
    chosen = [labels[place] for place in sorted(order.tolist())]
    points, features = _features(store, chosen, _network(store, name, params.seed), params, progress)
    places = umap_points(features, params.seed)
    points["x"], points["y"] = places[:, 0], places[:, 1]
    distances = cosine_distances(features, points["label"].tolist())
    shown = f"{len(chosen)} classes, features of {'random weights' if name == 'random' else name}"
    colours: dict[str, list[str]] = {
        "label": [str(label) for label in points["label"]],
        "source": [str(source) for source in points["source"]],
        "scale": [f"{scale:g}" for scale in points["scaling"]],
    }
    for what, values in colours.items():
        stage.commit.write(f"map by {what}.png", class_map_png(places, values, f"{shown}, by {what}"))
    stage.commit.write(DISTANCES, distances.to_csv(index=False, float_format="%.6f").encode())
    stage.commit.write(POINTS, points.to_csv(index=False, float_format="%.6f").encode())
    counts = {"classes": len(chosen), "images": len(points), "features": int(features.shape[1])}
    details = {
        "release": release.inputs.partition,
        "weights": name,
        "within": round(float(distances["within"].mean()), 6),
        "between": round(float(distances["between"].mean()), 6),
    }
    return stage.finish(counts, details, installed_versions("torch", "torchvision", "umap-learn"))


def _features(
    store: Store, labels: Sequence[dict[str, Any]], model: "nn.Module", params: ClassMapParams, progress: Progress
) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Read up to `max_images` images of each label, and return a row and a feature vector for each image."""
    from cem_assets.analyses.class_maps.features import features_of, network_input

    rows: list[dict[str, Any]] = []
    total = sum(min(label["num_images"], params.max_images) for label in labels)

    def batches() -> Iterator[NDArray[np.uint8]]:
        for label in labels:
            taken = 0
            for item in label["objects"]:
                with store.open(f"{label['folder']}/{item['name']}") as handle:
                    columns = ["label", "category", "source", "scaling", "filename", "image"]
                    for batch in parquet_file(handle).iter_batches(_BATCH, columns=columns):
                        found = batch.to_pylist()[: params.max_images - taken]
                        if not found:
                            break
                        taken += len(found)
                        rows.extend({name: row[name] for name in columns[:-1]} for row in found)
                        yield network_input(decode_image(row["image"]["bytes"]) for row in found)
                        progress(len(rows), total)

    features = features_of(model, batches())
    return pd.DataFrame(rows), features
