"""Manifests: the immutable records that make the content of partitions visible.

A partition's folder holds content folders and `_manifests/<n>.json` with n = 1, 2, ...; the manifest with the highest n is the
current one. A manifest lists every object with its size and sha256, what the content was made from, and counts. Its digest
leaves out run ids, times and hosts, so equal work has equal digests. Dagster shows it as the data version.
`cem_assets.store.commits` writes content and manifests.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.errors import DataError
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFESTS = "_manifests"
INLINE_OBJECTS = 10_000
"""If there are more objects than this, a Parquet file beside the manifest lists them."""


def canonical_json(value: Any) -> bytes:
    """Serialize to the JSON text that digests are computed from: keys are sorted, there are no blanks, and it is UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True)
class ManifestObject:
    """One object of a partition's content.

    Attributes:
        name: Path inside the content folder.
        sha256: Hexadecimal digest of the object's bytes.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Inputs:
    """What a partition's content is made from; equal inputs give equal content.

    Attributes:
        asset: Such as "cem/raw_patches".
        partition: Partition key; empty for unpartitioned assets.
        code_version: The asset's entry in `CODE_VERSIONS`, which is raised by hand when its results change.
        parameters: JSON values.
        upstream: The digest of every manifest (or source) that is read, by `asset/partition`.
        pins: Versions of the libraries that the result depends on, such as Pillow's for hashes.
    """

    asset: str
    partition: str
    code_version: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    upstream: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The partition's folder in the store."""
        return f"{self.asset}/{self.partition}" if self.partition else self.asset

    @property
    def content(self) -> str:
        """The name of the content folder: the first 16 hexadecimal digits of a digest over all fields."""
        return hashlib.sha256(canonical_json(vars(self))).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """A committed partition.

    Attributes:
        number: The n of `_manifests/<n>.json`.
        objects: Every object of the content folder, in order of name.
        counts: Row counts and other whole numbers, such as {"rows": 500}.
        details: What a stage records beside its data, as JSON values.
        versions: Versions of the libraries that the content was made with.
        run: Run id, times and host; not part of the digest.
    """

    inputs: Inputs
    number: int
    objects: tuple[ManifestObject, ...]
    counts: Mapping[str, int]
    details: Mapping[str, Any]
    versions: Mapping[str, str]
    run: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The content folder in the store."""
        return f"{self.inputs.folder}/{self.inputs.content}"

    @property
    def key(self) -> str:
        """The key of the manifest itself."""
        return f"{self.inputs.folder}/{MANIFESTS}/{self.number}.json"

    @property
    def num_bytes(self) -> int:
        """The size of all objects together."""
        return sum(item.num_bytes for item in self.objects)

    @property
    def digest(self) -> str:
        """A sha256 over everything except the number and the run; it is equal for equal work."""
        listing = hashlib.sha256()
        for item in self.objects:
            listing.update(f"{item.name}\t{item.num_bytes}\t{item.sha256}\n".encode())
        body = {
            "inputs": vars(self.inputs),
            "objects": listing.hexdigest(),
            "counts": dict(self.counts),
            "details": dict(self.details),
            "versions": dict(self.versions),
        }
        return hashlib.sha256(canonical_json(body)).hexdigest()

    def find(self, suffix: str) -> list[ManifestObject]:
        """List the objects directly in the content folder whose names end with a suffix; side tables are in its subfolders."""
        return [item for item in self.objects if item.name.endswith(suffix) and "/" not in item.name]


def objects_table_key(folder: str, digest: str) -> str:
    """Return the key of the Parquet file that lists the objects of a large manifest."""
    return f"{folder}/{MANIFESTS}/objects-{digest[:16]}.parquet"


def write_manifest(store: Store, manifest: Manifest, is_final: bool = False) -> Manifest:
    """Create a manifest under the next free number; of several writers exactly one gets a number.

    Args:
        manifest: Its `number` is ignored; the number is chosen here.
        is_final: Whether it must be the first and only manifest of its partition, as for releases.

    Returns:
        The manifest with its number. If the current manifest has the same digest, that one is returned and nothing is written,
        so that equal work is committed once.

    Raises:
        FileExistsError: The manifest is final, and there is one already.
    """
    body: dict[str, Any] = {
        "format": FORMAT,
        "digest": manifest.digest,
        "inputs": asdict(manifest.inputs),
        "content": manifest.inputs.content,
        "counts": dict(manifest.counts),
        "num_bytes": manifest.num_bytes,
        "details": dict(manifest.details),
        "versions": dict(manifest.versions),
        "run": dict(manifest.run),
    }
    if len(manifest.objects) <= INLINE_OBJECTS:
        body["objects"] = [asdict(item) for item in manifest.objects]
    else:
        key = objects_table_key(manifest.inputs.folder, manifest.digest)
        table = pa.Table.from_pylist([asdict(item) for item in manifest.objects])
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        store.put(key, sink.getvalue())
        body["objects_table"] = key
    folder = manifest.inputs.folder
    while True:
        numbers = [] if is_final else manifest_numbers(store, folder)
        if numbers and (found := _same_work(store, folder, numbers[-1], manifest.digest)):
            return found
        number = numbers[-1] + 1 if numbers else 1
        text = json.dumps({"number": number, **body}, indent=1, ensure_ascii=False).encode()
        if store.create(f"{folder}/{MANIFESTS}/{number}.json", text):
            return Manifest(**{**_shallow(manifest), "number": number})
        if is_final:
            raise FileExistsError(f"{folder} was committed by another run and never changes afterwards.")


def _same_work(store: Store, folder: str, number: int, digest: str) -> Manifest | None:
    """Return a manifest if it has the given digest: two runs of the same work, or a repair, commit once."""
    try:
        found = read_manifest(store, folder, number)
    except DataError as error:  # a damaged or altered manifest must not prevent its own replacement
        logger.warning("%s", error)
        return None
    return found if found.digest == digest else None


def _shallow(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}


def manifest_numbers(store: Store, folder: str) -> list[int]:
    """List the numbers of a partition's manifests, in order.

    Args:
        folder: The partition's folder, such as "cem/raw_patches/vnc".
    """
    names = store.children(f"{folder}/{MANIFESTS}")
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def read_manifest(store: Store, folder: str, number: int) -> Manifest:
    """Read one manifest and compare it with its own digest.

    Args:
        folder: The partition's folder.

    Raises:
        DataError: The file was damaged or changed after it was written, or has a later format; the error names it.
        FileNotFoundError: There is no such manifest.
    """
    key = f"{folder}/{MANIFESTS}/{number}.json"
    text = store.read(key)
    try:
        body = json.loads(text)
        version = body.get("format")
        manifest = _parsed(store, number, body) if version == FORMAT else None
        written, computed = (str(body["digest"]), manifest.digest) if manifest else ("", "")
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"manifest {key} is damaged ({type(error).__name__}: {error}): parts of it are missing, or are not what was "
            "written. Restore it from a copy, or materialize the partition again."
        ) from error
    if manifest is None:
        raise DataError(
            f"manifest {key} has format {version!r}; this version of cem_assets reads format {FORMAT}. "
            "Read it with the version that wrote it."
        )
    if computed != written:
        raise DataError(
            f"manifest {key} does not match its own digest ({computed[:12]} computed, {written[:12]} "
            "written): it was changed after it was committed. Restore it from a copy, or materialize the partition again."
        )
    return manifest


def _parsed(store: Store, number: int, body: Mapping[str, Any]) -> Manifest:
    rows = _rows_of(store.read(body["objects_table"])) if "objects_table" in body else body["objects"]
    manifest = Manifest(
        inputs=Inputs(**body["inputs"]),
        number=number,
        objects=tuple(ManifestObject(**row) for row in rows),
        counts=body["counts"],
        details=body["details"],
        versions=body["versions"],
        run=body["run"],
    )
    datetime.fromisoformat(manifest.run["started"])  # the digest does not cover it, and automation relies on it
    return manifest


def _rows_of(table: bytes) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(table)).to_pylist()
    except (OSError, pa.ArrowException) as error:  # Arrow reports damaged pages as OSErrors, though the bytes are in memory
        raise DataError(f"its list of objects is no Parquet file: {error}") from error
    return rows


def current_manifest(store: Store, asset: str, partition: str = "") -> Manifest | None:
    """Read the current manifest, or return None where nothing is committed.

    Args:
        partition: Empty for an asset without partitions.
    """
    folder = f"{asset}/{partition}" if partition else asset
    numbers = manifest_numbers(store, folder)
    return read_manifest(store, folder, numbers[-1]) if numbers else None


def require_manifest(store: Store, asset: str, partition: str = "") -> Manifest:
    """Read the current manifest of a partition that must be committed.

    Raises:
        FileNotFoundError: Nothing is committed; the error says what to materialize.
    """
    manifest = current_manifest(store, asset, partition)
    if manifest is None:
        what = f"asset {asset}, partition {partition!r}" if partition else f"asset {asset}"
        known = committed_partitions(store, asset) if partition else []
        hint = f" Committed partitions: {', '.join(known[:20])}." if known else ""
        raise FileNotFoundError(f"{what} has nothing committed in {store.url}; materialize it first.{hint}")
    return manifest


def find_manifest(store: Store, asset: str, partition: str, digest: str) -> Manifest:
    """Read the manifest of a partition that has the given digest, whether it is the current one or an earlier one.

    Raises:
        FileNotFoundError: No manifest has this digest; the error says what to materialize.
    """
    folder = f"{asset}/{partition}" if partition else asset
    for number in reversed(manifest_numbers(store, folder)):
        manifest = read_manifest(store, folder, number)
        if manifest.digest == digest:
            return manifest
    raise FileNotFoundError(
        f"asset {asset}, partition {partition!r}, has no manifest with digest {digest[:12]} any more; materialize the "
        "partition from this asset on."
    )


def committed_partitions(store: Store, asset: str) -> list[str]:
    """List the partitions of an asset that have a manifest, in order."""
    names = [name for name in store.children(asset) if not name.startswith("_")]
    if store.is_local:
        return [name for name in names if store.children(f"{asset}/{name}/{MANIFESTS}")]
    with ThreadPoolExecutor(16) as pool:
        are_committed = pool.map(lambda name: bool(store.children(f"{asset}/{name}/{MANIFESTS}")), names)
        return [name for name, is_committed in zip(names, are_committed, strict=True) if is_committed]


def damaged_objects(store: Store, manifest: Manifest, names: Iterable[str] | None = None) -> dict[str, str]:
    """Compare the objects in the store with a manifest that lists them.

    Args:
        names: The objects whose bytes are hashed; None hashes all of them. Sizes are compared for every object.

    Returns:
        What is wrong, by the name of the object: "missing", another size, or another sha256. Empty if all objects match.
    """
    base = manifest.folder
    present = {item.key[len(base) + 1 :]: item.num_bytes for item in store.walk(base)}
    chosen = None if names is None else set(names)
    wrong: dict[str, str] = {}
    for item in manifest.objects:
        if item.name not in present:
            wrong[item.name] = "missing"
        elif present[item.name] != item.num_bytes:
            wrong[item.name] = f"{present[item.name]} bytes, the manifest says {item.num_bytes}"
        elif chosen is None or item.name in chosen:
            found = store.sha256(f"{base}/{item.name}")
            if found != item.sha256:
                wrong[item.name] = f"sha256 {found[:12]}, the manifest says {item.sha256[:12]}"
    return wrong
