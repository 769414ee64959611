"""Microscopy sources in the inbox: folders of tables and images with a `source.toml`, which is written last.

`source.toml` says what the source is and how its tables become standard columns, with a recipe of its own or one that we ship
(`recipe = "idr0036"`). `cem_assets.formats.tables.metadata` and `cem_assets.formats.microscopy_images` read single files.
Datasets of electron microscopy are the subject of `cem_assets.inbox.datasets`.
"""

import fnmatch
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError

from cem_assets.catalog.microscopy import microscopy_sources, recipe_text
from cem_assets.cytoimagenet.sources.recipe import (
    MAX_TOML_BYTES,
    Recipe,
    SourceFacts,
    TableSpec,
    parse_recipe,
    parse_toml,
    problems_of,
)
from cem_assets.cytoimagenet.sources.special_tables import SPECIAL_READERS
from cem_assets.errors import DataError
from cem_assets.formats.tables.metadata import TableOptions, read_metadata_table
from cem_assets.inbox.datasets import InboxFile, Rejection, copy_to_inbox, dataset_key, listed_files
from cem_assets.inbox.local import local_paths
from cem_assets.store.manifests import canonical_json
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store

SOURCE_TOML = "source.toml"
EXAMPLE = """\
name = "my_screen"            # the folder's name
title = "Our kinase screen"
database = "own"
licence = "CC BY 4.0"
citation = "Us et al., 2026"

[[tables]]
name = "wells"
files = ["wells.csv"]

[images]
pattern = 'images/(?P<well>[A-H]\\d\\d)_w(?P<channel>\\d)\\.tif$'
on = { Well = "{well}" }

[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nucleus"

[columns]
organism = { value = "human" }
compound = { column = "Compound" }
"""
_FACTS = frozenset(SourceFacts.model_fields)
_MAX_SPECIAL_BYTES = 1 << 30


@dataclass(frozen=True)
class SourceDescription:
    """The contents of a `source.toml`.

    Attributes:
        facts: What the source is.
        recipe: How its tables are read.
        digest: sha256 over the facts and the recipe.
    """

    facts: SourceFacts
    recipe: Recipe
    digest: str


@dataclass(frozen=True)
class InboxSource:
    """A complete source in the inbox.

    Attributes:
        files: All its files, in order of path.
        rejections: Files whose names are not allowed.
    """

    description: SourceDescription
    files: tuple[InboxFile, ...]
    rejections: tuple[Rejection, ...]

    @property
    def digest(self) -> str:
        """sha256 over the description and the path, size and sha256 of every file."""
        rows = [[item.path, item.num_bytes, item.sha256] for item in self.files if item.path != SOURCE_TOML]
        return hashlib.sha256(canonical_json([self.description.digest, rows])).hexdigest()


def parse_source(text: bytes, what: str) -> SourceDescription:
    """Parse a `source.toml`.

    Args:
        what: Names the file in errors.

    Raises:
        DataError: The file breaks rules; the error lists all problems.
    """
    data = parse_toml(text, what)
    facts = {key: data.pop(key) for key in list(data) if key in _FACTS}
    shipped = data.pop("recipe", None)
    if shipped is not None:
        if data:
            raise DataError(
                f"{what} has recipe = {shipped!r} and also the sections {', '.join(sorted(data))}; "
                "expected either a recipe or sections."
            )
        rows = microscopy_sources()
        if not isinstance(shipped, str) or shipped not in rows:
            raise DataError(
                f"{what} has recipe = {shipped!r}; expected one of {', '.join(sorted(rows))}, or sections in its place."
            )
        row = rows[shipped]
        known = {name: getattr(row, name) for name in _FACTS - {"name"}}
        facts = {**{key: value for key, value in known.items() if value}, "dir_name": facts.get("name", shipped), **facts}
        data, what = parse_toml(recipe_text(shipped), f"the recipe {shipped}"), f"{what} (recipe {shipped})"
    try:
        checked = SourceFacts.model_validate(facts)
    except ValidationError as error:
        raise DataError(f"{problems_of(error, what)} An example:\n{EXAMPLE}") from error
    recipe = parse_recipe(data, what)
    _check_readers(recipe, what)
    body = {"facts": checked.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json")}
    return SourceDescription(checked, recipe, hashlib.sha256(canonical_json(body)).hexdigest())


def _check_readers(recipe: Recipe, what: str) -> None:
    unknown = sorted({table.reader for table in recipe.tables if table.reader} - set(SPECIAL_READERS))
    if unknown:
        known = ", ".join(SPECIAL_READERS)
        raise DataError(f"{what} names reader(s) {', '.join(unknown)}; expected one of {known}. Tables need no `reader`.")


def read_source_description(store: Store, source: str) -> SourceDescription:
    """Read the `source.toml` of a source in the inbox.

    Raises:
        FileNotFoundError: The folder has no such file.
        DataError: The file breaks rules, or its name for the source differs from the folder's name.
    """
    key = dataset_key(source, SOURCE_TOML)
    size = store.size(key)
    if size is None:
        raise FileNotFoundError(
            f"{key} is missing in {store.url}; a source is a folder of tables and images with a {SOURCE_TOML}, written last. "
            f"An example:\n{EXAMPLE}"
        )
    if size > MAX_TOML_BYTES:
        raise DataError(f"{key} has {size} bytes; expected at most {MAX_TOML_BYTES}. Shorten it.")
    description = parse_source(store.read(key), key)
    if description.facts.name != source:
        raise DataError(
            f"{key} says name = {description.facts.name!r}, but its folder is {source!r}; expected the same name. Rename the "
            "folder or the source."
        )
    return description


def read_inbox_source(store: Store, source: str) -> InboxSource:
    """List and hash the files of a source.

    Raises:
        FileNotFoundError: There is no such source.
        DataError: Its description breaks rules, or there is no other file beside it.
    """
    description = read_source_description(store, source)
    files, rejections = listed_files(store, source)
    if len(files) < 2:
        raise DataError(
            f"source {source!r} has no files beside its {SOURCE_TOML}. Upload its tables and images first, and the "
            f"{SOURCE_TOML} last."
        )
    return InboxSource(description, files, rejections)


def read_source_tables(store: Store, source: InboxSource) -> tuple[dict[str, pd.DataFrame], dict[str, Any], list[Rejection]]:
    """Read the tables that a source's recipe names.

    Args:
        source: As `read_inbox_source` returns it.

    Returns:
        Tables by name, with cells as text; notes by file; and the rows that could not be read.

    Raises:
        DataError: A table has no file, or files cannot be read; the error lists all problems.
    """
    paths = [item.path for item in source.files if item.path != SOURCE_TOML]
    tables: dict[str, pd.DataFrame] = {}
    notes: dict[str, Any] = {}
    rejections: list[Rejection] = []
    problems: list[str] = []
    with scratch_folder("tables") as scratch:
        for spec in source.description.recipe.tables:
            chosen = [path for path in paths if any(fnmatch.fnmatch(path, f"*{glob}") for glob in spec.files)]
            if not chosen:
                problems.append(
                    f"no file matches {' or '.join(spec.files)} of table {spec.name!r}; the files are {', '.join(paths[:10])}"
                )
            parts = []
            for path in chosen:
                with local_paths(store, source.description.facts.name, [path], scratch) as (local,):
                    try:
                        frame, file_notes, dropped = _read(local, spec)
                    except DataError as error:
                        problems.append(str(error))
                        continue
                parts.append(frame)
                notes[path] = file_notes
                rejections += [Rejection(f"{path} line {line}", reason) for line, reason in dropped]
            if parts:
                tables[spec.name] = pd.concat(parts, ignore_index=True).fillna("") if len(parts) > 1 else parts[0]
    if problems:
        raise DataError(f"source {source.description.facts.name!r}: " + "; ".join(problems) + ".")
    return tables, notes, rejections


def _read(path: Path, spec: TableSpec) -> tuple[pd.DataFrame, list[str], tuple[tuple[int, str], ...]]:
    if spec.reader:
        if path.stat().st_size > _MAX_SPECIAL_BYTES:
            raise DataError(f"{path.name} has {path.stat().st_size} bytes; expected at most {_MAX_SPECIAL_BYTES}.")
        return SPECIAL_READERS[spec.reader](path.read_bytes()).astype("str"), [f"read as {spec.reader}"], ()
    options = TableOptions(
        separator=spec.separator,
        encoding=spec.encoding,
        columns=spec.columns,
        skip_rows=spec.skip_rows,
        sheet=spec.sheet,
        comment=spec.comment,
    )
    found = read_metadata_table(path, options)
    return found.frame, list(found.notes), found.dropped


def register_source(store: Store, folder: Path, name: str | None = None, replace: bool = False) -> str:
    """Copy a local folder into the inbox; its `source.toml` is copied last.

    Args:
        folder: Tables and images with a `source.toml`.
        name: Replaces the source's name in `source.toml`; None keeps it.
        replace: Whether the files of a source with the same name may be replaced.

    Returns:
        The source's name.

    Raises:
        FileNotFoundError: There is no such folder, or no `source.toml` in it.
        DataError: The description breaks rules.
        FileExistsError: The inbox has a source of that name already, with other files.
    """
    toml = folder / SOURCE_TOML
    if not toml.is_file():
        raise FileNotFoundError(f"{folder} has no {SOURCE_TOML}; write one beside the tables. An example:\n{EXAMPLE}")
    text = toml.read_bytes()
    if name is not None:
        text = _renamed(text, name, str(toml))
    description = parse_source(text, str(toml))
    copy_to_inbox(store, folder, description.facts.name, SOURCE_TOML, text, replace)
    return description.facts.name


def _renamed(text: bytes, name: str, what: str) -> bytes:
    """Change the name in a `source.toml`, and keep everything else as it is written."""
    parse_toml(text, what)
    try:
        document = tomlkit.parse(text.decode("utf-8-sig"))
    except TOMLKitError as error:  # it is stricter than the standard library in places
        raise DataError(f"the name in {what} cannot be changed: {error}. Write the new name into the file.") from error
    document["name"] = name
    return tomlkit.dumps(document).encode()
