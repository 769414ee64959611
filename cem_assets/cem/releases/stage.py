"""Stage `cem/releases`: an immutable version of all filtered patches, with its dataset card.

A release has one manifest, which never changes. It names the content folders that the release is made of. The maintenance
sweep keeps these folders, so later versions of a dataset do not change the release.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.patches.dedup import CROSS_DATASET_DISTANCE
from cem_assets.cem.pixel_sums import PixelSums
from cem_assets.cem.releases.card import CrossDatasetDuplicates, ReleasedDataset, dataset_card, licences
from cem_assets.cem.releases.contamination_reports import contaminated_patches, contamination_reports
from cem_assets.cem.releases.reduced_shards import patch_hashes, write_without
from cem_assets.errors import DataError
from cem_assets.execution.local import default_num_workers
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.imaging.near_pairs import pairs_between_groups
from cem_assets.store.assets import CODE_VERSIONS, CONTAMINATION, FILTERED, RELEASES
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import (
    Inputs,
    Manifest,
    ManifestObject,
    canonical_json,
    committed_partitions,
    current_manifest,
    require_manifest,
)
from cem_assets.store.parquet import parquet_bytes, read_parts, schema_of
from cem_assets.store.store import Store
from cem_assets.store.versions import check_version, next_version

CARD = "README.md"
LISTING = "release.json"
EXCLUDED = "_excluded/part-00000.parquet"
_IS_EXCLUDING = "exclude_contaminated"
"""Key in the details of a release that leaves out contaminated patches, even if there were none, so that the next release does
the same."""
_DUPLICATES_SCHEMA = schema_of(
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("other_dataset", pa.string()),
    ("other_name", pa.string()),
    ("distance", pa.int32()),
)
_EXCLUDED_SCHEMA = schema_of(("dataset", pa.string()), ("name", pa.string()), ("reason", pa.string()))


@dataclass(frozen=True)
class _Member:
    """A dataset of a release.

    Attributes:
        manifest: Its manifest of filtered patches.
        folder: Folder of its shards in the store.
        objects: Its shards.
        excluded: For each patch that is left out, the benchmarks whose test images it shows.
    """

    manifest: Manifest
    released: ReleasedDataset
    folder: str
    objects: tuple[ManifestObject, ...]
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def make_release(
    store: Store,
    version: str = "",
    datasets: Sequence[str] = (),
    run_id: str = "",
    progress: Progress = no_progress,
    exclude_contaminated: bool | None = None,
) -> StageResult:
    """Make a release of the filtered patches of all datasets, or of some datasets.

    A release that leaves patches out is made from the same partitions as one with all patches. So the next release is not due
    until a partition changes (`cem_assets.cem.reconciliation.is_release_due`), and by default it leaves patches out too.

    Args:
        version: Name of the release; if it is empty, the next of v1, v2, ... is taken.
        datasets: The datasets to release; if there are none, every committed partition of `cem/filtered_patches` is released.
        exclude_contaminated: Whether to leave out patches that show test images of benchmarks, according to the reports of
            `benchmarks/contamination`; None does the same as the newest release.

    Returns:
        The new release. If the newest release is made from the same partitions and leaves out the same patches, that release.

    Raises:
        DataError: The version is not allowed, there are no filtered patches, or patches should be left out but no release was
            compared with test images yet.
        FileExistsError: There is a release with this version and other contents.
    """
    started = time.monotonic()
    if version:
        check_version(version)
    names = sorted(datasets) or committed_partitions(store, FILTERED)
    members = [_member(require_manifest(store, FILTERED, name)) for name in names]
    if not members:
        raise DataError(f"there is nothing to release: no partition of {FILTERED} is committed. Materialize one first.")
    upstream = {f"{FILTERED}/{member.manifest.inputs.partition}": member.manifest.digest for member in members}
    known = list_releases(store)
    newest = known[-1] if known else None
    if exclude_contaminated is None:
        exclude_contaminated = newest is not None and bool(newest.details.get(_IS_EXCLUDING))
    if exclude_contaminated:
        members = _marked(store, members)
    if newest is not None and version in ("", newest.inputs.partition) and _is_same(newest, members, upstream):
        return StageResult(newest, False, time.monotonic() - started)
    more = {_IS_EXCLUDING: True} if exclude_contaminated else {}
    while True:
        taken = [release.inputs.partition for release in known]
        if version in taken:
            raise FileExistsError(f"release {version!r} exists with other contents, and releases never change. Choose another.")
        chosen = version or next_version(taken)
        try:
            return _commit(store, chosen, members, upstream, len(known) + 1, run_id, progress, more)
        except FileExistsError:  # another run took this version while we worked
            if version:
                raise
            known = list_releases(store)


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
        manifest.folder,
        tuple(manifest.find(".parquet")),
    )


def _marked(store: Store, members: list[_Member]) -> list[_Member]:
    """Add to the members which of their patches show test images."""
    reports = contamination_reports(store, "cem")
    if not reports:
        raise DataError(
            f"no release was compared with the test images of benchmarks yet, so nobody knows which patches to leave out. "
            f"Materialize {CONTAMINATION} of the newest release first, or make this one with exclude_contaminated = false."
        )
    found = contaminated_patches(store, reports)
    marked = []
    for member in members:
        hits = found.get(member.manifest.inputs.partition, {})
        present = patch_hashes(store, member.manifest) if hits else []
        marked.append(replace(member, excluded={patch[0]: hits[patch] for patch in present if patch in hits}))
    return marked


def _exclusion(members: Sequence[_Member]) -> dict[str, str]:
    """Return a digest of the patches that are left out, as a parameter of the release, or no parameter if there are none."""
    names = {member.manifest.inputs.partition: sorted(member.excluded) for member in members if member.excluded}
    return {"excluded": hashlib.sha256(canonical_json(names)).hexdigest()} if names else {}


def _is_same(release: Manifest, members: Sequence[_Member], upstream: Mapping[str, str]) -> bool:
    excluded = _exclusion(members).get("excluded")
    return dict(release.inputs.upstream) == upstream and release.inputs.parameters.get("excluded") == excluded


def _commit(
    store: Store,
    version: str,
    members: list[_Member],
    upstream: dict[str, str],
    sequence: int,
    run_id: str,
    progress: Progress,
    more: Mapping[str, Any],
) -> StageResult:
    # The patches that are left out are a parameter and not upstream, because only the partitions decide when a release is due.
    parameters = {"distance": CROSS_DATASET_DISTANCE, **_exclusion(members)}
    stage = begin(store, Inputs(RELEASES, version, CODE_VERSIONS[RELEASES], parameters, upstream), run_id)
    commit = stage.commit
    excluded = [
        {"dataset": member.manifest.inputs.partition, "name": name, "reason": f"shows test images of {', '.join(benchmarks)}"}
        for member in members
        for name, benchmarks in sorted(member.excluded.items())
    ]
    note = _excluded_note(members)
    members = [_reduced(store, commit, member) if member.excluded else member for member in members]
    if excluded:
        commit.write(EXCLUDED, parquet_bytes([pa.Table.from_pylist(excluded, _EXCLUDED_SCHEMA)], _EXCLUDED_SCHEMA))
    duplicates, table = _cross_dataset(store, members, progress)
    commit.write("cross_dataset_duplicates.parquet", parquet_bytes([table], _DUPLICATES_SCHEMA))
    datasets = [member.released for member in members]
    mean, std = sum((item.pixels for item in datasets), PixelSums()).norms()
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
    commit.write(CARD, dataset_card(version, datasets, duplicates, _judge(members), note).encode())
    counts = {
        "datasets": len(datasets),
        "patches": num_patches,
        "released_bytes": sum(item.num_bytes for item in datasets),
        "cross_dataset_pairs": duplicates.num_pairs,
        **({"excluded": len(excluded)} if excluded else {}),
    }
    details = {"sequence": sequence, "pixel_mean": mean, "pixel_std": std, "contents": listing["datasets"], **more}
    return stage.finish(counts, details, is_final=True)


def _reduced(store: Store, commit: Commit, member: _Member) -> _Member:
    """Write the shards of a dataset without some patches into the release, and count what is kept."""
    dataset, released = member.manifest.inputs.partition, member.released
    objects, lost = write_without(store, commit, member.manifest, f"patches/{dataset}", set(member.excluded))
    num_left = released.counts["filtered_patches"] - len(member.excluded)
    counts = {**released.counts, "filtered_patches": num_left, "excluded_patches": len(member.excluded)}
    num_bytes = sum(item.num_bytes for item in objects)
    kept = replace(released, counts=counts, num_bytes=num_bytes, pixels=released.pixels - lost)
    return replace(member, released=kept, folder=commit.content.folder, objects=tuple(objects))


def _excluded_note(members: Sequence[_Member]) -> str:
    hits = Counter(name for member in members for benchmarks in member.excluded.values() for name in benchmarks)
    if not hits:
        return ""
    num = sum(len(member.excluded) for member in members)
    told = ", ".join(f"{name} ({count:,})" for name, count in sorted(hits.items()))
    return f"Left out: {num:,} patch(es) that show test images of the benchmarks {told}, listed in `{EXCLUDED}`"


def _judge(members: list[_Member]) -> str:
    """Say in one sentence by which classifier and threshold patches were judged."""
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
        "folder": member.folder,
        "digest": manifest.digest,
        "counts": released.counts,
        "description": json.loads(released.description.model_dump_json()),
        "objects": [asdict(item) for item in member.objects],
    }


def _kept(store: Store, member: _Member, columns: list[str]) -> Iterator[pa.Table]:
    """Read columns of those patches of a dataset that are in the release, in order."""
    if not member.excluded:
        yield from read_parts(store, member.manifest, columns)
        return
    left_out = pa.array(sorted(member.excluded), pa.string())
    for table in read_parts(store, member.manifest, list({"name": None} | dict.fromkeys(columns))):
        yield table.filter(pc.invert(pc.is_in(table["name"], value_set=left_out))).select(columns)


def _names_of(store: Store, members: list[_Member], starts: list[int], places: NDArray[np.int64]) -> dict[int, str]:
    """Read the names of some patches by their row in the release, one shard at a time, because few names are needed."""
    found: dict[int, str] = {}
    for member, start, stop in zip(members, starts, starts[1:], strict=False):
        wanted = places[np.searchsorted(places, start) : np.searchsorted(places, stop)]
        if not len(wanted):
            continue
        for table in _kept(store, member, ["name"]):
            inside = wanted[(wanted >= start) & (wanted < start + len(table))]
            names = table["name"].take(pa.array(inside - start)).to_pylist()
            found |= dict(zip(inside.tolist(), names, strict=True))
            start += len(table)
    return found


def _cross_dataset(store: Store, members: list[_Member], progress: Progress) -> tuple[CrossDatasetDuplicates, pa.Table]:
    """Find near copies across the datasets of a release, at the strict distance.

    This takes 32 bytes of memory for each patch, and the memory of the pairs. Names are read later, for the pairs only.
    """
    parts, read, starts = [np.empty(0, np.uint64)], [], [0]
    for member in members:
        read = [table["dhash"].to_numpy() for table in _kept(store, member, ["dhash"])]
        parts += read
        starts.append(starts[-1] + sum(map(len, read)))
    hashes = np.concatenate(parts)
    del parts, read
    owner = np.repeat(np.arange(len(members), dtype=np.int32), np.diff(starts))
    # Hashes are in order of dataset, so the first patch of a pair is from the earlier dataset.
    pairs = pairs_between_groups(hashes, owner, CROSS_DATASET_DISTANCE, default_num_workers(), progress)
    names = _names_of(store, members, starts, np.unique(pairs[:, :2]))
    partitions = [member.manifest.inputs.partition for member in members]
    rows = [
        {
            "dataset": partitions[owner[first]],
            "name": names[first],
            "other_dataset": partitions[owner[second]],
            "other_name": names[second],
            "distance": distance,
        }
        for first, second, distance in pairs.tolist()
    ]
    table = pa.Table.from_pylist(rows, schema=_DUPLICATES_SCHEMA)
    return CrossDatasetDuplicates(len(rows), len(np.unique(owner[pairs[:, :2]])), CROSS_DATASET_DISTANCE), table


def list_releases(store: Store) -> list[Manifest]:
    """List the releases of a store, with the oldest first."""
    found = [current_manifest(store, RELEASES, version) for version in committed_partitions(store, RELEASES)]
    return sorted((m for m in found if m is not None), key=lambda m: (m.details["sequence"], m.inputs.partition))
