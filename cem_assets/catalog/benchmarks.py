"""The catalogue of benchmarks: their files, how they are prepared, and published scores.

`benchmarks.toml` has one table for each benchmark, whose key is the name. `cem_assets.benchmarks.rows` adds the tables of
a store's `settings/benchmarks.toml`, which replace tables of the same name, and checks the preparation steps.
`cem_assets.benchmarks.data.preparation` has the steps themselves.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from cem_assets.errors import DataError

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
MAX_TOML_BYTES = 1 << 20
SETTINGS = "settings/benchmarks.toml"
"""Key of the file in the store that changes these benchmarks and adds others."""
Split = Literal["train", "valid", "test"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BenchmarkSource:
    """A file of a benchmark.

    Attributes:
        url: The address it is downloaded from.
        sha256: Hexadecimal digest of its bytes. If it is not known and empty, the file is never downloaded.
        file: Path in the benchmark's folder; a `.zip` is unpacked into the folder it is in.
    """

    url: str
    file: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PublishedScore:
    """A score from the literature; never one that this platform computed.

    Attributes:
        weights: The name of the weights, such as "cem500k_mocov2", "random", "imagenet", "cytoimagenet" or "fusion".
        measure: The name of the measure, such as "accuracy".
        value: The score in percent.
        error: Half the width of its uncertainty, in percent; 0 if none was published.
        subset: The part of the benchmark, such as "test1"; empty for all of it.
        source: The publication.
    """

    weights: str
    measure: str
    value: float
    source: str
    error: float = 0.0
    subset: str = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PreparationStep:
    """One preparation step.

    Attributes:
        step: The name: a key of `cem_assets.benchmarks.data.preparation.STEPS`, or "rename_pairs".
        splits: The splits it applies to; empty for all.
        parts: The parts of a union it applies to; empty for all.
        parameters: All other keys of its table.
    """

    step: str
    splits: tuple[Split, ...] = ()
    parts: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        raw = getattr(data, "kwargs", data)
        if not isinstance(raw, Mapping) or "parameters" in raw:
            return data
        own = {key: raw[key] for key in ("step", "splits", "parts") if key in raw}
        return {**own, "parameters": {key: value for key, value in raw.items() if key not in own}}

    def applies_to(self, split: str, part: str) -> bool:
        """Tell whether the step applies to items of a split and a part."""
        return (not self.splits or split in self.splits) and (not self.parts or part in self.parts)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LayoutRule:
    """Which files are the images and the label maps of a split.

    A pattern is compared with the end of a path, part by part (`train/images/*.png`). `a|b` uses b if nothing matches a.
    `*.hdf::volumes/raw` names an array inside HDF5 files.

    Attributes:
        images: Patterns of the images.
        masks: Patterns of the label maps, one for each label map of an image.
    """

    split: Split
    images: tuple[str, ...]
    masks: tuple[str, ...]


USER_LAYOUT = tuple(
    LayoutRule(split=split, images=(f"{split}/images/*",), masks=(f"{split}/masks/*",)) for split in ("train", "valid", "test")
)
"""The layout of a user's own benchmark, whose images and masks have equal names."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UnionPart:
    """A benchmark that is part of a union.

    Attributes:
        benchmark: The name of the benchmark.
        rule: How its test items are predicted and scored: fields of `cem_assets.benchmarks.segmentation.params.EvaluationRule`.
    """

    benchmark: str
    rule: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TableJoin:
    """A table that is joined to the main table.

    Attributes:
        files: Patterns of the file.
        on: Pairs of columns whose values must agree: first that of the main table, then that of this one. Numbers are compared
            as numbers.
    """

    files: tuple[str, ...]
    on: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Benchmark:
    """The fields that every benchmark has.

    Attributes:
        name: The key of its table.
        title, licence, citation, source_url, note: Texts for people.
        sources: The files it is made of.
        published: Scores from the literature.
        tolerance: The fraction by which a score may be below the best one before weights count as worse.
        is_gated: Whether weights that are worse on this benchmark are not promoted.
        is_saturated: Whether all weights are equally good on this benchmark, so that it cannot rank them.
        params: Parameters of training and testing, by name; for segmentation they are those of
            `cem_assets.benchmarks.segmentation.params.SegmentationParams`.
    """

    name: str
    title: str
    licence: str
    citation: str
    source_url: str = ""
    note: str = ""
    sources: tuple[BenchmarkSource, ...] = ()
    published: tuple[PublishedScore, ...] = ()
    tolerance: float = 0.02
    is_gated: bool = False
    is_saturated: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise DataError(f"the name {name!r:.80} is not allowed; expected 1 to 63 of a-z, 0-9, '_' and '-'")
        return name


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SegmentationBenchmark(Benchmark):
    """A benchmark with the task "segmentation".

    Attributes:
        classes: Names of the mask values 0, 1, ...; the first is the background.
        layout: Which files are images and masks; the default is that of a user's own benchmark.
        union: The benchmarks it is made of; a union has no files of its own.
        steps: The preparation steps, in order.
    """

    task: Literal["segmentation"] = "segmentation"
    classes: tuple[str, ...]
    layout: tuple[LayoutRule, ...] = USER_LAYOUT
    union: tuple[UnionPart, ...] = ()
    steps: tuple[PreparationStep, ...] = ()

    @field_validator("classes")
    @classmethod
    def _classes_fit(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(classes) <= 256:
            raise DataError("expected the names of 2 to 256 classes, the first of them the background")
        return classes


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TransferBenchmark(Benchmark):
    """A benchmark with the task "transfer": images with labels, or features with labels.

    Attributes:
        kind: "folders": the paths hold the labels. "table": a table lists the images. "features": a table holds features.
        channels: For "folders", the values of the pattern's group `channel`, in order. For "table", a path for each channel's
            name, in which {column} stands for a cell of the table; the files may be anywhere below a folder.
        path_pattern: For "folders", a regular expression for paths with the groups `image`, `channel`, `label`, and optionally
            `split`.
        skip_labels: Labels that are left out.
        merge_labels: For labels that are counted as another one, that other label.
        tables: Patterns of the main table.
        joins: Tables that are joined to it; rows without a partner are left out.
        columns: Templates for our columns (label, compound, concentration, plate, well, batch, split): {column}, or
            {column|regular expression} for the first group of the expression.
        feature_pattern: A regular expression that the names of feature columns match.
        controls: Values of a column that mark controls, such as {compound = ["DMSO"]}.
        has_controls: Whether controls are kept.
    """

    task: Literal["transfer"] = "transfer"
    kind: Literal["folders", "table", "features"]
    channels: tuple[str, ...] | Mapping[str, str] = ()
    path_pattern: str = ""
    skip_labels: tuple[str, ...] = ()
    merge_labels: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    joins: tuple[TableJoin, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    feature_pattern: str = ""
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_controls: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> "TransferBenchmark":
        problems = []
        for key in ("path_pattern", "feature_pattern"):
            try:
                groups = set(re.compile(getattr(self, key)).groupindex)
            except re.error as error:
                problems.append(f"{key} is no regular expression: {error}")
                continue
            if key == "path_pattern" and self.kind == "folders" and not {"image", "channel", "label"} <= groups:
                problems.append("path_pattern needs the groups (?P<image>...), (?P<channel>...) and (?P<label>...)")
        if self.kind == "folders" and (isinstance(self.channels, Mapping) or not self.channels):
            problems.append('kind = "folders" needs channels = ["...", ...]')
        if self.kind == "table" and (not isinstance(self.channels, Mapping) or not self.channels):
            problems.append('kind = "table" needs channels = {name = "{column}/{column}"}')
        if self.kind == "features" and (self.channels or not self.feature_pattern):
            problems.append('kind = "features" needs feature_pattern and has no channels')
        if self.kind != "folders" and (not self.tables or "label" not in self.columns):
            problems.append("a table needs tables = [...] and columns = {label = ...}")
        if problems:
            raise DataError("; ".join(problems))
        return self


_TASKS: dict[str, TypeAdapter[SegmentationBenchmark] | TypeAdapter[TransferBenchmark]] = {
    "segmentation": TypeAdapter(SegmentationBenchmark),
    "transfer": TypeAdapter(TransferBenchmark),
}
AnyBenchmark = SegmentationBenchmark | TransferBenchmark


@lru_cache(maxsize=1)
def _shipped_text() -> str:
    return files("cem_assets.catalog").joinpath("benchmarks.toml").read_text(encoding="utf-8")


def benchmark_tables(text: str | None = None, where: str = "benchmarks.toml") -> dict[str, dict[str, Any]]:
    """Read a catalogue without checking the contents of its tables.

    Args:
        text: TOML; None reads the catalogue of this package.
        where: The name of the file in errors.

    Raises:
        DataError: The text is no TOML, is too large, or has keys outside of tables.
    """
    text = _shipped_text() if text is None else text
    if len(text.encode()) > MAX_TOML_BYTES:
        raise DataError(f"{where} has {len(text.encode())} bytes; expected at most {MAX_TOML_BYTES}. Shorten it.")
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not valid TOML: {error}.") from error
    if wrong := [key for key, table in tables.items() if not isinstance(table, dict)]:
        raise DataError(f"{where} has {', '.join(wrong)} where one table per benchmark was expected, such as [my_cells].")
    return tables


def benchmark_rows(
    text: str | None = None, where: str = "benchmarks.toml", tables: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, AnyBenchmark]:
    """Read a catalogue of benchmarks.

    Args:
        text: TOML; None reads the catalogue of this package.
        where: The name of the file in errors.
        tables: The result of `benchmark_tables` if it was changed since; then `text` is not read.

    Returns:
        Rows by name, in the order of the text.

    Raises:
        DataError: Tables break rules; the error names all problems.
    """
    rows: dict[str, AnyBenchmark] = {}
    problems: list[str] = []
    for name, table in (benchmark_tables(text, where) if tables is None else tables).items():
        task = table.get("task", "segmentation")
        adapter = _TASKS.get(task) if isinstance(task, str) else None
        if adapter is None:
            problems.append(f"{name}.task is {task!r:.80}; expected one of {', '.join(_TASKS)}")
            continue
        if "name" in table:
            problems.append(f"{name}.name: the name of a benchmark is the key of its table; remove it")
            continue
        try:
            rows[name] = adapter.validate_python({**table, "name": name})
        except ValidationError as error:
            problems += [_in_words(name, item) for item in error.errors()]
    for row in rows.values():
        problems += _union_problems(row, rows)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{where} has {len(problems)} problem(s):\n{listing}")
    return rows


def _in_words(name: str, problem: Any) -> str:
    where = ".".join([name, *(str(part) for part in problem["loc"])])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: unknown key"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{where} is missing"
    return f"{where}: {str(problem['msg']).removeprefix('Value error, ')} (found {problem['input']!r:.120})"


def _union_problems(row: AnyBenchmark, rows: Mapping[str, AnyBenchmark]) -> list[str]:
    if not isinstance(row, SegmentationBenchmark):
        return []
    found = []
    for part in row.union:
        other = rows.get(part.benchmark)
        if not isinstance(other, SegmentationBenchmark) or other.union:
            found.append(f"{row.name}.union: {part.benchmark!r} is no segmentation benchmark with files of its own")
    return found
