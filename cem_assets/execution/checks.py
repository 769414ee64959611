"""The result of a check, and the check that every asset has: its objects match its manifest."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cem_assets.store.manifests import damaged_objects, require_manifest
from cem_assets.store.store import Store

HASHED_BYTES = 4 << 30
"""All objects of partitions up to this size are hashed. Of larger ones, a sample of objects of about this size is hashed."""


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
        description: The result in words, with the remedy if the check failed.
        facts: The numbers behind the result.
    """

    passed: bool
    description: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def objects_match_manifest(store: Store, asset: str, partition: str) -> Outcome:
    """Compare the size and the sha256 of every object with the manifest."""
    manifest = require_manifest(store, asset, partition)
    names: list[str] | None = None
    if manifest.num_bytes > HASHED_BYTES:
        every = [item.name for item in manifest.objects]
        share = HASHED_BYTES / manifest.num_bytes
        names = random.Random(manifest.digest).sample(every, max(1, int(share * len(every))))
    wrong = damaged_objects(store, manifest, names)
    hashed = len(manifest.objects) if names is None else len(names)
    facts = {"objects": len(manifest.objects), "hashed": hashed, "bytes": manifest.num_bytes, "damaged": len(wrong)}
    if wrong:
        listing = "; ".join(f"{name}: {trouble}" for name, trouble in list(wrong.items())[:5])
        return Outcome(
            False, f"{len(wrong)} objects are damaged ({listing}). Materialize {asset} again: it repairs them.", facts
        )
    return Outcome(True, f"all {len(manifest.objects)} objects are there; {hashed} were hashed and match", facts)
