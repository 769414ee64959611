"""The columns of CytoImageNet's tables: those of the standard metadata, and those of the published data set.

Several values in a cell are joined by "|". A missing value is empty text, never NaN. `cem_assets.cytoimagenet.sources.recipe`
says how a source's own tables become these columns, and `cem_assets.cytoimagenet.tables` has the Parquet schemas.
"""

import pandas as pd

from cem_assets.errors import DataError

LABEL_COLUMNS = ("organism", "cell_type", "cell_visible", "phenotype", "compound", "gene", "sirna")
"""Columns whose values become labels. Of values with equal counts, those of the first column here come first, as in the
published README."""

STANDARD_COLUMNS = (
    "database", "name", "dir_name", "path", "filename", "idx",
    "organism", "cell_type", "cell_visible", "phenotype", "compound", "sirna", "gene",
    "microscopy", "channels",
)  # fmt: skip
"""The columns of a table with one row per image. All channels of a field are one image."""

RELEASE_COLUMNS = (
    "label", "category",
    "database", "name", "dir_name", "path", "filename", "idx",
    "organism", "cell_type", "cell_visible", "phenotype", "compound", "sirna", "gene",
    "microscopy", "crop", "scaling", "x_min", "x_max", "y_min", "y_max",
)  # fmt: skip
"""The columns of `metadata.csv` of the published data set, in its order."""

SEPARATOR = "|"


def split_values(cell: str) -> list[str]:
    """Split a cell into its values, in order; empty values are left out."""
    return [value for part in cell.split(SEPARATOR) if (value := part.strip())]


def join_values(values: list[str]) -> str:
    """Join values into a cell, each value once, in the order in which they first occur."""
    return SEPARATOR.join(dict.fromkeys(value for value in values if value))


def check_columns(table: pd.DataFrame, required: tuple[str, ...], what: str) -> None:
    """Refuse a table that lacks columns.

    Args:
        what: Names the table in the error.

    Raises:
        DataError: Columns are missing; the error names them and the columns that the table has.
    """
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise DataError(
            f"{what} lacks column(s) {', '.join(missing)}; found {', '.join(map(str, table.columns))}. Take it from "
            "cytoimagenet/source_metadata, or rename its columns."
        )
