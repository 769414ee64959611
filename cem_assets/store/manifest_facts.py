"""What manifests say, without their objects: read in parallel, checked once, and remembered.

Manifests never change, so what was read and checked is remembered by key, size, tag and time of the file: one that was
tampered with is another file. The memory is one of the process, and bounded.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cem_assets.store.manifests import MANIFESTS, Inputs, Manifest, canonical_json, read_manifest
from cem_assets.store.partition_listing import NUM_THREADS, PartitionListing, list_partition, list_partitions, listing_digest
from cem_assets.store.store import Store, StoredObject

MAX_BYTES = 64 << 20
"""Of all that is remembered, as JSON: about 60,000 manifests."""
_MAX_DETAIL_BYTES = 4 << 10
_BATCH = 256
logger = logging.getLogger(__name__)

_Key = tuple[str, str, int, str, float]


@dataclass(frozen=True)
class ManifestFacts:
    """A manifest without its objects.

    Attributes:
        inputs: What it was made from.
        digest: Of the manifest.
        counts: Row counts and other whole numbers.
        details: What the stage recorded; of entries with more than 4 KiB of JSON only the keys, or nothing.
        run: Run id, times and host.
        listing: `listing_digest` over its objects.
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


class _Memory:
    """Facts as JSON by file, the ones used last; shared by all threads of a process."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._texts: OrderedDict[_Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> bytes | None:
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def put(self, key: _Key, text: bytes) -> None:
        with self._lock:
            self._num_bytes += len(text) - len(self._texts.pop(key, b""))
            self._texts[key] = text
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= len(self._texts.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._texts)


_memory = _Memory(MAX_BYTES)


def facts_of(store: Store, newest: StoredObject) -> ManifestFacts:
    """Read a manifest that a listing showed, or remember it.

    Args:
        newest: The manifest's file.

    Raises:
        ValueError: The file was damaged or changed after it was written, or is of a later format.
        FileNotFoundError: It is gone.
    """
    key = (store.url, newest.key, newest.num_bytes, newest.tag, newest.modified)
    text = _memory.get(key)
    if text is None:
        folder, _, name = newest.key.rpartition(f"/{MANIFESTS}/")
        text = canonical_json(_body(read_manifest(store, folder, int(name.removesuffix(".json")))))
        _memory.put(key, text)
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
    """Read the newest manifests of several partitions, at the same time where the store is far.

    Returns:
        In the order of the listings; None where nothing is committed, and for a manifest that is damaged or was tampered
        with, which is told in the log: the others do not suffer from it.
    """

    def read(listing: PartitionListing) -> ManifestFacts | None:
        try:
            return None if listing.newest is None else facts_of(store, listing.newest)
        except (ValueError, FileNotFoundError) as error:
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
        ValueError: A manifest was changed after it was written, or is of a later format.
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
    """Tell whether every object that a partition's newest manifest lists is there with its size."""
    if listing.contents.get(facts.inputs.content) == facts.listing:
        return True
    assert listing.newest is not None
    # Something is gone, or lies there besides: only the manifest itself can tell.
    folder, _, name = listing.newest.key.rpartition(f"/{MANIFESTS}/")
    manifest = read_manifest(store, folder, int(name.removesuffix(".json")))
    present = {item.key[len(manifest.folder) + 1 :]: item.num_bytes for item in store.walk(manifest.folder)}
    return all(present.get(item.name) == item.num_bytes for item in manifest.objects)
