"""Listing many partitions with few requests: what each has committed, and which folders of the inbox are complete.

Listing every partition by itself takes one request for each. Listing a whole asset takes one request for 1,000 objects, which
is less as long as partitions are small. Large partitions are listed by themselves, several at a time.
`cem_assets.store.manifest_facts` reads the manifests that a listing finds.
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
"""A folder with at least so many objects is listed by itself. A listing of 1,000 objects covers at least ten smaller ones."""
_NUM_ALONE = 64
"""After a large folder, so many folders are listed by themselves before a common listing is tried again."""

Looked = TypeVar("Looked")


@dataclass(frozen=True)
class PartitionListing:
    """What a listing of a partition's folder tells about it.

    Attributes:
        name: The partition key.
        newest: The manifest with the highest number, or None where nothing is committed.
        contents: The `listing_digest` over the names and sizes in each content folder, by the folder's name.
    """

    name: str
    newest: StoredObject | None
    contents: Mapping[str, str]


def place(name: str) -> str:
    """Return the text that folders are sorted by. The order is that of object keys, in which "a-b/" comes before "a/"."""
    return f"{name}/"


def listing_digest(objects: Iterable[tuple[str, int]]) -> str:
    """Return a digest of 32 hexadecimal digits over names and sizes, which must be in order of name."""
    digest = hashlib.sha256()
    for name, num_bytes in objects:
        digest.update(f"{name}\t{num_bytes}\n".encode())
    return digest.hexdigest()[:32]


def list_partitions(store: Store, asset: str, after: str = "") -> Iterator[PartitionListing]:
    """List the partitions of an asset, in order of `place`; only as many are listed as the caller takes.

    Args:
        after: The listing begins behind this partition; empty begins at the first.
    """

    def alone(name: str) -> PartitionListing:
        return list_partition(store, asset, name)

    yield from _looked_at(store, asset, after, lambda name, objects: _listed(asset, name, objects), alone)


def list_partition(store: Store, asset: str, name: str = "") -> PartitionListing:
    """List one partition; the name is empty for an asset without partitions."""
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
    """Find out which folders hold a file that marks them as complete, in order of `place`.

    Args:
        folder: The folder that holds them.
        marker: The name of the file, which is directly in each complete folder.
        after: The listing begins behind this folder; empty begins at the first.

    Yields:
        The name of a folder and its marker, or None where it has none.
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
    """Look at the folders in a folder: at many in one listing, or each by itself, whichever takes fewer requests.

    Args:
        among: Called with a folder's name and its objects from a common listing.
        alone: Called with a folder's name; makes its own requests.
    """
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
            # This is the end, or a large folder. It and some behind it are listed by themselves before the next common listing.
            names = list(islice(store.folders(folder, after), _NUM_ALONE))
            if not names:
                return
            for name, looked in zip(names, pool.map(alone, names), strict=True):
                if not name.startswith("_"):
                    yield looked
            after = names[-1]


def _small_folders(store: Store, folder: str, after: str) -> Iterator[tuple[str, list[StoredObject]]]:
    """List folders with all their objects, up to the first large one; objects beside the folders are ignored."""
    base = len(folder) + 1
    for name, items in groupby(store.walk(folder, after), key=lambda item: item.key[base:].partition("/")[0]):
        objects = list(islice(items, LARGE_FOLDER))
        if len(objects) >= LARGE_FOLDER:
            return
        if objects[0].key != f"{folder}/{name}":
            yield name, objects
