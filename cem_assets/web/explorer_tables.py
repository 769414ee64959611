"""Finds the tables of a store that can be explored, by stage, and the fates of the patches of each stage.

Manifests never change, so each is read once; which of them is current is looked up again after 20 seconds.
`cem_assets.web.explorer_queries` queries the tables.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from cem_assets.cem.releases.stage import EXCLUDED, list_releases
from cem_assets.cytoimagenet.releases.stage import LISTING, list_cyto_releases
from cem_assets.store.assets import CROPS, DEDUPLICATED, FILTERED, LABEL_TABLE, RAW, SCORES, VOLUMES
from cem_assets.store.manifests import Manifest, ManifestObject, manifest_numbers, read_manifest
from cem_assets.store.store import Store
from cem_assets.web.column_cache import ColumnCache, TableContent, main_table, side_table

CEM_STAGES: dict[str, str] = {"raw": RAW, "deduplicated": DEDUPLICATED, "scores": SCORES, "filtered": FILTERED}
STAGES: dict[str, str] = {
    "raw": "raw patches",
    "deduplicated": "exemplars",
    "scores": "scored patches",
    "filtered": "filtered patches",
    "release": "release",
    "crops": "CytoImageNet crops",
    "cyto_release": "CytoImageNet release",
}
"""Stages as the page names them; `release` and `cyto_release` need a version."""
CYTO_STAGES = frozenset({"crops", "cyto_release"})
_FRESH_SECONDS = 20.0
_READERS = 16
_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class Fates:
    """The fates of the patches of one dataset, as far as later stages show them.

    Attributes:
        duplicates: Dropped patches with their exemplars; None where the stage holds no duplicates or nothing is known.
        dropped: Patches that were not kept, with the reason; None where nothing was filtered yet.
        is_decided: Whether a patch in neither table was kept.
    """

    dataset: str
    duplicates: TableContent | None
    dropped: TableContent | None
    is_decided: bool


class StoreTables:
    """The tables of a store; safe to use from several threads.

    Args:
        cache: Keeps the columns of tables that cannot be queried in place.
    """

    def __init__(self, store: Store, cache: ColumnCache) -> None:
        self.store, self.cache = store, cache
        self._manifests: dict[tuple[str, int], Manifest] = {}
        self._kept: dict[str, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_READERS, "catalogue")

    def _fresh(self, name: str, find: Callable[[], _Kept]) -> _Kept:
        with self._lock:
            known = self._kept.get(name)
        if known is not None and known[0] > time.monotonic() - _FRESH_SECONDS:
            kept: _Kept = known[1]
            return kept
        found = find()
        with self._lock:
            self._kept[name] = (time.monotonic(), found)
        return found

    def manifests(self, asset: str) -> dict[str, Manifest]:
        """Return the current manifest of every partition of an asset, by partition in order of name."""

        def read(partition: str) -> Manifest | None:
            return self._current(f"{asset}/{partition}" if partition else asset)

        def find() -> dict[str, Manifest]:
            names = [name for name in self.store.children(asset) if not name.startswith("_")]
            found = zip(names, self._pool.map(read, names), strict=True)
            return {name: manifest for name, manifest in found if manifest is not None}

        return self._fresh(asset, find)

    def _current(self, folder: str) -> Manifest | None:
        numbers = manifest_numbers(self.store, folder)
        if not numbers:
            return None
        place = (folder, numbers[-1])
        with self._lock:
            known = self._manifests.get(place)
        if known is None:
            known = read_manifest(self.store, *place)
            with self._lock:
                self._manifests[place] = known
        return known

    def manifest(self, stage: str, dataset: str) -> Manifest | None:
        """Return the current manifest of a dataset at one of `CEM_STAGES`, or None."""
        return self.manifests(CEM_STAGES[stage]).get(dataset)

    def volumes_manifest(self, dataset: str) -> Manifest | None:
        """Return the current manifest of the standardized data of a dataset, or None."""
        return self._fresh(f"{VOLUMES}/{dataset}", lambda: self._current(f"{VOLUMES}/{dataset}"))

    def releases(self) -> list[Manifest]:
        """List the releases, oldest first."""
        return self._fresh("releases", lambda: list_releases(self.store))

    def cyto_releases(self) -> list[Manifest]:
        """List the releases of CytoImageNet, oldest first."""
        return self._fresh("cyto releases", lambda: list_cyto_releases(self.store))

    def release(self, version: str) -> Manifest:
        """Return a release.

        Raises:
            FileNotFoundError: There is no such version.
        """
        return _of_version(self.releases(), version, "release")

    def label_sources(self) -> dict[str, Any]:
        """Return the facts of CytoImageNet's sources (licence, citation, title ...), by source; empty without a label table."""
        manifest = self._fresh(LABEL_TABLE, lambda: self._current(LABEL_TABLE))
        return dict(manifest.details.get("sources", {})) if manifest else {}

    def tables(self, stage: str, version: str = "", partition: str = "") -> list[TableContent]:
        """List the tables of a stage.

        Args:
            stage: One of `STAGES`.
            partition: Dataset or label key; empty for all.

        Raises:
            FileNotFoundError: Nothing is committed there.
        """
        if stage == "release":
            release = self.release(version)
            found = [_released(item, item["dataset"]) for item in release.details["contents"]]
        elif stage == "cyto_release":
            release = _of_version(self.cyto_releases(), version, "release of CytoImageNet")
            key = f"{release.folder}/{LISTING}"
            listing = self._fresh(key, lambda: json.loads(self.store.read(key)))
            found = [_released(item, item["key"]) for item in listing["labels"]]
        else:
            asset = CROPS if stage == "crops" else CEM_STAGES[stage]
            has_pixels = stage in ("crops", "filtered")
            found = [main_table(manifest, has_pixels) for manifest in self.manifests(asset).values()]
        chosen = [table for table in found if partition in ("", table.partition)]
        if not chosen:
            what = f" for {partition!r}" if partition else ""
            raise FileNotFoundError(f"nothing is committed{what} at the stage {STAGES[stage]} {version}".rstrip() + ".")
        return chosen

    def files(self, tables: Sequence[TableContent]) -> list[str]:
        """Return the local Parquet files of tables, in order; those that must be copied are copied in parallel."""
        return [path for paths in self._pool.map(self.cache.files, tables) for path in paths]

    def fates(self, stage: str, dataset: str) -> Fates:
        """Return what is known about the patches of a dataset at a stage before `filtered`.

        A later table counts only if it was made from exactly this one.
        """
        chain = list(CEM_STAGES)
        duplicates, dropped = None, None
        before = self.manifest(stage, dataset)
        for earlier, name in itertools.pairwise(chain):
            if chain.index(name) <= chain.index(stage):
                continue
            later = self.manifest(name, dataset)
            if (
                before is None
                or later is None
                or later.inputs.upstream.get(f"{CEM_STAGES[earlier]}/{dataset}") != before.digest
            ):
                return Fates(dataset, duplicates, None, False)
            if name == "deduplicated":
                duplicates = side_table(later, "_duplicates")
            elif name == "filtered":
                dropped = side_table(later, "_dropped")
            before = later
        return Fates(dataset, duplicates, dropped, True)

    def excluded(self, release: Manifest) -> TableContent | None:
        """Return the table of what a release left out, or None."""
        objects = tuple(item for item in release.objects if item.name == EXCLUDED)
        return TableContent(release.inputs.partition, release.folder, objects, False) if objects else None

    def overview(self) -> dict[str, Any]:
        """Describe the whole store for the page's controls: datasets with counts per stage, releases, labels."""
        stages = {name: self.manifests(asset) for name, asset in CEM_STAGES.items()}
        datasets = []
        for name in sorted({dataset for found in stages.values() for dataset in found}):
            described = [found[name] for found in stages.values() if name in found]
            counts = {stage: _num_rows(found[name]) for stage, found in stages.items() if name in found}
            datasets.append({"name": name, "counts": counts, "licence": described[-1].details["description"]["licence"]})
        return {
            "store": self.store.url,
            "datasets": datasets,
            "releases": [_release_row(manifest, "patches") for manifest in self.releases()],
            "has_crops": any(not name.startswith("_") for name in self.store.children(CROPS)),
            "cyto_releases": [_release_row(manifest, "images") for manifest in self.cyto_releases()],
        }

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _num_rows(manifest: Manifest) -> int:
    return int(manifest.counts.get("exemplars", manifest.counts["patches"]))


def _release_row(manifest: Manifest, counted: str) -> dict[str, Any]:
    return {"version": manifest.inputs.partition, "num": int(manifest.counts[counted])}


def _released(item: dict[str, Any], partition: str) -> TableContent:
    return TableContent(partition, item["folder"], tuple(ManifestObject(**described) for described in item["objects"]), True)


def _of_version(releases: Sequence[Manifest], version: str, what: str) -> Manifest:
    for manifest in releases:
        if manifest.inputs.partition == version:
            return manifest
    known = ", ".join(manifest.inputs.partition for manifest in releases) or "none"
    raise FileNotFoundError(f"there is no {what} {version!r}; there is: {known}.")
