"""Patch classifiers in the store: their weights, and the choice of the one that new scores are made with.

A choice is one small object, and the newest choice counts. Making a classifier (`cem_assets.cem.classifier.stage`) chooses it
only if it is the store's first one, so scores do not change until somebody decides so. Choices are never changed or deleted:
they record who decided what, when and why.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cem_assets import environment
from cem_assets.cem.classifier.params import MIN_LABELLED
from cem_assets.errors import DataError, StoreError
from cem_assets.store.assets import CLASSIFIER, LABELS
from cem_assets.store.manifests import Manifest, current_manifest, manifest_numbers, read_manifest
from cem_assets.store.store import Store

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

WEIGHTS = "patch_classifier.safetensors"
CHOICES = f"{CLASSIFIER}/_choices"
MAX_CHOICE_BYTES = 1 << 14
_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_RETRIES = 20

WAYS = f"""\
There is no patch classifier in the store yet. Ways to get one, each by materializing {CLASSIFIER}:
  1. from the published file (Zenodo record 6458015, patch_quality_classifier_nn.pth): download it, then set
     source = "file" and file = PATH in the launchpad, or the variable {environment.CLASSIFIER_WEIGHTS}=PATH;
  2. straight from Zenodo: source = "published" and sha256 = the digest of a copy you trust;
  3. from your own labels: give them on the page that `cem-assets label DATASET` opens, or put a CSV with the columns dataset,
     name, label (good, bad or none) under {LABELS}/ in the store; at least {MIN_LABELLED} good and bad together. Then set
     source = "labels"."""


class ClassifierChoice(BaseModel):
    """One choice of a classifier.

    Attributes:
        digest: Digest of the classifier's manifest.
        by: Who chose it: a name or a Dagster run.
        reason: Why it was chosen, in the chooser's words.
        time: ISO 8601, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    by: Annotated[str, Field(max_length=200)] = ""
    reason: Annotated[str, Field(max_length=2000)] = ""
    time: Annotated[str, Field(max_length=64)] = ""


@dataclass(frozen=True)
class KnownClassifier:
    """A classifier that the store has or had.

    Attributes:
        manifest: The newest manifest with its digest.
        is_in_use: Whether new scores are made with it.
        is_there: Whether its weights are still in the store; the sweep deletes old classifiers that were never chosen.
    """

    manifest: Manifest
    is_in_use: bool
    is_there: bool


def read_classifier(store: Store, manifest: Manifest) -> dict[str, "torch.Tensor"]:
    """Read the weights of a classifier.

    Args:
        manifest: A manifest of `cem/patch_classifier`.

    Returns:
        float tensors by name, on the CPU.

    Raises:
        FileNotFoundError: The weights are not in the store any more.
        DataError: The weights are damaged.
    """
    import safetensors
    import safetensors.torch

    key = f"{manifest.folder}/{WEIGHTS}"
    data = store.read(key)
    try:
        loaded: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise DataError(
            f"{key} is not a safetensors file: {error}. Restore it from a copy, or materialize {CLASSIFIER} again from its "
            "source."
        ) from error
    return loaded


def require_classifier(store: Store) -> Manifest:
    """Return the manifest of the classifier in use.

    Raises:
        FileNotFoundError: There is no classifier; the error says how to get one.
    """
    manifest = classifier_in_use(store)
    if manifest is None:
        raise FileNotFoundError(WAYS)
    return manifest


def load_classifier(store: Store) -> tuple[dict[str, "torch.Tensor"], Manifest]:
    """Read the weights and the manifest of the classifier in use.

    Raises:
        FileNotFoundError: There is no classifier; the error says how to get one.
    """
    manifest = require_classifier(store)
    return read_classifier(store, manifest), manifest


def read_choices(store: Store) -> list[ClassifierChoice]:
    """Read all choices, with the oldest first.

    Raises:
        DataError: An object is not a choice.
    """
    return [_read(store, number) for number in _numbers(store)]


def _numbers(store: Store) -> list[int]:
    stems = [name.removesuffix(".json") for name in store.children(CHOICES) if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def _read(store: Store, number: int) -> ClassifierChoice:
    key = f"{CHOICES}/{number}.json"
    size = store.size(key) or 0
    remedy = "Restore it from a copy, or move it out of the store and choose again (cem-assets classifier use DIGEST)."
    if size > MAX_CHOICE_BYTES:
        raise DataError(f"{key} has {size} bytes; expected a choice of at most {MAX_CHOICE_BYTES}. {remedy}")
    data = store.read(key)
    try:
        return ClassifierChoice.model_validate(json.loads(data))
    except (ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"{key} is not a choice of a classifier: {str(error)[:300]}. {remedy}") from error


def classifier_in_use(store: Store) -> Manifest | None:
    """Return the manifest of the classifier that new scores are made with, which is the one that was chosen last.

    Returns:
        Its manifest. If nobody ever chose one, the manifest of the newest classifier; None if there is no classifier.

    Raises:
        DataError: The last choice cannot be read.
        FileNotFoundError: The chosen classifier has no manifest any more.
    """
    numbers = _numbers(store)
    if not numbers:
        return current_manifest(store, CLASSIFIER)
    digest = _read(store, numbers[-1]).digest
    for manifest in _readable(store):
        if manifest.digest == digest:
            return manifest
    raise FileNotFoundError(
        f"the classifier {digest[:12]} that was chosen for scores has no manifest in {store.url} any more; materialize "
        f"{CLASSIFIER} from the same source again, or choose another one (cem-assets classifier use DIGEST)."
    )


def _readable(store: Store) -> Iterator[Manifest]:
    """Read the manifests of classifiers, with the newest first and without those that were changed after they were written."""
    for number in reversed(manifest_numbers(store, CLASSIFIER)):
        try:
            yield read_manifest(store, CLASSIFIER, number)
        except DataError as error:
            logger.warning("%s", error)


def known_classifiers(store: Store) -> list[KnownClassifier]:
    """List every classifier that the store ever had, with the newest first. Manifests that were changed are left out."""
    try:
        used = classifier_in_use(store)
    except (DataError, FileNotFoundError) as error:  # the remedy is to choose one of those that are listed here
        logger.warning("%s", error)
        used = None
    found: dict[str, KnownClassifier] = {}
    for manifest in _readable(store):
        if manifest.digest not in found:
            is_used = used is not None and used.digest == manifest.digest
            found[manifest.digest] = KnownClassifier(manifest, is_used, _is_there(store, manifest))
    return list(found.values())


def _is_there(store: Store, manifest: Manifest) -> bool:
    return all(store.size(f"{manifest.folder}/{item.name}") == item.num_bytes for item in manifest.objects)


def find_classifier(store: Store, digest: str) -> KnownClassifier:
    """Find a classifier by its digest, or by at least the first 8 digits of it; "newest" finds the one that was made last.

    Raises:
        DataError: The text is not a digest, or several digests begin with it.
        FileNotFoundError: No digest begins with it.
    """
    known = known_classifiers(store)
    wanted = digest.strip().lower()
    if wanted != "newest" and not _PREFIX.fullmatch(wanted):
        raise DataError(f'{digest[:80]!r} is no digest of a classifier; expected "newest" or at least its first 8 hex digits.')
    matching = known[:1] if wanted == "newest" else [item for item in known if item.manifest.digest.startswith(wanted)]
    if not matching:
        names = ", ".join(item.manifest.digest[:12] for item in known[:10]) or "none yet"
        raise FileNotFoundError(f"no classifier in {store.url} has digest {wanted}; there are: {names}.")
    if len(matching) > 1:
        raise DataError(f"the digests of {len(matching)} classifiers begin with {wanted}; give more digits.")
    return matching[0]


def choose_classifier(store: Store, digest: str, by: str, reason: str = "") -> tuple[Manifest, bool]:
    """Make new scores with a classifier from now on. Existing scores stay as they are.

    Args:
        digest: As for `find_classifier`.
        by: Who chooses: a name or a Dagster run.

    Returns:
        Its manifest, and whether another classifier was in use before.

    Raises:
        DataError: The text is not a digest, or several digests begin with it.
        FileNotFoundError: There is no such classifier, or its weights were swept away.
        StoreError: Other processes kept writing choices at the same time.
    """
    found = find_classifier(store, digest)
    if found.is_in_use and _was_chosen(store, found.manifest.digest):
        return found.manifest, False
    if not found.is_there:
        raise FileNotFoundError(
            f"the weights of classifier {found.manifest.digest[:12]} are not in {store.url} any more, because classifiers that "
            f"were never chosen are swept; materialize {CLASSIFIER} from the same source again."
        )
    _record(store, found.manifest.digest, by, reason)
    return found.manifest, not found.is_in_use


def _was_chosen(store: Store, digest: str) -> bool:
    """Tell whether the last choice names this classifier. A classifier may also be in use because nobody ever chose one."""
    numbers = _numbers(store)
    return bool(numbers) and _read(store, numbers[-1]).digest == digest


def keep_in_use(store: Store, manifest: Manifest | None) -> None:
    """Record the classifier in use as a choice if there is none yet, so that a newer classifier does not replace it."""
    if manifest is not None and not _numbers(store):
        _record(store, manifest.digest, "cem_assets", "the first classifier of the store", is_first=True)


def _record(store: Store, digest: str, by: str, reason: str, is_first: bool = False) -> None:
    choice = ClassifierChoice(digest=digest, by=by[:200], reason=reason[:2000], time=datetime.now(UTC).isoformat())
    for _ in range(_RETRIES):
        numbers = _numbers(store)
        if is_first and numbers:
            return
        key = f"{CHOICES}/{numbers[-1] + 1 if numbers else 1}.json"
        if store.create(key, (json.dumps(choice.model_dump(), ensure_ascii=False, indent=1) + "\n").encode()):
            return
    raise StoreError(f"other processes kept writing to {CHOICES} of {store.url} at the same time; choose again.")
