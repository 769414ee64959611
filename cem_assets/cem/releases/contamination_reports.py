"""Contamination reports in the store: which patches of releases show test images of benchmarks."""

from collections.abc import Sequence

import pyarrow as pa

from cem_assets.store.assets import BENCHMARK_DATA, CONTAMINATION
from cem_assets.store.manifests import Manifest, committed_partitions, current_manifest
from cem_assets.store.parquet import parquet_file, schema_of
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
"""Columns of the pairs of a patch and a test image. `row` counts within the shard, `release_row` through the whole release, and
`test_image` through the benchmark; pictures are named after these numbers. `plane` is for example "xz 12", and empty for 2D
images. The windows, in px, are the parts of the patch and of the test image that show the same."""


def report_partition(dataset: str, version: str) -> str:
    """Return the name of the partition with the report on a release, such as "cem-v3"."""
    return f"{dataset}-{version}"


def contamination_reports(store: Store, dataset: str) -> list[Manifest]:
    """List the current reports on the releases of "cem" or "cytoimagenet", in order of partition."""
    names = [name for name in committed_partitions(store, CONTAMINATION) if name.startswith(report_partition(dataset, ""))]
    found = [current_manifest(store, CONTAMINATION, name) for name in names]
    return [manifest for manifest in found if manifest is not None]


def contaminated_patches(store: Store, reports: Sequence[Manifest]) -> dict[str, dict[tuple[str, int], tuple[str, ...]]]:
    """Gather the patches that any report names for a benchmark that is still in the store.

    The newest report alone would not do: if its release was made without the patches, it does not name them, and the next
    release would have them again.

    Args:
        reports: From `contamination_reports`.

    Returns:
        The names of the benchmarks in order, by dataset (in CytoImageNet: by label) and then by (name, dhash) of the patch. A
        patch with the same name and another dHash was cut from newer data, so it is a different patch.
    """
    prepared = set(committed_partitions(store, BENCHMARK_DATA))
    columns = ["dataset", "name", "dhash", "benchmark"]
    found: dict[str, dict[tuple[str, int], set[str]]] = {}
    for manifest in reports:
        with store.open(f"{manifest.folder}/{PAIRS}") as handle:
            rows = parquet_file(handle).read(columns=columns).to_pylist()
        for row in rows:
            if row["benchmark"] in prepared:
                patch = (row["name"], row["dhash"])
                found.setdefault(row["dataset"], {}).setdefault(patch, set()).add(row["benchmark"])
    return {name: {patch: tuple(sorted(hits)) for patch, hits in patches.items()} for name, patches in found.items()}
