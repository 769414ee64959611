"""The patches of a dataset that can be labelled, in the order they are shown, and their pixels as PNG.

Scored patches are preferred. Deduplicated ones are taken where there is no classifier yet, which is when labels are needed
most, and filtered ones where the store holds nothing else. Patches are scored by `cem_assets.cem.filter.stage`.
"""

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.cem.patches.pixels import PixelJob, pixels_behind
from cem_assets.cem.patches.tables import PATCH_FIELDS
from cem_assets.cytoimagenet.tables import encode_png
from cem_assets.errors import DataError
from cem_assets.store.assets import CLASSIFIER, DEDUPLICATED, FILTERED, SCORES
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Manifest, current_manifest
from cem_assets.store.parquet import read_parts
from cem_assets.store.store import Store
from cem_assets.web.next_patches import Order, order_patches

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 100_000
"""Number of patches, the first in order, that are kept in memory; it is more than anybody labels."""
MAX_CELL_BYTES = 1 << 20
"""Size of a patch's picture in a shard; 224 x 224 px take 50 kB."""
_CACHED_BYTES = 64 << 20
_ROW = [name for name, _ in PATCH_FIELDS]


@dataclass(frozen=True)
class Candidates:
    """The patches that can be labelled.

    Attributes:
        manifest: Manifest of the table that the patches are from.
        order: Their order; it is random where uncertainty was requested and nothing was scored.
        rows: `PATCH_FIELDS` columns of the first `MAX_CANDIDATES`, in order.
        num_patches: Number of patches in the table.
        classifier: Digest of the classifier that scored them; empty where none did.
    """

    manifest: Manifest
    order: Order
    rows: pa.Table
    num_patches: int
    classifier: str


def find_candidates(store: Store, dataset: str, order: Order, seed: int) -> Candidates:
    """Read the patches of a dataset and order them.

    Args:
        seed: Seed of the random order, and of ties.

    Raises:
        FileNotFoundError: The dataset has no deduplicated, scored or filtered patches.
    """
    for asset in (SCORES, DEDUPLICATED, FILTERED):
        manifest = current_manifest(store, asset, dataset)
        if manifest is not None:
            break
    else:
        raise FileNotFoundError(
            f"dataset {dataset!r} has no patches to label in {store.url}; materialize {DEDUPLICATED} for it first "
            "(cem-assets ingest FOLDER --until deduplicated)."
        )
    is_scored = manifest.inputs.asset == SCORES
    if order == Order.uncertainty and not is_scored:
        logger.warning("%s has no scores yet: its patches come in random order, not by uncertainty", dataset)
        order = Order.random
    wanted = [*_ROW, "informative"] if is_scored else _ROW
    held, num_patches = pa.schema([]).empty_table(), 0
    for part in read_parts(store, manifest, wanted, 1 << 18):
        num_patches += len(part)
        part = part.replace_schema_metadata(None)
        held = pa.concat_tables([held, part]) if held.num_columns else part
        probabilities = held["informative"].to_numpy() if is_scored else None
        rows = order_patches(held["name"].to_pylist(), probabilities, order, seed)[:MAX_CANDIDATES]
        held = held.take(pa.array(rows)).combine_chunks()
    if not num_patches:
        raise FileNotFoundError(f"{manifest.inputs.asset} of {dataset!r} has no rows; there is nothing to label.")
    classifier = manifest.inputs.upstream.get(CLASSIFIER, "") if is_scored else ""
    return Candidates(manifest, order, held.select(_ROW), num_patches, classifier)


class PatchPictures:
    """Makes PNG pictures of candidates and keeps the most recent ones in memory; safe to use from several threads.

    Raises:
        FileNotFoundError: The standardized data from which the patches are cut were swept.
    """

    def __init__(self, store: Store, dataset: str, candidates: Candidates) -> None:
        self._store, self._rows, self._manifest = store, candidates.rows, candidates.manifest
        self._row_of = {name: row for row, name in enumerate(candidates.rows["name"].to_pylist())}
        is_filtered = candidates.manifest.inputs.asset == FILTERED
        self._job = None if is_filtered else PixelJob(pixels_behind(store, candidates.manifest))
        self._groups: dict[str, tuple[str, int]] = self._index_shards() if is_filtered else {}
        self._last: tuple[tuple[str, int], dict[str, bytes]] | None = None
        self._cached: OrderedDict[str, bytes] = OrderedDict()
        self._num_cached_bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._row_of

    def png(self, name: str) -> bytes:
        """Return a patch's picture.

        Raises:
            KeyError: The patch is not one of the candidates.
            DataError: The picture in the store is damaged, or larger than a patch can be.
            FileNotFoundError: The pixels are gone from the store.
        """
        # One request at a time, because neighbouring requests want the same brick or row group, which is then read once.
        with self._lock:
            if name in self._cached:
                self._cached.move_to_end(name)
                return self._cached[name]
            data = encode_png(self._pixels(name, self._row_of[name]))
            self._keep(name, data)
            return data

    def _pixels(self, name: str, row: int) -> NDArray[np.uint8]:
        if self._job is not None:
            return self._job(self._rows.slice(row, 1))[0]
        cell = self._group(*self._groups[name])[name]
        if len(cell) > MAX_CELL_BYTES:
            raise DataError(
                f"the picture of {name} in {self._manifest.folder} has {len(cell)} bytes; expected at most {MAX_CELL_BYTES}. "
                f"Materialize {FILTERED} again."
            )
        return decode_image(cell)

    def _keep(self, name: str, data: bytes) -> None:
        self._num_cached_bytes += len(data)
        self._cached[name] = data
        while self._num_cached_bytes > _CACHED_BYTES and len(self._cached) > 1:
            _, dropped = self._cached.popitem(last=False)
            self._num_cached_bytes -= len(dropped)

    def _index_shards(self) -> dict[str, tuple[str, int]]:
        index: dict[str, tuple[str, int]] = {}
        for item in self._manifest.find(".parquet"):
            with self._store.open(f"{self._manifest.folder}/{item.name}") as handle:
                file = pq.ParquetFile(handle)
                for group in range(file.num_row_groups):
                    names = file.read_row_group(group, columns=["name"])["name"].to_pylist()
                    index |= dict.fromkeys((name for name in names if name in self._row_of), (item.name, group))
        return index

    def _group(self, part: str, group: int) -> dict[str, bytes]:
        if self._last is None or self._last[0] != (part, group):
            with self._store.open(f"{self._manifest.folder}/{part}") as handle:
                rows = pq.ParquetFile(handle).read_row_group(group, columns=["name", "image"]).to_pylist()
            self._last = ((part, group), {row["name"]: row["image"]["bytes"] for row in rows})
        return self._last[1]
