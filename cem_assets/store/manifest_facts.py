"""The contents of manifests without their lists of objects: read in parallel, checked once, and kept in memory.

Manifests never change, so a process keeps what it has read and checked, up to a bound, by key, size, entity tag and time of
the file. A manifest that somebody altered differs in one of these, and is read again.
"""

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cachetools import LRUCache

from cem_assets.errors import DataError
from cem_assets.store.manifests import MANIFESTS, Inputs, Manifest, canonical_json, read_manifest
from cem_assets.store.partition_listing import NUM_THREADS, PartitionListing, list_partition, list_partitions, listing_digest
from cem_assets.store.store import Store, StoredObject

MAX_BYTES = 64 << 20
"""Bound of the JSON that is kept in memory: about 60,000 manifests."""
_MAX_DETAIL_BYTES = 4 << 10
_BATCH = 256
logger = logging.getLogger(__name__)

_Key = tuple[str, str, int, str, float]


@dataclass(frozen=True)
class ManifestFacts:
    """A manifest without its objects.

    Attributes:
        digest: The digest of the manifest.
        counts: Row counts and other whole numbers.
        details: What the stage recorded. An entry with more than 4 KiB of JSON keeps only its keys, or is None.
        run: Run id, times and host.
        listing: `listing_digest` over the manifest's objects.
    """

    inputs: Inputs
    digest: str
    counts: Mapping[str, int]
    details: Mapping[str, Any]
    run: Mapping[str, Any]
    listing: str

    @property
    def folder(self) -> str:
        """The content folder in the store."""
        return f"{self.inputs.folder}/{self.inputs.content}"


_texts: LRUCache[_Key, bytes] = LRUCache(MAX_BYTES, getsizeof=len)
"""Facts as JSON, by the manifest's file."""
_lock = threading.Lock()


def facts_of(store: Store, newest: StoredObject) -> ManifestFacts:
    """Read a manifest that a listing found, or take it from memory.

    Args:
        newest: The manifest's file.

    Raises:
        DataError: The file was damaged or changed after it was written, or has a later format.
        FileNotFoundError: The file was deleted meanwhile.
    """
    key = (store.url, newest.key, newest.num_bytes, newest.tag, newest.modified)
    with _lock:
        text = _texts.get(key)
    if text is None:
        folder, _, name = newest.key.rpartition(f"/{MANIFESTS}/")
        text = canonical_json(_body(read_manifest(store, folder, int(name.removesuffix(".json")))))
        if len(text) <= _texts.maxsize:
            with _lock:
                _texts[key] = text
    body = json.loads(text)
    return ManifestFacts(**{**body, "inputs": Inputs(**body["inputs"])})


def _body(manifest: Manifest) -> dict[str, Any]:
    details = dict(manifest.details)
    for name, value in manifest.details.items():
        if len(canonical_json(value)) > _MAX_DETAIL_BYTES:
            details[name] = dict.fromkeys(value) if isinstance(value, Mapping) else None
    return {
        "inputs": vars(manifest.inputs),
        "digest": manifest.digest,
        "counts": dict(manifest.counts),
        "details": details,
        "run": dict(manifest.run),
        "listing": listing_digest((item.name, item.num_bytes) for item in manifest.objects),
    }


def facts_of_all(store: Store, listings: Sequence[PartitionListing]) -> list[ManifestFacts | None]:
    """Read the newest manifests of several partitions, in parallel where the store is not local.

    Returns:
        One entry for each listing, in order: None where nothing is committed. A manifest that is damaged or was altered is
        None too, with a warning in the log, so that it does not affect the other partitions.
    """

    def read(listing: PartitionListing) -> ManifestFacts | None:
        try:
            return None if listing.newest is None else facts_of(store, listing.newest)
        except (DataError, FileNotFoundError) as error:
            logger.warning("%s", error)
            return None

    if store.is_local or len(listings) < 2:
        return [read(listing) for listing in listings]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(read, listings))


def committed_facts(store: Store, asset: str, after: str = "") -> Iterator[tuple[PartitionListing, ManifestFacts | None]]:
    """List the partitions of an asset with their current manifests, in order of `place`; see `facts_of_all`."""
    listings = list_partitions(store, asset, after)
    while batch := list(islice(listings, _BATCH)):
        yield from zip(batch, facts_of_all(store, batch), strict=True)


def current_facts(store: Store, asset: str) -> dict[str, ManifestFacts]:
    """Read the current manifests of all partitions of an asset, in order of name.

    Raises:
        DataError: A manifest was damaged or changed after it was written, or has a later format.
    """
    found: dict[str, ManifestFacts] = {}
    for listing, facts in committed_facts(store, asset):
        if listing.newest is not None:
            found[listing.name] = facts or facts_of(store, listing.newest)
    return {name: found[name] for name in sorted(found)}


def current_fact(store: Store, asset: str, partition: str = "") -> tuple[PartitionListing, ManifestFacts | None]:
    """List one partition and read its current manifest; see `facts_of_all`."""
    listing = list_partition(store, asset, partition)
    return listing, facts_of_all(store, [listing])[0]


def is_whole(store: Store, listing: PartitionListing, facts: ManifestFacts) -> bool:
    """Tell whether the store has every object of a partition's newest manifest, with the right size."""
    if listing.contents.get(facts.inputs.content) == facts.listing:
        return True
    assert listing.newest is not None
    # An object is missing, or the folder holds others besides; only the whole manifest says which.
    folder, _, name = listing.newest.key.rpartition(f"/{MANIFESTS}/")
    manifest = read_manifest(store, folder, int(name.removesuffix(".json")))
    present = {item.key[len(manifest.folder) + 1 :]: item.num_bytes for item in store.walk(manifest.folder)}
    return all(present.get(item.name) == item.num_bytes for item in manifest.objects)
