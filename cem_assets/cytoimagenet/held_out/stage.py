"""Stage `cytoimagenet/test_images`: fingerprints of the benchmarks' images, which must not become training images.

Sources with `role = "test"` are read like any other source, and this stage fingerprints their images. The crops stage compares
every image with them, both by the digests of its files and by content (`cem_assets.cytoimagenet.held_out.guard`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cem_assets.cytoimagenet.channels import merge_channels, merge_image
from cem_assets.cytoimagenet.held_out.guard import FingerprintIndex
from cem_assets.cytoimagenet.source_images import planes_of, read_images
from cem_assets.cytoimagenet.sources.stage import file_of
from cem_assets.cytoimagenet.tables import read_frame, records_of
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine, local_engine
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.store.assets import CODE_VERSIONS, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.manifest_facts import current_facts
from cem_assets.store.manifests import Inputs, Manifest, committed_partitions, current_manifest
from cem_assets.store.parquet import parquet_bytes, parquet_file
from cem_assets.store.store import Store

TABLE = "part-00000.parquet"
_SIDE = 32
SCHEMA = pa.schema(
    [
        ("test_set", pa.string()),
        ("name", pa.string()),
        ("sha256", pa.list_(pa.string())),
        ("dhash", pa.list_(pa.uint64())),
        ("thumbnail", pa.binary()),
        ("problem", pa.string()),
    ]
)
"""`dhash` has the hashes of the eight flips and turns, and `thumbnail` has 32 x 32 gray pixels. Both are empty if the image has
a problem."""


@dataclass(frozen=True)
class TestImages:
    """The test images that training images are compared with.

    Attributes:
        index: Their fingerprints.
        files: The test set of each file, by the file's sha256.
    """

    __test__ = False

    index: FingerprintIndex
    files: Mapping[str, str]


def test_sources(store: Store) -> list[Manifest]:
    """List the committed sources whose images are test images."""
    found = [current_manifest(store, SOURCE_METADATA, name) for name in committed_partitions(store, SOURCE_METADATA)]
    return [manifest for manifest in found if manifest is not None and manifest.details["facts"]["role"] == "test"]


def test_images_upstream(store: Store) -> dict[str, str]:
    """Return what the fingerprints are made from: the digest of every test source, by `asset/partition`."""
    sources = current_facts(store, SOURCE_METADATA)
    return {f"{SOURCE_METADATA}/{name}": it.digest for name, it in sources.items() if it.details["facts"]["role"] == "test"}


def fingerprint_test_images(
    store: Store, run_id: str = "", engine: Engine | None = None, progress: Progress = no_progress
) -> StageResult:
    """Fingerprint the images of all sources with `role = "test"`.

    Args:
        engine: Fingerprints the images in parallel; None chooses a pool of processes.

    Returns:
        The committed `cytoimagenet/test_images`; empty if there is no such source.
    """
    sources = test_sources(store)
    upstream = test_images_upstream(store)
    stage = begin(store, Inputs(TEST_IMAGES, "", CODE_VERSIONS[TEST_IMAGES], {}, upstream), run_id)
    if stage.up_to_date:
        return stage.up_to_date
    rows = [row for manifest in sources for row in _rows(store, manifest)]
    chosen_engine = engine or local_engine(None, len(rows), 16)
    found: list[dict[str, Any]] = []
    for number, records in enumerate(chosen_engine.map(_PrintJob(store), rows), 1):
        found += records
        progress(number, len(rows))
    stage.commit.write(TABLE, parquet_bytes([pa.Table.from_pylist(found, schema=SCHEMA)], SCHEMA, dictionary=("test_set",)))
    num_bad = sum(bool(record["problem"]) for record in found)
    counts = {"sources": len(sources), "images": len(rows), "fingerprints": len(found) - num_bad, "unreadable": num_bad}
    by_set = {manifest.inputs.partition: manifest.counts["rows_with_images"] for manifest in sources}
    return stage.finish(counts, {"images_by_source": by_set})


def _rows(store: Store, manifest: Manifest) -> list[dict[str, Any]]:
    frame = read_frame(store, manifest, TABLE)
    return records_of(frame[[bool(files) for files in frame["files"]]])


@dataclass(frozen=True)
class _PrintJob:
    """Fingerprints an image: all channels merged, and each channel alone. It can be pickled."""

    store: Store

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        digests = {file_of(name): digest for name, digest in zip(row["files"], row["sha256"], strict=True)}
        base = {"test_set": row["source"], "sha256": list(row["sha256"]), "problem": ""}
        try:
            planes = planes_of(row["files"], read_images(self.store, row["source"], digests))
            pictures = [(row["idx"], merge_image(planes.planes, planes.is_colour))]
        except (DataError, FileNotFoundError) as error:
            return [{**base, "name": row["idx"], "dhash": [], "thumbnail": b"", "problem": str(error)[:500]}]
        if len(planes.planes) > 1 and not planes.is_colour:
            pictures += [(f"{row['idx']} channel {n}", merge_channels([plane])) for n, plane in enumerate(planes.planes, 1)]
        names, hashes, thumbnails = FingerprintIndex.from_images(pictures).to_arrays()
        return [
            {**base, "name": name, "dhash": [int(value) for value in prints], "thumbnail": thumbnail.tobytes()}
            for name, prints, thumbnail in zip(names, hashes, thumbnails, strict=True)
        ]


def read_test_images(store: Store, manifest: Manifest | None) -> TestImages:
    """Read the test images of a manifest of `cytoimagenet/test_images`; None gives an index without images."""
    rows: list[dict[str, Any]] = []
    if manifest is not None:
        with store.open(f"{manifest.folder}/{TABLE}") as handle:
            rows = parquet_file(handle).read().to_pylist()
    files = {digest: row["test_set"] for row in rows for digest in row["sha256"]}
    usable = [row for row in rows if row["dhash"]]
    hashes = np.array([row["dhash"] for row in usable], np.uint64).reshape(-1, 8)
    thumbnails = np.frombuffer(b"".join(row["thumbnail"] for row in usable), np.uint8).reshape(-1, _SIDE, _SIDE)
    return TestImages(FingerprintIndex([row["name"] for row in usable], hashes, thumbnails), files)
