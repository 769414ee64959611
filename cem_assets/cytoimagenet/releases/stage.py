"""Stage `cytoimagenet/releases`: a versioned manifest over the crops of all labels that never changes.

A release names the shards of each label in `cytoimagenet/crops`. Only labels that lose images here, because these are exact
copies of another label's images, get shards of their own. Maintenance never deletes shards that a release names.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cytoimagenet.crops.stage import crop_upstream
from cem_assets.cytoimagenet.held_out.guard import guarded_set, load_rules
from cem_assets.cytoimagenet.held_out.stage import test_images_upstream
from cem_assets.cytoimagenet.labels.stage import LabelEntry, label_entries
from cem_assets.cytoimagenet.releases.card import ReleasedLabel, dataset_card
from cem_assets.cytoimagenet.tables import CROPS_SCHEMA, EXCLUDED_SCHEMA, RELEASED_SCHEMA, frame_bytes
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.store.assets import CODE_VERSIONS, CROPS, CYTO_RELEASES, LABEL_TABLE, TEST_IMAGES
from cem_assets.store.commits import Commit
from cem_assets.store.manifest_facts import ManifestFacts, current_facts
from cem_assets.store.manifests import (
    Inputs,
    Manifest,
    ManifestObject,
    canonical_json,
    committed_partitions,
    current_manifest,
    require_manifest,
)
from cem_assets.store.parquet import IMAGE_ROW_GROUP, parquet_bytes, parquet_file, part_name
from cem_assets.store.store import Store
from cem_assets.store.versions import check_version, next_version

CARD = "README.md"
LISTING = "release.json"
METADATA = "metadata.parquet"
EXCLUDED = "_excluded/part-00000.parquet"
_COPY = "exact copy of an image of another label"
_TOO_FEW = "its label was left with fewer images than a label needs"


Read = TypeVar("Read", Manifest, ManifestFacts)
"""A manifest, or its facts without the list of objects."""


@dataclass(frozen=True)
class Members:
    """The crops a release is made of.

    Attributes:
        current: Entry and manifest of every label whose crops are up to date and not empty.
        upstream: The digests of these crops, and of the facts about their sources.
        num_waiting: Number of labels whose crops are missing or stale.
        facts: What the label table says about each source: title, licence, citation and so on.
        is_guarded: Whether every source that is a test set was fingerprinted in its current state. If not, no crops are
            current.
    """

    current: tuple[tuple[LabelEntry, Manifest], ...]
    upstream: dict[str, str]
    num_waiting: int
    facts: dict[str, dict[str, Any]]
    is_guarded: bool


def members(store: Store) -> Members | None:
    """Find the labels that are ready to be released; None if there is no label table."""
    committed = set(committed_partitions(store, CROPS))

    def read(key: str) -> Manifest | None:
        return current_manifest(store, CROPS, key) if key in committed else None

    ready = _ready(store, read)
    if ready is None:
        return None
    return Members(tuple(ready.current), ready.upstream, ready.num_waiting, ready.facts, ready.is_guarded)


@dataclass(frozen=True)
class _Ready(Generic[Read]):
    """The same as `Members`, with either manifests or their facts."""

    current: list[tuple[LabelEntry, Read]]
    upstream: dict[str, str]
    num_waiting: int
    facts: dict[str, dict[str, Any]]
    is_guarded: bool


def _ready(store: Store, read: Callable[[str], Read | None]) -> _Ready[Read] | None:
    table = current_manifest(store, LABEL_TABLE)
    if table is None:
        return None
    tests = current_manifest(store, TEST_IMAGES)
    guard = tests.digest if tests else ""
    is_guarded = test_images_upstream(store) == (dict(tests.inputs.upstream) if tests else {})
    current: list[tuple[LabelEntry, Read]] = []
    waiting = 0
    for entry in label_entries(store, table).values():
        manifest = read(entry.key)
        if not is_guarded or manifest is None or dict(manifest.inputs.upstream) != crop_upstream(entry, guard):
            waiting += 1
        elif manifest.counts["images"]:
            current.append((entry, manifest))
    # The facts come from the label table, because crops are not made again when a citation is corrected.
    used = {name for _, manifest in current for name in manifest.details["sources"]}
    facts = {name: {k: v for k, v in table.details["sources"][name].items() if k != "num_images"} for name in sorted(used)}
    upstream = {f"{CROPS}/{entry.key}": manifest.digest for entry, manifest in current}
    upstream["facts of sources"] = hashlib.sha256(canonical_json(facts)).hexdigest()
    return _Ready(current, upstream, waiting, facts, is_guarded)


def is_cyto_release_due(store: Store) -> bool:
    """Tell whether the crops that are ready differ from those in the newest release."""
    crops = current_facts(store, CROPS)
    found = _ready(store, crops.get)
    if found is None or not found.current:
        return False
    releases = current_facts(store, CYTO_RELEASES).values()
    newest = max(releases, key=lambda facts: (facts.details["sequence"], facts.inputs.partition), default=None)
    return newest is None or dict(newest.inputs.upstream) != found.upstream


def list_cyto_releases(store: Store) -> list[Manifest]:
    """List the releases of a store, oldest first."""
    found = [current_manifest(store, CYTO_RELEASES, version) for version in committed_partitions(store, CYTO_RELEASES)]
    return sorted((m for m in found if m is not None), key=lambda m: (m.details["sequence"], m.inputs.partition))


def make_cyto_release(store: Store, version: str = "", run_id: str = "", progress: Progress = no_progress) -> StageResult:
    """Make a release of all labels whose crops are up to date.

    Args:
        version: Name of the release; empty takes the next of v1, v2, ...

    Returns:
        The new release, or the newest release if it holds the same crops.

    Raises:
        DataError: The version is not allowed, nothing is ready, test images were not fingerprinted, or images of a test set
            are among the crops.
        FileExistsError: A release with other contents has this version.
    """
    started = time.monotonic()
    if version:
        check_version(version)
    found = members(store)
    if found is not None and not found.is_guarded:
        raise DataError(
            f"a test set was added or changed since test images were fingerprinted; materialize {TEST_IMAGES}, then the "
            f"partitions of {CROPS}."
        )
    if found is None or not found.current:
        waiting = f" {found.num_waiting:,} label(s) wait for their crops." if found and found.num_waiting else ""
        raise DataError(f"there is nothing to release: no partition of {CROPS} is up to date and holds images.{waiting}")
    _refuse_test_sets(found)
    known = list_cyto_releases(store)
    if known and dict(known[-1].inputs.upstream) == found.upstream and version in ("", known[-1].inputs.partition):
        return StageResult(known[-1], False, time.monotonic() - started)
    while True:
        taken = [release.inputs.partition for release in known]
        if version in taken:
            raise FileExistsError(
                f"release {version!r} exists with other contents, and releases never change. Choose another version."
            )
        chosen = version or next_version(taken)
        try:
            return _commit(store, chosen, found, len(known) + 1, run_id, progress)
        except FileExistsError:  # another run made a release with this version in the meantime
            if version:
                raise
            known = list_cyto_releases(store)
            if known and dict(known[-1].inputs.upstream) == found.upstream:
                return StageResult(known[-1], False, time.monotonic() - started)


def _refuse_test_sets(found: Members) -> None:
    """Check the names of sources once more, because crops may have been made with an older list of test sets."""
    rules = load_rules()
    hits = {}
    for _, manifest in found.current:
        for source in manifest.details["sources"]:
            facts = found.facts[source]
            texts = [source, facts["title"], facts["dir_name"], facts["source_url"]]
            if facts["role"] == "test" or guarded_set(texts, rules):
                hits[source] = guarded_set(texts, rules) or "a source with role = 'test'"
    if hits:
        listing = ", ".join(f"{source} ({test_set})" for source, test_set in sorted(hits.items()))
        raise DataError(f"images of test sets are among the crops: {listing}. Materialize {LABEL_TABLE} and its crops again.")


def _commit(store: Store, version: str, found: Members, sequence: int, run_id: str, progress: Progress) -> StageResult:
    inputs = Inputs(CYTO_RELEASES, version, CODE_VERSIONS[CYTO_RELEASES], {}, found.upstream)
    stage = begin(store, inputs, run_id)
    commit = stage.commit
    frames = []
    for number, (entry, manifest) in enumerate(found.current, 1):
        frames.append(_rows(store, manifest).assign(key=entry.key))
        progress(number, len(found.current))
    metadata = pd.concat(frames, ignore_index=True)
    metadata["reason"] = _left_out(metadata, found)
    is_kept = (metadata["reason"] == "").to_numpy()
    keeps = np.split(is_kept, np.cumsum([len(frame) for frame in frames])[:-1])
    folders = [
        _listed(store, commit, entry, manifest, keep)
        for (entry, manifest), keep in zip(found.current, keeps, strict=True)
        if keep.any()
    ]
    out = metadata[~is_kept]
    metadata = metadata[is_kept]
    labels = _released_labels(found, metadata)
    num_of = {str(name): int(count) for name, count in metadata["source"].value_counts().sort_index().items()}
    facts = {name: {**found.facts[name], "num_images": count} for name, count in num_of.items()}
    excluded = {str(name): int(count) for name, count in out["reason"].value_counts().sort_index().items()}
    num_validation = int((metadata["split"] == "validation").sum())
    listing = {
        "version": version,
        "labels": folders,
        "num_images": len(metadata),
        "num_validation": num_validation,
        "sources": facts,
    }
    commit.write(METADATA, frame_bytes(metadata, RELEASED_SCHEMA))
    commit.write(EXCLUDED, frame_bytes(out, EXCLUDED_SCHEMA))
    commit.write(LISTING, json.dumps(listing, indent=1, ensure_ascii=False).encode())
    commit.write(CARD, dataset_card(version, labels, facts, excluded, found.num_waiting).encode())
    for name, picture in _pictures(labels, metadata).items():
        commit.write(f"{name}.png", picture)
    counts = {
        "labels": len(labels),
        "images": len(metadata),
        "validation": num_validation,
        "sources": len(facts),
        "excluded": len(out),
        "labels_waiting": found.num_waiting,
    }
    details = {"sequence": sequence, "contents": [{"folder": f["folder"], "key": f["key"]} for f in folders]}
    return stage.finish(counts, details, is_final=True)


def _left_out(metadata: pd.DataFrame, found: Members) -> list[str]:
    """Return for every crop why it is left out, or "" if it stays. Of exact copies the first stays, if its label stays."""
    given_up: set[str] = set()
    while True:
        is_given_up = metadata["key"].isin(given_up).to_numpy()
        is_copy = np.zeros(len(metadata), np.bool_)
        is_copy[~is_given_up] = metadata.loc[~is_given_up, "pixel_sha256"].duplicated()
        num_left = metadata.loc[~is_given_up & ~is_copy, "key"].value_counts().to_dict()
        fewest = {entry.key: manifest.inputs.parameters["min_images"] for entry, manifest in found.current}
        few = [key for key, least in fewest.items() if key not in given_up and num_left.get(key, 0) < least]
        if not few:
            return [_TOO_FEW if gone else _COPY if copy else "" for gone, copy in zip(is_given_up, is_copy, strict=True)]
        given_up.add(few[0])  # one at a time, because copies of its images in other labels can stay now


def _rows(store: Store, manifest: Manifest) -> pd.DataFrame:
    names = RELEASED_SCHEMA.names
    tables = []
    for item in manifest.find(".parquet"):
        with store.open(f"{manifest.folder}/{item.name}") as handle:
            tables.append(parquet_file(handle).read(columns=names))
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame


def _listed(store: Store, commit: Commit, entry: LabelEntry, manifest: Manifest, keep: NDArray[np.bool_]) -> dict[str, Any]:
    """List the shards of a label: those of its crops, or new ones without the images that are left out."""
    folder, objects = manifest.folder, list(manifest.find(".parquet"))
    if not keep.all():
        folder, objects = commit.content.folder, _write_without(store, commit, entry, manifest, keep)
    return {
        "key": entry.key,
        "label": entry.label,
        "category": entry.category,
        "folder": folder,
        "digest": manifest.digest,
        "num_images": int(keep.sum()),
        "objects": [asdict(item) for item in objects],
    }


def _write_without(
    store: Store, commit: Commit, entry: LabelEntry, manifest: Manifest, keep: NDArray[np.bool_]
) -> list[ManifestObject]:
    """Write the shards of a label again, without the images that are left out."""
    written = []
    start = 0
    for number, item in enumerate(manifest.find(".parquet")):
        with store.open(f"{manifest.folder}/{item.name}") as handle:
            table = parquet_file(handle).read()
        left = table.filter(pa.array(keep[start : start + len(table)]))
        start += len(table)
        data = parquet_bytes([left], CROPS_SCHEMA, IMAGE_ROW_GROUP, ("label", "category", "source"))
        written.append(commit.write(f"labels/{entry.key}/{part_name(number)}", data))
    return written


def _released_labels(found: Members, metadata: pd.DataFrame) -> list[ReleasedLabel]:
    groups = {str(key): group for key, group in metadata.groupby("key")}
    labels = []
    for entry, _ in found.current:
        if (group := groups.get(entry.key)) is not None:
            sources = {str(name): int(count) for name, count in group["source"].value_counts().sort_index().items()}
            num_validation = int((group["split"] == "validation").sum())
            labels.append(ReleasedLabel(entry.key, entry.label, entry.category, len(group), num_validation, sources))
    return labels


def _pictures(labels: Sequence[ReleasedLabel], metadata: pd.DataFrame) -> dict[str, bytes]:
    from cem_assets.cytoimagenet.pictures import label_counts_png, scales_and_sources_png

    sizes = pd.DataFrame([{"label": item.label, "category": item.category, "num_images": item.num_images} for item in labels])
    counts = {str(name): int(count) for name, count in sizes["category"].value_counts().items()}
    return {
        "labels per category": label_counts_png(counts, sizes, int(sizes["num_images"].min())),
        "crops by scale and source": scales_and_sources_png(metadata["scaling"].tolist(), metadata["source"].tolist()),
    }


def require_cyto_release(store: Store, version: str = "") -> Manifest:
    """Read the manifest of a release; without a version, that of the newest release.

    Raises:
        FileNotFoundError: There is no such release.
    """
    if version:
        return require_manifest(store, CYTO_RELEASES, version)
    releases = list_cyto_releases(store)
    if not releases:
        raise FileNotFoundError(f"{store.url} has no release of CytoImageNet yet; materialize {CYTO_RELEASES} first.")
    return releases[-1]
