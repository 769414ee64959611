"""The schema of standard metadata: the rules that every row must obey before labels are taken from it."""

import pandas as pd

from cem_assets.cytoimagenet.columns import LABEL_COLUMNS, STANDARD_COLUMNS, check_columns, join_values, split_values
from cem_assets.errors import DataError

_MAX_PROBLEMS = 20


def _is_joined(cells: pd.Series) -> pd.Series:
    """Tell which cells look as `join_values` writes them; each distinct cell is checked once."""
    known = {cell: cell == join_values(split_values(cell)) for cell in cells.unique()}
    return cells.map(known)


def check_metadata(table: pd.DataFrame, what: str) -> None:
    """Check the standard columns with a pandera schema.

    Args:
        table: Standard columns, one row per image.
        what: Name of the source, for the error.

    Raises:
        DataError: Rows break rules. The error lists which column breaks which rule, in how many rows, with examples.
    """
    import pandera.pandas as pa  # takes 2 s to import
    from pandera.errors import SchemaErrors

    check_columns(table, STANDARD_COLUMNS, what)
    text = pa.Check(lambda cells: cells.notna(), error="is missing; expected text, empty where there is no value")
    lower = pa.Check(lambda cells: cells == cells.str.lower(), error="has capital letters; expected lower case")
    clean = pa.Check(_is_joined, error="has empty, repeated or padded values; expected values joined by '|', each once")
    columns = {
        name: pa.Column(str, [text, lower, clean] if name in (*LABEL_COLUMNS, "microscopy") else [text], nullable=False)
        for name in STANDARD_COLUMNS
    }
    columns["idx"] = pa.Column(str, pa.Check.str_matches(r"^.+-\d+$"), unique=True)
    columns["filename"] = pa.Column(str, pa.Check.str_length(min_value=1))
    columns["gene"].checks.append(
        pa.Check(lambda cells: cells.str.count(r"[^|]+") == cells.str.count(r" targeted(?=\||$)"), error="lacks ' targeted'")
    )
    try:
        pa.DataFrameSchema(columns, strict=False).validate(table, lazy=True)
    except SchemaErrors as error:
        lines = []
        for (column, check), cases in error.failure_cases.groupby(["column", "check"], dropna=False, sort=True):
            examples = ", ".join(repr(str(case))[:60] for case in cases["failure_case"].head(3))
            lines.append(f"- column {column}: {check} in {len(cases)} row(s), such as {examples}")
        raise DataError(
            f"the metadata of {what} breaks its schema:\n" + "\n".join(lines[:_MAX_PROBLEMS]) + "\nCorrect the recipe."
        ) from error
