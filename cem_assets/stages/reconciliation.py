"""Reconciliation: what the store holds, compared with what should be there.

One pure function, `needed_work`, is the authority on what is missing or stale; Dagster's own record of
events is not asked, because a killed daemon, a lost event or a deleted object leave it wrong. Looking at
the store is `look_at`; asking for runs is `cem_assets.defs.automation`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from cem_assets.stages.cem_releases import list_releases
from cem_assets.stages.settings import Settings
from cem_assets.storage.inbox import Arrival
from cem_assets.storage.layout import CLASSIFIER, CODE_VERSIONS, FILTERED, SCORES, STAGES, VOLUMES
from cem_assets.storage.manifests import Manifest, canonical_json, committed_partitions, current_manifest
from cem_assets.storage.patch_classifiers import classifier_in_use
from cem_assets.storage.store import Store

CHAIN = tuple(STAGES.values())
"""The partitioned assets, each made from the one before it."""


class Reason(StrEnum):
    """Why a partition has to be computed."""

    missing = "nothing is committed"
    damaged = "objects are gone from the store"
    inbox = "the inbox changed"
    upstream = "made from older data"
    parameters = "made with other parameters"
    code = "made by an older version of the method"
    classifier = "scored by another classifier"


@dataclass(frozen=True)
class Committed:
    """What matters of a current manifest.

    Attributes:
        digest: Of the manifest.
        code_version: It was made by.
        parameters: It was made with.
        upstream: Digests by `asset/partition`.
        started: When its run began, seconds since 1970.
        is_whole: Whether every object it lists is there with its size.
    """

    digest: str
    code_version: str
    parameters: Mapping[str, Any]
    upstream: Mapping[str, str]
    started: float
    is_whole: bool = True


@dataclass(frozen=True)
class DatasetState:
    """One dataset as the store shows it.

    Attributes:
        dataset: Its name.
        arrival: Its place in the inbox, or None where its files were taken away.
        committed: Current manifests by asset.
    """

    dataset: str
    arrival: Arrival | None
    committed: Mapping[str, Committed] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What has to be computed for one dataset: some assets of the chain, in order.

    Attributes:
        dataset: Its name.
        assets: To run, in order.
        reasons: By asset, for those that began it; what follows is made from newer data.
        key: Identifies this very work: the same for the same state of store and settings.
        is_look_only: Whether the inbox alone gave the reason: the files may turn out to be the same.
    """

    dataset: str
    assets: tuple[str, ...]
    reasons: Mapping[str, Reason]
    key: str
    is_look_only: bool


def needed_work(
    states: Sequence[DatasetState],
    classifier: str | None,
    settings: Settings,
    code_versions: Mapping[str, str] = CODE_VERSIONS,
) -> list[Work]:
    """Compare what is committed with what should be.

    An asset is computed where nothing is committed, objects are gone, or it was made from older data, with
    other parameters or by older code; and where the asset before it is computed. Scores need a patch classifier:
    without one the work ends before them. Scores that are stale only by code or by classifier cost GPU time and
    are computed again only with `settings.relaunch_gpu`.

    Args:
        states: Of datasets.
        classifier: Digest of the patch classifier in use, or None.
        settings: Parameters wanted.
        code_versions: By asset.

    Returns:
        Work for each dataset that needs any, in the order given.
    """
    found = (_work(state, classifier, settings, code_versions) for state in states)
    return [work for work in found if work is not None]


def _work(state: DatasetState, classifier: str | None, settings: Settings, code_versions: Mapping[str, str]) -> Work | None:
    assets: list[str] = []
    reasons: dict[str, Reason] = {}
    previous: Committed | None = None
    for asset in CHAIN:
        if asset == SCORES and classifier is None:
            break
        if asset == VOLUMES and state.arrival is None and asset not in state.committed:
            return None  # nothing to make it from
        reason = _reason(state, asset, previous, classifier, settings, code_versions)
        if asset == VOLUMES and state.arrival is None:
            reason = None  # without its files it stays as it is
        if reason is not None:
            reasons[asset] = reason
        # What is made from something computed now is computed, too: it finds itself up to date where nothing changed.
        if reason is not None or assets:
            assets.append(asset)
        previous = state.committed.get(asset)
    if not assets:
        return None
    facts = {
        "dataset": state.dataset,
        "assets": assets,
        "arrival": state.arrival.fingerprint if state.arrival and VOLUMES in assets else "",
        "committed": {asset: item.digest for asset, item in state.committed.items()},
        "classifier": classifier if SCORES in assets else "",
        "parameters": {asset: settings.parameters(state.dataset, asset) for asset in assets},
        "code": {asset: code_versions[asset] for asset in assets},
    }
    key = hashlib.sha256(canonical_json(facts)).hexdigest()[:16]
    return Work(state.dataset, tuple(assets), reasons, key, set(reasons.values()) == {Reason.inbox})


def _reason(
    state: DatasetState,
    asset: str,
    previous: Committed | None,
    classifier: str | None,
    settings: Settings,
    code_versions: Mapping[str, str],
) -> Reason | None:
    item = state.committed.get(asset)
    if item is None:
        return Reason.missing
    if not item.is_whole:
        return Reason.damaged
    if asset == VOLUMES and state.arrival is not None and state.arrival.modified > item.started:
        return Reason.inbox
    if previous is not None and item.upstream.get(f"{_before(asset)}/{state.dataset}") != previous.digest:
        return Reason.upstream
    if dict(item.parameters) != settings.parameters(state.dataset, asset):
        return Reason.parameters
    is_asked_for = asset != SCORES or settings.relaunch_gpu
    if item.code_version != code_versions[asset] and is_asked_for:
        return Reason.code
    if asset == SCORES and item.upstream.get(CLASSIFIER) != classifier and is_asked_for:
        return Reason.classifier
    return None


def _before(asset: str) -> str:
    return CHAIN[CHAIN.index(asset) - 1]


def look_at(store: Store, dataset: str, arrival: Arrival | None) -> DatasetState:
    """Look at what the store holds of a dataset: five listings and five small reads, and one listing of each content.

    Args:
        store: Where.
        dataset: Its name.
        arrival: Its place in the inbox, or None.

    Returns:
        Its state; a manifest that was tampered with counts as missing.
    """
    committed = {}
    for asset in CHAIN:
        try:
            manifest = current_manifest(store, asset, dataset)
        except ValueError:
            continue
        if manifest is not None:
            committed[asset] = _summary(store, manifest)
    return DatasetState(dataset, arrival, committed)


def _summary(store: Store, manifest: Manifest) -> Committed:
    base = manifest.folder
    present = {item.key[len(base) + 1 :]: item.num_bytes for item in store.walk(base)}
    return Committed(
        digest=manifest.digest,
        code_version=manifest.inputs.code_version,
        parameters=manifest.inputs.parameters,
        upstream=manifest.inputs.upstream,
        started=datetime.fromisoformat(manifest.run["started"]).timestamp(),
        is_whole=all(present.get(item.name) == item.num_bytes for item in manifest.objects),
    )


def classifier_digest(store: Store) -> str | None:
    """Return the digest of the patch classifier in use, or None where there is none."""
    manifest = classifier_in_use(store)
    return None if manifest is None else manifest.digest


def is_release_due(store: Store) -> bool:
    """Tell whether the filtered partitions differ from those in the newest release."""
    current = {}
    for dataset in committed_partitions(store, FILTERED):
        manifest = current_manifest(store, FILTERED, dataset)
        if manifest is not None:
            current[f"{FILTERED}/{dataset}"] = manifest.digest
    releases = list_releases(store)
    return bool(current) and (not releases or dict(releases[-1].inputs.upstream) != current)
