"""Finds local copies of published weights, and reads the encoder weights that a store has.

`cem_assets.pretraining.rows` reads the rows of the catalogue, and `cem_assets.pretraining.weights.files` writes weights.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cem_assets import environment
from cem_assets.catalog.weights import ImportedWeights, WeightsRow
from cem_assets.errors import DataError
from cem_assets.store.assets import WEIGHTS
from cem_assets.store.manifests import Manifest, find_manifest, manifest_numbers, require_manifest
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from cem_assets.pretraining.weights.export import EncoderWeights

WEIGHT_FILES = "pretraining/weight_files"
"""Folder of the store for copies of published files."""
STATE = "weights.safetensors"
CHECKPOINT = "checkpoint.pth"
SIDECAR = "weights.json"
CARD = "README.md"


@dataclass(frozen=True)
class LocalCopy:
    """A copy of a published file in the store or on this machine.

    Attributes:
        place: Place of the copy, for messages.
        open: Opens the copy for reading.
    """

    place: str
    num_bytes: int
    open: Callable[[], BinaryIO] = field(repr=False)


@dataclass(frozen=True)
class Availability:
    """Whether weights are available here, as far as this is known without a download.

    Attributes:
        is_available: Whether they are in the store, or can be made from a local copy or a seed.
        reason: The reason why they are available, or why not.
        is_downloadable: Whether they are not available, but have an address with a checksum. The address was not tried.
    """

    is_available: bool
    reason: str
    is_downloadable: bool = False


def find_local_copy(store: Store, row: ImportedWeights) -> LocalCopy | None:
    """Look for a copy of a row's file in the store, in CEM_ASSETS_WEIGHTS_FOLDER and, for torchvision's, in torch's cache."""
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
    """Tell whether weights are available here, without using the network for anything but the store."""
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
    """Read committed weights and check them against their manifest.

    Args:
        name: Partition of `pretraining/weights`.
        digest: Digest of the manifest; empty takes the current one.

    Returns:
        The weights and their manifest.

    Raises:
        FileNotFoundError: There are no committed weights, or none with that digest, or the file is gone.
        DataError: The file differs from what was committed.
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
        raise DataError(f"{key} has {size:,} bytes; expected {described.num_bytes:,}. {_remedy(name)}")
    data = store.read(key)
    found = hashlib.sha256(data).hexdigest()
    if found != described.sha256:
        raise DataError(f"{key} has sha256 {found[:12]}; expected {described.sha256[:12]}. It was changed. {_remedy(name)}")
    weights = read_weights(data, key)
    if weights.arch != manifest.details.get("arch"):
        raise DataError(f"{key} is for {weights.arch}, but its manifest has {manifest.details.get('arch')!r}. {_remedy(name)}")
    return weights, manifest


def _remedy(name: str) -> str:
    return f"Restore it from a copy, or materialize {WEIGHTS}, partition {name!r}, again."
