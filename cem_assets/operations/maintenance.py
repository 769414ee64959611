"""Maintenance of the store: deleting content that nothing names any more, and measuring the store by prefix.

What stays:

- the content of every current manifest, and the content that it was made from, because pixels are found through that
- the content that releases name
- weights that became champion, and patch classifiers that were ever chosen
- everything of a run that is not finished, and the state of training runs
- everything younger than a day

Manifests are never deleted, because they are the history.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

from cem_assets.analyses.results import ANALYSES
from cem_assets.benchmarks.leaderboard.promotion import PromotionRecord, promotion_records
from cem_assets.cem.classifier.stored import read_choices
from cem_assets.cem.releases.stage import list_releases
from cem_assets.cytoimagenet.releases.stage import list_cyto_releases
from cem_assets.errors import DataError
from cem_assets.store.assets import (
    BENCHMARK_DATA,
    BENCHMARK_FEATURES,
    BENCHMARK_SCORES,
    CLASS_MAPS,
    CLASSIFIER,
    COMPARISONS,
    CONTAMINATION,
    CROPS,
    LABEL_TABLE,
    LEADERBOARD,
    PROMOTIONS,
    SOURCE_METADATA,
    STAGES,
    SUBVOLUMES,
    TEST_IMAGES,
    WEIGHTS,
)
from cem_assets.store.manifests import Manifest, committed_partitions, find_manifest, manifest_numbers, read_manifest
from cem_assets.store.store import Store, StoredObject

MIN_AGE_HOURS = 24.0


@dataclass(frozen=True)
class Swept:
    """What a sweep did.

    Attributes:
        num_objects, num_bytes: How much was deleted.
        folders: The content folders that were deleted, in order.
        live: Partitions that were left alone because a run may be writing them.
    """

    num_objects: int
    num_bytes: int
    folders: tuple[str, ...]
    live: tuple[str, ...]


@dataclass(frozen=True)
class PrefixSize:
    """How much the store has under a prefix."""

    prefix: str
    num_objects: int
    num_bytes: int


def sweep(store: Store, live: Collection[str] = (), min_age_hours: float = MIN_AGE_HOURS) -> Swept:
    """Delete content that neither a current manifest nor a release names.

    A folder is deleted as a whole or not at all, and its youngest object decides. So the objects of a killed run stay for a
    day, in which another run can continue with them.

    Args:
        live: Partition keys of unfinished runs; "" stands for assets without partitions.
        min_age_hours: Folders with anything younger than this stay.
    """
    releases = [*list_releases(store), *list_cyto_releases(store)]
    released = {str(item["folder"]) for release in releases for item in release.details["contents"]}
    released |= {folder for record in promotion_records(store) if record.is_promoted for folder in _weights_of(store, record)}
    limit = time.time() - 3600 * min_age_hours
    num_objects = num_bytes = 0
    folders: list[str] = []
    spared: set[str] = set()
    for asset, partition in _partitions(store):
        base = f"{asset}/{partition}" if partition else asset
        named = _named(store, asset, partition) | released
        for content in store.folders(base):
            folder = f"{base}/{content}"
            if content.startswith("_") or folder in named:
                continue
            if _key_of(asset, partition) in live:
                spared.add(partition or asset)
                continue
            objects = list(store.walk(folder))
            if not objects or max(item.modified for item in objects) > limit:
                continue
            store.delete(item.key for item in objects)
            folders.append(folder)
            num_objects += len(objects)
            num_bytes += sum(item.num_bytes for item in objects)
    return Swept(num_objects, num_bytes, tuple(sorted(folders)), tuple(sorted(spared)))


def _key_of(asset: str, partition: str) -> str:
    """Return the partition key that runs of an asset's partition have, such as "benchmark|weights" for scores and features."""
    if asset in ANALYSES.values():
        return partition.split("/", maxsplit=1)[0]
    if asset == COMPARISONS:
        return ""
    if asset not in (BENCHMARK_FEATURES, BENCHMARK_SCORES):
        return partition
    return "|".join(partition.split("/")[:2])


def _weights_of(store: Store, record: PromotionRecord) -> Iterator[str]:
    with suppress(FileNotFoundError):
        yield find_manifest(store, WEIGHTS, record.weights, record.digest).folder


def _partitions(store: Store) -> Iterator[tuple[str, str]]:
    for asset in (*STAGES.values(), SUBVOLUMES, SOURCE_METADATA, CROPS, WEIGHTS, BENCHMARK_DATA, CONTAMINATION, PROMOTIONS):
        # All folders, not only committed partitions: a run that was killed before its first manifest leaves content, too.
        for partition in store.folders(asset):
            yield asset, partition
    for asset in (BENCHMARK_FEATURES, BENCHMARK_SCORES):
        for benchmark in store.folders(asset):
            for weights in store.folders(f"{asset}/{benchmark}"):
                for run in store.folders(f"{asset}/{benchmark}/{weights}"):
                    if not run.startswith("_"):
                        yield asset, f"{benchmark}/{weights}/{run}"
    for asset in (*ANALYSES.values(), COMPARISONS):
        for group in store.folders(asset):
            for setting in store.folders(f"{asset}/{group}"):
                yield asset, f"{group}/{setting}"
    for asset in (CLASSIFIER, LABEL_TABLE, TEST_IMAGES, CLASS_MAPS, LEADERBOARD):
        yield asset, ""


def _named(store: Store, asset: str, partition: str) -> set[str]:
    """List the content folders of a partition that its current manifest, or one of an asset made from it, names."""
    base = f"{asset}/{partition}" if partition else asset
    numbers = manifest_numbers(store, base)
    if not numbers:
        return set()
    manifests = {number: _readable(store, base, number) for number in numbers}
    newest = manifests[numbers[-1]]
    if newest is None:  # the manifest was changed, so nothing is deleted until it was replaced
        return {f"{base}/{content}" for content in store.folders(base)}
    wanted = _digests_in_use(store, asset, partition)
    return {m.folder for m in manifests.values() if m is not None and (m is newest or m.digest in wanted)}


def _digests_in_use(store: Store, asset: str, partition: str) -> set[str]:
    """List the digests of an asset's partition that current manifests of later assets were made from."""
    assets = list(STAGES.values())
    if asset not in (*assets, CLASSIFIER):
        return set()  # assets of CytoImageNet hold all that they need, and read nothing from older content
    found: set[str] = set()
    if asset == CLASSIFIER:
        users = [(STAGES["scores"], name) for name in committed_partitions(store, STAGES["scores"])]
        found |= {choice.digest for choice in read_choices(store)}
    else:
        users = [(later, partition) for later in assets[assets.index(asset) + 1 :]]
    for user, name in users:
        numbers = manifest_numbers(store, f"{user}/{name}")
        manifest = _readable(store, f"{user}/{name}", numbers[-1]) if numbers else None
        if manifest is not None:
            found |= set(manifest.inputs.upstream.values()) | {str(manifest.details.get("volumes_digest", ""))}
    return found


def _readable(store: Store, folder: str, number: int) -> Manifest | None:
    try:
        return read_manifest(store, folder, number)
    except DataError:
        return None


def measure(store: Store) -> list[PrefixSize]:
    """Count objects and bytes of each asset, of the inbox and of the quarantine, by one listing of the whole store.

    Returns:
        The sizes in order of prefix.
    """
    sizes: dict[str, list[int]] = {}
    for top in store.folders(""):
        for item in store.walk(top):
            entry = sizes.setdefault(_prefix(item), [0, 0])
            entry[0] += 1
            entry[1] += item.num_bytes
    return [PrefixSize(prefix, count, size) for prefix, (count, size) in sorted(sizes.items())]


def _prefix(item: StoredObject) -> str:
    parts = item.key.split("/")
    has_assets = parts[0] in ("cem", "cytoimagenet", "pretraining", "benchmarks", "analyses")
    return "/".join(parts[:2]) if has_assets and len(parts) >= 3 else parts[0]
