"""Patch classifiers in the store: their weights, and which of them new scores are made with.

A choice is one small object; the newest one holds. Making a classifier (`cem_assets.cem.classifier.stage`) chooses
nothing but the store's first one: scores change when somebody says so. Choices are never changed or taken away, so they
say who decided what, when and why.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cem_assets.errors import DataError
from cem_assets.store.assets import CLASSIFIER
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


class ClassifierChoice(BaseModel):
    """One choice.

    Attributes:
        digest: Of the classifier's manifest.
        by: Who chose it, a name or a Dagster run.
        reason: Why, in the chooser's words.
        time: ISO 8601, UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    by: Annotated[str, Field(max_length=200)] = ""
    reason: Annotated[str, Field(max_length=2000)] = ""
    time: Annotated[str, Field(max_length=64)] = ""


@dataclass(frozen=True)
class KnownClassifier:
    """A classifier of the store.

    Attributes:
        manifest: The newest one of its digest.
        is_in_use: Whether new scores are made with it.
        is_there: Whether its weights still lie in the store; old ones that were never chosen are swept.
    """

    manifest: Manifest
    is_in_use: bool
    is_there: bool


def read_classifier(store: Store, manifest: Manifest) -> dict[str, "torch.Tensor"]:
    """Read the weights of a classifier.

    Args:
        manifest: Of `cem/patch_classifier`.

    Returns:
        float tensors by name, on the CPU.

    Raises:
        FileNotFoundError: They are not there any more.
    """
    import safetensors.torch

    loaded: dict[str, torch.Tensor] = safetensors.torch.load(store.read(f"{manifest.folder}/{WEIGHTS}"))
    return loaded


def read_choices(store: Store) -> list[ClassifierChoice]:
    """Read all choices, oldest first.

    Raises:
        DataError: An object is no choice.
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
    try:
        return ClassifierChoice.model_validate(json.loads(store.read(key)))
    except (ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"{key} is no choice of a classifier: {str(error)[:300]}. {remedy}") from error


def classifier_in_use(store: Store) -> Manifest | None:
    """Return the classifier that new scores are made with: the one chosen last.

    Returns:
        Its manifest; where nobody ever chose, that of the newest classifier; None where there is none.

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
    """Read the manifests of classifiers, newest first, without those that were tampered with."""
    for number in reversed(manifest_numbers(store, CLASSIFIER)):
        try:
            yield read_manifest(store, CLASSIFIER, number)
        except ValueError as error:
            logger.warning("%s", error)


def known_classifiers(store: Store) -> list[KnownClassifier]:
    """List every classifier the store ever had, newest first; manifests that were tampered with are left out."""
    try:
        used = classifier_in_use(store)
    except (ValueError, FileNotFoundError) as error:  # the way out of this is to choose one of those listed here
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
    """Find a classifier by its digest or the first 8 or more digits of it; "newest" is the one made last.

    Raises:
        DataError: The text is no digest, or several begin so.
        FileNotFoundError: None begins so.
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
        raise DataError(f"{len(matching)} classifiers begin with {wanted}; give more digits.")
    return matching[0]


def choose_classifier(store: Store, digest: str, by: str, reason: str = "") -> tuple[Manifest, bool]:
    """Make new scores with a classifier from now on; scores that are there stay as they are.

    Args:
        digest: As for `find_classifier`.
        by: Who chooses.
        reason: Why.

    Returns:
        Its manifest, and whether anything changed: choosing the one in use records nothing.

    Raises:
        DataError: The digest is ambiguous or none.
        FileNotFoundError: There is no such classifier, or its weights were swept away.
        OSError: Others choose all the time.
    """
    found = find_classifier(store, digest)
    if found.is_in_use and _was_chosen(store, found.manifest.digest):
        return found.manifest, False
    if not found.is_there:
        raise FileNotFoundError(
            f"the weights of classifier {found.manifest.digest[:12]} are not in {store.url} any more, as those that were never "
            f"chosen are swept; materialize {CLASSIFIER} from the same source again."
        )
    _record(store, found.manifest.digest, by, reason)
    return found.manifest, not found.is_in_use


def _was_chosen(store: Store, digest: str) -> bool:
    """Tell whether the last choice is of this classifier; not so where it is in use because nobody ever chose."""
    numbers = _numbers(store)
    return bool(numbers) and _read(store, numbers[-1]).digest == digest


def keep_in_use(store: Store, manifest: Manifest | None) -> None:
    """Write down what is in use, where nobody chose yet: what is made later must not take its place by being newer."""
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
    raise OSError(f"others write to {CHOICES} of {store.url} all the time; choose again.")
