"""Recipes: data that say how a source's own tables and image folder become the standard columns.

A recipe is a TOML file: `catalog/microscopy/<source>.toml` for the sources that we ship, and `source.toml` for a curator's own
sources. This module defines what a recipe may contain, `cem_assets.cytoimagenet.sources.standardize` applies it, and
`docs/microscopy_sources.md` is the guide with examples.
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
_PAGE = re.compile(r"0*[1-9][0-9]{0,5}")
"""How a channel names a page of a file: pages are counted from 1."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_pattern(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise DataError(f"the regular expression has {len(pattern)} characters; expected at most {MAX_PATTERN}. Shorten it.")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"{pattern!r} is not a valid regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, Field(min_length=1)]


class Condition(_Strict):
    """What must be true of a row so that it is kept; exactly one of is_in, not_in, matches and not_empty is given.

    Attributes:
        column: The column of the table that is tested.
        is_in: The cells that are kept; case is ignored.
        not_in: The cells that are dropped; case is ignored.
        matches: A regular expression that must be found in the cell; case is ignored.
        not_empty: Whether the cell must have a value.
        reason: Recorded with every row that is dropped; empty describes the condition in words.
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

    def explanation(self) -> str:
        """Return why a row that does not meet the condition is dropped: the reason, or the condition in words."""
        tests = {"is_in": self.is_in, "not_in": self.not_in, "matches": self.matches, "not_empty": self.not_empty}
        return self.reason or next(f"{self.column!r} {name} {value!r} does not hold" for name, value in tests.items() if value)


class TableSpec(_Strict):
    """A table of the source.

    Attributes:
        name: The name by which joins refer to it.
        files: Patterns of paths in the source's folder, with * and ? as in a shell. The rows of several files are appended to
            each other.
        separator: The character between cells; None detects it.
        encoding: Such as "cp1252"; None detects it.
        columns: Names of the columns of files that have no header row; empty if they have one.
        skip_rows: Number of lines above the header that do not belong to the table.
        sheet: Name of the sheet of a workbook; empty takes the first visible sheet.
        comment: How lines begin that are comments; empty means there are none.
        reader: Name of a function in `cem_assets.cytoimagenet.sources.special_tables`, for files that are not tables.
        keep: Conditions that a row must meet to be kept.
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
        table: Name of the table.
        on: For each column of the rows the column of the table that must have an equal cell. Case and surrounding blanks are
            ignored.
        prefix: Put in front of the names of the table's columns, so that they differ from those of the rows.
        is_required: Whether rows that match no row of the table are dropped.
        is_first_only: Whether a row that matches several rows of the table takes only the first of them. Otherwise it becomes
            one row for each of them.
    """

    table: str
    on: Annotated[dict[str, str], Field(min_length=1)]
    prefix: str = ""
    is_required: bool = False
    is_first_only: bool = False


class ChannelSpec(_Strict):
    """A channel of a field of view.

    Attributes:
        key: What the group `channel` of the images' pattern matches, or the number of the page, counted from "1", if the
            channels are pages of one file.
        file: Template of the file's path over the columns of the tables, for sources without a pattern.
        name: The name in the `channels` column, such as "f_nucleus".
        cell_visible: What is stained; several values are joined by "|".
        microscopy: The modality. Channels of different modalities become separate images, such as brightfield and
            fluorescence.
        is_used: Whether the channel is part of the image.
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
        pattern: Regular expression over paths in the source's folder, with named groups. Files that agree in all groups except
            `channel` are channels of one image.
        on: For each column of the rows a template over the groups that must give an equal text, such as
            {"Well" = "{row}{column}"}. Empty for a source without tables.
        is_required: Whether rows without images are dropped.
        is_pages: Whether the channels of an image are the pages of one file.
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
    """Where the values of a standard column come from: one of value, column, columns, template, flags and from_channels.

    Attributes:
        value: A value that is the same for every row.
        column: A column of the tables, or a group of the images' pattern.
        columns: Several of these; the values of all of them are taken.
        template: Text with columns in braces, such as "{Plate}/{Well}".
        flags: A value for each column. It is taken if the column's cell is one of `is_true`, or a number of at least
            `at_least`.
        from_channels: Whether the values are what the channels say.
        when: The condition that a row must meet; other rows get no value.
        split: The text between several values of a cell; "list" for ['a', 'b'] as Python prints it.
        pattern: Regular expression. Its first group (or the whole match) becomes the value; cells without a match give none.
        map: A replacement for each value; case is ignored, and an empty replacement removes the value.
        is_complete: Whether values that `map` lacks are reported as unmapped.
        drop: Values that are removed; case is ignored.
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
                "a column needs one of value, column, columns, template, flags, from_channels; "
                f"found {', '.join(given) or 'none'}"
            )
        return self


class Recipe(_Strict):
    """How a source becomes standard columns.

    Attributes:
        tables: The rows of the first table are the images, wells or fields; the other tables are joined to it.
        joins: Applied in this order.
        images: Where the images are; None if only the tables are available.
        channels: In the order in which an image has them.
        columns: For each standard column one or several origins, whose values are joined by "|".
        missing: Cells that count as having no value; case is ignored.
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
        if self.images and self.images.is_pages:
            keys = [channel.key for channel in self.channels if channel.is_used]
            if not self.channels or not all(map(_PAGE.fullmatch, keys)):
                shown = ", ".join(map(repr, keys[:10])) or "none"
                problems.append(
                    f"with is_pages = true every channel needs a page number as its key, counted from 1; found {shown}"
                )
        if problems:
            raise DataError("; ".join(problems))
        return self


class SourceFacts(_Strict):
    """What a source is.

    Attributes:
        name: Name of its folder in the inbox and of its partition.
        database: The database that it belongs to, such as "Image Data Resource".
        title: Its name in that database.
        dir_name: Short name, which is the first part of every `idx`.
        licence: As its authors state it, like `citation` and `source_url`.
        role: "training", or "test" for the images of a benchmark, which never get into a release.
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
    """Parse a TOML file of at most `MAX_TOML_BYTES`.

    Raises:
        DataError: The file is too large, or not TOML in UTF-8.
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
        what: Names the file in errors.

    Raises:
        DataError: The sections break rules; the error lists all problems.
    """
    try:
        return Recipe.model_validate(sections)
    except ValidationError as error:
        raise DataError(problems_of(error, what)) from error


def problems_of(error: ValidationError, what: str) -> str:
    """Write a validation error as one message that lists up to 20 problems."""
    lines = [f"- {'.'.join(map(str, item['loc'])) or 'recipe'}: {item['msg']}" for item in error.errors()[:20]]
    return f"{what} breaks the rules of a recipe:\n" + "\n".join(lines) + "\nSee docs/microscopy_sources.md."
