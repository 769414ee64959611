"""Writing encoder weights to `pretraining/weights`: the files every partition has, whether trained or imported.

Reading them back is `cem_assets.pretraining.weights.stored`; their forms are `cem_assets.pretraining.weights.export`, the card
`cem_assets.pretraining.weights.card`.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cem_assets.errors import DataError
from cem_assets.pretraining.weights.stored import CARD, CHECKPOINT, SIDECAR, STATE
from cem_assets.store.commits import Commit, installed_versions
from cem_assets.store.manifests import Manifest

if TYPE_CHECKING:
    from cem_assets.pretraining.weights.export import EncoderWeights

_NO_EXTRA: Mapping[str, bytes] = {}


def commit_weights(
    commit: Commit,
    weights: "EncoderWeights",
    method: str,
    provenance: Mapping[str, Any],
    card: str,
    extra: Mapping[str, bytes] = _NO_EXTRA,
) -> Manifest:
    """Write the files of a partition and make them visible.

    Args:
        commit: Of the partition, not up to date.
        method: "moco", "swav", "supervised" or "random".
        provenance: How they came to be; JSON values without NaN.
        card: The model card.
        extra: Further files by name.

    Returns:
        The manifest: `weights.safetensors`, `weights.json`, `README.md`, and `checkpoint.pth` in the published form
        where the pixel norms are known.

    Raises:
        DataError: An extra file has the name of one of these, or the provenance is no JSON.
    """
    from cem_assets.pretraining.weights.export import PREFIXES, sidecar, to_published, to_safetensors

    if taken := sorted({STATE, CHECKPOINT, SIDECAR, CARD} & set(extra)):
        raise DataError(f"extra file(s) {', '.join(taken)} have names that weights take themselves; choose others.")
    files = {STATE: to_safetensors(weights)}
    if weights.norms is not None:
        # Random weights were never published; they take the bare prefix, as supervised ones do.
        files[CHECKPOINT] = to_published(weights, method if method in PREFIXES else "supervised")
    about = sidecar(weights, method, {**files, **extra}, provenance=dict(provenance))
    text = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in {**files, **extra, SIDECAR: text.encode(), CARD: card.encode()}.items():
        commit.write(name, content)
    details = {key: about[key] for key in ("arch", "method", "norms", "epoch", "state_sha256", "notes", "provenance")}
    counts = {"parameters": about["num_parameters"], "features": about["num_features"]}
    return commit.finish(counts, details, installed_versions("torch", "torchvision", "safetensors"))
