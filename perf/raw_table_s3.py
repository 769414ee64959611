"""A volume in a bucket to its table of raw patches in the bucket, beside the way of a script on the same source.

The script way copies an NRRD with s3fs, or reads a Zarr store through zarr and s3fs, and then works as it does on a disk. It
keeps its table in memory, while ours writes the standardized volume and the table to the bucket. The server runs on the same
cores and takes its share of them, so these rows describe requests and copies rather than the speed of a real bucket.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cem_assets.cem.patches.stage import PatchifyParams, cut_and_hash
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.store.parquet import read_parts
from cem_assets.store.store import Store, open_store
from perf.raw_table import DESCRIPTION, SOURCES, hash_all, write_sources
from perf.s3_server import s3_bucket
from perf.timing import Measured

WARM_SIDE, SIDE = 224, 672
_WARM = "warm"


def upload(store: Store, source: Path) -> None:
    """Put a file, or a folder of chunks, into the inbox of a store as its only dataset."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()] if source.is_dir() else [source]
    for path in files:
        store.put(f"inbox/v/{path.relative_to(source.parent).as_posix()}", path)
    store.put("inbox/v/dataset.toml", DESCRIPTION.encode())


def our_way(store: Store) -> dict[str, Any]:
    started = time.perf_counter()
    standardize_dataset(store, "v")
    manifest = cut_and_hash(store, "v", PatchifyParams()).manifest
    seconds = time.perf_counter() - started
    table = next(read_parts(store, manifest, ["name", "dhash"]))
    hashes = dict(zip(*table.to_pydict().values(), strict=True))
    return {"seconds": seconds / manifest.counts["patches"], "hashes": hashes}


def script_way(store: Store, name: str) -> dict[str, Any]:
    import nrrd
    import zarr

    url = store.url_of(f"inbox/v/{SOURCES[name]}")
    started = time.perf_counter()
    if name == "NRRD":
        with tempfile.TemporaryDirectory() as folder:
            store.fs.get_file(url, f"{folder}/v.nrrd")
            voxels = nrrd.read(f"{folder}/v.nrrd", index_order="C")[0]
    else:
        voxels = zarr.open_group(url, mode="r")["0"][:]
    return hash_all(voxels, time.perf_counter() - started)


def run_child(way: str, name: str, url: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        subprocess.run([sys.executable, "-m", "perf.raw_table_s3", way, name, url, str(target)], check=True)
        return json.loads(target.read_text())


def measure(is_quick: bool = False) -> list[Measured]:
    del is_quick  # a small volume would measure only requests to the server
    rows = []
    with tempfile.TemporaryDirectory() as folder, s3_bucket("memstore") as bucket:
        for each in (WARM_SIDE, SIDE):
            (Path(folder) / str(each)).mkdir()
            write_sources(Path(folder) / str(each), each)
        for name in SOURCES:
            found: dict[str, dict[str, Any]] = {}
            for turn in range(2):
                for way in ("script", "ours"):
                    url = f"s3://{bucket}/{name}-{way}-{turn}"
                    upload(open_store(f"{url}/{_WARM}"), Path(folder) / str(WARM_SIDE) / SOURCES[name])
                    upload(open_store(url), Path(folder) / str(SIDE) / SOURCES[name])
                    one = run_child(way, name, url)
                    if way not in found or one["seconds"] < found[way]["seconds"]:
                        found[way] = one
            wanted = found["script"]["hashes"]
            assert {key: found["ours"]["hashes"][key] for key in wanted} == wanted, "the tables differ"
            note = f"{SIDE}^3; {os.cpu_count()} cores, the server on them, too; ours writes to the bucket as well; equal hashes"
            ours, peer = (1 / found[way]["seconds"] for way in ("ours", "script"))
            rows.append(
                Measured(f"{name} in S3 -> standardized -> raw table in S3", "patches/s", ours, peer, "script way", 0, note)
            )
    return rows


if __name__ == "__main__":
    way, name, url, target = sys.argv[1:]
    warm, store = open_store(f"{url}/{_WARM}"), open_store(url)
    if way == "ours":
        our_way(warm)
        result = our_way(store)
    else:
        script_way(warm, name)
        result = script_way(store, name)
    Path(target).write_text(json.dumps(result))
