"""Copies of shards of filtered patches without some of their rows, for releases that leave patches out.

`cem_assets.cem.releases.stage` decides which patches are left out.
"""

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cem_assets.cem.patches.tables import FILTERED_SCHEMA
from cem_assets.cem.pixel_sums import PixelSums
from cem_assets.errors import DataError
from cem_assets.store.commits import Commit
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import Manifest, ManifestObject
from cem_assets.store.parquet import IMAGE_ROW_GROUP, parquet_bytes, parquet_file, part_name, read_parts
from cem_assets.store.store import Store


def patch_hashes(store: Store, manifest: Manifest) -> list[tuple[str, int]]:
    """List the (name, dHash) of the patches of a table, in order."""
    found: list[tuple[str, int]] = []
    for table in read_parts(store, manifest, ["name", "dhash"]):
        found += zip(table["name"].to_pylist(), table["dhash"].to_pylist(), strict=True)
    return found


def write_without(
    store: Store, commit: Commit, manifest: Manifest, folder: str, names: Collection[str]
) -> tuple[list[ManifestObject], PixelSums]:
    """Write the shards of a dataset into a commit, without some patches.

    Shards that lose no patches are copied byte by byte. One shard is in memory at a time, and shards that a killed run left
    behind are used.

    Args:
        manifest: A manifest of `cem/filtered_patches`.
        folder: Folder for the shards inside the commit.
        names: Names of the patches that are left out.

    Returns:
        The shards, of which there is at least one, and the sums over the pixels of the patches that are left out.

    Raises:
        DataError: A shard does not match its manifest.
    """
    left_out = pa.array(sorted(names), pa.string())
    written: list[ManifestObject] = []
    lost = PixelSums()
    for item in manifest.find(".parquet"):
        key, name = f"{manifest.folder}/{item.name}", f"{folder}/{part_name(len(written))}"
        with store.open(key) as handle:
            file = parquet_file(handle)
            is_out = pc.is_in(file.read(columns=["name"])["name"], value_set=left_out).to_numpy()
            lost += _sums(file, is_out)
            if is_out.all():
                continue  # no row of it is kept
            if commit.has(name):
                written.append(commit.adopt(name))
                continue
            if is_out.any():
                kept = file.read().filter(pa.array(~is_out))
                written.append(commit.write(name, parquet_bytes([kept], FILTERED_SCHEMA, IMAGE_ROW_GROUP)))
                continue
        copied = commit.write(name, store.read(key))
        if copied.sha256 != item.sha256:
            raise DataError(
                f"{key} has sha256 {copied.sha256[:12]}, but its manifest says {item.sha256[:12]}. Materialize "
                f"{manifest.inputs.asset}, partition {manifest.inputs.partition!r}, again to repair it."
            )
        written.append(copied)
    if not written:  # an empty table still tells readers its columns
        written.append(commit.write(f"{folder}/{part_name(0)}", parquet_bytes([], FILTERED_SCHEMA)))
    return written, lost


def _sums(file: pq.ParquetFile, is_out: NDArray[np.bool_]) -> PixelSums:
    """Sum over the pixels of some rows. Only row groups that have such rows are read."""
    sums, start = PixelSums(), 0
    for group in range(file.metadata.num_row_groups):
        num = file.metadata.row_group(group).num_rows
        chosen = is_out[start : start + num]
        start += num
        if not chosen.any():
            continue
        for cell in file.read_row_group(group, columns=["image"])["image"].filter(pa.array(chosen)).to_pylist():
            sums += PixelSums.of(decode_image(cell["bytes"]))
    return sums
