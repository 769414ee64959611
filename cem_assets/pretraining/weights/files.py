"""Writes encoder weights to `pretraining/weights`, with the files that trained and imported partitions have alike.

`cem_assets.pretraining.weights.stored` reads them back, `cem_assets.pretraining.weights.export` encodes them, and
`cem_assets.pretraining.weights.card` writes the card.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cem_assets.execution.stage import Beginning, StageResult
from cem_assets.pretraining.weights.stored import CARD, CHECKPOINT, SIDECAR, STATE
from cem_assets.store.commits import installed_versions

if TYPE_CHECKING:
    from cem_assets.pretraining.weights.export import EncoderWeights

_NO_EXTRA: Mapping[str, bytes] = {}


def commit_weights(
    stage: Beginning,
    weights: "EncoderWeights",
    method: str,
    provenance: Mapping[str, Any],
    card: str,
    extra: Mapping[str, bytes] = _NO_EXTRA,
) -> StageResult:
    """Write the files of a partition and make them visible.

    Args:
        method: "moco", "swav", "supervised" or "random".
        provenance: Facts on how the weights were made, as JSON values without NaN.
        card: Text of the model card.
        extra: Further files by name.

    Returns:
        The committed partition with `weights.safetensors`, `weights.json`, `README.md`, and, where the pixel norms are known,
        `checkpoint.pth` in the published form.

    Raises:
        ValueError: An extra file has the name of one of these files, or the provenance cannot be written as JSON.
    """
    from cem_assets.pretraining.weights.export import PREFIXES, sidecar, to_published, to_safetensors

    if taken := sorted({STATE, CHECKPOINT, SIDECAR, CARD} & set(extra)):
        raise ValueError(f"extra file(s) {', '.join(taken)} have names of files that weights always have; choose other names.")
    files = {STATE: to_safetensors(weights)}
    if weights.norms is not None:
        # Random weights were never published, and have the same prefix as supervised ones.
        files[CHECKPOINT] = to_published(weights, method if method in PREFIXES else "supervised")
    about = sidecar(weights, method, {**files, **extra}, provenance=dict(provenance))
    text = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in {**files, **extra, SIDECAR: text.encode(), CARD: card.encode()}.items():
        stage.commit.write(name, content)
    details = {key: about[key] for key in ("arch", "method", "norms", "epoch", "state_sha256", "notes", "provenance")}
    counts = {"parameters": about["num_parameters"], "features": about["num_features"]}
    return stage.finish(counts, details, installed_versions("torch", "torchvision", "safetensors"))
