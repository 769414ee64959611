"""The forms in which patches are exported: a tree of TIFF files, tars for WebDataset, or Parquet files for HF datasets.

One shard of the release is in memory at a time. `cem_assets.cem.export.export` writes the files that describe an export, and
`cem_assets.cem.export.folder` is its target.
"""

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cem_assets.cem.export.croissant import PATCH_FIELDS
from cem_assets.cem.export.facts import DatasetFacts, ExportedFile
from cem_assets.cem.export.folder import ExportFolder, sha256_of
from cem_assets.cem.export.names import clashing_names, name_key, plain_name
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress
from cem_assets.store.manifests import ManifestObject
from cem_assets.store.ranges import opened
from cem_assets.store.store import Store

METADATA = "metadata.csv"

_BATCH_ROWS = 256
_BLOCK = 1 << 22
_COLUMNS = tuple(name for name, _, _ in PATCH_FIELDS)


@dataclass(frozen=True)
class ReleasedShards:
    """The shards of one dataset of a release.

    Attributes:
        facts: The facts about the dataset.
        folder: Folder of the shards in the store.
        objects: The shards, in order.
    """

    facts: DatasetFacts
    folder: str
    objects: tuple[ManifestObject, ...]


@dataclass(frozen=True)
class Export:
    """What every form needs.

    Attributes:
        store: The store that has the release.
        datasets: The datasets, in order of name.
        scratch: A local folder for temporary files.
        num_patches: Number of patches of all datasets together.
        progress: Called with the number of patches that are written, and with that of all patches.
    """

    store: Store
    datasets: tuple[ReleasedShards, ...]
    target: ExportFolder
    scratch: Path
    num_patches: int
    progress: Progress


def write_tiff_tree(export: Export) -> list[ExportedFile]:
    """Write each patch as `{dataset}/{name}.tiff`, uncompressed single-channel uint8, and `metadata.csv`.

    Returns:
        The file `metadata.csv`, which lists the images.

    Raises:
        DataError: A shard does not match the release.
    """
    done = 0
    with _rows_of(export, ()) as (path, rows), export.target.threads() as pool:
        for shards in export.datasets:
            clashes = clashing_names(_names(export, shards))
            for item in shards.objects:
                shard = _fetched(export, shards, item)
                for batch in pq.ParquetFile(shard).iter_batches(_BATCH_ROWS, columns=[*_COLUMNS, "image"]):
                    table = pa.Table.from_batches([batch])
                    files = [
                        f"{shards.facts.folder}/{plain_name(name, is_clashing=name_key(name) in clashes)}.tiff"
                        for name in table["name"].to_pylist()
                    ]
                    written = export.target.put_all(list(zip(files, _images(table), strict=True)), pool)
                    sums = [image.sha256 for image in written]
                    for record, file, digest in zip(_records(table), files, sums, strict=True):
                        rows.writerow([*record, file, shards.facts.licence, digest])
                    done += len(table)
                    export.progress(done, export.num_patches)
    return [export.target.put(METADATA, path)]


def write_webdataset(export: Export) -> list[ExportedFile]:
    """Write each shard as `patches-{number}.tar` with `{dataset}/{key}.tiff` and `.json` of every patch, in order of key.

    Keys are the safe names of patches, without dots, because WebDataset ends the name of a sample at the first dot. Owners,
    times and modes in the tars are constant, so equal shards give equal bytes. In the JSON, `dhash` has 16 hex digits.

    Returns:
        The tars and `metadata.csv`.

    Raises:
        DataError: A shard does not match the release.
    """
    done = 0
    found: list[ExportedFile] = []
    with _rows_of(export, ("shard",)) as (path, rows):
        for shards in export.datasets:
            clashes = clashing_names(_names(export, shards))
            for item in shards.objects:
                table = pq.ParquetFile(_fetched(export, shards, item)).read(columns=[*_COLUMNS, "image"])
                if not len(table):
                    continue
                name = f"patches-{len(found):06d}.tar"
                keys = [
                    plain_name(text, has_dots=False, is_clashing=name_key(text) in clashes)
                    for text in table["name"].to_pylist()
                ]
                order = sorted(range(len(keys)), key=keys.__getitem__)
                table, keys = table.take(order), [keys[n] for n in order]
                archive = export.scratch / name
                sums = _write_tar(archive, shards.facts, table, keys)
                found.append(export.target.put(name, archive))
                archive.unlink()
                for record, key, digest in zip(_records(table), keys, sums, strict=True):
                    rows.writerow([*record, f"{shards.facts.folder}/{key}.tiff", shards.facts.licence, digest, name])
                done += len(table)
                export.progress(done, export.num_patches)
    return [*found, export.target.put(METADATA, path)]


def write_parquet(export: Export) -> list[ExportedFile]:
    """Copy the shards byte by byte as `data/{dataset}/part-{number}.parquet`. Shards without patches are left out.

    Raises:
        DataError: A shard does not match the release.
    """
    done = 0
    found: list[ExportedFile] = []
    for shards in export.datasets:
        number = 0
        for item in shards.objects:
            shard = _fetched(export, shards, item)
            if not (num_rows := pq.read_metadata(shard).num_rows):
                continue
            found.append(export.target.put(f"data/{shards.facts.folder}/part-{number:05d}.parquet", shard, item.sha256))
            number += 1
            done += num_rows
            export.progress(done, export.num_patches)
    return found


def hf_card(card: str, folders: Sequence[str]) -> str:
    """Add the configurations that `datasets.load_dataset(folder)` reads to a dataset card: one of all patches, one per dataset.

    Args:
        card: Markdown, with or without a YAML header.
        folders: Folders, below `data/`, of the datasets that have patches. None of them is named "default".
    """
    lines = ["configs:"]
    for name, pattern in [("default", "data/*/*.parquet"), *((folder, f"data/{folder}/*.parquet") for folder in folders)]:
        # JSON strings are valid YAML strings. Without quotes, a dataset named 2024 or yes would not be a string in YAML.
        lines += [f"- config_name: {json.dumps(name)}", "  data_files:", "  - split: train", f"    path: {json.dumps(pattern)}"]
        lines += ["  default: true"] if name == "default" else []
    head = "\n".join(lines) + "\n"
    if card.startswith("---\n") and (end := card.find("\n---\n")) > 0:
        return f"{card[: end + 1]}{head}{card[end + 1 :]}"
    return f"---\n{head}---\n\n{card}"


def csv_bytes(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Write a small table as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


@contextmanager
def _rows_of(export: Export, more: Sequence[str]) -> Iterator[tuple[Path, Any]]:
    """Open the table of patches for writing in the scratch folder, because it may be too large for memory."""
    path = export.scratch / METADATA
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow([*_COLUMNS, "file", "licence", "sha256", *more])
        yield path, writer


def _names(export: Export, shards: ReleasedShards) -> Iterator[str]:
    for item in shards.objects:
        key = f"{shards.folder}/{item.name}"
        with opened(export.store, key, item.num_bytes) as handle:
            try:
                for batch in pq.ParquetFile(handle).iter_batches(1 << 14, columns=["name"]):
                    yield from batch["name"].to_pylist()
            except pa.ArrowException as error:
                raise DataError(
                    f"{key} cannot be read as Parquet: {error}. Materialize the dataset {shards.facts.name!r} again to repair "
                    "its shards."
                ) from error


def _fetched(export: Export, shards: ReleasedShards, item: ManifestObject) -> Path:
    """Return a local copy of a shard, after comparing it with the release. The copy of the next shard replaces it."""
    key = f"{shards.folder}/{item.name}"
    if export.store.is_local:
        path = Path(export.store.url_of(key))
        digest = sha256_of(path)
    else:
        path, hashed = export.scratch / "shard.parquet", hashlib.sha256()
        with export.store.open(key) as source, open(path, "wb") as copy:
            while block := source.read(_BLOCK):
                hashed.update(block)
                copy.write(block)
        digest = hashed.hexdigest()
    if digest != item.sha256:
        raise DataError(
            f"{key} has sha256 {digest[:12]}, but the release says {item.sha256[:12]}. Materialize the dataset "
            f"{shards.facts.name!r} again to repair its shards."
        )
    return path


def _records(table: pa.Table) -> Iterator[list[Any]]:
    """Yield the values of rows for CSV. A float32 has the fewest digits from which it can be restored."""
    columns = {name: table[name].to_pylist() for name in _COLUMNS}
    columns["informative"] = table["informative"].to_numpy().astype(np.float32).astype(str).tolist()
    yield from (list(row) for row in zip(*columns.values(), strict=True))


def _images(table: pa.Table) -> list[bytes]:
    return [cell["bytes"] for cell in table["image"].to_pylist()]


def _write_tar(path: Path, facts: DatasetFacts, table: pa.Table, keys: Sequence[str]) -> list[str]:
    """Write a tar of samples, and return the sha256 of each image."""
    sums = []
    cells = table["image"]
    rows = table.select(list(_COLUMNS)).to_pylist()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, (key, row) in enumerate(zip(keys, rows, strict=True)):
            image = cells[number].as_py()["bytes"]
            sums.append(hashlib.sha256(image).hexdigest())
            # A hash has 64 bits, and many JSON readers cannot represent such numbers exactly.
            about = {**row, "dhash": f"{row['dhash']:016x}", "licence": facts.licence, "sha256": sums[-1]}
            text = json.dumps(about, sort_keys=True, ensure_ascii=False).encode()
            for ending, data in ((".json", text), (".tiff", image)):
                member = tarfile.TarInfo(f"{facts.folder}/{key}{ending}")  # owner 0, time 0, mode 644
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sums
