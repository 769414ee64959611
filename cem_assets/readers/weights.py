"""Reading encoder weights without Dagster; `cem_assets.readers` has these functions too."""

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from cem_assets.catalog.weights import WeightsRow
from cem_assets.errors import DataError
from cem_assets.pretraining.rows import stored_weights_rows
from cem_assets.pretraining.weights.stored import SIDECAR, availability, load_encoder_weights
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import Manifest, committed_partitions, current_manifest, require_manifest
from cem_assets.store.store import Store, open_store

if TYPE_CHECKING:
    from torch import nn


def list_weights(root: str | None = None) -> pd.DataFrame:
    """List the encoder weights of the catalogue, and committed weights that the catalogue no longer has.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        A table with a row for each: name, kind ("trained" or "imported"), arch, method, is_committed, norms (mean and standard
        deviation of pixels, or None), epoch (missing if it is not known), num_parameters and digest (of the committed weights),
        and reason (why they are not in the store; empty if they are).

    Raises:
        DataError: `settings/weights.toml` of the store has problems.
    """
    store = open_store(root)
    rows = stored_weights_rows(store)
    names = [*rows, *(name for name in committed_partitions(store, WEIGHTS) if name not in rows)]
    found = [_weights_entry(store, name, rows.get(name)) for name in names]
    frame = pd.DataFrame(found).astype({"num_parameters": "Int64"})
    frame["norms"] = pd.Series([entry["norms"] for entry in found], dtype=object)
    frame["epoch"] = pd.Series([entry["epoch"] for entry in found], dtype="Int64")
    return frame


def _weights_entry(store: Store, name: str, row: WeightsRow | None) -> dict[str, Any]:
    manifest = current_manifest(store, WEIGHTS, name)
    details = manifest.details if manifest else {}
    norms = details.get("norms")
    return {
        "name": name,
        "kind": row.kind if row else details.get("provenance", {}).get("kind", ""),
        "arch": details.get("arch", row.arch if row else ""),
        "method": details.get("method", row.method if row else ""),
        "is_committed": manifest is not None,
        "norms": (norms["mean"], norms["std"]) if norms else None,
        "epoch": details.get("epoch"),
        "num_parameters": manifest.counts["parameters"] if manifest else None,
        "digest": manifest.digest if manifest else "",
        "reason": "" if manifest or row is None else availability(store, row).reason,
    }


def read_weights_info(name: str, root: str | None = None) -> dict[str, Any]:
    """Read the description of committed weights: network, method, norms, files with digests, provenance.

    Args:
        name: One of the names in `list_weights`.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Raises:
        DataError: The name is unknown; the error lists the known names.
        FileNotFoundError: They are not in the store yet.
    """
    store = open_store(root)
    manifest = _weights_manifest(store, name)
    info: dict[str, Any] = json.loads(store.read(f"{manifest.folder}/{SIDECAR}"))
    return info


def load_weights(name: str, arch: str | None = None, *, root: str | None = None, form: str = "torchvision") -> "nn.Module":
    """Load committed weights as an encoder.

    Pixels must be normalised first: (value / 255 - mean) / std, with the norms of `list_weights`.

    Args:
        name: One of the names in `list_weights`.
        arch: The network that the weights must be for; None accepts any network.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.
        form: "torchvision" gives features (n, d) of images (n, 1, height, width). "smp" gives an encoder of
            segmentation_models_pytorch, which returns a list of feature maps. The latter works only for ResNets, because its
            EfficientNetB0 pads and normalises differently from torchvision's, so the same weights give other features.

    Returns:
        The module, in evaluation mode, on the CPU.

    Raises:
        DataError: The name or the form is unknown, the weights are for another network, or they do not have this form.
        FileNotFoundError: They are not in the store yet; the error says what to materialize.
    """
    if form not in ("torchvision", "smp"):
        raise DataError(f'form {form!r} is not known; expected "torchvision" or "smp".')
    store = open_store(root)
    weights, _ = load_encoder_weights(store, name, _weights_manifest(store, name).digest)
    if arch is not None and arch != weights.arch:
        raise DataError(
            f"weights {name!r} are for {weights.arch}, not {arch!r}. Ask for {weights.arch}, or choose other weights."
        )
    if form == "torchvision":
        return weights.build()
    if not weights.arch.startswith("resnet"):
        raise DataError(
            f"weights {name!r} are for torchvision's {weights.arch}; that of segmentation_models_pytorch pads and normalises "
            'differently, so they would give other features there. Use form = "torchvision", or weights of a ResNet.'
        )
    import segmentation_models_pytorch as smp  # type: ignore[import-untyped,unused-ignore]

    encoder: nn.Module = smp.encoders.get_encoder(weights.arch, in_channels=1, weights=None)
    encoder.load_state_dict(weights.state)
    return encoder.eval()


def _weights_manifest(store: Store, name: str) -> Manifest:
    """Find committed weights; otherwise the error says whether the name is unknown, or the weights are not in the store yet."""
    if name in (committed := committed_partitions(store, WEIGHTS)):
        return require_manifest(store, WEIGHTS, name)
    rows = stored_weights_rows(store)
    if name not in rows:
        raise DataError(f"weights {name!r:.80} are not known; expected one of {', '.join(sorted({*rows, *committed}))}.")
    raise FileNotFoundError(
        f"weights {name!r} are not in {store.url} yet: {availability(store, rows[name]).reason}. Materialize {WEIGHTS}, "
        f"partition {name!r}. In the store are: {', '.join(committed) or 'none'}."
    )
