"""Compares a new patch classifier with the one in use, on the same held-out patches, before anybody chooses it.

Comparisons are stored under `cem/patch_classifier/_comparisons/` and never deleted. `cem_assets.cem.classifier.stored` knows
which classifier is in use.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.cem.classifier.decisions import find_flips
from cem_assets.cem.classifier.labels import decided_labels, labelled_images, read_labels
from cem_assets.cem.classifier.params import ClassifierParams
from cem_assets.cem.classifier.pictures import flips_jpeg
from cem_assets.cem.classifier.stored import read_classifier
from cem_assets.imaging.gallery import figure_png, roc_curves_figure
from cem_assets.store.assets import CLASSIFIER
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from cem_assets.cem.classifier.training import Evaluation

COMPARISONS = f"{CLASSIFIER}/_comparisons"
LABELLED = "labelled_patches.parquet"
"""Table in the folder of a classifier that was trained here: dataset, name, label, whether the patch was held out, and if so
its probability."""
_FACTS, _ROCS, _FLIPPED = "comparison.json", "rocs.png", "flipped.jpg"


@dataclass(frozen=True)
class ClassifierComparison:
    """A comparison as it is stored.

    Attributes:
        folder: Its folder in the store.
        facts: JSON values: digests of both classifiers, number of patches, AUC, accuracy and confusion of both, and how many
            decisions flipped.
        pictures: PNG or JPEG bytes by file name: both ROC curves, and the patches on which the two differ.
    """

    folder: str
    facts: dict[str, Any]
    pictures: dict[str, bytes]

    def line(self) -> str:
        """Summarize the comparison in one line."""
        new, used, flipped = self.facts["new"], self.facts["in_use"], self.facts["flipped"]
        seen = self.facts["num_seen_by_in_use"]
        text = (
            f"on {self.facts['num_patches']} held-out patches: AUC {_shown(new['auc'])} instead of {_shown(used['auc'])}, "
            f"accuracy {new['accuracy']:.3f} instead of {used['accuracy']:.3f}; {flipped['gained'] + flipped['dropped']} "
            f"decisions flipped ({flipped['corrected']} for the better, {flipped['spoiled']} for the worse)"
        )
        return text + (f"; the one in use was trained on {seen} of these patches" if seen else "")


def _shown(auc: float | None) -> str:
    return "unknown" if auc is None else f"{auc:.3f}"


def compare_with(store: Store, new: Manifest, in_use: Manifest, params: ClassifierParams) -> ClassifierComparison:
    """Compare two classifiers on the patches that training with these parameters holds out.

    Args:
        new: Manifest of the new classifier.
        in_use: Manifest of the one in use.
        params: Seed and share of the split, device, batch size and precision.

    Returns:
        The comparison. If it was made before, it is read from the store.

    Raises:
        FileNotFoundError: There are no labels, or the weights of a classifier are gone.
        DataError: The labels, or the weights of a classifier, cannot be used.
    """
    from cem_assets.cem.classifier.training import split_labelled

    labels, digest = read_labels(store)
    folder = f"{COMPARISONS}/{new.digest[:16]}-{in_use.digest[:16]}-{digest[:8]}-s{params.seed}-{params.validation_share:g}"
    if store.size(f"{folder}/{_FACTS}") is not None:  # the facts are written last
        pictures = {name: store.read(f"{folder}/{name}") for name in (_ROCS, _FLIPPED)}
        return ClassifierComparison(folder, json.loads(store.read(f"{folder}/{_FACTS}")), pictures)
    labels = decided_labels(labels)
    is_good = (labels["label"] == "good").to_numpy()
    rows = np.sort(split_labelled(labels["name"].tolist(), is_good, params).validation)
    held, is_good = labels.iloc[rows].reset_index(drop=True), is_good[rows]
    images = labelled_images(store, held)
    results = [_evaluate(store, manifest, images, is_good, params) for manifest in (new, in_use)]
    flips = find_flips(is_good, results[0].probabilities, results[1].probabilities)
    facts = {
        "new": {"digest": new.digest, **_measures(results[0])},
        "in_use": {"digest": in_use.digest, **_measures(results[1])},
        "labels": digest,
        "num_patches": len(held),
        "num_seen_by_in_use": _num_trained_on(store, in_use, held),
        "flipped": {
            "gained": len(flips.gained),
            "dropped": len(flips.dropped),
            "corrected": flips.num_corrected,
            "spoiled": flips.num_spoiled,
        },
    }
    names = (f"new {new.digest[:8]}", f"in use {in_use.digest[:8]}")
    curves = [
        (name, result.false_positive_rate, result.true_positive_rate, result.auc)
        for name, result in zip(names, results, strict=True)
    ]
    pictures = {
        _ROCS: figure_png(roc_curves_figure(curves)),
        _FLIPPED: flips_jpeg(images, is_good, results[0].probabilities, results[1].probabilities),
    }
    for name, data in pictures.items():
        store.put(f"{folder}/{name}", data)
    store.put(f"{folder}/{_FACTS}", (json.dumps(facts, indent=1) + "\n").encode())
    return ClassifierComparison(folder, facts, pictures)


def _evaluate(
    store: Store, manifest: Manifest, images: NDArray[np.uint8], is_good: NDArray[np.bool_], params: ClassifierParams
) -> "Evaluation":
    from cem_assets.cem.classifier.network import build_classifier
    from cem_assets.cem.classifier.training import evaluate

    return evaluate(build_classifier(read_classifier(store, manifest)), images, is_good, params)


def _measures(result: "Evaluation") -> dict[str, Any]:
    return {
        "auc": None if np.isnan(result.auc) else result.auc,
        "accuracy": result.accuracy,
        "confusion": result.confusion.tolist(),
    }


def _num_trained_on(store: Store, manifest: Manifest, held: pd.DataFrame) -> int | None:
    """Count the held-out patches that a classifier was trained on; return None if it is not known what it was trained on."""
    if not any(item.name == LABELLED for item in manifest.objects):
        return None
    with store.open(f"{manifest.folder}/{LABELLED}") as handle:
        seen = pq.read_table(handle, columns=["dataset", "name", "is_validation"]).to_pandas()
    seen = seen[~seen["is_validation"]]
    return len(held.merge(seen, on=["dataset", "name"]))
