"""Reconciliation: what the store holds, compared with what should be there.

One pure function, `needed_work`, is the authority on what is missing or stale; Dagster's own record of
events is not asked, because a killed daemon, a lost event or a deleted object leave it wrong. Looking at
the store is `look_at`; asking for runs is `cem_assets.cem.automation`.
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
"""The partitioned assets, each made from the one before it."""
_BATCH = 64
"""Datasets whose manifests are read at the same time."""
_CLOSE = 8
"""Where at least one dataset of so many is wanted, listing all of them takes less time than listing each wanted one."""

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
    """Look at what the store holds of a dataset: five listings, and five small reads of what is not remembered.

    Args:
        arrival: Its place in the inbox, or None.

    Returns:
        Its state; a manifest that is damaged counts as missing.
    """
    listings = {asset: list_partition(store, asset, dataset) for asset in CHAIN}
    return _states(store, [(dataset, arrival, listings)])[0]


def look_at_these(store: Store, arrived: Sequence[Arrival], after: str, num_passed: int) -> list[DatasetState]:
    """Look at some datasets of the inbox: by listings of many where they lie close together, else each by itself.

    Args:
        arrived: The datasets, in order of `place`.
        after: A name before the first of them, such as where a look at the inbox began; empty for its beginning.
        num_passed: Datasets from there to the last of them, these included.

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
    """Look at all datasets: one listing of the inbox and of each asset, merged, and reads of what is not remembered.

    Args:
        after: Begin behind this dataset.

    Yields:
        The state of every dataset that has anything committed or is complete in the inbox, in order of `place`; what a caller
        does not want any more is not looked at.
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
    """Return the digest of the patch classifier in use, or None where there is none."""
    manifest = classifier_in_use(store)
    return None if manifest is None else manifest.digest


def is_release_due(store: Store) -> bool:
    """Tell whether the filtered partitions differ from those in the newest release."""
    current = {f"{FILTERED}/{dataset}": facts.digest for dataset, facts in current_facts(store, FILTERED).items()}
    releases = current_facts(store, RELEASES).values()
    newest = max(releases, key=lambda facts: (facts.details["sequence"], facts.inputs.partition), default=None)
    return bool(current) and (newest is None or dict(newest.inputs.upstream) != current)
