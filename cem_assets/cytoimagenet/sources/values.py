"""The values of one standard column: where they come from, and how they are split, mapped and replaced by common terms."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cem_assets.cytoimagenet.columns import SEPARATOR, join_values, split_values
from cem_assets.cytoimagenet.sources.recipe import Condition, Recipe, ValueSpec
from cem_assets.errors import DataError

MAX_VALUE = 200
"""Length in characters to which longer values are cut."""
_MAX_DIGITS = 1000
"""Numbers with more digits are not rewritten, and templates cannot ask for more."""
_FIELD = re.compile(r"\{([^{}:]+)(?::(A|0?\d*d))?\}")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_MAX_UNMAPPED = 50


@dataclass(frozen=True)
class ColumnValues:
    """A standard column.

    Attributes:
        cells: One text per row; several values are joined by "|".
        unmapped: Values that are missing in a map marked as complete, with the number of their rows; the 50 most frequent.
    """

    cells: list[str]
    unmapped: dict[str, int]


def column_values(
    recipe: Recipe, name: str, frame: pd.DataFrame, terms: Mapping[str, str], is_term: bool = True
) -> ColumnValues:
    r"""Make a standard column.

    Args:
        name: Name of the standard column.
        frame: Rows with the tables' columns, and in the column "\\0channels" a tuple of `ChannelSpec`.
        terms: For each value the term that is used across sources.
        is_term: Whether values become lower case and are replaced by terms. This is not done to paths and file names.

    Raises:
        DataError: The recipe names a column that is missing.
    """
    specs = recipe.columns.get(name, ())
    if not specs and name in ("cell_visible", "microscopy"):
        specs = (ValueSpec(from_channels=True),)
    unmapped: Counter[str] = Counter()
    cells: list[str] = [""] * len(frame)
    for spec in specs:
        found = _spec_cells(recipe, spec, name, frame, terms, is_term, unmapped)
        if spec.when is not None:
            is_kept = holds(spec.when, frame)
            found = [cell if keep else "" for cell, keep in zip(found, is_kept, strict=True)]
        cells = found if spec is specs[0] else _united(cells, found)
    return ColumnValues(cells, dict(unmapped.most_common(_MAX_UNMAPPED)))


def _united(first: list[str], second: list[str]) -> list[str]:
    known: dict[tuple[str, str], str] = {}
    for pair in set(zip(first, second, strict=True)):
        known[pair] = join_values([*split_values(pair[0]), *split_values(pair[1])])
    return [known[pair] for pair in zip(first, second, strict=True)]


def _spec_cells(
    recipe: Recipe,
    spec: ValueSpec,
    name: str,
    frame: pd.DataFrame,
    terms: Mapping[str, str],
    is_term: bool,
    unmapped: Counter[str],
) -> list[str]:
    missing = frozenset(cell.casefold() for cell in recipe.missing)
    mapping = {key.casefold().strip(): value for key, value in spec.map.items()}
    removed = frozenset(value.casefold() for value in spec.drop)

    def finish(cell: str) -> str:
        if not is_term:
            return _replaced(_matched(cell.strip(), spec.pattern), mapping)
        values = []
        for raw in _split(cell, spec.split):
            text = _matched(" ".join(raw.split()), spec.pattern)
            if text.casefold() in missing:
                continue
            if mapping and spec.is_complete and text.casefold() not in mapping:
                lacking.append(text)
            text = _replaced(text, mapping)
            if text.casefold() in removed:
                continue
            for part in split_values(text.lower()):
                values += split_values(terms.get(part[:MAX_VALUE], part[:MAX_VALUE]))
        return join_values(values)

    lacking: list[str] = []
    if spec.value:
        return [finish(spec.value)] * len(frame)
    if spec.from_channels:
        key = "cell_visible" if name == "cell_visible" else "microscopy"
        shown = [SEPARATOR.join(getattr(channel, key) for channel in channels) for channels in frame["\0channels"]]
        return _each_once(shown, finish, lacking, unmapped)
    if spec.flags:
        cells = [""] * len(frame)
        for column, value in spec.flags.items():
            is_set = _is_set(_column(frame, column, name), spec)
            flagged = finish(value)
            cells = _united(cells, [flagged if flag else "" for flag in is_set])
        return cells
    if spec.template:
        return _each_once(fill(spec.template, frame, name), finish, lacking, unmapped)
    cells = [""] * len(frame)
    for place, column in enumerate(spec.columns or (spec.column,)):
        found = _each_once(list(_column(frame, column, name)), finish, lacking, unmapped)
        cells = found if place == 0 else _united(cells, found)
    return cells


def _matched(text: str, pattern: str) -> str:
    match = re.search(pattern, text) if pattern else None
    if match is None:
        return "" if pattern else text
    return (match.group(1) if match.re.groups else match.group()) or ""


def _replaced(text: str, mapping: Mapping[str, str]) -> str:
    return mapping.get(text.casefold(), text) if mapping else text


def _each_once(cells: list[str], finish: Callable[[str], str], lacking: list[str], unmapped: Counter[str]) -> list[str]:
    """Apply a function to each distinct cell once, and count the rows whose values are missing in the map."""
    counts = Counter(cells)
    known = {}
    for cell, count in counts.items():
        known[cell] = finish(cell)
        for value in lacking:
            unmapped[value] += count
        lacking.clear()
    return [known[cell] for cell in cells]


def _split(cell: str, separator: str) -> list[str]:
    if separator == "list":
        quoted = [first or second for first, second in _QUOTED.findall(cell)]
        return quoted if quoted and cell.lstrip().startswith("[") else [cell]
    return cell.split(separator) if separator else [cell]


def _is_set(column: pd.Series, spec: ValueSpec) -> NDArray[np.bool_]:
    if spec.at_least is not None:
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
        return np.asarray(np.nan_to_num(numbers, nan=-np.inf) >= spec.at_least)
    true = {text.casefold() for text in spec.is_true}
    return np.array([cell.strip().casefold() in true for cell in column], np.bool_)


def _column(frame: pd.DataFrame, column: str, name: str) -> pd.Series:
    if column not in frame.columns:
        shown = [str(each) for each in frame.columns if not str(each).startswith("\0")]
        raise DataError(
            f"column {name} comes from {column!r}, which is in neither the tables nor the images' pattern; they have "
            f"{', '.join(shown[:30])}. Correct the recipe or the table."
        )
    return frame[column]


def holds(condition: Condition, frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Tell which rows meet a condition: bool (n,).

    Raises:
        DataError: The rows do not have the condition's column.
    """
    cells = _column(frame, condition.column, "a condition")
    folded = [cell.strip().casefold() for cell in cells]
    if condition.is_in:
        allowed = {text.strip().casefold() for text in condition.is_in}
        return np.array([cell in allowed for cell in folded], np.bool_)
    if condition.not_in:
        forbidden = {text.strip().casefold() for text in condition.not_in}
        return np.array([cell not in forbidden for cell in folded], np.bool_)
    if condition.matches:
        pattern = re.compile(condition.matches, re.IGNORECASE)
        known = {cell: pattern.search(cell) is not None for cell in set(cells)}
        return np.array([known[cell] for cell in cells], np.bool_)
    return np.array([bool(cell) for cell in folded], np.bool_)


def fill(template: str, frame: pd.DataFrame, name: str) -> list[str]:
    """Fill a template such as "{Plate}/{row}{column:02d}" with the cells of every row.

    `:02d` pads a number with zeros to two digits, and `:d` removes leading zeros. `:A` writes the number of a plate's row as a
    letter: 1 is A, 2 is B, 27 is AA.

    Args:
        name: What the text is for, as errors name it.

    Raises:
        DataError: The rows lack a column of the template, or it asks for more than 1,000 digits.
    """
    parts: list[list[str] | str] = []
    end = 0
    for match in _FIELD.finditer(template):
        parts += [template[end : match.start()], list(_column(frame, match.group(1), name))]
        if match.group(2) is not None:
            _check_width(match.group(2), template)
            known = {cell: _written(cell, match.group(2)) for cell in set(parts[-1])}
            parts[-1] = [known[cell] for cell in parts[-1]]
        end = match.end()
    parts.append(template[end:])
    columns = [part if isinstance(part, list) else [part] * len(frame) for part in parts]
    return ["".join(cells) for cells in zip(*columns, strict=True)]


def _check_width(how: str, template: str) -> None:
    digits = how.strip("Ad").lstrip("0")
    if len(digits) > 4 or int(digits or 0) > _MAX_DIGITS:
        raise DataError(f"the template {template[:100]!r} asks for numbers of more than {_MAX_DIGITS} digits; expected fewer.")


def _written(cell: str, how: str) -> str:
    """Write a number in the form that a template asks for; cells that are not numbers stay as they are."""
    if not cell.strip().isdecimal() or len(cell) > _MAX_DIGITS:
        return cell
    number = int(cell)
    if how != "A":
        return str(number).zfill(int(how.strip("d") or 1))
    letters = ""
    while number > 0:
        number, place = divmod(number - 1, 26)
        letters = chr(65 + place) + letters
    return letters
