"""Recipes: how a source's own tables and image folder become the standard columns, as data.

A recipe is a TOML file: `catalog/microscopy/<source>.toml` for the sources we ship, `source.toml` for a curator's
own. This module says what may stand in one; applying it is `cem_assets.cytoimagenet.sources.standardize`, the guide with
examples is `docs/microscopy_sources.md`.
"""

import re
import tomllib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS
from cem_assets.errors import DataError

MAX_TOML_BYTES = 256 * 1024
MAX_PATTERN = 500
RECIPE_COLUMNS = (*LABEL_COLUMNS, "microscopy", "path", "filename")
DEFAULT_MISSING = ("", "na", "n/a", "nan", "null", "none", "#n/a", "<na>")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_pattern(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise DataError(f"a regular expression of {len(pattern)} characters; expected at most {MAX_PATTERN}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise DataError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, Field(min_length=1)]


class Condition(_Strict):
    """What a row must fulfil to be kept.

    Attributes:
        column: Of the table.
        is_in: Allowed cells, compared without case; or
        not_in: forbidden ones; or
        matches: a regular expression found in the cell, without case; or
        not_empty: any cell with a value.
        reason: Written beside every row that is dropped.
    """

    column: str
    is_in: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()
    matches: str = ""
    not_empty: bool = False
    reason: str = ""

    @model_validator(mode="after")
    def _one_test(self) -> "Condition":
        given = [name for name in ("is_in", "not_in", "matches", "not_empty") if getattr(self, name)]
        if len(given) != 1:
            raise DataError(f"a condition needs one of is_in, not_in, matches, not_empty; found {', '.join(given) or 'none'}")
        _check_pattern(self.matches)
        return self

    def told(self) -> str:
        """Return the reason, or the condition in words."""
        tests = {"is_in": self.is_in, "not_in": self.not_in, "matches": self.matches, "not_empty": self.not_empty}
        return self.reason or next(f"{self.column!r} {name} {value!r} does not hold" for name, value in tests.items() if value)


class TableSpec(_Strict):
    """A table of the source.

    Attributes:
        name: What joins call it.
        files: Patterns (as in a shell: *, ?) of paths in the source's folder; several files are put one after another.
        separator, encoding, columns, skip_rows, sheet, comment: How it is read; detected where absent. `columns` names the
            columns of a file without a header.
        reader: A function of `cem_assets.cytoimagenet.sources.special_tables` for files that are no tables.
        keep: Conditions on its rows.
    """

    name: str
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    separator: str | None = None
    encoding: str | None = None
    columns: tuple[str, ...] = ()
    skip_rows: Annotated[int, Field(ge=0)] = 0
    sheet: str = ""
    comment: str = ""
    reader: str = ""
    keep: tuple[Condition, ...] = ()


class JoinSpec(_Strict):
    """A table whose columns are added to the rows.

    Attributes:
        table: Its name.
        on: Column of the rows: column of the table. Cells are compared without case and blanks around.
        prefix: Put before the names of its columns, so that they clash with none.
        is_required: Whether rows without a partner are dropped.
        is_first_only: Whether only the first row of the table is taken for a key that has several; else each makes a row.
    """

    table: str
    on: Annotated[dict[str, str], Field(min_length=1)]
    prefix: str = ""
    is_required: bool = False
    is_first_only: bool = False


class ChannelSpec(_Strict):
    """A channel of a field.

    Attributes:
        key: The text of the pattern's group `channel`, or the number of the page ("1", "2") of a file with several.
        file: Instead of a pattern: template of the file's path over the table's columns.
        name: As in the `channels` column, such as "f_nucleus".
        cell_visible: What is stained, values joined by "|".
        microscopy: Modality; channels of another one become an image of their own (brightfield apart from fluorescence).
        is_used: False leaves it out.
    """

    key: str = ""
    file: str = ""
    name: str
    cell_visible: str = ""
    microscopy: str = "fluorescence"
    is_used: bool = True


class ImagesSpec(_Strict):
    """Where a source's images are.

    Attributes:
        pattern: Regular expression over paths in the source's folder, with named groups. Files with equal groups, but for
            `channel`, are channels of one image.
        on: Column of the rows: template over the groups, such as {"Well" = "{row}{column}"}; empty where there is no table.
        is_required: Whether rows without images are dropped.
        is_pages: Whether channels are the pages of one file.
    """

    pattern: str = ""
    on: dict[str, str] = Field(default_factory=dict)
    is_required: bool = True
    is_pages: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return _check_pattern(pattern)


class ValueSpec(_Strict):
    """Where the values of a standard column come from; one of value, column, columns, template, flags, from_channels.

    Attributes:
        value: The same for every row.
        column: A column of the tables or a group of the images' pattern.
        columns: Several, all taken.
        template: Text over columns, such as "{Plate}/{Well}".
        flags: Column: value, taken where the column's cell is one of `is_true`, or a number of at least `at_least`.
        from_channels: What the channels show.
        when: Taken only in rows that fulfil this.
        split: Text that separates several values of a cell; "list" for ['a', 'b'] as Python prints it.
        pattern: Regular expression; its first group (or the whole match) is taken, other cells give nothing.
        map: Value: replacement, compared without case; an empty replacement removes the value.
        is_complete: Whether values that `map` lacks are reported as unmapped.
        drop: Values that are removed, compared without case.
    """

    value: str = ""
    column: str = ""
    columns: tuple[str, ...] = ()
    template: str = ""
    flags: dict[str, str] = Field(default_factory=dict)
    is_true: tuple[str, ...] = ("1", "true", "yes", "y")
    at_least: float | None = None
    from_channels: bool = False
    when: Condition | None = None
    split: str = ""
    pattern: str = ""
    map: dict[str, str] = Field(default_factory=dict)
    is_complete: bool = False
    drop: tuple[str, ...] = ()

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return _check_pattern(pattern)

    @model_validator(mode="after")
    def _one_origin(self) -> "ValueSpec":
        given = [n for n in ("value", "column", "columns", "template", "flags", "from_channels") if getattr(self, n)]
        if len(given) != 1:
            raise DataError(
                f"needs one of value, column, columns, template, flags, from_channels; found {', '.join(given) or 'none'}"
            )
        return self


class Recipe(_Strict):
    """How a source becomes standard columns.

    Attributes:
        tables: The first one's rows are the images, wells or fields; others are joined to it.
        joins: In order.
        images: Where the images are; None where only the tables are at hand.
        channels: In order.
        columns: For each standard column one origin or several, whose values are joined by "|".
        missing: Cells that mean nothing, compared without case.
    """

    tables: tuple[TableSpec, ...] = ()
    joins: tuple[JoinSpec, ...] = ()
    images: ImagesSpec | None = None
    channels: tuple[ChannelSpec, ...] = ()
    columns: dict[Literal[RECIPE_COLUMNS], tuple[ValueSpec, ...]]  # type: ignore[valid-type]
    missing: tuple[str, ...] = DEFAULT_MISSING

    @field_validator("columns", mode="before")
    @classmethod
    def _always_several(cls, value: Any) -> Any:
        return {k: v if isinstance(v, list | tuple) else [v] for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _agrees(self) -> "Recipe":
        problems = []
        names = [table.name for table in self.tables]
        problems += [f"two tables are named {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
        problems += [f"the join of {join.table!r} names no table" for join in self.joins if join.table not in names[1:]]
        unused = set(names[1:]) - {join.table for join in self.joins}
        problems += [f"table {name!r} is not joined" for name in sorted(unused)]
        by_file = [channel for channel in self.channels if channel.file]
        pattern = self.images.pattern if self.images else ""
        if self.images and bool(pattern) == bool(by_file):
            problems.append("images need either a pattern or channels with `file`")
        if by_file and len(by_file) != len(self.channels):
            problems.append("either every channel has a `file` or none")
        if by_file and not self.images:
            problems.append("channels have a `file`, but there is no [images] section")
        if not self.tables and not pattern:
            problems.append("there is neither a table nor a pattern of images")
        if pattern and self.tables and self.images and not self.images.on:
            problems.append("[images] needs `on`, which says how images find their rows")
        if pattern and len(self.channels) > 1 and self.images and not self.images.is_pages and "(?P<channel>" not in pattern:
            problems.append("several channels need a group (?P<channel>...) in the images' pattern, or is_pages = true")
        if problems:
            raise DataError("; ".join(problems))
        return self


class SourceFacts(_Strict):
    """What a source is.

    Attributes:
        name: Its key: name of its folder and partition.
        database: Database it belongs to, such as "Image Data Resource".
        title: Its name there.
        dir_name: Short name, first part of `idx`.
        licence, citation, source_url: As its authors say.
        role: "training", or "test" for a benchmark's images, which are kept out of releases.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    database: str = "own"
    title: str = ""
    dir_name: str = ""
    licence: Annotated[str, Field(min_length=1)]
    citation: str = ""
    source_url: str = ""
    role: Literal["training", "test"] = "training"


def parse_toml(text: bytes, what: str) -> dict[str, Any]:
    """Parse a TOML file of bounded size.

    Raises:
        DataError: Too large, or not TOML in UTF-8.
    """
    if len(text) > MAX_TOML_BYTES:
        raise DataError(f"{what} has {len(text)} bytes; expected at most {MAX_TOML_BYTES}. Shorten it.")
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{what} is not valid TOML in UTF-8: {error}. See docs/microscopy_sources.md.") from error


def parse_recipe(sections: dict[str, Any], what: str) -> Recipe:
    """Check the sections of a recipe.

    Args:
        sections: Parsed TOML: tables, joins, images, channels, columns, missing.
        what: Its file, for messages.

    Raises:
        DataError: Lists everything that breaks the rules.
    """
    try:
        return Recipe.model_validate(sections)
    except ValidationError as error:
        raise DataError(told(error, what)) from error


def told(error: ValidationError, what: str) -> str:
    """Put a validation error into one message that lists every problem."""
    lines = [f"- {'.'.join(map(str, item['loc'])) or 'recipe'}: {item['msg']}" for item in error.errors()[:20]]
    return f"{what} breaks the rules of a recipe:\n" + "\n".join(lines) + "\nSee docs/microscopy_sources.md."
