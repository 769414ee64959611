"""Imports weights into `pretraining/weights`: published checkpoints, torchvision's weights, and random weights.

A local copy is preferred to a download. Where neither is possible, the import fails and lists the ways to get the file; other
weights never take its place. Files are not trusted: their size and checksum are checked before they are decoded, and only
tensors and plain values are decoded. `cem_assets.catalog.weights` has the rows of the catalogue.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cem_assets import environment
from cem_assets.catalog.weights import ImportedWeights
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.pretraining.rows import ROWS
from cem_assets.pretraining.weights.card import DataSource, WeightsFacts, weights_card
from cem_assets.pretraining.weights.files import commit_weights
from cem_assets.pretraining.weights.stored import WEIGHT_FILES, Availability, LocalCopy, availability, find_local_copy
from cem_assets.sources.files.download import check_sha256, download_url
from cem_assets.store.assets import CODE_VERSIONS, WEIGHTS
from cem_assets.store.commits import installed_versions
from cem_assets.store.manifests import Inputs, current_manifest
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from cem_assets.pretraining.weights.export import EncoderWeights

__all__ = ["Availability", "availability", "import_weights"]

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 4 << 30
"""Largest file that is imported; the published checkpoints, with optimisers, have less than 1 GiB."""
_FILE = "weights_file"
_NORMS_TOLERANCE = 0.005


def import_weights(store: Store, row: ImportedWeights, run_id: str = "", progress: Progress = no_progress) -> StageResult:
    """Get, read and commit the weights of a row of the catalogue.

    Args:
        progress: Called with (steps done, number of steps) after each of these three steps.

    Returns:
        The committed `pretraining/weights`, partition `row.name`.

    Raises:
        FileNotFoundError: There is neither a local copy nor an address with a checksum; the text lists the ways to get one.
        ConnectionError: The file could not be downloaded; the text lists the other ways to get it.
        DataError: The file has another checksum, is too large or damaged, holds Python objects, or belongs to another network.
    """
    started = time.monotonic()
    if row.source == "random":
        stage = begin(store, _inputs(row, ""), run_id)
        if stage.up_to_date:
            return stage.up_to_date
        weights, file_sha256 = _random_weights(row), ""
    else:
        copy = find_local_copy(store, row)
        if (found := _imported_before(store, row, copy, run_id)) is not None:
            return found
        with _file_contents(row, copy) as data:
            progress(1, 3)
            file_sha256 = hashlib.sha256(data).hexdigest()
            check_sha256(file_sha256, row.sha256, row.file)
            stage = begin(store, _inputs(row, file_sha256), run_id, started)
            if stage.up_to_date:
                return stage.up_to_date
            weights = _read(row, data)
    progress(2, 3)
    result = commit_weights(stage, weights, row.method, _provenance(row, file_sha256), _card(row, weights))
    progress(3, 3)
    return result


def _inputs(row: ImportedWeights, file_sha256: str) -> Inputs:
    parameters = {key: value for key, value in asdict(row).items() if key != "name"}
    upstream = {_FILE: file_sha256} if file_sha256 else {}
    pins = installed_versions("torch", "torchvision") if row.source == "random" else {}
    pins = {name: pins[name] for name in ("torch", "torchvision") if name in pins}  # their versions decide what a seed gives
    return Inputs(WEIGHTS, row.name, CODE_VERSIONS[WEIGHTS], parameters, upstream, pins)


def _imported_before(store: Store, row: ImportedWeights, copy: LocalCopy | None, run_id: str) -> StageResult | None:
    """Return the current weights where they come from this row, without getting the file again.

    Where the row has no checksum and there is a local copy, the copy has to be read to know whether it changed.
    """
    try:
        current = current_manifest(store, WEIGHTS, row.name)
    except DataError as error:  # a damaged manifest must not prevent its own replacement
        logger.warning("%s", error)
        return None
    recorded = current.inputs.upstream.get(_FILE, "") if current is not None else ""
    if not recorded or not recorded.startswith(row.sha256) or (copy is not None and not row.sha256):
        return None
    return begin(store, _inputs(row, recorded), run_id).up_to_date


@contextmanager
def _file_contents(row: ImportedWeights, copy: LocalCopy | None) -> Iterator[bytes]:
    """Read a row's file from a local copy, or download it."""
    if copy is not None:
        logger.info("weights %s are taken from %s", row.name, copy.place)
        with copy.open() as handle:  # the file may have grown since its size was read
            data = handle.read(MAX_FILE_BYTES + 1) if copy.num_bytes <= MAX_FILE_BYTES else b""
        if copy.num_bytes > MAX_FILE_BYTES or len(data) > MAX_FILE_BYTES:
            raise DataError(
                f"{copy.place} has {max(copy.num_bytes, len(data)):,} bytes; expected weights of at most {MAX_FILE_BYTES:,}. "
                "Save the state_dict alone."
            )
        yield data
        return
    if not row.url or not row.sha256:
        lacking = "no checksum is known for its address" if row.url else "no address is known"
        raise FileNotFoundError(_ways(row, f"there is no local copy of {row.file}, and {lacking}"))
    with scratch_folder("weights") as folder:
        try:
            path = download_url(row.url, row.sha256, folder, "weights", MAX_FILE_BYTES, min_digits=8)
        except ConnectionError as error:
            raise ConnectionError(_ways(row, f"there is no local copy of {row.file}, and {error}")) from error
        yield path.read_bytes()


def _ways(row: ImportedWeights, why: str) -> str:
    ways = [
        f"put a copy into the store, at {WEIGHT_FILES}/{row.file}",
        f"put a copy into a local folder, and name the folder in {environment.WEIGHTS_FOLDER}",
    ]
    if row.url and row.sha256:
        ways.append(f"materialize it again where {row.url} can be reached")
    elif row.url:
        ways.append(
            f"copy its row to {ROWS} of the store with the sha256 of a copy you trust; it is then fetched from {row.url}"
        )
    else:
        ways.append(f"copy its row to {ROWS} of the store, with url and sha256")
    told = "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, 1))
    return (
        f"weights {row.name!r} are not available here: {why}. Nothing is used in their place. "
        f"Ways to get them, each followed by materializing {WEIGHTS}, partition {row.name!r}:\n{told}"
    )


def _random_weights(row: ImportedWeights) -> "EncoderWeights":
    import torch

    from cem_assets.encoders import build_encoder
    from cem_assets.pretraining.weights.export import weights_of

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(row.seed)
        encoder = build_encoder(row.arch, in_channels=1)
    return weights_of(encoder, row.arch, _row_norms(row), epoch=0)


def _row_norms(row: ImportedWeights) -> tuple[float, float] | None:
    return None if row.mean is None or row.std is None else (float(row.mean), float(row.std))


def _read(row: ImportedWeights, data: bytes) -> "EncoderWeights":
    """Decode a file, and take the pixel norms from it, else from the row; where both have norms, they must agree."""
    from cem_assets.pretraining.weights.export import read_weights

    weights = read_weights(data, row.file, row.arch, MAX_FILE_BYTES)
    norms = _row_norms(row)
    if norms is None:
        return weights
    if weights.norms is None:
        note = "the file says nothing of pixel norms; those of the catalogue stand for them"
        return replace(weights, norms=norms, notes=(*weights.notes, note))
    if max(abs(mine - its) for mine, its in zip(norms, weights.norms, strict=True)) > _NORMS_TOLERANCE:
        raise DataError(
            f"{row.file} has pixel norms {weights.norms}, but its row in the catalogue has {norms}; expected the same. Get the "
            f"right file, or add a row {row.name!r} without mean and std to {ROWS}."
        )
    return weights


def _provenance(row: ImportedWeights, file_sha256: str) -> dict[str, Any]:
    """Describe the origin of weights, without facts of this machine, so that equal files give equal manifests."""
    about: dict[str, Any] = {"kind": row.kind, "title": row.title, "source": row.source}
    if row.source == "random":
        return {**about, "seed": row.seed}
    checked = "all digits" if len(row.sha256) == 64 else f"first {len(row.sha256)} digits" if row.sha256 else "not known"
    keys = ("file", "url", "trained_on", "licence", "data_licence", "citation")
    return {**about, "sha256": file_sha256, "checksum": checked, **{key: getattr(row, key) for key in keys}}


def _card(row: ImportedWeights, weights: "EncoderWeights") -> str:
    if row.source == "random":
        origin = f"Not trained: drawn from seed {row.seed}, to compare with. "
        data: tuple[DataSource, ...] = ()
    else:
        origin = f"Not trained here: imported from `{row.file}`" + (f", published at {row.url}." if row.url else ".")
        data = (DataSource(row.trained_on, row.data_licence, row.citation),)
    facts = WeightsFacts(
        name=row.name,
        title=row.title,
        arch=weights.arch,
        method=row.method,
        origin=origin.strip(),
        norms=weights.norms,
        epoch=weights.epoch,
        notes=weights.notes,
        licence=row.licence,
        state_sha256=weights.digest(),
    )
    return weights_card(facts, data)
