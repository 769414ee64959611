"""Transfer benchmarks of stage `benchmarks/data`: cells and wells with labels, from folders, tables, or ready features."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cem_assets.benchmarks.data.files import (
    FILES,
    BenchmarkFiles,
    benchmark_files,
    digests_bytes,
    file_digests,
    inbox_upstream,
    path_matches,
)
from cem_assets.benchmarks.data.reports import nothing_usable, write_rejections
from cem_assets.benchmarks.data.transfer_sets import METADATA, TransferWriter
from cem_assets.catalog.benchmarks import TransferBenchmark
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin
from cem_assets.formats.microscopy_images import read_microscopy_image
from cem_assets.formats.tables.metadata import read_metadata_table
from cem_assets.inbox.datasets import Rejection, shown_path
from cem_assets.store.assets import BENCHMARK_DATA, CODE_VERSIONS
from cem_assets.store.manifests import Inputs
from cem_assets.store.store import Store

_FIELD = re.compile(r"\{([^{}|]+)(?:\|([^{}]+))?\}")
"""A field of a template: {column}, or {column|regular expression}."""
_DEFAULT_SPLIT = "all"
_NOT_DATA = {
    *("name", "title", "licence", "citation", "source_url", "note", "sources", "published", "tolerance", "params"),
    *("is_gated", "is_saturated"),
}
"""Fields of a row that do not decide what is prepared."""


@dataclass(frozen=True)
class _Row:
    """One row that will be written.

    Attributes:
        facts: Values of `METADATA`.
        paths: Files of an image, in order of the channels.
        features: float64 (n,) of a benchmark that holds features.
    """

    facts: dict[str, Any]
    paths: tuple[str, ...] = ()
    features: NDArray[np.float64] | None = None


def prepare_transfer(store: Store, row: TransferBenchmark, folder: Path | None, run_id: str, progress: Progress) -> StageResult:
    """Prepare a transfer benchmark; see `cem_assets.benchmarks.data.stage.prepare_benchmark`."""
    started = time.monotonic()
    with benchmark_files(store, row, folder) as files:
        paths, rejections = files.listed()
        tables: list[str] = []
        names: tuple[str, ...] = ()
        if row.kind == "folders":
            rows, refused = _rows_of_folders(row, paths)
        else:
            frame, tables, refused = _joined(row, files, paths)
            rows, more, names = _rows_of_table(row, frame, paths)
            refused += more
        rejections += refused
        used = sorted({*tables, *(path for one in rows for path in one.paths)})
        digests = file_digests(files, used)
        facts = {key: value for key, value in asdict(row).items() if key not in _NOT_DATA}
        parameters = json.loads(json.dumps(facts))
        upstream = inbox_upstream(row.name, digests)
        inputs = Inputs(BENCHMARK_DATA, row.name, CODE_VERSIONS[BENCHMARK_DATA], parameters, upstream)
        stage = begin(store, inputs, run_id, started)
        if stage.up_to_date:
            return stage.up_to_date
        writer = TransferWriter(stage.commit, tuple(row.channels), names)
        for number, one in enumerate(rows, 1):
            try:
                writer.add(one.facts, _planes(files, one.paths), one.features)
            except DataError as error:
                rejections.append(Rejection(shown_path(one.facts["name"]), str(error)))
            progress(number, len(rows))
        stage.commit.write(FILES, digests_bytes(digests))
    counts = writer.finish(row.name)
    if not counts["rows"]:
        raise nothing_usable(row, rejections, f"none of its {len(paths)} files could be used")
    details = {
        "task": row.task,
        "title": row.title,
        "licence": row.licence,
        "citation": row.citation,
        "rejections": write_rejections(stage.commit, rejections),
    }
    return stage.finish({**counts, "files": len(used), "rejected": len(rejections)}, details)


def _planes(files: BenchmarkFiles, paths: Sequence[str]) -> list[NDArray[Any]]:
    planes = []
    for path in paths:
        with files.local(path) as local:
            image = read_microscopy_image(local)
        if len(image.planes) != 1 or image.planes[0].dtype not in (np.uint8, np.uint16):
            found = f"{len(image.planes)} planes of {image.planes[0].dtype}"
            raise DataError(f"{shown_path(path)} has {found}; expected one plane of uint8 or uint16. Save each channel apart.")
        planes.append(image.planes[0])
    if len({plane.shape for plane in planes}) > 1:
        raise DataError(f"its channels have sizes {', '.join(str(plane.shape) for plane in planes)}; expected the same.")
    return planes


def _rows_of_folders(row: TransferBenchmark, paths: Sequence[str]) -> tuple[list[_Row], list[Rejection]]:
    pattern = re.compile(row.path_pattern)
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    rejections = []
    for path in paths:
        match = pattern.search(path)
        if match is None or match["label"] in row.skip_labels or match["channel"] not in row.channels:
            continue
        groups = match.groupdict()
        key = (groups.get("split") or _DEFAULT_SPLIT, match["label"], match["image"])
        channels = found.setdefault(key, {})
        if match["channel"] in channels:
            reason = f"is the channel {match['channel']!r} of an image that has it already: {channels[match['channel']]}."
            rejections.append(Rejection(shown_path(path), f"{reason} Remove one."))
            continue
        channels[match["channel"]] = path
    rows = []
    for (split, label, image), channels in sorted(found.items()):
        name = f"{split}/{label}/{image}"
        if lacking := [channel for channel in row.channels if channel not in channels]:
            rejections.append(Rejection(shown_path(name), f"lacks the channel {', '.join(lacking)}. Add its file."))
            continue
        facts = {"name": name, "split": split, "label": row.merge_labels.get(label, label)}
        rows.append(_Row(facts, tuple(channels[channel] for channel in row.channels)))
    return rows, rejections


def _comparable(value: str) -> str:
    """Write equal numbers in the same way: 0.3 and 0.300000 are one dose."""
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return value.strip()


def _read_table(files: BenchmarkFiles, paths: Sequence[str], patterns: Sequence[str]) -> tuple[pd.DataFrame, str]:
    for pattern in patterns:
        for path in paths:
            if path_matches(path, pattern):
                with files.local(path) as local:
                    return read_metadata_table(local).frame, path
    raise DataError(f"no file matches {' or '.join(patterns)}; there are {', '.join(paths[:10]) or 'none'}.")


def _joined(
    row: TransferBenchmark, files: BenchmarkFiles, paths: Sequence[str]
) -> tuple[pd.DataFrame, list[str], list[Rejection]]:
    frame, path = _read_table(files, paths, row.tables)
    used, rejections = [path], []
    for join in row.joins:
        other, path = _read_table(files, paths, join.files)
        used.append(path)
        for column, where in [(ours, frame) for ours, _ in join.on] + [(theirs, other) for _, theirs in join.on]:
            _require(where, [column], row.name)
        keys = [frame[ours].map(_comparable) for ours, _ in join.on]
        theirs = pd.DataFrame({f"key {n}": other[name].map(_comparable) for n, (_, name) in enumerate(join.on)})
        new = [column for column in other.columns if column not in frame.columns]
        right = pd.concat([theirs, other[new]], axis=1).drop_duplicates(list(theirs.columns))
        left = frame.assign(**{f"key {n}": key for n, key in enumerate(keys)})
        merged = left.merge(right, on=list(theirs.columns), how="left", indicator="key found")
        has_partner = (merged["key found"] == "both").to_numpy()
        if num_alone := int((~has_partner).sum()):
            reason = f"{num_alone} of {len(frame)} rows have no partner in {shown_path(path)} and are left out."
            rejections.append(Rejection(shown_path(used[0]), reason))
        frame = merged[has_partner][[*frame.columns, *new]].reset_index(drop=True)
    return frame, used, rejections


def _require(frame: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    if missing := [column for column in columns if column not in frame.columns]:
        raise DataError(
            f"a table of benchmark {name!r} has no column {', '.join(missing)}; it has {', '.join(frame.columns[:20])}."
        )


def _check_expression(name: str, field: re.Match[str]) -> None:
    try:
        re.compile(field[2] or "")
    except re.error as error:
        raise DataError(
            f"benchmark {name!r}: the template {field[0]} has no valid regular expression after '|' ({error}). Correct it."
        ) from error


def _filled(template: str, record: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        text = record[match[1]].strip()
        if match[2] is None:
            return text
        found = re.search(match[2], text)
        return "" if found is None else found[1] if found.re.groups else found[0]

    return _FIELD.sub(value, template)


def _rows_of_table(
    row: TransferBenchmark, frame: pd.DataFrame, paths: Sequence[str]
) -> tuple[list[_Row], list[Rejection], tuple[str, ...]]:
    """Return the rows, the rejections, and the names of the features."""
    templates = dict(row.channels) if isinstance(row.channels, Mapping) else {}
    if unknown := [key for key in row.columns if key not in METADATA]:
        raise DataError(f"benchmark {row.name!r}: columns names {', '.join(unknown)}; expected some of {', '.join(METADATA)}.")
    fields = [match for text in (*row.columns.values(), *templates.values()) for match in _FIELD.finditer(text)]
    for match in fields:
        _check_expression(row.name, match)
    wanted = [match[1] for match in fields]
    _require(frame, wanted, row.name)
    pattern = re.compile(row.feature_pattern)
    names = [column for column in frame.columns if row.feature_pattern and pattern.search(column) and column not in wanted]
    if row.kind == "features" and not names:
        raise DataError(f"benchmark {row.name!r}: no column matches {row.feature_pattern!r}; there are {len(frame.columns)}.")
    values = frame[names].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    by_end = {depth: _ends(paths, depth) for depth in {text.count("/") + 1 for text in templates.values()}}
    rows, rejections, seen = [], [], set[str]()
    records = frame[list(dict.fromkeys(wanted))].to_dict("records")
    for number, (record, vector) in enumerate(zip(records, values, strict=True)):
        cells = {str(key): str(value) for key, value in record.items()}
        facts: dict[str, Any] = {"split": _DEFAULT_SPLIT} | {key: _filled(text, cells) for key, text in row.columns.items()}
        facts["concentration"] = _number(facts.get("concentration", ""))
        facts["is_control"] = any(facts.get(column) in marks for column, marks in row.controls.items())
        if not facts["label"] or (facts["is_control"] and not row.has_controls):
            continue
        facts["label"] = row.merge_labels.get(facts["label"], facts["label"])
        wants = [_filled(text, cells) for text in templates.values()]
        files = [by_end[want.count("/") + 1].get(want, "") if want.count("/") + 1 in by_end else "" for want in wants]
        has_file_name = bool(wants and PurePosixPath(wants[0]).name)  # a cell of the table may be empty
        facts.setdefault("name", str(PurePosixPath(wants[0]).with_suffix("")) if has_file_name else f"row {number:06d}")
        if lacking := [want for want, file in zip(wants, files, strict=True) if not file]:
            rejections.append(
                Rejection(shown_path(facts["name"]), f"lacks {', '.join(map(shown_path, lacking))}. Add the file.")
            )
        elif facts["name"] in seen:
            rejections.append(Rejection(shown_path(facts["name"]), "is in the table twice; expected once. Remove a row."))
        else:
            seen.add(facts["name"])
            rows.append(_Row(facts, tuple(files), vector if names else None))
    return rows, rejections, tuple(names)


def _ends(paths: Sequence[str], depth: int) -> dict[str, str]:
    """Map the last `depth` parts of each path to the path; of equal ends the first path counts."""
    return {"/".join(path.split("/")[-depth:]): path for path in reversed(paths)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
