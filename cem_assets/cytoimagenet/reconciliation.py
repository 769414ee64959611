"""Which of CytoImageNet's assets are missing or stale; the counterpart of `cem_assets.cem.reconciliation`.

The manifests in the store are compared with what the inbox and `settings/cytoimagenet.toml` ask for. Nothing else decides;
Dagster's runs only tell what is being done already.
"""

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from heapq import merge
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ValidationError

from cem_assets.catalog.microscopy import terms
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import crop_upstream
from cem_assets.cytoimagenet.held_out.guard import load_rules
from cem_assets.cytoimagenet.held_out.stage import test_images_upstream
from cem_assets.cytoimagenet.labels.stage import LabelTableParams, label_entries, source_digests
from cem_assets.cytoimagenet.sources.inbox import SOURCE_TOML
from cem_assets.errors import DataError
from cem_assets.inbox.datasets import Arrival, arrivals
from cem_assets.store.assets import CODE_VERSIONS, CROPS, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.manifest_facts import ManifestFacts, committed_facts, current_fact, is_whole
from cem_assets.store.manifests import Manifest, canonical_json, current_manifest
from cem_assets.store.partition_listing import PartitionListing, place
from cem_assets.store.store import Store

SETTINGS = "settings/cytoimagenet.toml"
_Committed = tuple[PartitionListing, ManifestFacts | None]
_Seen = tuple[str, Arrival | _Committed]
_EXAMPLE = """\
[label_table]
min_images = 100

[crops]
min_images = 100
"""


@dataclass(frozen=True)
class CytoSettings:
    """The operator's settings.

    Attributes:
        label_table: Parameters of the label table.
        crops: Parameters of the crops.
        config: Values that differ from the defaults, by asset, as Dagster config.
    """

    label_table: LabelTableParams = field(default_factory=LabelTableParams)
    crops: CropStageParams = field(default_factory=CropStageParams)
    config: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CytoWork:
    """Something to be computed.

    Attributes:
        partition: Partition key; empty for an asset without partitions.
        reason: Why it must be computed, in words.
        key: Identifies this work. It stays the same as long as the store and the settings stay the same.
        is_look_only: Whether the only reason is that files in the inbox were written again. Their contents may be the same.
    """

    asset: str
    partition: str
    reason: str
    key: str
    is_look_only: bool = False


def read_cyto_settings(store: Store) -> CytoSettings:
    """Read the settings of a store, or take the defaults if there is no settings file.

    Raises:
        DataError: The file is not TOML, or has unknown parameters or wrong values; the error lists all of them.
    """
    try:
        data = tomllib.loads(store.read(SETTINGS).decode("utf-8-sig"))
    except FileNotFoundError:
        return CytoSettings()
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{SETTINGS} is not valid TOML in UTF-8: {error}. An example:\n{_EXAMPLE}") from error
    models: dict[str, type[BaseModel]] = {"label_table": LabelTableParams, "crops": CropStageParams}
    problems = [f"unknown table {name!r}; expected {' or '.join(models)}" for name in data if name not in models]
    checked: dict[str, Any] = {}
    for name, model in models.items():
        values = data.get(name, {})
        unknown = sorted(set(values) - set(model.model_fields)) if isinstance(values, dict) else [name]
        problems += [f"{name}.{key} is unknown; expected {', '.join(model.model_fields)}" for key in unknown]
        try:
            checked[name] = model.model_validate(values)
        except ValidationError as error:
            problems += [f"{name}.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{SETTINGS} has {len(problems)} problem(s):\n{listing}\nAn example:\n{_EXAMPLE}")
    config = {LABEL_TABLE: dict(data.get("label_table", {})), CROPS: dict(data.get("crops", {}))}
    return CytoSettings(checked["label_table"], checked["crops"], config)


def source_work(store: Store, source: str, arrival: Arrival | None) -> CytoWork | None:
    """Tell what a source needs. A source whose files are no longer in the inbox needs nothing."""
    return None if arrival is None else _source_work(store, source, arrival, current_fact(store, SOURCE_METADATA, source))


def source_works(store: Store, after: str = "") -> Iterator[tuple[str, CytoWork | None]]:
    """Tell what the sources that are complete in the inbox need, one after the other, in order of `place`.

    Args:
        after: Name of the last source that the caller has seen; empty starts with the first one.
    """
    streams: list[Iterator[_Seen]] = [
        ((place(found.dataset), found) for found in arrivals(store, after, SOURCE_TOML)),
        ((place(found[0].name), found) for found in committed_facts(store, SOURCE_METADATA, after)),
    ]
    for where, group in groupby(merge(*streams, key=lambda seen: seen[0]), key=lambda seen: seen[0]):
        found = [item for _, item in group]
        source = where.removesuffix("/")
        if isinstance(found[0], Arrival):
            committed = next((item for item in found if not isinstance(item, Arrival)), None)
            yield source, _source_work(store, source, found[0], committed or (PartitionListing(source, None, {}), None))


def _source_work(store: Store, source: str, arrival: Arrival, committed: _Committed) -> CytoWork | None:
    manifest = committed[1]
    reason = _reason(store, committed, SOURCE_METADATA, {"terms": terms()}, None)
    is_look_only = False
    if not reason and manifest is not None and arrival.modified > datetime.fromisoformat(manifest.run["started"]).timestamp():
        reason, is_look_only = "source.toml was written again", True
    facts = [arrival.fingerprint, terms()]
    return _work(SOURCE_METADATA, source, reason, manifest, facts, is_look_only) if reason else None


def test_images_work(store: Store) -> CytoWork | None:
    """Tell whether test images must be fingerprinted again. Nothing is needed while no source is a test set."""
    committed = current_fact(store, TEST_IMAGES)
    upstream = test_images_upstream(store)
    if not upstream and committed[1] is None:
        return None
    reason = _reason(store, committed, TEST_IMAGES, {}, upstream)
    return _work(TEST_IMAGES, "", reason, committed[1], [upstream]) if reason else None


def label_table_work(store: Store, settings: CytoSettings) -> CytoWork | None:
    """Tell whether the label table must be made again. Nothing is needed before the first source is committed."""
    upstream = source_digests(store)
    if not upstream:
        return None
    committed = current_fact(store, LABEL_TABLE)
    rules = [[rule.test_set, rule.pattern] for rule in load_rules()]
    parameters = {**settings.label_table.model_dump(mode="json"), "test_set_rules": rules}
    reason = _reason(store, committed, LABEL_TABLE, parameters, upstream)
    return _work(LABEL_TABLE, "", reason, committed[1], [upstream, parameters]) if reason else None


def crop_works(store: Store, settings: CytoSettings, after: str = "") -> Iterator[tuple[str, CytoWork | None]]:
    """Tell what the crops of labels need, one label after the other, in order of `place`.

    Args:
        after: Key of the last label that the caller has seen; empty starts with the first one.
    """
    table = _current(store, LABEL_TABLE)
    if table is None:
        return
    tests = _current(store, TEST_IMAGES)
    guard = tests.digest if tests else ""
    parameters = settings.crops.model_dump(mode="json")
    every = committed_facts(store, CROPS, after)
    at: _Committed | None = next(every, None)
    for key, entry in sorted(label_entries(store, table).items(), key=lambda item: place(item[0])):
        if after and place(key) <= place(after):
            continue
        while at is not None and place(at[0].name) < place(key):  # crops of labels that are no longer in the table
            at = next(every, None)
        committed = at if at is not None and at[0].name == key else (PartitionListing(key, None, {}), None)
        upstream = crop_upstream(entry, guard)
        reason = _reason(store, committed, CROPS, parameters, upstream)
        yield key, _work(CROPS, key, reason, committed[1], [upstream, parameters]) if reason else None


def _current(store: Store, asset: str) -> Manifest | None:
    try:
        return current_manifest(store, asset)
    except DataError:  # a damaged or altered manifest counts as missing
        return None


def _reason(
    store: Store, committed: _Committed, asset: str, parameters: dict[str, Any], upstream: dict[str, str] | None
) -> str:
    listing, manifest = committed
    if manifest is None:
        return "nothing is committed" if listing.newest is None else "its manifest is damaged"
    if not is_whole(store, listing, manifest):
        return "objects are gone or changed"
    if upstream is not None and dict(manifest.inputs.upstream) != upstream:
        return "what it is made from changed"
    if dict(manifest.inputs.parameters) != parameters:
        return "other parameters are set"
    if manifest.inputs.code_version != CODE_VERSIONS[asset]:
        return "it was made by older code"
    return ""


def _work(
    asset: str, partition: str, reason: str, manifest: ManifestFacts | None, facts: list[Any], is_look_only: bool = False
) -> CytoWork:
    committed = manifest.digest if manifest else ""
    body = canonical_json([asset, partition, committed, CODE_VERSIONS[asset], facts])
    return CytoWork(asset, partition, reason, hashlib.sha256(body).hexdigest()[:16], is_look_only)
