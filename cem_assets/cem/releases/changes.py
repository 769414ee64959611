"""The differences between two releases: datasets and patches that were added or removed, and the reasons.

The reasons are read from the manifests behind each released partition, which are never swept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from cem_assets.store.assets import CLASSIFIER, RELEASES, SCORES, STAGES, VOLUMES
from cem_assets.store.manifests import Manifest, find_manifest, require_manifest
from cem_assets.store.store import Store


@dataclass(frozen=True)
class DatasetChange:
    """How one dataset differs between two releases.

    Attributes:
        kind: "added", "removed" or "changed".
        reasons: The reasons in words; there are none for datasets that were added or removed.
        added, removed: Names of the patches that were added or removed, in order.
    """

    dataset: str
    kind: str
    reasons: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def compare_releases(store: Store, first: str, second: str) -> list[DatasetChange]:
    """Compare two releases, of which `first` is the older one.

    Returns:
        The datasets that differ, in order of name.

    Raises:
        FileNotFoundError: There is no such release.
    """
    before, after = (_contents(require_manifest(store, RELEASES, version)) for version in (first, second))
    changes = []
    for dataset in sorted(before.keys() | after.keys()):
        old, new = before.get(dataset), after.get(dataset)
        # If one of the releases left patches out of the same partition, only the shards differ.
        if old and new and (old["digest"], old["objects"]) == (new["digest"], new["objects"]):
            continue
        old_names, new_names = _names(store, old), _names(store, new)
        kind = "changed" if old and new else "added" if new else "removed"
        reasons = (*_reasons(store, dataset, old["digest"], new["digest"]), *_left_out(old, new)) if old and new else ()
        changes.append(
            DatasetChange(
                dataset,
                kind,
                reasons,
                tuple(sorted(new_names - old_names)),
                tuple(sorted(old_names - new_names)),
            )
        )
    return changes


def _contents(release: Manifest) -> dict[str, Mapping[str, Any]]:
    return {item["dataset"]: item for item in release.details["contents"]}


def _names(store: Store, item: Mapping[str, Any] | None) -> set[str]:
    names: set[str] = set()
    if item is None:
        return names
    for entry in item["objects"]:
        with store.open(f"{item['folder']}/{entry['name']}") as handle:
            names |= set(pq.read_table(handle, columns=["name"])["name"].to_pylist())
    return names


def _reasons(store: Store, dataset: str, old: str, new: str) -> tuple[str, ...]:
    """Follow the manifests of both partitions back to the inbox, and say in words what differs on the way."""
    found: list[str] = []
    if old == new:
        return ()
    chain = [*reversed(STAGES.values())]
    for asset, upstream in zip(chain, [*chain[1:], ""], strict=True):
        before, after = (find_manifest(store, asset, dataset, digest) for digest in (old, new))
        stage = asset.removeprefix("cem/")
        for name in sorted({*before.inputs.parameters, *after.inputs.parameters}):
            values = before.inputs.parameters.get(name), after.inputs.parameters.get(name)
            if values[0] != values[1]:
                found.append(f"{stage}: {name} {values[0]} became {values[1]}")
        if before.inputs.code_version != after.inputs.code_version:
            found.append(f"{stage}: method version {before.inputs.code_version} became {after.inputs.code_version}")
        if asset == SCORES and before.inputs.upstream[CLASSIFIER] != after.inputs.upstream[CLASSIFIER]:
            found.append(f"{stage}: another patch classifier")
        if asset == VOLUMES:
            if before.inputs.upstream != after.inputs.upstream:
                found.append(f"{stage}: the files in the inbox changed")
            break
        key = f"{upstream}/{dataset}"
        old, new = before.inputs.upstream[key], after.inputs.upstream[key]
        if old == new:
            break
    return tuple(reversed(found))


def _left_out(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Say how many patches either release leaves out because they show test images, if it leaves out any."""
    before, after = (item["counts"].get("excluded_patches", 0) for item in (old, new))
    if not before and not after:
        return ()
    return (f"releases: patches left out because they show test images of benchmarks, {before:,} became {after:,}",)
