"""Stage `cytoimagenet/label_table`: weak labels over the metadata of all sources.

Rows that must not become training images are left out here, with a reason: images of benchmark sets (recognised by name), and
rows with the same files as another row. `cem_assets.cytoimagenet.labels.rule` assigns the labels.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS
from cem_assets.cytoimagenet.held_out.guard import guarded_set, guarded_texts, load_rules
from cem_assets.cytoimagenet.labels.rule import LabelParams, assign_labels
from cem_assets.cytoimagenet.tables import (
    CANDIDATES_SCHEMA,
    EXCLUDED_SCHEMA,
    FEW_VALUES,
    LABEL_TABLE_SCHEMA,
    LABELS_SCHEMA,
    frame_bytes,
    read_frame,
    read_group,
    records_of,
    to_frame,
)
from cem_assets.errors import DataError
from cem_assets.execution.local import Engine, local_engine
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.store.assets import CODE_VERSIONS, LABEL_TABLE, SOURCE_METADATA
from cem_assets.store.manifest_facts import current_facts
from cem_assets.store.manifests import Inputs, Manifest, canonical_json, committed_partitions, require_manifest
from cem_assets.store.parquet import parquet_bytes, parquet_file
from cem_assets.store.store import Store

TABLE = "part-00000.parquet"
LABELS = "_labels/part-00000.parquet"
CANDIDATES = "_candidates/part-00000.parquet"
EXCLUDED = "_excluded/part-00000.parquet"
_READ = ["idx", "name", "source", "path", "filename", *LABEL_COLUMNS]


class LabelTableParams(LabelParams):
    """How the label table is made.

    Attributes:
        with_images_only: Whether rows without image files are left out. Otherwise they count for labels, and their crops are
            dropped as missing.
    """

    with_images_only: bool = True


@dataclass(frozen=True)
class LabelEntry:
    """A label of the table.

    Attributes:
        key: Partition key of its crops: a slug and 8 hexadecimal digits.
        category: The label column that the label was taken from.
        digest: sha256 over its rows; crops that were made from other rows are stale.
        group: Number of its row group in the table.
        start: Number of its first row in the table.
    """

    key: str
    label: str
    category: str
    num_images: int
    digest: str
    group: int
    start: int


def label_key(label: str, category: str) -> str:
    """Return the partition key of a label: at most 40 plain characters of it, and 8 hexadecimal digits that make it unique."""
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40].strip("-") or "label"
    return f"{slug}-{hashlib.sha256(chr(0).join((category, label)).encode()).hexdigest()[:8]}"


def source_digests(store: Store) -> dict[str, str]:
    """Return the digest of every committed source, by `asset/partition`."""
    return {f"{SOURCE_METADATA}/{name}": facts.digest for name, facts in current_facts(store, SOURCE_METADATA).items()}


def make_label_table(
    store: Store,
    params: LabelTableParams | None = None,
    run_id: str = "",
    engine: Engine | None = None,
    progress: Progress = no_progress,
) -> StageResult:
    """Assign weak labels to the images of all sources.

    Args:
        engine: Reads the sources in parallel; None chooses a pool of processes. The table does not depend on it.

    Returns:
        The committed `cytoimagenet/label_table`: the chosen rows in order of label, with a row group for each label; `_labels`
        with keys and digests; `_candidates` with what became of every value; `_excluded` with the rows that must not be chosen,
        and why.

    Raises:
        DataError: No source is committed, two sources have the same short name, or no value is frequent enough to be a label.
    """
    params = params or LabelTableParams()
    manifests = [require_manifest(store, SOURCE_METADATA, source) for source in committed_partitions(store, SOURCE_METADATA)]
    if not manifests:
        raise DataError(f"no source is committed; materialize a partition of {SOURCE_METADATA} first.")
    _check_short_names(manifests)
    upstream = {f"{SOURCE_METADATA}/{manifest.inputs.partition}": manifest.digest for manifest in manifests}
    rules = [[rule.test_set, rule.pattern] for rule in load_rules()]
    inputs = Inputs(
        LABEL_TABLE, "", CODE_VERSIONS[LABEL_TABLE], {**params.model_dump(mode="json"), "test_set_rules": rules}, upstream
    )
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    chosen_engine = engine or local_engine(None, len(manifests))
    tables, excluded = [], []
    reader = _SourceReader(store, params.with_images_only)
    for number, (table, left_out) in enumerate(chosen_engine.map(reader, manifests), 1):
        tables.append(table)
        excluded.append(left_out)
        progress(number, len(manifests))
    metadata, repeated = _without_repeated_files(pd.concat(tables, ignore_index=True))
    excluded.append(repeated)
    found = assign_labels(metadata, params)
    if not len(found.chosen):
        most = max((int(n) for n in found.candidates["num_left"]), default=0)
        raise DataError(
            f"no label has {params.min_images:,} images among {len(metadata):,} rows of {len(manifests)} source(s); the most "
            f"frequent candidate has {most:,} left. Add more sources, or lower min_images."
        )
    del metadata, tables
    rows = _whole_rows(store, manifests, found.chosen)
    entries = _entries(found.chosen, rows)
    out = pd.concat(excluded, ignore_index=True).astype("str")
    groups = (rows.slice(entry.start, entry.num_images) for entry in entries)
    stage.commit.write(TABLE, parquet_bytes(groups, LABEL_TABLE_SCHEMA, 0, FEW_VALUES))
    listed = pd.DataFrame([{name: getattr(entry, name) for name in LABELS_SCHEMA.names} for entry in entries])
    stage.commit.write(LABELS, frame_bytes(listed, LABELS_SCHEMA))
    stage.commit.write(CANDIDATES, frame_bytes(found.candidates, CANDIDATES_SCHEMA))
    stage.commit.write(EXCLUDED, frame_bytes(out, EXCLUDED_SCHEMA))
    counts = {
        "sources": len(manifests),
        "rows": sum(manifest.counts["rows"] for manifest in manifests),
        "excluded": len(out),
        "candidates": len(found.candidates),
        "labels": len(entries),
        "images": len(found.chosen),
    }
    return stage.finish(counts, _details(manifests, found.chosen, out))


def _check_short_names(manifests: list[Manifest]) -> None:
    """Refuse sources with the same short name, because their images would have the same idx."""
    sources: dict[str, list[str]] = {}
    for facts in (manifest.details["facts"] for manifest in manifests):
        if not _guard_reason(facts):
            sources.setdefault(facts["dir_name"] or facts["name"], []).append(facts["name"])
    shared = [f"{', '.join(names)} (dir_name = {short!r})" for short, names in sources.items() if len(names) > 1]
    if shared:
        raise DataError(
            f"sources share a short name, so that their images would have the same idx: {'; '.join(shared)}. Give each a "
            "dir_name of its own in its source.toml."
        )


@dataclass(frozen=True)
class _SourceReader:
    """Reads the rows of a source, and separates those that must not become training images. It can be pickled."""

    store: Store
    with_images_only: bool

    def __call__(self, manifest: Manifest) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the rows with the columns that labels need, and the rows that are left out with idx, source and reason."""
        with self.store.open(f"{manifest.folder}/{TABLE}") as handle:
            table = parquet_file(handle).read(columns=[*_READ, "files", "sha256"])
        frame: pd.DataFrame = table.select(_READ).to_pandas()
        has_files = pc.greater(pc.list_value_length(table["files"]), 0).to_numpy()
        reasons = [_guard_reason(manifest.details["facts"])] * len(frame)
        if reasons and not reasons[0]:
            for column in ("path", "filename"):
                reasons = _first_reason(reasons, _guarded(frame[column], column))
        if self.with_images_only:
            missing = "the source has no image file for it"
            reasons = _first_reason(reasons, ["" if there else missing for there in has_files])
        is_out = np.array([bool(reason) for reason in reasons], np.bool_)
        out = frame.loc[is_out, ["idx", "source"]].assign(reason=[reason for reason in reasons if reason])
        kept = frame.drop(columns=["path", "filename"]).assign(row=np.arange(len(frame)))
        kept["content_1"], kept["content_2"] = _content_keys(table).T
        return kept[~is_out], out


def _content_keys(table: pa.Table) -> NDArray[np.uint64]:
    """Return uint64 (n, 2), a digest of the files and pages of each row; zeros for rows without files."""
    digests = pc.binary_join(table["sha256"], ",").to_pylist()
    pages = [",".join(name.rpartition("#")[2] for name in names if "#" in name) for names in table["files"].to_pylist()]
    found = [
        hashlib.blake2b(f"{digest} {page}".encode(), digest_size=16).digest() if digest else bytes(16)
        for digest, page in zip(digests, pages, strict=True)
    ]
    return np.frombuffer(b"".join(found), "<u8").reshape(-1, 2).astype(np.uint64)


def _guarded(cells: pd.Series, column: str) -> list[str]:
    hits = guarded_texts(cells.unique(), load_rules())
    return [f"its {column} is one of the test set {hits[cell]}" if cell in hits else "" for cell in cells]


def _first_reason(first: list[str], second: list[str]) -> list[str]:
    return [a or b for a, b in zip(first, second, strict=True)]


def _guard_reason(facts: Mapping[str, Any]) -> str:
    if facts["role"] == "test":
        return "its source is a test set"
    hit = guarded_set([str(facts[key]) for key in ("name", "title", "dir_name", "source_url")], load_rules())
    return f"its source is the test set {hit}" if hit else ""


def _without_repeated_files(metadata: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of rows with the same files, keep the first by idx. Such rows occur if two archives hold the same image."""
    contents = ["content_1", "content_2"]
    has_files = (metadata["content_1"] != 0) | (metadata["content_2"] != 0)
    shared = metadata[has_files & metadata.duplicated(contents, keep=False)].sort_values("idx")
    is_first = ~shared.duplicated(contents)
    first = shared.loc[is_first, [*contents, "idx"]].rename(columns={"idx": "first"})
    repeated = shared[~is_first].reset_index().merge(first, on=contents)
    out = repeated[["idx", "source"]].assign(reason=[f"its files are those of {name}" for name in repeated["first"]])
    return metadata[~metadata.index.isin(repeated["index"])].drop(columns=contents), out


def _whole_rows(store: Store, manifests: list[Manifest], chosen: pd.DataFrame) -> pa.Table:
    """Read the chosen rows with all their columns, one source at a time, and bring them into the order of `chosen`."""
    parts, places = [], []
    for manifest in manifests:
        mine = np.flatnonzero((chosen["source"] == manifest.inputs.partition).to_numpy())
        if len(mine):
            with store.open(f"{manifest.folder}/{TABLE}") as handle:
                parts.append(parquet_file(handle).read().take(pa.array(chosen["row"].to_numpy()[mine])))
            places.append(mine)
    order = np.argsort(np.concatenate(places), kind="stable")
    rows = pa.concat_tables(parts).take(pa.array(order))
    for place, name in enumerate(("label", "category")):
        rows = rows.add_column(place, name, pa.array(chosen[name], pa.string()))
    return rows.select(LABEL_TABLE_SCHEMA.names)


def _entries(chosen: pd.DataFrame, rows: pa.Table) -> list[LabelEntry]:
    entries: list[LabelEntry] = []
    start = 0
    for label, group in chosen.groupby("label", sort=False):
        category = str(group["category"].iloc[0])
        records = to_frame(rows.slice(start, len(group))).itertuples(index=False)
        digest = hashlib.sha256(canonical_json([list(row) for row in records])).hexdigest()
        key = label_key(str(label), category)
        entries.append(LabelEntry(key, str(label), category, len(group), digest, len(entries), start))
        start += len(group)
    return entries


def _details(manifests: list[Manifest], chosen: pd.DataFrame, excluded: pd.DataFrame) -> dict[str, Any]:
    by_source = chosen.groupby("source").size()
    labels = chosen.drop_duplicates("label")["category"].value_counts()
    return {
        "sources": {
            m.inputs.partition: {**m.details["facts"], "num_images": int(by_source.get(m.inputs.partition, 0))}
            for m in manifests
        },
        "labels_by_category": {str(name): int(count) for name, count in sorted(labels.items())},
        "excluded_by_reason": _counted(excluded),
    }


def _counted(excluded: pd.DataFrame) -> dict[str, int]:
    """Count the rows that were left out by source and kind of reason; names of images in reasons make no difference."""
    kinds = excluded["reason"].str.replace(r"those of .*", "those of another row", regex=True)
    counts = (excluded["source"] + ": " + kinds).value_counts().sort_index()
    return {str(name): int(count) for name, count in counts.items()}


def label_entries(store: Store, manifest: Manifest) -> dict[str, LabelEntry]:
    """Read the labels of a label table by key, in order of assignment."""
    frame = read_frame(store, manifest, LABELS)
    starts = frame["num_images"].cumsum() - frame["num_images"]
    return {
        row["key"]: LabelEntry(row["key"], row["label"], row["category"], int(row["num_images"]), row["digest"], number, start)
        for number, (row, start) in enumerate(zip(records_of(frame), starts.tolist(), strict=True))
    }


def label_rows(store: Store, manifest: Manifest, entry: LabelEntry) -> pd.DataFrame:
    """Read the rows of one label."""
    return read_group(store, manifest, TABLE, entry.group)
