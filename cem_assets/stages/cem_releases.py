"""Stage `cem/releases`: an immutable, versioned manifest over the filtered partitions, with its dataset card.

A release has one manifest for ever. It names the content folders it is made of, which the maintenance
sweep leaves alone, so later versions of a dataset do not touch it.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cem_assets.cem.dedup import CROSS_DATASET_DISTANCE
from cem_assets.cem.description import DatasetDescription
from cem_assets.cem.release import (
    CrossDatasetDuplicates,
    PixelSums,
    ReleasedDataset,
    check_version,
    dataset_card,
    licences,
    next_version,
)
from cem_assets.imaging.hamming import near_pairs
from cem_assets.stages.common import Progress, StageResult, no_progress
from cem_assets.storage.commits import Commit
from cem_assets.storage.layout import CODE_VERSIONS, FILTERED, RELEASES
from cem_assets.storage.manifests import (
    Inputs,
    Manifest,
    committed_partitions,
    current_manifest,
    require_manifest,
)
from cem_assets.storage.store import Store
from cem_assets.storage.tables import parquet_bytes, read_parts, schema_of

CARD = "README.md"
LISTING = "release.json"
_DUPLICATES_SCHEMA = schema_of(
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("other_dataset", pa.string()),
    ("other_name", pa.string()),
    ("distance", pa.int32()),
)


@dataclass(frozen=True)
class _Member:
    manifest: Manifest
    released: ReleasedDataset


def make_release(
    store: Store,
    version: str = "",
    datasets: Sequence[str] = (),
    run_id: str = "",
    progress: Progress = no_progress,
) -> StageResult:
    """Make a release of everything that is filtered, or of some datasets.

    Args:
        store: Where.
        version: Its name; empty counts up v1, v2, ...
        datasets: Which ones; empty takes every committed partition of `cem/filtered_patches`.
        run_id: Recorded in the manifest.
        progress: Called with (datasets compared, in all).

    Returns:
        The new release; or the newest one, not new, where it holds the very same partitions.

    Raises:
        ValueError: The version is not allowed, or nothing is filtered yet.
        FileExistsError: The version is taken by a release with other contents.
    """
    started = time.monotonic()
    if version:
        check_version(version)
    names = sorted(datasets) or committed_partitions(store, FILTERED)
    members = [_member(require_manifest(store, FILTERED, name)) for name in names]
    if not members:
        raise ValueError(f"there is nothing to release: no partition of {FILTERED} is committed. Materialize one first.")
    upstream = {f"{FILTERED}/{member.manifest.inputs.partition}": member.manifest.digest for member in members}
    known = list_releases(store)
    if known and dict(known[-1].inputs.upstream) == upstream and version in ("", known[-1].inputs.partition):
        return StageResult(known[-1], False, time.monotonic() - started)
    while True:
        taken = [release.inputs.partition for release in known]
        if version in taken:
            raise FileExistsError(f"release {version!r} exists with other contents, and releases never change. Choose another.")
        chosen = version or next_version(taken)
        try:
            manifest = _commit(store, chosen, members, upstream, len(known) + 1, run_id, progress)
        except FileExistsError:  # another run took this version while we worked
            if version:
                raise
            known = list_releases(store)
            continue
        return StageResult(manifest, True, time.monotonic() - started)


def _member(manifest: Manifest) -> _Member:
    details = manifest.details
    return _Member(
        manifest,
        ReleasedDataset(
            description=DatasetDescription.model_validate(details["description"]),
            digest=manifest.digest,
            counts=dict(details["lineage"]),
            num_bytes=sum(item.num_bytes for item in manifest.find(".parquet")),
            pixels=PixelSums(**details["pixels"]),
        ),
    )


def _commit(
    store: Store,
    version: str,
    members: list[_Member],
    upstream: dict[str, str],
    sequence: int,
    run_id: str,
    progress: Progress,
) -> Manifest:
    inputs = Inputs(RELEASES, version, CODE_VERSIONS[RELEASES], {"distance": CROSS_DATASET_DISTANCE}, upstream)
    commit = Commit(store, inputs, run_id)
    duplicates, table = _cross_dataset(store, [member.manifest for member in members], progress)
    commit.write("cross_dataset_duplicates.parquet", parquet_bytes([table], _DUPLICATES_SCHEMA))
    datasets = [member.released for member in members]
    mean, std = sum((item.pixels for item in datasets), PixelSums(0, 0, 0)).norms()
    num_patches = sum(item.counts["filtered_patches"] for item in datasets)
    listing: dict[str, Any] = {
        "version": version,
        "datasets": [_listed(member) for member in members],
        "pixel_mean": mean,
        "pixel_std": std,
        "num_patches": num_patches,
        "licences": licences(datasets),
        "cross_dataset_duplicates": asdict(duplicates),
    }
    commit.write(LISTING, json.dumps(listing, indent=1, ensure_ascii=False).encode())
    commit.write(CARD, dataset_card(version, datasets, duplicates, _judge(members)).encode())
    counts = {
        "datasets": len(datasets),
        "patches": num_patches,
        "released_bytes": sum(item.num_bytes for item in datasets),
        "cross_dataset_pairs": duplicates.num_pairs,
    }
    details = {"sequence": sequence, "pixel_mean": mean, "pixel_std": std, "contents": listing["datasets"]}
    return commit.finish(counts, details, is_final=True)


def _judge(members: list[_Member]) -> str:
    """Say in one sentence how patches were judged informative."""
    thresholds = sorted({str(member.manifest.inputs.parameters["threshold"]) for member in members})
    origins = sorted(
        {f"{c.get('source', '?')}: {c.get('origin', '?')}" for c in (m.manifest.details["classifier"] for m in members)}
    )
    return (
        f"Judged by a ResNet34 patch classifier ({'; '.join(origins)}), informative above probability {', '.join(thresholds)}"
    )


def _listed(member: _Member) -> dict[str, Any]:
    manifest, released = member.manifest, member.released
    return {
        "dataset": released.description.name,
        "folder": manifest.folder,
        "digest": manifest.digest,
        "counts": released.counts,
        "description": json.loads(released.description.model_dump_json()),
        "objects": [asdict(item) for item in manifest.find(".parquet")],
    }


def _cross_dataset(store: Store, members: list[Manifest], progress: Progress) -> tuple[CrossDatasetDuplicates, pa.Table]:
    """Find near copies between the datasets of a release, at the strict distance."""
    hashes, owners, names = [], [], []
    for number, manifest in enumerate(members):
        for table in read_parts(store, manifest, ["name", "dhash"]):
            hashes.append(table["dhash"].to_numpy())
            owners.append(np.full(len(table), number))
            names.append(table["name"].combine_chunks())
    every, owner = np.concatenate(hashes), np.concatenate(owners)
    name = pa.concat_arrays(names)
    rows: list[dict[str, Any]] = []
    involved: set[int] = set()
    for number in range(len(members) - 1):
        mine, later = np.flatnonzero(owner == number), np.flatnonzero(owner > number)
        for query, other, distance in near_pairs(every[mine], every[later], CROSS_DATASET_DISTANCE):
            first, second = int(mine[query]), int(later[other])
            involved |= {number, int(owner[second])}
            rows.append(
                {
                    "dataset": members[number].inputs.partition,
                    "name": name[first].as_py(),
                    "other_dataset": members[int(owner[second])].inputs.partition,
                    "other_name": name[second].as_py(),
                    "distance": distance,
                }
            )
        progress(number + 1, len(members))
    table = pa.Table.from_pylist(rows, schema=_DUPLICATES_SCHEMA)
    return CrossDatasetDuplicates(len(rows), len(involved), CROSS_DATASET_DISTANCE), table


def list_releases(store: Store) -> list[Manifest]:
    """List the releases of a store, oldest first."""
    found = [current_manifest(store, RELEASES, version) for version in committed_partitions(store, RELEASES)]
    return sorted((m for m in found if m is not None), key=lambda m: (m.details["sequence"], m.inputs.partition))
