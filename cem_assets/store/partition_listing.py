"""Listing many partitions with few requests: what each has committed, and which folders of the inbox are complete.

Asking for every partition by itself costs a request each. A listing of the whole asset costs one request for 1,000
objects instead, so it is used as long as partitions are small; large ones are listed by themselves, several at a time.
What a manifest says is `cem_assets.store.manifest_facts`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

from cem_assets.store.manifests import MANIFESTS
from cem_assets.store.store import Store, StoredObject

NUM_THREADS = 16
LARGE_FOLDER = 100
"""Objects from which a folder is looked at by itself; below, a listing of 1,000 covers ten and more."""
_NUM_ALONE = 64

Looked = TypeVar("Looked")


@dataclass(frozen=True)
class PartitionListing:
    """What the objects of a partition's folder show.

    Attributes:
        name: Partition key.
        newest: Its manifest with the highest number, or None where nothing is committed.
        contents: By content folder, `listing_digest` over the names and sizes in it.
    """

    name: str
    newest: StoredObject | None
    contents: Mapping[str, str]


def place(name: str) -> str:
    """Return what folders are ordered by: as object keys are, where "a-b/" comes before "a/"."""
    return f"{name}/"


def listing_digest(objects: Iterable[tuple[str, int]]) -> str:
    """Return 32 hex digits over names and sizes, in order of name."""
    digest = hashlib.sha256()
    for name, num_bytes in objects:
        digest.update(f"{name}\t{num_bytes}\n".encode())
    return digest.hexdigest()[:32]


def list_partitions(store: Store, asset: str, after: str = "") -> Iterator[PartitionListing]:
    """List the partitions of an asset, in order of `place`, as far as the caller wants to go.

    Args:
        asset: Such as "cem/raw_patches".
        after: Begin behind this partition.
    """

    def alone(name: str) -> PartitionListing:
        return list_partition(store, asset, name)

    yield from _looked_at(store, asset, after, lambda name, objects: _listed(asset, name, objects), alone)


def list_partition(store: Store, asset: str, name: str = "") -> PartitionListing:
    """List one partition; an asset without partitions has the empty one."""
    return _listed(asset, name, store.walk(f"{asset}/{name}" if name else asset))


def _listed(asset: str, name: str, objects: Iterable[StoredObject]) -> PartitionListing:
    base = len(f"{asset}/{name}/" if name else f"{asset}/")
    newest, number = None, 0
    contents: dict[str, str] = {}

    def entries(items: Iterable[StoredObject], skip: int) -> Iterator[tuple[str, int]]:
        return ((item.key[skip:], item.num_bytes) for item in items)

    for folder, items in groupby(objects, key=lambda item: item.key[base:].partition("/")[0]):
        if folder == MANIFESTS:
            for item in items:
                stem = item.key.rsplit("/", 1)[-1].removesuffix(".json")
                if item.key.endswith(".json") and stem.isascii() and stem.isdigit() and int(stem) > number:
                    newest, number = item, int(stem)
        elif not folder.startswith("_"):
            contents[folder] = listing_digest(entries(items, base + len(folder) + 1))
    return PartitionListing(name, newest, contents)


def marked_folders(store: Store, folder: str, marker: str, after: str = "") -> Iterator[tuple[str, StoredObject | None]]:
    """Look which folders hold a file that marks them as complete, in order of `place`.

    Args:
        folder: That holds the folders.
        marker: Name of the file, directly in them.
        after: Begin behind this folder.

    Yields:
        Name and the file, or None where it is not there.
    """

    def among(name: str, objects: Iterable[StoredObject]) -> tuple[str, StoredObject | None]:
        wanted = f"{folder}/{name}/{marker}"
        return name, next((item for item in objects if item.key == wanted), None)

    def alone(name: str) -> tuple[str, StoredObject | None]:
        return name, store.stat(f"{folder}/{name}/{marker}")

    yield from _looked_at(store, folder, after, among, alone)


def _looked_at(
    store: Store,
    folder: str,
    after: str,
    among: Callable[[str, Iterable[StoredObject]], Looked],
    alone: Callable[[str], Looked],
) -> Iterator[Looked]:
    """Look at the folders of a folder, at many by one listing or at several by themselves, whichever takes fewer requests."""
    if not store.is_s3:
        for name in sorted(store.folders(folder), key=place):
            if (not after or place(name) > place(after)) and not name.startswith("_"):
                yield alone(name)
        return
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        while True:
            for name, objects in _small_folders(store, folder, after):
                after = name
                if not name.startswith("_"):
                    yield among(name, objects)
            # At the end, or at a large folder: it and some behind it by themselves, then a listing is tried again.
            names = list(islice(store.folders(folder, after), _NUM_ALONE))
            if not names:
                return
            for name, looked in zip(names, pool.map(alone, names), strict=True):
                if not name.startswith("_"):
                    yield looked
            after = names[-1]


def _small_folders(store: Store, folder: str, after: str) -> Iterator[tuple[str, list[StoredObject]]]:
    """List folders with all that is in them, up to the first that is large; objects beside them are passed over."""
    base = len(folder) + 1
    for name, items in groupby(store.walk(folder, after), key=lambda item: item.key[base:].partition("/")[0]):
        objects = list(islice(items, LARGE_FOLDER))
        if len(objects) >= LARGE_FOLDER:
            return
        if objects[0].key != f"{folder}/{name}":
            yield name, objects
