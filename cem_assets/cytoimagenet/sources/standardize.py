"""Applying a recipe: a source's tables and image paths become standard rows. Whatever is dropped gets a reason.

Tables are passed as data frames of text and images as paths; no file is opened here. `cem_assets.cytoimagenet.sources.recipe`
has the format of recipes, `.values` makes single columns, `.image_groups` finds the files of images, and `.stage` reads and
writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS, STANDARD_COLUMNS, join_values, split_values
from cem_assets.cytoimagenet.sources.image_groups import Dropped, attach_listed_files, group_images, key_of, separate_modalities
from cem_assets.cytoimagenet.sources.recipe import JoinSpec, Recipe, SourceFacts, TableSpec
from cem_assets.cytoimagenet.sources.values import ColumnValues, column_values, fill, holds
from cem_assets.errors import DataError

Terms = Mapping[str, Mapping[str, str]]
ROW = "\0row"
"""Column with the name of the row that a value came from; no real column can have this name."""


@dataclass(frozen=True)
class Standardized:
    """What a recipe made of a source.

    Attributes:
        rows: `STANDARD_COLUMNS`, and `files` with a tuple of paths in order of channel; sorted by path and file name.
        dropped: Columns `what` (a row or file) and `reason`.
        report: num_rows_read (by table), num_rows, num_images (rows with files), dropped (number of rows by reason), unmapped
            (by column the values that the recipe's map lacks, with counts), missing (share of rows without a value, by label
            column), num_values (distinct values by label column), notes.
    """

    rows: pd.DataFrame
    dropped: pd.DataFrame
    report: dict[str, Any]


def standardize(
    recipe: Recipe, facts: SourceFacts, tables: Mapping[str, pd.DataFrame], paths: Sequence[str], terms: Terms
) -> Standardized:
    """Make the standard rows of a source.

    Args:
        tables: By name. Cells are text, and missing cells are "".
        paths: Paths of the source's image files, relative to its folder.
        terms: For each column and value (in lower case) the term that is used across sources.

    Returns:
        One row per image, or per row of the first table if there are no images, in order of path and file name. Rows of the
        same image are merged, and their values are joined by "|".

    Raises:
        DataError: The recipe names tables or columns that are missing.
    """
    _check_names(recipe, tables)
    dropped: list[Dropped] = []
    frame = _joined(recipe, tables, dropped) if recipe.tables else None
    is_tables_only = frame is not None and (recipe.images is None or not paths)
    if is_tables_only:
        assert frame is not None
        # Tables often arrive before their images. Until then the recipe says which channels the images will have.
        channels = tuple(channel for channel in recipe.channels if channel.is_used)
        repeated: list[Any] = [channels] * len(frame)
        frame["\0files"], frame["\0channels"] = [()] * len(frame), repeated
        frame["\0group"] = _names_without_files(recipe, frame)
    elif recipe.images is not None and recipe.images.pattern:
        frame = group_images(recipe, frame, paths, dropped)
    else:
        assert frame is not None
        frame = attach_listed_files(recipe, frame, paths, dropped)
        frame["\0group"] = _names_without_files(recipe, frame)
    frame = separate_modalities(recipe, frame.reset_index(drop=True))
    values = {name: column_values(recipe, name, frame, terms.get(name, {})) for name in (*LABEL_COLUMNS, "microscopy")}
    rows = pd.DataFrame({name: found.cells for name, found in values.items()})
    rows["gene"] = _targeted(rows["gene"])
    rows["channels"] = [join_values([channel.name for channel in found]) for found in frame["\0channels"]]
    rows["files"] = list(frame["\0files"])
    rows["path"], rows["filename"] = _places(recipe, facts, frame)
    rows = _one_row_per_image(rows, dropped)
    rows = rows.sort_values(["path", "filename"], kind="stable", ignore_index=True)
    dir_name = facts.dir_name or facts.name
    rows["database"], rows["name"], rows["dir_name"] = facts.database, facts.title or facts.name, dir_name
    rows["idx"] = [f"{dir_name}-{number}" for number in range(len(rows))]
    what = pd.DataFrame(dropped, columns=["what", "reason"], dtype="str")
    report = _report(recipe, tables, rows, what, values)
    if is_tables_only:
        report["notes"].append("there are no image files: rows come from the tables alone, channels from the recipe")
    return Standardized(rows[[*STANDARD_COLUMNS, "files"]], what, report)


def _names_without_files(recipe: Recipe, frame: pd.DataFrame) -> list[str]:
    """Name rows by what will find their images: the columns of the join, or the first file that the tables name."""
    listed = next((channel.file for channel in recipe.channels if channel.file and channel.is_used), "")
    if listed:
        return [name.rpartition("/")[2] for name in fill(listed, frame, "a channel's file")]
    keys = list(recipe.images.on) if recipe.images else []
    parts = [fill(key if "{" in key else f"{{{key}}}", frame, "a name") for key in keys]
    return ["_".join(cell for cell in cells if cell) for cells in zip(*parts, strict=True)] if parts else [""] * len(frame)


def _check_names(recipe: Recipe, tables: Mapping[str, pd.DataFrame]) -> None:
    problems = [f"table {table.name!r} was not given" for table in recipe.tables if table.name not in tables]
    for table in recipe.tables:
        found = tables.get(table.name)
        wanted = [condition.column for condition in table.keep]
        wanted += [right for join in recipe.joins if join.table == table.name for right in join.on.values() if "{" not in right]
        lacking = [] if found is None else [column for column in sorted(set(wanted)) if column not in found.columns]
        have = "" if found is None else _some(found.columns)
        problems += [f"table {table.name!r} has no column {column!r}; it has {have}" for column in lacking]
    if problems:
        raise DataError("; ".join(problems) + ". Correct the recipe or the table.")


def _some(names: Any) -> str:
    shown = [str(name) for name in names if not str(name).startswith("\0")]
    return ", ".join(shown[:30]) + (f" and {len(shown) - 30} more" if len(shown) > 30 else "")


def _joined(recipe: Recipe, tables: Mapping[str, pd.DataFrame], dropped: list[Dropped]) -> pd.DataFrame:
    """Filter the tables, and join them in the recipe's order."""
    kept = {spec.name: _kept(spec, tables[spec.name], dropped) for spec in recipe.tables}
    frame = kept[recipe.tables[0].name]
    for join in recipe.joins:
        frame = _join(frame, join, kept[join.table].drop(columns=ROW), dropped)
    return frame


def _kept(spec: TableSpec, table: pd.DataFrame, dropped: list[Dropped]) -> pd.DataFrame:
    numbered = table.assign(**{ROW: [f"{spec.name} row {number}" for number in range(1, len(table) + 1)]})
    for condition in spec.keep:
        is_kept = holds(condition, numbered)
        dropped += [(row, condition.explanation()) for row in numbered.loc[~is_kept, ROW]]
        numbered = numbered[is_kept]
    return numbered


def _join(frame: pd.DataFrame, join: JoinSpec, right: pd.DataFrame, dropped: list[Dropped]) -> pd.DataFrame:
    """Add a table's columns to the rows. A column that the rows have already is not replaced; a prefix makes names differ."""
    missing = [column for column in join.on if "{" not in column and column not in frame.columns]
    if missing:
        raise DataError(
            f"the join of {join.table!r} needs column(s) {', '.join(missing)}; the rows have {_some(frame.columns)}."
        )
    left_key = key_of(frame, list(join.on))
    right_key = key_of(right, list(join.on.values()))
    right = right.rename(columns={name: f"{join.prefix}{name}" for name in right.columns})
    right = right[[name for name in right.columns if name not in frame.columns]].assign(**{"\0key": right_key.to_numpy()})
    right = right[right["\0key"] != ""]
    if join.is_first_only:
        right = right.drop_duplicates("\0key")
    merged = frame.assign(**{"\0key": left_key.to_numpy()}).merge(right, on="\0key", how="left", indicator="\0found")
    lonely = merged["\0found"] == "left_only"
    if join.is_required:
        dropped += [(row, f"no row of table {join.table!r} belongs to it") for row in merged.loc[lonely, ROW]]
        merged = merged[~lonely]
    added = [name for name in right.columns if name != "\0key"]
    merged[added] = merged[added].fillna("")
    return merged.drop(columns=["\0key", "\0found"])


def _targeted(cells: pd.Series) -> list[str]:
    """Append " targeted" to gene names, so that they differ from visible structures with the same name (actin, tubulin)."""
    known: dict[str, str] = {}
    for cell in cells.unique():
        values = [value.removesuffix(" targeted") for value in split_values(cell)]
        known[cell] = join_values([f"{value} targeted" for value in values])
    return [known[cell] for cell in cells]


def _places(recipe: Recipe, facts: SourceFacts, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the path and file name of every row. An image of several files gets a name made from the groups of the pattern."""
    path = column_values(recipe, "path", frame, {}, is_term=False).cells if "path" in recipe.columns else None
    name = column_values(recipe, "filename", frame, {}, is_term=False).cells if "filename" in recipe.columns else None
    files = list(frame["\0files"])
    groups = list(frame["\0group"]) if "\0group" in frame.columns else [""] * len(frame)
    own = list(frame[ROW]) if ROW in frame.columns else [""] * len(frame)
    kinds = list(frame["\0suffix"])
    paths = path or [f"{facts.name}/{found[0].rpartition('/')[0]}".rstrip("/") if found else facts.name for found in files]
    names = []
    for place, found in enumerate(files):
        given = name[place] if name else ""
        if not given:
            given = found[0].rpartition("/")[2] if len(set(found)) == 1 else groups[place] or own[place].replace(" row ", "-")
        names.append(f"{given}{kinds[place]}")
    return paths, names


def _one_row_per_image(rows: pd.DataFrame, dropped: list[Dropped]) -> pd.DataFrame:
    """Merge rows with equal path and file name, which occur if a table has two rows for two treatments of a well.

    If a recipe gives several images the same name, the one whose files come first in the alphabet stays.
    """
    keys = ["path", "filename"]
    is_repeated = rows.duplicated(keys, keep=False)
    if not is_repeated.any():
        return rows
    merged = []
    # Rows are sorted by their values, so that the order of lines in a table does not matter.
    ordered = rows[is_repeated].sort_values([*LABEL_COLUMNS, "microscopy", "channels"], kind="stable")
    for _, group in ordered.groupby(keys, sort=False):
        files = sorted({names for names in group["files"] if names}) or [()]
        reason = f"its path and name are those of {files[0][0]}; tell them apart by `filename`" if len(files) > 1 else ""
        dropped += [(names[0], reason) for names in files[1:]]
        group = group[[names in (files[0], ()) for names in group["files"]]]
        first = {**group.iloc[0].to_dict(), "files": files[0]}
        for column in (*LABEL_COLUMNS, "microscopy", "channels"):
            first[column] = join_values([value for cell in group[column] for value in split_values(cell)])
        merged.append(first)
    return pd.concat([rows[~is_repeated], pd.DataFrame(merged)], ignore_index=True)


def _report(
    recipe: Recipe,
    tables: Mapping[str, pd.DataFrame],
    rows: pd.DataFrame,
    dropped: pd.DataFrame,
    values: Mapping[str, ColumnValues],
) -> dict[str, Any]:
    num = max(len(rows), 1)
    given = [column for column in LABEL_COLUMNS if column in recipe.columns]
    notes = [f"no row has a value of {column}, though the recipe gives it" for column in given if not rows[column].any()]
    return {
        "num_rows_read": {spec.name: len(tables[spec.name]) for spec in recipe.tables},
        "num_rows": len(rows),
        "num_images": int(np.sum([bool(found) for found in rows["files"]])),
        "dropped": {reason: int(count) for reason, count in dropped["reason"].value_counts().sort_index().items()},
        "unmapped": {column: found.unmapped for column, found in values.items() if found.unmapped},
        "missing": {column: round(float((rows[column] == "").sum() / num), 4) for column in LABEL_COLUMNS},
        "num_values": {
            column: len({v for cell in rows[column].unique() for v in split_values(cell)}) for column in LABEL_COLUMNS
        },
        "notes": notes,
    }
