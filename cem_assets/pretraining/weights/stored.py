"""Encoder weights in a store: the rows it knows, local copies of published files, and reading what was committed.

Rows of the package are `cem_assets.catalog.weights`; their hyperparameters are checked by
`cem_assets.pretraining.weights.rows`. Writing weights is `cem_assets.pretraining.weights.files`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cem_assets import environment
from cem_assets.catalog.weights import ImportedWeights, WeightsRow, weights_rows
from cem_assets.errors import DataError
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import Manifest, find_manifest, manifest_numbers, require_manifest
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from cem_assets.pretraining.weights.export import EncoderWeights

ROWS = "settings/weights.toml"
"""Rows of the store, in the form of the package's `weights.toml`."""
WEIGHT_FILES = "pretraining/weight_files"
"""Folder of the store for copies of published files."""
"""Names a local folder with copies of published files."""
STATE = "weights.safetensors"
CHECKPOINT = "checkpoint.pth"
SIDECAR = "weights.json"
CARD = "README.md"
_MAX_ROWS_BYTES = 4 << 20


@dataclass(frozen=True)
class LocalCopy:
    """A copy of a published file that is at hand.

    Attributes:
        place: Where it lies, for messages.
        num_bytes: Size.
        open: Opens it for reading.
    """

    place: str
    num_bytes: int
    open: Callable[[], BinaryIO] = field(repr=False)


@dataclass(frozen=True)
class Availability:
    """Whether weights can be had here, as far as can be told without trying.

    Attributes:
        is_available: They are in the store, or can be made from what is at hand.
        reason: Why, or why not.
        is_downloadable: They are not at hand, but an address and a checksum are known; whether it answers was not tried.
    """

    is_available: bool
    reason: str
    is_downloadable: bool = False


def stored_weights_rows(store: Store) -> dict[str, WeightsRow]:
    """Read the rows of the package, overlaid by those of the store.

    A row of the store takes the place of a whole row of the package with the same name, if both are trained or both
    imported; a trained row cannot become an imported one, or the reverse, as its name would then mean another thing.

    Raises:
        DataError: `settings/weights.toml` is not TOML in UTF-8, too large, or has rows that make no sense.
    """
    rows = dict(weights_rows())
    size = store.size(ROWS)
    if size is None:
        return rows
    if size > _MAX_ROWS_BYTES:
        raise DataError(f"{ROWS} has {size:,} bytes; expected at most {_MAX_ROWS_BYTES:,}. Keep only rows of weights in it.")
    try:
        text = store.read(ROWS).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{ROWS} is not UTF-8: {error}. Save it as UTF-8.") from error
    added = weights_rows(text, ROWS)
    turned = [name for name, row in added.items() if name in rows and rows[name].kind != row.kind]
    if turned:
        told = "; ".join(f"{name} is {rows[name].kind} in the package's catalogue, {added[name].kind} here" for name in turned)
        raise DataError(f"{ROWS} changes the kind of {len(turned)} row(s): {told}. Give them other names.")
    return rows | added


def find_local_copy(store: Store, row: ImportedWeights) -> LocalCopy | None:
    """Look for a copy of a row's file: in the store, in CEM_ASSETS_WEIGHTS_FOLDER, and for torchvision's in torch's cache."""
    if not row.file:
        return None
    key = f"{WEIGHT_FILES}/{row.file}"
    size = store.size(key)
    if size is not None:
        return LocalCopy(f"{key} of the store", size, lambda: store.open(key))
    folders = {str(environment.WEIGHTS_FOLDER): environment.text(environment.WEIGHTS_FOLDER)}
    if row.source == "torchvision":
        torch_home = environment.text(environment.TORCH_HOME) or f"{environment.text(environment.XDG_CACHE_HOME)}/torch"
        folders["torch's cache"] = f"{torch_home}/hub/checkpoints"
    for what, folder in folders.items():
        path = Path(folder).expanduser() / row.file
        if folder and path.is_file():
            return LocalCopy(f"{row.file} in the folder of {what}", path.stat().st_size, _opener(path))
    return None


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def availability(store: Store, row: WeightsRow) -> Availability:
    """Tell whether weights can be had here, without downloading or asking the network."""
    if manifest_numbers(store, f"{WEIGHTS}/{row.name}"):
        return Availability(True, "in the store")
    if not isinstance(row, ImportedWeights):
        return Availability(False, "not trained yet")
    if row.source == "random":
        return Availability(True, "made from its seed")
    if (copy := find_local_copy(store, row)) is not None:
        return Availability(True, f"local copy: {copy.place}")
    if row.url and row.sha256:
        return Availability(False, f"would be downloaded from {row.url} (not tried)", is_downloadable=True)
    return Availability(False, "needs a local copy" + (", or a checksum to be downloaded" if row.url else ""))


def load_encoder_weights(store: Store, name: str, digest: str = "") -> tuple["EncoderWeights", Manifest]:
    """Read committed weights, checked against their manifest.

    Args:
        name: The partition.
        digest: Of the manifest wanted; empty takes the current one.

    Returns:
        The weights and their manifest.

    Raises:
        FileNotFoundError: Nothing is committed, or nothing with that digest, or the file is gone.
        DataError: What lies there is not what was committed.
    """
    from cem_assets.pretraining.weights.export import MAX_WEIGHTS_BYTES, read_weights

    manifest = find_manifest(store, WEIGHTS, name, digest) if digest else require_manifest(store, WEIGHTS, name)
    key = f"{manifest.folder}/{STATE}"
    described = next((item for item in manifest.objects if item.name == STATE), None)
    if described is None:
        raise DataError(f"the manifest {manifest.key} lists no {STATE}. Materialize {WEIGHTS}, partition {name!r}, again.")
    size = store.size(key)
    if size is None:
        raise FileNotFoundError(f"{key} is gone from {store.url}. {_remedy(name)}")
    if size != described.num_bytes or size > MAX_WEIGHTS_BYTES:
        raise DataError(f"{key} has {size:,} bytes, expected {described.num_bytes:,}. {_remedy(name)}")
    data = store.read(key)
    found = hashlib.sha256(data).hexdigest()
    if found != described.sha256:
        raise DataError(f"{key} has sha256 {found[:12]}, expected {described.sha256[:12]}: it was changed. {_remedy(name)}")
    weights = read_weights(data, key)
    if weights.arch != manifest.details.get("arch"):
        raise DataError(f"{key} is for {weights.arch}, its manifest says {manifest.details.get('arch')!r}. {_remedy(name)}")
    return weights, manifest


def _remedy(name: str) -> str:
    return f"Restore it from a copy, or materialize {WEIGHTS}, partition {name!r}, again."
