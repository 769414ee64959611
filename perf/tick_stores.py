"""Stores with many committed partitions for measuring ticks, made cheaply: real manifests over tiny objects.

Names, digests, upstream and sizes are what the stages would have committed, so reconciliation finds nothing to do.
"""

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pandas as pd

from cem_assets.catalog.microscopy import terms
from cem_assets.cem.settings import Settings
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import crop_upstream
from cem_assets.cytoimagenet.held_out.guard import load_rules
from cem_assets.cytoimagenet.labels.stage import LABELS, LabelEntry, LabelTableParams, label_key
from cem_assets.cytoimagenet.releases.stage import _ready
from cem_assets.cytoimagenet.tables import LABELS_SCHEMA, frame_bytes
from cem_assets.store.assets import (
    CLASSIFIER,
    CODE_VERSIONS,
    CROPS,
    CYTO_RELEASES,
    FILTERED,
    LABEL_TABLE,
    RELEASES,
    SCORES,
    SOURCE_METADATA,
    STAGES,
)
from cem_assets.store.manifests import Inputs, Manifest, ManifestObject, write_manifest
from cem_assets.store.store import Store

NUM_RELEASES = 3
OBJECTS: dict[str, tuple[str, ...]] = {
    "volumes": ("v.ome.zarr/zarr.json", "v.ome.zarr/0/c/0/0/0"),
    "raw": ("part-00000.parquet",),
    "deduplicated": ("part-00000.parquet", "_duplicates/part-00000.parquet"),
    "scores": ("part-00000.parquet",),
    "filtered": ("part-00000.parquet", "_dropped/part-00000.parquet"),
}
"""Objects of a small dataset, by stage."""
_RUN = {"id": "", "host": "bench", "started": "2100-01-01T00:00:00+00:00"}
"""Later than any upload, so that the inbox looks older than what was made from it."""


@dataclass(frozen=True)
class UnsyncedStore(Store):
    """A local store that does not wait for the disk: for inputs that a benchmark throws away."""

    def put(self, key: str, data: bytes | Path) -> None:
        path = Path(self.url_of(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data) if isinstance(data, bytes) else shutil.copyfile(data, path)

    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def names_of(num: int) -> list[str]:
    return [f"set-{number:05d}" for number in range(num)]


def description_of(name: str) -> bytes:
    return (
        f'name = "{name}"\nkind = "volume"\nvoxel_size_nm = [8, 8, 8]\nlicence = "CC0-1.0"\ncitation = "generated"\n'
    ).encode()


def fill_inbox(store: Store, names: Iterable[str]) -> None:
    def upload(name: str) -> None:
        store.put(f"inbox/{name}/v.nrrd", b"voxels")
        store.put(f"inbox/{name}/dataset.toml", description_of(name))

    _in_parallel(store, upload, names)


def fill_chain(store: Store, num: int) -> None:
    """Commit the whole chain of some datasets, a classifier, and releases that hold all of them."""
    classifier = _commit(store, Inputs(CLASSIFIER, "", CODE_VERSIONS[CLASSIFIER]), ("patch_classifier.safetensors",))
    names = names_of(num)
    fill_inbox(store, names)
    settings = Settings()

    def commit(name: str) -> Manifest:
        before: Manifest | None = None
        for stage, asset in STAGES.items():
            upstream = {f"{before.inputs.asset}/{name}": before.digest} if before else {f"inbox/{name}": "0"}
            if asset == SCORES:
                upstream[CLASSIFIER] = classifier.digest
            inputs = Inputs(asset, name, CODE_VERSIONS[asset], settings.parameters(name, asset), upstream)
            before = _commit(store, inputs, OBJECTS[stage])
        assert before is not None
        return before

    filtered = _in_parallel(store, commit, names)
    upstream = {f"{FILTERED}/{manifest.inputs.partition}": manifest.digest for manifest in filtered}
    contents = [
        {"folder": manifest.folder, "digest": manifest.digest, "counts": dict(manifest.counts)} for manifest in filtered
    ]
    for number in range(1, NUM_RELEASES + 1):
        inputs = Inputs(RELEASES, f"v{number}", CODE_VERSIONS[RELEASES], {}, upstream)
        _commit(store, inputs, ("release.json",), {"sequence": number, "contents": contents})


def fill_cytoimagenet(store: Store, num_sources: int, num_labels: int) -> None:
    """Commit sources, a label table, the crops of all labels, and releases that hold them."""
    sources = [f"source-{number:05d}" for number in range(num_sources)]

    def take_in(name: str) -> Manifest:
        store.put(f"inbox/{name}/source.toml", b"")
        inputs = Inputs(SOURCE_METADATA, name, CODE_VERSIONS[SOURCE_METADATA], {"terms": terms()}, {f"inbox/{name}": "0"})
        return _commit(store, inputs, ("part-00000.parquet",), {"facts": {"name": name, "role": "train"}})

    manifests = _in_parallel(store, take_in, sources)
    rows = []
    for number in range(num_labels):
        label = f"label {number:05d}"
        rows.append({"key": label_key(label, "compound"), "label": label, "category": "compound", "num_images": 100})
    frame = pd.DataFrame([{**row, "digest": sha256(row["key"].encode()).hexdigest()} for row in rows])
    rules = [[rule.test_set, rule.pattern] for rule in load_rules()]
    parameters = {**LabelTableParams().model_dump(mode="json"), "test_set_rules": rules}
    upstream = {f"{SOURCE_METADATA}/{manifest.inputs.partition}": manifest.digest for manifest in manifests}
    facts = {name: {"title": name, "num_images": 1} for name in sources}
    inputs = Inputs(LABEL_TABLE, "", CODE_VERSIONS[LABEL_TABLE], parameters, upstream)
    _commit(store, inputs, (LABELS,), {"sources": facts}, {LABELS: frame_bytes(frame, LABELS_SCHEMA)})

    def crop(row: dict[str, object]) -> Manifest:
        entry = LabelEntry(**row, group=0, start=0)  # type: ignore[arg-type]
        upstream, parameters = crop_upstream(entry, ""), CropStageParams().model_dump(mode="json")
        inputs = Inputs(CROPS, entry.key, CODE_VERSIONS[CROPS], parameters, upstream)
        return _commit(store, inputs, ("part-00000.parquet",), {"sources": sources[:1]})

    crops = {manifest.inputs.partition: manifest for manifest in _in_parallel(store, crop, frame.to_dict("records"))}
    # The same as `members` finds, without reading back one by one what was just written.
    found = _ready(store, crops.get)
    assert found is not None and len(found.current) == num_labels
    contents = [{"folder": manifest.folder, "digest": manifest.digest} for _, manifest in found.current]
    for number in range(1, NUM_RELEASES + 1):
        inputs = Inputs(CYTO_RELEASES, f"v{number}", CODE_VERSIONS[CYTO_RELEASES], {}, found.upstream)
        _commit(store, inputs, ("release.json",), {"sequence": number, "contents": contents})


def _commit(
    store: Store,
    inputs: Inputs,
    names: Iterable[str],
    details: dict[str, object] | None = None,
    data: dict[str, bytes] | None = None,
) -> Manifest:
    objects = []
    for name in sorted(names):
        content = (data or {}).get(name, f"{inputs.asset} {inputs.partition} {name}".encode())
        store.put(f"{inputs.folder}/{inputs.content}/{name}", content)
        objects.append(ManifestObject(name, len(content), sha256(content).hexdigest()))
    counts = {"rows": 100, "images": 100}
    manifest = Manifest(inputs, 1, tuple(objects), counts, details or {}, {"python": "3"}, {**_RUN})
    # It is the first and only manifest, so no listing is needed before it is written.
    return write_manifest(store, replace(manifest, number=0), is_final=True)


def _in_parallel(store: Store, function, items):  # type: ignore[no-untyped-def]
    if store.is_local:
        return [function(item) for item in items]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, items))
