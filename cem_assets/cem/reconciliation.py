"""Reconciliation: comparing what the store has with what it should have.

The pure function `needed_work` decides what is missing or stale. Dagster's own record of events is not used for this, because
a killed daemon, a lost event or a deleted object would make it wrong. The functions that begin with `look_at` read the state of
the store, and `cem_assets.cem.automation` requests runs.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from heapq import merge
from itertools import groupby, islice, takewhile
from typing import Any

from cem_assets.cem.classifier.stored import classifier_in_use
from cem_assets.cem.settings import Settings
from cem_assets.inbox.datasets import INBOX, Arrival, arrivals
from cem_assets.store.assets import CLASSIFIER, CODE_VERSIONS, FILTERED, RELEASES, SCORES, STAGES, VOLUMES
from cem_assets.store.manifest_facts import ManifestFacts, current_facts, facts_of_all, is_whole
from cem_assets.store.manifests import canonical_json
from cem_assets.store.partition_listing import NUM_THREADS, PartitionListing, list_partition, list_partitions, place
from cem_assets.store.store import Store

CHAIN = tuple(STAGES.values())
"""The partitioned assets. Each is made from the one before it."""
_BATCH = 64
"""Number of datasets whose manifests are read at the same time."""
_CLOSE = 8
"""If at least one of so many datasets is wanted, one listing of all of them is faster than a listing of each wanted one."""

_Seen = tuple[str, str, Arrival | PartitionListing]
_Looked = tuple[str, Arrival | None, Mapping[str, PartitionListing]]


class Reason(StrEnum):
    """Why a partition has to be computed."""

    missing = "nothing is committed"
    unreadable = "its manifest is damaged"
    damaged = "objects are gone from the store"
    inbox = "the inbox changed"
    upstream = "made from older data"
    parameters = "made with other parameters"
    code = "made by an older version of the method"
    classifier = "scored by another classifier"


@dataclass(frozen=True)
class Committed:
    """The facts of a current manifest that decide whether its partition is stale.

    Attributes:
        code_version: Version of the code that made the partition.
        parameters: Parameters that it was made with.
        upstream: Digests of the manifests that it was made from, by `asset/partition`.
        started: Start of the run that made it, in seconds since 1970.
        is_whole: Whether the store has every object that it lists, with its size.
    """

    digest: str
    code_version: str
    parameters: Mapping[str, Any]
    upstream: Mapping[str, str]
    started: float
    is_whole: bool = True


@dataclass(frozen=True)
class DatasetState:
    """The state of one dataset in the store.

    Attributes:
        arrival: The dataset in the inbox, or None if its files were taken away.
        committed: Current manifests by asset.
        unreadable: Assets whose current manifest is damaged.
    """

    dataset: str
    arrival: Arrival | None
    committed: Mapping[str, Committed] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Work:
    """What has to be computed for one dataset: some assets of the chain, in order.

    Attributes:
        assets: The assets to compute, in order.
        reasons: Reasons by asset. An asset without a reason is computed because the one before it is.
        key: Identifies this work. It is the same as long as the store and the settings have the same state.
        is_look_only: Whether a change in the inbox is the only reason. The files may turn out to be the same.
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
    """Compare what is committed with what should be committed.

    An asset is computed if nothing is committed, if objects are gone, if it was made from older data, with other parameters or
    by older code, or if the asset before it is computed. Scores need a patch classifier, so without one the work ends before
    the scores. Computing scores takes GPU time, so scores are computed again because of newer code or another classifier only
    if `settings.relaunch_gpu` is set.

    Args:
        classifier: Digest of the patch classifier in use, or None.
        code_versions: Current version of the code, by asset.

    Returns:
        The work of each dataset that needs any, in the order of `states`.
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
            reason = None  # without its files the partition stays as it is
        if reason is not None:
            reasons[asset] = reason
        # Everything after it is computed too. An asset whose inputs turn out to be the same is up to date at once.
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
        return Reason.unreadable if asset in state.unreadable else Reason.missing
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
    """Read the state of one dataset, with five listings and at most five small reads (facts of manifests are cached).

    Args:
        arrival: The dataset in the inbox, or None.
    """
    listings = {asset: list_partition(store, asset, dataset) for asset in CHAIN}
    return _states(store, [(dataset, arrival, listings)])[0]


def look_at_these(store: Store, arrived: Sequence[Arrival], after: str, num_passed: int) -> list[DatasetState]:
    """Read the states of some datasets of the inbox, by common listings if their names are close together, else one by one.

    Args:
        arrived: The datasets, in order of `place`.
        after: A name before the first of them, such as the one after which the look at the inbox began; empty for the
            beginning of the inbox.
        num_passed: Number of datasets between `after` and the last of them, which is included.

    Returns:
        Their states, in the same order.
    """
    if store.is_local or len(arrived) < 2:
        return [look_at(store, found.dataset, found) for found in arrived]
    listings: dict[str, dict[str, PartitionListing]] = {found.dataset: {} for found in arrived}
    last = place(arrived[-1].dataset)

    def list_many(asset: str) -> None:
        for listing in takewhile(lambda listing: place(listing.name) <= last, list_partitions(store, asset, after)):
            if listing.name in listings:
                listings[listing.name][asset] = listing

    def list_one(wanted: tuple[str, str]) -> None:
        listings[wanted[0]][wanted[1]] = list_partition(store, wanted[1], wanted[0])

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        if len(arrived) * _CLOSE >= num_passed:
            list(pool.map(list_many, CHAIN))
        else:
            list(pool.map(list_one, [(name, asset) for name in listings for asset in CHAIN]))
    return _states(store, [(found.dataset, found, listings[found.dataset]) for found in arrived])


def look_at_all(store: Store, after: str = "") -> Iterator[DatasetState]:
    """Read the states of all datasets, from one listing of the inbox and one of each asset.

    Args:
        after: Begin after the dataset with this name.

    Yields:
        The state of every dataset that has anything committed or is complete in the inbox, in order of `place`. Only the
        datasets that the caller takes are read.
    """
    streams: list[Iterator[_Seen]] = [((place(found.dataset), INBOX, found) for found in arrivals(store, after))]
    streams += [_seen(store, asset, after) for asset in CHAIN]
    merged = groupby(merge(*streams, key=lambda seen: seen[0]), key=lambda seen: seen[0])
    while batch := [(where, list(group)) for where, group in islice(merged, _BATCH)]:
        looked = []
        for where, group in batch:
            arrival = next((found for _, _, found in group if isinstance(found, Arrival)), None)
            listings = {asset: found for _, asset, found in group if isinstance(found, PartitionListing)}
            looked.append((where.removesuffix("/"), arrival, listings))
        yield from _states(store, looked)


def _seen(store: Store, asset: str, after: str) -> Iterator[_Seen]:
    return ((place(found.name), asset, found) for found in list_partitions(store, asset, after))


def _states(store: Store, looked: Sequence[_Looked]) -> list[DatasetState]:
    every = [(asset, listing) for _, _, listings in looked for asset, listing in listings.items()]
    facts = facts_of_all(store, [listing for _, listing in every])
    committed = {
        (listing.name, asset): _summary(store, listing, found)
        for (asset, listing), found in zip(every, facts, strict=True)
        if found is not None
    }
    return [
        DatasetState(
            name,
            arrival,
            {asset: committed[name, asset] for asset in CHAIN if (name, asset) in committed},
            frozenset(a for a, listing in listings.items() if listing.newest is not None and (name, a) not in committed),
        )
        for name, arrival, listings in looked
    ]


def _summary(store: Store, listing: PartitionListing, facts: ManifestFacts) -> Committed:
    return Committed(
        digest=facts.digest,
        code_version=facts.inputs.code_version,
        parameters=facts.inputs.parameters,
        upstream=facts.inputs.upstream,
        started=datetime.fromisoformat(facts.run["started"]).timestamp(),
        is_whole=is_whole(store, listing, facts),
    )


def classifier_digest(store: Store) -> str | None:
    """Return the digest of the patch classifier in use, or None if there is none."""
    manifest = classifier_in_use(store)
    return None if manifest is None else manifest.digest


def is_release_due(store: Store) -> bool:
    """Tell whether the filtered partitions differ from those of the newest release."""
    current = {f"{FILTERED}/{dataset}": facts.digest for dataset, facts in current_facts(store, FILTERED).items()}
    releases = current_facts(store, RELEASES).values()
    newest = max(releases, key=lambda facts: (facts.details["sequence"], facts.inputs.partition), default=None)
    return bool(current) and (newest is None or dict(newest.inputs.upstream) != current)
