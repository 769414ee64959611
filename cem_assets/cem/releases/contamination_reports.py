"""Contamination reports in the store, as releases see them: pairs of release patch and test image."""

import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.store.assets import BENCHMARK_DATA, CONTAMINATION
from cem_assets.store.manifests import Manifest, committed_partitions, current_manifest
from cem_assets.store.parquet import schema_of
from cem_assets.store.store import Store

PAIRS = "pairs.parquet"


PAIRS_SCHEMA = schema_of(
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("dhash", pa.uint64()),
    ("shard", pa.string()),
    ("row", pa.int64()),
    ("release_row", pa.int64()),
    ("patch_top", pa.int32()),
    ("patch_left", pa.int32()),
    ("patch_height", pa.int32()),
    ("patch_width", pa.int32()),
    ("benchmark", pa.string()),
    ("part", pa.string()),
    ("item", pa.string()),
    ("plane", pa.string()),
    ("test_image", pa.int64()),
    ("top", pa.int32()),
    ("left", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("turn", pa.string()),
    ("distance", pa.int32()),
    ("correlation", pa.float64()),
    ("is_exact", pa.bool_()),
)
"""`row` counts within the shard; `release_row` and `test_image` through the release and the benchmark, as pictures name them.
`plane` is such as "xz 12", empty for 2D images. The windows (px) are those of patch and test image that show the same."""


def report_partition(dataset: str, version: str) -> str:
    """Name the partition that reports on a release, such as "cem-v3"."""
    return f"{dataset}-{version}"


def contamination_reports(store: Store, dataset: str) -> list[Manifest]:
    """List the current reports on the releases of "cem" or "cytoimagenet", in order of partition."""
    names = [name for name in committed_partitions(store, CONTAMINATION) if name.startswith(report_partition(dataset, ""))]
    found = [current_manifest(store, CONTAMINATION, name) for name in names]
    return [manifest for manifest in found if manifest is not None]


def contaminated_patches(store: Store, dataset: str) -> dict[str, dict[tuple[str, int], tuple[str, ...]]]:
    """Gather what any report found against benchmarks that are still in the store.

    All reports count, not the newest alone: one on a release that was made without the patches no longer names them, and the
    release after it must do without them as well.

    Args:
        dataset: "cem" or "cytoimagenet".

    Returns:
        By dataset (label, in CytoImageNet), then by (name, dhash) of a patch: names of the benchmarks, in order. A patch of
        the same name and another dHash was cut from other data since, and is another one.
    """
    prepared = set(committed_partitions(store, BENCHMARK_DATA))
    columns = ["dataset", "name", "dhash", "benchmark"]
    found: dict[str, dict[tuple[str, int], set[str]]] = {}
    for manifest in contamination_reports(store, dataset):
        with store.open(f"{manifest.folder}/{PAIRS}") as handle:
            rows = pq.ParquetFile(handle).read(columns=columns).to_pylist()
        for row in rows:
            if row["benchmark"] in prepared:
                patch = (row["name"], row["dhash"])
                found.setdefault(row["dataset"], {}).setdefault(patch, set()).add(row["benchmark"])
    return {name: {patch: tuple(sorted(hits)) for patch, hits in patches.items()} for name, patches in found.items()}
